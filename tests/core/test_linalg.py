import torch

from lib.core.linalg import chol, random_orthogonal, ridge
from tests.helpers import assert_close, raises


def test_factor_of_a_definite_matrix_needs_no_jitter(gen):
    A = torch.randn(3, 6, 6, generator=gen, dtype=torch.float64)
    K = A @ A.mT + torch.eye(6)
    L, jitter = chol(K)
    assert jitter == 0.0
    assert_close(L @ L.mT, K, 1e-14)
    assert (L.triu(1) == 0).all()


def test_jitter_is_reported_and_small(gen):
    a = torch.randn(8, 3, generator=gen, dtype=torch.float64)
    K = a @ a.T  # rank 3 of 8
    L, jitter = chol(K)
    assert 0 < jitter <= 1e-10
    assert_close(L @ L.T, K, 1e-9)
    assert chol(K, jitter=1e-3)[1] == 1e-3


def test_errors():
    with raises(ValueError, match="square"):
        chol(torch.zeros(2, 3))
    with raises(ValueError, match="not positive definite"):
        chol(-torch.eye(3))
    with raises(ValueError, match="not finite"):
        chol(torch.full((2, 2), float("nan")))
    with raises(ValueError, match="jitter=-1"):
        chol(torch.eye(2), jitter=-1)


def test_random_orthogonal_rows_are_orthonormal_and_uniform(gen):
    Q = random_orthogonal(7, gen, k=3, dtype=torch.float64)
    assert_close(Q @ Q.T, torch.eye(3, dtype=torch.float64), 1e-14)
    # Under the Haar measure the trace has mean 0 and variance 1; without the sign fix it has not.
    traces = torch.stack([random_orthogonal(4, gen).trace() for _ in range(3000)])
    assert abs(traces.mean()) < 4 / 3000**0.5
    assert abs(traces.var() - 1) < 0.15
    for k in (0, 5):
        with raises(ValueError, match=f"k={k}"):
            random_orthogonal(4, gen, k)
    with raises(ValueError, match="n=0"):
        random_orthogonal(0, gen)


def test_ridge_solves_its_normal_equations_either_way_round(gen):
    for n, p in ((20, 6), (6, 20)):
        X = torch.randn(2, n, p, generator=gen, dtype=torch.float64)
        Y = torch.randn(2, n, 3, generator=gen, dtype=torch.float64)
        W = ridge(X, Y, 0.3)
        assert_close(X.mT @ (Y - X @ W), 0.3 * W, 1e-12)
        assert_close(ridge(X, Y, 0.0), torch.linalg.lstsq(X, Y, driver="gelsd").solution, 1e-10)
    with raises(ValueError, match="lam=-1"):
        ridge(X, Y, -1.0)
    with raises(ValueError, match="6 rows and Y 5"):
        ridge(X, Y[:, 1:], 1.0)
