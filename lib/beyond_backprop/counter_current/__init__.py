"""Counter-current learning: a forward and a feedback network that teach each other layer by layer.

C.-H. Kao and B. Hariharan, *Counter-Current Learning: A Biologically Plausible Dual Network
Approach for Deep Learning*, NeurIPS 2024, arXiv:2409.19841.

``layers``: linear and convolutional layers with two directions. ``network``: the two networks, as
MLP, CNN and autoencoder. ``losses``: what a pair of layers wants, with its variants, and the
gradient by hand. ``training``: one step, many networks side by side, an MLP under the part's common
interface. ``baselines``: random feedback and target propagation.

Batch normalization's scale and shift are trained with their network (the authors' optimizers are
given the maps alone). Not here: the recipes for STL-10, and pooling between stride-1 convolutions.
"""

from lib.beyond_backprop.counter_current.baselines import (
    BaselineTrainer,
    RandomFeedbackMLP,
    TaughtInverses,
    baseline_trainer,
)
from lib.beyond_backprop.counter_current.layers import (
    DualConv2d,
    DualConvTranspose2d,
    DualFlatten,
    DualLayer,
    DualLinear,
)
from lib.beyond_backprop.counter_current.losses import (
    autoencoder_loss,
    ccl_loss,
    local_gradients,
    prototype_loss,
    unsure,
)
from lib.beyond_backprop.counter_current.network import (
    CounterCurrentNet,
    ccl_autoencoder,
    ccl_cnn,
    ccl_mlp,
    prototypes_read,
    transported_floats,
)
from lib.beyond_backprop.counter_current.training import (
    CCLTrainer,
    accuracy,
    ccl_step,
    centralize_,
    each,
    mlp_trainer,
    prototype_accuracy,
    train_ccl,
)

__all__ = [
    "BaselineTrainer",
    "CCLTrainer",
    "CounterCurrentNet",
    "DualConv2d",
    "DualConvTranspose2d",
    "DualFlatten",
    "DualLayer",
    "DualLinear",
    "RandomFeedbackMLP",
    "TaughtInverses",
    "accuracy",
    "autoencoder_loss",
    "baseline_trainer",
    "ccl_autoencoder",
    "ccl_cnn",
    "ccl_loss",
    "ccl_mlp",
    "ccl_step",
    "centralize_",
    "each",
    "local_gradients",
    "mlp_trainer",
    "prototype_accuracy",
    "prototype_loss",
    "prototypes_read",
    "train_ccl",
    "transported_floats",
    "unsure",
]
