import math

import pytest
import torch

from lib.core.quadrature import (
    gaussian_mean,
    gaussian_mean2,
    gaussian_panels,
    hermite,
    hermite_coefficients,
)
from tests.helpers import assert_close, raises


def test_moments_are_exact():
    var = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    for power, moment in ((0, 1.0), (2, 1.0), (4, 3.0), (6, 15.0)):
        got = gaussian_mean(lambda u, k=power: u**k, var, nodes=8)
        assert_close(got, moment * var ** (power / 2), 1e-12, f"moment {power}")


def test_cosine_has_the_characteristic_function():
    var = torch.linspace(0, 4, 9, dtype=torch.float64)
    assert_close(gaussian_mean(torch.cos, var), torch.exp(-var / 2), 1e-13)


def test_a_pair_of_sines():
    a, b, c = 1.3, 0.7, -0.4
    cov = torch.tensor([[a, c], [c, b]], dtype=torch.float64)
    expected = torch.tensor(math.exp(-(a + b) / 2) * math.sinh(c), dtype=torch.float64)
    assert_close(gaussian_mean2(torch.sin, torch.sin, cov), expected, 1e-12)


def test_a_pair_of_different_functions_and_a_batch():
    cov = torch.tensor([[[1.0, 0.5], [0.5, 2.0]], [[2.0, 0.0], [0.0, 1.0]]])
    # E[u^2 v^2] = ab + 2c^2
    got = gaussian_mean2(torch.square, torch.square, cov, nodes=6)
    assert_close(got, torch.tensor([2.5, 2.0], dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("c", [0.0, 1.0, -1.0, 1 + 1e-9])
def test_degenerate_pairs(c):
    cov = torch.tensor([[1.0, c], [c, 1.0]], dtype=torch.float64)
    got = gaussian_mean2(lambda u: u, lambda u: u, cov)
    assert abs(got.item() - c) < 1e-8
    zero = torch.zeros(2, 2)
    assert gaussian_mean2(torch.cos, torch.cos, zero).item() == pytest.approx(1.0)


def test_gradients_are_finite_where_a_pair_is_one_variable():
    """Three variances, the pair moving as one: the derivative of E[tanh(u)^2]."""
    var = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    cov = var[:, None, None].expand(3, 2, 2)
    got = torch.autograd.grad(gaussian_mean2(torch.tanh, torch.tanh, cov).sum(), var)[0]
    assert torch.isfinite(got).all()
    square = lambda u: torch.tanh(u).square()
    apart = var.detach()[1:]
    numeric = (gaussian_mean(square, apart + 1e-5) - gaussian_mean(square, apart - 1e-5)) / 2e-5
    assert_close(got[1:], numeric, 1e-7)


def test_hermite_polynomials_are_orthonormal():
    z, w = gaussian_panels()
    h = hermite(9, z)
    assert_close((h * w) @ h.T, torch.eye(10, dtype=torch.float64), 1e-12)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(5, 1)
    by_hand = [x**0, x, (x**2 - 1) / 2**0.5, (x**3 - 3 * x) / 6**0.5]
    assert_close(hermite(3, x), torch.stack(by_hand), 1e-14)
    assert hermite(0, x).shape == (1, 5, 1) and hermite(4, x[:0]).shape == (5, 0, 1)


def test_hermite_coefficients():
    """Closed forms: the exponential's ``sqrt(e / k!)``, and the ReLU with its kink."""
    k = torch.arange(8, dtype=torch.float64)
    assert_close(hermite_coefficients(torch.exp, 7), (0.5 - torch.lgamma(k + 1) / 2).exp(), 1e-12)
    relu = [1 / math.sqrt(2 * math.pi), 0.5, 1 / math.sqrt(4 * math.pi), 0.0]
    got = hermite_coefficients(torch.relu, 3)
    assert_close(got, torch.tensor(relu, dtype=torch.float64), 1e-12)
    total = hermite_coefficients(torch.relu, 200).square().sum().item()
    assert 0.4999 < total < 0.5  # E relu(z)^2, from below


def test_errors():
    with raises(ValueError, match="variance cannot be negative"):
        gaussian_mean(torch.sin, torch.tensor(-1.0))
    with raises(ValueError, match="nodes=0"):
        gaussian_mean(torch.sin, torch.tensor(1.0), nodes=0)
    with raises(ValueError, match="degree=-1: allowed is 0 or more"):
        hermite_coefficients(torch.sin, -1)
    with raises(ValueError, match="no covariance"):
        gaussian_mean2(torch.sin, torch.sin, torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with raises(ValueError, match="negative"):
        gaussian_mean2(torch.sin, torch.sin, torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
