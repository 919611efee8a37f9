import pytest
import torch
from torch import nn

from lib.core.hooks import leaf_names, record
from lib.models.cnn import ConvNet, conv_n, lenet300, vgg
from tests.helpers import assert_close


@pytest.mark.parametrize("pool", ["max", "avg", "stride"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("head", ["gap", "flatten"])
def test_shapes(gen, pool, dims, head):
    model = ConvNet([4, [5, 6], 7], 3, dims=dims, pool=pool, head=head, size=12, hidden=(8,))
    x = torch.randn(2, 3, *[12] * dims, generator=gen)
    assert model(x).shape == (2, 3)
    maps = model.features(x)
    assert [m.shape[1] for m in maps] == [4, 6, 7, 7]
    assert [m.shape[2] for m in maps] == [12, 6, 3, 3]
    with record(model, ["stages.1"]) as seen:
        model(x)
    assert_close(seen["stages.1"], maps[1])


def test_gap_ignores_places_and_flatten_does_not(gen):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8, generator=gen)
    shifted = x.roll((2, 4), (2, 3))
    for head, same in (("gap", True), ("flatten", False)):
        # 1x1 kernels and no pooling: features move with the image.
        model = ConvNet([4], 3, kernel=1, head=head, size=8)
        assert torch.allclose(model(x), model(shifted), atol=1e-6) is same


def test_norm_takes_over_the_bias_and_activations_are_separate():
    model = ConvNet([4, [4, 4]], 2, norm=nn.BatchNorm2d)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.bias is None for c in convs)
    assert len(leaf_names(model, nn.ReLU)) == 3
    assert not any(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))
    assert ConvNet([4], 2).stages[0][0].bias is not None


def test_conv_factory_is_used():
    seen = []

    def conv(*args, **options):
        seen.append(args)
        return nn.Conv2d(*args, **options)

    ConvNet([4, 5], 2, conv=conv)
    assert seen == [(3, 4, 3), (4, 5, 3)]


def test_classics_have_the_published_sizes():
    count = lambda m: sum(p.numel() for p in m.parameters())
    convs = lambda m: sum(p.numel() for p in m.stages.parameters())
    # Lottery ticket paper, figure 2: parameters of convolutions / all. Its 1.7 million for Conv-6
    # do not follow from its description, which gives 4 x 4 x 256 inputs to the first hidden layer.
    for n, want_conv, want_all in ((2, 38_000, 4.3e6), (4, 260_000, 2.4e6), (6, 1.1e6, 2.26e6)):
        model = conv_n(n)
        assert_close(convs(model), want_conv, 0.05)
        assert_close(count(model), want_all, 0.05)
    assert count(lenet300()) == 266_610
    # VGG-16's 13 convolutions have 14.71 million weights and biases.
    model = vgg(16, 10, norm=None)
    assert convs(model) == 14_714_688
    assert model.features(torch.zeros(1, 3, 32, 32))[-1].shape == (1, 512, 1, 1)


def test_errors():
    with pytest.raises(ValueError, match="pool='mean'"):
        ConvNet([4], 2, pool="mean")
    with pytest.raises(ValueError, match="head='linear'"):
        ConvNet([4], 2, head="linear")
    with pytest.raises(ValueError, match="dims=4"):
        ConvNet([4], 2, dims=4)
    with pytest.raises(ValueError, match="kernel=2: allowed are odd"):
        ConvNet([4], 2, kernel=2)
    with pytest.raises(ValueError, match="size=None"):
        ConvNet([4], 2, head="flatten")
    with pytest.raises(ValueError, match="size=3: too small to be halved 2 times"):
        ConvNet([4, 4, 4], 2, head="flatten", size=3)
    with pytest.raises(ValueError, match="pool_last=True"):
        ConvNet([4], 2, pool="stride", pool_last=True)
    with pytest.raises(ValueError, match="n=3: allowed are 2, 4 and 6"):
        conv_n(3)
    with pytest.raises(ValueError, match="plan=12: allowed are 11, 13, 16, 19"):
        vgg(12, 10)
