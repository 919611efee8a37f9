import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.core.derivatives import gradient_map
from lib.core.seeds import child
from lib.models.feedback import FeedbackLinear, Signal, TargetPropagation, ff_loss, goodness
from tests.helpers import assert_close, raises


def test_goodness_is_the_mean_square():
    h = torch.randn(4, 7, dtype=torch.float64)
    assert_close(goodness(h), h.norm(dim=1) ** 2 / 7, 1e-14)
    assert_close(goodness(3 * h), 9 * goodness(h), 1e-14)


def test_ff_loss_is_binary_cross_entropy():
    gen = child(0, "ff")
    pos = 4 * torch.rand(5, generator=gen, dtype=torch.float64)
    neg = 4 * torch.rand(3, 5, generator=gen, dtype=torch.float64)
    bce = F.binary_cross_entropy_with_logits
    expected = bce(pos - 2, torch.ones_like(pos)) + bce(neg - 2, torch.zeros_like(neg))
    got = ff_loss(pos, neg, 2.0)
    assert got.shape == (3, 5)
    assert_close(got.mean(), expected, 1e-14)
    # At the threshold both terms are log 2; the limits are 0 and a line of slope one.
    at = ff_loss(torch.tensor([2.0, 60.0, 0.0]), torch.tensor([2.0, -60.0, 40.0]), 2.0)
    assert_close(at, torch.tensor([2 * math.log(2), 0.0, math.log1p(math.exp(2)) + 38]), 1e-6)


def network(mode, signal=None, sizes=(6, 9, 8, 3)):
    more = {} if signal is None else {"signal": signal, "k": sizes[-1]}
    gen = child(0, "net")
    layers = [FeedbackLinear(a, b, mode, gen=gen, **more) for a, b in zip(sizes, sizes[1:])]
    return nn.ModuleList(layers).double()


def run(layers, x):
    for layer in layers[:-1]:
        x = layer(x).relu()
    return layers[-1](x)


@pytest.fixture
def batch():
    x = torch.randn(10, 6, generator=child(0, "x"), dtype=torch.float64)
    return x, torch.randint(3, (10,), generator=child(0, "y"))


def test_feedback_equal_to_the_weights_is_backpropagation(batch):
    x, y = batch
    layers = network("fa")
    for layer in layers:
        layer.feedback.copy_(layer.weight.detach())
    F.cross_entropy(run(layers, x), y).backward()
    found = [p.grad for p in layers.parameters()]
    h = x
    plain = [(p.detach().clone().requires_grad_()) for p in layers.parameters()]
    for W, b in zip(plain[:-2:2], plain[1:-2:2]):
        h = F.linear(h, W, b).relu()
    F.cross_entropy(F.linear(h, *plain[-2:]), y).backward()
    for a, b in zip(found, plain):
        assert_close(a, b.grad, 1e-12)


def test_the_three_rules_by_hand(batch):
    x, y = batch
    for mode in ("fa", "dfa", "drtp"):
        signal = None if mode == "fa" else Signal()
        layers = network(mode, signal)
        h = [x]
        for layer in layers[:-1]:
            h.append(layer(h[-1]).relu())
        out = layers[-1](h[-1])
        error = (out.softmax(-1) - F.one_hot(y, 3)).detach() / len(y)
        target = -F.one_hot(y, 3).double()
        if mode == "dfa":
            out = signal.watch(out)
        if mode == "drtp":
            signal.value = target
        F.cross_entropy(out, y).backward()
        delta = error
        for l in (2, 1, 0):
            assert_close(layers[l].weight.grad, delta.T @ h[l], 1e-12, f"{mode} layer {l}")
            source = {"fa": delta, "dfa": error, "drtp": target}[mode]
            delta = (source @ layers[l].feedback) * (h[l] > 0)


def test_forward_is_linear_and_feedback_is_not_trained(batch):
    layer = network("fa")[0]
    assert_close(layer(batch[0]), F.linear(batch[0], layer.weight, layer.bias), 0)
    assert [n for n, _ in layer.named_parameters()] == ["weight", "bias"]
    assert "feedback" in layer.state_dict()


def small_batch(n=16, n_in=6, classes=3, seed=1):
    gen = child(seed, "batch")
    return torch.randn(n, n_in, generator=gen), torch.randint(classes, (n,), generator=gen)


def test_target_propagation_with_orthogonal_layers_is_backpropagation():
    """Linear orthogonal layers with exact inverses: targets move along the gradient."""
    model = TargetPropagation([5, 5, 5, 5, 3], torch.nn.Identity, child(0, "tp")).double()
    with torch.no_grad():
        for inverse, layer in zip(model.inverses, model.layers[1:]):
            inverse[0].weight.copy_(layer[0].weight.T)
            inverse[0].bias.copy_(-layer[0].weight.T @ layer[0].bias)
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randint(3, (8,))
    losses = model.losses(x, y, step=0.1)
    grads = {
        k: torch.autograd.grad(losses[f"layer {k}"], model.layers[k - 1][0].weight)[0]
        for k in (1, 2, 3)
    }
    h = x
    for layer in model.layers:
        h = layer(h)
    loss = F.cross_entropy(model.output(h), y)
    for k in (1, 2, 3):
        true = torch.autograd.grad(loss, model.layers[k - 1][0].weight, retain_graph=True)[0]
        assert_close(grads[k], 0.1 * true, 1e-9)


def test_target_propagation_is_local_and_a_target_reached_stays():
    model, (x, y) = TargetPropagation([6, 7, 8, 3], gen=child(0, "tp")), small_batch()
    losses = model.losses(x, y, child(1, "n"))
    groups = {f"layer {i}": m for i, m in enumerate(model.layers, 1)}
    groups |= {"inverse 2": model.inverses[0], "output": model.output}
    table = gradient_map(losses, groups).loc[list(groups)].to_numpy()
    assert ((table > 0) == torch.eye(4, dtype=torch.bool).numpy()).all()
    hidden = [h.detach() for h in model.hidden(x)]
    still = model.targets(hidden, lambda out: 0.0 * out.sum(), 1.0)
    for a, b in zip(still, hidden):
        assert_close(a, b, 1e-6)


def test_target_of_a_sample_does_not_depend_on_the_batch():
    model, (x, y) = TargetPropagation([6, 7, 8, 3], gen=child(0, "tp")), small_batch()
    make = lambda n: model.targets(
        model.hidden(x[:n]), lambda out: F.cross_entropy(out, y[:n]), 0.5
    )[0][:4]
    assert_close(make(4), make(16), 1e-5)


def test_gradient_map():
    gen = child(0, "map")
    a, b = nn.Linear(3, 4), nn.Linear(4, 2)
    x = torch.randn(5, 3, generator=gen)
    h = a(x).relu()
    losses = {
        "first": h.square().mean(),
        "second": b(h.detach()).square().mean(),
        "through": b(h).square().mean(),
        "none": torch.zeros(()),
    }
    table = gradient_map(losses, {"a": a, "b": list(b.parameters())})
    assert (table.loc["first", "b"], table.loc["second", "a"]) == (0.0, 0.0)
    assert (table.loc["none"] == 0).all() and (table.loc["through"] > 0).all()
    losses["through"].backward()
    norm = sum(p.grad.square().sum() for p in a.parameters()).sqrt()
    assert_close(torch.tensor(table.loc["through", "a"]), norm.double(), 1e-6)
    with raises(ValueError, match="'wide' has shape"):
        gradient_map({"wide": h.sum(0)}, {"a": a})
    with raises(ValueError, match="'empty' has no parameters"):
        gradient_map(losses, {"empty": []})


def test_errors(batch):
    with raises(ValueError, match="allowed are 'fa', 'dfa' and 'drtp'"):
        FeedbackLinear(2, 2, "bp")
    with raises(ValueError, match="'dfa' and 'drtp' need both"):
        FeedbackLinear(2, 2, "dfa")
    layers = network("dfa", Signal())
    with raises(RuntimeError, match="signal.value is not set"):
        run(layers, batch[0]).sum().backward()
    model, (x, y) = TargetPropagation([6, 7, 8, 3], gen=child(0, "tp")), small_batch()
    with raises(ValueError, match="three or more numbers"):
        TargetPropagation([6, 3])
    with raises(ValueError, match="step=0, 2 hidden layers"):
        model.losses(x, y, step=0)
    with raises(ValueError, match="sigma=-1"):
        model.losses(x, y, sigma=-1)
    with raises(ValueError, match="samples of 6 numbers and a label for each"):
        model.losses(x[:, :5], y)
