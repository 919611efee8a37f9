import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.core.derivatives import gradient_map
from lib.core.meters import saved_bytes
from lib.models import local_learning as ll
from lib.models.resnet import ResNet
from tests.helpers import assert_close, raises

WIDTHS = [8, 8, 8, 16]


def net(head=ll.PoolLinear, **options):
    torch.manual_seed(0)
    model = ResNet(WIDTHS, 10, channels=1)
    blocks = [model.stem, *model.blocks]
    heads = [head(w, 10, **options) for w in [8, *WIDTHS[:-1]]] + [model.head]
    return ll.LocalBlocks(blocks, heads)


@pytest.fixture
def batch(gen):
    return torch.rand(12, 1, 8, 8, generator=gen), torch.randint(10, (12,), generator=gen)


def test_forward_is_the_primary_network(batch):
    torch.manual_seed(0)
    plain = ResNet(WIDTHS, 10, channels=1).eval()
    local = net().eval()
    local.blocks[0].load_state_dict(plain.stem.state_dict())
    for a, b in zip(local.blocks[1:], plain.blocks):
        a.load_state_dict(b.state_dict())
    local.heads[-1].load_state_dict(plain.head.state_dict())
    assert_close(local(batch[0]), plain(batch[0]), 0)
    assert_close(local.heads[-1](local.hidden(batch[0])[-1]), plain(batch[0]), 0)
    count = sum(p.numel() for p in plain.parameters())
    assert sum(p.numel() for p in local.primary_parameters()) == count


@pytest.mark.parametrize(
    ("head", "options"),
    [(ll.PoolLinear, {}), (ll.DGL, {}), (ll.PredSim, {}), (ll.InfoPro, {"colors": 1, "width": 16})],
)
def test_no_gradient_leaves_a_block(head, options, batch):
    local = net(head, **options)
    losses = {str(i): loss for i, loss in enumerate(local.local_losses(*batch))}
    groups = {
        str(i): [*block.parameters(), *head.parameters()]
        for i, (block, head) in enumerate(zip(local.blocks, local.heads))
    }
    table = gradient_map(losses, groups).to_numpy()
    assert (table.diagonal() > 0).all()
    assert (table - torch.diag(torch.tensor(table.diagonal())).numpy() == 0).all()


def test_a_later_loss_changes_no_earlier_gradient_bit_for_bit(batch):
    x, y = batch
    local = net()
    local.local_step(x, y)
    first = [p.grad.clone() for block in local.blocks[:2] for p in block.parameters()]
    local.zero_grad()
    for module in (*local.blocks[3:], *local.heads[3:]):
        for p in module.parameters():
            p.data.normal_()
    local.local_step(x, y)
    again = [p.grad for block in local.blocks[:2] for p in block.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_stepwise_and_summed_backward_agree_but_only_one_saves_memory(batch):
    x, y = batch
    local = net()
    summed = lambda: sum(local.local_losses(x, y)).backward()
    losses = local.local_step(x, y)
    assert len(losses) == 5 and not any(loss.requires_grad for loss in losses)
    stepwise = [p.grad.clone() for p in local.parameters()]
    local.zero_grad()
    summed()
    for a, b in zip(stepwise, local.parameters()):
        assert_close(a, b.grad, 1e-5)
    step, whole = (saved_bytes(fn, local) for fn in (lambda: local.local_step(x, y), summed))
    assert step < 0.6 * whole


class Follower(nn.Module):
    """A part of a head that notes which block it was shown, and whether its own has gradients."""

    def __init__(self, own):
        super().__init__()
        self.own, self.seen = [own], []  # in a list: no child of this module

    def forward(self, h):
        return h

    def follow(self, block):
        self.seen.append((block, all(p.grad is not None for p in self.own[0].parameters())))


def test_parts_of_heads_are_shown_the_next_block_after_their_own_backward_pass(batch):
    plain, model = net(), net()
    parts = [Follower(block) for block in model.blocks]
    model.heads = nn.ModuleList(nn.Sequential(p, h) for p, h in zip(parts, model.heads))
    model.local_step(*batch)
    plain.local_step(*batch)
    shown = [[(block, True)] for block in list(model.blocks)[1:]]
    assert [part.seen for part in parts] == [*shown, []]  # nothing follows the last block
    for a, b in zip(model.blocks.parameters(), plain.blocks.parameters()):
        assert torch.equal(a.grad, b.grad)


def test_cut():
    layers = [nn.Linear(i + 1, i + 2) for i in range(7)]
    parts = ll.cut(layers, 3)
    assert [len(p) for p in parts] == [3, 2, 2]
    assert [m for part in parts for m in part] == layers
    assert [len(p) for p in ll.cut(layers, 7)] == [1] * 7
    with raises(ValueError, match="k=8: allowed is 1 to the number of layers, 7"):
        ll.cut(layers, 8)


def test_similarity_matching_wants_classes_apart(gen):
    y = torch.arange(10).repeat(3)
    perfect = F.one_hot(y, 10).float()
    wanted = (y[:, None] == y).float() * (10 / 9) - 1 / 9  # cosines of centered one-hot rows
    assert_close(ll.similarity(perfect), wanted, 1e-5)
    head = ll.PredSim(10, 10, beta=1.0)
    nn.init.dirac_(head.project.weight)
    # A channel enters by its spread over places: pixels +1 and -1 where the class has its channel.
    h = perfect[:, :, None, None] * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert float(head.loss(h, h, y).detach()) < 1e-8
    shuffled = h[torch.randperm(30, generator=gen)]
    assert float(head.loss(shuffled, h, y).detach()) > 0.1
    both = ll.PredSim(10, 10, beta=0.0)
    assert_close(both.loss(h, h, y), F.cross_entropy(both(h), y), 1e-6)


def test_infopro_adds_its_two_losses(batch):
    x, y = batch
    h = torch.randn(12, 8, 4, 4)
    head = ll.InfoPro(8, 10, colors=1, width=16).eval()
    up = F.interpolate(h, (8, 8), mode="bilinear", align_corners=False)
    rebuilt = F.binary_cross_entropy(torch.sigmoid(head.decode(up)), x)
    assert_close(head.loss(h, x, y), F.cross_entropy(head(h), y) + rebuilt, 1e-5)
    head.image, head.label = 0.25, 2.0
    assert_close(head.loss(h, x, y), 2 * F.cross_entropy(head(h), y) + rebuilt / 4, 1e-5)
    contrast = ll.InfoPro(8, 10, colors=1, width=16, image=0, contrast=True).eval()
    assert contrast(h).shape == (12, 16)
    assert_close(contrast.loss(h, x, y), ll.supcon(contrast(h), y), 1e-6)
    assert ll.interpolated(5.0, 0.5, 4) == [5.0, 3.5, 2.0, 0.5]
    assert ll.interpolated(5.0, 0.5, 1) == [5.0]


def test_probes_find_what_is_there(gen):
    y = torch.randint(4, (400,), generator=gen)
    clear = F.one_hot(y, 4).float() + 0.1 * torch.randn(400, 4, generator=gen)
    noise = torch.randn(400, 6, 3, 3, generator=gen)
    tr, te = slice(0, 300), slice(300, 400)
    curve = ll.probe_curve([noise[tr], clear[tr]], y[tr], [noise[te], clear[te]], y[te])
    # 100 guesses among four: standard deviation 0.043.
    assert abs(curve[0] - 0.25) < 0.17 and curve[1] == 1.0
    dead = torch.zeros(400, 3)
    assert ll.probe_curve([dead[tr]], y[tr], [dead[te]], y[te])[0] < 0.5
    with raises(ValueError, match="1 layers for training, 2 for testing"):
        ll.probe_curve([clear], y, [clear, clear], y)


# ---------------------------------------------------------------------------------------- training


def grads(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_one_block_trained_locally_is_backpropagation(batch):
    whole = net()
    one = ll.LocalBlocks([nn.Sequential(*whole.blocks)], [whole.heads[-1]])
    one.local_step(*batch)
    local = grads(one)
    one.zero_grad()
    ll.end_to_end_step(one, *batch)
    assert all(torch.equal(a, b) for a, b in zip(local, grads(one)))


def test_local_training_needs_the_largest_block_and_checkpointing_changes_no_gradient(batch):
    x, y = batch
    model = net(ll.DGL)
    held = ll.block_bytes(model, x, y)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ll.block_bytes(model, x, y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    step = saved_bytes(lambda: model.local_step(x, y), model)
    assert step == max(held) and len(held) == len(model.blocks)
    model.zero_grad()
    ll.end_to_end_step(model, x, y)
    plain = grads(model)
    model.zero_grad()
    ll.end_to_end_step(model, x, y, segments=3)
    for a, b in zip(plain, grads(model)):
        assert (a is None) == (b is None)
        if a is not None and a.norm() > 1e-6:
            assert_close(b, a, 1e-4)
    whole, parts = (
        saved_bytes(lambda s=s: ll.end_to_end_step(model, x, y, segments=s), model)
        for s in (None, 3)
    )
    assert parts < 0.75 * whole and step < 0.7 * whole
    with raises(ValueError, match="segments=6: allowed is 1 to the number of blocks, 5"):
        ll.end_to_end_step(model, x, y, segments=6)


def test_train_lowers_the_local_losses_and_leaves_heads_alone_end_to_end(batch):
    x, y = batch
    model = net()
    frozen = model.heads[1].linear.weight.requires_grad_(False).clone()
    before = [float(loss.detach()) for loss in model.local_losses(x, y)]
    history = ll.train(
        model, x, y, steps=15, batch=12, log=[0, 15], callback=lambda t, m: {"now": t}
    )
    assert [row["now"] for row in history.rows] == [0, 15] and history.seconds > 0
    after = [float(loss.detach()) for loss in model.local_losses(x, y)]
    assert all(b < 0.9 * a for a, b in zip(before, after))
    assert torch.equal(model.heads[1].linear.weight, frozen)
    heads = [p.detach().clone() for h in model.heads[:-1] for p in h.parameters()]
    last = model.primary_parameters()[-1].detach().clone()
    ll.train(model, x, y, steps=2, batch=12, end_to_end=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(heads, [p for h in model.heads[:-1] for p in h.parameters()])
    )
    assert not torch.equal(last, model.primary_parameters()[-1])


def test_accuracy_keeps_the_mode_and_does_not_depend_on_the_chunk(batch):
    x, y = batch
    model = net()
    whole = ll.accuracy(model, x, y)
    assert whole == ll.accuracy(model, x, y, chunk=5) and model.training and len(whole) == 1
    logits = model.eval()(x)
    assert whole == [(logits.argmax(1) == y).double().mean().item()]
    ll.accuracy(model, x, y)
    assert not model.training
    with raises(ValueError, match="0 samples x, 0 labels y, chunk=1024: allowed are one or more"):
        ll.accuracy(model, x[:0], y[:0])


def test_training_errors(batch):
    x, y = batch
    model = net()
    bad = [
        ({"steps": -1, "batch": 4}, "steps=-1, batch=4: allowed are 0 or more, and 1 to 12"),
        ({"steps": 1, "batch": 13}, "batch=13"),
        ({"steps": 1, "batch": 4, "lr": 0}, "lr=0, weight_decay=0.0001: allowed are > 0 and >= 0"),
        ({"steps": 1, "batch": 4, "log": [1]}, r"log=\[1\]: allowed are steps 0 to 1, with a call"),
        ({"steps": 1, "batch": 4, "log": [2], "callback": lambda t, m: {}}, r"log=\[2\]"),
    ]
    for options, message in bad:
        with raises(ValueError, match=message):
            ll.train(model, x, y, **options)
    with raises(ValueError, match="12 samples x and 11 labels y: allowed is one label for each"):
        ll.train(model, x, y[:-1], steps=1, batch=4)
    with raises(FloatingPointError, match="add up to nan at step 0: a smaller lr"):
        ll.train(model, x * float("nan"), y, steps=1, batch=4)
    ll.train(model, x, y, steps=0, batch=4)


def test_compared_heads_interpolate_their_weights():
    heads = ll.compared_heads("infopro", [8, 8, 16], 10, colors=1, image=(5.0, 1.0), label=(0, 1.0))
    assert [h.image for h in heads] == [5.0, 3.0, 1.0]
    assert [h.label for h in heads] == [0, 0.5, 1.0]
    heads = ll.compared_heads("predsim", [8], 10, beta=(0.9, 0.1))
    assert isinstance(heads[0], ll.PredSim) and heads[0].beta == 0.9
    kinds = {"0c1f": ll.PoolLinear, "dgl": ll.DGL}
    assert all(type(ll.compared_heads(k, [4], 3)[0]) is kind for k, kind in kinds.items())
    with raises(ValueError, match="head='none': allowed are '0c1f', 'dgl', 'predsim', 'infopro'"):
        ll.compared_heads("none", [8], 10)
    with raises(ValueError, match=r"channels=\[8, 0\], classes=10: allowed is 1 or more"):
        ll.compared_heads("dgl", [8, 0], 10)


def test_errors():
    with raises(ValueError, match="2 blocks and 1 heads"):
        ll.LocalBlocks([nn.Linear(2, 2), nn.Linear(2, 2)], [nn.Linear(2, 3)])
    with raises(ValueError, match="beta=2"):
        ll.PredSim(4, 3, beta=2)
    with raises(ValueError, match="image=-1"):
        ll.InfoPro(4, 3, image=-1)
