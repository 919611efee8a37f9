"""The muP limit of linear networks of any depth: an ordinary network whose weights start as a tree.

The paper describes this limit by random variables, one coordinate of a vector each, whose list
grows with every step (Tensor Programs' rule for ``W x`` and ``W^T y``). For a linear network all
of them are Gaussian, and linear in a few independent ones. Written in those, the limit is a
network again. Take a hidden ``W`` "n n" with entries ``N(0, 1/n)`` and a vector ``x`` that does not
depend on it. ``W x`` is a fresh direction, as long as ``x`` and orthogonal to everything before;
``W^T W x`` is ``x`` plus a fresh direction; and so on. Each direction is a *word*: a column of
``W^1`` or a row of ``W^{L+1}``, and the hidden matrices applied to it in turn. Words are the nodes
of a tree, whose edges are the matrices' letters, and ``W^l`` takes a node to the sum of its
neighbors along edges of kind ``l``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.width.feature_learning.abc import check_inputs
from lib.width.feature_learning.limits import check_sizes

_MOST_WORDS = 2_000  # for one column of W^1; a layer has d times as many units


class DeepLinear(nn.Module):
    """``f(x) = alpha W^{L+1} W^L ... W^1 x``.

    In muP, written symmetrically: the entries of every ``W^l`` have variance ``sigma_l^2 / n``,
    and one learning rate without any power of ``n`` trains them all.

    Raises:
        ValueError: fewer than two matrices, or shapes that cannot be multiplied.
    """

    def __init__(self, weights: Sequence[Tensor], alpha: float = 1.0) -> None:
        super().__init__()
        shapes = [tuple(w.shape) for w in weights]
        matrices = len(shapes) >= 2 and all(len(shape) == 2 for shape in shapes)
        if not matrices or any(low[0] != up[1] for low, up in zip(shapes, shapes[1:])):
            raise ValueError(
                f"weights: shapes {shapes}; allowed are two matrices or more, (n_1, d), "
                "(n_2, n_1), ..., (o, n_L)"
            )
        self.weights = nn.ParameterList([nn.Parameter(w.clone()) for w in weights])
        self.alpha = alpha

    @classmethod
    def random(
        cls,
        d: int,
        o: int,
        n: int,
        depth: int,
        sigma: float | Sequence[float] = 1.0,
        alpha: float = 1.0,
        gen: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> DeepLinear:
        """A network of width ``n`` with ``depth`` hidden layers as it starts."""
        sigmas = _check(depth, sigma, d=d, o=o, n=n)
        widths = (d, *[n] * depth, o)
        return cls(
            [
                s / math.sqrt(n) * torch.randn(upper, lower, generator=gen, dtype=dtype)
                for s, lower, upper in zip(sigmas, widths, widths[1:])
            ],
            alpha,
        )

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch o"]:
        check_inputs(x, self.weights[0].shape[1])
        h = x
        for w in self.weights:
            h = nn.functional.linear(h, w)
        return self.alpha * h


class InfLinear(DeepLinear):
    """The muP limit of ``DeepLinear``: ordinary weights that start as the edges of a tree.

    Words up to ``length`` letters are kept. A step of SGD lengthens the words in use by ``L - 1``
    letters, so the function after ``t`` steps is exact for ``length >= t (L - 1)``; fewer letters
    are an approximation, and the error falls geometrically with their number. Momentum, weight
    decay and clipping of the gradient's norm act as in the wide network, since words are
    orthonormal. With one hidden layer there are no letters, and this is ``InfLinear1LP``.

    With two hidden layers the number of units grows like ``length (d + o) / 2`` a layer; with three
    or more the tree branches and grows exponentially.

    Args:
        depth: L, the number of hidden layers.
        sigma: ``sigma_1 ... sigma_{L+1}``, or one number for all.

    Raises:
        ValueError: sizes below 1, a negative ``length`` or ``sigma``, a wrong number of sigmas, a
            tree of more than 2,000 words in a layer.
    """

    def __init__(
        self,
        d: int,
        o: int,
        depth: int,
        length: int,
        sigma: float | Sequence[float] = 1.0,
        alpha: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        sigmas = _check(depth, sigma, d=d, o=o)
        start = tree_start(d, o, depth, length, dtype)
        super().__init__([s * w for s, w in zip(sigmas, start)], alpha)


def tree_start(
    d: int, o: int, depth: int, length: int, dtype: torch.dtype | None = None
) -> list[Float[Tensor, "_ _"]]:
    """``W^1 ... W^{L+1}`` of the limit at its start, for unit variances: zeros and ones.

    Words that begin with a column of ``W^1`` stand first in every layer, those that begin with a
    row of ``W^{L+1}`` after them. Every column has the same tree, hence the Kronecker products.
    """
    check_sizes(d=d, o=o, depth=depth)
    below, above = (word_tree(depth, root, length, dtype) for root in (0, depth - 1))
    hidden = [
        torch.block_diag(
            torch.kron(low, torch.eye(d, dtype=dtype)), torch.kron(high, torch.eye(o, dtype=dtype))
        )
        for low, high in zip(below, above)
    ]
    if depth == 1:
        bottom = top = d + o
        behind = d
    else:
        bottom, top = hidden[0].shape[1], hidden[-1].shape[0]
        behind = d * len(below[-1])  # words of W^1 in the last hidden layer
    first, last = torch.zeros(bottom, d, dtype=dtype), torch.zeros(o, top, dtype=dtype)
    first[:d].fill_diagonal_(1.0)
    last[:, behind : behind + o].fill_diagonal_(1.0)
    return [first, *hidden, last]


def word_tree(
    depth: int, root: int, length: int, dtype: torch.dtype | None = None
) -> list[Float[Tensor, "_ _"]]:
    """Adjacency of the words that begin with one vector in hidden layer ``root`` (from 0).

    Returns:
        One matrix "upper lower" for each hidden weight: 1 where it takes a word to a word.

    Raises:
        ValueError: a root that is no hidden layer, a negative ``length``, more than 2,000 words.
    """
    if not 0 <= root < depth:
        raise ValueError(f"root={root}: allowed are the hidden layers 0 to {depth - 1}")
    if length < 0:
        raise ValueError(f"length={length}: allowed is 0 or more letters")
    words = fresh = [int(layer == root) for layer in range(depth)]
    for _ in range(length):
        fresh = [a + b for a, b in zip([0, *fresh[:-1]], [*fresh[1:], 0])]
        words = [a + b for a, b in zip(words, fresh)]
        if max(words) > _MOST_WORDS:
            raise ValueError(
                f"length={length}, depth={depth}: more than {_MOST_WORDS:,} words in a layer; "
                "allowed are fewer letters (the error falls geometrically with them)"
            )
    matrices = [torch.zeros(up, low, dtype=dtype) for low, up in zip(words, words[1:])]
    for matrix, pairs in zip(matrices, word_edges(depth, root, length)):
        for row, column in pairs:
            matrix[row, column] = 1.0
    return matrices


def word_edges(depth: int, root: int, length: int) -> list[list[tuple[int, int]]]:
    """Edges ``(word in the upper layer, word in the lower layer)`` of the tree, for each weight.

    Words are numbered in every layer as they appear. Every word gets a longer one along each
    matrix that its layer touches, also along the one that made it.
    """
    count = [int(layer == root) for layer in range(depth)]
    edges: list[list[tuple[int, int]]] = [[] for _ in range(depth - 1)]
    ends = [(root, 0)]
    for _ in range(length):
        longer = []
        for layer, word in ends:
            for other in (layer - 1, layer + 1):  # W^T leads down, W leads up
                if 0 <= other < depth:
                    new, count[other] = count[other], count[other] + 1
                    pair = (new, word) if other > layer else (word, new)
                    edges[min(layer, other)].append(pair)
                    longer.append((other, new))
        ends = longer
    return edges


def _check(depth: int, sigma: float | Sequence[float], **sizes: int) -> list[float]:
    check_sizes(depth=depth, **sizes)
    sigmas = [sigma] * (depth + 1) if isinstance(sigma, (int, float)) else list(sigma)
    if len(sigmas) != depth + 1 or not all(0 <= s < math.inf for s in sigmas):
        raise ValueError(
            f"sigma={sigma}: allowed is one number >= 0, or {depth + 1} of them for depth={depth}"
        )
    return [float(s) for s in sigmas]


__all__ = ["DeepLinear", "InfLinear", "tree_start", "word_edges", "word_tree"]
