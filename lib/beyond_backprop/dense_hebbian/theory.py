"""What statistical mechanics predicts: one step from the archetype, and the fixed point.

Throughout, ``gamma = K / N^(P-1)`` is the load, ``r`` the quality and ``M`` the number of examples
of a class, ``rho = (1 - r^2) / (M r^2)`` the data set's entropy. Fields are measured in units of
the signal, ``r^P``; an inverse temperature ``beta`` refers to fields divided by
``R^(P/2) = (r^2 (1 + rho))^(P/2)``, as in the network.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.beyond_backprop.dense_hebbian.fields import check_order, falling

Mode = Literal["supervised", "unsupervised", "storing"]
MODES = ("supervised", "unsupervised", "storing")
Number = float | Tensor


def entropy(r: Number, M: Number) -> Number:
    """``rho = (1 - r^2) / (M r^2)``: variance of a class mean's entry over its mean squared.

    Raises:
        ValueError: ``r`` outside (0, 1], or ``M`` below 1.
    """
    if not bool((torch.as_tensor(r) > 0).all() and (torch.as_tensor(r) <= 1).all()):
        raise ValueError(f"r={r}: allowed is above 0, up to 1")
    if not bool((torch.as_tensor(M) >= 1).all()):
        raise ValueError(f"M={M}: allowed is 1 or more")
    return (1 - r**2) / (M * r**2)


def one_step_overlap(
    gamma: float,
    r: float,
    M: float,
    P: int,
    mode: Mode = "supervised",
    *,
    N: int | None = None,
    finite_size: bool = False,
    omega: float = 0.0,
) -> float:
    """Magnetization after one parallel step at T = 0 from an archetype (distinct indices).

    ``m1 = erf(1 / sqrt(2 [rho + (P-1)! gamma (1 + rho)^P]))``: signal 1, and two noises, that of
    the archetype's own examples and the crosstalk of the others. Without a teacher ``(1 + rho)^P``
    becomes ``1 + (1 - r^(2P)) / (M r^(2P))``. Coupling noise adds ``omega^2 / (r^(2P) N^(P-1))``
    to ``gamma (1 + rho)^P``.

    ``finite_size`` corrects at size ``N``: index sets are counted exactly, the own examples' noise
    is binomial instead of normal (for whole M), and without a teacher the examples' overlaps with
    the archetype fluctuate, so that their votes weigh unequally.

    Args:
        mode: ``"storing"`` has no examples: r and M are ignored.

    Raises:
        ValueError: P below 2, ``gamma`` or ``omega`` negative, r or M out of range, an unknown
            mode, or no ``N`` where the finite size or the coupling noise needs one.
    """
    check_order(P)
    check_mode(mode)
    if not (gamma >= 0 and omega >= 0):
        raise ValueError(f"gamma={gamma}, omega={omega}: allowed is 0 or more")
    if (finite_size or omega) and N is None:
        raise ValueError("N: give the number of spins, finite_size and omega depend on it")
    if N is not None and not N > P:
        raise ValueError(f"N={N}: allowed is more than P={P}")
    if mode == "storing":
        r, M = 1.0, 1
    rho = float(entropy(r, M))
    sets = 1.0 if N is None else (falling(N, P) if finite_size else float(N) ** (P - 1))
    others = (
        (1 + rho) ** P if mode != "unsupervised" else 1 + (1 - r ** (2 * P)) / (M * r ** (2 * P))
    )
    load = gamma * (float(N) ** (P - 1) / sets if finite_size else 1.0)
    noise = math.factorial(P - 1) * (load * others + omega**2 / (r ** (2 * P) * sets))
    if not finite_size or not float(M).is_integer():
        return math.erf(1 / math.sqrt(2 * max(rho + noise, 1e-300)))
    if mode == "unsupervised":
        noise += rho * (_unequal_votes(r, N, P) - 1)
    return _binomial_overlap(noise, r, int(M))


def _binomial_overlap(noise: float, r: float, M: int) -> float:
    """``sum_k Bin(k; M, (1+r)/2) erf(c_k / sqrt(2 noise))``, ``c_k = (2k/M - 1) / r``."""
    if r == 1:
        return math.erf(1 / math.sqrt(2 * max(noise, 1e-300)))
    k = torch.arange(M + 1, dtype=torch.float64)
    law = torch.distributions.Binomial(M, torch.tensor((1 + r) / 2, dtype=torch.float64))
    signal = (2 * k / M - 1) / r
    return float(
        (law.log_prob(k).exp() * torch.erf(signal / math.sqrt(2 * max(noise, 1e-300)))).sum()
    )


def _unequal_votes(r: float, N: int, P: int) -> float:
    """``E[Z^2] / E[Z]^2`` of an example's weight ``Z``, the sum over sets of P - 1 other spins.

    Two sets that share k spins have the product ``r^(2(P-1) - 2k)`` on average, and k is
    hypergeometric.
    """
    k = np.arange(P)
    share = [math.comb(P - 1, int(i)) * math.comb(N - P, P - 1 - int(i)) for i in k]
    return float(sum(w * r ** (-2.0 * i) for w, i in zip(share, k)) / math.comb(N - 1, P - 1))


def examples_needed(m1: float, gamma: float, r: float, P: int, mode: Mode = "supervised") -> float:
    """Examples per class until one step reaches ``m1`` (N to infinity); not rounded.

    ``math.inf`` where no number of examples is enough: the crosstalk of perfect patterns is
    too strong.

    Raises:
        ValueError: ``m1`` outside (0, 1), or as :func:`one_step_overlap`.
    """
    if not 0 < m1 < 1:
        raise ValueError(f"m1={m1}: allowed is between 0 and 1")
    if mode == "storing":
        raise ValueError("mode='storing' has no examples: allowed are the other two")
    found = lambda M: one_step_overlap(gamma, r, M, P, mode)
    low, high = 1.0, 1e12
    if found(high) < m1:
        return math.inf
    if found(low) >= m1:
        return low
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if found(middle) >= m1 else (middle, high)
    return high


class FixedPoint(NamedTuple):
    """Order parameters of the replica-symmetric solution that starts at the archetype.

    ``m``: overlap with the archetype; ``n``: overlap with the class mean, ``X / r``; ``q``:
    Edwards-Anderson order, 1 at T = 0.
    """

    m: Tensor
    n: Tensor
    q: Tensor


def rs_zero_temperature(
    gamma: Number, r: Number, M: Number, P: int, *, steps: int = 2000, tol: float = 1e-12
) -> FixedPoint:
    """Replica-symmetric order parameters at T = 0, iterated from n = 1; elementwise.

    ``S^2 = rho n^(2(P-1)) + gamma (P-1)! (1+rho)^P``, ``x = n^(P-1) / S``,
    ``m = erf(x / sqrt(2))``, ``n = m + 2 rho x phi(x)`` with ``phi`` the normal density.

    For P = 2 the spins react on the crosstalk (Amit, Gutfreund and Sompolinsky 1985): its
    deviation is divided by ``1 - (1+rho) C``, where ``C = 2 phi(x) / S`` is the susceptibility.
    For P > 2 this reaction vanishes as N grows.

    The entries of the class means are taken as normal, as in the paper: for many examples. With
    few, :func:`rs_few_examples` has their own law.

    Raises:
        ValueError: P below 2, a negative ``gamma``, r or M out of range, ``steps`` below 1.
    """
    gamma, rho = _load_and_entropy(gamma, r, M, P, steps)
    crosstalk = (gamma * math.factorial(P - 1) * (1 + rho) ** P).sqrt()
    n, u = torch.ones_like(crosstalk), torch.zeros_like(crosstalk)
    m = n
    for _ in range(steps):
        noise = crosstalk / (1 - u)
        S = (rho * n ** (2 * (P - 1)) + noise**2).sqrt().clamp_min(1e-150)
        x = (n ** (P - 1) / S).clamp_max(38.0)
        phi = (-x * x / 2).exp() / math.sqrt(2 * math.pi)
        m = torch.erf(x / math.sqrt(2))
        new = m + 2 * rho * x * phi
        if P == 2:
            u = 0.5 * u + 0.5 * ((1 + rho) * 2 * phi / S).clamp_max(0.999)
            new = 0.5 * (n + new)
        moved = (new - n).abs()
        n = new
        if bool((moved < tol).all()):
            break
    return FixedPoint(m, n, torch.ones_like(m))


def rs_few_examples(
    gamma: Number, r: Number, M: Number, P: int, *, steps: int = 2000, tol: float = 1e-10
) -> FixedPoint:
    """:func:`rs_zero_temperature` with the binomial law of the class means; elementwise.

    An entry of a class mean over its signal is ``c_k = (2k/M - 1) / r`` with ``k`` binomial, so
    ``m = E erf(c x / sqrt(2))`` and ``n = E c erf(c x / sqrt(2))``, where ``x`` is ``n^(P-1)`` over
    the crosstalk's deviation. Iterated from the class mean itself, ``n = E |c|``. A single example
    is a pattern like any other and stands at ``m`` near ``r``, ``n`` near ``1/r``; the normal law
    misses that. Derived here.

    Raises:
        ValueError: as :func:`rs_zero_temperature`, and M that is not whole.
    """
    gamma, rho = _load_and_entropy(gamma, r, M, P, steps)
    r, M = (torch.as_tensor(v, dtype=torch.float64).expand_as(gamma) for v in (r, M))
    if not bool((M == M.round()).all()):
        raise ValueError(f"M={M}: allowed are whole numbers")
    k = torch.arange(int(M.max()) + 1 if M.numel() else 1, dtype=torch.float64)
    r, M = r[..., None], M[..., None]
    rest = (M - k).clamp_min(0)
    log_law = torch.lgamma(M + 1) - torch.lgamma(k + 1) - torch.lgamma(rest + 1)
    log_law = log_law + torch.xlogy(k, (1 + r) / 2) + torch.xlogy(rest, (1 - r) / 2)
    law = torch.where(k <= M, log_law.exp(), 0.0)
    c = (2 * k / M - 1) / r
    crosstalk = (gamma * math.factorial(P - 1) * (1 + rho) ** P).sqrt()
    n, u = (law * c.abs()).sum(-1), torch.zeros_like(crosstalk)
    m = n
    for _ in range(steps):
        noise = (crosstalk / (1 - u)).clamp_min(1e-150)
        y = c * (n ** (P - 1) / noise).clamp_max(1e3)[..., None]
        agree = torch.erf(y / math.sqrt(2))
        m, new = (law * agree).sum(-1), (law * c * agree).sum(-1)
        if P == 2:
            phi = (law * (-y * y / 2).exp()).sum(-1) / math.sqrt(2 * math.pi)
            u = 0.5 * u + 0.5 * ((1 + rho) * 2 * phi / noise).clamp_max(0.999)
            new = 0.5 * (n + new)
        moved = (new - n).abs()
        n = new
        if bool((moved < tol).all()):
            break
    return FixedPoint(m, n, torch.ones_like(m))


def rs_finite_temperature(
    beta: Number,
    gamma: Number,
    r: Number,
    M: Number,
    P: int,
    *,
    start: float = 1.0,
    steps: int = 2000,
    nodes: int = 161,
    tol: float = 1e-10,
) -> FixedPoint:
    """Replica-symmetric order parameters at inverse temperature ``beta``; elementwise.

    With ``b = beta / (1+rho)^(P/2)`` and the field
    ``h = (1 + sqrt(rho) z) n^(P-1) + g sqrt(gamma (P-1)! (1+rho)^P q^(P-1))``, z and g normal:
    ``m = E tanh(b h)``, ``q = E tanh^2(b h)``, ``n = E (1 + sqrt(rho) z) tanh(b h)``, which partial
    integration turns into ``n = m + rho b n^(P-1) (1 - q)``. So one Gaussian average over the sum
    of both noises is enough; it is a sum over evenly spaced nodes, which converges fast for a
    smooth function however steep. P = 2 carries the reaction ``1 / (1 - (1+rho) b (1-q))``.

    Args:
        start: n at the first iteration; 1 follows retrieval, also where it is metastable.
        nodes: of the quadrature, between -8 and 8; more for very low temperatures.

    Raises:
        ValueError: as :func:`rs_zero_temperature`; a ``beta`` that is negative or infinite,
            ``start`` below 0 or not finite, fewer than 3 nodes.
    """
    gamma, rho = _load_and_entropy(gamma, r, M, P, steps)
    if not 0 <= start < math.inf or nodes < 3:
        raise ValueError(
            f"start={start}, nodes={nodes}: allowed is a finite start of 0 or more, 3 or more nodes"
        )
    beta = torch.as_tensor(beta, dtype=torch.float64)
    if not bool((beta >= 0).all() and beta.isfinite().all()):
        raise ValueError(f"beta={beta}: allowed is 0 or more; rs_zero_temperature is for infinity")
    gamma, rho, beta = _broadcast(gamma=gamma, rho=rho, beta=beta)
    b = beta / (1 + rho) ** (P / 2)
    crosstalk = gamma * math.factorial(P - 1) * (1 + rho) ** P
    z = torch.linspace(-8, 8, nodes, dtype=torch.float64)
    w = torch.softmax(-z * z / 2, 0)
    m = n = q = torch.full_like(b, start)
    for _ in range(steps):
        react = (1 - (1 + rho) * b * (1 - q)).clamp_min(1e-3) if P == 2 else 1.0
        S = (rho * n ** (2 * (P - 1)) + crosstalk * q ** (P - 1) / react**2).sqrt()
        t = torch.tanh(b[..., None] * ((n ** (P - 1))[..., None] + S[..., None] * z))
        m, q_new = (t * w).sum(-1), (t * t * w).sum(-1)
        n_new = m + rho * b * n ** (P - 1) * (1 - q_new)
        moved = torch.maximum((n_new - n).abs(), (q_new - q).abs())
        n, q = 0.5 * (n + n_new), 0.5 * (q + q_new)
        if bool((moved < tol).all()):
            break
    return FixedPoint(m, n, q)


def phase_diagram(
    rs: Float[Tensor, "i"], Ms: Float[Tensor, "j"], gamma: Number, P: int, beta: float = math.inf
) -> Float[Tensor, "i j"]:
    """``m`` of the retrieval solution over quality and quantity; retrieval is where it is > 0.5.

    Raises:
        ValueError: ``rs`` or ``Ms`` that is no vector, or as the fixed points.
    """
    if rs.ndim != 1 or Ms.ndim != 1:
        raise ValueError(
            f"rs has shape {tuple(rs.shape)} and Ms {tuple(Ms.shape)}: allowed are two vectors"
        )
    r, M = rs.double()[:, None], Ms.double()[None, :]
    if math.isinf(beta):
        return rs_zero_temperature(gamma, r, M, P).m
    return rs_finite_temperature(beta, gamma, r, M, P).m


def critical_load(
    r: float, M: float, P: int, beta: float = math.inf, threshold: float = 0.5
) -> float:
    """The largest ``gamma`` at which the retrieval solution keeps ``m > threshold``.

    0 where there is none at any load. For P = 2, perfect patterns and T = 0 this is the classical
    0.138 of Amit, Gutfreund and Sompolinsky.

    Raises:
        ValueError: a threshold outside (0, 1), or as the fixed points.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: allowed is between 0 and 1")
    low, high = 0.0, 1.0
    for _ in range(4):  # 64 loads between the last that retrieves and the first that fails
        loads = torch.linspace(low, high, 64, dtype=torch.float64)
        if math.isinf(beta):
            m = rs_zero_temperature(loads, r, M, P, steps=1000).m
        else:
            m = rs_finite_temperature(beta, loads, r, M, P, steps=500).m
        kept = int((m > threshold).long().cumprod(0).sum())
        if kept == 0:
            return 0.0
        low, high = loads[kept - 1].item(), loads[min(kept, 63)].item()
    return low


def storage_load(K: int, N: int, P: int, exact: bool = True) -> float:
    """``gamma`` of K patterns: ``K / ((N-1)...(N-P+1))``, or with ``exact=False`` ``K / N^(P-1)``.

    The two agree as N grows. At N = 60 and P = 4 the first is a tenth larger, because distinct
    indices leave fewer terms to the signal than the power of N counts.
    """
    check_order(P)
    if not (K >= 0 and N > P):
        raise ValueError(f"K={K}, N={N}: allowed is K of 0 or more, N above P={P}")
    return K / (falling(N, P) if exact else float(N) ** (P - 1))


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")


def _load_and_entropy(gamma: Number, r: Number, M: Number, P: int, steps: int) -> list[Tensor]:
    check_order(P)
    if not steps >= 1:
        raise ValueError(f"steps={steps}: allowed is 1 or more")
    gamma, r, M = (torch.as_tensor(v, dtype=torch.float64) for v in (gamma, r, M))
    if not bool((gamma >= 0).all()):
        raise ValueError(f"gamma={gamma}: allowed is 0 or more")
    gamma, r, M = _broadcast(gamma=gamma, r=r, M=M)
    return [gamma, entropy(r, M)]


def _broadcast(**values: Tensor) -> tuple[Tensor, ...]:
    try:
        return torch.broadcast_tensors(*values.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in values.items())
        raise ValueError(f"{shapes}: allowed are numbers, or shapes that broadcast") from None
