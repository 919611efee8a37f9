"""The rules' identities: where they coincide, what they cost, where the cut hurts."""

import itertools

import pytest
import torch
from torch import nn

from lib.beyond_backprop import spiking_slt as slt
from lib.beyond_backprop.spiking_slt import (
    backward,
    batches,
    blind_cue_,
    delayed_match,
    gradient_cosine,
    gradients,
    last_step,
    multiplications,
    silent_cue,
    sltt_loss,
    temporal_factor,
    train,
)
from lib.core.meters import count_ops, flops, saved_bytes
from lib.core.seeds import child
from lib.models.spiking import (
    direct,
    run,
    spike_trains,
    spiking_cnn,
    spiking_mlp,
    spiking_nf_resnet,
)
from tests.helpers import assert_close, raises

WIDTHS = [8, 24, 24, 4]


def network(tau=2.0, **options):
    return spiking_mlp(WIDTHS, gen=child(0, "net"), tau=tau, **options).double()


def data(steps=5, n=16, key=0):
    gen = child(1, "data", key)
    x = torch.rand(steps, n, WIDTHS[0], generator=gen, dtype=torch.float64)
    return x, torch.randint(WIDTHS[-1], (n,), generator=gen)


def same(a, b, tol):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].norm() > 0, name
        assert_close(a[name], b[name], tol, name)


# --------------------------------------------------------------------------- identities


def test_one_step_or_no_leak_leaves_nothing_to_cut():
    for net, x in ((network(3.0), data(1)), (network(1.0), data(6))):
        same(gradients(net, *x, "sltt"), gradients(net, *x, "bptt"), 1e-15)
        same(gradients(net, *x, "ottt"), gradients(net, *x, "bptt"), 1e-15)


def test_backward_at_every_step_is_one_backward_with_detached_membranes():
    net, (x, y) = network(), data()
    same(gradients(net, x, y, "sltt"), gradients(net, x, y, "sltt", order="layer"), 1e-12)
    same(gradients(net, x, y, "bptt"), gradients(net, x, y, "bptt", order="layer"), 1e-12)
    cut = {"mode": "truncated", "window": 2}
    same(gradients(net, x, y, **cut), gradients(net, x, y, **cut, order="layer"), 1e-12)


def test_truncation_runs_from_sltt_to_bptt():
    # A window of one step is SLTT, one that holds the sequence is BPTT.
    net, (x, y) = network(), data(5)
    same(gradients(net, x, y, "truncated", window=1), gradients(net, x, y, "sltt"), 1e-14)
    for window in (5, 9):
        same(gradients(net, x, y, "truncated", window=window), gradients(net, x, y, "bptt"), 1e-14)


def test_sltt_k_is_an_unbiased_share_of_sltt():
    net, (x, y) = network(), data(4)
    whole = gradients(net, x, y, "sltt")
    total = {name: torch.zeros_like(g) for name, g in whole.items()}
    sets = list(itertools.combinations(range(4), 2))
    for chosen in sets:
        weights = torch.zeros(4, dtype=torch.float64)
        weights[list(chosen)] = 1 / 4
        for name, g in gradients(net, x, y, "sltt", weights=weights).items():
            total[name] += g / len(sets)
    same(total, {name: g * 2 / 4 for name, g in whole.items()}, 1e-6)
    # K = T is SLTT; the drawn steps are distinct and repeatable.
    all_steps = gradients(net, x, y, "sltt_k", k=4, gen=child(0, "k"))
    same(all_steps, whole, 1e-6)
    a = gradients(net, x, y, "sltt_k", k=2, gen=child(0, "k"))
    b = gradients(net, x, y, "sltt_k", k=2, gen=child(0, "k"))
    same(a, b, 0)


def test_the_recursion_of_the_paper_by_hand():
    # delta[t] = spatial[t] + decay (1 - V s') delta[t+1], written without autograd.
    net = spiking_mlp([8, 24, 4], gen=child(0, "hand"), tau=3.0).double()
    x, y = data(5)
    first, last = net.layers
    decay, u, kept = 1 - 1 / 3, torch.zeros(16, 24, dtype=torch.float64), []
    for frame in x:
        v = decay * u + frame @ first.weight.T + first.bias
        s = (v >= 1).double()
        u = v - s
        out = (s @ last.weight.T + last.bias).detach().requires_grad_()
        (g,) = torch.autograd.grad(sltt_loss(out, y) / 5, out)
        slope = (1 - (v - 1).abs()).clamp_min(0)
        kept.append((frame, slope, (g @ last.weight) * slope))
    for mode in ("bptt", "sltt"):
        delta, wanted = torch.zeros_like(u), torch.zeros_like(first.weight)
        for frame, slope, spatial in reversed(kept):
            delta = spatial + (decay * (1 - slope) * delta if mode == "bptt" else 0)
            wanted = wanted + delta.T @ frame
        assert_close(gradients(net, x, y, mode)["layers.0.weight"], wanted, 1e-12, mode)


def test_ottt_is_exact_for_one_layer_with_the_reset_left_out():
    net = spiking_mlp([8, 24, 4], gen=child(0, "one"), tau=3.0, detach_reset=True).double()
    x, y = data(6)
    exact = gradients(net, x, y, "bptt")
    same(gradients(net, x, y, "ottt"), exact, 1e-12)
    cosine = gradient_cosine(gradients(net, x, y, "sltt"), exact)["layers.0.weight"]
    assert cosine < 0.999
    # With the reset in, or another layer, it is close and no more.
    net = network(3.0)
    cosine = gradient_cosine(gradients(net, x, y, "ottt"), gradients(net, x, y, "bptt"))
    assert 0.9 < cosine["layers.0.weight"] < 1 - 1e-6


def test_ottt_leaves_values_alone_and_the_net_as_it_was():
    net, (x, y) = network(), data()
    assert_close(backward(net, x, y, "ottt"), backward(net, x, y, "sltt"), 1e-12)
    assert all("forward" not in vars(m) for m in net.modules())
    nf = spiking_nf_resnet(34, 4, stem="small", widths=(4, 4, 4, 4)).eval()
    images = torch.rand(2, 2, 3, 8, 8)
    out = backward(nf, images, torch.tensor([0, 1]), "ottt")
    assert_close(out, run(nf, images), 1e-5)
    cnn = spiking_cnn([4, 4], 4, channels=3)
    backward(cnn, images, torch.tensor([0, 1]), "sltt")  # batch norm of each step


def test_dsr_differentiates_the_weighted_output():
    net, (x, y) = network(8.0), data(12)
    grads = gradients(net, x, y, "dsr")
    assert all(g.norm() > 0 for g in grads.values())
    # The read-out sees the weighted rates: its gradient has a closed form.
    mix = slt.rate_weights(12, 1 - 1 / 8).double()
    rates = torch.tensordot(mix, spike_trains(net, x)[-1], 1)
    out = torch.tensordot(mix, run(net, x, path="rate"), 1).detach().requires_grad_()
    (g,) = torch.autograd.grad(sltt_loss(out, y), out)
    assert_close(grads["layers.2.weight"], g.T @ rates, 1e-6)


# --------------------------------------------------------------------------- similarity and cost


def test_cosine_falls_with_tau_and_is_one_at_the_readout():
    gens = [child(s, "init") for s in range(5)]
    x = direct(torch.rand(5, 64, 8, generator=child(0, "x")), 6)
    y = torch.randint(4, (5, 64), generator=child(0, "y"))
    found = {}
    for tau in (1.05, 1.1, 1.5, 4.0):
        net = spiking_mlp(WIDTHS, gen=gens, tau=tau)
        a, b = (gradients(net, x, y, mode, order="layer") for mode in ("sltt", "bptt"))
        found[tau] = gradient_cosine(a, b, members=True)
        assert_close(found[tau]["layers.2.weight"], torch.ones(5), 1e-6)
    for layer in (0, 1):
        c = {tau: found[tau][f"layers.{layer}.weight"] for tau in found}
        assert c[1.1].min() > 0.99
        assert ((c[1.05] > c[1.5]) & (c[1.5] > c[4.0])).all()
        assert ((1 - c[4.0]) > 5 * (1 - c[1.1])).all()


def test_cosine_of_a_dead_layer_is_no_agreement():
    zero = {"w": torch.zeros(3)}
    assert gradient_cosine(zero, {"w": torch.ones(3)})["w"].isnan()
    with pytest.raises(ValueError, match=r"a and b differ in \['v', 'w'\]"):
        gradient_cosine(zero, {"v": torch.ones(3)})


def test_memory_is_flat_in_time_for_online_rules():
    net = spiking_mlp([16, 64, 64, 4], gen=child(0, "m"))
    y = torch.zeros(32, dtype=torch.long)

    def held(steps, mode, **rule):
        x = torch.rand(steps, 32, 16)
        return saved_bytes(lambda: backward(net, x, y, mode, **rule), [*net.parameters(), x])

    for mode, rule in (("sltt", {}), ("ottt", {}), ("sltt_k", {"k": 1, "gen": child(0)})):
        assert held(16, mode, **rule) <= 1.01 * held(4, mode, **rule)
    assert held(16, "bptt") >= 3.5 * held(4, "bptt")
    assert held(16, "truncated", window=4) <= 1.05 * held(4, "bptt")


def test_multiplications_are_those_that_run():
    widths, n = [6, 7, 5, 3], 11
    net = spiking_mlp(widths, gen=child(0, "c"))
    x, y = torch.rand(4, n, 6), torch.zeros(n, dtype=torch.long)
    for mode, k in (("bptt", None), ("sltt", None), ("sltt_k", 2)):
        rule = {} if k is None else {"k": k, "gen": child(0)}
        both = flops(lambda: backward(net, x, y, mode, **rule))  # noqa: B023
        forward = 2 * 4 * n * sum(a * b for a, b in zip(widths, widths[1:], strict=False))
        counted = multiplications(widths, 4, mode, k)
        assert both - forward == 2 * n * counted["matrix"]
    assert multiplications(widths, 4, "bptt")["temporal"] == 3 * 12 * 3
    assert multiplications(widths, 4, "sltt")["temporal"] == 0
    with count_ops() as seen:
        backward(net, x, y, "sltt")
    # Three products forward; backward three for the weights and two for the inputs, every step.
    assert seen.counts["addmm"] + seen.counts["mm"] == 4 * (3 + 3 + 2)


def test_temporal_factor_is_the_jacobian():
    net = spiking_mlp([3, 5, 2], gen=child(0, "f"), tau=4.0)
    x = torch.rand(3, 1, 3, generator=child(0, "fx"))
    (factors,) = temporal_factor(net, x)
    assert factors.shape == (3, 5)
    current = (x[:, 0] @ net.layers[0].weight.T + net.layers[0].bias).detach()
    u = torch.zeros(5)
    for t in range(3):
        v = 0.75 * u + current[t]
        assert_close(factors[t], 0.75 * (1 - (1 - (v - 1).abs()).clamp_min(0)), 1e-6)
        u = v - (v >= 1).float()
    assert all((f >= 0).all() and (f <= 0.75).all() for f in temporal_factor(net, x))


# --------------------------------------------------------------------------- loss and training


def test_loss():
    out, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    entropy = nn.functional.cross_entropy(out, y)
    assert_close(sltt_loss(out, y, weight=0.0), entropy, 1e-12)
    assert_close(sltt_loss(out, y, weight=1.0, mean=2.0), (out - 2).square().mean(), 1e-12)
    onehot = nn.functional.one_hot(y, 4)
    assert_close(sltt_loss(out, y, 1.0, mean=None), (out - onehot).square().mean(), 1e-12)
    members = sltt_loss(torch.stack([out, 2 * out]), torch.stack([y, y]))
    assert_close(members, sltt_loss(out, y) + sltt_loss(2 * out, y), 1e-12)
    with pytest.raises(ValueError, match="weight=1.5"):
        sltt_loss(out, y, weight=1.5)


def test_members_get_their_own_gradients():
    gens = [child(s, "init") for s in range(3)]
    x, y = torch.rand(4, 3, 16, 8, generator=child(0)), torch.randint(4, (3, 16))
    for mode in ("bptt", "sltt", "ottt", "dsr"):
        together = gradients(spiking_mlp(WIDTHS, gen=gens), x, y, mode)
        for s in range(3):
            alone = gradients(spiking_mlp(WIDTHS, gen=child(s, "init")), x[:, s], y[s], mode)
            gens[s].manual_seed(0)
            for name, g in alone.items():
                assert_close(together[name][s], g, 1e-4, f"{mode} {name}")
        gens = [child(s, "init") for s in range(3)]


@pytest.mark.parametrize("mode", ["bptt", "sltt", "sltt_k", "ottt", "truncated", "dsr"])
def test_training_learns_and_repeats(mode):
    gen = child(0, "blobs")
    y = torch.arange(120) % 4
    x = torch.eye(4)[y].repeat(1, 2) + 0.3 * torch.rand(120, 8, generator=gen)
    rule = {"sltt_k": {"k": 1}, "truncated": {"window": 2}}.get(mode, {})
    tau = 4.0 if mode == "dsr" else 1.1
    last = []
    for _ in range(2):
        net = spiking_mlp([8, 24, 4], gen=child(0, "init"), tau=tau)
        history = train(
            net,
            batches(x, y, 40, 0, lambda b: direct(b, 4)),
            mode,
            steps=40,
            optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
            evaluate=lambda n: slt.accuracy(n, direct(x, 4), y).item(),
            log=[0],
            gen=child(0, "k"),
            **rule,
        )
        rows = history.frame()
        assert rows.step.tolist() == [0, 40]
        last.append(rows.accuracy.iloc[-1])
    assert last[0] == last[1] > 0.9


def test_silent_cue_gradient_is_exactly_zero_for_sltt_only():
    x, y = silent_cue(256, 4, child(0, "task"))
    assert x.shape == (4, 256, 12)
    assert_close(x[0, :, :4].argmax(1), y, 0)
    assert x[1:, :, :4].abs().sum() == 0
    assert abs(x[:, :, 4:].mean().item() - 0.3) < 0.02
    net = blind_cue_(spiking_mlp([12, 32, 4], tau=4.0, gain=1.0, gen=child(0, "init")))
    rule = {"weights": last_step(4)}
    cue = {m: gradients(net, x, y, m, **rule)["layers.0.weight"][:, :4] for m in ("sltt", "bptt", "ottt")}  # fmt: skip  # noqa: E501
    assert (cue["sltt"] == 0).all()
    assert cue["bptt"].norm() > 0
    assert cue["ottt"].norm() > 0
    assert gradients(net, x, y, "sltt", **rule)["layers.0.weight"][:, 4:].norm() > 0
    x, y = delayed_match(50, 5, child(0))
    assert x[0, :, :4].sum() == 50
    assert x[-1, :, 4].sum() == 50
    assert x[1:-1].abs().sum() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "sltt_k", "k": 9, "gen": child(0)}, "k=9 with mode='sltt_k': allowed is 1 to 5"),
        ({"mode": "sltt_k", "k": 2}, "gen=None"),
        ({"mode": "bptt", "k": 2}, "k=2 with mode='bptt'"),
        ({"mode": "truncated"}, "window=None with mode='truncated'"),
        ({"mode": "sltt", "window": 2}, "window=2 with mode='sltt'"),
        ({"mode": "ottt", "order": "layer"}, "order='layer'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        backward(network(), *data(), **arguments)
    with pytest.raises(ValueError, match="mode='rtrl'"):
        slt._check_mode("rtrl", 4, None, None, None, "step")


@pytest.mark.parametrize("order", ["step", "layer"])
def test_weights_must_fit_the_steps(order):
    # Layer by layer a short list once cut the loss off without a word.
    net, (x, y) = network(), data(5)
    for n in (3, 9):
        with raises(ValueError, match=f"weights: shape \\({n},\\)"):
            backward(net, x, y, "sltt", weights=torch.ones(n), order=order)
    silent = gradients(net, x, y, "bptt", weights=torch.zeros(5), order=order)
    assert all((g == 0).all() for g in silent.values())
    with raises(ValueError, match=r"x: shape \(0, 16, 8\)"):
        backward(net, x[:0], y, "sltt", order=order)
    with raises(ValueError, match="no spiking layers"):
        backward(nn.Linear(8, 4).double(), x, y, "sltt", order=order)


def test_what_would_be_ignored_is_refused():
    with raises(ValueError, match="with mode='dsr'"):
        backward(network(), *data(5), "dsr", weights=last_step(5))
    with raises(ValueError, match="steps=0"):
        last_step(0)
    with raises(ValueError, match="p=2.0"):
        silent_cue(3, 4, child(0), p=2.0)
