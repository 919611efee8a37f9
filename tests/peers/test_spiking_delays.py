"""The same filters and the same neurons as the authors' packages, DCLS and SpikingJelly.

``pip install --no-deps dcls spikingjelly loguru`` is enough for what is compared here. The training
code of the paper is on GitHub only; what it does with the two packages is written out below.
"""

import pytest
import torch
import torch.nn.functional as F

import lib.beyond_backprop.spiking_delays as sd
from lib.core.seeds import child
from lib.models.spiking import lif, membrane, readout, surrogate
from tests.helpers import assert_close


@pytest.fixture
def dcls():
    reason = "pip install --no-deps dcls"
    return pytest.importorskip("DCLS.construct.modules", reason=reason, exc_type=ImportError)


@pytest.fixture
def sj():
    reason = "pip install --no-deps spikingjelly loguru"
    pytest.importorskip("spikingjelly.activation_based.neuron", reason=reason, exc_type=ImportError)
    from spikingjelly import activation_based

    return activation_based


def pair(dcls, version, bins, count=1, groups=1, sig=2.0):
    own = sd.DelayConv1d(3, 4, bins, count, version, gen=child(0, "own"), groups=groups)
    own.set_width(sig + sd.OFFSET[version])
    peer = dcls.Dcls1d(3 * groups, 4 * groups, count, dilated_kernel_size=bins, groups=groups,
                       bias=False, version=version)  # fmt: skip
    with torch.no_grad():
        peer.weight.copy_(own.weight)
        peer.P.copy_(sd.delay_to_position(own.delay, bins)[None])
        peer.SIG.fill_(sig)
    return own, peer


@pytest.mark.parametrize("version", ["gauss", "max"])
@pytest.mark.parametrize(("bins", "count", "groups"), [(25, 1, 1), (9, 2, 1), (7, 1, 2)])
def test_layer_and_every_gradient(dcls, version, bins, count, groups):
    own, peer = pair(dcls, version, bins, count, groups)
    x = torch.rand(2, 3 * groups, 30, generator=child(0, "x"))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = own(a), peer(F.pad(b, (bins - 1, 0)))
    assert_close(y, z, 1e-5)
    g = torch.randn(y.shape, generator=child(0, "g"))
    got = torch.autograd.grad(y, [a, own.weight, own.delay], g)
    want = torch.autograd.grad(z, [b, peer.weight, peer.P], g)
    assert_close(got[0], want[0], 1e-5)
    assert_close(got[1], want[1], 1e-5)
    assert_close(got[2], -want[2][0], 1e-4)  # positions run against delays


def test_widths_floor_clamping_and_rounding(dcls):
    own, peer = pair(dcls, "gauss", 25, sig=0.0)  # the floor of the width is 0.27
    x = torch.rand(1, 3, 30, generator=child(0, "x"))
    assert_close(own(x), peer(F.pad(x, (24, 0))), 1e-5)
    with torch.no_grad():
        shift = torch.linspace(-30, 30, own.delay.numel()).view_as(own.delay)
        own.delay.add_(shift)
        peer.P.sub_(shift[None])
    own.clamp_parameters(), peer.clamp_parameters()
    assert_close(own.delay, sd.position_to_delay(peer.P[0], 25), 1e-6)
    # Evaluation: SIG to zero, version to "max", positions rounded.
    with torch.no_grad():
        peer.SIG.zero_()
        peer.version = peer.DCK.version = "max"
        peer.P.round_()
    with sd.rounded(own):
        assert_close(own(x), peer(F.pad(x, (24, 0))), 1e-5)


def test_neurons_with_detached_hard_reset_and_the_silent_read_out(sj):
    current = torch.rand(12, 3, 20, generator=child(0, "i")) * 1.5
    weights = torch.randn(12, 3, 20, generator=child(0, "w"))
    tau = (10.05 + 1e-9) / 10
    for threshold in (1.0, 1e9):
        node = sj.neuron.LIFNode(
            tau=tau, v_threshold=threshold, surrogate_function=sj.surrogate.ATan(alpha=5.0),
            detach_reset=True, step_mode="m", decay_input=False, store_v_seq=True,
        )  # fmt: skip
        a, b = current.clone().requires_grad_(), current.clone().requires_grad_()
        out = node(b)
        if threshold == 1.0:
            own, _ = lif(a, 1 - 1 / tau, 1.0, "hard", surrogate("arctan", 5.0), detach_reset=True)
        else:
            own, out = membrane(a, 1 - 1 / tau), node.v_seq
        assert_close(own, out, 1e-6)
        (ga,) = torch.autograd.grad((own * weights).sum(), a)
        (gb,) = torch.autograd.grad((out * weights).sum(), b)
        assert_close(ga, gb, 1e-5)


def test_whole_network_beside_the_authors_layers(dcls, sj):
    bins, widths = 9, (5, 8, 3)
    own = sd.DelayNetwork(widths, bins, gen=child(0, "net"))
    own.set_width(1.5 + 0.27)
    x = (torch.rand(4, 5, 20, generator=child(0, "x")) < 0.3).float()
    y = torch.tensor([0, 1, 2, 0])
    layers = []
    for layer in own.layers:
        o, i, _ = layer.weight.shape
        peer = dcls.Dcls1d(i, o, 1, dilated_kernel_size=bins, bias=False, version="gauss")
        with torch.no_grad():
            peer.weight.copy_(layer.weight)
            peer.P.copy_(sd.delay_to_position(layer.delay, bins)[None])
            peer.SIG.fill_(1.5)
        layers.append(peer)
    neuron = lambda threshold: sj.neuron.LIFNode(
        tau=1.005, v_threshold=threshold, surrogate_function=sj.surrogate.ATan(alpha=5.0),
        detach_reset=True, step_mode="m", decay_input=False, store_v_seq=True,
    )  # fmt: skip
    fires, silent, norm = neuron(1.0), neuron(1e9), torch.nn.BatchNorm1d(8)
    pad = lambda z: F.pad(z, (bins - 1, (bins - 1) // 2))
    s = fires(norm(layers[0](pad(x))).permute(2, 0, 1))
    silent(layers[1](pad(s.permute(1, 2, 0))).permute(2, 0, 1))
    loss = F.cross_entropy(torch.softmax(silent.v_seq, 2).sum(0), y)
    v = own(x)
    assert_close(v[:, :, 0], silent.v_seq, 1e-4)
    mine = sd.delay_loss(v, y[:, None])
    assert_close(mine[0], loss, 1e-5)
    assert_close(readout("softmax")(v)[:, 0], torch.softmax(silent.v_seq, 2).sum(0), 1e-5)
    got = torch.autograd.grad(mine.sum(), [own.layers[0].delay, own.layers[0].weight])
    want = torch.autograd.grad(loss, [layers[0].P, layers[0].weight])
    assert_close(got[0], -want[0][0], 1e-3)
    assert_close(got[1], want[1], 1e-3)
