"""Kernels of hierarchical CNNs, learning curves and spectra beside other ways to the same numbers.

``python -m tests.benchmarks.wide_cnn``; ratios above 1 mean that the peer takes longer. The same
work on both sides, on one thread of the CPU; results are compared before anything is timed.
neural-tangents runs compiled (jax.jit), and its compilation is not counted. How to install it:
``tests/peers/test_ntk.py``. The fused kernel on a GPU: ``tests/benchmarks/kernels.py``.
"""

from __future__ import annotations

import math
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
from lib.width.wide_cnn import (
    gaussian_field,
    hierarchical_ntk,
    learning_curve,
    sample_patches,
    sector_spectrum,
)
from tests.benchmarks._timing import compare


def textbook(x: torch.Tensor, y: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """The recursion as the paper writes it, with arccos, on whole tensors."""
    u, v = (z.unflatten(1, (-1, sizes[0])).transpose(0, 1) for z in (x, y))
    c = theta = (u @ v.mT).clamp(-1, 1)
    for siblings in (*sizes[1:], None):
        k0 = (math.pi - torch.arccos(c)) / math.pi
        k1 = (torch.sqrt(1 - c * c) + (math.pi - torch.arccos(c)) * c) / math.pi
        siblings = siblings or len(c)
        theta = (k0 * theta + k1).unflatten(0, (-1, siblings)).mean(1)
        c = k1.unflatten(0, (-1, siblings)).mean(1).clamp(-1, 1)
    return theta[0]


def gram_matrices(points: int) -> list[dict]:
    x = sample_patches(points, 8, 2, child(0, "bench"))
    rows = []
    for sizes in ((2,), (2, 2, 2)):
        rows.append(
            compare(
                f"Gram matrix, filters {sizes}, {points} points, float64",
                "the recursion on whole tensors",
                lambda sizes=sizes: hierarchical_ntk(x, None, sizes),
                lambda sizes=sizes: textbook(x, x, sizes),
                1e-6,
            )
        )
    return rows


def against_neural_tangents(nt, points: int) -> list[dict]:
    import jax

    x, y = (sample_patches(points, 8, 2, child(0, k)).float() for k in ("x", "y"))
    rows = []
    for sizes in ((2, 2), (2, 2, 2)):
        layers = []
        for level, s in enumerate(sizes):
            std = math.sqrt(s) if level == 0 else math.sqrt(2)
            layers += [nt.stax.Conv(64, (s,), (s,), W_std=std, b_std=None), nt.stax.Relu()]
        layers += [nt.stax.Flatten(), nt.stax.Dense(1, W_std=math.sqrt(2), b_std=None)]
        kernel_fn = nt.stax.serial(*layers)[2]
        jitted = jax.jit(lambda a, b, k=kernel_fn: k(a, b, "ntk"))
        inputs = [np.asarray(z)[..., None] for z in (x, y)]
        rows.append(
            compare(
                f"NTK, filters {sizes}, {points} x {points}, float32",
                "neural-tangents, jit",
                lambda sizes=sizes: hierarchical_ntk(x, y, sizes),
                lambda jitted=jitted, inputs=inputs: np.array(jitted(*inputs)),
                1e-4,
            )
        )
    return rows


def curves(points: int) -> dict:
    from sklearn.kernel_ridge import KernelRidge

    last, sizes = points // 2, [points // 8, points // 4, points // 2]
    x = sample_patches(points, 8, 2, child(0, "curve"))
    K = hierarchical_ntk(x, None, (2, 2))
    A = K.numpy()

    def theirs():
        B = gaussian_field(K, 8, child(1, "curve")).numpy()
        errors = []
        for P in sizes:
            peer = KernelRidge(alpha=0.1, kernel="precomputed").fit(A[:P, :P], B[:P])
            residual = peer.predict(A[last:, :P]) - B[last:]
            errors.append((residual**2).mean() / B[last:].var(0).mean())
        return np.array(errors)

    return compare(
        f"learning curve, 3 sizes to {last}, 8 targets",
        "scikit-learn KernelRidge at each size",
        lambda: learning_curve(K, K, sizes, 0.1, 8, child(1, "curve")).error.to_numpy(),
        theirs,
        1e-8,
    )


def spectra() -> dict:
    def theirs():
        angle = torch.arange(512, dtype=torch.float64) * (2 * math.pi / 512)
        x = torch.stack(torch.meshgrid(angle, angle, indexing="ij")).flatten(1).T
        zero = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
        pairs = torch.stack([x.cos(), x.sin()], -1).flatten(1)
        K = textbook(pairs, zero, (2, 2)).view(512, 512)
        return (torch.fft.fft2(K).real / 512**2).diagonal()[:33]

    return compare(
        "spectrum of filters (2, 2), sector 2, 512 points an axis",
        "FFT of the whole torus",
        lambda: sector_spectrum((2, 2), 2, 32, grid=512).eigenvalue.to_numpy(),
        theirs,
        1e-6,
    )


def main(points: int = 1000) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    rows = [*gram_matrices(points), curves(points), spectra()]
    try:
        import jax  # noqa: F401

        stub = types.ModuleType("neural_tangents.experimental")
        sys.modules.setdefault("neural_tangents.experimental", stub)
        import neural_tangents as nt
    except ImportError:
        return rows
    return rows + against_neural_tangents(nt, points)


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
