"""Locality, the gradient by hand, limits and variants of counter-current learning."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.beyond_backprop import counter_current as cc
from lib.beyond_backprop.counter_current.layers import ACTIVATIONS
from lib.core.data import digits, patches, photographs
from lib.core.derivatives import gradient_map
from lib.core.meters import count_calls, waiting
from lib.core.seeds import batch_indices, child
from tests.helpers import assert_close, raises

WIDTHS = [6, 7, 5, 9, 4]
EYE = torch.eye(4, dtype=torch.float64)


def network(seed=0, **options):
    return cc.ccl_mlp(WIDTHS, gen=child(seed, "net"), **options).double()


def data(n=12, key=0):
    gen = child(1, "data", key)
    x = torch.randn(n, WIDTHS[0], generator=gen, dtype=torch.float64)
    return x, torch.randint(WIDTHS[-1], (n,), generator=gen)


def grads(loss, params):
    return torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)


# --------------------------------------------------------------------------- locality


def test_every_loss_teaches_its_own_pair_and_nothing_else():
    net, (x, y) = network(), data()
    _, losses = cc.ccl_loss(*net(x, EYE), y)
    groups = net.groups() | net.groups("feedback")
    table = gradient_map({f"loss {i}": v for i, v in enumerate(losses, 1)}, groups)
    for i in range(1, 5):
        own = {f"W{i}"} | ({f"V{i + 1}"} if i < 4 else set())
        row = table.loc[f"loss {i}"]
        assert (row[list(own)] > 1e-6).all()
        assert (row.drop(list(own)) == 0).all()
    # Without the stop gradient the same table is not local: the test can tell.
    _, losses = cc.ccl_loss(*net(x, EYE, False), y)
    table = gradient_map({f"loss {i}": v for i, v in enumerate(losses, 1)}, groups)
    assert table.loc["loss 4", "W1"] > 0 and table.loc["loss 1", "V4"] > 0


def test_gradient_by_hand_is_autograds():
    net, (x, y) = network(), data()
    acts, signals = net(x, EYE)
    total, losses = cc.ccl_loss(acts, signals, y, scale=0.7)
    inputs, tops = [x, *acts[:-1]], [*signals[1:], EYE]
    for i in range(3):
        up, down = net.layers[i], net.layers[i + 1]
        W, V = cc.local_gradients(
            inputs[i], up.up[0](inputs[i]), tops[i], down.down[0](tops[i]), y, scale=0.7
        )
        for loss in (total, losses[i]):
            found_w, found_v = grads(loss, (up.W, down.V))
            assert_close(found_w, W, 1e-12)
            assert_close(found_v, V, 1e-12)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_layers_above_do_not_matter_bit_for_bit(kind):
    net, (x, y) = (network(), data()) if kind == "mlp" else (cnn(), images())
    eye = torch.eye(4, dtype=x.dtype)
    before = grads(cc.ccl_loss(*net(x, eye), y)[0], [net.layers[0].W, net.layers[1].V])
    with torch.no_grad():
        for layer in list(net.layers)[1:]:
            for p in layer.up.parameters() if hasattr(layer, "up") else ():
                p.normal_(generator=child(9, "above"))
    after = grads(cc.ccl_loss(*net(x, eye), y)[0], [net.layers[0].W, net.layers[1].V])
    for a, b in zip(before, after):
        assert a.norm() > 0 and torch.equal(a, b)


def test_no_weight_is_shared_and_prediction_runs_forward_only():
    net, (x, _) = network(), data()
    down = {id(p) for p in net.feedback_parameters()}
    storages = {p.untyped_storage().data_ptr() for p in net.feedback_parameters()}
    assert down.isdisjoint(map(id, net.forward_parameters()))
    assert storages.isdisjoint(p.untyped_storage().data_ptr() for p in net.forward_parameters())
    assert len(down) + len(net.forward_parameters()) == len(list(net.parameters()))
    with count_calls(net.layers[2].down) as calls:
        out = net(x)
        assert calls.total == 0
        assert torch.equal(net(x, EYE)[0][-1], out) and calls.total == 1
    with torch.no_grad():
        for p in net.feedback_parameters():
            p.fill_(float("nan"))
    assert torch.equal(net(x), out)


def test_detaching_the_partner_would_be_another_method():
    net, (x, y) = network(), data()
    acts, signals = net(x, EYE)
    fixed = cc.ccl_loss(acts, [g.detach() for g in signals], y)[0]
    assert all(g is None for g in grads(fixed, net.feedback_parameters()))
    same = grads(fixed, net.layers[0].W)[0]
    assert_close(same, grads(cc.ccl_loss(acts, signals, y)[0], net.layers[0].W)[0], 1e-14)


# --------------------------------------------------------------------------- losses


def test_prototype_loss_in_closed_form():
    h, g = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 3.0], [2.0, 1.0]])
    # S = (0.5, 2), M = (1, 0): mean square (0.25 + 4) / 2, times 256 * 0.5 / 2
    assert_close(cc.prototype_loss(h, g, torch.tensor([0])), torch.tensor(64 * 2.125), 1e-6)
    perfect = torch.eye(3)
    assert cc.prototype_loss(perfect, perfect, torch.arange(3)) == 0


def test_variants_against_loops():
    x, y = data()
    net = network()
    acts, signals = net(x, EYE)
    _, mse = cc.ccl_loss(acts, signals, y, "mse", scale=1.0)
    by_hand = sum((acts[1][i] - signals[1][y[i]]).square().mean() for i in range(len(y))) / len(y)
    assert_close(mse[1], by_hand, 1e-12)
    _, unit = cc.ccl_loss(acts, signals, y, "normalized", scale=0.5, decorrelation=0.25)
    h, g = F.normalize(acts[0]), F.normalize(signals[0])
    gap = lambda a, b: (a - b).square().mean()
    wanted = 0.5 * gap(h @ g.T, F.one_hot(y, 4).double()) + 0.25 * (
        gap(h @ h.T, torch.eye(len(h), dtype=h.dtype)) + gap(g @ g.T, EYE)
    )
    assert_close(unit[0], wanted, 1e-6)
    scaled = cc.ccl_loss([3 * a for a in acts], [5 * s for s in signals], y, "normalized")[1]
    assert_close(scaled[0], cc.ccl_loss(acts, signals, y, "normalized")[1][0], 1e-6)


def test_filter_compares_zero_with_the_target():
    x, y = data(4)
    acts, signals = network()(x, EYE)
    sure = [*acts[:-1], 50 * F.one_hot(y, 4).double()]
    assert torch.equal(cc.unsure(sure[-1], y), torch.zeros(4, dtype=torch.float64))
    _, losses = cc.ccl_loss(sure, signals, y, filter_target=True)
    for h, loss in zip(acts[:-1], losses):
        # 0 against M: mean of M^2 is 1 / classes
        assert_close(loss, torch.tensor(128 / h.shape[1] / 4, dtype=torch.float64), 1e-12)
    doubtful = [*acts[:-1], torch.zeros(4, 4, dtype=torch.float64)]
    a, b = (cc.ccl_loss(doubtful, signals, y, filter_target=f)[0] for f in (False, True))
    assert torch.equal(a, b)


# --------------------------------------------------------------------------- steps


def test_centralized_gradients_have_no_mean_and_keep_biases():
    net, (x, y) = network(), data()
    cc.ccl_loss(*net(x, EYE), y)[0].backward()
    before = {n: p.grad.clone() for n, p in net.named_parameters()}
    cc.centralize_(net.parameters())
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(p.grad, before[name])
        else:
            assert p.grad.mean(1).abs().max() < 1e-15
            assert (p.grad - before[name]).std(1).max() < 1e-12


def test_networks_are_clipped_apart():
    net, (x, y) = network(), data()
    acts, signals = net(x, EYE)
    cc.ccl_step(net, x, y, [], clip=1e-3)
    for params in (net.forward_parameters(), net.feedback_parameters()):
        norm = torch.cat([p.grad.flatten() for p in params]).norm()
        assert_close(norm, torch.tensor(1e-3, dtype=torch.float64), 1e-3)


def test_a_step_is_the_sum_of_its_parts_and_waits_for_few():
    widths = [6] + [5] * 7 + [4]
    x, y = data()

    def make():
        net = cc.ccl_mlp(widths, gen=child(3, "deep")).double()
        sides = net.forward_parameters(), net.feedback_parameters()
        return net, [torch.optim.SGD(p, lr=0.1) for p in sides]

    one, opts = make()
    cc.ccl_step(one, x, y, opts, clip=None)
    two, opts = make()
    cc.ccl_loss(*two(x, EYE), y)[0].backward()
    for opt in opts:
        opt.step()
    for a, b in zip(one.parameters(), two.parameters()):
        assert_close(a, b, 1e-12)
    # Layer l waits for l maps up or L - l maps down, whichever is more, then for S, e g, and dW.
    net, opts = make()
    cc.ccl_step(net, x, y, opts, clip=None)
    found = waiting(lambda: cc.ccl_step(net, x, y, opts, clip=None), net.groups())
    assert [found[f"W{i}"] for i in range(1, 8)] == [max(i, 8 - i) + 3 for i in range(1, 8)]
    bp = cc.baseline_trainer("backprop", widths, seed=0)
    x32 = x.float()
    bp.step(x32, y)
    assert waiting(lambda: bp.step(x32, y), bp.groups)["W1"] == 16


@pytest.mark.parametrize("rule", ["ccl", "backprop", "readout", "frozen"])
def test_side_by_side_is_one_by_one(rule):
    x, y = data(20)
    nets = [network(k) for k in (3, 4)]
    out = cc.train_ccl(nets, x, y, steps=4, batch=8, seeds=[3, 4], rules=rule, lr=0.1, clip=0.5)
    for i, k in enumerate((3, 4)):
        net = network(k)
        up, down = net.forward_parameters(), net.feedback_parameters()
        learns = {"readout": list(net.layers[-1].up.parameters()), "ccl": up + down}.get(rule, up)
        sides = [[p for p in side if any(p is q for q in learns)] for side in (up, down)]
        opts = [torch.optim.SGD(s, lr=0.1, momentum=0.9) for s in sides if s]
        for step in range(4):
            index = batch_indices(20, 8, step, k)
            acts, signals = net(x[index], EYE, rule != "backprop")
            loss = cc.ccl_loss(acts, signals, y[index])[1]
            net.zero_grad()
            (loss[-1] if rule == "backprop" else sum(loss)).backward()
            for side in sides:
                nn.utils.clip_grad_norm_(side, 0.5)
            for opt in opts:
                opt.step()
        for name, p in net.named_parameters():
            assert_close(out.params[name][i], p, 1e-6, name)


def test_rates_are_learning_rates():
    x, y = data(20)
    options = {"steps": 5, "batch": 8, "seeds": [3], "clip": 0.5}
    both = cc.train_ccl(
        [network(3), network(3)],
        x,
        y,
        lr=0.1,
        rates=torch.tensor([1.0, 2.5]),
        **options | {"seeds": [3, 3]},
    )
    for i, lr in enumerate((0.1, 0.25)):
        alone = cc.train_ccl([network(3)], x, y, lr=lr, **options)
        for name, p in alone.params.items():
            assert_close(both.params[name][i], p[0], 1e-9, name)


def test_best_on_validation_is_kept():
    x, y = data(20)
    out = cc.train_ccl(
        [network(0)], x, y, steps=6, batch=20, seeds=[0], lr=3.0, validation=(x, y), log=range(7)
    )
    best = min(row["validation"] for row in out.history.rows)
    found = F.cross_entropy(out.member(0)(x), y).item()
    assert abs(found - best) < 1e-9 and len(out.history.rows) == 7


def test_evaluation_leaves_batch_normalization_alone():
    x, y = data(20)
    net = network(0, norm_f=2, norm_b=2)
    options = {"steps": 3, "batch": 10, "seeds": [0]}
    plain = cc.train_ccl([net], x, y, **options)
    # Looking at other data on the way must not change what is learned.
    far = (100 * x, y)
    look = lambda step, e: {"a": cc.accuracy(e, *far), "p": cc.prototype_accuracy(e, *far).mean(1)}
    watched = cc.train_ccl(
        [network(0, norm_f=2, norm_b=2)], x, y, log=range(3), callback=look, **options
    )
    for name, t in (plain.params | plain.buffers).items():
        assert torch.equal(t, watched.params.get(name, watched.buffers.get(name))), name
    # The share of right answers is that of the network in evaluation mode.
    right = (plain.member(0).eval()(x).argmax(1) == y).float().mean()
    assert_close(cc.accuracy(plain, x, y)[0], right, 1e-6)
    best = cc.train_ccl(
        [network(0, norm_f=2, norm_b=2)], x, y, log=range(4), validation=(x, y), **options
    )
    found = F.cross_entropy(best.member(0).eval()(x), y).item()
    assert abs(found - min(row["validation"] for row in best.history.rows)) < 1e-9


def test_it_learns_digits_and_knows_the_class_everywhere():
    d = digits(train=600, test=600)
    # Accuracy above 0.8 after 100 steps: 0.86 or more on seeds 0-4.
    trainer = cc.mlp_trainer([64, 64, 64, 10], seed=0)
    assert list(trainer.groups) == ["W1", "W2", "W3"]
    for step in range(100):
        index = batch_indices(600, 60, step, 0)
        trainer.step(d.x[index], d.y[index])
    assert (trainer.predict(d.x_test).argmax(1) == d.y_test).float().mean() > 0.8
    acts, signals = trainer.model(d.x_test, torch.eye(10))
    read = cc.prototypes_read(acts, signals)
    assert read.shape == (2, 600)
    assert ((read == d.y_test).float().mean(1) > 0.7).all()


# --------------------------------------------------------------------------- shapes


def cnn():
    return cc.ccl_cnn([1, 3, 5], 8, 4, gen=child(0, "cnn")).double()


def images(n=6):
    gen = child(2, "images")
    x = torch.randn(n, 1, 8, 8, generator=gen, dtype=torch.float64)
    return x, torch.randint(4, (n,), generator=gen)


def test_convolutions_pair_maps_of_one_shape():
    net, (x, y) = cnn(), images()
    acts, signals = net(x, EYE)
    assert [tuple(a.shape) for a in acts] == [(6, 3, 4, 4), (6, 20), (6, 4)]
    assert [tuple(g.shape) for g in signals] == [(4, 3, 4, 4), (4, 20)]
    _, losses = cc.ccl_loss(acts, signals, y)
    groups = net.groups() | net.groups("feedback")
    table = gradient_map({str(i): v for i, v in enumerate(losses, 1)}, groups)
    assert (table.to_numpy() > 0).tolist() == [
        [True, False, False, True, False],
        [False, True, False, False, True],
        [False, False, True, False, False],
    ]
    out = cc.train_ccl([cnn()], x, y, steps=2, batch=6, seeds=[0], filter_target=True)
    assert cc.prototype_accuracy(out, x, y).shape == (1, 2)


def test_autoencoder_meets_itself():
    gen = child(0, "ae")
    net = cc.ccl_autoencoder([3, 4, 6], shrink=1.0, gen=gen)
    x = patches(photographs(), 16, 5, gen)
    acts, signals = net(x, x)
    assert [a.shape for a in acts[:-1]] == [g.shape for g in signals]
    assert acts[-1].shape == x.shape
    total, losses = cc.autoencoder_loss(acts, signals, x)
    assert_close(total, sum((a - b).square().mean() for a, b in zip(acts, [*signals, x])), 1e-6)
    down = net.feedback_signals(x, to_input=True)
    total, losses = cc.autoencoder_loss([x, *acts], down, x)
    assert len(losses) == 5
    groups = net.groups() | net.groups("feedback")
    table = gradient_map({str(i): v for i, v in enumerate(losses)}, groups)
    assert (table.to_numpy() > 0).sum() == 8  # four maps up, four down, one loss each
    assert ((table > 0).sum(0) == 1).all()
    legacy = cc.autoencoder_loss([x, *acts], down, x, legacy=True)[1]
    assert_close(legacy[-1], 16 * losses[-1], 1e-6)
    assert_close(legacy[0], 16 * losses[0], 1e-6)
    assert legacy[2] > 4 * losses[2]


@pytest.mark.parametrize("act", list(ACTIVATIONS))
@pytest.mark.parametrize("norm", [0, 1, 2])
def test_every_activation_and_norm(act, norm):
    gen = child(0, "options")
    net = cc.ccl_mlp(
        WIDTHS,
        act_f=act,
        act_b=act,
        norm_f=norm,
        norm_b=norm,
        zero_bias=True,
        to_input=True,
        gen=gen,
    ).double()
    x, y = data()
    g = net.feedback_signals(EYE, to_input=True)
    assert g[0].shape == (4, 6)
    total, _ = cc.ccl_loss([x, *net.forward_signals(x)], g, y)
    total.backward()
    assert all(p.grad is not None for p in net.parameters())
    kinds = [type(m).__name__ for m in net.layers[1].up]
    assert kinds.index("Linear") == int(norm == 1) and len(kinds) == 2 + int(norm > 0)
    assert (net.layers[0].up[-2 if norm < 2 else -3].bias == 0).all()
    assert [type(m).__name__ for m in net.layers[-1].up] == ["Linear"]


@pytest.mark.parametrize("rule", ["ccl", "backprop", "fa", "dfa"])
def test_transported_floats_are_counted(rule):
    widths, batch = [6, 7, 5, 9, 4], 12
    x, y = data(batch)
    hidden = sum(widths[1:-1])
    if rule == "ccl":
        acts, signals = network()(x, EYE)
        counted = sum(t.numel() for t in acts[:-1]) + sum(t.numel() for t in signals)
    else:
        trainer = cc.baseline_trainer(rule, widths, seed=0)
        inputs = []
        for layer in list(trainer.model.layers)[1:]:
            layer.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
        trainer.model(x.float())
        ups = sum(t.numel() for t in inputs)
        down = batch * widths[-1] * 3 if rule == "dfa" else ups
        counted = ups + down
        assert ups == batch * hidden
    assert cc.transported_floats(widths, batch, rule) == counted


# --------------------------------------------------------------------------- baselines


@pytest.mark.parametrize("rule", ["backprop", "fa", "dfa", "drtp", "dtp", "drl", "l-drl", "fw-dtp"])
def test_baselines_learn(rule):
    # Above 0.6. Target propagation gets fewer steps at a larger rate: 0.81 or more on seeds 0-4.
    d = digits(train=600, test=600)
    steps, lr = (30, 0.01) if rule in ("dtp", "drl", "l-drl", "fw-dtp") else (120, None)
    trainer = cc.baseline_trainer(rule, [64, 32, 32, 10], seed=0, lr=lr)
    for step in range(steps):
        index = batch_indices(600, 60, step, 0)
        trainer.step(d.x[index], d.y[index])
    assert (trainer.predict(d.x_test).argmax(1) == d.y_test).float().mean() > 0.6


def test_random_feedback_with_the_weights_is_backprop():
    model = cc.RandomFeedbackMLP([6, 7, 5, 4], "fa", child(0, "fa")).double()
    for layer in model.layers:
        layer.feedback.copy_(layer.weight.detach())
    x, y = data()
    plain = nn.Sequential(nn.Linear(6, 7), nn.ELU(), nn.Linear(7, 5), nn.ELU(), nn.Linear(5, 4))
    plain.double()
    with torch.no_grad():
        for a, b in zip(plain[::2], model.layers):
            a.weight.copy_(b.weight)
            a.bias.copy_(b.bias)
    found = grads(model.loss(x, y), list(model.parameters()))
    wanted = grads(F.cross_entropy(plain(x), y), list(plain.parameters()))
    for a, b in zip(found, wanted):
        assert_close(a, b, 1e-12)


def test_local_reconstruction_has_its_minimum_at_the_transpose():
    gen = child(0, "ldrl")
    model = cc.TaughtInverses([5, 6, 4, 3], "l-drl", nn.Identity, gen).double()
    F_, G = model.layers[1][0], model.inverses[0][0]
    with torch.no_grad():
        G.weight.copy_(F_.weight.T)
    x = torch.randn(20_000, 5, generator=gen, dtype=torch.float64)
    y = torch.randint(3, (20_000,), generator=gen)
    slope = lambda: grads(model.losses(x, y, gen)["inverse 2"], G.weight)[0].norm()
    at_transpose = slope()
    with torch.no_grad():
        G.weight.mul_(0.5)
    # The noise of 20,000 samples against a gradient of the size of the weights.
    assert at_transpose < 0.1 * slope()


def test_difference_reconstruction_has_its_minimum_at_the_inverse():
    gen = child(0, "drl")
    model = cc.TaughtInverses([4, 4, 4, 3], "drl", nn.Identity, gen, decay=0.0).double()
    with torch.no_grad():
        model.inverses[0][0].weight.copy_(torch.linalg.inv(model.layers[1][0].weight))
    x = torch.randn(30, 4, generator=gen, dtype=torch.float64)
    y = torch.randint(3, (30,), generator=gen)
    assert model.losses(x, y, gen)["inverse 2"] < 1e-20
    fixed = cc.TaughtInverses([4, 4, 4, 3], "fixed", gen=gen).double()
    assert set(fixed.losses(x, y, gen)) == {"layer 1", "layer 2", "output"}


# --------------------------------------------------------------------------- errors


def test_messages():
    x, y = data()
    net = network()
    acts, signals = net(x, EYE)
    with raises(ValueError, match=r"widths=\[3, 2\]: allowed are three or more"):
        cc.ccl_mlp([3, 2])
    with raises(ValueError, match="norm=3: allowed are 0"):
        cc.DualLinear(3, 2, norm_f=3)
    with raises(ValueError, match="act='gelu': allowed are 'elu'"):
        cc.DualLinear(3, 2, act_f="gelu")
    with raises(ValueError, match="n_in=0"):
        cc.DualLinear(0, 2)
    with raises(ValueError, match="kernel=2: allowed are odd"):
        cc.DualConv2d(1, 2, kernel=2)
    with raises(ValueError, match="feedback=False: nothing goes down"):
        cc.DualLinear(3, 2, feedback=False).reverse(torch.zeros(1, 2))
    with raises(ValueError, match="number 2 has feedback=False"):
        cc.CounterCurrentNet([cc.DualLinear(3, 2), cc.DualLinear(2, 2, feedback=False)])
    with raises(ValueError, match="layers: 1 with weights"):
        cc.CounterCurrentNet([cc.DualLinear(3, 2)])
    with raises(ValueError, match="size=6: allowed are multiples of 4"):
        cc.ccl_cnn([1, 2, 3], 6)
    with raises(ValueError, match=r"channels=\[3\]"):
        cc.ccl_autoencoder([3])
    with raises(ValueError, match="kind='cosine': allowed are"):
        cc.ccl_loss(acts, signals, y, "cosine")
    with raises(ValueError, match="signals: 2 for 4 activities"):
        cc.ccl_loss(acts, signals[1:], y)
    with raises(ValueError, match="pair 1: the activity has 7 features and the signal 9"):
        cc.ccl_loss(acts, signals[::-1], y)
    with raises(ValueError, match="side='up'"):
        net.groups("up")
    with raises(ValueError, match="rule='hebb': allowed are"):
        cc.transported_floats(WIDTHS, 3, "hebb")
    with raises(ValueError, match="rule='hebb': allowed are"):
        cc.baseline_trainer("hebb", WIDTHS, seed=0)
    with raises(ValueError, match="inverse='dtp'"):
        cc.TaughtInverses(WIDTHS, "dtp")
    with raises(ValueError, match="rules: 'hebb'; allowed are"):
        cc.train_ccl([net], x, y, steps=1, batch=2, seeds=[0], rules="hebb")
    with raises(ValueError, match="batch=99: allowed is 1 to 12"):
        cc.train_ccl([net], x, y, steps=1, batch=99, seeds=[0])
    with raises(ValueError, match="1 nets, 2 seeds"):
        cc.train_ccl([net], x, y, steps=1, batch=2, seeds=[0, 1])
    with raises(FloatingPointError, match=r"member 0 \(seed 0, ccl\) is not finite at step 0"):
        cc.train_ccl([net], x * float("nan"), y, steps=1, batch=2, seeds=[0])


def test_messages_about_data():
    x, y = data()
    net = network()
    acts, signals = net(x, EYE)
    h, g = acts[0], signals[0]
    for bad in (y + 9, y * 0 - 1):
        with raises(ValueError, match="y has a label outside 0 to 3"):
            cc.prototype_loss(h, g, bad)
        with raises(ValueError, match="labels .* allowed are 0 to 3"):
            cc.train_ccl([net], x, bad, steps=1, batch=2, seeds=[0])
    with raises(ValueError, match="y has a label outside 0 to 3"):
        cc.ccl_loss(acts, signals, y - 9, "mse")
    with raises(ValueError, match=r"y has dtype torch.float64: allowed are whole"):
        cc.prototype_loss(h, g, y.double())
    # One label for many rows would broadcast, no rows would give nan.
    with raises(ValueError, match=r"h has shape \(12, 7\), g \(4, 7\), y \(1,\): allowed"):
        cc.prototype_loss(h, g, y[:1])
    with raises(ValueError, match=r"h has shape \(0, 7\)"):
        cc.prototype_loss(h[:0], g, y[:0])
    with raises(ValueError, match="y has 0 labels for 0 rows"):
        cc.ccl_step(net, x[:0], y[:0], [])
    with raises(ValueError, match="scale=-1: allowed is a finite number of 0 or more"):
        cc.ccl_loss(acts, signals, y, scale=-1)
    with raises(ValueError, match="decorrelation=nan"):
        cc.ccl_loss(acts, signals, y, decorrelation=float("nan"))
    with raises(ValueError, match="margin=-1: allowed is 0 to 1"):
        cc.unsure(acts[-1], y, -1)
    with raises(ValueError, match=r"x has shape \(12, 5\): allowed .* with 6 on axis 1"):
        net(x[:, :5])
    with raises(ValueError, match=r"g has shape \(3, 3\): allowed .* with 4 on axis 1"):
        net(x, torch.eye(3).double())
    with raises(ValueError, match=r"pair 1 of 1: .* \(2, 3, 4, 4\), .* \(1, 3, 4, 4\)"):
        cc.autoencoder_loss([torch.zeros(2, 3, 4, 4)], [], torch.zeros(1, 3, 4, 4))
    for clip in (-1, 0):
        with raises(ValueError, match=f"clip={clip}: allowed are numbers above 0"):
            cc.ccl_step(net, x, y, [], clip=clip)
        with raises(ValueError, match=f"clip={clip}: allowed are numbers above 0"):
            cc.train_ccl([net], x, y, steps=1, batch=2, seeds=[0], clip=clip)
    before = [p.clone() for p in net.parameters()]
    opt = torch.optim.SGD(net.parameters(), lr=1.0)
    with raises(FloatingPointError, match="not all finite"):
        cc.ccl_step(net, x * float("nan"), y, [opt])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


def test_messages_about_sizes():
    x, y = data()
    net = network()
    train = lambda *nets, **o: cc.train_ccl(
        nets, o.pop("x", x), o.pop("y", y), steps=1, batch=2, seeds=range(len(nets)), **o
    )
    with raises(ValueError, match=r"y has labels of shape \(6,\) for 12 samples"):
        train(net, y=y[:6])
    with raises(ValueError, match=r"rates has shape \(3,\): allowed is \(1,\)"):
        train(net, rates=torch.ones(3))
    with raises(ValueError, match="validation without log"):
        train(net, validation=(x, y))
    with raises(ValueError, match="nets: number 1 has other shapes than number 0"):
        train(net, cc.ccl_mlp([6, 8, 5, 9, 4]).double())
    with raises(ValueError, match="channels 0 and 2: allowed is 1 or more"):
        cc.DualConv2d(0, 2)
    with raises(ValueError, match="channels 3 and -4"):
        cc.ccl_autoencoder([3, -4])
    with raises(ValueError, match="size=-4"):
        cc.ccl_cnn([1, 2], -4)
    with raises(ValueError, match=r"channels=\[1\]: allowed are two or more"):
        cc.ccl_cnn([1], 4)
    with raises(ValueError, match=r"shape=\(0, 2\)"):
        cc.DualFlatten(0, 2)
    with raises(ValueError, match=r"x has shape \(1, 3, 2\): allowed is \(b, \*\(2, 2\)\)"):
        cc.DualFlatten(2, 2)(torch.zeros(1, 3, 2))
    with raises(ValueError, match=r"g has shape \(1, 9\): allowed is \(b, 4\)"):
        cc.DualFlatten(2, 2).reverse(torch.zeros(1, 9))
    for bad in (([6, 4], 3), ([6, 0, 4], 3), ([6, 7, 4], 0)):
        with raises(ValueError, match="allowed are three or more widths"):
            cc.transported_floats(*bad, "ccl")
    for rule in ("backprop", "fa", "dtp", "fw-dtp"):
        with raises(ValueError, match=r"widths=\[6, 4\]: allowed are three or more"):
            cc.baseline_trainer(rule, [6, 4], seed=0)
    with raises(ValueError, match="decay=-1"):
        cc.TaughtInverses([6, 5, 4, 4], "drl", decay=-1)
    with raises(ValueError, match="sigma=0: allowed is a finite number above 0"):
        cc.TaughtInverses([6, 5, 4, 4], "drl").double().losses(x, y, sigma=0)
