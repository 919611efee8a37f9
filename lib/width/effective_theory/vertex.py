"""What width leaves behind: the four-point vertex, exact laws, fluctuations of the tangent kernel.

All recursions are for one input and equal widths n, to leading order in 1/n. They follow from one
fact: given layer l, the neurons of layer l + 1 are independent Gaussians whose variance
``Q = C_b + (C_W / n) sum_j sigma(z_j)^2`` is itself random.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import roots_genlaguerre
from torch import Tensor

from lib.models.infinite_width import slope_of
from lib.width.effective_theory.flow import (
    Function,
    gaussian_expect,
    kernel_flow,
    ntk_flow,
    rate_of_change,
    susceptibilities,
)


def vertex_flow(
    sigma: Function, C_b: float, C_W: float, K1: float, layers: int, gamma: float = 0.0
) -> Float[Tensor, "layers"]:
    """``V^1, ..., V^L``: n times the variance, from network to network, of a layer's kernel.

    ``V^{l+1} = chi_par^2 V^l + C_W^2 (<sigma^4> - <sigma^2>^2)``, ``V^1 = 0``. Two neurons of one
    layer have ``Cov(z_i^2, z_j^2) = V / n``, one has the excess kurtosis ``3 V / (n K^2)``.

    With a skip of strength ``gamma`` the source gains ``2 gamma^2 C_W <sigma^2 (z^2 - K)>``, and
    ``chi_par`` contains ``gamma^2``. This holds where odd correlators vanish: linear or odd
    activations, or random signs on the skip. With ReLU and a plain skip the true V is larger.

    Raises:
        ValueError: as ``kernel_flow``; a kernel that is 0 or overflows on the way.
    """
    K = kernel_flow(sigma, C_b, C_W, K1, layers, gamma)
    _check_kernel(K)
    k = K[:-1]
    par = susceptibilities(sigma, C_W, k, gamma)[0]
    s2, s4 = (gaussian_expect(lambda z, p=p: sigma(z) ** p, k) for p in (2, 4))
    source = C_W**2 * (s4 - s2**2)
    if gamma:
        source = source + 4 * gamma**2 * C_W * k**2 * rate_of_change(lambda z: sigma(z) ** 2, k)
    return _accumulate(par**2, source)


def excess_kurtosis(
    V: Float[Tensor, "*batch"], K: Float[Tensor, "*batch"], width: int
) -> Float[Tensor, "*batch"]:
    """``3 V / (n K^2)``: how far one neuron is from Gaussian, over random networks.

    Raises:
        ValueError: no neuron.
    """
    if width < 1:
        raise ValueError(f"width={width}: allowed is 1 or more")
    return 3 * V / (width * K**2)


def per_layer(a_plus: float, a_minus: float) -> float:
    """``3 A_4 / A_2^2 - 1``: what each layer adds to ``V / K^2``, for piecewise linear sigma.

    2 for a linear network, 5 for ReLU.

    Raises:
        ValueError: both slopes are 0.
    """
    a2, a4 = (a_plus**2 + a_minus**2) / 2, (a_plus**4 + a_minus**4) / 2
    if a2 == 0:
        raise ValueError("a_plus and a_minus are both 0: no signal passes")
    return 3 * a4 / a2**2 - 1


def exact_second_moment(a_plus: float, a_minus: float, width: int, layers: float) -> float:
    """``E[(Q^L / K)^2] = (1 + nu / n)^{L-1}`` at any width, critical piecewise linear network.

    ``nu`` is ``per_layer(a_plus, a_minus)``. Each layer multiplies Q by an independent average of
    n terms of mean 1 and variance nu, which is the proof. ``Q^L`` is the variance of layer L given
    the layers before it, so ``3 (E[(Q^L / K)^2] - 1)`` is the exact excess kurtosis. ``layers`` may
    be a fraction, for the inverse of the law.

    Raises:
        ValueError: a width or a depth below 1, or two slopes of 0.
    """
    if not (width >= 1 and layers >= 1):
        raise ValueError(f"width={width}, layers={layers}: allowed is 1 or more of each")
    return (1 + per_layer(a_plus, a_minus) / width) ** (layers - 1)


def kernel_correction(
    sigma: Function, C_b: float, C_W: float, K1: float, layers: int
) -> Float[Tensor, "layers"]:
    """``K^{(1)}``: n times what finite width adds to the mean kernel, to leading order.

    ``K1' = chi_par K1 + (C_W / 2) V d^2<sigma^2>/dK^2``: the kernel fluctuates with variance V / n
    and its map is curved. Zero for scale-invariant activations, whose map is straight.
    """
    K = kernel_flow(sigma, C_b, C_W, K1, layers)
    V = vertex_flow(sigma, C_b, C_W, K1, layers)
    k = K[:-1]
    fourth = lambda z: sigma(z) ** 2 * (z**4 - 6 * k[:, None] * z**2 + 3 * k[:, None] ** 2)
    curvature = gaussian_expect(fourth, k) / (4 * k**4)
    return _accumulate(susceptibilities(sigma, C_W, k)[0], C_W / 2 * curvature * V[:-1])


def fluctuation_flow(
    sigma: Function,
    C_b: float,
    C_W: float,
    K1: float,
    layers: int,
    lambda_b: float = 0.0,
    lambda_W: float = 1.0,
) -> dict[str, Float[Tensor, "layers"]]:
    """The tensors of order 1/n that govern the tangent kernel, in every layer, one input.

    With ``i != j`` neurons of a layer, z their values, Theta the tangent kernel and dTheta its
    derivative (``dTheta_{abc} = sum_{mu nu} rates d_mu d_nu z_a d_mu z_b d_nu z_c``):

    =====  ==================================  ==================================================
    V      n Cov(z_i^2, z_j^2)                 non-Gaussianity
    A, B   n Cov(Theta_ii, Theta_jj), n E[Theta_ij^2]   the kernel's fluctuation
    D, F   n Cov(z_i^2, Theta_jj), n E[z_i z_j Theta_ij]   its correlation with the output
    P, Q   n E[dTheta_{ijj} z_i], n E[dTheta_{iij} z_j]   its change in training
    =====  ==================================  ==================================================

    ``Var Theta_ii = (A + 2 B) / n``. Derived in the same way as the vertex: average over the new
    weights, then expand around independent neurons. Keys ``K`` and ``Theta`` hold the means.

    Raises:
        ValueError: as ``ntk_flow``; rates that differ from layer to layer; a kernel that is 0 or
            overflows on the way.
    """
    if not isinstance(lambda_b, int | float) or not isinstance(lambda_W, int | float):
        raise ValueError(
            f"lambda_b={lambda_b}, lambda_W={lambda_W}: one rate for all layers is allowed here"
        )
    K = kernel_flow(sigma, C_b, C_W, K1, layers)
    _check_kernel(K)
    mean = ntk_flow(sigma, C_b, C_W, K1, layers, lambda_b, lambda_W)
    found = [[torch.zeros((), dtype=torch.float64)] * 7]
    for k, theta in zip(K[:-1], mean):
        found.append(_next_tensors(sigma, C_W, k, theta, lambda_W, *found[-1]))
    named = {name: torch.stack(v) for name, v in zip("VABDFPQ", zip(*found))}
    return {"K": K, "Theta": mean, **named}


def _next_tensors(sigma, C_W, K, theta, lambda_W, V, A, B, D, F, P, Q):
    s1 = slope_of(sigma)
    s2 = slope_of(s1)
    par, perp = susceptibilities(sigma, C_W, K)
    fed = lambda z: C_W * sigma(z) ** 2  # a neuron's share in the next layer's kernel,
    own = lambda z: lambda_W * sigma(z) ** 2 + C_W * s1(z) ** 2 * theta  # in its tangent kernel
    xi = rate_of_change(own, K)

    def E(*factors):
        return gaussian_expect(lambda z: math.prod(f(z) for f in factors), K)

    bent = C_W**2 * E(sigma, s2, s1, s1) * theta**2
    turned = C_W * E(lambda z: z, s1, s2) / K * theta
    F_new = C_W**2 * E(sigma, sigma, s1, s1) * theta + par**2 * F
    return (
        E(fed, fed) - E(fed) ** 2 + par**2 * V,
        E(own, own) - E(own) ** 2 + xi**2 * V + 2 * xi * perp * D + perp**2 * A,
        C_W**2 * E(s1, s1, s1, s1) * theta**2 + perp**2 * B,
        E(fed, own) - E(fed) * E(own) + par * xi * V + par * perp * D,
        F_new,
        bent + C_W * E(sigma, s2) * perp * B + par * perp * P,
        lambda_W / C_W * F_new + bent + turned * par * F + par * perp * Q,
    )


def linear_tensors(layers: int, K: float = 1.0, lambda_W: float = 1.0) -> dict[str, float]:
    """All tensors of order 1/n of a critical deep linear network (C_W = 1, no biases), in closed
    form.

    ``V = 2 (L-1)``, ``A = 2 B = L (L-1) (2L-1) / 3``, ``D = 2 F = L (L-1)``,
    ``Q = (L-1) L (L+1) / 6``, ``S = T = L^2 (L^2 - 1) / 12``, times ``K^2`` and one power of
    ``lambda_W`` for every kernel. ``P = R = U = 0``. R, S, T and U belong to the second derivative
    of the kernel, see ``ensembles.estimate_tensors``.

    Raises:
        ValueError: no layer, or a kernel that is not positive.
    """
    if layers < 1:
        raise ValueError(f"layers={layers}: allowed is 1 or more")
    if not K > 0:
        raise ValueError(f"K={K}: a variance, allowed are positive numbers")
    L, k, r = layers, K**2, lambda_W
    found = {
        "V": 2 * k * (L - 1),
        "A": r**2 * k * L * (L - 1) * (2 * L - 1) / 3,
        "D": r * k * L * (L - 1),
        "Q": r**2 * k * (L - 1) * L * (L + 1) / 6,
        "S": r**3 * k * L**2 * (L**2 - 1) / 12,
    }
    halves = {"B": found["A"] / 2, "F": found["D"] / 2, "T": found["S"]}
    return found | halves | {"P": 0.0, "R": 0.0, "U": 0.0}


# How deep should a network be? The book's answer from information.


def mutual_information(
    q: Float[Tensor, "*batch"] | float, m1: int = 1, m2: int = 1
) -> Float[Tensor, "*batch"]:
    """Nats that m1 neurons of the last layer hold about m2 others, to third order in ``q``.

    ``q = V / (n K^2)``; the last layer has ``n_L = m1 + m2`` neurons:
    ``(m1 m2 / 8) q^2 (1 - (20 + 3 n_L) q / 6)``.

    Raises:
        ValueError: ``q`` is negative, or a group is empty.
    """
    q = torch.as_tensor(q, dtype=torch.float64)
    if not (q >= 0).all() or m1 < 1 or m2 < 1:
        raise ValueError(f"q={q}, m1={m1}, m2={m2}: allowed are q >= 0 and groups of 1 or more")
    return m1 * m2 / 8 * q**2 * (1 - (20 + 3 * (m1 + m2)) / 6 * q)


def optimal_aspect_ratio(nu: float, n_L: int = 2) -> float:
    """The depth over width at which the truncated ``mutual_information`` is largest.

    ``nu`` is the growth of ``V / K^2`` per layer: 5 for ReLU, 2/3 for the class K* = 0.

    Raises:
        ValueError: ``nu`` is not positive or ``n_L`` below 2.
    """
    if not nu > 0 or n_L < 2:
        raise ValueError(f"nu={nu}, n_L={n_L}: allowed are nu > 0 and n_L of 2 or more")
    return 4 / (20 + 3 * n_L) / nu


def lognormal_information(q: float, m1: int = 1, m2: int = 1, nodes: int = 60) -> float:
    """The same information without the expansion, for a log-normal layer kernel.

    ``log Q`` is Gaussian with ``Var(Q) / E[Q]^2 = q``, which is what many layers make of it. The
    information grows with ``q`` without end: the optimum of ``optimal_aspect_ratio`` belongs to
    the truncated series.

    Raises:
        ValueError: ``q`` is negative or infinite, or a group is empty.
    """
    if not 0 <= q < math.inf or m1 < 1 or m2 < 1:
        raise ValueError(f"q={q}, m1={m1}, m2={m2}: allowed are q >= 0 and groups of 1 or more")
    s = math.sqrt(math.log1p(q))
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    Q, w = np.exp(s * z - s * s / 2), w / w.sum()

    def radius(m):  # |z|^2 / 2 of m standard normal numbers: nodes and weights
        r, v = roots_genlaguerre(nodes // 2, m / 2 - 1)
        return r, v / v.sum()

    def log_density(m, half_square):  # without (2 pi)^{-m/2}, which cancels
        terms = -half_square[..., None] / Q - m / 2 * np.log(Q) + np.log(w)
        top = terms.max(-1, keepdims=True)
        return np.log(np.exp(terms - top).sum(-1)) + top[..., 0]

    (r1, w1), (r2, w2) = radius(m1), radius(m2)
    one, two = Q[:, None] * r1, Q[:, None] * r2
    joint = log_density(m1 + m2, one[:, :, None] + two[:, None, :])
    mean_joint = np.einsum("q,i,j,qij->", w, w1, w2, joint)
    mean_one = np.einsum("q,i,qi->", w, w1, log_density(m1, one))
    mean_two = np.einsum("q,i,qi->", w, w2, log_density(m2, two))
    return float(mean_joint - mean_one - mean_two)


def _accumulate(factor: Tensor, source: Tensor) -> Tensor:
    """``v_1 = 0, v_{l+1} = factor_l v_l + source_l``."""
    values = [torch.zeros((), dtype=torch.float64)]
    for f, s in zip(factor, source):
        values.append(f * values[-1] + s)
    return torch.stack(values)


def _check_kernel(K: Tensor) -> None:
    if not ((K > 0) & (K < 1e100)).all():
        raise ValueError(
            f"the kernel runs from {K.min().item():.3g} to {K.max().item():.3g} over "
            f"{len(K)} layers: allowed is what stays positive and finite"
        )
