"""Meters against counts that can be made by hand."""

import time

import pytest
import torch
from torch import nn

from lib.core.meters import (
    count_calls,
    count_ops,
    flops,
    peak_bytes,
    saved_bytes,
    state_bytes,
    stopwatch,
    waiting,
)
from tests.helpers import raises


def test_saved_bytes_of_a_chain_of_products():
    # x -> W1 x -> tanh -> W2 h: saved are x and tanh's output; tanh's input is not needed.
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    x = torch.randn(32, 10)
    assert saved_bytes(lambda: net(x), net) == 4 * 32 * (10 + 20)
    assert saved_bytes(lambda: net(x), [x]) == 4 * 32 * 20


def test_saved_bytes_counts_a_storage_once_and_its_views():
    x = torch.randn(100, requires_grad=True)
    y = torch.ones(100, requires_grad=True)
    assert saved_bytes(lambda: (x * y) + (x * y)) == 4 * 200
    assert saved_bytes(lambda: (x[:10] * y[:10]).sum()) == 4 * 200


def test_saved_bytes_is_a_peak_over_several_backward_passes():
    w = nn.Parameter(torch.randn(50, 50))
    inputs = [torch.randn(8, 50) for _ in range(6)]

    def one_by_one():
        for x in inputs:
            torch.tanh(x @ w).sum().backward()

    def together():
        sum(torch.tanh(x @ w).sum() for x in inputs).backward()

    single = saved_bytes(lambda: torch.tanh(inputs[0] @ w).sum().backward())
    assert single == 4 * 8 * 50 * 2
    assert saved_bytes(one_by_one) == single
    assert saved_bytes(together) == 6 * single


def test_saved_bytes_leaves_gradients_alone():
    net = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 1))
    x = torch.randn(4, 6)
    net(x).sum().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    saved_bytes(lambda: net(x).sum().backward())
    for p, g in zip(net.parameters(), wanted, strict=True):
        assert torch.equal(p.grad, g)


def test_peak_bytes_follows_what_is_alive():
    def chain():
        a = torch.zeros(1000)
        for _ in range(10):
            a = a + 1  # the old one goes once the new one is there
        return a

    assert peak_bytes(chain) == 2 * 4000

    def keeps():
        return [torch.zeros(1000) for _ in range(10)]

    assert peak_bytes(keeps) == 10 * 4000
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.view(10, 100).t()) == 0
    with pytest.raises(ValueError, match="device=meta"):
        peak_bytes(keeps, "meta")


def test_flops_calls_and_operations():
    net = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Linear(20, 5, bias=False))
    x = torch.randn(32, 10)
    forward = 2 * 32 * (10 * 20 + 20 * 5)
    assert flops(lambda: net(x)) == forward
    # Backward: two weight gradients and one input gradient (x needs none).
    assert flops(lambda: net(x).sum().backward()) == 2 * forward + 2 * 32 * 20 * 5
    with count_calls(net) as calls:
        net(x)
        net(x[:3])
    assert (calls.total, calls.samples) == (2, 35)
    net(x)
    assert calls.total == 2
    out = net(x).sum()
    with count_ops() as seen:
        out.backward()
    assert seen.counts["mm"] == 3
    assert "t" not in seen.counts


def test_state_bytes():
    net = nn.Linear(10, 20)
    x = torch.randn(3, 10)
    for build, wanted in (
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 4 * 220),
        (lambda p: torch.optim.Adam(p, lr=0.1), 2 * 4 * 220 + 2 * 4),
    ):
        optimizer = build(net.parameters())
        net(x).sum().backward()
        optimizer.step()
        assert state_bytes(optimizer) == wanted


def test_stopwatch():
    with stopwatch() as watch:
        time.sleep(0.05)
    assert 0.05 <= watch.seconds < 1.0
    assert watch.cpu_seconds < watch.seconds


def chain(depth, width=6):
    torch.manual_seed(0)
    return [nn.Linear(width, width) for _ in range(depth)]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("form", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_waiting_in_back_propagation(make, form):
    layers = chain(5)
    model = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())])
    optimizer = make(model.parameters(), lr=0.1, **form)
    x = torch.randn(4, 6)

    def step():
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    step()
    # Up through all L, down to the layer, and the product that makes its gradient.
    wanted = {str(i): 5 + (5 - i) + 1 for i in range(1, 6)}
    assert waiting(step, {str(i + 1): layer for i, layer in enumerate(layers)}) == wanted


def test_waiting_of_layers_that_need_nobody():
    layers = chain(4)

    def step(detach, noise):
        h = torch.randn(4, 6)
        for layer in layers:
            h = torch.randn(4, 6) if noise else h.detach() if detach else h
            h = layer(h)
            loss = h.square().sum()
            for p, g in zip(
                layer.parameters(), torch.autograd.grad(loss, list(layer.parameters()))
            ):
                p.data.sub_(0.1 * g)

    groups = {str(i + 1): layer for i, layer in enumerate(layers)}
    assert waiting(lambda: step(True, False), groups) == {str(i): i + 1 for i in range(1, 5)}
    assert waiting(lambda: step(True, True), groups) == {str(i): 2 for i in range(1, 5)}


def test_waiting_counts_convolutions_and_a_norm_over_all_gradients():
    conv, head = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)
    x = torch.randn(2, 1, 8, 8)

    def step(clip):
        head(conv(x).mean((2, 3))).square().sum().backward()
        both = [*conv.parameters(), *head.parameters()]
        if clip:
            nn.utils.clip_grad_norm_(both, 1.0)
        with torch.no_grad():
            for p in both:
                p -= 0.1 * p.grad
                p.grad = None

    groups = {"conv": conv, "head": head}
    assert waiting(lambda: step(False), groups) == {"conv": 4, "head": 3}
    assert waiting(lambda: step(True), groups) == {"conv": 4, "head": 4}


def test_waiting_errors():
    layer = nn.Linear(2, 2)
    with raises(ValueError, match="'a' is not changed in place"):
        waiting(lambda: layer(torch.ones(1, 2)), {"a": layer})
    with raises(ValueError, match="'b' holds no tensors"):
        waiting(lambda: None, {"b": []})
