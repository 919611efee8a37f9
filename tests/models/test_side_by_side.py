"""Members that never meet: side by side, each network does what it does alone."""

import pytest
import torch
from torch import nn

from lib.models import local_learning as ll
from lib.models.resnet import ResNet
from lib.models.side_by_side import side_by_side
from tests.helpers import assert_close, raises


def network(k=0, widths=(4, 4, 8), head="0c1f"):
    torch.manual_seed(k)
    model = ResNet(list(widths), 10, channels=1)
    heads = ll.compared_heads(head, [widths[0], *widths[:-1]], 10, colors=1)
    return ll.LocalBlocks([model.stem, *model.blocks], [*heads, model.head])


@pytest.fixture
def batch(gen):
    return torch.rand(12, 1, 8, 8, generator=gen), torch.randint(10, (12,), generator=gen)


def run(model, x, y, steps=3):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model.local_step(x, y)
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("head", ["0c1f", "dgl"])
def test_side_by_side_is_each_alone(head, batch):
    x, y = batch[0].double(), batch[1]
    alone = [network(k, head=head).double() for k in range(3)]
    together = run(side_by_side(alone), x, y)
    alone = [run(m, x, y) for m in alone]
    assert_close(together(x), torch.stack([m(x) for m in alone]), 1e-9)
    for i, h in enumerate(together.hidden(x)):
        assert_close(h, torch.stack([m.hidden(x)[i] for m in alone]), 1e-9)
    assert ll.accuracy(together, x, y) == [ll.accuracy(m, x, y)[0] for m in alone]


def chain(k, conv, norm):
    """A block with every option of its layers, drawn from ``k``."""
    torch.manual_seed(k)
    block = nn.Sequential(conv(), norm(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    width = block.eval()(torch.rand(2, 2, 9, 9)).shape[1]
    return ll.LocalBlocks([block.train()], [nn.Linear(width, 3, bias=False)])


@pytest.mark.parametrize(
    "conv",
    [
        lambda: nn.Conv2d(2, 4, 3, dilation=2, stride=2, padding=1, groups=2),
        lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", bias=False),
    ],
)
@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(4, eps=0.1, momentum=0.5),
        lambda: nn.BatchNorm2d(4, affine=False),
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
    ],
)
def test_options_of_the_layers_are_kept(conv, norm, gen):
    x, y = torch.rand(6, 2, 9, 9, generator=gen), torch.arange(6) % 3
    alone = [chain(k, conv, norm) for k in range(2)]
    together = run(side_by_side(alone), x, y)
    assert_close(together(x), torch.stack([run(m, x, y)(x) for m in alone]), 1e-5)


def test_dtype_mode_and_frozen_weights_are_those_of_the_members(batch):
    alone = [network(k).double().eval() for k in range(2)]
    for m in alone:
        m.blocks[0].requires_grad_(False)
        m.heads[0].linear.weight.requires_grad_(False)
    together = side_by_side(alone)
    assert {p.dtype for p in together.parameters()} == {torch.float64} and not together.training
    wanted = [p.requires_grad for p in alone[0].parameters()]
    assert [p.requires_grad for p in together.parameters()] == wanted and not all(wanted)
    assert_close(together(batch[0].double())[1], alone[1](batch[0].double()), 1e-12)


def test_end_to_end_and_bytes(batch):
    x, y = batch
    alone = [network(k) for k in range(2)]
    together = side_by_side(alone)
    loss = ll.end_to_end_step(together, x, y)
    assert_close(loss, sum(ll.end_to_end_step(m, x, y) for m in alone), 1e-5)
    once, twice = ll.block_bytes(alone[0], x, y), ll.block_bytes(together, x, y)
    assert len(once) == len(twice) and all(a < b < 2.3 * a for a, b in zip(once, twice))


def test_errors():
    with raises(ValueError, match="models: at least one"):
        side_by_side([])
    with raises(TypeError, match="PredSim has a loss of its own: train it alone"):
        side_by_side([network(head="predsim")])
    with raises(ValueError, match="Conv2d differs between members|differs between members"):
        side_by_side([network(), network(widths=[4, 4, 16])])
    with raises(ValueError, match=r"models have \[3, 4\] blocks: allowed is one number"):
        side_by_side([network(widths=[4, 4]), network(widths=[4, 4, 4])])
    with raises(TypeError, match="models: Linear, allowed are LocalBlocks"):
        side_by_side([nn.Linear(2, 2)])
    make = lambda *layers: ll.LocalBlocks([nn.Sequential(nn.Linear(4, 4), *layers)], [nn.ReLU()])
    for layer, message in [
        (nn.LayerNorm(4), "LayerNorm: members of this layer cannot be grouped"),
        (nn.Softmax(1), "Softmax mixes channels"),
        (nn.LayerNorm(4, elementwise_affine=False), "LayerNorm mixes channels"),
    ]:
        with raises(TypeError, match=message):
            side_by_side([make(layer), make(layer)])
    with raises(ValueError, match="differs between members"):  # a stride is no weight
        strided = [ll.LocalBlocks([nn.Conv2d(2, 2, 3, stride=s)], [nn.Flatten()]) for s in (1, 2)]
        side_by_side(strided)
