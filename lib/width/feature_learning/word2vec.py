"""Word2Vec's CBOW at finite and infinite width, its three losses, and analogies."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.width.feature_learning.limits import inf_linear_start


class CBOW(nn.Module):
    """Scores of the word in the middle, ``V`` times the mean of the context's columns of ``U``.

    This is the linear one-hidden-layer network on an average of one-hot inputs. Rows of ``U``
    "vocab n" are the embeddings. Gradients are those of the loss; the first Word2Vec code leaves
    the mean out of U's gradient, which multiplies U's rate by the number of context words.

    Args:
        dim: the width n, or ``math.inf`` for the muP limit, an ordinary network whose width is
            ``vocab + outputs``.
        outputs: rows of V: ``vocab`` (the default) for softmax and negative sampling,
            ``vocab - 1`` for the inner nodes of a hierarchical softmax.
        parametrization: ``"mup"``: entries of variance ``sigma^2 / n`` and one rate for every
            width. ``"ntk"``: the same weights with the output times ``m^{1/2}`` and the rate
            times ``1/m``, ``m = n / base``, which is the NTK parametrization shifted; the two
            are one network at ``n = base``.

    Attributes:
        rate_factor: what to multiply the learning rate by.
    """

    def __init__(
        self,
        vocab: int,
        dim: int | float = math.inf,
        sigma1: float = 1.0,
        sigma2: float = 1.0,
        outputs: int | None = None,
        parametrization: str = "mup",
        base: int = 64,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        outputs = vocab if outputs is None else outputs
        if vocab < 2 or outputs < 1:
            raise ValueError(
                f"vocab={vocab}, outputs={outputs}: allowed are vocab >= 2, outputs >= 1"
            )
        if dim != math.inf and not (dim >= 1 and dim == int(dim)):
            raise ValueError(f"dim={dim}: allowed is a whole number >= 1, or math.inf")
        if parametrization not in ("mup", "ntk"):
            raise ValueError(f"parametrization={parametrization!r}: allowed are 'mup' and 'ntk'")
        if base < 1:
            raise ValueError(f"base={base}: allowed is 1 or more")
        if parametrization == "ntk" and dim == math.inf:
            raise ValueError("dim=inf: in the NTK limit the embeddings stay as they start")
        self.vocab, self.dim = vocab, dim
        self.multiplier, self.rate_factor = 1.0, 1.0
        if dim == math.inf:
            U, V = inf_linear_start(vocab, outputs, sigma1, sigma2)
            U = U.T.contiguous()
        else:
            U = sigma1 / math.sqrt(dim) * torch.randn(vocab, int(dim), generator=gen)
            V = sigma2 / math.sqrt(dim) * torch.randn(outputs, int(dim), generator=gen)
            if parametrization == "ntk":
                self.multiplier, self.rate_factor = math.sqrt(dim / base), base / dim
        self.U, self.V = nn.Parameter(U), nn.Parameter(V)

    def hidden(self, context: Int[Tensor, "batch w"]) -> Float[Tensor, "batch n"]:
        """The mean of the context words' embeddings."""
        if context.ndim != 2 or not context.shape[1]:
            raise ValueError(
                f"context must be (batch, w) with w >= 1 words, got {tuple(context.shape)}"
            )
        return F.embedding_bag(context, self.U, mode="mean")

    def forward(self, context: Int[Tensor, "batch w"]) -> Float[Tensor, "batch outputs"]:
        return self.multiplier * self.hidden(context) @ self.V.T

    def scores(
        self, context: Int[Tensor, "batch w"], rows: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        """Only the outputs ``rows``, for negative sampling and the hierarchical softmax."""
        return self.multiplier * torch.einsum("bn,bkn->bk", self.hidden(context), self.V[rows])

    def embeddings(self) -> Float[Tensor, "vocab n"]:
        """Rows of U; at infinite width their inner products are those of the limit."""
        return self.U.detach()

    def compressed(self) -> CBOW:
        """The same network in at most ``vocab + outputs`` units (see ``Linear1LP.compressed``)."""
        small = CBOW(self.vocab, 1, outputs=len(self.V))
        U, V = self.U.detach(), self.V.detach()
        Q = torch.linalg.qr(torch.cat([U, V]).T).Q
        small.U, small.V = nn.Parameter(U @ Q), nn.Parameter(V @ Q)
        small.dim, small.multiplier, small.rate_factor = self.dim, self.multiplier, self.rate_factor
        return small


# Losses, each a mean over the batch.


def softmax_loss(
    model: CBOW, context: Int[Tensor, "batch w"], center: Int[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """Cross-entropy over the whole vocabulary."""
    return F.cross_entropy(model(context), center)


def negative_loss(
    model: CBOW,
    context: Int[Tensor, "batch w"],
    center: Int[Tensor, "batch"],
    negatives: Int[Tensor, "batch k"],
) -> Float[Tensor, ""]:
    """Logistic loss of the center word against ``k`` drawn words, summed over them.

    A drawn word that is the center itself is left out, as in the original code.
    """
    rows = torch.cat([center[:, None], negatives], 1)
    sign = torch.full(rows.shape, -1.0, device=rows.device)
    sign[:, 0] = 1.0
    loss = F.softplus(-sign * model.scores(context, rows))
    used = torch.ones_like(loss)
    used[:, 1:] = (negatives != center[:, None]).to(loss.dtype)
    return (loss * used).sum(1).mean()


def unigram_table(counts: Int[Tensor, "vocab"], power: float = 0.75) -> Float[Tensor, "vocab"]:
    """The distribution of negative words: counts to the power 3/4, normalized."""
    if (counts < 0).any() or counts.sum() == 0:
        raise ValueError("counts must be 0 or more, and not all 0")
    weight = counts.double() ** power * (counts > 0)
    return (weight / weight.sum()).float()


class Tree(NamedTuple):
    """Paths of a Huffman tree: each word's inner nodes and turns, padded with -1 and 0."""

    nodes: Int[Tensor, "vocab depth"]
    turns: Int[Tensor, "vocab depth"]


def huffman(counts: Int[Tensor, "vocab"]) -> Tree:
    """The tree of the hierarchical softmax: rare words get long paths.

    Raises:
        ValueError: fewer than two words, a negative count.
    """
    vocab = len(counts)
    if vocab < 2:
        raise ValueError(f"counts: a tree needs two words or more, got {vocab}")
    if (counts < 0).any():
        raise ValueError(f"counts: allowed is 0 or more, got {int(counts.min())}")
    heap = [(int(count), i) for i, count in enumerate(counts.tolist())]
    heapq.heapify(heap)
    parent: dict[int, tuple[int, int]] = {}
    for node in range(vocab, 2 * vocab - 1):
        (c0, left), (c1, right) = heapq.heappop(heap), heapq.heappop(heap)
        parent[left], parent[right] = (node, 0), (node, 1)
        heapq.heappush(heap, (c0 + c1, node))
    paths = []
    for word in range(vocab):
        path, at = [], word
        while at in parent:
            at, turn = parent[at]
            path.append((at - vocab, turn))
        paths.append(path[::-1])
    nodes = torch.full((vocab, max(map(len, paths))), -1)
    turns = torch.zeros_like(nodes)
    for word, path in enumerate(paths):
        nodes[word, : len(path)] = torch.tensor([n for n, _ in path])
        turns[word, : len(path)] = torch.tensor([t for _, t in path])
    return Tree(nodes, turns)


def hierarchical_loss(
    model: CBOW, context: Int[Tensor, "batch w"], center: Int[Tensor, "batch"], tree: Tree
) -> Float[Tensor, ""]:
    """Minus the log probability of the center: a product of turns along its path.

    The model has ``outputs = vocab - 1``, one row of V for each inner node.
    """
    if len(model.V) != len(tree.nodes) - 1:
        raise ValueError(
            f"model: the tree has {len(tree.nodes) - 1} inner nodes, V has {len(model.V)} rows"
        )
    nodes, turns = tree.nodes[center], tree.turns[center]
    used = nodes >= 0
    score = model.scores(context, nodes.clamp_min(0))
    return (F.softplus((2 * turns - 1) * score) * used).sum(1).mean()


# A small language of relations, with words on which analogies can be asked.


class Relations(NamedTuple):
    """``bases x attributes`` target words and marker words of each base and each attribute.

    A window has one target word, two markers of its base and two of its attribute, in random
    order; the middle one is to be predicted from the four others. Words are numbers: target
    ``(i, a)`` is ``i * attributes + a``; the markers of the bases and then those of the attributes
    follow.
    """

    bases: int = 20
    attributes: int = 4
    markers: int = 3

    @property
    def targets(self) -> int:
        """The number of target words."""
        return self.bases * self.attributes

    @property
    def vocab(self) -> int:
        """The number of words."""
        return self.targets + self.markers * (self.bases + self.attributes)

    def word(self, number: int) -> str:
        """A name: ``b3a1`` is a target, ``b3/0`` and ``a1/2`` are markers."""
        if number < self.targets:
            return "b{}a{}".format(*divmod(number, self.attributes))
        owner, k = divmod(number - self.targets, self.markers)
        return f"b{owner}/{k}" if owner < self.bases else f"a{owner - self.bases}/{k}"

    def windows(self, n: int, gen: torch.Generator) -> tuple[Int[Tensor, "n 4"], Int[Tensor, "n"]]:
        """``(context, center)`` of ``n`` windows.

        Raises:
            ValueError: fewer than two markers, or no window, base or attribute.
        """
        if self.markers < 2 or min(n, self.bases, self.attributes) < 1:
            raise ValueError(
                f"n={n}, {self}: allowed are markers >= 2 and 1 or more of everything else"
            )
        i = torch.randint(self.bases, (n,), generator=gen)
        a = torch.randint(self.attributes, (n,), generator=gen)

        def two_markers(owner: Tensor) -> Tensor:
            pick = torch.rand(n, self.markers, generator=gen).argsort(1)[:, :2]
            return self.targets + self.markers * owner[:, None] + pick

        words = torch.cat(
            [(i * self.attributes + a)[:, None], two_markers(i), two_markers(self.bases + a)], 1
        )
        words = words.gather(1, torch.rand(n, 5, generator=gen).argsort(1))
        return words[:, [0, 1, 3, 4]], words[:, 2]

    def questions(self, n: int, gen: torch.Generator) -> Int[Tensor, "n 4"]:
        """``n`` quadruples ``(i,a), (i,b), (j,b), (j,a)`` with ``i != j``, ``a != b``."""
        if n < 0 or self.bases < 2 or self.attributes < 2:
            raise ValueError(
                f"n={n}, {self}: allowed is n >= 0; an analogy needs two bases and two attributes"
            )

        def two_of(k: int) -> Tensor:
            first = torch.randint(k, (n,), generator=gen)
            other = torch.randint(1, k, (n,), generator=gen)
            return torch.stack([first, (first + other) % k])

        (i, j), (a, b) = two_of(self.bases), two_of(self.attributes)
        return torch.stack(
            [self.attributes * base + att for base, att in ((i, a), (i, b), (j, b), (j, a))], 1
        )


def analogy_answers(
    embeddings: Float[Tensor, "vocab n"],
    questions: Int[Tensor, "q 4"],
    candidates: Int[Tensor, "k"] | None = None,
) -> Int[Tensor, "q"]:
    """The word nearest to ``u_1 - u_2 + u_3``, by cosine, among ``candidates``.

    Embeddings get unit norm first; the three words of the question are not allowed as answers.

    Raises:
        ValueError: a number that is no word, a question without a candidate.
    """
    vocab = len(embeddings)
    for name, words in {"questions": questions, "candidates": candidates}.items():
        if words is not None and words.numel() and not 0 <= words.min() <= words.max() < vocab:
            raise ValueError(f"{name}: words are numbers from 0 to {vocab - 1}")
    unit = F.normalize(embeddings, dim=1)
    first, second, third = (unit[questions[:, k]] for k in range(3))
    cosines = (first - second + third) @ unit.T
    if candidates is not None:
        closed = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
        closed[candidates] = False
        cosines = cosines.masked_fill(closed, -math.inf)
    cosines = cosines.scatter(1, questions[:, :3], -math.inf)
    if len(cosines) and cosines.amax(1).min() == -math.inf:
        raise ValueError("candidates: a question has no word left that may be its answer")
    return cosines.argmax(1)


def analogy_accuracy(
    embeddings: Float[Tensor, "vocab n"],
    questions: Int[Tensor, "q 4"],
    candidates: Int[Tensor, "k"] | None = None,
) -> float:
    """Share of questions whose fourth word is the answer."""
    answers = analogy_answers(embeddings, questions, candidates)
    return (answers == questions[:, 3]).float().mean().item()


# Running text, for the full-scale experiment.


def subsample(
    tokens: Int[Tensor, "n"], threshold: float, gen: torch.Generator
) -> Bool[Tensor, "n"]:
    """Which tokens to keep: a word of frequency f with probability ``sqrt(t/f) + t/f``."""
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: allowed is more than 0")
    frequency = tokens.bincount().double() / len(tokens)
    keep = (threshold / frequency).sqrt() + threshold / frequency
    return torch.rand(len(tokens), generator=gen).to(tokens.device) < keep[tokens]


def text_windows(
    tokens: Int[Tensor, "n"], at: Int[Tensor, "batch"], window: int
) -> tuple[Int[Tensor, "batch w"], Int[Tensor, "batch"]]:
    """``(context, center)``: the ``window`` words on either side of the positions ``at``.

    Raises:
        ValueError: a position closer than ``window`` to an end of the text.
    """
    if window < 1:
        raise ValueError(f"window={window}: allowed is 1 or more")
    if len(at) and not window <= int(at.min()) <= int(at.max()) < len(tokens) - window:
        raise ValueError(f"at: allowed are {window} to {len(tokens) - window - 1}")
    offsets = torch.tensor([k for k in range(-window, window + 1) if k], device=tokens.device)
    return tokens[at[:, None] + offsets], tokens[at]


def most_common(words: Sequence[str], size: int) -> tuple[list[str], Int[Tensor, "n"]]:
    """The ``size`` most frequent words, and the text in their numbers, other words left out."""
    if size < 1:
        raise ValueError(f"size={size}: allowed is 1 or more")
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    kept = sorted(counts, key=lambda w: (-counts[w], w))[:size]
    number = {word: i for i, word in enumerate(kept)}
    return kept, torch.tensor([number[w] for w in words if w in number], dtype=torch.long)
