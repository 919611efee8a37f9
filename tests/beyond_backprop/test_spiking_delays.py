"""Learned delays: the layer's identities, its width, its rounding, the arms, the tasks."""

import math

import numpy as np
import pytest
import torch

import lib.beyond_backprop.spiking_delays as sd
from lib.core.data.real import DataError
from lib.core.masks import Masked, density
from lib.core.seeds import child
from lib.kernels.delays import bump
from lib.models.spiking import lif, membrane, readout, surrogate
from tests.helpers import assert_close, raises


def layer(*size, version="gauss", key=0, **options):
    return sd.DelayConv1d(*size, version=version, gen=child(0, "layer", key), **options)


def spikes(b, i, t, rate=0.2, key=0):
    return (torch.rand(b, i, t, generator=child(1, "x", key)) < rate).float()


# --------------------------------------------------------------------------- the layer


def test_gaussian_kernel_and_its_gradient_have_the_papers_form(gen):
    p = torch.tensor([3.3, 0.0, 8.0, 4.5], dtype=torch.float64)
    for sigma in (0.5, 1.7, 9.0):
        k, slope = bump(p, torch.full_like(p, sigma), 9)
        n = torch.arange(9, dtype=torch.float64)
        h = torch.exp(-((n - p[:, None]) ** 2) / (2 * sigma**2))
        assert_close(k, h / (1e-7 + h.sum(1, keepdim=True)), 1e-14)
        # d k / d p = k / sigma^2 (n - sum_m m k[m]), up to the 1e-7 in the sum
        mean = (n * k).sum(1, keepdim=True)
        assert_close(slope, k / sigma**2 * (n - mean), 1e-5)
        own = lambda q, s=sigma: bump(q, torch.full_like(q, s), 9)[0]
        numeric = torch.autograd.functional.jacobian(own, p)
        assert_close(slope, torch.stack([numeric[i, :, i] for i in range(4)]), 1e-12)


def test_taps_above_one_percent_and_what_a_width_of_one_half_leaves():
    middle = torch.tensor(50.0)
    for sigma, taps in ((0.23, 1), (0.5, 3), (3.0, 19)):
        k, _ = bump(middle, torch.tensor(sigma), 101)
        assert int((k > 0.01 * k.max()).sum()) == taps
    k, _ = bump(middle, torch.tensor(0.5), 101)
    assert_close(k[49:52], torch.tensor([0.1065, 0.7870, 0.1065]), 1e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_rounded_layer_is_the_sum_over_delayed_inputs(count):
    net, x = layer(3, 4, 7, count, right=6), spikes(2, 3, 15)
    with sd.rounded(net):
        y = net(x)
    d, w = net.effective_delays(), net.weight
    each = [sd.delay_linear(x, w[..., m], d[..., m], right=6) for m in range(count)]
    assert_close(y, sum(each), 1e-6)
    # version "max" with SIG = 0 and whole delays is the same one tap.
    tri = layer(3, 4, 7, count, version="max", right=6)
    tri.round_positions()
    tri.set_width(1.0)
    assert_close(tri(x), y, 1e-6)
    # A true width of 0.23, below the layer's floor, comes within one percent.
    assert_close(sd.delay_conv(x, w, d.float(), 0.23, 7, right=6), y, 1e-2)


def test_rounded_restores_and_time_moves_with_the_input():
    net, x = layer(3, 4, 7, right=6), spikes(2, 3, 15)
    before, y = net.delay.detach().clone(), net(x)
    with sd.rounded(net):
        assert torch.equal(net.delay, net.delay.round())
        assert (net(x) - y).abs().max() > 1e-3
    assert torch.equal(net.delay, before)
    assert torch.equal(net(x), y)
    with pytest.raises(RuntimeError, match="inside"), sd.rounded(net):
        raise RuntimeError("inside")
    assert torch.equal(net.delay, before)
    later = torch.cat([torch.zeros(2, 3, 4), x], -1)
    assert_close(net(later)[..., 4:], y, 1e-6)
    assert (net(later)[..., :4] == 0).all()  # causal: nothing before the first spike


def test_positions_of_the_package_flip_and_come_back():
    d = torch.arange(25.0)
    p = sd.delay_to_position(d, 25)
    assert p[0] == 12
    assert p[-1] == -12
    assert torch.equal(sd.position_to_delay(p, 25), d)


def test_width_schedule():
    width = sd.width_schedule(12, 400)
    assert_close(torch.tensor(width(0)), torch.tensor(12.27))
    for t in (100, 399, 1000):
        assert math.isclose(width(t), 0.5)
    # Geometric in SIG, not in the width.
    ratio = [(width(t + 1) - 0.27) / (width(t) - 0.27) for t in range(99)]
    assert max(ratio) - min(ratio) < 1e-9
    assert math.isclose(ratio[0], (0.23 / 12) ** (1 / 100))
    assert math.isclose(sd.width_schedule(12, 400, end=0.01, version="max")(400), 1.01)


def test_clamping_and_the_cut():
    net = layer(2, 3, 5)
    with torch.no_grad():
        net.delay.add_(torch.linspace(-9, 9, 6).view(3, 2, 1))
    net.clamp_parameters()
    assert 0 <= net.delay.min()
    assert net.delay.max() <= 4
    assert net.effective_delays().max() <= 4
    x = spikes(2, 2, 12)
    net.set_width(0.5)
    whole = net(x)
    net.cut = 3.0
    assert_close(net(x), whole, 1e-3)
    net.cut = 1.0
    assert (net(x) - whole).abs().max() > 0


# --------------------------------------------------------------------------- the network


def test_network_is_its_layers_one_after_another():
    net = sd.DelayNetwork([4, 6, 3], 5, gen=child(0, "n"), tau=2.0).eval()
    x = spikes(3, 4, 10)
    v = net(x)
    assert v.shape == (14, 3, 1, 3)  # two steps more for each layer
    current = net.norms[0](net.layers[0](x))
    s, _ = lif(current.permute(2, 0, 1), 0.5, 1.0, "hard", surrogate("arctan", 5.0))
    want = membrane(net.layers[1](s.permute(1, 2, 0)).permute(2, 0, 1), 0.5)
    assert_close(v[:, :, 0], want, 1e-6)
    assert torch.equal(net.spikes(x)[0], s.permute(1, 2, 0))
    # Read-out: the sum of softmaxes is not the softmax of the sum.
    scores = readout("softmax")(v)
    assert_close(scores.sum(-1), torch.full((3, 1), 14.0), 1e-5)
    loss = sd.delay_loss(v, torch.zeros(3, 1, dtype=torch.long))
    assert_close(loss, -torch.log_softmax(scores, -1)[..., 0].mean(0), 1e-6)
    # A read-out that fires is counted.
    loud = sd.DelayNetwork([4, 6, 3], 5, gen=child(0, "n"), tau=2.0, fire_out=0.1).eval()
    counts = readout("count")(loud(x))
    assert_close(counts, (counts / 14).mul(14).round(), 0)
    assert counts.sum() > 0
    assert sd.delay_loss(loud(x), torch.zeros(3, 1, dtype=torch.long), "count").isfinite().all()


def test_members_are_networks_of_their_own():
    gens = [child(k, "n") for k in range(2)]
    both = sd.DelayNetwork([4, 6, 3], 5, gen=gens, groups=2, tau=2.0)
    x, y = spikes(8, 8, 10), torch.randint(3, (8, 2), generator=child(0, "y"))
    grads = torch.autograd.grad(sd.delay_loss(both(x), y).sum(), [both.layers[0].delay])[0]
    for k in range(2):
        one = sd.DelayNetwork([4, 6, 3], 5, gen=child(k, "n"), tau=2.0)
        part = x[:, 4 * k : 4 * k + 4]
        assert_close(both(x)[:, :, k], one(part)[:, :, 0], 1e-5)
        loss = sd.delay_loss(one(part), y[:, k : k + 1]).sum()
        (g,) = torch.autograd.grad(loss, [one.layers[0].delay])
        assert g.norm() > 0
        assert_close(grads[6 * k : 6 * k + 6], g, 1e-4)


def test_arms_train_what_they_say():
    arms, seeds = list(sd.ARMS), [0, 1]
    net = sd.arm_network(arms, seeds, [3, 4, 2], 7, tau=2.0)
    first = [(la.weight.detach().clone(), la.delay.detach().clone()) for la in net.layers]
    w, d = first[0]
    split = lambda t: t.view(len(arms), 2, 4, 3)
    assert torch.equal(split(w)[0], split(w)[1])  # a seed's arms start alike
    assert not torch.equal(split(w)[0, 0], split(w)[0, 1])
    assert (split(d)[2] == 0).all()
    assert torch.equal(split(d)[1], (split(d)[0] + 0.5).floor())
    x = torch.stack([spikes(20, 3, 9, key=k) for k in seeds])
    y = torch.randint(2, (2, 20), generator=child(0, "y"))
    draw = sd.batches(x, y, 10, seeds, len(arms))
    history = sd.train(net, draw, steps=4, arms=arms, log=[0, 4], lr=1e-2, callback=lambda *_: {})
    assert [row["step"] for row in history.rows] == [0, 4]
    for layer_, (w0, d0) in zip(net.layers, first, strict=True):
        moved = lambda a, b: (a - b).detach().abs().view(len(arms), -1).amax(1) > 0
        assert moved(layer_.weight, w0).tolist() == [True, True, True, False, True]
        assert moved(layer_.delay, d0).tolist() == [True, False, False, True, True]
    with raises(ValueError, match="end: 2 numbers for 5 arms"):
        sd.train(net, draw, steps=1, arms=arms, end=[0.1, 0.2])
    widths = net.layers[0].sigma.view(len(arms), -1)[:, 0].tolist()
    assert [round(v, 3) for v in widths] == [0.5, 0.05, 0.05, 0.5, 0.5]
    assert sd.parameters_per_member(net, "learned delays") == 2 * (12 + 8) + 8
    assert sd.parameters_per_member(net, "no delays") == 20 + 8
    assert sd.accuracy(net, *sd.for_members(x, y, 5)).shape == (10,)


def test_whole_delays_are_not_changed_by_rounding():
    arms = ["random delays", "no delays"]
    net = sd.arm_network(arms, [0], [3, 4, 2], 7, tau=2.0).eval()
    net.set_width(0.05)
    x = spikes(5, 6, 9)
    v = net(x)
    with sd.rounded(net):
        assert_close(net(x), v, 1e-5)


def test_masks_stay_through_training():
    net = sd.arm_network(["learned delays", "random delays"], [3, 4], [3, 8, 2], 5, tau=2.0)
    mask = sd.connectivity(net, [0.5, 0.25] * 2, [3, 4] * 2)
    assert density(mask) == 0.375
    parts = mask["layers.0.weight"].chunk(4)
    assert torch.equal(parts[0], parts[2])
    Masked(net, mask)
    x, y = spikes(40, 3, 9).view(2, 20, 3, 9), torch.randint(2, (2, 20), generator=child(0, "y"))
    sd.train(net, sd.batches(x, y, 10, [3, 4], 2), steps=3, arms=["learned delays"] * 2, lr=0.1)
    for k, la in enumerate(net.layers):
        assert (la.weight[~mask[f"layers.{k}.weight"]] == 0).all()
        assert (la.weight[mask[f"layers.{k}.weight"]] != 0).all()


# --------------------------------------------------------------------------- recovery and tasks


def test_a_wide_start_finds_delays_that_a_narrow_one_does_not():
    # Ten pairs of seeds from 10 to 29: 0.95 and more, 0.35 and more apart, the loss to 0.17.
    small = {"outputs": 2, "inputs": 5, "time": 80, "steps": 160, "batch": 8, "lr": 0.25}
    fall = sd.width_schedule(10, 160, share=0.75)
    found = sd.recover({"falling": fall, "narrow": lambda t: 0.5}, [0, 1], record=[0], **small)
    assert found.steps == [0, 160]
    assert found.exact("falling").mean() >= 0.9
    assert found.exact("falling").mean() - found.exact("narrow").mean() >= 0.3
    assert torch.equal(found.delays["falling"][0], found.delays["narrow"][0])
    assert found.loss["falling"][-1].max() < 0.2 * found.loss["falling"][0].min()


def test_order_task_differs_in_time_alone():
    order = lambda: child(0, "order")
    x, y = sd.order_task(400, child(0, "a"), order=order())
    assert x.shape == (400, 5, 28)
    assert (x.sum(-1) == 1).all()  # every neuron once
    clean, label = sd.order_task(100, child(0, "b"), order=order(), jitter=0.0, shift=0)
    sequence = clean.argmax(-1).argsort(-1)
    for c in range(8):
        assert len(sequence[label == c].unique(dim=0)) == 1
    assert len({tuple(s.tolist()) for s in sequence}) == 8
    # The sum over neurons does not know the class.
    assert torch.equal(clean.sum(1).unique(dim=0), clean.sum(1)[:1])
    # Delays that undo a class's order bring its spikes together.
    at = clean[0].argmax(-1)
    together = sd.aligned(clean[0], 20 - at, 20)
    assert together.sum(0).max() == 5
    assert y.bincount(minlength=8).min() > 20


def test_events_become_counts(monkeypatch, tmp_path):
    times = np.array([0.0, 0.004, 0.0101, 0.25, 3.0])
    units = np.array([0, 4, 5, 699, 3])
    x = sd.bin_events(times, units, steps=30)
    assert x.shape == (140, 30)
    assert x[0, 0] == 2
    assert x[1, 1] == 1
    assert x[139, 25] == 1
    assert x.sum() == 4  # one came too late
    assert sd.bin_events(times, units).shape == (140, 301)
    with raises(ValueError, match="units: 1 to 700; allowed is 0 to 699"):
        sd.bin_events(times, units + 1)
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    with raises(DataError, match="shd_test.h5 is not at hand: fetch it from https://zenkelab"):
        sd.load_spikes("shd", "test")
    with raises(ValueError, match="split='valid': shd has 'train', 'test'"):
        sd.load_spikes("shd", "valid")
    with raises(DataError, match="speech_commands is not at hand"):
        sd.load_gsc("test")


def test_recorded_words_are_read(monkeypatch, tmp_path):
    h5py = pytest.importorskip("h5py", reason="pip install h5py")
    with h5py.File(tmp_path / "shd_test.h5", "w") as file:
        file["labels"] = np.array([3, 7])
        spikes_ = file.create_group("spikes")
        for name, kind in (("times", "f8"), ("units", "i8")):
            rows = spikes_.create_dataset(name, (2,), h5py.vlen_dtype(np.dtype(kind)))
            for k in range(2):
                rows[k] = np.arange(4) * (0.1 if name == "times" else 50)
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    found = sd.load_spikes("shd", "test")
    assert found.x.shape == (2, 140, 126)
    assert found.x.sum() == 8
    assert found.y.tolist() == [3, 7]


def test_mel_frames_follow_a_tone(monkeypatch, tmp_path):
    t = torch.arange(8000) / 8000
    peaks = [
        sd.mel_frames(torch.sin(2 * math.pi * f * t)).mean(1).argmax().item()
        for f in (400, 1000, 2500)
    ]
    assert peaks == sorted(set(peaks))
    mel = lambda f: 2595 * math.log10(1 + f / 700)
    for peak, f in zip(peaks, (400, 1000, 2500), strict=True):
        expected = 141 * (mel(f) - mel(50)) / (mel(4000) - mel(50)) - 1
        assert abs(peak - expected) < 3
    import wave

    folder = tmp_path / "speech_commands"
    for word in ("no", "yes"):
        (folder / word).mkdir(parents=True)
        with wave.open(str(folder / word / "a.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((torch.sin(t * 3000) * 9000).numpy().astype("<i2").tobytes())
    (folder / "testing_list.txt").write_text("yes/a.wav\n")
    (folder / "validation_list.txt").write_text("")
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    x, y = sd.load_gsc("test")
    assert x.shape == (1, 140, 101)
    assert y.tolist() == [1]
    assert sd.load_gsc("train")[1].tolist() == [0]


def test_errors_name_the_argument():
    for call, message in (
        (lambda: layer(2, 3, 0), "bins=0"),
        (lambda: layer(2, 3, 5, 0), "kernel_count=0"),
        (lambda: layer(2, 3, 5, version="box"), "version='box': allowed are 'gauss' and 'max'"),
        (lambda: sd.DelayConv1d(2, 3, 5, groups=3, gen=[child(0)] * 2), "gen: 2 generators"),
        (lambda: sd.DelayNetwork([3], 5, gen=child(0)), r"widths=\[3\]"),
        (lambda: sd.DelayNetwork([3, 2], 5, gen=child(0), tau=0.5), "tau=0.5"),
        (lambda: sd.DelayNetwork([3, 2], 5, gen=child(0), dropout=1.0), "dropout=1.0"),
        (lambda: sd.width_schedule(10, 100, share=0.0), "share=0.0"),
        (lambda: sd.width_schedule(10, 100, end=20.0), "end=20.0: .* up to start=10"),
        (lambda: sd.arm_network(["none"], [0], [3, 2], 5), "arms: 'none' is none; there are"),
        (lambda: sd.arm_network([], [0], [3, 2], 5), r"arms=\[\]: allowed is a list"),
        (lambda: sd.arm_network(["no delays"], [], [3, 2], 5), "seeds: there are none"),
        (lambda: layer(2, 3, 5, right=-1), "right=-1"),
        (lambda: layer(2, 3, 5, cut=0.0), "cut=0.0"),
        (lambda: layer(2, 3, 5, groups=0), "groups=0"),
        (lambda: layer(2, 3, 5).set_width(0.0), "sigma=0.0: allowed is any positive"),
        (lambda: layer(2, 3, 5).set_width(float("nan")), "sigma=nan"),
        (lambda: layer(2, 3, 5, groups=2).set_width(torch.ones(3)), "sigma: 3 widths; .* 2 groups"),
        (lambda: sd.aligned(torch.zeros(2, 5), torch.tensor([0, -1]), 3), "delays: -1 to 0"),
        (lambda: sd.aligned(torch.zeros(2, 5), torch.tensor([0, 9]), 3), "to 9; allowed is 0 to 8"),
        (lambda: sd.bin_events(np.zeros(2), np.zeros(2), step=0.0), "step=0.0"),
        (
            lambda: sd.for_members(torch.zeros(2, 3, 4, 5), torch.zeros(3, 2).long(), 1),
            r"y: shape \(3, 2\); allowed is x's \(2, 3\)",
        ),
        (lambda: sd.recover({}, [0]), "0 arms and 1 seeds"),
        (lambda: sd.order_task(5, child(0), neurons=2, classes=3), "classes=3, neurons=2"),
        (lambda: sd.order_task(5, child(0), gap=0), "gap=0"),
        (lambda: sd.bin_events(np.zeros(2), np.zeros(3)), "2 times and 3 units"),
    ):
        with raises(ValueError, match=message):
            call()
