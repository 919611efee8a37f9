import math

import pytest
import torch

from lib.core.grids import Grid, resample
from lib.models.operators import FNO, DeepONet, SpectralConv, coordinates
from tests.helpers import assert_close, raises


def double(layer):
    for p in layer.parameters():
        p.data = p.data.to(torch.complex128 if p.is_complex() else torch.float64)
    return layer


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_one_map_on_every_grid_that_resolves_its_modes(gen, dims):
    layer = double(SpectralConv(2, 3, 3, dims))
    base, finer = [(8,) * dims, (9, 7, 8)[:dims]], [(16,) * dims, (25, 9, 12)[:dims]]
    for small, large in zip(base, finer, strict=True):
        # Waves up to 2 along each axis, which both grids resolve.
        u = resample(
            torch.randn(2, 2, *[5] * dims, generator=gen, dtype=torch.float64), small, "fourier"
        )
        up = lambda v, n=large: resample(v, n, "fourier")
        assert_close(layer(up(u)), up(layer(u)), 1e-12)


def test_equals_a_sum_over_waves(gen):
    # One dimension, by hand: modes 0 .. 2 of 7 points.
    layer = double(SpectralConv(1, 1, 3, 1))
    u = torch.randn(1, 1, 7, generator=gen, dtype=torch.float64)
    x, w = torch.arange(7, dtype=torch.float64) / 7, layer.weight[0, 0, 0]
    total = torch.zeros(7, dtype=torch.float64)
    for k in range(3):
        wave = torch.exp(2j * math.pi * k * x)
        c = (u[0, 0] * wave.conj()).mean()
        total += ((1 if k == 0 else 2) * (w[k] * c * wave)).real
        if k == 0:
            total -= (w[k] * c * wave).real - (w[k] * c).real
    assert_close(layer(u)[0, 0], total, 1e-12)


def test_translations_commute_and_coarse_grids_still_work(gen):
    layer = double(SpectralConv(2, 2, (3, 4)))
    u = torch.randn(1, 2, 8, 9, generator=gen, dtype=torch.float64)
    assert_close(layer(u.roll((1, 2), (2, 3))), layer(u).roll((1, 2), (2, 3)), 1e-12)
    assert layer(u[..., :3, :2]).shape == (1, 2, 3, 2)
    assert layer(u[..., :1, :1]).shape == (1, 2, 1, 1)


@pytest.mark.parametrize("dims", [1, 2])
def test_fno_shapes_padding_and_parameters(gen, dims):
    x = torch.randn(2, 1, *[12] * dims, generator=gen)
    for padding in (0.0, 0.25):
        net = FNO(1, 2, 4, 3, 2, dims, padding=padding)
        assert net(x).shape == (2, 2, *[12] * dims)
    spectral = 2 ** (dims - 1) * 4 * 4 * 3**dims
    complexes = sum(p.numel() for p in net.parameters() if p.is_complex())
    assert complexes == 2 * spectral
    plain = FNO(1, 1, 4, 3, 1, dims, coordinates=False, project=None)
    shift = [3] * dims, tuple(range(2, 2 + dims))
    assert_close(plain(x.roll(*shift)), plain(x).roll(*shift), 1e-5)
    assert_close(coordinates(x)[0, 0].amax(), torch.tensor(1.0))


def test_deeponet_learns_an_antiderivative(gen):
    x = Grid((20,), 1.0, "neumann").points(torch.float32)[0]
    k = torch.randint(1, 4, (200, 1), generator=gen)
    phase = 2 * math.pi * torch.rand(200, 1, generator=gen)
    u = torch.cos(k * 2 * x + phase)
    v = (torch.sin(k * 2 * x + phase) - torch.sin(phase)) / (2 * k)
    torch.manual_seed(0)
    net = DeepONet(20, 1, 16)
    assert net(u, x[:7, None]).shape == (200, 7, 1)
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(100):
        opt.zero_grad()
        loss = (net(u[:150], x[:, None])[..., 0] - v[:150]).square().mean()
        loss.backward()
        opt.step()
    left = (net(u[150:], x[:, None])[..., 0] - v[150:]).square().mean() / v[150:].square().mean()
    assert left < 0.05


def test_errors():
    with raises(ValueError, match=r"modes=\(0, 0\)"):
        SpectralConv(1, 1, 0)
    with raises(ValueError, match=r"modes=\(2, 2\): allowed are 3"):
        SpectralConv(1, 1, (2, 2), 3)
    with raises(ValueError, match="x: 1 axes after the channels; allowed is 2"):
        SpectralConv(1, 1, 2)(torch.zeros(1, 1, 5))
    with raises(ValueError, match="depth=0"):
        FNO(1, 1, 4, 2, 0)
