"""Binary associative memories: patterns, their corruption, and the spins' dynamics.

Spins and patterns are +1 and -1; a diluted pattern is 0 where it says nothing (E. Agliari et al.,
arXiv:1205.3900). Glauber dynamics turns a spin up with probability ``sigmoid(2 beta h)``, where
``h`` is its local field (R. Glauber, J. Math. Phys. 1963; D. Amit, H. Gutfreund and
H. Sompolinsky, Phys. Rev. A 1985). What the field is, a Hopfield network's or a dense memory's,
comes from the caller as a function. ``sequential_sweep`` is the same dynamics for couplings that
are sums of outer powers, which it never writes down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def patterns(
    k: int,
    n: int,
    dilution: float = 0.0,
    *,
    gen: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "k n"]:
    """``k`` random patterns of ``n``: 0 with probability ``dilution``, else +1 or -1 alike.

    Raises:
        ValueError: ``k`` or ``n`` below 1, or a dilution outside [0, 1].
    """
    if min(k, n) < 1:
        raise ValueError(f"k={k}, n={n}: allowed is 1 or more")
    _check_share("dilution", dilution)
    xi = _signs((k, n), gen)
    if dilution > 0:
        xi = xi * (torch.rand(k, n, generator=gen, device=gen.device) >= dilution)
    return xi.to(dtype)


def corrupt(
    xi: Float[Tensor, "*b n"], r: float, m: int, gen: torch.Generator
) -> Float[Tensor, "m *b n"]:
    """``m`` noisy examples of every pattern: an entry keeps its sign with probability (1 + r) / 2.

    The quality ``r`` is the mean of ``example * pattern`` over the pattern's nonzero entries: 1
    copies the pattern, 0 says nothing about it. Zeros stay zero.

    Raises:
        ValueError: ``r`` outside [0, 1], or ``m`` below 1.
    """
    _check_share("r", r)
    if m < 1:
        raise ValueError(f"m={m}: allowed is 1 or more")
    keep = torch.rand((m, *xi.shape), generator=gen, device=gen.device) < (1 + r) / 2
    return torch.where(keep.to(xi.device), xi, -xi)


def overlap(xi: Float[Tensor, "k n"], s: Float[Tensor, "*b n"]) -> Float[Tensor, "*b k"]:
    """Mattis magnetizations ``m_mu = (1/n) sum_i xi_i^mu s_i`` of each state with each pattern."""
    if xi.shape[-1] != s.shape[-1]:
        raise ValueError(f"s has {s.shape[-1]} spins, the patterns xi have {xi.shape[-1]}")
    return s @ xi.T / xi.shape[-1]


def glauber(
    field: Callable[[Tensor], Tensor],
    s: Float[Tensor, "*b n"],
    beta: float,
    order: Literal["sequential", "parallel"] = "sequential",
    *,
    gen: torch.Generator,
    blocks: int | None = None,
) -> Float[Tensor, "*b n"]:
    """One sweep: every spin is drawn anew once, given the field that the others exert.

    ``P(s_i = +1) = sigmoid(2 beta h_i)``. At ``beta=math.inf`` a spin takes the sign of its field
    and **keeps its value where the field is zero**; rounding it to +1 would magnetize networks with
    diluted patterns.

    ``"sequential"`` goes through the spins in a random order, the same for all states of the batch,
    and evaluates ``field`` before each, so it obeys detailed balance for a symmetric coupling
    without self-interaction. ``"parallel"`` updates all spins at once from one evaluation; at
    zero temperature it can end in a cycle of two states. Between them, ``blocks`` groups of spins
    are updated one after another.

    Args:
        field: local fields ``h: "*b n"`` of states ``"*b n"``.
        blocks: into how many groups "sequential" cuts the sweep; default ``n``, one spin each.

    Raises:
        ValueError: a negative ``beta``, an unknown order, ``blocks`` outside 1..n or given with
            "parallel", or a field of another shape than the spins.
    """
    n = s.shape[-1]
    if not beta >= 0:
        raise ValueError(f"beta={beta}: allowed is 0 or more, math.inf for zero temperature")
    if order not in ("sequential", "parallel"):
        raise ValueError(f"order={order!r}: allowed are 'sequential' and 'parallel'")
    if blocks is not None and (order == "parallel" or not 1 <= blocks <= n):
        raise ValueError(
            f"blocks={blocks} with order={order!r}: allowed is 1 to n={n}, with 'sequential' alone"
        )
    if order == "parallel":
        return _draw(_checked(field(s), s), s, beta, gen)
    s = s.clone()
    sites = torch.randperm(n, generator=gen, device=gen.device).to(s.device)
    for chosen in sites.chunk(blocks or n):
        h = _checked(field(s), s)
        s[..., chosen] = _draw(h[..., chosen], s[..., chosen], beta, gen)
    return s


def sequential_sweep(
    s: Float[Tensor, "b n"],
    eb: Float[Tensor, "*b k n"],
    P: int,
    beta: float,
    *,
    scale: float | Float[Tensor, "..."] = 1.0,
    gen: torch.Generator,
) -> Float[Tensor, "b n"]:
    """One sweep of Glauber dynamics, spin by spin, for couplings ``sum_mu eb_i1 ... eb_iP``.

    The field is ``h_i = scale N^(1-P) sum_mu eb_i^mu sum_(j2..jP) prod eb_j^mu s_j``, all indices
    distinct. Flipping a spin changes each overlap by a known amount, so the power sums of
    ``eb_j s_j`` are carried along instead of computed anew for each spin: O(b k n P^2). Draws the
    same numbers in the same order as ``glauber(..., order="sequential")`` and ends in the same
    state, up to rounding.

    Args:
        eb: "k n", one memory for all states, or "b k n", a memory of its own for each.
        scale: one number, or "b", one for each state.

    Raises:
        ValueError: P below 2, a negative ``beta``, or shapes that do not go together.
    """
    if not (isinstance(P, int) and P >= 2):
        raise ValueError(f"P={P}: allowed is a whole number of 2 or more")
    if not beta >= 0:
        raise ValueError(f"beta={beta}: allowed is 0 or more, math.inf for zero temperature")
    if (
        eb.ndim not in (2, 3)
        or s.shape[-1] != eb.shape[-1]
        or eb.shape[:-2] not in ((), s.shape[:1])
    ):
        raise ValueError(
            f"s has shape {tuple(s.shape)} and eb {tuple(eb.shape)}: allowed is (b, n) with (k, n) "
            "or (b, k, n); the last sizes must be equal"
        )
    if s.dtype != eb.dtype:
        raise ValueError(f"s is {s.dtype} and eb {eb.dtype}: allowed is one type for both")
    if not bool((s.abs() == 1).all()):
        raise ValueError("s: allowed are +1 and -1")
    n = s.shape[1]
    # Spins along the first axis, so that a spin's entries lie side by side.
    rows, columns = s.T.contiguous().clone(), eb.movedim(-1, 0).contiguous()
    factor = torch.as_tensor(scale).to(s) * (math.factorial(P - 1) / n ** (P - 1))
    factor = factor if factor.ndim == 0 else factor[:, None]
    # Odd sums carry a row for each state; even ones are the same for all spins, since s^2 = 1.
    odd = (lambda p: s @ p.T) if eb.ndim == 2 else (lambda p: torch.einsum("bkn,bn->bk", p, s))
    even = (lambda p: p.sum(1)[None]) if eb.ndim == 2 else (lambda p: p.sum(-1))
    sums = [odd(eb**j) if j % 2 else even(eb**j) for j in range(1, P)]
    powers = [columns if j == 1 else columns**j for j in range(1, P)]
    for i in torch.randperm(n, generator=gen, device=gen.device).tolist():
        old = rows[i, :, None].clone()  # a view would change with the rows
        own = [p[i] for p in powers]
        mine = [old * a if j % 2 == 0 else a for j, a in enumerate(own)]
        others = [p - a for p, a in zip(sums, mine, strict=True)]
        votes = others[0] if P == 2 else elementary(others)[P - 1]
        h = factor * (votes * own[0]).sum(-1, keepdim=True)
        new = _draw(h, old, beta, gen)
        rows[i] = new[:, 0]
        mine = [new * a if j % 2 == 0 else a for j, a in enumerate(own)]
        sums = [p + a for p, a in zip(others, mine, strict=True)]
    return rows.T.contiguous()


def elementary(power_sums: list[Tensor]) -> list[Tensor]:
    """``e_0 .. e_k`` from ``p_1 .. p_k`` (Newton): ``k e_k = sum_j (-1)^(j-1) e_(k-j) p_j``."""
    e = [torch.ones_like(power_sums[0][:1])]  # one row: it is the same for every state
    for k in range(1, len(power_sums) + 1):
        terms = ((-1) ** (j - 1) * e[k - j] * power_sums[j - 1] for j in range(1, k + 1))
        e.append(sum(terms) / k)
    return e


def _draw(h: Tensor, s: Tensor, beta: float, gen: torch.Generator) -> Tensor:
    if math.isinf(beta):
        return torch.where(h == 0, s, h.sign())
    u = torch.rand(h.shape, generator=gen, device=gen.device, dtype=h.dtype).to(h.device)
    return torch.where(u < torch.sigmoid(2 * beta * h), 1.0, -1.0).to(s.dtype)


def _checked(h: Tensor, s: Tensor) -> Tensor:
    if h.shape != s.shape:
        raise ValueError(f"field returned shape {tuple(h.shape)} for spins {tuple(s.shape)}")
    return h.to(s.dtype)


def _signs(shape: tuple[int, ...], gen: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, shape, generator=gen, device=gen.device) - 1


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: allowed is 0 to 1")
