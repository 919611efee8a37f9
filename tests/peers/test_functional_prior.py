"""The same distances as POT (``pip install pot``) and the same posteriors as gpytorch.

gpytorch (``pip install gpytorch``) is the exact posterior that the chapter measures against.
"""

import math

import pytest
import torch

from lib.core.seeds import child
from lib.models.gp import GP
from lib.width.functional_prior import GPPrior, critic_w1, empirical_w1_1d
from tests.helpers import assert_close


def test_w1_against_pot():
    ot = pytest.importorskip("ot", reason="see the top of this file")
    f, g = (torch.randn(300, 5, generator=child(0, k), dtype=torch.float64) for k in "fg")
    truth = ot.wasserstein_1d(f.numpy(), 1.5 * g.numpy(), p=1)
    assert_close(empirical_w1_1d(f, 1.5 * g), torch.as_tensor(truth), 1e-10)


def test_a_critic_in_three_dimensions_against_pot():
    ot = pytest.importorskip("ot", reason="see the top of this file")
    f = torch.randn(200, 3, generator=child(0, "f")) + 1.0
    g = torch.randn(200, 3, generator=child(0, "g"))
    truth = ot.emd2([], [], ot.dist(f.numpy(), g.numpy(), metric="euclidean"))
    found = critic_w1(f, g, child(0, "critic"), steps=300)
    assert 0.6 * truth < found <= 1.1 * truth + 0.05


def test_posterior_against_gpytorch():
    gpytorch = pytest.importorskip("gpytorch", reason="see the top of this file")
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    y, grid = torch.sin(2 * x), torch.linspace(-3, 3, 11, dtype=torch.float64)[:, None]

    class Exact(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(x, y[:, 0], likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, inputs):
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(inputs), self.covar_module(inputs)
            )

    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model = Exact(likelihood).double()
    model.covar_module.outputscale, model.covar_module.base_kernel.lengthscale = 1.44, 0.7
    likelihood.noise = 0.01
    model.eval()
    with torch.no_grad():
        theirs = model(grid)
    prior = GPPrior(length=0.7, amplitude=math.sqrt(1.44))
    mean, cov = GP(prior.covariance, 0.01).fit(x, y).predict(grid, cov=True)
    assert_close(mean[:, 0], theirs.mean, 1e-5)
    assert_close(cov, theirs.covariance_matrix, 1e-5)
