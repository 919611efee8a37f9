"""Predictive coding with a recurrent network that corrects its own past (PV-RNN).

A. Ahmadi and J. Tani, *A Novel Predictive-Coding-Inspired Variational RNN Model for Online
Prediction and Recognition*, Neural Computation 31, 2019, arXiv:1811.01339.

The network has no input. Its posterior is moved by vectors ``A`` that belong to one step of one
sequence, and only prediction errors, sent back through time, move them. ``model`` has the network,
several side by side, its objective and training; ``outputs`` the two output layers; ``regression``
error regression on a fixed or a sliding window; ``analysis`` Lyapunov exponents and transition
statistics; ``baselines`` a VRNN, a network without noise, an LSTM; ``data`` the two data sets. The
time loop is ``lib.kernels.persistent_rnn``.

``w`` multiplies the KL divergence averaged over the latents of a layer and summed over layers and
time; the objective is minimized. Two public PyTorch programs of later work with PV-RNNs were read.
Both divide the KL by the number of latents, as here, and in both the posterior is ``A`` alone and
the first step has a weight of its own; one also rescales gradients by the variance, the prior's,
too, where ``natural_gradient`` rescales those of ``A`` only. Not confirmed: the factor 1/2 of the
squared error, and which of the paper's experiments uses which output layer. Log sigma is clamped
to [-4, 2], which the paper does not do. Not here: the paper's data and its robot.
"""

from lib.beyond_backprop.predictive_coding.analysis import (
    Cycles,
    cycle_statistics,
    lyapunov_exponents,
    ngram_kl,
)
from lib.beyond_backprop.predictive_coding.baselines import (
    MTRNN,
    VRNN,
    LSTMPredictor,
    train_baseline,
)
from lib.beyond_backprop.predictive_coding.data import (
    LEVEL,
    finite_state_machine,
    lissajous_primitives,
)
from lib.beyond_backprop.predictive_coding.model import PVRNN, Rollout, Terms, train
from lib.beyond_backprop.predictive_coding.outputs import Gaussian, Softmax
from lib.beyond_backprop.predictive_coding.regression import (
    Recognition,
    continue_from,
    error_regression,
    fit_window,
)

__all__ = [
    "LEVEL",
    "MTRNN",
    "PVRNN",
    "VRNN",
    "Cycles",
    "Gaussian",
    "LSTMPredictor",
    "Recognition",
    "Rollout",
    "Softmax",
    "Terms",
    "continue_from",
    "cycle_statistics",
    "error_regression",
    "finite_state_machine",
    "fit_window",
    "lissajous_primitives",
    "lyapunov_exponents",
    "ngram_kl",
    "train",
    "train_baseline",
]
