"""The network: couplings from patterns or examples, its dynamics, its energy as squared losses."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.hopfield import glauber, sequential_sweep

Mode = Literal["storing", "supervised", "unsupervised"]
MODES = ("storing", "supervised", "unsupervised")


class MultitaskHebbianNetwork:
    """Pairwise Hebbian couplings of K diluted patterns, learned by addition.

    - ``"storing"``: the patterns themselves, ``J_ij = (1/N) sum_mu xi_i^mu xi_j^mu``.
    - ``"supervised"``: a teacher groups the examples; products of the **class means**.
    - ``"unsupervised"``: products of all **single examples**, over the number M per pattern.

    Energy and field are divided by ``R = r^2 (1 + rho)``, the mean square of a class mean where it
    is not silent, so that ``beta`` means the same in all modes.

    Attributes:
        rows: "*b k n", what the outer products are taken of, after :meth:`fit`.
        means: "*b k n", the class means (the patterns when storing).
        scale: "*b", what the field is multiplied by: ``1/R``, or ``1/(M R)``.
    """

    def __init__(self, mode: Mode = "storing"):
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")
        self.mode = mode
        self.rows: Tensor | None = None

    def fit(self, data: Float[Tensor, "... k n"]) -> MultitaskHebbianNetwork:
        """Build the couplings from patterns "*b k n" or examples "M *b k n" (see ``corrupt``).

        A leading "b" builds as many networks, each with its own memory. Without a teacher the
        grouping by pattern is used for ``means`` and for the scale of temperature alone.

        Raises:
            TypeError: entries that are not floating point.
            ValueError: fewer axes than the mode needs, an empty axis, entries that are not finite,
                a network with nothing but zeros, or examples that cancel at every site.
        """
        if not data.is_floating_point():
            raise TypeError(f"data has dtype {data.dtype}: allowed are floating types")
        least = 2 if self.mode == "storing" else 3
        if data.ndim < least:
            shape = "(*b, k, n)" if least == 2 else "(M, *b, k, n)"
            raise ValueError(
                f"data has shape {tuple(data.shape)}: mode={self.mode!r} needs {shape}"
            )
        if 0 in data.shape:
            raise ValueError(f"data has shape {tuple(data.shape)}: every axis needs 1 or more")
        if not data.isfinite().all():
            raise ValueError("data has entries that are not finite: allowed are numbers")
        active = ((data if self.mode == "storing" else data[0]) != 0).sum((-2, -1))
        if not active.all():
            raise ValueError(
                "data: every entry of a network is zero; there is nothing to learn. Allowed is one "
                "nonzero entry or more"
            )
        means = data if self.mode == "storing" else data.mean(0)
        R = means.square().sum((-2, -1)) / active
        if not R.all():
            raise ValueError("data: the class means are zero everywhere, the examples cancel")
        self.means = self.rows = means
        self.scale = 1 / R
        if self.mode == "unsupervised":
            self.rows = data.movedim(0, -3).flatten(-3, -2)
            self.scale = 1 / (len(data) * R)
        return self

    def field(self, s: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
        """``-dH/ds_i`` without the self term: ``(scale/N) sum_rows eta_i sum_(j!=i) eta_j s_j``."""
        rows = self._fitted()
        votes = mattis(rows, s)
        own = rows.square().sum(-2) / s.shape[-1]
        scale = self.scale[..., None]
        return scale * (torch.einsum("...kn,...k->...n", rows, votes) - own * s)

    def energy(self, s: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
        """``H = -(N/2) scale sum_rows m^2``, self terms included: for spins they are a constant."""
        return -0.5 * s.shape[-1] * self.scale * mattis(self._fitted(), s).square().sum(-1)

    def overlaps(self, s: Float[Tensor, "*b n"]) -> Float[Tensor, "*b k"]:
        """``(1/N) sum_i eb_i^mu s_i`` with the class means; Mattis magnetizations when storing."""
        self._fitted()
        return mattis(self.means, s)

    def run(
        self,
        s0: Float[Tensor, "b n"],
        steps: int,
        beta: float = math.inf,
        order: Literal["sequential", "parallel"] = "sequential",
        *,
        gen: torch.Generator,
        blocks: int | None = None,
    ) -> Float[Tensor, "b n"]:
        """``steps`` sweeps of Glauber dynamics, fewer if all is still.

        At zero temperature a spin without a field keeps its value, and a sweep that changes
        nothing ends the run.

        Raises:
            ValueError: no fit yet, spins other than +1 and -1, sizes that differ from the memory's,
                a negative ``steps`` or ``beta``, or what ``glauber`` refuses.
        """
        if not (isinstance(steps, int) and steps >= 0):
            raise ValueError(f"steps={steps}: allowed is a whole number of 0 or more")
        if not beta >= 0:
            raise ValueError(f"beta={beta}: allowed is 0 or more, math.inf for zero temperature")
        if s0.ndim != 2:
            raise ValueError(f"s0 has shape {tuple(s0.shape)}: allowed is (b, n)")
        _same_kind("s0", s0, self._fitted())
        if self.rows.ndim > 3 or self.rows.shape[:-2] not in ((), s0.shape[:1]):
            raise ValueError(
                f"s0 has shape {tuple(s0.shape)} for memories {tuple(self.rows.shape)}: allowed is "
                "one memory (k, n), or one for each state, (b, k, n)"
            )
        if not (s0.abs() == 1).all():
            raise ValueError("s0 has other entries than +1 and -1: allowed are spins")
        s = s0
        for _ in range(steps):
            before = s
            if order == "sequential" and blocks is None:
                s = sequential_sweep(s, self._fitted(), 2, beta, scale=self.scale, gen=gen)
            else:
                s = glauber(self.field, s, beta, order, gen=gen, blocks=blocks)
            if math.isinf(beta) and torch.equal(s, before):
                break
        return s

    def _fitted(self) -> Tensor:
        if self.rows is None:
            raise ValueError("this network has no couplings yet: call fit(data) first")
        return self.rows


class MultitaskLoss(nn.Module):
    """The energy as a sum of products of squared losses.

    ``L-+ = |xi^mu -+ s|^2 / (2N)`` are the mean squared errors of reading the state as the pattern
    and as its negative. With ``a_mu`` the mean square of the pattern's entries (its activity) and
    ``q`` that of the state's (1 for spins),

        ``m_mu^2 = ((q + a_mu) / 2)^2 - L+ L-``,

    so ``H = -(N/2) sum_mu m_mu^2`` falls exactly as the products of losses fall.
    """

    def __init__(self, xi: Float[Tensor, "*b k n"]):
        super().__init__()
        self.register_buffer("xi", xi)

    def losses(self, s: Float[Tensor, "*b n"]) -> tuple[Tensor, Tensor]:
        """``(L-, L+)``, each "*b k", from the vectors themselves."""
        _same_kind("s", s, self.xi)
        n, s = s.shape[-1], s[..., None, :]
        return tuple((self.xi + sign * s).square().sum(-1) / (2 * n) for sign in (-1, 1))

    def forward(self, s: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
        minus, plus = self.losses(s)
        q, a = s.square().mean(-1, keepdim=True), self.xi.square().mean(-1)
        return -0.5 * s.shape[-1] * (((q + a) / 2) ** 2 - plus * minus).sum(-1)


def mattis(xi: Float[Tensor, "*p k n"], s: Float[Tensor, "*b n"]) -> Float[Tensor, "*c k"]:
    """Mattis magnetizations ``(1/N) sum_i xi_i^mu s_i``; patterns of their own for each state.

    Raises:
        TypeError: another dtype than the patterns have, or one that is not floating point.
        ValueError: another number of spins, or a batch that does not go with theirs.
    """
    _same_kind("s", s, xi)
    return torch.einsum("...kn,...n->...k", xi, s) / s.shape[-1]


def hebbian_field(
    s: Float[Tensor, "*b n"], data: Float[Tensor, "... k n"], mode: Mode = "storing"
) -> Float[Tensor, "*b n"]:
    """Field of :class:`MultitaskHebbianNetwork` in one call."""
    return MultitaskHebbianNetwork(mode).fit(data).field(s)


def hebbian_energy(
    s: Float[Tensor, "*b n"], data: Float[Tensor, "... k n"], mode: Mode = "storing"
) -> Float[Tensor, "*b"]:
    """Energy of :class:`MultitaskHebbianNetwork` in one call."""
    return MultitaskHebbianNetwork(mode).fit(data).energy(s)


def hierarchical_state(
    xi: Float[Tensor, "*b k n"], free: Float[Tensor, "*b n"], levels: int | None = None
) -> Float[Tensor, "*b n"]:
    """Every spin serves the first pattern that speaks at its site; silent sites take ``free``.

    Only the first ``levels`` patterns are looked at; with 1 this is the usual start, pattern 1 on
    its active sites and anything elsewhere.

    Raises:
        TypeError: ``free`` of another dtype than the patterns.
        ValueError: another number of spins, or ``levels`` outside 0 to K.
    """
    _same_kind("free", free, xi)
    k = xi.shape[-2] if levels is None else levels
    if not (isinstance(k, int) and 0 <= k <= xi.shape[-2]):
        raise ValueError(f"levels={levels}: allowed is 0 to {xi.shape[-2]}, the number of patterns")
    s = free.expand(torch.broadcast_shapes(free.shape, xi.select(-2, 0).shape))
    for row in reversed(xi.unbind(-2)[:k]):
        s = torch.where(row == 0, s, row)
    return s


def _same_kind(name: str, s: Tensor, xi: Tensor) -> None:
    """Spins ``s`` go with patterns ``xi``: dtype, number of spins, batch."""
    if s.dtype != xi.dtype or not s.is_floating_point():
        raise TypeError(
            f"{name} has dtype {s.dtype}, the patterns {xi.dtype}: allowed is one floating type "
            "for both"
        )
    if s.ndim == 0 or xi.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(s.shape)}, the patterns {tuple(xi.shape)}: allowed is "
            "(*b, n) with (*b, k, n)"
        )
    if s.shape[-1] != xi.shape[-1] or s.shape[-1] == 0:
        raise ValueError(
            f"{name} has {s.shape[-1]} spins, the patterns have {xi.shape[-1]}: allowed are equal "
            "numbers, 1 or more"
        )
    try:
        torch.broadcast_shapes(s.shape[:-1], xi.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(s.shape)}, the patterns {tuple(xi.shape)}: allowed is one "
            "set of patterns (k, n), or one for each state"
        ) from None
