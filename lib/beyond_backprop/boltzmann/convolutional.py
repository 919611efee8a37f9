"""The multi-tier machine: convolutions within and between tiers of nodes (Feng et al., section 5).

Tiers are images of nodes: tier t has ``channels`` numbers at every place, in nodes of ``group``
consecutive channels. ``A`` is a stack of rows of blocks, and every entry a convolution::

    row t:     x_t --stride s_t--> p_t channels   +   x_{t+1} --stride 1--> p_t channels
    last row:  x_T --dense-------> p channels     +   label --dense------> p channels

so that ``A^T A`` couples each tier with itself and with its neighbors. ``Phi = blockdiag(A^T A) -
A^T A`` is never formed: a product is one pass through A and one back, and the block diagonal is
taken out by its own small matrices, which depend on the place (at borders kernels overhang, and
with a stride places see different taps). Blocks of one group share their weights over all places,
so they share one scale, given by the largest of their norms. All of this is exact; no power
iteration is needed, since the Gram matrix of a block is only ``group x group``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvMultiTier(nn.Module):
    """Tiers of nodes on grids and a label; ``forward(v)`` is ``Phi v`` for a flat row of numbers.

    Args:
        sizes: ``(channels, side)`` of every tier, e.g. ``((2, 28), (40, 14), (80, 7))``; each side
            divides the one before.
        groups: channels a node of each tier, e.g. ``(2, 10, 20)``.
        kernels: odd kernel sizes, one a tier.
        classes: states of the label node.
        p: channels of every row of A.

    Attributes:
        runs: the layout of the flat vector: nodes of a tier place by place, then the label.

    Raises:
        ValueError: sizes, groups and kernels that do not fit together.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]] = ((2, 28), (40, 14), (80, 7)),
        kernels: Sequence[int] = (3, 3, 3),
        groups: Sequence[int] = (2, 10, 20),
        classes: int = 10,
        p: int = 32,
        m: float = 0.1,
        scale: float = 0.3,
        *,
        gen: torch.Generator,
    ) -> None:
        super().__init__()
        if not 0 < m <= 1:
            raise ValueError(f"m={m}: allowed is above 0, up to 1")
        if not len(sizes) == len(kernels) == len(groups):
            raise ValueError(
                f"sizes, kernels, groups: {len(sizes)}, {len(kernels)}, {len(groups)}; allowed is "
                "one of each for every tier"
            )
        for (c, side), g, k, (_, coarser) in zip(sizes, groups, kernels, [*sizes[1:], (1, 1)]):
            if c % g or side % coarser or k % 2 == 0:
                raise ValueError(
                    f"a tier of {c} channels, side {side}, with groups={g}, kernels={k}: groups "
                    "must divide channels, kernels be odd, and the next side divide this one"
                )
        self.sizes, self.groups_, self.m = [tuple(s) for s in sizes], list(groups), m
        self.strides = [a[1] // b[1] for a, b in zip(sizes[:-1], sizes[1:])]
        self.runs = [(c // g * s * s, g) for (c, s), g in zip(sizes, groups)] + [(1, classes)]
        draw = lambda *shape: nn.Parameter(
            scale / math.sqrt(math.prod(shape[:1]) * math.prod(shape[2:]))
            * torch.randn(shape, generator=gen)
        )  # fmt: skip
        pairs = list(zip(sizes[:-1], sizes[1:], kernels[:-1], kernels[1:]))
        self.down = nn.ParameterList(draw(p, a[0], k, k) for a, _, k, _ in pairs)
        self.same = nn.ParameterList(draw(p, b[0], k, k) for _, b, _, k in pairs)
        channels, side = sizes[-1]
        self.dense = draw(p, channels * side * side)
        self.label = draw(p, classes)
        self.b = nn.Parameter(torch.zeros(sum(n * k for n, k in self.runs)))

    def forward(self, v: Float[Tensor, "*b K"]) -> Float[Tensor, "*b K"]:
        """``Phi v``, monotone whatever the weights are; for many products see ``operator``."""
        return self.operator()(v)

    def operator(self) -> Callable[[Tensor], Tensor]:
        """The product with Phi, its norms and block diagonals computed once."""
        grams, label_gram = self._grams()
        scales, label_scale = self._scales(grams, label_gram)

        def product(v: Tensor) -> Tensor:
            shape, v = v.shape, v.reshape(-1, v.shape[-1])
            *tiers, label = self.split(v)
            x = [t * s[:, None, None] for t, s in zip(tiers, scales)]
            y = label * label_scale
            out = [torch.zeros_like(t) for t in x]
            for i, (down, same, stride) in enumerate(zip(self.down, self.same, self.strides)):
                pad, pad_same = down.shape[-1] // 2, same.shape[-1] // 2
                row = F.conv2d(x[i], down, stride=stride, padding=pad)
                row = row + F.conv2d(x[i + 1], same, padding=pad_same)
                out[i] = out[i] + F.conv_transpose2d(
                    row, down, stride=stride, padding=pad, output_padding=self._lost(i)
                )
                out[i + 1] = out[i + 1] + F.conv_transpose2d(row, same, padding=pad_same)
            row = x[-1].flatten(1) @ self.dense.T + y @ self.label.T
            out[-1] = out[-1] + (row @ self.dense).view_as(x[-1])
            back = [  # blockdiag(A^T A) x - A^T A x, node by node
                self._blocks(gram, t, g) - o for gram, t, o, g in zip(grams, x, out, self.groups_)
            ]
            parts = [t * s[:, None, None] for t, s in zip(back, scales)]
            last = (y @ label_gram - row @ self.label) * label_scale
            return self.join([*parts, last]).view(shape)

        return product

    def split(self, v: Float[Tensor, "b K"]) -> list[Tensor]:
        """Tiers ``"b channels side side"`` and the label ``"b classes"``."""
        pieces = v.split([n * k for n, k in self.runs], -1)
        tiers = [
            t.view(len(v), s, s, c).permute(0, 3, 1, 2) for t, (c, s) in zip(pieces, self.sizes)
        ]
        return [*tiers, pieces[-1]]

    def join(self, parts: Sequence[Tensor]) -> Float[Tensor, "b K"]:
        """The inverse of ``split``: the channels of a place one after another."""
        flat = [t.permute(0, 2, 3, 1).flatten(1) for t in parts[:-1]]
        return torch.cat([*flat, parts[-1]], -1)

    def _lost(self, i: int) -> int:
        """Places that a strided convolution does not reach back to by itself."""
        side, coarser, stride = self.sizes[i][1], self.sizes[i + 1][1], self.strides[i]
        return side - ((coarser - 1) * stride + 1)

    def _grams(self) -> tuple[list[Tensor], Tensor]:
        """``A_i^T A_i`` of every node, ``"nodes-a-place g g side side"``, and of the label."""
        grams = []
        for t, ((c, side), g) in enumerate(zip(self.sizes, self.groups_)):
            total = self.b.new_zeros(c // g, g, g, side, side)
            if t < len(self.down):
                ones = self.b.new_ones(1, 1, self.sizes[t + 1][1], self.sizes[t + 1][1])
                total = total + self._spread(
                    self.down[t], g, ones, stride=self.strides[t], output_padding=self._lost(t)
                )
            if t > 0:
                total = total + self._spread(self.same[t - 1], g, self.b.new_ones(1, 1, side, side))
            if t == len(self.sizes) - 1:
                D = self.dense.view(-1, c // g, g, side, side)
                total = total + torch.einsum("pnihw,pnjhw->nijhw", D, D)
            grams.append(total)
        return grams, self.label.T @ self.label

    @staticmethod
    def _spread(weight: Tensor, g: int, ones: Tensor, **where) -> Tensor:
        """Sum over the taps that reach a place of ``W_tap^T W_tap``, group by group."""
        k = weight.shape[-1]
        w = weight.unflatten(1, (-1, g))
        taps = torch.einsum("pniyx,pnjyx->nijyx", w, w).flatten(0, 2)[None]
        out = F.conv_transpose2d(ones, taps, padding=k // 2, **where)[0]
        return out.unflatten(0, (-1, g, g))

    def _scales(self, grams: list[Tensor], label_gram: Tensor) -> tuple[list[Tensor], Tensor]:
        """One factor a channel: ``min(1, sqrt(1 - m) / largest block norm)`` of its group."""
        limit, scales = math.sqrt(1 - self.m), []
        for gram, g in zip(grams, self.groups_):
            tops = torch.linalg.eigvalsh(gram.permute(0, 3, 4, 1, 2))[..., -1]
            norm = tops.flatten(1).amax(1).clamp_min(1e-24).sqrt()
            scales.append((limit / norm).clamp_max(1.0).repeat_interleave(g))
        top = torch.linalg.eigvalsh(label_gram)[-1].clamp_min(1e-24).sqrt()
        return scales, (limit / top).clamp_max(1.0)

    @staticmethod
    def _blocks(gram: Tensor, x: Tensor, g: int) -> Tensor:
        return torch.einsum("nijhw,bnjhw->bnihw", gram, x.unflatten(1, (-1, g))).flatten(1, 2)
