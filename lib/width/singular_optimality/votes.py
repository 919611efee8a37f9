"""Classifiers: the three limits, the explicit singular weight, and the networks of finite depth.

A vote takes test points, training points and one-hot labels, and returns a score for each class, up
to a positive factor a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.kernels.kernel_sum import kernel_sum
from lib.models.infinite_width import nngp_ntk
from lib.width.singular_optimality.activations import (
    Coefficients,
    classify_activation,
    dual_coefficients,
)
from lib.width.singular_optimality.depth import (
    deep_ntk,
    gaps,
    log_diagonal,
    with_unit_diagonal,
)

Vote = Callable[[Tensor, Tensor, Tensor], Tensor]


class VoteClassifier:
    """``argmax`` of a vote's scores. With two classes: the sign of the paper's sums.

    ``vote`` is one of :func:`singular_vote`, :func:`hilbert_vote`, :func:`nearest_vote`,
    :func:`majority_vote`, :func:`ntk_vote`, or a function of test points, training points and
    one-hot labels.
    """

    def __init__(self, vote: Vote) -> None:
        self.vote = vote

    def fit(self, x: Float[Tensor, "n d"], y: Int[Tensor, "n"]) -> VoteClassifier:
        """Keep the points, which must be unit vectors.

        Raises:
            ValueError: no points, different lengths, or rows that are not of length one.
        """
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"x and y must have one length above 0, got {len(x)} and {len(y)}")
        _check_sphere("x", x)
        self.x, (self.classes, index) = x, torch.unique(y, return_inverse=True)
        self.onehot = torch.nn.functional.one_hot(index, len(self.classes)).to(x.dtype)
        return self

    def scores(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "m c"]:
        if not hasattr(self, "onehot"):
            raise RuntimeError("the classifier has no points yet: call fit(x, y) first")
        _check_sphere("x", x)
        return self.vote(x, self.x, self.onehot)

    def predict(self, x: Float[Tensor, "m d"]) -> Int[Tensor, "m"]:
        best = self.scores(x).argmax(1)
        return self.classes[best]

    def risk(self, x: Float[Tensor, "m d"], y: Int[Tensor, "m"]) -> float:
        """Share of ``y`` that is not predicted."""
        return (self.predict(x) != y).double().mean().item()


def _check_sphere(name: str, x: Tensor) -> None:
    off = (x.norm(dim=1) - 1).abs().max().item() if len(x) else 0.0
    if not off < 1e-4:
        raise ValueError(f"{name}: rows must have length 1, one is off by {off:.3g}")


def limit_vote(a: Coefficients) -> Vote:
    """The rule that the activation ends in.

    Raises:
        ValueError: an activation outside of the three cases.
    """
    kind = classify_activation(a)
    if kind not in ("1nn", "majority", "singular"):
        raise ValueError(f"activation: its limit is {kind!r}, not one of the three classifiers")
    return {"1nn": nearest_vote, "majority": majority_vote}.get(kind) or singular_vote(a)


def singular_vote(a: Coefficients, backend: str = "auto") -> Vote:
    """``sum_i y_i psi(x.x_i)``: every training point votes, with the Koenigs weight."""
    dual = dual_coefficients(a)
    return lambda x, z, y: kernel_sum(x, z, y, "singular", dual=dual, backend=backend)


def hilbert_vote(order: float, backend: str = "auto") -> Vote:
    """``sum_i y_i |x - x_i|^-order``: the explicit weight with the same singularity."""
    return lambda x, z, y: kernel_sum(x, z, y, "singular", order=order, backend=backend)


def nearest_vote(x: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """The nearest point alone votes; the first of equals."""
    nearest = [gaps(rows, z).argmin(1) for rows in x.split(max(1, 2**24 // len(z)))]
    return y[torch.cat(nearest)]


def majority_vote(x: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """Every point has the same vote, wherever it is."""
    return y.sum(0).expand(len(x), -1)


def ntk_vote(a: Coefficients, depth: int, solve: bool = True) -> Vote:
    """The network's kernel at a finite depth: ``K(x, X) K(X, X)^-1 y``, without a ridge.

    ``solve=False`` leaves out the inverse, which the growing diagonal makes a multiple of the
    identity: the paper's first step to the limit. Above some hundred layers it must be left out.
    Labels are centered at ``1 / c`` for c classes, which is the paper's -1 and +1 for two.

    Raises:
        ValueError: ``depth`` below 0, or too deep to solve in float64.
    """
    if depth < 0 or (solve and depth > 300):
        raise ValueError(f"depth={depth}: allowed are 0 to 300, and any depth with solve=False")

    def vote(x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        log, sign = (t[0] for t in deep_ntk(gaps(x, z), a, [depth]))
        y = y.double() - 1 / y.shape[1]
        if solve:
            own, own_sign = (t[0] for t in deep_ntk(gaps(z, z), a, [depth]))
            K = with_unit_diagonal(own_sign * (own - log_diagonal(a, depth)).exp())
            y = _solve(K, y)
        # The scale of a row is free, and only logarithms hold all of them.
        return (sign * (log - log.amax(1, keepdim=True)).exp()) @ y

    return vote


def answers_by_depth(
    a: Coefficients,
    depths: Sequence[int],
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    x_test: Float[Tensor, "m d"],
    solve_to: int = 64,
) -> dict[int, Int[Tensor, "m"]]:
    """Answers -1 or +1 of :func:`ntk_vote` at many depths, from one pass through the layers.

    The kernel matrix is solved with up to depth ``solve_to`` and left out beyond.

    Raises:
        ValueError: labels other than -1 and +1, different lengths, rows not of length one.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"x and y must have one length above 0, got {len(x)} and {len(y)}")
    _check_sphere("x", x)
    _check_sphere("x_test", x_test)
    if not set(y.unique().tolist()) <= {-1, 1}:
        raise ValueError(f"y: allowed are the labels -1 and 1, got {y.unique().tolist()}")
    solved = [L for L in depths if L <= solve_to]
    own = zip(*deep_ntk(gaps(x, x), a, solved), strict=True) if solved else ()
    weights = {L: y.double()[:, None] for L in depths}
    for L, (log, sign) in zip(solved, own):
        K = with_unit_diagonal(sign * (log - log_diagonal(a, L)).exp())
        weights[L] = _solve(K, weights[L])
    answers = {L: [] for L in depths}
    for rows in x_test.split(max(1, 2**17 // len(x))):  # pairs that stay in the cache
        for L, log, sign in zip(depths, *deep_ntk(gaps(rows, x), a, depths), strict=True):
            sums = (sign * (log - log.amax(1, keepdim=True)).exp()) @ weights[L]
            answers[L].append(torch.where(sums[:, 0] > 0, 1, -1))
    return {L: torch.cat(parts) for L, parts in answers.items()}


def relu_vote(depth: int) -> Vote:
    """The same for ``sqrt(2) relu``, whose dual is no polynomial; it ends in a majority vote.

    In the limit ``K_L / L`` is 3/4 on the diagonal plus 1/4 everywhere, but only to order ``1/L``,
    and later the closer two points are.
    """

    def vote(x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        scale = math.sqrt(x.shape[1])  # the recursion divides by the dimension
        kernel = lambda u: nngp_ntk(scale * u, scale * z, depth, "relu", 0.0, 2.0)[1].double()
        return kernel(x) @ _solve(kernel(z), y.double() - 1 / y.shape[1])

    return vote


def _solve(K: Float[Tensor, "n n"], y: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The solution of smallest norm, which gradient descent from zero finds.

    Shallow kernels of polynomials have a finite rank. Eigenvalues below 1e-10 of the largest count
    as zero.
    """
    values, vectors = torch.linalg.eigh(K)
    keep = values > 1e-10 * values[-1]
    return vectors[:, keep] @ ((vectors[:, keep].T @ y) / values[keep, None])


def agreement(a: Int[Tensor, "n"], b: Int[Tensor, "n"]) -> float:
    """Share of equal answers.

    Raises:
        ValueError: different shapes, or no answers.
    """
    if a.shape != b.shape or a.numel() == 0:
        raise ValueError(f"a and b: shapes {tuple(a.shape)} and {tuple(b.shape)} must be one")
    return (a == b).double().mean().item()
