import pytest
import torch
from torch import nn

from lib.models.unet import UNet
from tests.helpers import assert_close, raises


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("up", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [8, 7, 5])
def test_any_size(gen, dims, up, size):
    net = UNet(2, 3, [4, 5, 6], dims, up=up)
    x = torch.randn(2, 2, *[size] * dims, generator=gen)
    assert net(x).shape == (2, 3, *[size] * dims)


def test_without_biases_it_is_homogeneous(gen):
    net = UNet(1, 1, [4, 6], bias=False)
    x = torch.randn(2, 1, 8, 8, generator=gen)
    assert net(x).norm() > 0
    assert_close(net(3 * x), 3 * net(x), 1e-5)
    assert net(torch.zeros_like(x)).abs().max() == 0
    assert not any("bias" in name for name, _ in net.named_parameters())


@pytest.mark.parametrize("up", ["bilinear", "nearest"])
@pytest.mark.parametrize("dims", [1, 2])
def test_circular_padding_commutes_with_shifts_by_the_coarsest_step(gen, up, dims):
    x = torch.randn(1, 2, *[16] * dims, generator=gen, dtype=torch.float64)
    for pad, shift, same in (("circular", 4, True), ("circular", 1, False), ("zeros", 4, False)):
        net = UNet(2, 1, [3, 4, 4], dims, up=up, pad=pad, act=nn.SiLU).double()
        axes = tuple(range(2, 2 + dims))
        a, b = net(x.roll([shift] * dims, axes)), net(x).roll([shift] * dims, axes)
        assert (((a - b).norm() / b.norm()).item() < 1e-12) is same


def test_condition_norm_and_process(gen):
    seen = []

    def process(level, channels):
        seen.append((level, channels))
        return nn.Conv2d(channels, channels, 1)

    norm = lambda c: nn.GroupNorm(2, c)
    net = UNet(1, 1, [4, 6], condition=3, norm=norm, process=process, act=nn.SiLU)
    assert seen == [(0, 4), (1, 6)]
    x, t = torch.randn(2, 1, 8, 8, generator=gen), torch.randn(2, 3, generator=gen)
    assert (net(x, t) - net(x, -t)).norm() > 1e-3
    # Each sample has its own condition.
    assert_close(net(x, t)[1:], net(x[1:], t[1:]), 1e-5)
    with raises(ValueError, match="condition: missing"):
        net(x)
    with raises(ValueError, match="condition: given"):
        UNet(1, 1, [4])(x, t)


def test_errors():
    with raises(ValueError, match=r"widths=\[\]"):
        UNet(1, 1, [])
    with raises(ValueError, match="dims=4"):
        UNet(1, 1, [4], 4)
    with raises(ValueError, match="up='cubic'"):
        UNet(1, 1, [4], up="cubic")
    with raises(ValueError, match="pad='reflect'"):
        UNet(1, 1, [4], pad="reflect")
    with raises(ValueError, match="allowed is a batch, 3 channels and 2 axes"):
        UNet(3, 1, [4, 8])(torch.zeros(1, 2, 8, 8))
    with raises(ValueError, match="allowed is a batch, 3 channels and 2 axes"):
        UNet(3, 1, [4, 8])(torch.zeros(3, 8, 8))
