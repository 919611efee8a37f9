"""Selection rules, heads that match what they copy, isolation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.beyond_backprop import auglocal as al
from lib.core.data import digits
from lib.core.derivatives import gradient_map
from lib.core.meters import flops
from lib.core.seeds import child
from lib.models.local_learning import end_to_end_step, head_loss, train
from lib.models.resnet import Block
from tests.helpers import assert_close, raises

WIDTHS = [8, 8, 8, 16, 16, 16, 32, 32]
RESNET32 = [16] * 6 + [32] * 5 + [64] * 5


def network(k=0, widths=WIDTHS, **options):
    options = {"channels": 1, "depth": 3, **options}
    return al.local_network(widths, 10, gen=child(0, "net", k), **options)


@pytest.fixture
def batch(gen):
    return torch.rand(12, 1, 8, 8, generator=gen), torch.randint(10, (12,), generator=gen)


def grads(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


# --------------------------------------------------------------------------------------- selection


def test_rule_values():
    assert al.pyramidal_depths(16, 6) == [6, 6, 5, 5, 5, 4, 4, 4, 3, 3, 2, 2, 2, 1, 1]
    assert al.uniform_layer_selection(16, 0, 3) == [5, 10, 15]
    depths = al.pyramidal_depths(8, 3)
    assert depths == [3, 3, 2, 2, 2, 1, 1]
    chosen = [al.uniform_layer_selection(8, l, d) for l, d in enumerate(depths)]
    assert chosen == [[2, 5, 7], [3, 5, 7], [4, 7], [5, 7], [6, 7], [7], [7]]
    assert sum(al.pyramidal_depths(16, 6)) == 53
    assert sum(al.constant_depths(16, 6)) == 75
    assert sum(al.pyramidal_depths(16, 6, c=0.0)) == 90


@pytest.mark.parametrize("n", [2, 5, 16, 55])
@pytest.mark.parametrize("d", [1, 2, 5, 9])
def test_selection_ascends_spreads_and_ends_at_the_last_layer(n, d, gen):
    for l in range(n - 1):
        for rule in ("uniform", "next", "last", "random"):
            chosen = al.layer_selection(n, l, d, rule, gen)
            assert chosen == sorted(set(chosen)) and len(chosen) == min(d, n - 1 - l)
            assert l < chosen[0] and chosen[-1] <= n - 1
        assert al.layer_selection(n, l, d)[-1] == n - 1 == al.layer_selection(n, l, d, "last")[-1]
        assert al.layer_selection(n, l, d, "next")[0] == l + 1
        steps = [b - a for a, b in zip([l, *chosen], chosen)]
        uniform = al.uniform_layer_selection(n, l, d)
        steps = [b - a for a, b in zip([l, *uniform], uniform)]
        assert max(steps) - min(steps) <= 2  # two roundings of half a layer each


def test_the_pyramid_falls_from_d_to_one_and_c_flattens_it():
    for n, d in ((3, 4), (16, 6), (55, 9)):
        depths = al.pyramidal_depths(n, d)
        assert depths[0] == d and depths[-1] == 1 and depths == sorted(depths, reverse=True)
        assert al.pyramidal_depths(n, d, c=0.0) == [d] * (n - 1)
        half = al.pyramidal_depths(n, d, c=0.5)
        assert all(a <= b <= d for a, b in zip(depths, half))
    assert al.pyramidal_depths(2, 3) == [3] and al.pyramidal_depths(1, 3) == []


def test_selection_errors():
    with raises(ValueError, match="l=7: allowed is 0 to n - 2 = 6"):
        al.uniform_layer_selection(8, 7, 2)
    with raises(ValueError, match="n=1: allowed is 2 or more layers"):
        al.uniform_layer_selection(1, 0, 2)
    with raises(ValueError, match="d=0: allowed is 1 or more"):
        al.layer_selection(8, 1, 0)
    with raises(ValueError, match="rule='best': allowed are 'uniform', 'next', 'last', 'random'"):
        al.layer_selection(8, 1, 2, "best")
    with raises(ValueError, match="gen=None: rule='random' needs a generator"):
        al.layer_selection(8, 1, 2, "random")
    with raises(ValueError, match="c=1.5: allowed is 0"):
        al.pyramidal_depths(8, 2, 1.5)
    with raises(ValueError, match="n=8, d=0: both must be 1 or more"):
        al.pyramidal_depths(8, 0)


# ------------------------------------------------------------------------------------------- heads


def test_strides():
    assert al.strides(16, [16, 32, 64]) == [1, 2, 2]
    assert al.strides(16, [64, 64]) == [2, 2]  # the second doubling is carried on
    assert al.strides(16, [64]) == [2]  # and dropped when no layer is left
    assert al.strides(8, [32, 32, 32]) == [2, 2, 1]
    assert al.strides(32, [16, 16]) == [1, 1]
    assert al.strides(16, [32, 64, 64]) == [2, 2, 1]


def test_a_head_of_all_following_layers_has_their_shapes_and_none_of_their_weights(batch):
    model = network(depth=7, c=0.0)
    primary = [*model.blocks, model.heads[-1]]
    head = model.heads[0]
    copied = [b.state_dict() for b in primary[1:-1]]
    made = [part.state_dict() for part in head if isinstance(part, Block)]
    assert [{k: v.shape for k, v in a.items()} for a in copied] == [
        {k: v.shape for k, v in a.items()} for a in made
    ]
    used = {p.data_ptr() for p in model.primary_parameters()}
    assert not used & {p.data_ptr() for h in model.heads[:-1] for p in h.parameters()}
    # With the layers' weights in it the head is the rest of the network.
    for part, state in zip(head, copied):
        part.load_state_dict(state)
    head[-1].load_state_dict(model.heads[-1].linear.state_dict())
    model.eval()
    assert_close(head(model.blocks[0](batch[0])), model(batch[0]), 1e-6)


def test_a_head_of_depth_one_normalizes_before_its_linear_map():
    one = al.build_auxiliary(0, [7], WIDTHS, 10)
    two = al.build_auxiliary(0, [4, 7], WIDTHS, 10)
    assert [isinstance(h[-2], nn.BatchNorm1d) for h in (one, two)] == [True, False]
    with raises(ValueError, match=r"indices=\[0, 3\]: allowed are one or more layers after l=0"):
        al.build_auxiliary(0, [0, 3], WIDTHS, 10)
    with raises(ValueError, match=r"indices=\[\]"):
        al.build_auxiliary(0, [], WIDTHS, 10)
    with raises(ValueError, match="after l=-1, ascending, from 0 up to 7"):
        al.build_auxiliary(-1, [0], WIDTHS, 10)
    with raises(ValueError, match=r"width=8, chosen=\[0\]: allowed are widths of 1 or more"):
        al.strides(8, [0])


@pytest.mark.parametrize("widths", [WIDTHS, [8, 32, 32], [4, 4, 6, 8]])
def test_flops_by_formula_are_those_that_run(widths):
    for l in range(len(widths) - 1):
        chosen = al.uniform_layer_selection(len(widths), l, 2)
        head = al.build_auxiliary(l, chosen, widths, 10).eval()
        h = torch.rand(1, widths[l], 7, 7)
        assert flops(lambda head=head, h=h: head(h)) == al.auxiliary_flops(l, chosen, widths, 10, 7)


@pytest.mark.parametrize("head", ["auglocal", "0c1f", "dgl", "predsim", "infopro"])
def test_every_head_starts_from_the_same_primary_network_and_is_local(head, batch):
    model = network(head=head)
    assert_close(
        torch.cat([p.detach().flatten() for p in model.primary_parameters()]),
        torch.cat([p.detach().flatten() for p in network(head="0c1f").primary_parameters()]),
        0,
    )
    losses = {str(i): loss for i, loss in enumerate(model.local_losses(*batch))}
    groups = {
        str(i): [*block.parameters(), *head.parameters()]
        for i, (block, head) in enumerate(zip(model.blocks, model.heads))
    }
    table = torch.tensor(gradient_map(losses, groups).to_numpy())
    assert (table.diagonal() > 0).all() and (table - table.diag().diag() == 0).all()


def test_a_later_loss_changes_no_earlier_gradient_bit_for_bit(batch):
    model = network()
    model.local_step(*batch)
    first = [p.grad.clone() for block in model.blocks[:4] for p in block.parameters()]
    for module in (*model.blocks[4:], *model.heads[4:]):
        for p in module.parameters():
            p.data.normal_()
    model.zero_grad()
    model.local_step(*batch)
    again = [p.grad for block in model.blocks[:4] for p in block.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_one_module_is_backpropagation(batch):
    x, y = batch
    model = network(ends=[7])
    assert len(model.blocks) == 1 and len(model.heads) == 1
    model.local_step(x, y)
    local = grads(model)
    model.zero_grad()
    end_to_end_step(model, x, y)
    assert all(torch.equal(a, b) for a, b in zip(local, grads(model)))


def test_modules_of_several_layers_and_a_joined_tail():
    pairs = network(ends=[1, 3, 5, 7])
    assert [len(b) for b in pairs.blocks] == [2, 2, 2, 2]
    joined = network(widths=RESNET32, depth=3, c=0.5, joined=3)
    assert len(joined.blocks) == 13 and len(joined.blocks[-1]) == 4
    made = [sum(isinstance(p, Block) for p in h) for h in joined.heads[:-1]]
    assert made == al.pyramidal_depths(13, 3, c=0.5)
    with raises(ValueError, match="joined=8: allowed is 0 to 7"):
        network(joined=8)
    with raises(ValueError, match="joined and ends: give one of them"):
        network(joined=1, ends=[3, 7])
    with raises(ValueError, match=r"ends=\[3, 5\]: allowed are ascending layers, the last one 7"):
        network(ends=[3, 5])
    with raises(ValueError, match=r"ends=\[\]: allowed are ascending layers"):
        network(ends=[])
    with raises(ValueError, match=r"widths=\[\], channels=1, classes=10: allowed are one or more"):
        network(widths=[])
    with raises(ValueError, match="depth=0: allowed is 1 or more"):
        network(depth=0)
    with raises(ValueError, match="head='none': allowed are 'auglocal', '0c1f'"):
        network(head="none")


def test_convolutions_are_drawn_with_the_fan_out():
    model = network(widths=[64, 64, 128])
    conv = model.blocks[1].conv1
    assert_close(conv.weight.std(), torch.tensor((2 / (9 * 64)) ** 0.5), 0.02)
    assert_close(model.blocks[2].conv1.weight.std(), torch.tensor((2 / (9 * 128)) ** 0.5), 0.02)


# ---------------------------------------------------------------------------------------- training


def test_mlp_trainer_learns_locally():
    data = digits(train=600, test=600)
    trainer = al.mlp_trainer([64, 64, 64, 10], seed=0)
    assert list(trainer.groups) == ["layer 0", "layer 1", "layer 2"]
    for t in range(40):
        index = torch.arange(60) + 60 * (t % 10)
        trainer.step(data.x[index], data.y[index])
    right = (trainer.predict(data.x_test).argmax(-1) == data.y_test).double().mean()
    assert right > 0.7
    x, y = data.x[:30], data.y[:30]
    model = trainer.model
    h = model.blocks[1](model.blocks[0](x).detach())
    reached = torch.autograd.grad(
        head_loss(model.heads[1], h, x, y), trainer.groups["layer 0"], allow_unused=True
    )
    assert reached == (None, None)
    with raises(ValueError, match="allowed are inputs, hidden layers and classes"):
        al.mlp_trainer([64, 10], seed=0)


def test_layers_of_other_kinds(batch):
    x, y = batch
    model = network(layer=al.convolution)
    assert train(model, x, y, steps=1, batch=12) and model(x).shape == (12, 10)
    assert F.cross_entropy(model(x), y).isfinite()
