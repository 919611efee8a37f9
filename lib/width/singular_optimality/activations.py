"""An activation's Hermite coefficients, three moments and dual, and what they decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from lib.core.quadrature import gaussian_panels, hermite, hermite_coefficients

Coefficients = Float[Tensor, "k"]
Activation = Callable[[Tensor], Tensor]
Kind = Literal["1nn", "majority", "singular", "ordered", "linear"]


@dataclass
class Moments:
    """``A = E f(z)``, ``A1 = E f'(z)`` and ``B1 = E f'(z)^2`` for z ~ N(0, 1), with E f^2 = 1."""

    A: float
    A1: float
    B1: float


def moments(activation: Activation | Coefficients) -> Moments:
    """The three moments of an activation, which is normalized to ``E f^2 = 1`` first.

    From the coefficients they are ``a_0``, ``a_1`` and ``sum_k k a_k^2``. A function is integrated
    on panels that break at 0, so that a kink there (ReLU) costs no accuracy.

    Raises:
        ValueError: coefficients whose squares do not sum to one; a function that is zero, jumps,
            or has no finite mean square.
    """
    if isinstance(activation, Tensor):
        a = _unit(activation)
        degrees = torch.arange(len(a), dtype=torch.float64)
        return Moments(a[0].item(), a[1].item() if len(a) > 1 else 0.0, (degrees @ a**2).item())
    z, w = gaussian_panels()
    z.requires_grad_()
    f = activation(z).double()
    slope = torch.autograd.grad(f.sum(), z)[0] if f.requires_grad else torch.zeros_like(z)
    f, z = f.detach(), z.detach()
    square = w * f**2
    scale = square.sum().sqrt().item()
    if not 0 < scale < math.inf or square[z.abs() > 11].sum() > 1e-6 * scale**2:
        raise ValueError(f"activation: its root mean square under N(0, 1) is {scale}, or infinite")
    A, A1, B1 = (w @ f).item(), (w @ slope).item(), (w @ slope**2).item()
    # Without jumps, E f' = E z f (integration by parts). A derivative does not see a jump.
    if abs(A1 - (w @ (z * f)).item()) > 1e-6 * scale:
        raise ValueError(
            "activation: it jumps, which makes B' infinite; allowed are continuous ones"
        )
    return Moments(A / scale, A1 / scale, B1 / scale**2)


def classify_activation(activation: Activation | Coefficients, tol: float = 1e-6) -> Kind:
    """What the classifier becomes as the depth goes to infinity.

    - ``"1nn"``: ``A = A' = 0``. The correlation 0 attracts faster than any exponential, so the
      ratio of any two kernel values diverges and the nearest point decides.
    - ``"singular"``: ``A = 0``, ``A' != 0``. A weighted vote (:func:`singular_vote`).
    - ``"majority"``: ``A != 0`` and ``B' >= 1``. All points have the same weight.

    Two cases are beside the paper's three. ``"linear"``: the activation is plus or minus the
    identity, and so is every kernel. ``"ordered"``: ``A != 0`` and ``B' < 1``; every pair of
    correlations goes to one, and the next order decides.
    """
    m = moments(activation)
    if abs(m.A) > tol:
        return "majority" if m.B1 >= 1 - tol else "ordered"
    if abs(m.A1) <= tol:
        return "1nn"
    return "linear" if m.A1**2 >= 1 - tol else "singular"


def singularity_order(activation: Activation | Coefficients) -> float:
    """``alpha = -4 log|A'| / log B'``: the limit's weight grows as ``|x - x'|^-alpha``.

    Raises:
        ValueError: the activation is not of the kind ``"singular"``.
    """
    kind = classify_activation(activation)
    if kind != "singular":
        raise ValueError(f"activation: its limit is {kind!r}; only 'singular' has an order")
    m = moments(activation)
    return -4 * math.log(abs(m.A1)) / math.log(m.B1)


def optimal_activation(
    d: int, degrees: tuple[int, int] | tuple[int, int, int] | None = None
) -> Coefficients:
    """Coefficients of an activation whose order is ``d``, the dimension of the sphere.

    ``degrees=(1, 2, 3)``, the choice for ``d >= 2``, gives the paper's
    ``2^(-d/4) h_1 + sqrt(1 - 2^(1 - d/2)) h_2 + 2^(-d/4) h_3``. Any three degrees with equal first
    and last coefficient, and any pair ``(1, k)``, are solved for; ``(1, 7)`` is the choice for
    ``d = 1``, where three degrees would need a negative weight.

    Raises:
        ValueError: ``d`` not in 1 to 75, degrees that are not as described, or no solution.
    """
    if degrees is None:
        degrees = (1, 7) if d == 1 else (1, 2, 3)
    if not 1 <= d <= 75:
        raise ValueError(f"d={d}: allowed is a dimension from 1 to 75")
    if len(degrees) not in (2, 3) or degrees[0] != 1 or list(degrees) != sorted(set(degrees)):
        raise ValueError(f"degrees={degrees}: allowed are (1, k) and (1, j, k), increasing")

    def squares(p: float) -> dict[int, float]:
        if len(degrees) == 2:
            return {1: p, degrees[1]: 1 - p}
        return {1: p, degrees[1]: 1 - 2 * p, degrees[2]: p}

    def excess(p: float) -> float:
        growth = sum(k * v for k, v in squares(p).items())
        return -2 * math.log(p) - d * math.log(growth)

    highest = 1 - 1e-9 if len(degrees) == 2 else 0.5
    if excess(highest) > 1e-12:
        raise ValueError(f"d={d}: no activation of degrees {degrees} has this order")
    p = (
        highest
        if excess(highest) > -1e-12
        else math.exp(brentq(lambda t: excess(math.exp(t)), -700, math.log(highest), xtol=1e-14))
    )
    a = torch.zeros(degrees[-1] + 1, dtype=torch.float64)
    for k, v in squares(p).items():
        a[k] = math.sqrt(max(v, 0.0))
    return a


def two_degrees(p: float, k: int = 3) -> Coefficients:
    """``sqrt(p) h_1 + sqrt(1 - p) h_k``: the simplest family, of every order above ``2 / (k - 1)``.

    The order ``-2 log p / log(p + k (1 - p))`` falls as ``p`` grows.

    Raises:
        ValueError: ``p`` not strictly between 0 and 1, or ``k`` below 2.
    """
    if not 0 < p < 1 or k < 2 or k != int(k):
        raise ValueError(f"p={p}, k={k}: allowed are 0 < p < 1 and a whole number k >= 2")
    a = torch.zeros(k + 1, dtype=torch.float64)
    a[1], a[k] = math.sqrt(p), math.sqrt(1 - p)
    return a


def unit_coefficients(activation: Activation, degree: int) -> Coefficients:
    """``a_0, ..., a_degree`` of the activation over its root mean square.

    What degrees above ``degree`` hold is left out, so the squares sum to one at most.
    """
    z, w = gaussian_panels()
    return hermite_coefficients(activation, degree) / (w @ activation(z) ** 2).sqrt()


def hermite_activation(a: Coefficients) -> Activation:
    """The activation ``sum_k a_k h_k`` as a function."""

    def f(z: Tensor) -> Tensor:
        return torch.tensordot(a.to(z), hermite(len(a) - 1, z), 1)

    return f


def hermite_dual(a: Coefficients) -> tuple[Activation, Activation]:
    """The dual ``g(s) = E[f(u) f(v)] = sum_k a_k^2 s^k`` (u, v of correlation s) and its slope.

    One layer turns the correlation s of two inputs into ``g(s)``; ``g'(s) = E[f'(u) f'(v)]``.
    """
    c = (_unit(a) ** 2).tolist()
    return (
        lambda s: polynomial(c, s),
        lambda s: polynomial([k * v for k, v in enumerate(c)][1:], s),
    )


def dual_coefficients(a: Coefficients) -> Coefficients:
    """``a_k^2``, made to sum to one exactly."""
    c = _unit(a) ** 2
    return c / c.sum()


def _unit(a: Coefficients) -> Coefficients:
    a = a.detach().double().cpu()
    total = (a**2).sum().item() if a.ndim == 1 and len(a) else math.nan
    if not abs(total - 1) < 1e-6:
        raise ValueError(f"coefficients: their squares must sum to one, got {total:.6g}")
    return a


def polynomial(c: Sequence[float], s: Tensor) -> Tensor:
    total = torch.full_like(s, c[-1])
    for v in reversed(c[:-1]):
        total = total * s + v
    return total
