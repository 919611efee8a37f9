import math

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

from lib.models.gp import GP, kernel_ridge, laplace, matern, rbf, sparse_predict
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


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_matern_equals_scikit_learn(data, nu):
    from sklearn.gaussian_process.kernels import Matern

    x, _, xs = data
    assert_close(matern(x, xs, 0.7, nu), Matern(0.7, nu=nu)(x, xs), 1e-12)
    with raises(ValueError, match="nu=2"):
        matern(x, xs, nu=2)


def test_sparse_prediction_with_the_exact_posterior_is_exact(data):
    x, y, xs = data
    gp = GP(rbf, noise=0.1).fit(x, y)
    at_data = gp.predict(x, cov=True)
    K = rbf(x, x)
    mean, variance = sparse_predict(
        K, rbf(x, xs), torch.ones(len(xs)).double(), *at_data, jitter=1e-12
    )
    exact = gp.predict(xs, cov=True)
    assert_close(mean, exact[0], 1e-6)
    assert_close(variance, exact[1].diagonal(), 1e-6)


def test_sparse_prediction_from_the_prior_is_the_prior(data):
    x, _, xs = data
    z = x[:5]
    Kzz, kxx = rbf(z, z), torch.ones(len(xs), dtype=torch.float64)
    mean, variance = sparse_predict(Kzz, rbf(z, xs), kxx, torch.zeros(5, 2).double(), Kzz)
    assert mean.shape == (5, 2)
    assert (mean == 0).all()
    assert_close(variance, kxx, 1e-10)
    with raises(ValueError, match="jitter=0"):
        sparse_predict(-Kzz, rbf(z, xs), kxx, torch.zeros(5, 2).double(), Kzz, jitter=0)
    with raises(ValueError, match="jitter=-1"):
        sparse_predict(Kzz, rbf(z, xs), kxx, torch.zeros(5, 2).double(), Kzz, jitter=-1)
