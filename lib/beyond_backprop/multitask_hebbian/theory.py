"""Low storage solved: self-consistent overlaps, closed forms, thresholds and finite size.

With K fixed and N to infinity a site is known by its column ``(xi^1, ..., xi^K)``, and the average
over sites is a sum over the ``3^K`` columns. Averages are in float64. ``d`` and ``beta`` may be
tensors; solutions then carry their broadcast shape in front.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.quadrature import gaussian_panels

COLUMNS = 4_000_000  # most columns that are enumerated
MOST_LEVELS = 8  # of an onset, each of which is solved on the way


class Overlaps(NamedTuple):
    """Solution: ``m`` with the patterns, ``n`` with the class means over r, both "*b K".

    ``residual`` is the last change of ``n``: near a critical temperature it dies out slowly.
    """

    m: Tensor
    n: Tensor
    residual: float


def self_consistency(
    K: int,
    d: float | Float[Tensor, "*#b"],
    beta: float | Float[Tensor, "*#b"],
    *,
    rho: float = 0.0,
    examples: tuple[float, int] | None = None,
    m0: Float[Tensor, "*#b K"] | None = None,
    steps: int = 2000,
    tol: float = 1e-9,
) -> Overlaps:
    """``m_mu = E[xi^mu tanh(beta sum_nu m_nu xi^nu)]`` by enumeration of all columns.

    Learned networks see the class mean ``v = eb / r`` in place of ``xi``:
    ``n_mu = E[v^mu tanh(beta/(1+rho) sum_nu n_nu v^nu)]``, and ``m_mu = E[xi^mu tanh(same)]``.
    Without a teacher the same equations hold: as N grows, all examples of a pattern overlap
    alike with a state that none of them was singled out for.

    The right side is the gradient of a convex function, so plain iteration lowers the free energy
    at every step and needs no damping.

    Args:
        beta: inverse temperature; ``math.inf`` (a float) puts the sign in place of tanh, and 0
            where the argument is 0.
        rho: entropy of the data set; ``v = xi (1 + sqrt(rho) z)`` with a normal z for every entry,
            the law of a mean of many examples.
        examples: ``(r, M)`` in place of ``rho``: the exact binomial law of a mean of M.
        m0: start; the hierarchical state where absent.

    Raises:
        ValueError: arguments out of range, both kinds of examples, or too many columns.
    """
    K, steps, d = _count("K", K), _count("steps", steps), _dilution(d)
    if not 0 <= rho < math.inf:
        raise ValueError(f"rho={rho}: allowed is 0 or more, finite")
    if not tol >= 0:
        raise ValueError(f"tol={tol}: allowed is 0 or more")
    if examples is not None and rho:
        raise ValueError(f"rho={rho} with examples={examples}: give one of them")
    cold = isinstance(beta, float | int) and math.isinf(beta)
    b = torch.as_tensor(beta, dtype=torch.float64, device=d.device)
    if not (b >= 0).all():
        raise ValueError(f"beta={b.min().item()}: allowed is 0 or more, math.inf for T = 0")
    if not cold and b.isinf().any():
        raise ValueError("beta is a tensor with an infinite entry: allowed is the float math.inf")
    if m0 is not None and (m0.ndim == 0 or m0.shape[-1] != K or not m0.isfinite().all()):
        raise ValueError(
            f"m0 has shape {tuple(m0.shape)}: allowed is (..., {K}), with finite entries"
        )
    b = b[..., None] / (1 + (rho if examples is None else entropy(*examples)))
    xi, v, p = _columns(K, d, examples)

    def average(n: Tensor) -> tuple[Tensor, Tensor]:
        h = n @ v.T
        if rho == 0:
            t = _sign(h) if cold else torch.tanh(b * h)
            return (p * t) @ xi, (p * t) @ v
        # Given its column, the field of a site is normal with variance rho sum (n xi)^2; the
        # average of z tanh(...) is that of the derivative, integrated by parts.
        t, soft = _noisy(h, rho * n.square() @ xi.square().T, None if cold else b)
        m = (p * t) @ xi
        return m, m + rho * n * ((p * soft) @ xi.square())

    n = hierarchical_overlaps(K, d) if m0 is None else m0.double().to(d.device)
    n = n.expand(*torch.broadcast_shapes(n.shape[:-1], d.shape, b.shape[:-1]), K)
    residual = math.inf
    for _ in range(steps):
        _, new = average(n)
        residual, n = (new - n).abs().max().item(), new
        if residual < tol:
            break
    return Overlaps(average(n)[0], n, residual)


def entry_law(
    d: float | Float[Tensor, "*b"], examples: tuple[float, int] | None = None
) -> tuple[Float[Tensor, "e"], Float[Tensor, "e"], Float[Tensor, "*b e"]]:
    """Values of one entry: the pattern's, the class mean's over r, and their probabilities."""
    d = _dilution(d)
    v = w = torch.ones(1, dtype=torch.float64, device=d.device)
    if examples is not None:
        r, M = examples
        entropy(r, M)  # checks both
        v = (2 * torch.arange(M + 1, dtype=torch.float64, device=d.device) / M - 1) / r
        w = _binomial(M, (1 + r) / 2).to(d.device)
    one, zero, active = torch.ones_like(v), v.new_zeros(1), (1 - d[..., None]) / 2 * w
    return (
        torch.cat([zero, one, -one]),
        torch.cat([zero, v, -v]),
        torch.cat([d[..., None], active, active], -1),
    )


def _columns(
    K: int, d: float | Tensor, examples: tuple[float, int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """All columns "c K" of pattern and class-mean entries, and their probabilities "*b c"."""
    K, (xi, v, p) = _count("K", K), entry_law(d, examples)
    if len(v) ** K > COLUMNS:
        raise ValueError(
            f"K={K} with {len(v)} values an entry: {len(v) ** K:,} columns, allowed are "
            f"{COLUMNS:,}" + ("; use rho in place of examples" if examples is not None else "")
        )
    at = torch.cartesian_prod(*[torch.arange(len(v), device=v.device)] * K).reshape(-1, K)
    return xi[at], v[at], p[..., at].prod(-1)


def _noisy(h: Tensor, variance: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """Averages of ``tanh(beta (h + u))`` and its derivative over ``u ~ N(0, variance)``."""
    if beta is None:
        width = variance.sqrt().clamp_min(1e-150)  # a silent column has neither field nor width
        x = h / width
        return torch.erf(x / math.sqrt(2)), math.sqrt(2 / math.pi) * torch.exp(-x * x / 2) / width
    # Panels, since tanh may be steep: their nodes lie 0.013 deviations apart.
    z, w = gaussian_panels()
    t = torch.tanh(beta[..., None] * (h[..., None] + variance.sqrt()[..., None] * z.to(h.device)))
    w = w.to(h.device)
    return t @ w, beta * (1 - t**2 @ w)


# Zero temperature in closed form.


def hierarchical_overlaps(K: int, d: float | Float[Tensor, "*b"]) -> Float[Tensor, "*b K"]:
    """``m_k = d^(k-1) (1 - d)``: pattern k is served where the k - 1 before it are silent."""
    K, d = _count("K", K), _dilution(d)[..., None]
    return d ** torch.arange(K, device=d.device) * (1 - d)


def majority_overlaps(d: float | Float[Tensor, "*b"]) -> Float[Tensor, "*b 3"]:
    """K = 3: three active entries vote, one or two follow the stronger pattern.

    A fixed point at every d: the symmetric mixture of three at d = 0, the only stable state above
    ``critical_dilution(3)``, where its overlaps grow alike as d tends to 1.
    """
    d = _dilution(d)
    a = 1 - d
    m = [a * (a**2 / 2 + c * d * a + e * d**2) for c, e in ((2, 1), (1, 1), (0, 1))]
    return torch.stack(m, -1)


def parallel_overlap(K: int, d: float | Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """All overlaps equal at T = 0: ``E|sum_mu xi^mu| / K``. A push turns this state over.

    At positive temperature and d above ``equal_dilution()`` the equal state is stable, with an
    overlap that ``self_consistency`` finds.
    """
    xi, _, p = _columns(K, d)
    return (p * xi.sum(-1).abs()).sum(-1) / K


def critical_dilution(K: int) -> float:
    """Root of ``1 - 2d + d^K`` below 1; 1 for K of 1 or 2, whose hierarchy is always stable.

    Where all K patterns are active, the first is opposed by the sum of the others in the worst
    case, ``d - d^K`` against ``1 - d``.
    """
    K = _count("K", K)
    if K <= 2:
        return 1.0
    low, high = 0.5, (2 / K) ** (1 / (K - 1))  # the polynomial's minimum
    for _ in range(100):
        mid = (low + high) / 2
        low, high = (mid, high) if 1 - 2 * mid + mid**K > 0 else (low, mid)
    return low


def energy_density(m: Float[Tensor, "*b K"]) -> Float[Tensor, "*b"]:
    """``H / N = -(1/2) sum m^2``."""
    return -0.5 * m.square().sum(-1)


# Positive temperature.


def equal_dilution() -> float:
    """2/3: above it the first state to appear as T falls below 1-d has K equal overlaps.

    For small m the free energy is ``(1 - beta(1-d)) |m|^2 / 2 + beta^3 E[(m . xi)^4] / 12``. With
    ``a = 1 - d`` the last average is ``3 a^2 |m|^4 + a (1 - 3a) sum m_mu^4``: at a given length it
    is least for equal overlaps if ``3a < 1``, and for a single one otherwise. Any K above 1.
    """
    return 2 / 3


def free_energy(
    m: Float[Tensor, "*b K"], d: float | Tensor, beta: float | Tensor
) -> Float[Tensor, "*b"]:
    """``|m|^2 / 2 - (1/beta) E[log 2 cosh(beta m . xi)]``: stationary at the solutions.

    ``math.inf`` gives the limit ``|m|^2 / 2 - E|m . xi|``, which is ``-|m|^2 / 2`` at a solution.
    """
    _positive("beta", beta)
    xi, _, p = _columns(m.shape[-1], d)
    h = (m.double() @ xi.T).abs()
    if isinstance(beta, float | int) and math.isinf(beta):
        inner = h
    else:
        b = torch.as_tensor(beta, dtype=torch.float64)[..., None]
        inner = h + torch.log1p(torch.exp(-2 * b * h)) / b
    return 0.5 * m.double().square().sum(-1) - (p * inner).sum(-1)


def stability(
    m: Float[Tensor, "*b K"], d: float | Tensor, beta: float | Tensor
) -> Float[Tensor, "*b"]:
    """Smallest curvature of the free energy, ``I - beta E[xi xi^T sech^2]``: stable above 0."""
    _positive("beta", beta, finite=True)
    C = _response(m.double(), d, torch.as_tensor(beta, dtype=torch.float64))
    return torch.linalg.eigvalsh(torch.eye(C.shape[-1], dtype=C.dtype) - C)[..., 0]


def onset(d: float, level: int) -> float:
    """Inverse temperature above which level k leaves 0, by bisection.

    With the levels before it solved, ``m_k = 0`` turns unstable at
    ``beta (1-d) E[sech^2(beta sum_(j<k) m_j xi^j)] = 1``. Sites where those are silent give
    ``beta d^(k-1) (1-d)``; the others add a little, so the onset lies below ``1/(d^(k-1) (1-d))``.
    From ``equal_dilution()`` on all levels leave 0 together, at ``1/(1-d)``.

    Raises:
        ValueError: a level below 1 or above 8, or d not inside (0, 1).
    """
    if not 0 < d < 1:
        raise ValueError(f"d={d}: allowed is inside 0 to 1")
    if _count("level", level) > MOST_LEVELS:
        raise ValueError(f"level={level}: allowed is 1 to {MOST_LEVELS}")
    if level == 1 or d >= equal_dilution():
        return 1 / (1 - d)
    K = level - 1

    def gain(beta: Tensor) -> Tensor:
        m = self_consistency(K, d, beta).m
        xi, _, p = _columns(K, d)
        return beta * (1 - d) * (p / torch.cosh(beta[..., None] * (m @ xi.T)) ** 2).sum(-1)

    before = onset(d, K)
    bracket = [before * 1.02, 1.02 / (d**K * (1 - d))]
    low, high = (torch.tensor(b, dtype=torch.float64) for b in bracket)
    grid = low * (high / low) ** torch.linspace(0, 1, 40, dtype=torch.float64)
    below = (gain(grid) < 1).nonzero()  # at the onset before, the gain is 1 too
    if len(below) == 0:
        return before  # the two leave 0 together, as far as 2 % of the temperature can tell
    low = grid[below.max()]
    for _ in range(25):
        mid = (low + high) / 2
        low, high = (mid, high) if gain(mid) < 1 else (low, mid)
    return low.item()


# Finite size.


def overlap_covariance(m: Float[Tensor, "K"], d: float, beta: float) -> Float[Tensor, "K K"]:
    """``N`` times the covariance of the overlaps of one network in one state around ``m``.

    Two independent parts, to leading order in 1/N. The patterns drawn: columns come with
    frequencies that differ from their probabilities, which moves the solution by
    ``(I - C)^-1 Cov(xi tanh) (I - C)^-1``, with ``C = beta E[xi xi^T sech^2]`` the response to a
    shift. The temperature: ``(I - C)^-1 C / beta``. At ``beta = math.inf`` C is zero, and the
    diagonal is ``(1 - d) - m_k^2``.
    """
    _positive("beta", beta)
    if m.ndim != 1:
        raise ValueError(f"m has shape {tuple(m.shape)}: allowed is (K,), one state")
    m = m.double()
    xi, _, p = _columns(len(m), d)
    eye, cold = torch.eye(len(m), dtype=m.dtype), math.isinf(beta)
    t = _sign(xi @ m) if cold else torch.tanh(beta * (xi @ m))
    a = xi * t[:, None]
    drawn = (p[:, None] * a).T @ a - torch.outer(p @ a, p @ a)
    if cold:
        return drawn
    C = _response(m, d, torch.tensor(beta, dtype=torch.float64))
    G = torch.linalg.inv(eye - C)
    return G @ drawn @ G + G @ C / beta


def hierarchy_margin(K: int, d: float) -> tuple[float, float]:
    """Mean and (N times) variance of ``m_1 - sum_(k>1) m_k`` in the hierarchical state.

    This is the field of a site where all the others vote against pattern 1. The mean is
    ``1 - 2d + d^K``; the variance is that of ``s (xi^1 - sum_(k>1) xi^k)`` over sites.
    """
    xi, _, p = _columns(K, d)
    active = xi != 0
    first = torch.where(active.any(1), active.double().argmax(1), 0)
    s = xi.gather(1, first[:, None])[:, 0]
    x = s * (2 * xi[:, 0] - xi.sum(1))
    mean = (p @ x).item()
    return mean, (p @ x**2).item() - mean**2


def survival_probability(K: int, d: float, N: int) -> float:
    """Probability that the hierarchical state of N spins is a fixed point at zero temperature.

    Its first level holds if ``x = m_1 - sum_(k>1) m_k`` is at least ``K / N``, what a site adds to
    it itself; ``x`` is normal by the central limit theorem. Transitions of different N fall on one
    curve over ``sqrt(N) (mean - K/N) / deviation``. Or else if no site has all voices against
    pattern 1, which happens for small N: such sites have probability ``2 ((1-d)/2)^K``. Only they
    are looked at, so the formula is for K small enough that there are some. Derived here.
    """
    N, (mean, variance) = _count("N", N), hierarchy_margin(K, d)
    if variance < 1e-12:  # d of 1, or one pattern without zeros: all networks are alike
        return 1.0
    falls = 0.5 * math.erfc((mean - K / N) * math.sqrt(N / (2 * variance)))
    absent = (1 - 2 * ((1 - d) / 2) ** K) ** N
    return 1 - falls * (1 - absent)


# Learning.


def entropy(r: float, M: int) -> float:
    """``rho = (1 - r^2) / (M r^2)``: variance over squared signal of a mean of M examples."""
    if not 0 < r <= 1:
        raise ValueError(f"r={r}: allowed is above 0, up to 1")
    _count("M", M)
    return (1 - r**2) / (M * r**2)


def one_step_overlap(d: float, r: float, M: int, exact: bool = False) -> float:
    """Overlap with pattern 1 one step after starting there, with or without a teacher.

    The field is ``eb_i^1`` times a constant as N grows. Many examples:
    ``(1-d) erf(1/sqrt(2 rho))``. ``exact`` counts votes: ``1-d`` times
    ``P[right majority] - P[wrong majority]``.
    """
    rho = entropy(r, M)
    _dilution(d)
    if exact:
        w, votes = _binomial(M, (1 + r) / 2), 2 * torch.arange(M + 1) - M
        return (1 - d) * (w @ votes.sign().double()).item()
    return (1 - d) * (math.erf(1 / math.sqrt(2 * rho)) if rho > 0 else 1.0)


def finite_step(
    K: int, d: float, r: float, M: int, N: int, mode: Literal["supervised", "unsupervised"]
) -> float:
    """:func:`one_step_overlap` in a network of N spins, where a teacher does make a difference.

    Measure the field in votes: an example of pattern 1 weighs ``r(1-d)/M``. Besides the true vote
    ``v = 2 Bin(M, (1+r)/2) - M`` a site hears noise, normal, whose variance is the sum of the
    following over ``N (1-d) (r/M)^2``:

    - ``(1-r^2)(1 - v^2/M^2)/M`` without a teacher: the M overlaps of one pattern differ;
    - from each of the other patterns that speaks at the site, ``(r^2 + (1-r^2)/M)^2`` with a
      teacher and ``1/M + (1-1/M) r^4`` without.

    The noise falls as ``1/sqrt(N)`` while a vote is at least 1 (M odd), so that its effect falls
    faster than any power once it is below one vote. Leading order in 1/N; derived here.

    Raises:
        ValueError: arguments out of range, or an unknown mode.
    """
    if mode not in ("supervised", "unsupervised"):
        raise ValueError(f"mode={mode!r}: allowed are 'supervised', 'unsupervised'")
    K, N, d = _count("K", K), _count("N", N), _dilution(d).item()
    entropy(r, M)  # checks both
    w, votes = _binomial(M, (1 + r) / 2), 2 * torch.arange(M + 1, dtype=torch.float64) - M
    if mode == "supervised":
        own, other = 0 * votes, (r**2 + (1 - r**2) / M) ** 2
    else:
        own, other = (1 - r**2) / M * (1 - (votes / M) ** 2), 1 / M + (1 - 1 / M) * r**4
    if d == 1:
        return 0.0
    right = 0.0
    for others in range(K):  # how many of them speak
        p = math.comb(K - 1, others) * (1 - d) ** others * d ** (K - 1 - others)
        width = ((own + others * other) / (N * (1 - d))).sqrt() * M / r
        clear = torch.erf(votes / (width.clamp_min(1e-150) * math.sqrt(2)))
        right += p * (w @ clear).item()
    return (1 - d) * right


def _binomial(M: int, q: float) -> Tensor:
    k = torch.arange(M + 1, dtype=torch.float64)
    log = math.lgamma(M + 1) - torch.lgamma(k + 1) - torch.lgamma(M - k + 1)
    q = torch.tensor(q, dtype=torch.float64)
    return torch.exp(log + torch.xlogy(k, q) + torch.xlogy(M - k, 1 - q))


def _response(m: Tensor, d, beta: Tensor) -> Tensor:
    xi, _, p = _columns(m.shape[-1], d)
    b = beta[..., None]
    soft = p * b / torch.cosh((b * (m @ xi.T)).clamp(-300, 300)) ** 2
    return torch.einsum("...c,ci,cj->...ij", soft, xi, xi)


def _sign(h: Tensor) -> Tensor:
    # A tie that rounding has broken is still a tie.
    return torch.where(h.abs() < 1e-9, 0.0, h.sign())


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value}: allowed is a whole number of 1 or more")
    return int(value)


def _positive(name: str, value: float | Tensor, finite: bool = False) -> None:
    value = torch.as_tensor(value, dtype=torch.float64)
    if not (value > 0).all() or (finite and value.isinf().any()):
        allowed = "above 0, finite" if finite else "above 0"
        raise ValueError(f"{name}={value.tolist()}: allowed is {allowed}")


def _dilution(d) -> Tensor:
    d = torch.as_tensor(d, dtype=torch.float64)
    if not ((d >= 0) & (d <= 1)).all():
        raise ValueError(f"d={d.tolist()}: allowed is 0 to 1")
    return d
