"""AugLocal: local learning whose heads are built like the layers that follow.

Chenxiang Ma, Jibin Wu, Chenyang Si and Kay Chen Tan, *Scaling Supervised Local Learning with
Augmented Auxiliary Networks*, ICLR 2024, arXiv:2402.17318. The paper's L layers are ``n`` here,
counted from 0; layer 0 is the stem.

``selection``: which following layers a head copies, and how many. ``auxiliary``: heads, primary
networks and their assembly into :class:`lib.models.local_learning.LocalBlocks`. ``training``: an
MLP trained by the method. The training loop, end-to-end training with and without checkpointing,
and the heads that the paper compares with are in :mod:`lib.models.local_learning`; networks side by
side in :mod:`lib.models.side_by_side`; shifted and flipped images in :mod:`lib.core.data.augment`.

Not here: ResNets with bottlenecks, MobileNet, EfficientNet and RegNet; ImageNet and STL-10 recipes.
"""

from lib.beyond_backprop.auglocal.auxiliary import (
    auglocal_heads,
    auxiliary_flops,
    build_auxiliary,
    convolution,
    dense,
    layer_flops,
    local_network,
    primary_layers,
    residual,
    strides,
)
from lib.beyond_backprop.auglocal.selection import (
    constant_depths,
    layer_selection,
    pyramidal_depths,
    uniform_layer_selection,
)
from lib.beyond_backprop.auglocal.training import mlp_trainer

__all__ = [
    "auglocal_heads",
    "auxiliary_flops",
    "build_auxiliary",
    "constant_depths",
    "convolution",
    "dense",
    "layer_flops",
    "layer_selection",
    "local_network",
    "mlp_trainer",
    "primary_layers",
    "pyramidal_depths",
    "residual",
    "strides",
    "uniform_layer_selection",
]
