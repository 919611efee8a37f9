"""Residual networks: sizes from the literature, shortcuts, variance without normalization."""

import pytest
import torch
from torch import nn

from lib.models.resnet import Block, NFResNet, PadShortcut, ResNet, ScaledWSConv2d, preact18
from lib.models.resnet import resnet_cifar as cifar
from tests.helpers import assert_close


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "wanted"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_published_sizes(depth, wanted):
    assert size(cifar(depth)) == wanted


def test_preact18_size_and_parts():
    net = preact18()
    assert size(net) == 11_172_170
    assert len(net.blocks) == 8
    x = torch.randn(2, 3, 32, 32)
    assert net(x).shape == (2, 10)
    assert_close(net.eval()(x), net.head(net.blocks(net.stem(x))), 0)


def test_shapes_of_every_option():
    x = torch.randn(2, 3, 32, 32)
    for shortcut in ("A", "B", None):
        for preact in (True, False):
            net = ResNet([4, 4, 8, 16], 5, shortcut=shortcut, preact=preact)
            assert net(x).shape == (2, 5)
            assert net.blocks(net.stem(x)).shape == (2, 16, 8, 8)
    net = ResNet([4, 8], 5, stem="imagenet", norm=None)
    assert net(x).shape == (2, 5)
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))


def test_a_block_with_zero_branch_is_its_shortcut(gen):
    x = torch.randn(2, 6, 8, 8, generator=gen)
    options = {"conv": nn.Conv2d, "norm": None, "act": nn.ReLU}
    for preact, skip_activated, wanted in (
        (True, False, x),
        (True, True, x.relu()),
        (False, False, x.relu()),
    ):
        block = Block(
            6, 6, 1, shortcut="B", preact=preact, skip_activated=skip_activated, **options
        )
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        assert_close(block(x), wanted, 0)
    pad = PadShortcut(6, 9, 2)(x)
    assert pad.shape == (2, 9, 4, 4)
    assert_close(pad[:, 1:7], x[:, :, ::2, ::2], 0)
    assert pad[:, 0].abs().sum() + pad[:, 7:].abs().sum() == 0


def test_every_call_site_has_its_own_activation():
    made = []

    def act():
        made.append(nn.ReLU())
        return made[-1]

    net = ResNet([4, 4], 3, act=act, preact=True)
    assert len(made) == len(set(map(id, made))) == 5
    assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == 5


def test_standardized_weights(gen):
    conv = ScaledWSConv2d(16, 32, kernel_size=3, eps=0.0)
    nn.init.normal_(conv.weight, mean=0.3, generator=gen)
    w = conv.standardized().flatten(1).detach()
    assert_close(w.var(1) * w.shape[1], torch.ones(32), 1e-5)
    assert w.mean(1).abs().max() < 1e-7
    # Adding a constant to a filter, or scaling it, changes nothing.
    before = conv.standardized().detach().clone()
    with torch.no_grad():
        conv.weight.mul_(3).add_(5)
    assert_close(conv.standardized(), before, 1e-4)
    x = torch.randn(64, 16, 12, 12, generator=gen)
    assert abs(conv(x).var().item() - 1) < 0.1


def test_the_stream_keeps_its_expected_variance(gen):
    torch.manual_seed(0)
    net = NFResNet((2, 2), 3, widths=(64, 128), stem="small")
    for block in net.blocks:
        nn.init.ones_(block.branch_gain)
        for conv in block.convs:
            nn.init.zeros_(conv.bias)
    for m in net.modules():
        if isinstance(m, ScaledWSConv2d):
            nn.init.normal_(m.weight)
            nn.init.zeros_(m.bias)
    x = net.stem(torch.randn(8, 3, 16, 16, generator=gen))
    # A projecting block starts the count anew after it has divided.
    for block, variance in zip(net.blocks, [1.0, 1.04, 1.08, 1.04], strict=True):
        assert block.deviation**2 == pytest.approx(variance)
        x = block(x)
        # Away from the border, where the padding's zeros thin the signal out.
        assert 0.7 < x[..., 2:-2, 2:-2].var().item() < 1.4
    logits = net(torch.randn(2, 3, 16, 16, generator=gen))
    assert_close(logits, net.head[-1].bias.expand(2, 3), 0)


def test_nf_bottleneck_shapes():
    net = NFResNet((1, 1, 1, 1), 7, block="bottleneck", widths=(4, 8, 8, 16))
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    assert net.blocks[-1].convs[-1].out_channels == 64


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet([], 3), "widths="),
        (lambda: cifar(21), "depth=21: allowed is 6 n"),
        (lambda: ResNet([8, 4], 3, shortcut="A"), "cannot narrow from 8 to 4"),
        (lambda: NFResNet((1,), 3), "counts="),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
