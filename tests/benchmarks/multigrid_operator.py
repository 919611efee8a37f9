"""A layer and a solver beside their peers: the fused smoothing step, Fourier layers, multigrid.

``python -m tests.benchmarks.multigrid_operator``; ratios above 1 mean that the peer takes longer.
Peers: eager PyTorch, neuraloperator's SpectralConv and FNO, PyAMG, SciPy's sparse solver.
"""

from __future__ import annotations

import importlib

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from lib.core.data.fields import _matrix, darcy, random_field
from lib.core.grids import Grid
from lib.core.seeds import child, pick_device
from lib.kernels.smooth_step import reference, smooth_step
from lib.models.operators import SpectralConv
from tests.benchmarks._timing import compare


def smoothing(device) -> list[dict]:
    """Forward and backward of one step; on a CPU both sides are the reference."""
    rows = []
    for channels, n, batch in (
        ((24, 256, 8), (24, 32, 8)) if device.type == "cuda" else ((8, 32, 16),)
    ):
        gen = child(0, "smooth", channels, n)
        u, f = (torch.randn(batch, channels, n, n, generator=gen).to(device) for _ in range(2))
        A, S = (
            0.1 * torch.randn(channels, channels, 3, 3, generator=gen).to(device) for _ in range(2)
        )
        inputs = [t.requires_grad_() for t in (u, f, A, S)]

        def run(step, inputs=inputs):
            out = step(*inputs)
            grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
            return torch.cat([out.flatten(), *(g.flatten() for g in grads)])

        name = f"smoothing step f+b, {batch} x {channels} x {n} x {n} on {device.type}"
        rows.append(compare(name, "eager", lambda: run(smooth_step), lambda: run(reference), 1e-4))
    return rows


def spectral(device) -> list[dict]:
    try:
        peer_module = importlib.import_module("neuralop.layers.spectral_convolution")
    except ImportError:
        return []
    m = 12
    ours = SpectralConv(32, 32, m, 2).to(device)
    peer = peer_module.SpectralConv(32, 32, (2 * m, 2 * m), bias=False).to(device)
    with torch.no_grad():
        weight = torch.zeros(32, 32, 2 * m, m + 1, dtype=torch.cfloat)
        weight[:, :, m:, :m], weight[:, :, :m, :m] = ours.weight[0].cpu(), ours.weight[1].cpu()
        peer.weight.tensor.copy_(weight)
    x = torch.randn(8, 32, 64, 64, generator=child(0, "x")).to(device)
    work = lambda layer: torch.no_grad()(lambda: layer(x))
    name = f"Fourier layer, 12 modes, 8 x 32 x 64 x 64 on {device.type}"
    return [compare(name, "neuraloperator", work(ours), work(peer), 1e-4)]


def solvers() -> list[dict]:
    """Sixteen Darcy problems on 63 x 63 nodes."""
    grid = Grid((63, 63), 1.0, "dirichlet")
    a = random_field(grid.shape, 2.0, child(0, "a"), "neumann", n=16, on=grid)
    a = torch.where(a > 0, 12.0, 3.0).double()
    matrices = [_matrix(grid, c).tocsc() for c in a]
    ones = np.ones(63 * 63)

    def scipy_solve():
        return torch.stack([torch.from_numpy(spsolve(m, ones)) for m in matrices]).view(a.shape)

    rows = [
        compare("Darcy, direct, 16 x 63 x 63", "scipy spsolve", lambda: darcy(a), scipy_solve, 1e-9)
    ]
    try:
        pyamg = importlib.import_module("pyamg")
    except ImportError:
        return rows

    def amg():
        out = [
            pyamg.ruge_stuben_solver(sparse.csr_matrix(m)).solve(ones, tol=1e-10, accel="cg")
            for m in matrices
        ]
        return torch.from_numpy(np.stack(out)).view(a.shape)

    ours = lambda: darcy(a, method="multigrid")
    return [*rows, compare("Darcy, multigrid CG, 16 x 63 x 63", "PyAMG + CG", ours, amg, 1e-7)]


def main() -> list[dict]:
    device = pick_device("auto")
    torch.backends.cudnn.allow_tf32 = False  # the kernel has full float32, so its peers must
    return smoothing(device) + spectral(device) + solvers()


if __name__ == "__main__":
    for row in main():
        print(
            f"{row['name']:<60} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<22}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}"
        )
