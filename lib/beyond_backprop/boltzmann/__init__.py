"""Monotone deep Boltzmann machines: mean-field inference with one solution, found every time.

Z. Feng, E. Winston and J. Z. Kolter, "Monotone deep Boltzmann machines", TMLR 2023,
arXiv:2307.04990.

- ``monotone``: the weights ``Phi`` with ``I - Phi >= m I``, the model, its Lipschitz constant;
- ``solvers``: forward-backward and Peaceman-Rachford splitting, Anderson acceleration, the implicit
  gradient;
- ``conditional``: clamping, the masked training objective, classification and completion by one
  set of weights, and a classifier for the part's comparison;
- ``convolutional``: the multi-tier model, convolutions within and between tiers;
- ``baselines``: parallel, damped, sequential and convex-concave mean-field, exact enumeration, a
  restricted Boltzmann machine, the same graph without the constraint.

The fused proximal operator is ``lib.kernels.prox_softmax``. Not implemented: the paper's full-scale
tables, and color images, whose pixels would be quantized into more states.
"""

from lib.beyond_backprop.boltzmann.baselines import (
    RBM,
    FreeBoltzmann,
    damped_mean_field,
    enumerate_marginals,
    free_energy,
    free_weights,
    krahenbuhl_koltun,
    parallel_mean_field,
    sequential_mean_field,
)
from lib.beyond_backprop.boltzmann.conditional import (
    Trainer,
    clamp,
    classify,
    complete,
    draw_masks,
    fit_marginals,
    infer,
    log_marginals,
    masked_marginal_loss,
    mlp_trainer,
    one_hot_pixels,
    read_out,
)
from lib.beyond_backprop.boltzmann.convolutional import ConvMultiTier
from lib.beyond_backprop.boltzmann.monotone import (
    MonotoneBoltzmann,
    aligned_weights,
    block_norms,
    lipschitz,
    monotone_weights,
    project_blocks,
    same_node,
    states,
)
from lib.beyond_backprop.boltzmann.solvers import (
    Solution,
    anderson,
    forward_backward,
    implicit_mean_field,
    peaceman_rachford,
    residual,
)

__all__ = [
    "RBM",
    "ConvMultiTier",
    "FreeBoltzmann",
    "MonotoneBoltzmann",
    "Solution",
    "Trainer",
    "aligned_weights",
    "anderson",
    "block_norms",
    "clamp",
    "classify",
    "complete",
    "damped_mean_field",
    "draw_masks",
    "enumerate_marginals",
    "fit_marginals",
    "forward_backward",
    "free_energy",
    "free_weights",
    "implicit_mean_field",
    "infer",
    "krahenbuhl_koltun",
    "lipschitz",
    "log_marginals",
    "masked_marginal_loss",
    "mlp_trainer",
    "monotone_weights",
    "one_hot_pixels",
    "parallel_mean_field",
    "peaceman_rachford",
    "project_blocks",
    "read_out",
    "residual",
    "same_node",
    "sequential_mean_field",
    "states",
]
