import pytest
import torch

from lib.core.linalg import random_orthogonal
from lib.core.similarity import cka, cka_gram
from tests.helpers import assert_close, raises


def features(gen, n=60, p=5, q=3):
    x = torch.randn(n, p, generator=gen, dtype=torch.float64)
    return x, x[:, :q] + 0.3 * torch.randn(n, q, generator=gen, dtype=torch.float64)


def test_linear_cka_is_the_ratio_of_covariances(gen):
    x, y = features(gen)
    a, b = x - x.mean(0), y - y.mean(0)
    expected = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert_close(cka(x, y), expected, 1e-12)
    assert_close(cka(x + 7, y - 3), expected, 1e-9)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [False, True])
def test_invariances_and_symmetry(gen, kernel, debiased):
    x, y = features(gen)
    options = {"kernel": kernel, "debiased": debiased}
    value = cka(x, y, **options)
    Q = random_orthogonal(5, gen, dtype=torch.float64)
    assert_close(cka(x @ Q * 4, y, **options), value, 1e-9)
    assert_close(cka(y, x, **options), value, 1e-12)
    assert_close(cka(x, x, **options), torch.ones((), dtype=torch.float64), 1e-12)
    stacked = cka(torch.stack([x, x]), torch.stack([y, x[:, :3]]), **options)
    assert_close(stacked[0], value, 1e-12)


def test_debiased_estimate_is_zero_in_the_mean_for_independent_features(gen):
    x = torch.randn(300, 20, 40, generator=gen, dtype=torch.float64)
    y = torch.randn(300, 20, 40, generator=gen, dtype=torch.float64)
    values = cka(x, y, debiased=True)
    assert abs(values.mean()) < 4 * values.std() / 300**0.5
    with pytest.warns(UserWarning, match="20 samples for 40 features"):
        assert cka(x, y).mean() > 0.5


def test_gradient(gen):
    x, y = (t[:12].clone().requires_grad_() for t in features(gen))
    for options in ({"kernel": "rbf"}, {"debiased": True}):
        assert torch.autograd.gradcheck(lambda a, b, o=options: cka(a, b, **o), (x, y))


def test_errors(gen):
    x, y = features(gen)
    with raises(ValueError, match="60 rows and y 59"):
        cka(x, y[1:])
    with raises(ValueError, match="kernel='cubic'"):
        cka(x, y, kernel="cubic")
    with raises(ValueError, match="width=0"):
        cka(x, y, kernel="rbf", width=0)
    with raises(ValueError, match="square"):
        cka_gram(torch.eye(3), torch.eye(4))
    with raises(ValueError, match="3 samples"):
        cka_gram(torch.eye(3), torch.eye(3), debiased=True)
