"""Votes of a singular kernel beside scikit-learn, KeOps and the matrix of all pairs.

``python -m tests.benchmarks.singular_optimality``; ratios above 1 mean that the peer takes longer.
The same work on both sides, on one thread of the CPU; results are compared before anything is
timed. KeOps takes part where it is installed (``pip install pykeops``); its compilation is not
counted. On a GPU: ``tests/benchmarks/kernels.py``.
"""

from __future__ import annotations

import torch
from sklearn.neighbors import KNeighborsClassifier

from lib.core.seeds import child
from lib.kernels.kernel_sum import kernel_sum
from lib.width.singular_optimality import (
    SET_B,
    VoteClassifier,
    deep_ntk,
    dual_coefficients,
    gaps,
    hermite_dual,
    hilbert_vote,
    optimal_activation,
)
from tests.benchmarks._timing import compare


def main(points: int = 2000) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    x, y = SET_B.sample(points, child(0, "bench"))
    x_test, _ = SET_B.sample(points, child(1, "bench"))
    values = torch.stack([y == -1, y == 1], 1).double()
    rows = [neighbors(x, y, x_test), koenigs_sum(x, values, x_test), depth(x, x_test)]
    try:
        from pykeops.torch import LazyTensor
    except ImportError:
        return rows
    i, j = LazyTensor(x_test[:, None].contiguous()), LazyTensor(x[None].contiguous())
    theirs = lambda: share((1 / ((i - j) ** 2).sum(-1)) @ values)
    ours = lambda: share(kernel_sum(x_test, x, values, "singular", order=2.0))
    rows.append(compare(f"vote |x - x'|^-2, {points} x {points}", "KeOps", ours, theirs, 1e-9))
    return rows


def share(scores: torch.Tensor) -> torch.Tensor:
    return scores[:, 0] / scores.sum(1)


def neighbors(x, y, x_test) -> dict:
    n = len(x)
    ours = VoteClassifier(hilbert_vote(2.0)).fit(x, y)
    peer = KNeighborsClassifier(n, weights=lambda r: r**-2.0, algorithm="brute")
    peer.fit(x.numpy(), y.numpy())
    return compare(
        f"vote |x - x'|^-2, {n} x {n}",
        "scikit-learn, KNeighborsClassifier",
        lambda: share(ours.scores(x_test)),
        lambda: peer.predict_proba(x_test.numpy())[:, 0],
        1e-9,
        repeats=3,
    )


def koenigs_sum(x, values, x_test) -> dict:
    """Blocks that stay in the cache, against the whole matrix layer by layer."""
    a = optimal_activation(2)
    dual, first = hermite_dual(a)[0], float(dual_coefficients(a)[1])

    def matrix():
        s = 1 - gaps(x_test, x)
        log = s.log()
        for _ in range(60):
            after = dual(s)
            log += (after / (s * first)).log()
            s = after
        return share((log - log.amax(1, keepdim=True)).exp() @ values)

    return compare(
        f"vote with the Koenigs function, {len(x)} x {len(x)}",
        "whole matrix, 60 layers",
        lambda: share(kernel_sum(x_test, x, values, "singular", dual=dual_coefficients(a))),
        matrix,
        1e-6,
        repeats=3,
    )


def depth(x, x_test) -> dict:
    """Nine hundred layers, of which all after about fifty are one step."""
    a = optimal_activation(2)
    gap = gaps(x_test[:200], x[:200])
    dual, slope = hermite_dual(a)

    def loop():
        s, ratio, log = 1 - gap, torch.ones_like(gap), (1 - gap).log()
        for _ in range(900):  # 2^-900 is still a number
            after = dual(s)
            ratio = 1 + ratio * s * slope(s) / after
            log += (after / s).log()
            s = after
        return log + ratio.log()

    return compare(
        "tangent kernel of 900 layers, 200 x 200",
        "the recursion, layer by layer",
        lambda: deep_ntk(gap, a, [900])[0][0],
        loop,
        1e-9,
        repeats=3,
    )


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
