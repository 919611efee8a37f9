import torch

from lib.core.linalg import chol
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
