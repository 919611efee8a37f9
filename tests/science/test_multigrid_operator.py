import math

import numpy as np
import pytest
import torch
from torch import nn

from lib.core.data.fields import darcy, random_field
from lib.core.fitting import fit
from lib.core.grids import Grid, relative_l2, v_cycle
from lib.core.stats import loglog_slope
from lib.science import multigrid_operator as mg
from lib.science.multigrid_operator import MgLinearOperator, MgNO
from lib.science.multigrid_operator.baselines import MultiwaveletLayer, multiwavelet_filters
from tests.helpers import assert_close, raises


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def close(a, b, tol=1e-12):
    return ((a - b).norm() / b.norm()).item() < tol


# ------------------------------------------------------------------- classical multigrid in W


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("steps", [(1, 1), (2, 2), (1, 0)])
def test_w_with_poisson_weights_is_a_v_cycle(dims, steps, gen):
    levels = {1: 5, 2: 4, 3: 3}[dims]
    n = 2**levels - 1
    grid = Grid((n,) * dims, 1.0, "dirichlet")
    f = torch.randn(1, *grid.shape, generator=gen, dtype=torch.float64)
    W = mg.poisson_operator(levels, *steps, dims=dims)
    h2 = grid.spacing[0] ** 2  # W's stencils are without it
    pre, post = steps
    assert_close(h2 * W(f[None])[0], v_cycle(f, grid, pre=pre, post=post), 1e-12)


def test_w_cycle_is_the_cycle_with_two_visits(gen):
    grid = Grid((15, 15), 1.0, "dirichlet")
    f = torch.randn(1, 15, 15, generator=gen, dtype=torch.float64)
    W = MgLinearOperator(
        1, 1, [(1, 1)] * 4, use_residual=True, transfer_padding=0, up_kernel=3, cycle="w"
    ).double()  # fmt: skip
    mg.set_poisson_weights(W)
    assert_close(grid.spacing[0] ** 2 * W(f[None])[0], v_cycle(f, grid, visits=2), 1e-12)


def test_full_multigrid_starts_on_the_coarsest_grid(gen):
    W = MgLinearOperator(
        1, 1, [(1, 1)] * 5, use_residual=True, transfer_padding=0, up_kernel=3, cycle="full"
    ).double()  # fmt: skip
    mg.set_poisson_weights(W)
    grid = Grid((31, 31), 1.0, "dirichlet")
    x, y = grid.mesh()
    u = torch.sin(math.pi * x) * torch.sin(2 * math.pi * y)
    f = 5 * math.pi**2 * u
    full = grid.spacing[0] ** 2 * W(f[None, None])[0, 0]
    one = v_cycle(f[None], grid)[0]
    assert (full - u).norm() < 0.5 * (one - u).norm()
    assert (full - u).norm() < 0.06 * u.norm()


@pytest.mark.parametrize(
    ("steps", "low", "high"), [((1, 1), 0.33, 0.39), ((2, 2), 0.17, 0.21), ((1, 0), 0.57, 0.61)]
)
def test_contraction_does_not_depend_on_the_grid(steps, low, high, gen):
    rates = []
    for levels in (4, 5, 6):
        n = 2**levels - 1
        e = torch.randn(n, n, generator=gen, dtype=torch.float64)
        norms = mg.convergence(mg.poisson_operator(levels, *steps), e, 30)
        rates.append((norms[-1] / norms[-2]).item())
    # 30 iterations from random data: 0.34 to 0.36, 0.18 to 0.19, 0.58 to 0.59 over ten draws.
    assert low - 0.02 < min(rates)
    assert max(rates) < high
    assert max(rates[1:]) - min(rates[1:]) < 0.02


def test_without_coarse_grids_the_lowest_mode_hardly_moves():
    n = 127
    s = torch.sin(math.pi * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))
    rate = 1 - 0.8 * (1 - math.cos(math.pi / (n + 1)))
    jacobi = mg.poisson_operator(1, 1, 0)
    norms = mg.convergence(jacobi, s[:, None] * s, 10)
    assert_close(norms[1:] / norms[:-1], torch.full((10,), rate, dtype=torch.float64), 1e-10)


# ------------------------------------------------------------------- W as an operator


SETTINGS = [
    {},
    {"num_iteration": [(1, 1), (2, 1), (1, 2)]},
    {"use_residual": True, "cycle": "w"},
    {"cycle": "full"},
    {"padding_mode": "circular"},
    {"padding_mode": "reflect", "num_iteration": [(1, 0)] * 3},
    {"padding_mode": "replicate", "grow": True, "num_iteration": [(1, 1)] * 3},
    {"transfer_padding": 0, "up_kernel": (4, 3), "num_iteration": [(1, 0)] * 3},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dims", [1, 2])
def test_linear_and_zero_at_zero(settings, dims, gen):
    W = MgLinearOperator(2, 3, dims=dims, **{"num_iteration": [(1, 0)] * 4, **settings}).double()
    f, g = torch.randn(2, 2, 2, *[16] * dims, generator=gen, dtype=torch.float64)
    assert W(f).shape == (2, 3, *[16] * dims)
    assert_close(W(2 * f - 3 * g), 2 * W(f) - 3 * W(g), 1e-12)
    assert W(0 * f).abs().max() == 0
    assert W(f[..., :13]).shape[-1] == 13  # sizes that do not halve evenly


@pytest.mark.parametrize("shape", [(0, 2, 8, 8), (1, 2, 5, 17), (1, 2, 1, 1)])
def test_odd_batches_and_sizes(shape, gen):
    W = MgLinearOperator(2, 3, [(1, 1)] * 3)
    assert W(torch.randn(shape, generator=gen)).shape == (shape[0], 3, *shape[2:])


def test_strides_and_autocast_do_not_matter(gen):
    net = MgNO(2, 1, 4, 2, [(1, 1)] * 3)
    x = torch.randn(2, 16, 16, 2, generator=gen).permute(0, 3, 1, 2)
    want = net(x.contiguous())
    assert_close(net(x), want, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x)
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), want, 0.03)


def test_biases_make_it_affine(gen):
    W = MgLinearOperator(1, 2, [(1, 0)] * 3, bias=True)
    x = torch.randn(1, 1, 8, 8, generator=gen)
    assert W(0 * x).abs().max() > 0
    assert_close(W(2 * x) - W(x), W(x) - W(0 * x), 1e-5)


@pytest.mark.parametrize("dims", [1, 2])
def test_periodic_w_commutes_with_shifts_by_the_coarsest_step(dims, gen):
    f = torch.randn(1, 2, *[32] * dims, generator=gen, dtype=torch.float64)
    shifted = lambda t, k: t.roll([k] * dims, tuple(range(2, 2 + dims)))
    make = lambda **more: MgLinearOperator(
        2, 2, [(1, 0)] * 4, dims=dims, padding_mode="circular", **more
    ).double()  # fmt: skip
    W = make()
    assert close(W(shifted(f, 8)), shifted(W(f), 8))
    assert not close(W(shifted(f, 1)), shifted(W(f), 1), 0.01)
    assert not close(make(periodic_up=False)(shifted(f, 8)), shifted(f, 8), 0.01)
    half = make(periodic_up=False)
    assert not close(half(shifted(f, 8)), shifted(half(f), 8), 1e-3)


def test_reach_grows_with_levels(gen):
    shares = []
    for J in range(1, 6):
        W = MgLinearOperator(4, 4, [(1, 0), (1, 0), (1, 0), (2, 0), (2, 0)][:J]).double()
        shares.append((mg.delta_response(W, 32, (1, 1), 4) != 0).double().mean().item())
    assert shares[0] == 9 / 1024
    assert shares == sorted(shares)
    assert shares[2] < 1
    assert shares[3] == shares[4] == 1.0
    # A stack of five 3x3 convolutions stops after five places.
    net = mg.ResidualCNN(1, 1, 4, 5).double()
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    y = x.clone()
    y[0, 0, 1, 1] = 1
    seen = (net(y) - net(x))[0, 0] != 0
    assert seen[:7, :7].all()
    assert seen.sum() == 49


def test_parameters_follow_the_formula():
    for c_f, c_u, steps in ((10, 10, [(1, 0)] * 4), (1, 5, [(2, 1), (1, 2)]), (3, 4, [(1, 1)])):
        for dims in (1, 2):
            W = MgLinearOperator(c_f, c_u, steps, dims=dims)
            assert parameters(W) == mg.operator_parameters(c_f, c_u, steps, dims)
    counts = [mg.operator_parameters(10, 10, [(1, 0)] * J) for J in (1, 2, 3, 4)]
    assert counts == [900, 6100, 11300, 16500]


# ------------------------------------------------------------------- models


@pytest.mark.parametrize("bias", ["none", "constant", "pointwise", "function"])
@pytest.mark.parametrize("dims", [1, 2])
def test_mgno_shapes_and_biases(bias, dims, gen):
    size = [16] * dims
    net = MgNO(
        2, 2, 4, 2, [(1, 0)] * 3, bias=bias, dims=dims, skip=True,
        size=size if bias == "function" else None,
    )  # fmt: skip
    x = torch.randn(3, 2, *size, generator=gen)
    assert net(x).shape == x.shape
    net.head.weight.data.zero_()
    assert_close(net(x), x, 0)  # the skip


def test_parameter_counts_of_the_authors_models():
    # Counted by running the authors' models.py with these arguments.
    assert parameters(mg.mgno_dc(1, 8, 2)) == 23660
    assert parameters(mg.mgno_dc_smooth(211, 1, 8, 2)) == 24757
    assert parameters(mg.mgno_ns(1, 8, 2, 64)) == 197818
    # Theirs has 225 more: an A before the first step, which is never used.
    assert parameters(mg.mgno_helmholtz(101, 1, 4, 2)) == 237934 - 225


def test_the_authors_models_run_at_their_sizes(gen):
    with torch.no_grad():
        assert (
            mg.mgno_dc_smooth(211, c_u=2, num_layer=1)(torch.randn(1, 1, 211, 211)).shape[-1] == 211
        )
        assert (
            mg.mgno_helmholtz(101, c_u=2, num_layer=1)(torch.randn(1, 1, 101, 101)).shape[-1] == 101
        )
        x = torch.randn(1, 10, 32, 32, generator=gen)
        flow = mg.mgno_ns(1, 4, 1, 32)
        one = flow(x[:, -1:])
        assert one.shape == (1, 1, 32, 32)
        assert_close(mg.rollout(flow, x[:, -1:], 2)[:, 1:], flow(one), 1e-6)
        many = MgNO(10, 1, 4, 1, [(1, 0)] * 2, padding_mode="circular")
        out = mg.rollout(many, x, 3)
        assert out.shape == (1, 3, 32, 32)
        assert_close(out[:, 1:2], many(torch.cat([x[:, 1:], out[:, :1]], 1)), 1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mg.ResidualCNN(1, 2, 4),
        lambda: mg.DilatedResNet(1, 2, 4, 1),
        lambda: mg.UFNO(1, 2, 4, 3, 2),
        lambda: mg.MWT(1, 2, 2, 3),
        lambda: mg.LSM(1, 2, 8, 2),
    ],
)
def test_baselines_run_and_every_parameter_is_used(make, gen):
    net = make()
    x = torch.randn(2, 1, 16, 16, generator=gen)
    net(x).square().sum().backward()
    assert net(x).shape == (2, 2, 16, 16)
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_multiwavelets_are_orthogonal_and_blind_to_polynomials(k, gen):
    h0, h1, g0, g1 = multiwavelet_filters(k)
    full = torch.cat([torch.cat([h0, h1], 1), torch.cat([g0, g1], 1)])
    assert_close(full @ full.T, torch.eye(2 * k, dtype=torch.float64), 1e-12)
    # x^p on [0, 1]: coefficients on the two halves give those on the whole, and no details.
    nodes, weights = (torch.tensor(t) for t in np.polynomial.legendre.leggauss(8))
    nodes, weights = (nodes + 1) / 2, weights / 2
    legendre = np.polynomial.legendre.legvander(2 * nodes.numpy() - 1, k - 1)
    phi = torch.from_numpy(legendre * np.sqrt(2 * np.arange(k) + 1))
    for p in range(k):
        half = [phi.T @ (weights * ((nodes + i) / 2) ** p) / math.sqrt(2) for i in (0, 1)]
        both = torch.cat(half)
        whole = phi.T @ (weights * nodes**p)
        assert_close(torch.cat([h0, h1], 1) @ both, whole, 1e-12)
        assert (torch.cat([g0, g1], 1) @ both).abs().max() < 1e-12
    layer = MultiwaveletLayer(k, 2, 2, 0).double()
    x = torch.randn(2, 2 * k * k, 8, 8, generator=gen, dtype=torch.float64)
    layer.filters = layer.filters.double()
    s, d = layer.split(x)
    assert_close(layer.join(s, d), x, 1e-6)  # the buffer is stored in single precision
    assert_close(s.square().sum() + d.square().sum(), x.square().sum(), 1e-6)


# ------------------------------------------------------------------- data and training


def test_darcy_coefficients(gen):
    rough = mg.darcy_coefficients("rough", 4, 16, gen, modes=8)
    assert set(rough.unique().tolist()) == {3.0, 12.0}
    assert (mg.darcy_coefficients("smooth", 2, 16, gen) > 0).all()
    draw = lambda size: mg.darcy_coefficients(
        "multiscale", 2, size, torch.Generator().manual_seed(3)
    )
    a, b = draw(7), draw(15)
    assert_close(b[:, 1::2, 1::2], a, 1e-5)
    assert a.min() > 0
    x, u = mg.darcy_data("rough", 2, 15, gen, modes=8)
    assert x.shape == u.shape == (2, 1, 15, 15)
    with raises(ValueError, match="kind='wild'"):
        mg.darcy_coefficients("wild", 1, 8, gen)


def test_one_dimension_learns_its_own_darcy_problem(gen):
    # -(a u')' = 1 on 63 nodes: what a constant guess misses, and what is left after 60 steps.
    grid = Grid((63,), 1.0, "dirichlet")
    a = random_field((63,), 2.0, gen, "neumann", n=160, modes=6, on=grid)
    a = torch.where(a > 0, 12.0, 3.0)
    u = darcy(a, grid=grid)
    x, y = (a[:, None] - 7.5) / 4.5, u[:, None] / u.std()
    torch.manual_seed(0)
    net = MgNO(1, 1, 6, 2, [(1, 0)] * 4 + [(2, 0)], dims=1)
    loss = lambda f, batch: relative_l2(f(batch[0]), batch[1]).mean()
    fit(
        net, (x[:128], y[:128]), loss, steps=60, batch=8, schedule=mg.one_cycle(60),
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
    )  # fmt: skip
    guess = y[:128].mean(0, keepdim=True).expand(32, -1, -1)
    with torch.no_grad():
        left = loss(net, (x[128:], y[128:]))
    # Seeds 0 to 4 leave 0.17 to 0.38, of 0.58 to 0.74 for the mean of the training set.
    assert left < 0.6 * relative_l2(guess, y[128:]).mean()


def test_helmholtz_converges_to_a_wave(gen):
    # u = cos(2 pi x) cos(m y): no flux at three sides, u_y = -m sin(m) cos(2 pi x) on top.
    m, k = 3.0, 5.0
    errors, sizes = [], [17, 33, 65]
    for s in sizes:
        x = torch.linspace(0, 1, s, dtype=torch.float64)
        u = torch.cos(2 * math.pi * x)[:, None] * torch.cos(m * x)
        source = ((2 * math.pi) ** 2 + m * m - k * k) * u
        top = -m * math.sin(m) * torch.cos(2 * math.pi * x)
        got = mg.helmholtz(torch.full((s, s), k, dtype=torch.float64), top, source)
        errors.append((got - u).abs().max().item())
    assert -2.2 < loglog_slope([s - 1 for s in sizes], errors).slope < -1.8
    c, u = mg.helmholtz_data(1, 33, gen, omega=200.0)
    assert c.shape == u.shape == (1, 1, 33, 33)
    assert 19 <= c.min() <= c.max() <= 21


def test_navier_stokes_data(gen):
    w = mg.navier_stokes_data(2, 16, gen, nu=1e-2, times=[0.1, 0.2], dt=0.02)
    assert w.shape == (2, 2, 16, 16)
    assert w.isfinite().all()


def test_normalizer_and_one_cycle(gen):
    x = 3 + 2 * torch.randn(50, 1, 4, 4, generator=gen)
    for pointwise in (False, True):
        n = mg.Normalizer(x, pointwise)
        assert_close(n.decode(n.encode(x)), x, 1e-6)
        z = n.encode(x)
        mean, std = (z.mean(0), z.std(0)) if pointwise else (z.mean(), z.std())
        assert mean.abs().max() < 1e-4
        assert_close(std, torch.ones_like(std), 1e-4)
    for total, warmup in ((50, 0.2), (150, 0.3)):
        p = nn.Parameter(torch.zeros(1))
        opt = torch.optim.SGD([p], lr=1.0)
        peer = torch.optim.lr_scheduler.OneCycleLR(
            opt, 1.0, total, pct_start=warmup, div_factor=2.0, final_div_factor=100.0
        )
        ours, theirs = mg.one_cycle(total, warmup=warmup), []
        for _ in range(total):
            theirs.append(opt.param_groups[0]["lr"])
            opt.step()
            if len(theirs) < total:
                peer.step()
        assert_close(torch.tensor([ours(t) for t in range(total)]), torch.tensor(theirs), 1e-6)
    # Where the way up is a single step (PyTorch divides by zero there), it is left out.
    assert [mg.one_cycle(5)(t) for t in (0, 4)] == [1.0, 0.005]


def test_errors(gen):
    with raises(ValueError, match="padding_mode='wrap'"):
        MgLinearOperator(1, 1, padding_mode="wrap")
    with raises(ValueError, match="cycle='x'"):
        MgLinearOperator(1, 1, cycle="x")
    with raises(ValueError, match="every level needs a step on the way down"):
        MgLinearOperator(1, 1, [(1, 0), (0, 1)])
    with raises(ValueError, match=r"up_kernel=\(5, 5\)"):
        MgLinearOperator(1, 1, [(1, 0)] * 3, up_kernel=5)
    with raises(ValueError, match="dims=4"):
        MgLinearOperator(1, 1, dims=4)
    with raises(ValueError, match="c_f=0"):
        MgLinearOperator(0, 1)
    with raises(ValueError, match="transfer_padding=2"):
        MgLinearOperator(1, 1, transfer_padding=2)
    with raises(ValueError, match="classical multigrid needs"):
        mg.set_poisson_weights(MgLinearOperator(1, 1, [(1, 1)] * 2))
    with raises(ValueError, match="omega=2"):
        mg.set_poisson_weights(mg.poisson_operator(3), 2.0)
    with raises(ValueError, match="n=8: allowed are 2"):
        mg.levels_for(8)
    with raises(ValueError, match="n=-1: allowed are 2"):
        mg.levels_for(-1)
    assert mg.levels_for(127) == 7
    W = MgLinearOperator(2, 3, [(1, 0)] * 3)
    for wrong in ((1, 1, 8, 8), (2, 8, 8), (1, 2, 8)):
        with raises(ValueError, match="allowed is a batch, 2 channels and 2 axes of points"):
            W(torch.zeros(wrong))
    with raises(ValueError, match="level 5 would have 1 points along an axis; allowed are 3"):
        mg.poisson_operator(6)(torch.zeros(1, 1, 32, 32, dtype=torch.float64))
    with raises(ValueError, match="level 2 would have 1 points along an axis; allowed are 2"):
        MgLinearOperator(1, 1, [(1, 0)] * 2, padding_mode="reflect")(torch.zeros(1, 1, 2, 9))
    with raises(ValueError, match="allowed are pairs of whole numbers"):
        MgLinearOperator(1, 1, [1, 1, 2])
    with raises(ValueError, match=r"num_iteration=\(\)"):
        mg.operator_parameters(1, 1, [])
    with raises(ValueError, match="e: 4 axes"):
        mg.convergence(mg.poisson_operator(3), torch.zeros(1, 1, 7, 7), 1)
    with raises(ValueError, match="bias='linear'"):
        MgNO(1, bias="linear")
    with raises(ValueError, match="size=None: give it with"):
        MgNO(1, bias="function")
    with raises(ValueError, match="skip=True: c_out=3"):
        MgNO(2, 3, skip=True)
    with raises(ValueError, match="c_out=0: allowed are 1 or more"):
        MgNO(2, 0)
    with raises(ValueError, match=r"size=\(16,\): allowed are 2 numbers"):
        MgNO(1, bias="function", size=(16,))
    with raises(ValueError, match=r"bias='function' was made for \(16, 16\)"):
        MgNO(1, 1, 2, 1, [(1, 0)] * 2, bias="function", size=(16, 16))(torch.zeros(1, 1, 8, 8))
    with raises(ValueError, match="size=10: allowed are multiples of 16"):
        mg.mgno_ns(size=10)
    with raises(ValueError, match=r"4 channels on \(8, 8\) points; the LayerNorm here was"):
        mg.mgno_ns(1, 4, 1, 32)(torch.zeros(1, 1, 64, 64))
    with raises(ValueError, match="size=20: too few points for 5 levels"):
        mg.mgno_helmholtz(20)
    with raises(ValueError, match="steps=0"):
        mg.rollout(nn.Identity(), torch.zeros(1, 1, 4, 4), 0)
    with raises(ValueError, match="x: 1 samples"):
        mg.Normalizer(torch.zeros(1, 1, 4, 4), True)
    with raises(ValueError, match="n=1, size=1"):
        mg.helmholtz_data(1, 1, torch.Generator())
    with raises(ValueError, match=r"top: \(4,\); allowed are"):
        mg.helmholtz(torch.ones(5, 5), torch.ones(4))
    with raises(ValueError, match="depth=3, dims=4"):
        mg.ResidualCNN(1, 1, 4, 3, dims=4)
    with raises(ValueError, match="k=0"):
        mg.MWT(1, 1, k=0)
    with raises(ValueError, match="depth=1"):
        mg.ResidualCNN(1, 1, 4, 1)
    with raises(ValueError, match="heads=4"):
        mg.LSM(1, 1, 6)
    with raises(ValueError, match="powers of two"):
        mg.MWT(1, 1)(torch.zeros(1, 1, 12, 12))
    with raises(ValueError, match="multiples of patch=2"):
        mg.LSM(1, 1, 8, 1)(torch.zeros(1, 1, 5, 5))
    with raises(ValueError, match="total=1"):
        mg.one_cycle(1)
