"""Fully connected networks of infinite width: the kernel of their outputs and of their learning.

A. Jacot, F. Gabriel and C. Hongler, "Neural Tangent Kernel", 2018, arXiv 1806.07572; the first of
the two kernels goes back to R. Neal (1996) and J. Lee et al. (2018), arXiv 1711.00165.

``Sigma`` is the covariance of the outputs of random networks (the "NNGP" kernel), ``Theta`` the
kernel along which gradient descent moves the outputs (the "NTK"). One layer maps the covariance of
its inputs to that of its outputs by a *dual*, a Gaussian average of the activation. ReLU and erf
have closed forms and run fused on a GPU (``lib.kernels.nngp_ntk``); identity and sine have closed
forms; any other elementwise function goes through quadrature.

Depth counts nonlinearities: the paper's L, which counts weight layers, is ``depth + 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.quadrature import gaussian_mean2
from lib.kernels.nngp_ntk import erf_dual, relu_dual
from lib.kernels.nngp_ntk import nngp_ntk as fused_nngp_ntk

__all__ = [
    "ACTIVATIONS",
    "dual",
    "erf_dual",
    "identity_dual",
    "kernel_recursion",
    "nngp_ntk",
    "relu_dual",
    "sin_dual",
    "slope_of",
]

Function = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Function] = {
    "relu": torch.relu,
    "erf": torch.erf,
    "identity": lambda z: z,
    "sin": torch.sin,
}


def nngp_ntk(
    x1: Float[Tensor, "p d"],
    x2: Float[Tensor, "q d"] | None = None,
    depth: int = 3,
    act: str | Function = "relu",
    beta: float = 0.1,
    gain: float = 1.0,
    parametrization: str = "ntk",
    widths: Sequence[int] | None = None,
    nodes: int = 64,
    backend: str = "auto",
) -> tuple[Float[Tensor, "p q"], Float[Tensor, "p q"]]:
    """``(Sigma, Theta)`` of the network with ``depth`` nonlinearities in the limit of great width.

    Inputs are used as they are: the first layer divides by their dimension d, so an input with
    ``|x|^2 = d`` has variance ``1 + beta^2`` there.

    Args:
        x2: ``None``, or the same tensor, means ``x1``; the diagonal is then set from its own
            recursion, which rounding of the products does not reach.
        act: ``"relu"``, ``"erf"``, ``"identity"``, ``"sin"`` or an elementwise function, which is
            averaged on ``nodes`` x ``nodes`` points.
        gain: factor on the squared activations; 2 keeps a ReLU network's variance.
        parametrization: ``"ntk"``, or ``"standard"``, whose Theta grows with width and therefore
            needs ``widths`` (input, hidden, ..., hidden) and a ``beta`` above 0.

    Raises:
        ValueError: wrong shapes, unknown names, a negative ``beta``, ``depth`` or ``gain``.
    """
    same = x2 is None or x2 is x1
    x2 = x1 if same else x2
    if x1.ndim != 2 or x2.ndim != 2 or x1.shape[1] != x2.shape[1] or x1.shape[1] == 0:
        raise ValueError(
            f"x1 and x2 must be (p, d) and (q, d) with one d > 0, got {tuple(x1.shape)} and "
            f"{tuple(x2.shape)}"
        )
    if parametrization == "ntk" and act in ("relu", "erf"):
        sigma, theta = fused_nngp_ntk(x1, x2, depth, act, beta, gain, backend=backend)
    else:
        d = x1.shape[1]
        a, b = (x1 * x1).sum(1)[:, None] / d, (x2 * x2).sum(1)[None] / d
        settings = (depth, act, beta, gain, parametrization, widths, nodes)
        sigma, theta = kernel_recursion(a, b, x1 @ x2.T / d, *settings)
    if same:
        v = (x1 * x1).mean(1).to(sigma.dtype)
        on = kernel_recursion(v, v, v, depth, act, beta, gain, parametrization, widths, nodes)
        sigma, theta = (k - torch.diag(k.diagonal() - o) for k, o in zip((sigma, theta), on))
    return sigma, theta


def kernel_recursion(
    a: Float[Tensor, "*#shape"],
    b: Float[Tensor, "*#shape"],
    c: Float[Tensor, "*#shape"],
    depth: int,
    act: str | Function = "relu",
    beta: float = 0.1,
    gain: float = 1.0,
    parametrization: str = "ntk",
    widths: Sequence[int] | None = None,
    nodes: int = 64,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The recursion itself, from inner products: ``a = |x|^2/d``, ``b = |x'|^2/d``, ``c = x.x'/d``.

    Theorem 1 of the paper, with a gain. The diagonals are carried along, not read off ``Sigma``.
    """
    if depth < 0 or beta < 0 or gain <= 0:
        raise ValueError(
            f"depth={depth}, beta={beta}, gain={gain}: allowed are depth >= 0, beta >= 0, gain > 0"
        )
    weight, bias = _layer_rates(depth, beta, parametrization, widths)
    theta = weight[0] * c + bias
    a, b, sigma = a + beta**2, b + beta**2, c + beta**2
    for layer in range(depth):
        value, slope = _pair(act, a, b, sigma, gain, nodes)
        a, b = (_pair(act, v, v, v, gain, nodes)[0] + beta**2 for v in (a, b))
        theta = theta * slope + weight[layer + 1] * value + bias
        sigma = value + beta**2
    return sigma, theta


def dual(
    act: str | Function, cov: Float[Tensor, "*batch 2 2"], nodes: int = 64
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """``E[s(u) s(v)]`` and ``E[s'(u) s'(v)]`` for ``(u, v) ~ N(0, cov)`` and any activation.

    Closed forms for the named ones, Gauss-Hermite quadrature in float64 for a function.
    """
    return _pair(act, cov[..., 0, 0], cov[..., 1, 1], cov[..., 0, 1], 1.0, nodes)


def identity_dual(a: Tensor, b: Tensor, c: Tensor, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """The linear network: the covariance itself, and 1."""
    return gain * c, torch.full_like(c, gain)


def sin_dual(a: Tensor, b: Tensor, c: Tensor, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """``exp(-(a + b)/2) sinh c`` and ``exp(-(a + b)/2) cosh c``, each times ``gain``.

    Written with two exponentials that never exceed one, so large variances do not overflow.
    """
    near, far = torch.exp(c - (a + b) / 2), torch.exp(-c - (a + b) / 2)
    return gain * (near - far) / 2, gain * (near + far) / 2


def slope_of(act: Function) -> Function:
    """The derivative of an elementwise function."""
    return lambda z: torch.func.jvp(act, (z,), (torch.ones_like(z),))[1]


def _pair(act, a: Tensor, b: Tensor, c: Tensor, gain: float, nodes: int) -> tuple[Tensor, Tensor]:
    closed = {"relu": relu_dual, "erf": erf_dual, "identity": identity_dual, "sin": sin_dual}
    if isinstance(act, str):
        if act not in closed:
            raise ValueError(f"act={act!r}: allowed are {', '.join(closed)}, or a function")
        return closed[act](a, b, c, gain)
    a, b, c = torch.broadcast_tensors(a, b, c)
    cov = torch.stack([torch.stack([a, c], -1), torch.stack([c, b], -1)], -2)
    value, slope = (gaussian_mean2(f, f, cov, nodes) for f in (act, slope_of(act)))
    return gain * value.to(c.dtype), gain * slope.to(c.dtype)


def _layer_rates(
    depth: int, beta: float, parametrization: str, widths: Sequence[int] | None
) -> tuple[list[float], float]:
    """What a layer's weights and its bias contribute: factors on ``Sigma`` and on one."""
    if parametrization == "ntk":
        return [1.0] * (depth + 1), beta**2
    if parametrization != "standard":
        raise ValueError(f"parametrization={parametrization!r}: allowed are 'ntk' and 'standard'")
    if widths is None or len(widths) != depth + 1:
        raise ValueError(f"widths={widths}: the standard parametrization needs {depth + 1} fan-ins")
    # z = W alpha + b without multipliers: the gradient in W is alpha, in b it is 1.
    return [float(n) for n in widths], 1.0 if beta > 0 else 0.0
