import math

import pytest
import torch

from lib.core.data.fields import burgers, darcy, poisson, random_field, vorticity
from lib.core.grids import Grid, laplacian
from lib.core.stats import loglog_slope
from tests.helpers import assert_close, raises


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet", "neumann"])
def test_random_fields_are_functions_with_the_covariance_asked_for(boundary):
    n = 4000
    draw = lambda size: random_field(
        (size,), 1.5, torch.Generator().manual_seed(1), boundary, n=n, tau=4.0, modes=7,
        dtype=torch.float64,
    )  # fmt: skip
    coarse = Grid((8 - (boundary == "dirichlet"),), 1.0, boundary)
    u, v = draw(coarse.shape[0]), draw(coarse.fine().shape[0])
    if boundary != "neumann":  # the same functions at more points
        assert_close(v[:, (boundary == "dirichlet") :: 2][:, : u.shape[1]], u, 1e-12)
    # Mean square over the box is one (4000 draws: standard error below 2 %).
    fine = draw(63 + (boundary != "dirichlet"))
    h = Grid((fine.shape[1],), 1.0, boundary).spacing[0]
    assert abs(fine.square().mean(0).sum().item() * h - 1) < 0.06
    # Energy of two waves stands in the ratio of (k^2 + tau^2)^-decay.
    x = Grid((fine.shape[1],), 1.0, boundary).points()[0]
    wave = torch.cos if boundary != "dirichlet" else torch.sin
    step = 2 * math.pi if boundary == "periodic" else math.pi
    a, b = ((fine * wave(step * k * x)).mean(1).square().mean() for k in (1, 3))
    want = (((3 * step) ** 2 + 16) / (step**2 + 16)) ** 1.5
    assert abs((a / b).item() / want - 1) < 0.12


def test_random_field_on_other_points(gen):
    grid = Grid((5, 6), 1.0, "dirichlet")
    a = random_field((5, 6), 2.0, gen, "neumann", n=3, modes=4, on=grid)
    assert a.shape == (3, 5, 6)
    with raises(ValueError, match="on: shape"):
        random_field((5, 5), 2.0, gen, "neumann", on=grid)
    with raises(ValueError, match="modes=0"):
        random_field((5, 5), 2.0, gen, modes=0)


def test_darcy_solves_and_both_methods_agree(gen):
    grid = Grid((31, 31), 1.0, "dirichlet")
    a = random_field(grid.shape, 2.0, gen, "neumann", n=3, on=grid, dtype=torch.float64)
    a = torch.where(a > 0, 12.0, 3.0).double()
    u = darcy(a)
    assert_close(-laplacian(u, grid, a), torch.ones_like(u), 1e-11)
    assert_close(darcy(a, method="multigrid"), u, 1e-8)
    assert (u > 0).all()  # the maximum principle
    assert_close(darcy(2 * a, 4.0), 2 * u, 1e-11)


def test_darcy_converges():
    # Smooth coefficient and solution: second order.
    errors, sizes = [], [7, 15, 31]
    for n in sizes:
        grid = Grid((n, n), 1.0, "dirichlet")
        x, y = grid.mesh()
        p = math.pi
        s, c = torch.sin, torch.cos
        u, a = s(p * x) * s(p * y), 2 + s(2 * p * x) * y
        f = 2 * p * p * a * u - (
            2 * p * c(2 * p * x) * y * p * c(p * x) * s(p * y)
            + s(2 * p * x) * p * s(p * x) * c(p * y)
        )
        errors.append((darcy(a, f) - u).abs().max().item())
    assert -2.3 < loglog_slope([n + 1 for n in sizes], errors).slope < -1.7


def test_darcy_with_a_jump_converges_in_the_first_order():
    # Against a grid eight times as fine; the jump runs between nodes of each grid differently.
    def solve(n):
        grid = Grid((n, n), 1.0, "dirichlet")
        x, y = grid.mesh()
        return darcy(torch.where(x + 0.3 * y < 0.6, 12.0, 3.0).double())

    truth = solve(127)
    errors = []
    for n in (7, 15, 31):
        step = 128 // (n + 1)
        u, v = solve(n), truth[step - 1 :: step, step - 1 :: step]
        errors.append(((u - v).norm() / v.norm()).item())
    assert errors[0] < 0.10
    assert errors[2] < 0.025
    assert loglog_slope([8, 16, 32], errors).slope < -0.8


def test_poisson_with_and_without_a_mask(gen):
    grid = Grid((9, 12), (1.0, 1.5), "dirichlet")
    f = torch.randn(2, 9, 12, generator=gen, dtype=torch.float64)
    u = poisson(f, grid)
    assert_close(-laplacian(u, grid), f, 1e-11)
    assert_close(poisson(f, grid, torch.ones(9, 12, dtype=torch.bool)), u, 1e-11)
    mask = torch.zeros(9, 12, dtype=torch.bool)
    mask[2:7, 3:9] = True
    v = poisson(f, grid, mask)
    assert v[:, ~mask].abs().max() == 0
    assert_close(-laplacian(v, grid)[:, mask], f[:, mask], 1e-11)


def test_burgers_against_cole_and_hopf(gen):
    # theta = 1 + a exp(-nu k^2 t) cos(k x) solves the heat equation; u = -2 nu theta_x / theta.
    nu, a, k = 0.02, 0.8, 2 * math.pi
    x = Grid((64,)).points()[0]

    def exact(t):
        decay = a * math.exp(-nu * k * k * t)
        return 2 * nu * k * decay * torch.sin(k * x) / (1 + decay * torch.cos(k * x))

    u = burgers(exact(0)[None], nu, [0.0, 0.5, 1.0], dt=0.01)
    assert u.shape == (1, 3, 64)
    for i, t in enumerate((0.0, 0.5, 1.0)):
        assert_close(u[0, i], exact(t), 1e-8)
    w = torch.randn(2, 64, generator=gen, dtype=torch.float64)
    assert_close(burgers(w, 0.05, [0.1]).mean(-1)[:, 0], w.mean(-1), 1e-12)


def test_vorticity_of_the_taylor_green_vortex_and_the_order_in_time(gen):
    nu, n = 0.01, 16
    grid = Grid((n, n))
    x, y = (2 * math.pi * c for c in grid.mesh())
    w = (torch.cos(x) * torch.cos(y))[None]
    out = vorticity(w, nu, [0.5, 1.0], dt=0.05)
    for i, t in enumerate((0.5, 1.0)):
        assert_close(out[:, i], w * math.exp(-nu * 2 * (2 * math.pi) ** 2 * t), 1e-10)
    # Forcing of a mode that does not advect itself: a linear equation in closed form.
    push, rate = torch.sin(x + y), nu * 2 * (2 * math.pi) ** 2
    got = vorticity(torch.zeros_like(w), nu, [1.0], forcing=push, dt=0.01)[:, 0]
    assert_close(got, push[None] * (1 - math.exp(-rate)) / rate, 1e-7)
    w = random_field((n, n), 2.0, gen, tau=5.0, modes=5, dtype=torch.float64) * 5
    truth = vorticity(w, nu, [0.4], dt=0.0025)
    steps = [0.04, 0.02, 0.01]
    errors = [(vorticity(w, nu, [0.4], dt=dt) - truth).norm().item() for dt in steps]
    assert 3.6 < loglog_slope(steps, errors).slope < 4.4
    assert_close(truth.mean((-1, -2)), w.mean((-1, -2))[:, None], 1e-10)


def test_errors(gen):
    a = torch.ones(6, 6)
    with raises(ValueError, match="a must be positive"):
        darcy(a - 1)
    with raises(ValueError, match="method='fast'"):
        darcy(a, method="fast")
    with raises(ValueError, match="can be halved for odd numbers"):
        darcy(a, method="multigrid")
    with raises(ValueError, match="grid: boundary 'periodic'"):
        darcy(a, grid=Grid((6, 6)))
    with raises(RuntimeError, match="after 1 steps"):
        darcy(torch.ones(7, 7).double(), method="multigrid", max_steps=1)
    with raises(ValueError, match="mask: shape"):
        poisson(a, Grid((6, 6), 1.0, "dirichlet"), torch.ones(3, 3, dtype=torch.bool))
    with raises(ValueError, match="nu=-1"):
        burgers(a, -1.0, [1.0])
    with raises(ValueError, match=r"times=\[1.0, 1.0\]"):
        burgers(a, 1.0, [1.0, 1.0])
    with raises(FloatingPointError, match="take a smaller dt"):
        vorticity(1e4 * torch.randn(1, 8, 8, generator=gen), 0.0, [50.0], dt=0.5)
