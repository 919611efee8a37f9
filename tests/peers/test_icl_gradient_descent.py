"""The same predictions as PyTorch's SGD, scikit-learn's regressions and PyTorch's attention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.in_context.icl_gradient_descent import (
    LinearSelfAttention,
    constructed,
    gd_construction,
    ridge_predict,
    sample_regression,
    split,
)
from tests.helpers import assert_close

linear_model = pytest.importorskip("sklearn.linear_model", reason="pip install scikit-learn")


@pytest.fixture
def task():
    torch.set_default_dtype(torch.float64)
    tokens, _ = sample_regression(3, 8, 5, gen=torch.Generator().manual_seed(1))
    return tokens


@pytest.mark.parametrize("steps", [1, 4])
def test_layers_against_torch_sgd(task, steps):
    weights = gd_construction(5, [0.9, 0.4, 1.2, 0.7][:steps], 8)
    model = constructed(5, weights, dtype=torch.float64)
    x, y, xq = split(task)
    for i in range(3):
        linear = torch.nn.Linear(5, 1, bias=False)
        torch.nn.init.zeros_(linear.weight)
        optimizer = torch.optim.SGD(linear.parameters(), lr=1.0)
        for rate in (0.9, 0.4, 1.2, 0.7)[:steps]:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            (F.mse_loss(linear(x[i]), y[i]) / 2).backward()
            optimizer.step()
        assert_close(model(task)[i], linear(xq[i])[0].detach(), 1e-12)


def test_one_example_against_sklearn_sgd(task):
    one = torch.cat([task[:, :1], task[:, -1:]], 1)
    model = constructed(5, gd_construction(5, 0.3, 1), dtype=torch.float64)
    x, y, xq = (t.numpy() for t in split(one))
    for i in range(3):
        peer = linear_model.SGDRegressor(
            learning_rate="constant", eta0=0.3, penalty=None, fit_intercept=False
        ).partial_fit(x[i], y[i, :, 0])
        assert_close(model(one)[i], peer.predict(xq[i][None])[0], 1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_ridge_against_sklearn(task, lam):
    x, y, xq = split(task)
    for i in range(3):
        make = linear_model.Ridge(lam, fit_intercept=False) if lam else None
        peer = make or linear_model.LinearRegression(fit_intercept=False)
        peer.fit(x[i].numpy(), y[i, :, 0].numpy())
        expected = peer.predict(xq[i].numpy()[None])
        assert_close(ridge_predict(x, y, xq, lam)[i], np.asarray(expected), 1e-9)


def test_softmax_heads_against_torch(task):
    model = LinearSelfAttention(6, heads=2, softmax=True, std=0.7)
    context = task[:, None, :-1]
    q, k, v = (
        torch.einsum("hke,bnje->bhjk", w[0], t)
        for w, t in ((model.W_Q, task[:, None]), (model.W_K, context), (model.W_V, context))
    )
    heads = F.scaled_dot_product_attention(q, k, v)
    expected = task + torch.einsum("hek,bhjk->bje", model.P[0], heads)
    assert_close(model.states(task)[-1], expected.detach(), 1e-12)


def test_linear_heads_against_the_sum_over_keys(task):
    model = LinearSelfAttention(6, heads=2, std=0.7)
    expected = task.clone()
    for h in range(2):
        keys, values = task[:, :-1] @ model.W_K[0, h].T, task[:, :-1] @ model.W_V[0, h].T
        queries = task @ model.W_Q[0, h].T
        expected = expected + (queries @ keys.mT @ values) @ model.P[0, h].T
    assert_close(model.states(task)[-1], expected, 1e-12)
