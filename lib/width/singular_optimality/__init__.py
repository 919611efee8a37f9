"""Infinitely wide and deep classifiers: nearest neighbor, majority vote, or a singular kernel.

A. Radhakrishnan, M. Belkin and C. Uhler, "Wide and deep neural networks achieve consistency for
classification", PNAS 2023, arXiv 2204.14126.

Take the classifier of an infinitely wide network (its neural tangent kernel, without a ridge) on
the unit sphere and let the number of layers go to infinity. Two Gaussian moments of the activation
decide what is left: a nearest-neighbor rule, a majority vote, or a weighted vote whose weight is
singular where two points coincide. If the order of that singularity equals the dimension of the
data, the classifier converges to the best possible one (:func:`optimal_activation`).

Implemented: Hermite coefficients, moments and dual of an activation; the taxonomy, with the two
cases beside it; the kernel of any depth in logarithms (:func:`deep_ntk`), by which 100,000 layers
cost no more than 60; the Koenigs function and its order; the limit classifiers, the explicit
Hilbert weight ``|x - x'|^-a``, the classifier of any finite depth, with more than two classes; the
Dirichlet data with its Bayes rule; what the same limit does to regression. ReLU networks of finite
depth are in ``lib.models.infinite_width`` (gain 2, no bias). Not implemented: the paper's rates.

Activations are given by their coefficients ``a_k`` in the orthonormal Hermite polynomials ``h_k``,
with ``sum a_k^2 = 1``. Points are unit vectors; pairs are given by their gap ``1 - x.x'``, computed
as ``|x - x'|^2 / 2`` (:func:`gaps`), which keeps its digits where the points nearly coincide.

``activations``  Hermite coefficients, moments, duals; the taxonomy; activations of a given order.
``depth``        the tangent kernel at any depth, the Koenigs function; regression.
``votes``        the classifiers, at finite and at infinite depth.
``data``         Dirichlet mixtures on the sphere.
"""

from lib.kernels.kernel_sum import log_koenigs
from lib.width.singular_optimality.activations import (
    Moments,
    classify_activation,
    dual_coefficients,
    hermite_activation,
    hermite_dual,
    moments,
    optimal_activation,
    singularity_order,
    two_degrees,
    unit_coefficients,
)
from lib.width.singular_optimality.data import (
    SET_A,
    SET_B,
    Mixture,
    estimate_risks,
    normalized_dirichlet,
)
from lib.width.singular_optimality.depth import (
    deep_ntk,
    depth_regression_demo,
    gaps,
    koenigs,
    log_diagonal,
)
from lib.width.singular_optimality.votes import (
    VoteClassifier,
    agreement,
    answers_by_depth,
    hilbert_vote,
    limit_vote,
    majority_vote,
    nearest_vote,
    ntk_vote,
    relu_vote,
    singular_vote,
)

__all__ = [
    "Mixture",
    "Moments",
    "SET_A",
    "SET_B",
    "VoteClassifier",
    "agreement",
    "answers_by_depth",
    "classify_activation",
    "deep_ntk",
    "depth_regression_demo",
    "dual_coefficients",
    "estimate_risks",
    "gaps",
    "hermite_activation",
    "hermite_dual",
    "hilbert_vote",
    "koenigs",
    "limit_vote",
    "log_diagonal",
    "log_koenigs",
    "majority_vote",
    "moments",
    "nearest_vote",
    "normalized_dirichlet",
    "ntk_vote",
    "optimal_activation",
    "relu_vote",
    "singular_vote",
    "singularity_order",
    "two_degrees",
    "unit_coefficients",
]
