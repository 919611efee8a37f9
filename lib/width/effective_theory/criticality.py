"""Where signals neither grow nor fade: critical points, universality classes, phase diagrams."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from lib.models.infinite_width import slope_of
from lib.width.effective_theory.flow import (
    Function,
    gaussian_expect,
    kernel_flow,
    kernel_step,
    scale_slopes,
    susceptibilities,
)
from lib.width.effective_theory.vertex import vertex_flow

LARGEST_K = 60.0  # the search for a fixed point ends here


class Critical(NamedTuple):
    """Variances of biases and weights, the kernel's fixed point, and the class.

    ``K_star`` is NaN for the scale-invariant class, where every K is a fixed point.
    """

    C_b: float
    C_W: float
    K_star: float
    kind: str


def critical_hyperparameters(sigma: Function) -> Critical:
    """The critical initialization of an activation: ``chi_par = chi_perp = 1`` at a fixed point.

    Three cases. A scale-invariant activation is critical at ``C_b = 0, C_W = 1 / A_2`` with
    ``A_2 = (a_+^2 + a_-^2) / 2``. With ``sigma(0) = 0`` and a kernel that falls towards 0
    (``a_1 < 0``, see ``taylor``) it is ``C_b = 0, C_W = 1 / sigma'(0)^2``. Otherwise a
    ``K* > 0`` is looked for at which both susceptibilities are equal; ``C_W`` makes them 1 and
    ``C_b`` makes ``K*`` a fixed point.

    Raises:
        ValueError: there is no critical point; the message says what fails.
    """
    if (slopes := scale_slopes(sigma)) is not None:
        a2 = (slopes[0] ** 2 + slopes[1] ** 2) / 2
        if a2 == 0:
            raise ValueError("sigma is zero everywhere: no signal passes")
        return Critical(0.0, 1 / a2, float("nan"), "scale-invariant")
    value, first, a1, _ = taylor(sigma)
    if abs(value) < 1e-12 and abs(first) > 1e-12 and a1 < 0:
        return Critical(0.0, 1 / first**2, 0.0, "K* = 0")
    return _half_stable(sigma)


def _half_stable(sigma: Function) -> Critical:
    def gap(log_K):
        par, perp = susceptibilities(sigma, 1.0, torch.as_tensor(log_K, dtype=torch.float64).exp())
        return (par / perp - 1).numpy()

    grid = np.linspace(np.log(1e-2), np.log(LARGEST_K), 80)
    gaps = gap(grid)
    # Linear near 0, as ReLU6 is: there the two are equal up to rounding, which has no sign.
    gaps[np.abs(gaps) < 1e-9] = 0
    found = []
    for i in range(len(grid) - 1):
        if gaps[i] * gaps[i + 1] >= 0:
            continue
        K = float(np.exp(brentq(gap, grid[i], grid[i + 1], xtol=1e-14, rtol=1e-14)))
        C_W = 1 / susceptibilities(sigma, 1.0, K)[1].item()
        C_b = K - C_W * gaussian_expect(lambda z: sigma(z) ** 2, K).item()
        if C_b >= 0:
            return Critical(C_b, C_W, K, "half-stable")
        found.append(f"K = {K:.3g} would need C_b = {C_b:.3g}")
    if found:
        raise ValueError(
            f"no critical point: chi_par = chi_perp at {', '.join(found)}, and a variance cannot "
            "be negative"
        )
    side = "above" if gaps[np.abs(gaps).argmax()] > 0 else "below"
    raise ValueError(
        f"no critical point: chi_par stays {side} chi_perp for every K up to {LARGEST_K:g}"
    )


def universality_class(sigma: Function) -> str:
    """``"scale-invariant"``, ``"K* = 0"``, ``"half-stable"`` or ``"none"``."""
    try:
        return critical_hyperparameters(sigma).kind
    except ValueError:
        return "none"


def taylor(sigma: Function) -> tuple[float, float, float, float]:
    """``(sigma(0), sigma'(0), a_1, b_1)``: the flow near K = 0 at ``C_W = 1 / sigma'(0)^2``.

    There ``K^{l+1} = K + a_1 K^2``, so ``K^l = 1 / (-a_1 l)``, and ``chi_perp = 1 + b_1 K``, with
    ``a_1 = s_3 + (3/4) s_2^2``, ``b_1 = s_3 + s_2^2`` and ``s_k = sigma^(k)(0) / sigma'(0)``.
    """
    zero = torch.zeros(1, dtype=torch.float64)
    values, f = [], sigma
    for _ in range(4):
        values.append(f(zero).item())
        f = slope_of(f)
    value, first, second, third = values
    if first == 0:
        return value, 0.0, float("nan"), float("nan")
    s2, s3 = second / first, third / first
    return value, first, s3 + 0.75 * s2**2, s3 + s2**2


def critical_exponents(
    sigma: Function, K1: float = 1.0, layers: int = 400
) -> tuple[float, float, float]:
    """``(p_0, p_perp, v)`` at criticality, read off the flow at two depths.

    ``K^l`` falls as ``l^{-p_0}``; a product of ``chi_perp`` from layer l to L is
    ``(l / L)^{p_perp}``; and ``V^l / (K^l)^2`` grows as ``v l``. The class fixes all three: 0, 0
    and ``3 A_4 / A_2^2 - 1`` for scale-invariant activations, 1, ``b_1 / a_1`` (1 for an odd
    function) and 2/3 for K* = 0.

    Raises:
        ValueError: no critical point, or one that K1 does not flow to (half-stable); fewer than 4
            layers.
    """
    if layers < 4:
        raise ValueError(f"layers={layers}: two depths are compared, allowed is 4 or more")
    point = critical_hyperparameters(sigma)
    if point.kind == "half-stable":
        raise ValueError(
            f"sigma is half-stable: its flow ends at K* = {point.K_star:.4g}, not in a power law"
        )
    K = kernel_flow(sigma, point.C_b, point.C_W, K1, layers)
    V = vertex_flow(sigma, point.C_b, point.C_W, K1, layers) / K**2
    half = layers // 2
    perp = susceptibilities(sigma, point.C_W, K[half - 1 : -1])[1].log().sum()
    octave = math.log(layers / half)
    p0 = -(K[-1] / K[half - 1]).log() / octave
    slope = (V[-1] - V[half - 1]) / (layers - half)
    return p0.item() + 0.0, -perp.item() / octave + 0.0, slope.item()


def fixed_point(
    sigma: Function,
    C_b: Float[Tensor, "*#grid"] | float,
    C_W: Float[Tensor, "*#grid"] | float,
    K1: float = 1.0,
    steps: int = 500,
) -> Float[Tensor, "*grid"]:
    """``K`` after ``steps`` layers from ``K1``; infinity where it has run away.

    Raises:
        ValueError: a variance that is negative or NaN.
    """
    C_b, C_W = torch.broadcast_tensors(
        torch.as_tensor(C_b, dtype=torch.float64), torch.as_tensor(C_W, dtype=torch.float64)
    )
    for name, value in (("C_b", C_b), ("C_W", C_W), ("K1", torch.as_tensor(K1))):
        if not (value >= 0).all():
            least = value.min().item()
            raise ValueError(f"{name}={least:.3g}: variances, allowed is 0 or more")
    K = torch.full_like(C_b, K1)
    for _ in range(steps):
        new = kernel_step(sigma, 0.0, 1.0, K.clamp(max=1e6))
        new = C_b + C_W * new
        if torch.equal(new, K):
            break
        K = new
    return torch.where(K < 1e5, K, torch.inf)


def phase_diagram(
    sigma: Function,
    C_b: Float[Tensor, "b"],
    C_W: Float[Tensor, "w"],
    K1: float = 1.0,
    steps: int = 500,
) -> tuple[Float[Tensor, "b w"], Float[Tensor, "b w"], Float[Tensor, "b w"]]:
    """``(K, chi_par, chi_perp)`` where the kernel has settled, over a grid of initializations.

    Both susceptibilities are NaN where the kernel runs away or vanishes.

    Raises:
        ValueError: a variance that is negative or NaN.
    """
    rows, columns = C_b.double()[:, None], C_W.double()[None]
    K = fixed_point(sigma, rows, columns, K1, steps)
    ok = K.isfinite() & (K > 1e-12)
    par, perp = susceptibilities(sigma, 1.0, torch.where(ok, K, 1.0))
    par, perp = (torch.where(ok, columns * chi, torch.nan) for chi in (par, perp))
    return K, par, perp
