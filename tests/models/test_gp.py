import math

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

from lib.models.gp import GP, kernel_ridge, laplace, rbf
from tests.helpers import assert_close, raises


@pytest.fixture
def data(gen):
    x = torch.randn(12, 2, generator=gen, dtype=torch.float64)
    return x, torch.sin(3 * x), torch.randn(5, 2, generator=gen, dtype=torch.float64)


def test_equals_scikit_learn(data):
    x, y, xs = data
    gp = GP(lambda a, b: rbf(a, b, 0.7), noise=0.1).fit(x, y)
    mean, cov = gp.predict(xs, cov=True)
    peer = GaussianProcessRegressor(RBF(0.7), alpha=0.1, optimizer=None).fit(x, y)
    peer_mean, peer_cov = peer.predict(xs, return_cov=True)
    assert_close(mean, peer_mean, 1e-10)
    assert_close(cov, peer_cov[..., 0], 1e-10)
    assert_close(gp.log_marginal(), peer.log_marginal_likelihood_value_, 1e-12)
    assert gp.jitter == 0.0


def test_ridge_equals_scikit_learn_and_the_posterior_mean(data):
    x, y, xs = data
    coefficients = kernel_ridge(laplace(x, x, 1.3), y, 0.2)
    got = laplace(xs, x, 1.3) @ coefficients
    kernel = lambda a, b: math.exp(-(float(((a - b) ** 2).sum()) ** 0.5) / 1.3)
    peer = KernelRidge(alpha=0.2, kernel=kernel).fit(x.numpy(), y.numpy())
    assert_close(got, peer.predict(xs.numpy()), 1e-10)
    assert_close(got, GP(lambda a, b: laplace(a, b, 1.3), 0.2).fit(x, y).predict(xs), 1e-12)


def test_without_noise_the_data_are_interpolated(data):
    x, y, _ = data
    mean, cov = GP(rbf).fit(x, y).predict(x, cov=True)
    assert_close(mean, y, 1e-6)
    assert cov.abs().max() < 1e-6


def test_samples_have_the_kernel_as_covariance(gen):
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    draws = GP(rbf).sample(x, 20000, gen)
    # Largest entry error over ten seeds: 0.03.
    assert (draws.T @ draws / 20000 - rbf(x, x)).abs().max() < 0.06


def test_data_sets_in_a_batch(data):
    x, y, xs = data
    pair = torch.stack([x, 2 * x])
    both = GP(rbf, 0.1).fit(pair, torch.stack([y, -y]))
    one = GP(rbf, 0.1).fit(2 * x, -y)
    assert_close(both.predict(torch.stack([xs, xs]))[1], one.predict(xs), 1e-12)
    assert_close(both.log_marginal()[1], one.log_marginal(), 1e-12)


def test_errors(data):
    x, y, _ = data
    with raises(ValueError, match="noise=-1"):
        GP(rbf, -1.0)
    with raises(ValueError, match="12 rows and y 11"):
        GP(rbf).fit(x, y[:11])
    with raises(ValueError, match="lam=-1"):
        kernel_ridge(rbf(x, x), y, -1.0)
    with raises(ValueError, match="not positive definite"):
        kernel_ridge(torch.ones(12, 12).double(), y, 0.0)
    with raises(ValueError, match="length=0"):
        rbf(x, x, 0.0)
