"""Local fields of a dense Hebbian network, without its coupling tensor.

A network of order P couples P spins at a time. Its coupling tensor has N^P entries, but it is a
sum of K outer powers, so the field is P - 1 products with the K x N matrix of class means.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.kernels.kernel_sum import kernel_sum
from lib.models.hopfield import elementary

Indices = Literal["distinct", "others", "all"]
INDICES = ("distinct", "others", "all")
_SCORES = 2**22  # numbers of the batch x patterns matrix that are held at a time
_SETS = 20_000_000  # couplings that are written down one by one, at most


def dense_field(
    s: Float[Tensor, "*b n"],
    eb: Float[Tensor, "k n"],
    P: int,
    indices: Indices = "distinct",
) -> Float[Tensor, "*b n"]:
    """``h_i = N^(1-P) sum_mu eb_i^mu sum_(j2..jP) prod eb_j^mu s_j``: what the others tell spin i.

    Which index sets ``(i, j2, ..., jP)`` take part:

    - ``"distinct"``: all P differ. This is the model of the theory.
    - ``"others"``: no j equals i, but the j may coincide. More crosstalk: ``(2P-3)!!`` instead of
      ``(P-1)!`` in its variance.
    - ``"all"``: ``sum_mu eb_i^mu X_mu^(P-1)`` with ``X_mu = eb^mu . s / N``. For even P every spin
      then couples to itself and hardly ever flips.

    With ``a_j = eb_j s_j`` and ``e_k`` the elementary symmetric sums of all ``a_j``, leaving ``i``
    out is ``e_k^(i) = e_k - a_i e_(k-1)^(i)``. Written out, every term is a product of matrices:
    ``h = (P-1)! N^(1-P) sum_j (-s)^j * (e_(P-1-j) @ eb^(j+1))``, powers elementwise.

    Args:
        s: spins, or magnetizations in [-1, 1].
        eb: class means (or patterns, or examples).

    Raises:
        ValueError: P below 2, an unknown ``indices``, another number of spins than ``eb`` has,
            no spins.
        TypeError: ``s`` and ``eb`` not of one floating type.
    """
    check_order(P)
    check_indices(indices)
    check_spins(s, eb)
    n = eb.shape[1]
    flat = s.reshape(-1, n)
    if indices == "all":
        h = kernel_sum(flat / n, eb, eb, "power", power=P - 1)
        return h.reshape(s.shape)
    h = torch.zeros_like(flat)
    sign_powers = [(-flat) ** j for j in range(P)]
    for part in eb.split(max(1, _SCORES // max(1, len(flat)))):
        scores = _scores(flat, part, P - 1, indices)
        power = part
        for j in range(P):
            h += sign_powers[j] * (_choose(P - 1, j, indices) * scores[P - 1 - j] @ power)
            power = power * part
    return (h * (math.factorial(P - 1) if indices == "distinct" else 1) / n ** (P - 1)).reshape(
        s.shape
    )


def dense_energy(
    s: Float[Tensor, "*b n"], eb: Float[Tensor, "k n"], P: int, indices: Indices = "distinct"
) -> Float[Tensor, "*b"]:
    """``H = -(N/P) sum_mu X_mu^P``; with distinct indices ``P! e_P / N^P`` stands for ``X^P``.

    Then ``dH/ds_i = -h_i``, exactly, and flipping spin i costs ``2 s_i h_i``. ``"others"`` has no
    energy: there ``i`` is not on a par with the other indices.

    Raises:
        ValueError: as :func:`dense_field`, and ``indices="others"``.
    """
    check_order(P)
    check_indices(indices)
    check_spins(s, eb)
    if indices == "others":
        raise ValueError("indices='others' has no energy: allowed are 'distinct' and 'all'")
    n = eb.shape[1]
    if indices == "all":
        return -n / P * ((s @ eb.T / n) ** P).sum(-1)
    flat = s.reshape(-1, n)
    total = flat.new_zeros(len(flat))
    for part in eb.split(max(1, _SCORES // max(1, len(flat)))):
        total += _scores(flat, part, P, indices)[P].sum(-1)
    return (-math.factorial(P - 1) / n ** (P - 1) * total).reshape(s.shape[:-1])


def stored_couplings(
    eb: Float[Tensor, "k n"],
    P: int,
    omega: float = 0.0,
    gen: torch.Generator | None = None,
) -> tuple[Float[Tensor, "sets"], Int[Tensor, "sets P"]]:
    """The coupling tensor itself: ``J = sum_mu eb_i1 ... eb_iP + omega g``, one entry a set of P.

    The noise ``g`` is standard normal, one number per unordered set, as a device that stores each
    coupling once would have it. There are ``N! / (P! (N-P)!)`` sets: for small N only.

    Raises:
        ValueError: P below 2, a negative omega, noise without a generator, ``eb`` that is no
            matrix, or more than 20 million sets.
        TypeError: ``eb`` not floating.
    """
    check_order(P)
    _check_noise(omega, gen)
    check_rows("eb", eb)
    if math.comb(eb.shape[1], P) > _SETS:
        raise ValueError(
            f"eb has n={eb.shape[1]} spins, P={P}: {math.comb(eb.shape[1], P):,} couplings; "
            f"allowed is {_SETS:,} (dense_field needs none of them)"
        )
    sets = torch.combinations(torch.arange(eb.shape[1], device=eb.device), P)
    J = torch.zeros(len(sets), dtype=eb.dtype, device=eb.device)
    for row in eb:
        J += row[sets].prod(1)
    if omega:
        J = J + omega * _normal(J, gen)
    return J, sets


def couplings_field(
    s: Float[Tensor, "*b n"], J: Float[Tensor, "sets"], sets: Int[Tensor, "sets P"]
) -> Float[Tensor, "*b n"]:
    """Field of stored couplings: ``h_i = (P-1)! N^(1-P) sum_(sets with i) J prod_(j!=i) s_j``.

    The slow, explicit route to :func:`dense_field` with distinct indices.

    Raises:
        ValueError: not one coupling for each set, or sets of spins that ``s`` does not have.
    """
    if sets.ndim != 2 or J.shape != sets.shape[:1]:
        raise ValueError(
            f"J has shape {tuple(J.shape)} and sets {tuple(sets.shape)}: allowed is one coupling "
            "for each set"
        )
    if sets.numel() and not (s.ndim and 0 <= int(sets.min()) and int(sets.max()) < s.shape[-1]):
        raise ValueError(
            f"s has shape {tuple(s.shape)}, sets name spins {int(sets.min())} to "
            f"{int(sets.max())}: allowed is 0 to one below the last size of s"
        )
    n, P = s.shape[-1], sets.shape[1]
    h = torch.zeros_like(s)
    for place in range(P):
        rest = [k for k in range(P) if k != place]
        terms = J * s[..., sets[:, rest]].prod(-1)
        h.index_add_(-1, sets[:, place], terms)
    return h * math.factorial(P - 1) / n ** (P - 1)


def noisy_field(
    s: Float[Tensor, "*b n"],
    eb: Float[Tensor, "k n"],
    P: int,
    omega: float,
    gen: torch.Generator,
) -> Float[Tensor, "*b n"]:
    """:func:`dense_field` plus the noise that couplings of noise ``omega`` would add to it.

    On a state independent of the noise, the field noise of one site is normal with variance
    ``omega^2 (P-1)! (N-1)...(N-P+1) / N^(2(P-1))``. It is drawn anew here at every call, so use it
    for one step; a device with frozen couplings is :func:`stored_couplings`.
    """
    _check_noise(omega, gen)
    h = dense_field(s, eb, P)
    n = eb.shape[1]
    variance = math.factorial(P - 1) * falling(n, P) / n ** (2 * (P - 1))
    return h + omega * math.sqrt(variance) * _normal(h, gen)


def falling(n: int, P: int) -> float:
    """``(n-1)(n-2)...(n-P+1)``: ordered choices of P - 1 other spins; ``n^(P-1)`` for large n."""
    return float(math.prod(n - j for j in range(1, P)))


def _scores(s: Tensor, eb: Tensor, top: int, indices: str) -> list[Tensor]:
    """Per state and pattern: ``e_0 .. e_top`` (distinct) or ``Y^0 .. Y^top`` (others)."""
    if indices == "others":
        y = s @ eb.T
        return [y**k for k in range(top + 1)]
    # For spins, even power sums do not depend on the state; their derivative does.
    binary = not s.requires_grad and bool((s * s == 1).all())
    sums, s_power, eb_power = [], torch.ones_like(s), torch.ones_like(eb)
    for j in range(1, top + 1):
        s_power, eb_power = s_power * s, eb_power * eb
        sums.append(eb_power.sum(1)[None] if binary and j % 2 == 0 else s_power @ eb_power.T)
    return elementary(sums)


def _choose(k: int, j: int, indices: str) -> int:
    return math.comb(k, j) if indices == "others" else 1


def _normal(like: Tensor, gen: torch.Generator) -> Tensor:
    z = torch.randn(like.shape, generator=gen, dtype=like.dtype, device=gen.device)
    return z.to(like.device)


def check_order(P: int) -> None:
    if not (isinstance(P, int) and P >= 2):
        raise ValueError(f"P={P}: allowed is a whole number of 2 or more")


def check_indices(indices: str) -> None:
    if indices not in INDICES:
        raise ValueError(f"indices={indices!r}: allowed are {', '.join(map(repr, INDICES))}")


def check_spins(s: Tensor, eb: Tensor) -> None:
    check_rows("eb", eb)
    if s.ndim == 0 or s.shape[-1] != eb.shape[1]:
        raise ValueError(
            f"s has shape {tuple(s.shape)} and eb {tuple(eb.shape)}: the last sizes must be equal"
        )
    if s.dtype != eb.dtype:
        raise TypeError(f"s is {s.dtype} and eb {eb.dtype}: allowed is one floating type for both")


def check_rows(name: str, rows: Tensor) -> None:
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}: allowed is (k, n) with n > 0")
    if not rows.is_floating_point():
        raise TypeError(f"{name} is {rows.dtype}: allowed is a floating type")


def _check_noise(omega: float, gen: torch.Generator | None) -> None:
    if not omega >= 0:
        raise ValueError(f"omega={omega}: allowed is 0 or more")
    if omega and gen is None:
        raise ValueError("gen: noise needs a generator")
