"""The same numbers as neuraloperator, PyAMG and SciPy.

neuraloperator installs Weights & Biases and more; ``pip install --no-deps neuraloperator`` with
``pip install tensorly tensorly-torch opt-einsum ruamel.yaml configmypy zencfg h5py matplotlib`` is
enough for what is compared here.
"""

import math

import numpy as np
import pytest
import torch
from scipy import fft, sparse
from scipy.integrate import solve_ivp
from scipy.sparse.linalg import spsolve

from lib.core.data.fields import burgers, darcy, poisson
from lib.core.grids import Grid, inverse_laplacian, resample
from lib.models.operators import SpectralConv
from lib.science import multigrid_operator as mg
from tests.helpers import assert_close


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scipy_sparse_solve():
    # The matrix written once more, by Kronecker products and the fluxes' harmonic means.
    n = 9
    h = 1 / (n + 1)
    a = draw(n, n).exp().numpy()
    mean = lambda p, q: 2 * p * q / (p + q)
    matrix = sparse.lil_matrix((n * n, n * n))
    for i in range(n):
        for j in range(n):
            for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                y, x = i + di, j + dj
                inside = 0 <= y < n and 0 <= x < n
                face = mean(a[i, j], a[y, x]) if inside else a[i, j]
                matrix[i * n + j, i * n + j] += face / h**2
                if inside:
                    matrix[i * n + j, y * n + x] -= face / h**2
    want = spsolve(matrix.tocsr(), np.ones(n * n)).reshape(n, n)
    assert_close(darcy(torch.from_numpy(a)), torch.from_numpy(want), 1e-11)


def test_scipy_transforms():
    # -Laplace(u) = f on Dirichlet and Neumann grids by SciPy's sine and cosine transforms.
    for boundary, forward, inverse, kind, first in (
        ("dirichlet", fft.dstn, fft.idstn, 1, 1),
        ("neumann", fft.dctn, fft.idctn, 2, 0),
    ):
        grid = Grid((8, 11), 1.0, boundary)
        f = draw(8, 11)
        f = f - f.mean() * (boundary == "neumann")
        total = 0
        for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing, strict=True)):
            k = math.pi * (np.arange(n) + first)
            value = (2 / h * np.sin(k * h / 2)) ** 2
            total = total + value.reshape((-1, 1) if axis == 0 else (1, -1))
        total[total == 0] = np.inf
        want = torch.from_numpy(inverse(forward(f.numpy(), type=kind) / total, type=kind))
        assert_close(poisson(f, grid), want, 1e-11)
        assert_close(inverse_laplacian(f, grid), -want, 1e-11)


def test_scipy_resample():
    from scipy.signal import resample as peer

    for n, m in ((9, 15), (15, 9), (8, 20)):
        u = draw(n)
        assert_close(resample(u, (m,), "fourier"), torch.from_numpy(peer(u.numpy(), m)), 1e-11)


def test_scipy_integrates_burgers():
    n, nu = 32, 0.05
    u0 = torch.sin(2 * math.pi * Grid((n,)).points()[0])
    k = 2 * np.pi * np.fft.rfftfreq(n, 1 / n)
    alias = k < 2 / 3 * k.max()

    def slope(_, u):
        waves = np.fft.rfft(u)
        flux = np.fft.rfft(u * u) * alias
        return np.fft.irfft(-nu * k**2 * waves - 0.5j * k * flux, n)

    want = solve_ivp(slope, (0, 0.3), u0.numpy(), rtol=1e-10, atol=1e-12).y[:, -1]
    got = burgers(u0[None], nu, [0.3], dt=1e-3)[0, 0]
    assert_close(got, torch.from_numpy(want), 1e-7)


def test_neuraloperator_spectral_conv():
    neuralop = pytest.importorskip(
        "neuralop.layers.spectral_convolution",
        reason="see the module's docstring",
        exc_type=ImportError,
    )
    m = 4
    ours = SpectralConv(3, 2, m, 2)
    # Theirs counts modes on both sides, keeps n // 2 + 1 of the last axis, and centers the others.
    peer = neuralop.SpectralConv(3, 2, (2 * m, 2 * m), bias=False)
    with torch.no_grad():
        weight = torch.zeros(3, 2, 2 * m, m + 1, dtype=torch.cfloat)
        weight[:, :, m:, :m], weight[:, :, :m, :m] = ours.weight[0], ours.weight[1]
        peer.weight.tensor.copy_(weight)
    x = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    assert_close(ours(x), peer(x), 1e-5)


def test_pyamg_solves_the_same_system_at_a_like_rate():
    pyamg = pytest.importorskip("pyamg", reason="pip install pyamg")
    n = 31
    matrix = pyamg.gallery.poisson((n, n), format="csr")
    b = draw(n, n)
    solver = pyamg.ruge_stuben_solver(matrix, max_coarse=1)
    residuals = []
    want = solver.solve(b.numpy().ravel(), tol=1e-12, maxiter=60, residuals=residuals)
    e, W = torch.zeros_like(b)[None, None], mg.poisson_operator(5)
    A = mg.operator._stencil(2)[None, None]
    for _ in range(40):
        e = e + W(b - torch.nn.functional.conv2d(e, A, padding=1))
    assert_close(e[0, 0], torch.from_numpy(want).view(n, n), 1e-9)
    theirs = residuals[-1] / residuals[-2]
    norms = mg.convergence(W, b, 25)
    # Gauss-Seidel smooths better than damped Jacobi: theirs is the faster cycle, both are fast.
    assert theirs < (norms[-1] / norms[-2]) < 0.4
