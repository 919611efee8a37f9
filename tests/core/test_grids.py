import math

import pytest
import torch

from lib.core import grids
from lib.core.grids import (
    Grid,
    diagonal,
    inverse_laplacian,
    laplacian,
    prolong,
    relative_h1,
    relative_l2,
    resample,
    restrict,
    spectral_gradient,
    v_cycle,
)
from lib.core.stats import loglog_slope
from tests.helpers import assert_close, raises

BOUNDARIES = ["periodic", "dirichlet", "neumann"]


def box(boundary, shape=(8, 6), length=(1.0, 2.0)):
    return Grid(tuple(n - (boundary == "dirichlet") for n in shape), length, boundary)


def draw(grid, gen, *front):
    return torch.randn(*front, *grid.shape, generator=gen, dtype=torch.float64)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_points_refine_and_coarsen(boundary):
    grid = box(boundary)
    assert grid.coarse().fine() == grid
    assert grid.fine().coarse() == grid
    for x, h, L in zip(grid.points(), grid.spacing, (1.0, 2.0), strict=True):
        assert_close(x.diff(), torch.full_like(x.diff(), h), 1e-12)
        ends = {"periodic": (0, L - h), "dirichlet": (h, L - h), "neumann": (h / 2, L - h / 2)}
        assert_close(x[[0, -1]], torch.tensor(ends[boundary], dtype=torch.float64), 1e-12)
    fine, coarse = grid.points()[0], grid.coarse().points()[0]
    if boundary != "neumann":  # coarse points are fine points
        assert_close(fine[(boundary == "dirichlet") :: 2][: len(coarse)], coarse, 1e-12)
    assert grid.mesh().shape == (2, *grid.shape)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_laplacian_is_symmetric_negative_and_its_diagonal_is_right(boundary, gen):
    grid = box(boundary)
    a = draw(grid, gen).exp()
    u, v = draw(grid, gen, 3), draw(grid, gen, 3)
    assert_close((laplacian(u, grid, a) * v).sum(), (u * laplacian(v, grid, a)).sum(), 1e-12)
    assert (laplacian(u, grid, a) * u).sum() < 0
    n = math.prod(grid.shape)
    matrix = -laplacian(torch.eye(n, dtype=torch.float64).reshape(n, *grid.shape), grid, a)
    assert_close(matrix.reshape(n, n).diagonal(), diagonal(grid, a).flatten(), 1e-12)
    # a = 1 is the operator without a.
    assert_close(laplacian(u, grid, torch.ones_like(a)), laplacian(u, grid), 1e-12)
    if boundary != "dirichlet":  # conservation: what flows out of a cell flows into another
        assert abs(laplacian(u, grid, a).sum()) < 1e-9


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_laplacian_is_of_second_order(boundary):
    errors, sizes = [], [16, 32, 64]
    for n in sizes:
        grid = box(boundary, (n, n), (1.0, 1.0))
        x, y = grid.mesh()
        k = 2 * math.pi
        wave = torch.cos if boundary == "neumann" else torch.sin
        d = torch.sin if boundary == "neumann" else torch.cos
        sign = -1 if boundary == "neumann" else 1
        u = wave(k * x) * wave(k * y)
        a = 2 + torch.cos(k * x)
        # div(a grad u) = a Laplace(u) + a_x u_x
        want = -2 * k * k * a * u - k * torch.sin(k * x) * sign * k * d(k * x) * wave(k * y)
        # Next to a Dirichlet wall the flux is of first order (the solution stays of second).
        inside = slice(1, -1) if boundary == "dirichlet" else slice(None)
        errors.append((laplacian(u, grid, a) - want)[inside, inside].abs().max().item())
    assert -2.2 < loglog_slope(sizes, errors).slope < -1.8


def test_harmonic_means_are_exact_in_one_dimension():
    # A coefficient that jumps half way between two nodes: flux 1 everywhere.
    n = 9
    grid = Grid((n,), 1.0, "dirichlet")
    x = grid.points()[0]
    a = torch.where(x < 0.55, 12.0, 3.0).double()
    u = torch.where(x < 0.55, x / 12, 0.55 / 12 + (x - 0.55) / 3)
    inside = laplacian(u, grid, a)[1:-1]
    assert inside.abs().max() < 1e-10


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_inverse_laplacian(boundary, gen):
    for shape in ((8, 6), (5, 9)):
        grid = box(boundary, shape)
        u = draw(grid, gen, 2)
        if boundary != "dirichlet":
            u = u - u.mean((-2, -1), keepdim=True)
        assert_close(inverse_laplacian(laplacian(u, grid), grid), u, 1e-11)
    grid = box(boundary, (16, 16), (1.0, 1.0))
    x, y = grid.mesh()
    wave = torch.cos if boundary == "neumann" else torch.sin
    u = wave(2 * math.pi * x) * wave(2 * math.pi * y)
    assert_close(inverse_laplacian(-8 * math.pi**2 * u, grid, "spectral"), u, 1e-12)


def test_spectral_gradient_of_waves():
    grid = Grid((12, 9), (1.0, 2.0))
    x, y = grid.mesh()
    u = torch.sin(2 * math.pi * 3 * x) * torch.cos(math.pi * 2 * y)
    gx, gy = spectral_gradient(u, grid)
    assert_close(gx, 6 * math.pi * torch.cos(6 * math.pi * x) * torch.cos(2 * math.pi * y), 1e-12)
    assert_close(gy, -2 * math.pi * torch.sin(6 * math.pi * x) * torch.sin(2 * math.pi * y), 1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_restriction_is_the_transpose_of_prolongation(boundary, gen):
    grid = box(boundary)
    u, v = draw(grid, gen, 2), draw(grid.coarse(), gen, 2)
    assert_close(4 * (restrict(u, grid) * v).sum(), (u * prolong(v, grid.coarse())).sum(), 1e-12)
    ones = torch.ones(grid.coarse().shape, dtype=torch.float64)
    if boundary != "dirichlet":
        assert_close(prolong(ones, grid.coarse()), torch.ones(grid.shape), 1e-12)
    else:  # a linear function that vanishes at one wall is reproduced up to the last half cell
        line = Grid((7,), 1.0, "dirichlet")
        x = line.points()[0]
        assert_close(prolong(line.coarse().points()[0], line.coarse())[:-1], x[:-1], 1e-12)
    if boundary != "neumann":
        assert_close(restrict(prolong(v, grid.coarse()), grid, "inject"), v, 1e-12)


def test_fourier_resampling_is_exact_for_what_both_grids_resolve(gen):
    f = lambda x, y: torch.sin(2 * math.pi * 2 * x) + torch.cos(2 * math.pi * (x - 3 * y))
    for shape in ((8, 8), (9, 7), (8, 16)):
        u = f(*Grid(shape).mesh())
        for other in ((16, 16), (7, 9), (25, 8)):
            assert_close(resample(u, other, "fourier"), f(*Grid(other).mesh()), 1e-12)
    # Dirichlet fields through their odd continuation.
    s = lambda x: torch.sin(math.pi * x) + torch.sin(3 * math.pi * x)
    for n, m in ((7, 15), (15, 7), (6, 9)):
        u, want = (s(Grid((k,), 1.0, "dirichlet").points()[0]) for k in (n, m))
        assert_close(resample(u, (m,), "fourier", "dirichlet"), want, 1e-12)
    u = torch.randn(3, 8, generator=gen, dtype=torch.float64)
    assert_close(resample(resample(u, (20,), "fourier"), (8,), "fourier"), u, 1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_linear_resampling(boundary, gen):
    grid = box(boundary, (8,), (1.0,))
    u = draw(grid, gen, 2)
    if boundary != "neumann":
        up = resample(u, grid.fine().shape, "linear", boundary)
        assert_close(up, prolong(u, grid), 1e-12)
    errors, sizes = [], [16, 32, 64]
    wave = torch.cos if boundary == "neumann" else torch.sin
    for n in sizes:
        have, want = (
            wave(2 * math.pi * box(boundary, (k,), (1.0,)).points()[0]) for k in (n, 3 * n // 2)
        )
        errors.append((resample(have, want.shape, "linear", boundary) - want).abs().max().item())
    assert -2.3 < loglog_slope(sizes, errors).slope < -1.7


def test_multigrid_contracts_at_a_rate_that_knows_no_size(gen):
    rates = {}
    for n in (15, 31):
        grid = Grid((n, n), 1.0, "dirichlet")
        for visits in (1, 2):
            e = draw(grid, gen)
            for _ in range(15):
                before, e = e.norm(), e - v_cycle(-laplacian(e, grid), grid, visits=visits)
            rates[n, visits] = (e.norm() / before).item()
    assert 0.32 < rates[15, 1] < 0.40
    assert abs(rates[31, 1] - rates[15, 1]) < 0.03
    assert rates[31, 2] < rates[31, 1]
    # Starting from the solution changes nothing; a cycle is one linear map of (u, f).
    grid = Grid((15, 15), 1.0, "dirichlet")
    a, u = draw(grid, gen).exp(), draw(grid, gen)
    f = -laplacian(u, grid, a)
    assert_close(v_cycle(f, grid, a, u), u, 1e-12)


def test_field_errors(gen):
    grid = Grid((31, 31), 1.0, "dirichlet")
    x, y = grid.mesh()
    v = (torch.sin(math.pi * x) * torch.sin(math.pi * y))[None, None]
    w = (torch.sin(3 * math.pi * x) * torch.sin(2 * math.pi * y))[None, None]
    e = 0.1
    assert_close(relative_l2(v + e * w, v), torch.tensor([e], dtype=torch.float64), 1e-10)
    # Both are eigenvectors of the five-point operator, so the difference norm is known.
    lam = lambda k: (2 * 32 * math.sin(k * math.pi / 64)) ** 2
    ratio = e * math.sqrt((1 + lam(3) + lam(2)) / (1 + 2 * lam(1)))
    assert_close(relative_h1(v + e * w, v, grid), torch.tensor([ratio], dtype=torch.float64), 1e-10)
    grid = Grid((16, 16))
    x, y = grid.mesh()
    wave = lambda k: torch.sin(2 * math.pi * k * x)[None, None]
    for cutoff, k2 in ((None, 25), (5, 0)):
        got = relative_h1(wave(1) + e * wave(5), wave(1), grid, "spectral", cutoff)
        want = torch.tensor([e * math.sqrt((1 + k2) / 2)], dtype=torch.float64)
        assert_close(got, want, 1e-10)
    got = relative_h1(wave(1) + e * wave(5), wave(1), grid)
    lam = lambda k: (2 * 16 * math.sin(k * math.pi / 16)) ** 2
    assert_close(
        got, torch.tensor([e * math.sqrt((1 + lam(5)) / (1 + lam(1)))], dtype=torch.float64), 1e-10
    )


def test_errors():
    with raises(ValueError, match="boundary='open'"):
        Grid((4,), 1.0, "open")
    with raises(ValueError, match=r"shape=\(0,\)"):
        Grid((0,))
    with raises(ValueError, match="length=-1.0"):
        Grid((4,), -1.0)
    with raises(ValueError, match=r"length=\(1.0, 2.0\): allowed is one number, or 1"):
        Grid((4,), (1.0, 2.0))
    with raises(ValueError, match="a dirichlet grid can be halved for odd numbers"):
        Grid((8,), 1.0, "dirichlet").coarse()
    u = torch.zeros(5, 5)
    with raises(ValueError, match=r"u: shape \(5, 5\) does not end in the grid's \(4,\)"):
        laplacian(u, Grid((4,)))
    with raises(ValueError, match="spectral_gradient needs a periodic grid"):
        spectral_gradient(u, Grid((5, 5), 1.0, "neumann"))
    with raises(ValueError, match="symbol='five'"):
        inverse_laplacian(u, Grid((5, 5)), "five")
    with raises(ValueError, match="how='mean'"):
        restrict(torch.zeros(4), Grid((4,)), "mean")
    with raises(ValueError, match="how='cubic'"):
        resample(u, (3,), "cubic")
    with raises(ValueError, match="how='fourier': allowed are the boundaries"):
        resample(u, (3,), "fourier", "neumann")
    with raises(ValueError, match="visits=0"):
        v_cycle(u, Grid((5, 5), 1.0, "dirichlet"), visits=0)
    with raises(ValueError, match="how='h2'"):
        relative_h1(u[None, None], u[None, None], Grid((5, 5)), "h2")
    assert grids.BOUNDARIES == tuple(BOUNDARIES)
