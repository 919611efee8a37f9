"""Posterior and kernels of scale mixtures beside scikit-learn, SciPy and neural-tangents.

``python -m tests.benchmarks.scale_mixtures``; ratios above 1 mean that the peer takes longer. The
same numbers first, then the same work in turn, on one thread. neural-tangents runs compiled
(jax.jit), and its compilation is not counted; how to install it: ``tests/peers/test_ntk.py``.
"""

from __future__ import annotations

import os
import sys
import types

# JAX reads this when it starts; PyTorch is told below. One thread each, or the ratio means nothing.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import numpy as np
import torch

from lib.core.seeds import child
from lib.models.gp import rbf
from lib.width import scale_mixtures as sm
from tests.benchmarks._timing import compare


def posterior(points: int) -> dict:
    """Fit and predict at a known scale: what a Student-t process adds to it is two numbers."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    gen = child(0, "bench")
    X, x = (torch.randn(n, 8, generator=gen, dtype=torch.float64) for n in (points, points // 2))
    y = torch.sin(X[:, :1])

    def ours():
        law = sm.SMNNGP(rbf, sm.InverseGamma(1e9, 1e9), 0.1).fit(X, y).predict(x, noise=False)
        return law.var.sqrt()

    def theirs():
        peer = GaussianProcessRegressor(RBF(1.0), alpha=0.1, optimizer=None)
        return peer.fit(X.numpy(), y[:, 0].numpy()).predict(x.numpy(), return_std=True)[1]

    name = f"fit and predict, {points} points, {points // 2} new ones"
    return compare(name, "scikit-learn GaussianProcessRegressor", ours, theirs, 1e-5)


def density(points: int) -> dict:
    from scipy import stats

    gen = child(0, "density")
    A = torch.randn(points, points, generator=gen, dtype=torch.float64)
    cov = A @ A.T / points + torch.eye(points)
    y, zero = torch.randn(points, 1, generator=gen).double(), torch.zeros(points, 1).double()
    law = sm.mix(sm.InverseGamma(2.0, 2.0), zero, cov.diagonal(), cov)

    def theirs():
        return stats.multivariate_t.logpdf(y[:, 0].numpy(), None, cov.numpy(), df=4)

    ours = lambda: law.joint_log_density(y)
    return compare(f"joint t density, {points}", "SciPy multivariate_t", ours, theirs, 1e-6)


def kernels(nt, images: int, size: int) -> list[dict]:
    import jax

    stax = nt.stax
    conv = lambda: stax.Conv(64, (3, 3), padding="SAME", W_std=1.0, b_std=0.0)
    x = torch.rand(images, 1, size, size, generator=child(0, "images"))
    theirs, rows = x.permute(0, 2, 3, 1).numpy(), []
    for pool, n in ((False, images), (True, images // 8)):
        last = stax.GlobalAvgPool() if pool else stax.Flatten()
        net = stax.serial(conv(), stax.Relu(), conv(), stax.Relu(), last, stax.Dense(1))
        peer = jax.jit(lambda a, f=net[2]: f(a, None, "nngp"))
        ours = sm.nngp_kernel("cnn", 2, "relu", pool=pool)
        name = f"cnn kernel, {'averaged' if pool else 'flattened'}, {n} images of {size} x {size}"
        rows.append(
            compare(
                name,
                "neural-tangents, jit",
                lambda ours=ours, n=n: ours(x[:n]),
                lambda peer=peer, n=n: np.asarray(peer(theirs[:n])),
                1e-4,
                repeats=3,
            )
        )
    return rows


def main(points: int = 600, images: int = 160) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    rows = [posterior(points), density(points)]
    try:
        import jax  # noqa: F401

        stub = types.ModuleType("neural_tangents.experimental")
        sys.modules.setdefault("neural_tangents.experimental", stub)
        import neural_tangents as nt
    except ImportError:
        return rows
    return rows + kernels(nt, images, 8)


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
