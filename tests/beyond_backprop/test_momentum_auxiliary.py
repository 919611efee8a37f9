"""What the average is, in which order it moves, and that no gradient comes with it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.beyond_backprop import momentum_auxiliary as ma
from lib.core.data import digits
from lib.core.derivatives import gradient_map
from lib.core.meters import saved_bytes
from lib.core.seeds import child
from lib.models import local_learning as ll
from lib.models.resnet import resnet_cifar
from lib.models.side_by_side import side_by_side
from tests.helpers import assert_close, raises

WIDTHS = [4, 4, 8, 8]
NONE = {"learnable_bias": False, "use_ema": False}


def network(k=0, widths=WIDTHS, **options):
    return ma.local_network(widths, channels=1, gen=child(0, "net", k), **options)


@pytest.fixture
def batch(gen):
    return torch.rand(12, 1, 8, 8, generator=gen), torch.randint(10, (12,), generator=gen)


def vector(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def redraw(module):
    for p in module.parameters():
        p.data.normal_()


# ----------------------------------------------------------------------------------------- average


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_average_of_a_resting_layer_in_closed_form(dtype, tol):
    start, target = (nn.Conv2d(3, 5, 3).to(dtype) for _ in range(2))
    m, n = 0.97, 40
    copies = ma.MomentumAuxiliary(start, m)
    for _ in range(n):
        copies.update(target)
    wanted = m**n * vector(start) + (1 - m**n) * vector(target)
    assert (vector(copies.average) - wanted).abs().max() < tol
    assert torch.equal(vector(copies.learned), vector(start))


def test_the_average_is_that_of_torch():
    layer = nn.Linear(4, 3)
    peer = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    peer.update_parameters(layer)  # its first call copies
    copies = ma.MomentumAuxiliary(layer, 0.9)
    for _ in range(5):
        redraw(layer)
        copies.update(layer)
        peer.update_parameters(layer)
    assert_close(vector(copies.average), vector(peer.module), 1e-6)


def test_two_ends_of_momentum_and_the_half_life():
    layer = nn.Linear(3, 2)
    first = vector(layer)
    never, always = (ma.MomentumAuxiliary(layer, m) for m in (1.0, 0.0))
    redraw(layer)
    never.update(layer)
    always.update(layer)
    assert torch.equal(vector(never.average), first)
    assert torch.equal(vector(always.average), vector(layer))
    for m in (0.5, 0.9, 0.999):
        assert abs(m ** ma.half_life(m) - 0.5) < 1e-12
    assert round(ma.half_life(0.999)) == 693 and ma.half_life(0.5) == 1
    with raises(ValueError, match="momentum=1.0: allowed is a number between 0 and 1"):
        ma.half_life(1.0)


def test_copies_are_copies_and_the_average_does_not_learn(gen):
    layer = nn.Linear(3, 2)
    copies = ma.MomentumAuxiliary(layer)
    held = {p.data_ptr() for p in copies.parameters()}
    assert not held & {p.data_ptr() for p in layer.parameters()} and len(held) == 4
    f = torch.rand(5, 3, generator=gen, requires_grad=True)
    assert_close(copies(f), 2 * layer(f), 1e-6)  # before the first update
    assert not any(p.requires_grad for p in copies.average.parameters())
    alone = ma.MomentumAuxiliary(layer, learnable_bias=False)
    alone(f).square().sum().backward()
    assert f.grad.abs().sum() > 0 and all(p.grad is None for p in alone.parameters())


def test_batch_normalization_in_the_copies(gen):
    layer = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    copies = ma.MomentumAuxiliary(layer, 0.0, learnable_bias=False)
    f = torch.rand(6, 2, 5, 5, generator=gen)
    layer(f + 1)
    redraw(layer)
    before = copies.average[1].running_mean.clone()
    copies.update(layer)  # weights follow, running averages do not
    assert torch.equal(copies.average[1].running_mean, before)
    assert not torch.equal(layer[1].running_mean, before)
    # In training mode they are not read: with m = 0 the copy puts out what the layer does.
    assert torch.equal(copies(f), layer(f))
    assert not torch.equal(copies.average[1].running_mean, before)
    assert not torch.equal(copies.eval()(f), layer.eval()(f))


# ------------------------------------------------------------------------------------------- order


def trace(model, x, y, steps, lr=0.1):
    """Weights of the layers that averages follow, before each optimizer step and after the last."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        model.local_step(x, y)
        seen.append([vector(block[0]) for block in model.blocks[1:]])
        optimizer.step()
    return [*seen, [vector(block[0]) for block in model.blocks[1:]]]


@pytest.mark.parametrize("start", ["copy", "fresh"])
def test_the_average_is_the_weighted_sum_of_weights_before_each_optimizer_step(start, batch):
    x, y = batch[0].double(), batch[1]
    m, n = 0.7, 6
    model = network(momentum=m, start=start).double()
    first = [vector(head[0].average) for head in model.heads[:-1]]
    seen = trace(model, x, y, n)
    for i, head in enumerate(model.heads[:-1]):
        explicit = m**n * first[i] + (1 - m) * sum(m ** (n - 1 - k) * seen[k][i] for k in range(n))
        late = m**n * first[i] + (1 - m) * sum(m ** (n - 1 - k) * seen[k + 1][i] for k in range(n))
        assert (vector(head[0].average) - explicit).abs().max() < 1e-12
        assert (vector(head[0].average) - late).abs().max() > 1e-4


def test_with_m_zero_a_head_reads_the_next_layer_one_step_late(batch):
    x, y = batch
    model = network(momentum=0.0)
    seen = trace(model, x, y, 3)
    for i, head in enumerate(model.heads[:-1]):
        assert torch.equal(vector(head[0].average), seen[2][i])
        assert not torch.equal(vector(head[0].average), seen[3][i])


def test_the_average_moves_after_its_own_backward_and_before_the_next_block_runs(batch):
    model = network()
    order = []
    for i, head in enumerate(model.heads[:-1]):
        head[0].register_forward_pre_hook(lambda *_, i=i: order.append(("head", i)))
        update = head[0].update

        def noted(layer, i=i, update=update):
            ready = next(model.blocks[i].parameters()).grad is not None
            order.append(("average", i, ready))
            update(layer)

        head[0].update = noted
    model.local_step(*batch)
    assert order == [e for i in range(4) for e in (("head", i), ("average", i, True))]


# --------------------------------------------------------------------------------------- isolation


@pytest.mark.parametrize("base", ["0c1f", "dgl", "predsim", "infopro"])
def test_no_gradient_leaves_a_block_and_averages_get_none(base, batch):
    model = network(base=base, image=(1.0, 0.5), label=(0.5, 1.0))
    losses = {str(i): loss for i, loss in enumerate(model.local_losses(*batch))}
    groups = {
        str(i): [*block.parameters(), *(p for p in head.parameters() if p.requires_grad)]
        for i, (block, head) in enumerate(zip(model.blocks, model.heads))
    }
    table = torch.tensor(gradient_map(losses, groups).to_numpy())
    assert (table.diagonal() > 0).all() and (table - table.diag().diag() == 0).all()
    model.local_step(*batch)
    averages = [p for head in model.heads[:-1] for p in head[0].average.parameters()]
    assert averages and all(p.grad is None for p in averages)


@pytest.mark.parametrize("base", ["0c1f", "dgl", "predsim", "infopro"])
def test_every_block_learns_with_the_default_weights_of_losses(base, batch):
    model = network(base=base)
    model.local_step(*batch)
    for block in model.blocks:
        assert all(p.grad.abs().max() > 0 for p in block.parameters() if p.ndim > 1)


def test_a_later_loss_changes_no_earlier_gradient_bit_for_bit(batch):
    model = network()
    model.local_step(*batch)
    first = [p.grad.clone() for block in model.blocks[:2] for p in block.parameters()]
    for module in (*model.blocks[3:], *model.heads[3:]):
        redraw(module)
    model.zero_grad()
    model2 = network()
    for module in (*model2.blocks[3:], *model2.heads[3:]):
        redraw(module)
    model2.local_step(*batch)
    again = [p.grad for block in model2.blocks[:2] for p in block.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize(("momentum", "heard"), [(0.0, True), (1.0, False)])
def test_the_next_block_is_heard_through_values_only(momentum, heard, batch):
    model = network(momentum=momentum)
    losses = lambda: [float(loss.detach()) for loss in model.local_losses(*batch)]
    before = losses()
    redraw(model.blocks[2])
    changed = losses()
    assert changed[:2] == before[:2]  # nothing before the averages move
    model.heads[1][0].follow(model.blocks[2])
    after = losses()
    assert after[0] == before[0] and (after[1] != before[1]) == heard


def test_without_copies_it_is_the_plain_local_network(batch):
    x, y = batch
    model = network(**NONE)
    h, losses = x, []
    for block, head in zip(model.blocks, model.heads):
        h = block(h.detach())
        losses.append(F.cross_entropy(head.linear(h.mean((2, 3))), y))
    assert torch.equal(torch.stack(losses), torch.stack(list(model.local_losses(x, y))))


# ---------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("options", [{}, NONE, {"use_ema": False}, {"start": "fresh"}])
def test_the_primary_network_is_the_same_whatever_the_heads(options, batch):
    model, plain = network(**options), network(**NONE)
    same = zip(model.primary_parameters(), plain.primary_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert torch.equal(model(batch[0]), plain(batch[0]))


def test_inference_uses_the_primary_network_alone():
    used = sum(p.numel() for p in ma.local_network([16] * 5 + [32] * 5 + [64] * 5, gen=child(0))
               .primary_parameters())  # fmt: skip
    assert used == sum(p.numel() for p in resnet_cifar(32, shortcut="B").parameters())


def test_heads_stand_at_the_next_stage_and_k_cuts():
    model = network()
    assert [head[0](block_out).shape[1:] for head, block_out in zip(
        model.heads[:-1], model.hidden(torch.rand(2, 1, 8, 8))
    )] == [(4, 8, 8), (4, 8, 8), (8, 4, 4), (8, 4, 4)]  # fmt: skip
    three = network(k=1, widths=[4] * 3 + [8] * 3)
    assert len(three.blocks) == 7
    cut = ma.local_network([4] * 3 + [8] * 3, channels=1, k=3, gen=child(0))
    assert [len(b) for b in cut.blocks] == [3, 2, 2]
    assert_close(vector(cut.heads[0][0].average), vector(cut.blocks[1][0]), 0)
    assert [head[1].linear.in_features for head in cut.heads[:-1]] == [4, 8]
    with raises(ValueError, match="k=8: allowed is 1 to the number of layers, 7"):
        ma.local_network([4] * 3 + [8] * 3, k=8, gen=child(0))


def test_one_block_is_backpropagation(batch):
    model = ma.local_network(WIDTHS, channels=1, k=1, gen=child(0))
    whole = copy.deepcopy(model)
    model.local_step(*batch)
    ll.end_to_end_step(whole, *batch)
    assert len(model.heads) == 1
    for a, b in zip(model.parameters(), whole.parameters()):
        assert torch.equal(a.grad, b.grad)


def test_fresh_copies_are_drawn_and_then_approach():
    copied, fresh = network(momentum=0.5), network(momentum=0.5, start="fresh")
    assert ma.lag(copied) == [0.0] * 4 and min(ma.lag(fresh)) > 0.5
    before = ma.lag(fresh)
    for head, block in zip(fresh.heads, fresh.blocks[1:]):
        head[0].follow(block)
    assert_close(torch.tensor(ma.lag(fresh)), torch.tensor(before) / 2, 1e-5)
    assert ma.lag(network(use_ema=False)) == [] == ma.lag(network(**NONE))


def test_a_next_layer_without_weights_is_copied_and_has_no_lag(batch):
    blocks = [nn.Sequential(nn.Linear(64, 8)), nn.Sequential(nn.ReLU(), nn.Linear(8, 8))]
    heads = ma.momentum_heads(blocks, [nn.Linear(8, 10)])
    model = ll.LocalBlocks(blocks, [*heads, nn.Linear(8, 10)])
    model.local_step(batch[0].flatten(1), batch[1])
    assert ma.lag(model) == [0.0]


def test_a_base_of_ones_own(batch):
    made = lambda i, c: ll.InfoPro(c, 10, colors=1, width=8, contrast=True)
    model = network(base=made)
    losses = model.local_step(*batch)
    assert all(loss.isfinite() for loss in losses)
    h = model.blocks[0](batch[0])
    head = model.heads[0]
    assert_close(head.loss(h, *batch), head[1].loss(head[0](h), *batch), 1e-6)


def test_members_side_by_side_average_as_each_alone(batch):
    x, y = batch[0].double(), batch[1]
    make = lambda: [network(k, momentum=0.5).double() for k in range(2)]
    together, alone = side_by_side(make()), make()
    trace(together, x, y, 3)
    for model in alone:
        trace(model, x, y, 3)
    assert_close(together.eval()(x), torch.stack([m.eval()(x) for m in alone]), 1e-8)
    assert 0 < min(ma.lag(alone[0]) + ma.lag(together))
    with raises(ValueError, match="MomentumAuxiliary differs between members|differs between"):
        side_by_side([network(momentum=0.5), network(momentum=0.6)])


def test_memory_stays_where_depth_grows(batch):
    held = {}
    for n in (4, 8):
        model = ma.local_network([4] * n, channels=1, gen=child(0))
        held[n] = saved_bytes(lambda m=model: m.local_step(*batch), model)
        held["BP", n] = saved_bytes(lambda m=model: ll.end_to_end_step(m, *batch), model)
    assert held[4] == held[8] and held["BP", 8] > 1.8 * held["BP", 4] and held[8] < held["BP", 8]


# ----------------------------------------------------------------------------------------- the rest


def test_errors():
    layer = nn.Linear(2, 2)
    with raises(ValueError, match="momentum=1.5: allowed is 0"):
        ma.MomentumAuxiliary(layer, 1.5)
    with raises(ValueError, match="learnable_bias=False, use_ema=False: at least one copy"):
        ma.MomentumAuxiliary(layer, **NONE)
    with raises(ValueError, match=r"momentum=nan: allowed is 0"):
        ma.MomentumAuxiliary(layer, float("nan"))
    with raises(TypeError, match="next_layer=None: allowed is a module"):
        ma.MomentumAuxiliary(None)
    copies = ma.MomentumAuxiliary(layer)
    with raises(ValueError, match=r"weights \[3, 2\] float32, \[3\] float32: allowed are the"):
        copies.update(nn.Linear(2, 3))
    with raises(ValueError, match=r"float64, \[2\] float64: allowed are the copy's, \[2, 2\] fl"):
        copies.update(nn.Linear(2, 2).double())
    with raises(ValueError, match=r"next_layer has weights none: allowed are the copy's, \[2, 2\]"):
        copies.update(nn.ReLU())
    with raises(ValueError, match="start='warm': allowed are 'copy' and 'fresh'"):
        network(start="warm")
    with raises(ValueError, match="head='none': allowed are '0c1f'"):
        network(base="none")
    with raises(ValueError, match="1 blocks and 1 bases: allowed is one base for each block but"):
        ma.momentum_heads([nn.Sequential(layer)], [layer])
    with raises(ValueError, match="allowed are inputs, hidden layers and classes"):
        ma.mlp_trainer([64, 10], seed=0)
    with raises(ValueError, match=r"widths=\[64, 0, 10\]: allowed are .* each >= 1"):
        ma.mlp_trainer([64, 0, 10], seed=0)
    with raises(ValueError, match="channels=1, classes=0: allowed is 1 or more"):
        network(classes=0)


@pytest.mark.parametrize("options", [{}, {"use_ema": False}, NONE])
def test_mlp_trainer_learns_locally(options):
    data = digits(train=600, test=600)
    trainer = ma.mlp_trainer([64, 64, 64, 10], seed=0, **options)
    assert list(trainer.groups) == ["layer 0", "layer 1", "layer 2"]
    shapes = [tuple(p.shape) for ps in trainer.groups.values() for p in ps]
    assert shapes == [(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)]
    for t in range(40):
        index = torch.arange(60) + 60 * (t % 10)
        trainer.step(data.x[index], data.y[index])
    right = (trainer.predict(data.x_test).argmax(-1) == data.y_test).double().mean()
    assert right > 0.7
    x, y = data.x[:30], data.y[:30]
    model = trainer.model
    h = model.blocks[1](model.blocks[0](x).detach())
    reached = torch.autograd.grad(
        ll.head_loss(model.heads[1], h, x, y), trainer.groups["layer 0"], allow_unused=True
    )
    assert reached == (None, None)
