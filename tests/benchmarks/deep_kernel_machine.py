"""The divergence, the two limits without learning, and the optimizer's coordinates, timed.

``python -m tests.benchmarks.deep_kernel_machine``; ratios above 1 mean that the other side takes
longer. The same numbers first, then the same work in turn, on one thread. GPyTorch's rows are left
out where it is not installed. No library has the learned layers, so their row compares the search
in whitened coordinates with the same search over the factors themselves, both to the same
objective.
"""

from __future__ import annotations

import math

import torch

from lib.core.data.points import gaussian_clusters
from lib.core.seeds import child
from lib.width.deep_kernel_machine import (
    DeepKernelMachine,
    Gaussian,
    SparseDKM,
    kl_gram,
    nngp_predict,
    squared_exponential,
)
from tests.benchmarks._timing import compare


def divergence(points: int) -> dict:
    gen = child(0, "bench")
    G, K = (
        z @ z.mT / points
        for z in torch.randn(2, points, points + 10, generator=gen, dtype=torch.float64)
    )
    zero = torch.zeros(points, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal

    def theirs():
        return torch.distributions.kl_divergence(
            normal(zero, G, validate_args=False), normal(zero, K, validate_args=False)
        )

    name = f"KL of two Gram matrices, {points} points"
    return compare(name, "torch.distributions", lambda: kl_gram(G, K), theirs, 1e-8)


def regression(points: int) -> dict:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    gen = child(0, "bench")
    X, x = (torch.randn(n, 8, generator=gen, dtype=torch.float64) for n in (points, points // 2))
    y = torch.sin(X[:, :1])

    def ours():
        return nngp_predict(X, y, x, 0, squared_exponential(), 0.1, jitter=0.0)[1].sqrt()

    def theirs():
        peer = GaussianProcessRegressor(RBF(math.sqrt(8)), alpha=0.1, optimizer=None)
        return peer.fit(X.numpy(), y[:, 0].numpy()).predict(x.numpy(), return_std=True)[1]

    name = f"fit and predict without a learned layer, {points} points"
    return compare(name, "scikit-learn GaussianProcessRegressor", ours, theirs, 1e-6)


def sparse(inducing: int, batch: int) -> dict:
    """Bound and gradient of one mini-batch, nothing learned in the layers."""
    import gpytorch

    from tests.peers.test_deep_kernel_machine import svgp

    gen = child(0, "bench")
    x = torch.randn(batch, 8, generator=gen, dtype=torch.float64)
    y, chosen = torch.sin(x[:, :1]), x[:inducing].clone()
    mine = SparseDKM(
        chosen, 1, squared_exponential(), math.inf, 1, likelihood="gaussian", jitter=1e-6
    )
    peer = svgp(gpytorch, chosen, mine.mean.detach(), mine.S.detach())
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.1
    bound = gpytorch.mlls.VariationalELBO(likelihood, peer, num_data=10 * batch)

    def step(value, model):
        model.zero_grad()
        (-value).backward()
        return value.detach()

    return compare(
        f"sparse bound and gradient, {inducing} inducing points, batch {batch}",
        "GPyTorch VariationalELBO",
        lambda: step(mine.elbo(x, y, 10 * batch, gen), mine),
        lambda: step(bound(peer(x), y[:, 0]), peer),
        1e-3,
    )


def coordinates() -> dict:
    """Two learned layers on 16 points, whitened and not."""
    means = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]], dtype=torch.float64)
    x, label = gaussian_clusters(means, 0.3, 4, child(0, "clusters"), modes=2)
    y = (1.0 - 2 * label)[:, None].double()

    def search(way):
        machine = DeepKernelMachine(
            2,
            squared_exponential(),
            10.0,
            likelihood=Gaussian(0.1),
            jitter=1e-2,
            parametrization=way,
        )
        return torch.tensor(machine.fit(x, y).terms.total)

    name = "two learned layers to the optimum, 16 points"
    return compare(
        name,
        "the same over Cholesky factors",
        lambda: search("whitened"),
        lambda: search("cholesky"),
        1e-5,
        repeats=3,
    )


def main(points: int = 500) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    rows = [divergence(points), regression(2 * points), coordinates()]
    try:
        import gpytorch  # noqa: F401
    except ImportError:
        return rows
    return [*rows, sparse(100, 256)]


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
