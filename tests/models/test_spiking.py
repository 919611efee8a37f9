"""Spiking layers and networks: two orders of running, encoders, read-outs, the rate gradient."""

import math

import pytest
import torch
from torch import nn

from lib.models import spiking
from lib.models.spiking import (
    LIF,
    MemberLinear,
    RateGradient,
    direct,
    event_frames,
    firing_rates,
    lif,
    membrane,
    neurons,
    poisson_spikes,
    rate_weights,
    readout,
    run,
    settings,
    spike_gain,
    spike_trains,
    spiking_cnn,
    spiking_mlp,
    spiking_nf_resnet,
    spiking_resnet18,
    spiking_vgg11,
    surrogate,
    temporal_factor,
    watch,
)
from tests.helpers import assert_close, raises


def seeded(k):
    return torch.Generator().manual_seed(k)


def small(**options):
    return spiking_mlp([6, 20, 20, 3], gen=seeded(0), **options).double()


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("path", ["temporal", "spatial"])
def test_step_by_step_equals_layer_by_layer(reset, path, gen):
    net = small(tau=3.0, reset=reset)
    x = torch.rand(5, 4, 6, generator=gen, dtype=torch.float64)
    weights = torch.randn(5, 4, 3, generator=gen, dtype=torch.float64)
    found = []
    for order in ("step", "layer"):
        for window in (None, 2):
            out = run(net, x, path=path, order=order, window=window)
            grads = torch.autograd.grad((out * weights).sum(), list(net.parameters()))
            found.append((out, grads))
    for out, _ in found[1:]:
        assert_close(out, found[0][0], 0)
    for a, b in zip(found[0][1], found[2][1], strict=True):
        assert_close(a, b, 1e-12)
    for a, b in zip(found[1][1], found[3][1], strict=True):
        assert_close(a, b, 1e-12)
    # The window matters for the temporal path only.
    same = torch.equal(found[2][1][0], found[3][1][0])
    assert same == (path == "spatial")
    assert all(n.state is None and n.steps is None and n.path == "temporal" for n in neurons(net))


def test_members_are_the_networks_one_by_one(gen):
    members = spiking_mlp([6, 10, 10, 3], gen=[seeded(k) for k in range(3)], tau=2.0)
    x = torch.rand(4, 3, 7, 6, generator=gen)
    out = run(members, x)
    assert out.shape == (4, 3, 7, 3)
    assert_close(run(members, x, order="step"), out, 1e-6)
    for k in range(3):
        alone = spiking_mlp([6, 10, 10, 3], gen=seeded(k), tau=2.0)
        assert_close(run(alone, x[:, k]), out[:, k], 1e-6)
        for layer, many in zip(alone.layers, members.layers, strict=True):
            assert torch.equal(layer.weight, many.weight[k])


def test_member_linear_starts_as_torch_does():
    layer = MemberLinear(4, 50, 30, bias=False)
    assert layer.bias is None
    assert layer.weight.abs().max() <= 1 / math.sqrt(50)
    assert layer(torch.rand(4, 2, 50)).shape == (4, 2, 30)


def test_initialization_keeps_every_layer_alive():
    x = direct(torch.rand(64, 64, generator=seeded(1)) * 0.6, 6)
    for seed in range(5):
        assert min(firing_rates(spiking_mlp([64, 128, 128, 10], gen=seeded(seed)), x)) > 0.02
    torch.manual_seed(0)
    dead = spiking_mlp([64, 128, 128, 10], gen=seeded(0), gain=1 / math.sqrt(3))
    assert firing_rates(dead, x)[1] == 0


def test_networks_with_convolutions(gen):
    x = torch.rand(3, 2, 3, 32, 32, generator=gen)
    nets = {
        "cnn": spiking_cnn([4, [8, 8]], 5, channels=3),
        "vgg": spiking_vgg11(5, channels=3),
        "resnet": spiking_resnet18(5),
        "nf": spiking_nf_resnet(34, 5, stem="small", widths=(4, 8, 8, 8)),
    }
    for name, net in nets.items():
        net.eval()
        a, b = run(net, x, order="step"), run(net, x, order="layer")
        assert a.shape == (3, 2, 5)
        assert_close(a, b, 1e-5, name)
    assert len(neurons(nets["resnet"])) == 17
    assert sum(p.numel() for p in spiking_resnet18(10).parameters()) == 11_172_170
    with pytest.raises(ValueError, match="depth=18"):
        spiking_nf_resnet(18)


def test_a_deep_network_without_normalization_fires_in_every_layer(gen):
    torch.manual_seed(0)
    net = spiking_nf_resnet(34, 10, stem="small", widths=(16, 32, 64, 64))
    x = direct(torch.randn(4, 3, 16, 16, generator=gen), 2)
    rates = firing_rates(net, x)
    assert len(rates) == 32
    assert rates[0] == pytest.approx(0.159, abs=0.03)  # P(z >= 1)
    assert min(rates) > 0.02


def test_batch_norm_of_each_step_differs_from_that_of_all(gen):
    net = spiking_cnn([4], 5, channels=1)
    x = torch.rand(3, 8, 1, 8, 8, generator=gen) * torch.tensor([0.2, 1.0, 3.0]).view(3, 1, 1, 1, 1)
    assert (run(net, x, order="step") - run(net, x, order="layer")).abs().max() > 1e-3


def test_spike_gain_gives_unit_variance(gen):
    assert spike_gain() == pytest.approx(2.74, abs=0.005)
    for threshold in (0.5, 1.0):
        z = torch.randn(1_000_000, generator=gen)
        assert abs(((z >= threshold) * spike_gain(threshold)).var().item() - 1) < 0.01


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_watching_sees_the_run_and_leaves_no_trace(reset, gen):
    net = small(tau=3.0, reset=reset)
    x = torch.rand(5, 4, 6, generator=gen, dtype=torch.float64)
    trains = spike_trains(net, x)
    assert [s.shape for s in trains] == [(5, 4, 20)] * 2
    assert_close(net.layers[-1](trains[-1]), run(net, x), 1e-12)  # a linear read-out of them
    assert firing_rates(net, x) == [s.mean().item() for s in trains]
    # What a push on the membrane between two steps does to the next potential: autograd's answer.
    n, currents = neurons(net)[0], net.layers[0](x).detach()
    factors = temporal_factor(net, x)[0]
    push = torch.zeros(4, 20, dtype=torch.float64, requires_grad=True)
    pushed = torch.cat([currents[:1] + push, currents[1:4]])
    (slope,) = torch.autograd.grad(lif(pushed, n.decay, 1.0, reset, n.surrogate)[1].sum(), push)
    chain = factors[:3].prod(0) * factors[3] / n.decay
    assert_close(slope.flatten(), chain, 1e-12)
    with pytest.raises(ZeroDivisionError):
        watch(net, x, lambda *_: 1 / 0)
    assert all(not n._forward_hooks and n.steps is None for n in neurons(net))


# --------------------------------------------------------------------------- rates


def test_rates_approach_the_clamp_and_its_gradient(gen):
    # decay 1, constant input: the rate is within 1/T of the clamp.
    drive = torch.linspace(-0.5, 1.5, 41, dtype=torch.float64)
    for steps in (10, 1000):
        s, _ = lif(drive.expand(steps, -1), 1.0, 1.0, "soft", surrogate())
        assert (s.mean(0) - drive.clamp(0, 1)).abs().max() <= 1 / steps + 1e-9


def test_rate_gradient_is_that_of_the_rate_network(gen):
    # Two layers; the second route replaces spikes by their weighted rates, measured in the run.
    decay, steps = 0.8, 6
    w1, w2 = (torch.randn(*s, generator=gen).requires_grad_() for s in ((9, 5), (3, 9)))
    x = torch.rand(steps, 4, 5, generator=gen)
    mix = rate_weights(steps, decay)
    assert_close(mix.sum(), torch.tensor(1.0), 1e-6)
    assert_close(mix[1:] / mix[:-1], torch.full((steps - 1,), 1 / decay), 1e-5)
    spikes = RateGradient.apply(x @ w1.T, decay, 1.0, "soft", surrogate())
    target = torch.randn(4, 3, generator=gen)
    loss = (torch.tensordot(mix, spikes @ w2.T, 1) - target).square().sum()
    got = torch.autograd.grad(loss, (w1, w2))

    mean_in = torch.tensordot(mix, x, 1)
    rate = torch.tensordot(mix, spikes.detach(), 1)
    smooth = (mean_in @ w1.T).clamp(0, 1)
    a = rate + smooth - smooth.detach()
    wanted = torch.autograd.grad((a @ w2.T - target).square().sum(), (w1, w2))
    for g, h in zip(got, wanted, strict=True):
        assert_close(g, h, 1e-5)
    with pytest.raises(ValueError, match="reset='hard': the rate gradient"):
        RateGradient.apply(x, decay, 1.0, "hard", surrogate())
    with pytest.raises(ValueError, match="path='rate' needs the whole sequence"):
        run(small(), torch.rand(2, 3, 6, dtype=torch.float64), path="rate", order="step")


# --------------------------------------------------------------------------- in and out


def test_encoders(gen):
    x = torch.rand(5, 7, generator=gen)
    repeated = direct(x, 4)
    assert repeated.shape == (4, 5, 7)
    assert repeated.data_ptr() == x.data_ptr()
    spikes = poisson_spikes(x * 100, 20_000, 0.01, gen)
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    assert (spikes.mean(0) - x).abs().max() < 0.02
    with pytest.raises(ValueError, match=r"rate \* dt must lie in"):
        poisson_spikes(x * 1000, 3, 0.01, gen)
    with pytest.raises(ValueError, match="steps=0"):
        direct(x, 0)


def test_event_frames():
    events = torch.tensor(
        [[0, 0, 0, 0], [1, 1, 0, 1], [2, 1, 0, 1], [8, 2, 1, 0], [9, 0, 1, 1]], dtype=torch.float64
    )
    by_number = event_frames(events, 2, height=2, width=3)
    assert by_number.sum((1, 2, 3)).tolist() == [2, 3]
    by_time = event_frames(events, 3, height=2, width=3, split="time")
    assert by_time.sum((1, 2, 3)).tolist() == [3, 0, 2]
    assert by_time[0, 1, 0, 1] == 2
    assert by_time[2, 0, 1, 2] == 1
    for split in ("number", "time"):
        frames = event_frames(events, 4, height=2, width=3, split=split)
        assert frames.sum() == 5
    with pytest.raises(ValueError, match="x runs from 0 to 2; allowed is 0 to 1"):
        event_frames(events, 2, height=2, width=2)
    with pytest.raises(ValueError, match="time order"):
        event_frames(events.flip(0), 2, height=2, width=3)


def test_readouts(gen):
    out = torch.randn(4, 5, 3, generator=gen)
    assert_close(readout("sum")(out), out.sum(0), 0)
    assert_close(readout("mean")(out), out.mean(0), 0)
    assert_close(readout("max")(out), out.amax(0), 0)
    assert_close(readout("softmax")(out).sum(-1), torch.full((5,), 4.0), 1e-6)
    assert_close(readout("count")((out > 0).float()), (out > 0).sum(0), 0)
    with pytest.raises(ValueError, match="needs spikes"):
        readout("count")(out)


def test_settings_are_restored_and_errors_speak():
    net = nn.Sequential(LIF(), LIF())
    with pytest.raises(RuntimeError), settings(net, path="spatial", steps=3):
        assert all(n.path == "spatial" and n.steps == 3 for n in neurons(net))
        raise RuntimeError
    assert all(n.path == "temporal" and n.steps is None for n in neurons(net))
    with pytest.raises(ValueError, match=r"tau=0\.5"):
        LIF(tau=0.5)
    with pytest.raises(ValueError, match="alpha=0"):
        surrogate("triangle", 0.0)
    with pytest.raises(ValueError, match="window=0"):
        lif(torch.zeros(3, 2), 0.5, 1.0, "soft", surrogate(), window=0)
    x = torch.zeros(3, 2, 6, dtype=torch.float64)
    for arguments, message in (
        ({"path": "sltt"}, "path='sltt'"),
        ({"order": "time"}, "order='time'"),
        ({"window": 0, "order": "step"}, "window=0"),
    ):
        with raises(ValueError, match=message):
            run(small(), x, **arguments)
    with raises(ValueError, match=r"x: shape \(0, 2, 6\)"):
        run(small(), x[:0])
    with raises(ValueError, match="gen is empty"):
        spiking_mlp([4, 3, 2], gen=[])
    with raises(ValueError, match="steps=0"):
        event_frames(torch.zeros(1, 4), 0, height=2, width=2)
    # A sharpness that float32 cannot hold is not rounded on the way.
    assert surrogate("rectangle", 0.7)(x[0, 0, :1]).item() == 0.7
    assert surrogate("sigmoid", 4.0).step(torch.zeros(1)).item() == 0.5
    assert surrogate()(torch.tensor([0.0, 0.5, 2.0])).tolist() == [1.0, 0.5, 0.0]
    assert spiking.LIF(tau=1.1).decay == pytest.approx(1 / 11)


def test_membrane_is_a_neuron_that_never_fires(gen):
    current = torch.randn(7, 3, 4, generator=gen, dtype=torch.float64)
    for decay in (0.0, 0.3, 1.0):
        v = membrane(current, decay)
        for t in range(1, 8):
            _, end = lif(current[:t], decay, 1e9, "hard", surrogate())
            assert_close(v[t - 1], end, 1e-13)
    with raises(ValueError, match="decay=1.5: allowed is 0 to 1"):
        membrane(current, 1.5)
