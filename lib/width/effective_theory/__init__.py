"""Effective theory of deep networks: what width and depth do to signals, gradients and learning.

D. A. Roberts, S. Yaida and B. Hanin, *The Principles of Deep Learning Theory*, Cambridge University
Press 2022 (arXiv 2106.10165).

A random network of infinite width is Gaussian, and one number per layer, the kernel K, says all
about it (``flow``). At a critical initialization K neither explodes nor vanishes (``criticality``).
Finite width n adds a four-point vertex V of order 1/n that grows with every layer, so depth over
width is the parameter of the expansion (``vertex``). ``ensembles`` draws networks and measures all
of this, ``learning`` what finite width lets representations do.

Implemented: kernel, Gram and tangent-kernel flow, with a skip connection and with learning rates
for each layer; susceptibilities, the solver for critical points, universality classes and
exponents, phase diagrams; for one input the vertex, the correction of the mean kernel, the exact
law of piecewise linear networks, and the recursions of A, B, D, F (fluctuation of the tangent
kernel) and P, Q (its change); in closed form all eleven tensors of deep linear networks; the
information between outputs and the aspect ratio that it prefers; Monte Carlo estimators of
everything, by full matrices, layer by layer, or by chains of one number; orthogonal weights; the
change of representations in a step; nearly-kernel regression. Not implemented: recursions for
several inputs and for R, S, T, U of nonlinear networks, and the dynamics over many steps at order
1/n; there the estimators serve.

Symbols: ``C_b, C_W`` variances of biases and weights (times the number of inputs), ``K`` kernel,
``chi`` susceptibilities, ``V`` vertex, ``Theta`` tangent kernel, ``lambda`` rates, ``n`` width.
``layers`` is the book's L and counts weight layers.
"""

from lib.width.effective_theory.criticality import (
    Critical,
    critical_exponents,
    critical_hyperparameters,
    fixed_point,
    phase_diagram,
    taylor,
    universality_class,
)
from lib.width.effective_theory.ensembles import (
    backward,
    connected_correlator,
    estimate_tensors,
    forward,
    layer_gradients,
    sample_chains,
    sample_ensemble,
    sample_ntk,
    sample_weights,
)
from lib.width.effective_theory.flow import (
    ACTIVATIONS,
    ScaleInvariant,
    equal_rates,
    first_kernel,
    gaussian_expect,
    gram_flow,
    kernel_flow,
    kernel_step,
    ntk_contributions,
    ntk_flow,
    pair_means,
    rate_of_change,
    scale_slopes,
    susceptibilities,
)
from lib.width.effective_theory.learning import (
    SkipMLP,
    gram_change,
    nearly_kernel_prediction,
    quadratic_model,
)
from lib.width.effective_theory.vertex import (
    exact_second_moment,
    excess_kurtosis,
    fluctuation_flow,
    kernel_correction,
    linear_tensors,
    lognormal_information,
    mutual_information,
    optimal_aspect_ratio,
    per_layer,
    vertex_flow,
)

__all__ = [
    "ACTIVATIONS",
    "Critical",
    "ScaleInvariant",
    "SkipMLP",
    "backward",
    "connected_correlator",
    "critical_exponents",
    "critical_hyperparameters",
    "equal_rates",
    "estimate_tensors",
    "exact_second_moment",
    "excess_kurtosis",
    "first_kernel",
    "fixed_point",
    "fluctuation_flow",
    "forward",
    "gaussian_expect",
    "gram_change",
    "gram_flow",
    "kernel_correction",
    "kernel_flow",
    "kernel_step",
    "layer_gradients",
    "linear_tensors",
    "lognormal_information",
    "mutual_information",
    "nearly_kernel_prediction",
    "ntk_contributions",
    "ntk_flow",
    "optimal_aspect_ratio",
    "pair_means",
    "per_layer",
    "phase_diagram",
    "quadratic_model",
    "rate_of_change",
    "sample_chains",
    "sample_ensemble",
    "sample_ntk",
    "sample_weights",
    "scale_slopes",
    "susceptibilities",
    "taylor",
    "universality_class",
    "vertex_flow",
]
