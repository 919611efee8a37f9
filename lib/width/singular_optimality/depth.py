"""The tangent kernel at any depth, in logarithms, and what it leaves when the depth is infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels.kernel_sum import log_koenigs
from lib.width.singular_optimality.activations import (
    Coefficients,
    dual_coefficients,
    moments,
    polynomial,
)


def gaps(x: Float[Tensor, "n d"], z: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """``1 - x.z = |x - z|^2 / 2`` of unit vectors, from differences, coordinate by coordinate.

    Raises:
        ValueError: different numbers of coordinates.
    """
    if x.shape[1] != z.shape[1]:
        raise ValueError(f"x and z: coordinates differ in number, {x.shape[1]} and {z.shape[1]}")
    gap = x.new_zeros(len(x), len(z))
    for k in range(x.shape[1]):
        difference = x[:, k, None] - z[None, :, k]
        gap.addcmul_(difference, difference, value=0.5)
    return gap


def deep_ntk(
    gap: Float[Tensor, "*pairs"], a: Coefficients, depths: Sequence[int]
) -> tuple[Float[Tensor, "l *pairs"], Float[Tensor, "l *pairs"]]:
    """``log|K_L|`` and the sign of ``K_L`` for each depth L, at correlations ``1 - gap``.

    ``L`` counts the nonlinearities. The recursion starts from the correlation ``S = K`` and each
    layer does ``K <- g(S) + K g'(S)``, then ``S <- g(S)``. Carried are ``log|S|``, because S
    underflows long before its logarithm does, and the ratio ``K / S``. Near coincidence the gap is
    carried too, as in :func:`log_koenigs`. Once every S is below 1e-9, S only shrinks by the factor
    ``g'(0)`` a layer and the ratio grows by one, so all further layers are one step.

    Raises:
        ValueError: gaps outside of 0 to 2; depths that are negative or not increasing; depths above
            500 where ``a_1 = 0``, since every layer costs time there, and if ``a_0 = 0`` too, even
            the logarithm overflows.
    """
    depths = list(depths)
    if not depths or depths[0] < 0 or depths != sorted({int(L) for L in depths}):
        raise ValueError(f"depths={depths}: allowed are increasing whole numbers from 0")
    if gap.numel() and not (gap.min() > -1e-3 and gap.max() < 2 + 1e-3):
        raise ValueError(
            f"gap: allowed is 0 to 2, got {gap.min().item():.4g} to {gap.max().item():.4g}"
        )
    c = dual_coefficients(a).tolist()
    low = next(k for k, v in enumerate(c) if v > 1e-14)  # g(s) ~ c_low s^low at 0
    if low != 1 and depths[-1] > 500:
        raise ValueError(f"depths={depths}: at most 500, unless a_0 = 0 and a_1 is not")
    near = _gap_polynomial(c)
    gap = gap.double().clamp_min(2.0**-104)
    s = 1 - gap
    log, sign, ratio = s.abs().log(), s.sign(), torch.ones_like(s)
    found, layer = [], 0
    while True:
        while depths and depths[0] == layer:
            found.append((log + ratio.abs().log(), sign * ratio.sign()))
            depths.pop(0)
        if not depths:
            return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])
        if low == 1 and s.numel() and s.abs().max() < 1e-9:
            steps = depths[0] - layer
            log, ratio, layer = log + steps * math.log(c[1]), ratio + steps, depths[0]
            continue
        rest = polynomial(c[low:], s)  # g(s) / s^low
        slope = polynomial([k * v for k, v in enumerate(c)][low:], s)
        ratio = 1 + ratio * slope / rest  # slope / rest = s g'(s) / g(s), even where s is 0
        log = rest.abs().log() + (low * log if low else 0.0)
        sign = sign**low * rest.sign()
        grown = gap * polynomial(near, gap)  # 1 - g(1 - gap)
        s = torch.where(gap < 0.5, 1 - grown, rest * s**low)
        gap = torch.where(gap < 0.5, grown, 1 - s)
        layer += 1


def _gap_polynomial(c: Sequence[float]) -> list[float]:
    """Coefficients of ``(1 - g(1 - e)) / e`` in e."""
    return [
        -sum(c[k] * math.comb(k, j) for k in range(j, len(c))) * (-1) ** j for j in range(1, len(c))
    ]


def koenigs(gap: Float[Tensor, "*pairs"], a: Coefficients) -> Float[Tensor, "*pairs"]:
    """``psi``, the limit of ``S / A'^(2L)``; infinite at gap 0 (see :func:`log_koenigs`)."""
    log, sign = log_koenigs(gap.double(), dual_coefficients(a).to(gap.device))
    return sign * log.exp()


def log_diagonal(a: Coefficients, depth: int) -> float:
    """``log K_L(x, x) = log sum_{j <= L} B'^j``.

    Raises:
        ValueError: a negative depth.
    """
    if depth < 0:
        raise ValueError(f"depth={depth}: allowed is 0 or more")
    growth = moments(a).B1
    if abs(growth - 1) < 1e-9:
        return math.log(depth + 1)
    power = (depth + 1) * math.log(growth)
    if power > 50:
        return power - math.log(growth - 1)
    return math.log(math.expm1(power) / (growth - 1))


def with_unit_diagonal(K: Tensor) -> Tensor:
    K.diagonal().fill_(1.0)
    return K


def depth_regression_demo(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n"],
    x_test: Float[Tensor, "m d"],
    y_test: Float[Tensor, "m"],
    a: Coefficients,
    depths: Sequence[int],
    ridge: float = 1e-6,
) -> pd.DataFrame:
    """Kernel regression at several depths: test error and size of the predictions.

    ``ridge`` is in units of the kernel's diagonal; shallow kernels of polynomial activations have
    a finite rank and need one. Columns ``depth``, ``error`` (root mean square) and ``size`` (root
    mean square of the prediction). The scale of a prediction, which a classifier throws away, goes
    to zero: off the diagonal ``K_L`` falls behind the diagonal.
    """
    if not ridge >= 0:
        raise ValueError(f"ridge={ridge}: allowed is 0 or more")
    rows = []
    cross, gram = (deep_ntk(gaps(u, x), a, depths) for u in (x_test, x))
    shift = ridge * torch.eye(len(x), dtype=torch.float64, device=x.device)
    for k, depth in enumerate(depths):
        top = log_diagonal(a, depth)
        K = with_unit_diagonal(gram[1][k] * (gram[0][k] - top).exp())
        f = (cross[1][k] * (cross[0][k] - top).exp()) @ torch.linalg.solve(K + shift, y.double())
        error, size = (t.square().mean().sqrt().item() for t in (f - y_test, f))
        rows.append({"depth": depth, "error": error, "size": size})
    return pd.DataFrame(rows)
