"""The same votes from scikit-learn, and from KeOps where it is installed (`pip install pykeops`).

KeOps compiles its formulas with a C++ compiler at the first call.
"""

import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from lib.core.seeds import child
from lib.kernels.kernel_sum import kernel_sum
from lib.width.singular_optimality import (
    SET_A,
    SET_B,
    VoteClassifier,
    agreement,
    hilbert_vote,
    nearest_vote,
    ntk_vote,
)
from tests.helpers import assert_close


def data(mixture, n, m):
    return *mixture.sample(n, child(0, "train")), mixture.sample(m, child(0, "test"))[0]


@pytest.mark.parametrize("mixture", [SET_A, SET_B])
@pytest.mark.parametrize("order", [1.0, 2.0, 4.0])
def test_hilbert_vote_is_a_weighted_neighbor_rule(mixture, order):
    x, y, x_test = data(mixture, 400, 300)
    peer = KNeighborsClassifier(len(x), weights=lambda r: r**-order, algorithm="brute")
    peer.fit(x.numpy(), y.numpy())
    ours = VoteClassifier(hilbert_vote(order)).fit(x, y)
    assert (ours.predict(x_test).numpy() == peer.predict(x_test.numpy())).all()
    scores = ours.scores(x_test)
    assert_close(
        scores / scores.sum(1, keepdim=True), peer.predict_proba(x_test.numpy()), 1e-9, "shares"
    )


def test_nearest_neighbor_and_its_network():
    x, y, x_test = data(SET_A, 400, 300)
    peer = KNeighborsClassifier(1).fit(x.numpy(), y.numpy()).predict(x_test.numpy())
    assert (VoteClassifier(nearest_vote).fit(x, y).predict(x_test).numpy() == peer).all()
    deep = VoteClassifier(ntk_vote(torch.tensor([0.0, 0.0, 1.0]), 25, solve=False)).fit(x, y)
    assert agreement(deep.predict(x_test), torch.from_numpy(peer)) >= 0.995


def test_keops():
    keops = pytest.importorskip("pykeops.torch", reason="pip install pykeops")
    x, y, x_test = data(SET_B, 200, 100)
    values = torch.stack([y == -1, y == 1], 1).double()
    i, j = keops.LazyTensor(x_test[:, None].contiguous()), keops.LazyTensor(x[None].contiguous())
    square = ((i - j) ** 2).sum(-1)
    ours = kernel_sum(x_test, x, values, "singular", order=2.0)
    theirs = (1 / square) @ values
    assert_close(ours[:, 0] / ours.sum(1), theirs[:, 0] / theirs.sum(1), 1e-9)
    for f, formula in (("relu", (i | j).relu()), ("exp", (i | j).exp())):
        assert_close(kernel_sum(x_test, x, values, f), formula @ values, 1e-12)
    assert math.isfinite(ours.sum())
