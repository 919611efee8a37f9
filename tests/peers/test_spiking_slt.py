"""The same neurons and the same rules as snnTorch and SpikingJelly.

SpikingJelly asks for torchvision at installation; ``pip install --no-deps spikingjelly loguru`` is
enough for what is compared here.
"""

import pytest
import torch
from torch import nn

from lib.beyond_backprop.spiking_slt import gradients
from lib.core.seeds import child
from lib.models.spiking import LIF, lif, spiking_mlp, surrogate
from tests.helpers import assert_close


def currents(seed=0, steps=8, high=1.0):
    return torch.rand(steps, 5, 40, generator=child(seed, "i")) * high


def test_snntorch_leaky():
    snn = pytest.importorskip("snntorch", reason="pip install snntorch")
    # At most threshold in, half of it left: v stays below two thresholds, where snnTorch's rule of
    # one reset per spike and ours are the same.
    x, weights = currents(), currents(1)
    grads = []
    for own in (True, False):
        current = x.clone().requires_grad_()
        if own:
            s, u = lif(current, 0.5, 1.0, "soft", surrogate("arctan", 2.0))
        else:
            neuron = snn.Leaky(
                beta=0.5, spike_grad=snn.surrogate.atan(alpha=2.0), reset_delay=False
            )
            u, out = neuron.reset_mem(), []
            for i in current:
                spike, u = neuron(i, u)
                out.append(spike)
            s = torch.stack(out)
        grads.append((s, u, torch.autograd.grad((s * weights).sum(), current)[0]))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-5)
    assert 0.05 < grads[0][0].mean() < 0.9


@pytest.fixture
def sj():
    reason = "pip install --no-deps spikingjelly loguru"
    pytest.importorskip("spikingjelly.activation_based.neuron", reason=reason, exc_type=ImportError)
    from spikingjelly import activation_based

    return activation_based


SURROGATES = {
    ("triangle", 1.0): ("PiecewiseQuadratic", 1.0),
    ("arctan", 2.0): ("ATan", 2.0),
    ("sigmoid", 4.0): ("Sigmoid", 4.0),
}


@pytest.mark.parametrize("own", SURROGATES)
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("detach", [True, False])
def test_spikingjelly_lif(sj, own, reset, detach):
    name, alpha = SURROGATES[own]
    x, weights = currents(high=2.0), currents(1)
    node = sj.neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        v_reset=None if reset == "soft" else 0.0,
        surrogate_function=getattr(sj.surrogate, name)(alpha=alpha),
        detach_reset=detach,
        step_mode="m",
    )
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    s, _ = lif(a, 0.5, 1.0, reset, surrogate(*own), detach_reset=detach)
    t = node(b)
    assert_close(s, t, 0)
    (ga,) = torch.autograd.grad((s * weights).sum(), a)
    (gb,) = torch.autograd.grad((t * weights).sum(), b)
    assert_close(ga, gb, 1e-5)


def online(net, x, y):
    """Per-step loss and backward through a SpikingJelly network."""
    net.train()
    for frame in x:
        out = net(frame)
        out = out[0] if isinstance(out, list) else out
        (nn.functional.cross_entropy(out, y) / len(x)).backward()


@pytest.mark.parametrize("rule", ["sltt", "ottt"])
def test_spikingjelly_online_rules(sj, rule):
    from lib.beyond_backprop.spiking_slt import sltt_loss

    own = spiking_mlp([12, 30, 30, 4], gen=child(0, "net"), tau=2.0, detach_reset=True)
    x = torch.rand(5, 16, 12, generator=child(0, "x"))
    y = torch.randint(4, (16,), generator=child(0, "y"))
    sequential = pytest.importorskip("spikingjelly.activation_based.layer").OTTTSequential
    cls = sj.neuron.SLTTLIFNode if rule == "sltt" else sj.neuron.OTTTLIFNode
    node = lambda: cls(
        tau=2.0,
        decay_input=False,
        v_reset=None,
        surrogate_function=sj.surrogate.PiecewiseQuadratic(alpha=1.0),
    )
    layers = [nn.Linear(12, 30), node(), nn.Linear(30, 30), node(), nn.Linear(30, 4)]
    peer = nn.Sequential(*layers) if rule == "sltt" else sequential(*layers)
    for a, b in zip(own.layers, layers[::2], strict=True):
        b.load_state_dict(a.state_dict())
    online(peer, x, y)
    found = gradients(own, x, y, rule, loss=lambda o, t: sltt_loss(o, t, 0.0))
    # Its OTTT traces spikes only: not the analog input, and the read-out's input too.
    compared = range(3) if rule == "sltt" else [1]
    for i in compared:
        assert_close(found[f"layers.{i}.weight"], layers[2 * i].weight.grad, 1e-5, f"layer {i}")


def test_both_conventions_of_the_leak():
    # decay_input=True in the peers is our neuron with its current divided by tau.
    x = currents(high=3.0)
    neuron = LIF(tau=3.0)
    neuron.steps = 8
    a = neuron(x.flatten(0, 1) / 3.0).unflatten(0, (8, -1))
    b, _ = lif(x / 3.0, 1 - 1 / 3.0, 1.0, "soft", surrogate())
    assert_close(a, b, 0)
