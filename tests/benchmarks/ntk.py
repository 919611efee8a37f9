"""Limit kernels, empirical kernels and predictions beside neural-tangents and scikit-learn.

``python -m tests.benchmarks.ntk``; ratios above 1 mean that the peer takes longer. The same work
on both sides, on one thread of the CPU, or on the GPU where there is one (then the fused kernel is
timed beside the eager recursion and torch.compile). Outputs are compared before anything is timed;
neural-tangents runs compiled (jax.jit), and its compilation is not counted. How to install it:
``tests/peers/test_ntk.py``.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable

# JAX reads this when it starts; PyTorch is told below. One thread each, or the ratio means nothing.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import numpy as np
import torch

from lib.core.seeds import child, pick_device
from lib.kernels.nngp_ntk import nngp_ntk as fused
from lib.kernels.nngp_ntk import nngp_ntk_reference
from lib.models.gp import kernel_ridge
from lib.width.ntk import MLPNTK, NTKRegression, empirical_ntk, nngp_ntk
from tests.benchmarks._timing import compare


def row(name: str, peer: str, ours: Callable, theirs: Callable, tol: float) -> dict:
    # NumPy waits for the peer's result, which JAX computes in the background.
    return compare(name, peer, ours, lambda: np.asarray(theirs()), tol)


def limit_kernels(nt, points: int) -> list[dict]:
    import jax

    x = torch.randn(points, 64, generator=child(0, "bench"))
    half, rows = points // 2, []
    ours, theirs = x.split(half), np.split(np.asarray(x), 2)
    for act, layer in (("relu", nt.stax.Relu), ("erf", nt.stax.Erf)):
        layers = [nt.stax.Dense(512, W_std=1.0, b_std=0.1), layer()] * 3
        kernel_fn = nt.stax.serial(*layers, nt.stax.Dense(1, W_std=1.0, b_std=0.1))[2]
        jitted = jax.jit(lambda a, b, k=kernel_fn: k(a, b, ("nngp", "ntk")))
        rows.append(
            row(
                f"Sigma and Theta, {act}, 4 layers, {half} x {half}",
                "neural-tangents, jit",
                lambda act=act: nngp_ntk(*ours, 3, act)[1],
                lambda jitted=jitted: jitted(*theirs).ntk,
                1e-5,
            )
        )
    return rows


def empirical_kernels(nt, width: int, points: int) -> list[dict]:
    import jax

    model = MLPNTK((64, width, width, 1), gen=child(0, "net"))
    x = torch.randn(points, 64, generator=child(0, "bench"))
    params = []
    for layer in model.layers:
        params += [(layer.weight.detach().T.numpy(), layer.bias.detach().numpy()[None]), ()]
    dense = [nt.stax.Dense(width, W_std=1.0, b_std=0.1), nt.stax.Relu()] * 2
    apply_fn = nt.stax.serial(*dense, nt.stax.Dense(1, W_std=1.0, b_std=0.1))[1]
    X, rows = np.asarray(x), []
    for method, name in (
        ("jacobian", "JACOBIAN_CONTRACTION"),
        ("product", "NTK_VECTOR_PRODUCTS"),
        # Its own structured route reaches into internals that JAX no longer has, so this is the
        # fastest that runs.
        ("structured", "JACOBIAN_CONTRACTION"),
    ):
        peer = nt.empirical_ntk_fn(
            apply_fn, vmap_axes=0, implementation=getattr(nt.NtkImplementation, name)
        )
        jitted = jax.jit(lambda a, p, peer=peer: peer(a, None, p))
        rows.append(
            row(
                f"empirical Theta, {method}, width {width}, {points} points",
                f"neural-tangents, {name.lower()}, jit",
                lambda method=method: empirical_ntk(model, x, method=method, reduce="trace"),
                lambda jitted=jitted: jitted(X, params[:-1]),
                1e-3,
            )
        )
    return rows


def predictions(nt, points: int) -> dict:
    X = torch.randn(points, 64, generator=child(0, "train"), dtype=torch.float64)
    xs = torch.randn(points // 2, 64, generator=child(0, "test"), dtype=torch.float64)
    y = torch.sin(X[:, :1])
    layers = [nt.stax.Dense(512, W_std=1.0, b_std=0.1), nt.stax.Relu()] * 3
    kernel_fn = nt.stax.serial(*layers, nt.stax.Dense(1, W_std=1.0, b_std=0.1))[2]

    def ours():
        solved = NTKRegression(lambda a, b: nngp_ntk(a, b, 3), 1 / points).fit(X, y)
        return solved.predict(xs, 50.0, return_cov=True)[1]

    def theirs():
        predict = nt.predict.gradient_descent_mse_ensemble(
            kernel_fn, np.asarray(X), np.asarray(y), diag_reg=0.0
        )
        return predict(t=50.0, x_test=np.asarray(xs), get="ntk", compute_cov=True).covariance

    name = f"mean and covariance at t = 50, {points} training points"
    return row(name, "neural-tangents", ours, theirs, 1e-5)


def ridge(points: int) -> dict:
    from sklearn.kernel_ridge import KernelRidge

    x = torch.randn(points, 64, generator=child(0, "bench"), dtype=torch.float64)
    K, y = nngp_ntk(x, depth=3)[1], torch.sin(x[:, :1])
    peer = KernelRidge(alpha=0.1, kernel="precomputed")
    return row(
        f"kernel ridge coefficients, {points} points",
        "scikit-learn KernelRidge",
        lambda: kernel_ridge(K, y, 0.1),
        lambda: peer.fit(K.numpy(), y.numpy()).dual_coef_,
        1e-8,
    )


def gpu(points: int = 8192, d: int = 784) -> list[dict]:
    """The fused kernel beside the eager recursion and its torch.compile."""
    x = torch.randn(2, points, d, device="cuda")
    rows = []
    for act in ("relu", "erf"):
        ours = lambda act=act: fused(*x, 3, act, which="ntk", backend="triton")[1]
        eager = lambda act=act: nngp_ntk_reference(*x, 3, act)[1]
        for peer, run in (("eager PyTorch", eager), ("torch.compile", torch.compile(eager))):
            name = f"fused Theta, {act}, {points} x {points} x {d}"
            rows.append(compare(name, peer, ours, run))
    return rows


def main(points: int = 1000) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    rows = [ridge(points)]
    if pick_device().type == "cuda":
        rows += gpu()
    try:
        import jax

        stub = types.ModuleType("neural_tangents.experimental")
        sys.modules.setdefault("neural_tangents.experimental", stub)
        import neural_tangents as nt
    except ImportError:
        return rows
    rows += limit_kernels(nt, 2 * points)
    rows += empirical_kernels(nt, 512, 64)
    jax.config.update("jax_enable_x64", True)
    rows.append(predictions(nt, points // 2))
    return rows


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
