"""The machine's two ends beside scikit-learn and GPyTorch.

pip install gpytorch
"""

import math

import numpy as np
import pytest
import torch

from lib.core.seeds import child
from lib.width.deep_kernel_machine import SparseDKM, nngp_predict, squared_exponential
from tests.helpers import assert_close


def data(n=20, d=3):
    gen = child(0, "peer")
    x, new = (torch.randn(m, d, generator=gen, dtype=torch.float64) for m in (n, 7))
    return x, torch.sin(x[:, :1]), new


def test_no_learned_layer_is_gaussian_process_regression():
    learn = pytest.importorskip("sklearn.gaussian_process")
    x, y, new = data()
    mean, var = nngp_predict(x, y, new, 0, squared_exponential(0.8), noise=0.1, jitter=0.0)
    kernel = learn.kernels.RBF(0.8 * math.sqrt(3))
    peer = learn.GaussianProcessRegressor(kernel, alpha=0.1, optimizer=None)
    peer.fit(x.numpy(), y[:, 0].numpy())
    peer_mean, std = peer.predict(new.numpy(), return_std=True)
    assert_close(mean[:, 0], peer_mean, 1e-8)
    assert_close(var.sqrt(), std, 1e-8)


def svgp(gpytorch, inducing, mean, S):
    """GPyTorch's sparse variational process with the twice composed kernel and whitening."""

    class Composed(gpytorch.kernels.Kernel):
        def forward(self, x1, x2, diag=False, **_):
            if diag:
                return torch.ones(len(x1), dtype=x1.dtype)
            square = torch.cdist(x1, x2).square() / x1.shape[1]
            return torch.exp(torch.exp(-square / 2) - 1)

    class Model(gpytorch.models.ApproximateGP):
        def __init__(self):
            law = gpytorch.variational.CholeskyVariationalDistribution(len(inducing))
            super().__init__(
                gpytorch.variational.VariationalStrategy(
                    self, inducing, law, learn_inducing_locations=True, jitter_val=1e-6
                )
            )
            self.mean, self.cov = gpytorch.means.ZeroMean(), Composed()

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.cov(x))

    model = Model().double()
    law = model.variational_strategy._variational_distribution
    with torch.no_grad():
        law.variational_mean.copy_(mean[:, 0])
        law.chol_variational_covar.copy_(S)
        model.variational_strategy.variational_params_initialized.fill_(1)
    return model


def test_an_infinite_price_is_a_sparse_variational_process():
    """The bound of GPyTorch at the same variational parameters, and its predictions."""
    gpytorch = pytest.importorskip("gpytorch")
    x, y, new = data()
    inducing = x[:6].clone()
    ours = SparseDKM(
        inducing, 1, squared_exponential(), math.inf, 1, likelihood="gaussian", jitter=1e-6
    )
    gen = child(0, "parameters")
    with torch.no_grad():
        ours.mean.copy_(torch.randn(6, 1, generator=gen))
        lower = torch.randn(6, 6, generator=gen).tril().double()
        ours.S.copy_(lower - 2 * torch.diag(lower.diagonal().clamp(max=0)))
    peer = svgp(gpytorch, inducing, ours.mean.detach(), ours.S.detach())
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.1
    bound = gpytorch.mlls.VariationalELBO(likelihood, peer, num_data=len(x))
    assert_close(
        ours.elbo(x, y, len(x), gen).detach(), bound(peer(x), y[:, 0]).detach(), 1e-4, "bound"
    )
    peer.eval()
    with torch.no_grad():
        mean, var = ours(new)
        law = peer(new)
    assert_close(mean[:, 0], np.asarray(law.mean), 1e-4, "mean")
    assert_close(var, np.asarray(law.variance), 1e-4, "variance")
