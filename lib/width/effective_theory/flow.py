"""Signals of an infinitely wide network, layer by layer: kernel, susceptibilities, tangent kernel.

The ensemble: ``z^1 = b + W x`` and ``z^{l+1} = b + W sigma(z^l)``, every entry independent,
``Var b = C_b``, ``Var W = C_W / (number of inputs)``. With a skip connection of strength ``gamma``
every layer but the first adds ``gamma z^l``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels.nngp_ntk import relu_dual
from lib.models.infinite_width import dual, slope_of

Function = Callable[[Tensor], Tensor]
Rate = float | Sequence[float] | Float[Tensor, "layers"]
NODES = 240


def kernel_step(
    sigma: Function, C_b: float, C_W: float, K: Float[Tensor, "*batch"] | float, gamma: float = 0.0
) -> Float[Tensor, "*batch"]:
    """``K^{l+1} = C_b + C_W <sigma^2>_{K^l} + gamma^2 K^l``: one layer of the kernel's flow."""
    K = torch.as_tensor(K, dtype=torch.float64)
    return C_b + C_W * gaussian_expect(lambda z: sigma(z) ** 2, K) + gamma**2 * K


def kernel_flow(
    sigma: Function,
    C_b: float,
    C_W: float,
    K1: Float[Tensor, "*batch"] | float,
    layers: int,
    gamma: float = 0.0,
) -> Float[Tensor, "layers *batch"]:
    """``K^1, ..., K^L``: the variance of a neuron in each layer, one input, infinite width.

    ``layers`` is the book's L: it counts weight layers, so there are L - 1 nonlinearities.

    Args:
        K1: variance in the first layer, ``C_b + C_W |x|^2 / n_0`` (``first_kernel``).

    Raises:
        ValueError: a negative ``C_b``, ``C_W`` or ``K1``, no layer, a ``gamma`` that is not finite.
    """
    _check(C_b, C_W, layers)
    if not math.isfinite(gamma):
        raise ValueError(f"gamma={gamma}: allowed are finite numbers")
    K = [torch.as_tensor(K1, dtype=torch.float64)]
    if not (K[0] >= 0).all():
        raise ValueError(f"K1={K1}: a variance, allowed is 0 or more")
    for _ in range(layers - 1):
        K.append(kernel_step(sigma, C_b, C_W, K[-1], gamma))
    return torch.stack(K)


def susceptibilities(
    sigma: Function, C_W: float, K: Float[Tensor, "*batch"] | float, gamma: float = 0.0
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """``(chi_par, chi_perp)``: by what factor one layer stretches a small difference.

    ``chi_par = C_W / (2 K^2) <sigma^2 (z^2 - K)>_K`` is the derivative of the kernel's map, for
    differences in length; ``chi_perp = C_W <sigma'^2>_K`` is for differences in direction, and for
    gradients on their way back. ``gamma^2`` is added to both.

    Raises:
        ValueError: ``K`` is not positive.
    """
    K = _positive(K)
    par = C_W * rate_of_change(lambda z: sigma(z) ** 2, K)
    perp = C_W * gaussian_expect(lambda z: slope_of(sigma)(z) ** 2, K)
    return par + gamma**2, perp + gamma**2


def gaussian_expect(
    f: Function, K: Float[Tensor, "*batch"] | float, nodes: int = NODES
) -> Float[Tensor, "*batch"]:
    """``<f(z)>_K``: the mean over ``z ~ N(0, K)``, in float64, elementwise in ``K``.

    Midpoints of equal steps from -12 to 12 standard deviations. For smooth functions this
    converges geometrically, and at large K, where an activation is a narrow feature, far sooner
    than Gauss-Hermite: 150 of these nodes give the critical point of SWISH, K = 14.32, to nine
    digits; 300 of Gauss-Hermite's give seven. The nodes lie symmetric around 0 without touching it,
    so averages of even powers over a half line, all that ReLU asks for, are exact.

    Raises:
        ValueError: a ``K`` that is negative or NaN, a number of nodes that is odd or below 2.
    """
    K = torch.as_tensor(K, dtype=torch.float64)
    if not (K >= 0).all():
        raise ValueError(f"K={K.min().item():.3g}: a variance, allowed is 0 or more")
    if nodes < 2 or nodes % 2:
        raise ValueError(f"nodes={nodes}: allowed are even numbers")
    u, weight = (t.to(K.device) for t in _midpoints(nodes))
    return f(K.sqrt()[..., None] * u) @ weight


@lru_cache
def _midpoints(nodes: int) -> tuple[Tensor, Tensor]:
    u = 24 * (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes - 12
    weight = torch.exp(-u * u / 2)
    return u, weight / weight.sum()


def rate_of_change(f: Function, K: Float[Tensor, "*batch"] | float) -> Float[Tensor, "*batch"]:
    """``d<f>_K / dK = <f (z^2 - K)>_K / (2 K^2)``, which no derivative of f is needed for."""
    K = torch.as_tensor(K, dtype=torch.float64)
    shifted = lambda z: f(z) * (z**2 - K[..., None])  # the nodes are the last axis
    return gaussian_expect(shifted, K) / (2 * K**2)


def ntk_flow(
    sigma: Function,
    C_b: float,
    C_W: float,
    K1: float,
    layers: int,
    lambda_b: Rate = 0.0,
    lambda_W: Rate = 1.0,
    gamma: float = 0.0,
) -> Float[Tensor, "layers"]:
    """``Theta^1, ..., Theta^L``: the tangent kernel of one input with itself, infinite width.

    A bias learns at rate ``lambda_b``, a weight at ``lambda_W / (number of inputs)``; a sequence
    gives each layer its own. ``Theta^{l+1} = lambda_b + lambda_W <sigma^2> + chi_perp Theta^l``.

    Raises:
        ValueError: as ``kernel_flow``; ``C_W`` is 0; not one rate for every layer.
    """
    own, chi = _layer_terms(sigma, C_b, C_W, K1, layers, lambda_b, lambda_W, gamma)
    theta = [own[0]]
    for new, factor in zip(own[1:], chi):
        theta.append(new + factor * theta[-1])
    return torch.stack(theta)


def ntk_contributions(
    sigma: Function,
    C_b: float,
    C_W: float,
    K1: float,
    layers: int,
    lambda_b: Rate = 0.0,
    lambda_W: Rate = 1.0,
    gamma: float = 0.0,
) -> Float[Tensor, "layers"]:
    """What each layer's parameters add to ``Theta^L``: the terms whose sum ``ntk_flow`` ends in."""
    own, chi = _layer_terms(sigma, C_b, C_W, K1, layers, lambda_b, lambda_W, gamma)
    above = torch.cat([chi.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=chi.dtype)])
    return own * above


def equal_rates(
    sigma: Function,
    C_b: float,
    C_W: float,
    K1: float,
    layers: int,
    bias: float = 1.0,
    weight: float = 1.0,
    gamma: float = 0.0,
) -> tuple[Float[Tensor, "layers"], Float[Tensor, "layers"]]:
    """``(lambda_b, lambda_W)`` for each layer with which all layers contribute equally.

    The book's equivalence principle, solved exactly instead of in powers of the layer: biases add
    ``bias / L`` to ``Theta^L`` in every layer, weights ``weight / L``. For large L these rates are
    ``l^{-p_perp}`` for biases and ``l^{p_0 - p_perp}`` for weights, with the exponents of
    ``criticality.critical_exponents``.

    Raises:
        ValueError: as ``ntk_flow``; a layer with nothing to contribute, as the first one's weights
            when the input is 0.
    """
    for_bias = ntk_contributions(sigma, C_b, C_W, K1, layers, 1.0, 0.0, gamma)
    for_weight = ntk_contributions(sigma, C_b, C_W, K1, layers, 0.0, 1.0, gamma)
    for what, share in (("biases", for_bias), ("weights", for_weight)):
        if not (share > 0).all():
            layer = 1 + int((share > 0).int().argmin())
            raise ValueError(f"the {what} of layer {layer} add 0 whatever their rate (K1={K1})")
    return bias / (layers * for_bias), weight / (layers * for_weight)


def first_kernel(x: Float[Tensor, "n d"], C_b: float, C_W: float) -> Float[Tensor, "n n"]:
    """``C_b + C_W x x'^T / n_0``: the first layer's kernel, exact at any width.

    Raises:
        ValueError: inputs without entries.
    """
    if x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: allowed are inputs with 1 entry or more")
    return C_b + C_W * (x @ x.T) / x.shape[1]


def gram_flow(
    sigma: Function,
    C_b: float,
    C_W: float,
    K1: Float[Tensor, "n n"],
    layers: int,
    gamma: float = 0.0,
    nodes: int = 100,
) -> Float[Tensor, "layers n n"]:
    """The kernel of several inputs in every layer, infinite width.

    Closed forms for piecewise linear activations, erf and sine; otherwise ``nodes`` x ``nodes``
    points for each pair.

    Raises:
        ValueError: as ``kernel_flow``; a ``K1`` that is not square, symmetric and finite with a
            diagonal of 0 or more.
    """
    _check(C_b, C_W, layers)
    if K1.ndim != 2 or K1.shape[0] != K1.shape[1]:
        raise ValueError(f"K1 must be square, got shape {tuple(K1.shape)}")
    if not (K1.isfinite().all() and torch.allclose(K1, K1.T) and (K1.diagonal() >= 0).all()):
        raise ValueError("K1 is not a kernel: allowed are symmetric finite matrices, diagonal >= 0")
    i, j = torch.triu_indices(*K1.shape, device=K1.device)  # symmetric: half of it will do
    K = [K1.double()[i, j]]
    for _ in range(layers - 1):
        v = K[-1][i == j]
        K.append(C_b + C_W * _means(sigma, v[i], v[j], K[-1], nodes)[0] + gamma**2 * K[-1])
    return _symmetric(torch.stack(K), len(K1))


def pair_means(
    sigma: Function, K: Float[Tensor, "n n"], nodes: int = 100
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """``<sigma sigma>`` and ``<sigma' sigma'>`` for every pair of inputs; ``K`` is symmetric.

    Raises:
        ValueError: a ``K`` that is not square.
    """
    if K.ndim != 2 or K.shape[0] != K.shape[1]:
        raise ValueError(f"K must be square, got shape {tuple(K.shape)}")
    v, (i, j) = K.diagonal(), torch.triu_indices(*K.shape, device=K.device)
    value, slope = _means(sigma, v[i], v[j], K[i, j], nodes)
    return _symmetric(value, len(K)), _symmetric(slope, len(K))


def _symmetric(upper: Float[Tensor, "*batch pairs"], n: int) -> Float[Tensor, "*batch n n"]:
    where = torch.empty(n, n, dtype=torch.long, device=upper.device)
    i, j = torch.triu_indices(n, n, device=upper.device)
    where[i, j] = where[j, i] = torch.arange(len(i), device=upper.device)
    return upper[..., where]


def _means(sigma: Function, a: Tensor, b: Tensor, c: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    if (slopes := scale_slopes(sigma)) is not None:
        # sigma(z) = a_+ relu(z) - a_- relu(-z), and relu(-v) only turns the covariance's sign.
        up, down = slopes
        squares, cross = up**2 + down**2, 2 * up * down
        value, slope = (squares * mean for mean in relu_dual(a, b, c))
        if cross:
            other = relu_dual(a, b, -c)
            value, slope = value - cross * other[0], slope + cross * other[1]
        return value, slope
    closed = {torch.erf: "erf", torch.sin: "sin"}.get(sigma, sigma)
    cov = torch.stack([torch.stack([a, c], -1), torch.stack([c, b], -1)], -2)
    return dual(closed, cov, nodes)


@dataclass(frozen=True)
class ScaleInvariant:
    """``sigma(z) = a_plus z`` for positive z and ``a_minus z`` for negative: ReLU is (1, 0)."""

    a_plus: float
    a_minus: float

    def __call__(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        if self.a_plus == self.a_minus:
            return self.a_plus * z
        return torch.where(z > 0, self.a_plus * z, self.a_minus * z)


ACTIVATIONS: dict[str, Function] = {
    "linear": ScaleInvariant(1.0, 1.0),
    "relu": torch.relu,
    "leaky relu": ScaleInvariant(1.0, 0.1),
    "tanh": torch.tanh,
    "sin": torch.sin,
    "erf": torch.erf,
    "gelu": torch.nn.functional.gelu,
    "swish": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "square": torch.square,
}


def scale_slopes(sigma: Function) -> tuple[float, float] | None:
    """``(a_plus, a_minus)`` of a scale-invariant activation, None for any other."""
    if isinstance(sigma, ScaleInvariant):
        return sigma.a_plus, sigma.a_minus
    t = torch.tensor([0.03, 0.5, 1.0, 3.0, 40.0], dtype=torch.float64)
    up, down = sigma(t) / t, sigma(-t) / -t
    if all(torch.allclose(s, s[0].expand(5), rtol=1e-12, atol=1e-14) for s in (up, down)):
        return up[0].item(), down[0].item()
    return None


def _layer_terms(sigma, C_b, C_W, K1, layers, lambda_b, lambda_W, gamma):
    """What each layer's own parameters add to its kernel, and the factor of each later layer."""
    _check(C_b, C_W, layers)
    if C_W == 0:
        raise ValueError("C_W=0: no signal passes; allowed is a positive number")
    rates = []
    for name, rate in (("lambda_b", lambda_b), ("lambda_W", lambda_W)):
        rate = torch.as_tensor(rate, dtype=torch.float64)
        if rate.ndim > 1 or (rate.ndim == 1 and len(rate) != layers):
            raise ValueError(f"{name} has shape {tuple(rate.shape)}: give one rate, or {layers}")
        rates.append(rate.expand(layers))
    K = kernel_flow(sigma, C_b, C_W, K1, layers, gamma)
    if not K[0] >= C_b:
        raise ValueError(f"K1={K1}: it holds the bias, so allowed is C_b={C_b} or more")
    fed = gaussian_expect(lambda z: sigma(z) ** 2, K[:-1])
    fed = torch.cat([((K[0] - C_b) / C_W)[None], fed])  # the input's |x|^2 / n_0, then <sigma^2>
    chi = C_W * gaussian_expect(lambda z: slope_of(sigma)(z) ** 2, K[:-1]) + gamma**2
    return rates[0] + rates[1] * fed, chi


def _check(C_b: float, C_W: float, layers: int) -> None:
    if not (0 <= C_b < math.inf and 0 <= C_W < math.inf):
        raise ValueError(f"C_b={C_b}, C_W={C_W}: variances, allowed is 0 or more and finite")
    if layers < 1:
        raise ValueError(f"layers={layers}: allowed is 1 or more")


def _positive(K) -> Tensor:
    K = torch.as_tensor(K, dtype=torch.float64)
    if not (K > 0).all():
        raise ValueError(f"K={K.min().item():.3g}: allowed are positive variances")
    return K
