"""NoProp: every block learns to denoise the label, and no block waits for another.

Q. Li, Y. W. Teh and R. Pascanu, *NoProp: Training Neural Networks without Back-propagation or
Forward-propagation*, 2025, arXiv:2503.24322 (version 2 says *without Full ...*).

``discrete`` is NoProp-DT, ``continuous`` NoProp-CT with its learned noise schedule, ``flow``
NoProp-FM; ``embeddings`` has the class embeddings and the denoising block, ``baselines`` what the
paper compares with (target propagation is in ``lib.models.feedback``), ``together`` stacks blocks
to train them at once. Time runs from noise (t = 0) to the label, against the convention of
``lib.models.diffusion``.

Written from knowledge of the paper and of independent implementations; there is no official code.
Confirmed in more than one of these: the cosine schedule, embeddings of length 20 with an orthogonal
start, the form of gamma, the flow's anchor, softmax mixtures, no augmentation, blocks updated one
after another in each epoch. Not confirmed: the default rates and the 1000 time bins, whether
``z_{t-1}`` is detached from a learned embedding, and the exact form of the paper's second kind of
class probabilities (``output="distance"``). Left out: the ResNet encoders and the adjoint method's
own backward solve (``solver_loss`` differentiates the steps).
"""

from lib.beyond_backprop.noprop.baselines import (
    ForwardForward,
    ForwardGradient,
    Trainer,
    align_readout,
    backprop_loss,
    mlp_trainer,
    solver_loss,
)
from lib.beyond_backprop.noprop.continuous import NoiseSchedule, NoPropCT, label_velocity
from lib.beyond_backprop.noprop.discrete import (
    NoPropDT,
    cosine_alpha_bar,
    perfect_accuracy,
    train_stacks,
    transition,
)
from lib.beyond_backprop.noprop.embeddings import (
    CNNEncoder,
    LabelDenoiser,
    MLPEncoder,
    make_class_embedding,
    parameter_groups,
)
from lib.beyond_backprop.noprop.flow import NoPropFM
from lib.beyond_backprop.noprop.together import Stacked

__all__ = [
    "CNNEncoder",
    "ForwardForward",
    "ForwardGradient",
    "LabelDenoiser",
    "MLPEncoder",
    "NoPropCT",
    "NoPropDT",
    "NoPropFM",
    "NoiseSchedule",
    "Stacked",
    "Trainer",
    "align_readout",
    "backprop_loss",
    "cosine_alpha_bar",
    "label_velocity",
    "make_class_embedding",
    "mlp_trainer",
    "parameter_groups",
    "perfect_accuracy",
    "solver_loss",
    "train_stacks",
    "transition",
]
