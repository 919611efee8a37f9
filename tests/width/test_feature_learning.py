import math
import zipfile

import pytest
import torch
import torch.nn.functional as F

from lib.core.data import digits
from lib.core.data.real import DataError
from lib.core.fitting import fit
from lib.core.seeds import child
from lib.core.stats import loglog_slope
from lib.models.infinite_width import nngp_ntk
from lib.models.mlp import MLP
from lib.width import feature_learning as fl
from lib.width.feature_learning import (
    ABCMLP,
    CBOW,
    ABCParam,
    DeepLinear,
    InfKernel1LP,
    InfLinear,
    InfLinear1LP,
    Linear1LP,
)
from tests.helpers import assert_close, raises


def batch(n=24, d=6, o=3, seed=0, dtype=torch.float64):
    gen = child(seed, "batch")
    x = torch.randn(n, d, generator=gen, dtype=dtype)
    return x, torch.randint(o, (n,), generator=gen)


def sgd_losses(model, opt, x, y, steps=5):
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        value = F.cross_entropy(model(x), y)
        value.backward()
        opt.step()
        losses.append(value.item())
    return torch.tensor(losses, dtype=torch.float64)


# Classification.

# name: parametrization, (stable, nontrivial, feature learning, r)
KNOWN = {
    "muP": (fl.mup(2), (True, True, True, 0.0)),
    "muP, one hidden layer": (fl.mup(1), (True, True, True, 0.0)),
    "mean field": (fl.mean_field(), (True, True, True, 0.0)),
    "NTK": (fl.ntk(2), (True, True, False, 0.5)),
    "NTK, deep": (fl.ntk(5), (True, True, False, 0.5)),
    "standard": (fl.standard(2), (False, False, False, -1.0)),
    "standard, c=1": (fl.standard(2, c=1), (True, True, False, 0.5)),
    "trivial": (ABCParam((0, 0.5, 1), (0, 0, 0), 0), (True, False, False, 1.0)),
    "mean field, two hidden layers": (
        ABCParam((0, 0.5, 1), (0, 0, 0), -1),
        (True, True, True, 0.0),
    ),
    "first layer blows up": (ABCParam((0, 0, 0.5), (-0.5, 0.5, 0.5), 0), (False, True, False, 0)),
    "muP from a zero output": (fl.mup(2).zero_output(), (True, True, True, 0.0)),
    "NTK from a zero output": (fl.ntk(2).zero_output(), (True, True, False, 1.0)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_parametrizations(name):
    abc, expected = KNOWN[name]
    found = abc.classify()
    assert tuple(found[k] for k in ("stable", "nontrivial", "feature_learning")) == expected[:3]
    assert found["r"] == pytest.approx(expected[3])
    assert found["kernel_regime"] == (expected[:3] == (True, True, False))


def test_never_both_and_never_neither():
    for a_last in torch.arange(-1, 2.1, 0.25).tolist():
        for c in torch.arange(-2, 2.1, 0.25).tolist():
            for first in (-0.5, 0.0):
                abc = ABCParam((first, 0, a_last), (-first, 0.5, 0.5), c)
                found = abc.classify()
                both = found["feature_learning"] + found["kernel_regime"]
                assert both == (found["stable"] and found["nontrivial"])


def test_classification_knows_the_symmetry():
    for abc, _ in KNOWN.values():
        for t in (-0.7, 0.5, 2.0):
            here, there = abc.classify(), abc.shifted(t).classify()
            for key, value in here.items():
                if isinstance(value, bool):
                    assert there[key] == value, key
                else:
                    assert there[key] == pytest.approx(value), key


def test_layers_have_rates_of_their_own():
    assert fl.standard(2, c=1).classify()["layer_rates"] == (1.5, 0.5)
    assert fl.ntk(3).classify()["layer_rates"] == (0.5, 0.5, 0.5)
    assert fl.mup(3).classify()["layer_rates"] == (0.0, 0.0, 0.0)
    assert fl.ntk(3).classify()["output_rate"] == fl.mup(3).classify()["output_rate"] == 0
    assert ABCParam((0, 0.5, 1), (0, 0, 0), 0).classify()["output_rate"] == 1
    assert fl.ntk(3).classify()["uniform"] and fl.mup(3).classify()["uniform"]
    assert not fl.standard(3).classify()["uniform"]


def test_mean_field_is_mup_shifted():
    # The layers may be shifted by different amounts if their rates are; here one t does it.
    assert fl.mup(1).shifted(0.5) == fl.mean_field()


# Networks.


def abc_net(abc, n=128, base=64, seed=0, activation="relu", gain=1.0):
    widths = (6, *[n] * abc.depth, 3)
    return ABCMLP(widths, abc, activation, base, gain, child(seed, "net"), torch.float64)


@pytest.mark.parametrize("abc", [fl.mup(2), fl.ntk(2), fl.standard(2, c=1), fl.mean_field()])
@pytest.mark.parametrize("t", [0.5, -1.3])
def test_shifted_parametrizations_train_alike(abc, t):
    x, y = batch()
    curves = []
    for p in (abc, abc.shifted(t)):
        net = abc_net(p, n=256)
        curves.append(sgd_losses(net, net.sgd(0.3), x, y))
    assert curves[0][0] - curves[0][-1] > 0.01  # there is something to compare
    assert_close(*curves, 1e-9)


def test_a_shift_by_a_power_of_two_is_bit_identical():
    x, y = batch(dtype=torch.float32)
    nets = [abc_net(p, n=256).float() for p in (fl.mup(2), fl.mup(2).shifted(1.0))]
    curves = [sgd_losses(net, net.sgd(0.3), x, y) for net in nets]
    assert torch.equal(*curves)


def test_all_presets_are_one_network_at_the_base_width():
    x, y = batch()
    curves = []
    for abc in (fl.mup(2), fl.ntk(2), fl.standard(2), fl.standard(2, c=1)):
        net = abc_net(abc, n=64)
        curves.append(sgd_losses(net, net.sgd(0.3), x, y))
    for curve in curves[1:]:
        assert_close(curve, curves[0], 1e-12)


def test_forward_by_hand():
    abc = ABCParam((0.3, -0.2, 0.7), (0, 0, 0), 0)
    net = abc_net(abc, n=128, gain=2.0)
    x, _ = batch()
    W = [layer.weight * 2.0**-a for layer, a in zip(net.layers, abc.a)]
    by_hand = math.sqrt(2) * torch.relu(math.sqrt(2) * torch.relu(x @ W[0].T) @ W[1].T) @ W[2].T
    assert_close(net(x), by_hand, 1e-12)


def test_zero_output_starts_at_zero():
    x, _ = batch()
    assert abc_net(fl.mup(2).zero_output())(x).abs().max() == 0


@pytest.mark.parametrize("n", [64, 256])
def test_mup_optimizer_trains_an_ordinary_mlp_as_mup(n):
    x, y = batch()
    abc = abc_net(fl.mup(3), n=n)
    plain = fl.mup_init_(MLP((6, n, n, n, 3), bias=False), 64, gen=child(9, "net")).double()
    for ours, theirs in zip(plain.layers, abc.layers):
        drawn, wanted = ours.weight.std().item(), (theirs.multiplier * theirs.weight).std().item()
        assert drawn == pytest.approx(wanted, rel=0.2)
        ours.weight.data.copy_(theirs.multiplier * theirs.weight)
    a = sgd_losses(abc, abc.sgd(0.2), x, y)
    b = sgd_losses(plain, fl.mup_optimizer(plain, 64, 0.2), x, y)
    assert_close(a, b, 1e-9)


def test_mup_optimizer_adam_moves_every_layer_alike_at_every_width():
    x, y = batch(dtype=torch.float32)

    def make(n, seed):
        net = MLP((6, n, n, 3), bias=True)
        return fl.mup_init_(net, 32, gain=2.0, gen=child(seed, "adam", n))

    adam = lambda model, lr: fl.mup_optimizer(model, 32, lr, "adam")
    settings = {"steps": 3, "data": (x, y), "loss": F.cross_entropy, "lr": 0.01, "seeds": (0, 1)}
    frame = fl.coordinate_check(make, (64, 128, 256, 512), optimizer=adam, **settings)
    for layer in ("h1", "h2"):
        mean = frame[frame.layer == layer].groupby("width").change.mean()
        assert abs(loglog_slope(mean.index, mean).slope) < 0.15  # seeds 0-4: at most 0.06
    # Without the factors the hidden layers' changes grow: the control.
    same = lambda model, lr: torch.optim.Adam(model.parameters(), lr=lr)
    frame = fl.coordinate_check(make, (64, 128, 256, 512), optimizer=same, **settings)
    mean = frame[frame.layer == "h2"].groupby("width").change.mean()
    assert loglog_slope(mean.index, mean).slope > 0.5


def test_coordinate_check_measures_the_predicted_powers():
    data = digits(train=64)
    expected = {"mup": (fl.mup(2), 0.0, 0.0), "ntk": (fl.ntk(2), -0.5, -0.5)}
    expected["standard"] = (fl.standard(2, c=1), -1.5, -0.5)
    for abc, *slopes in expected.values():

        def make(n, seed, abc=abc):
            return ABCMLP((64, n, n, 10), abc, gain=2.0, gen=child(seed, "net", n))

        frame = fl.coordinate_check(
            make, (128, 256, 512), 3, (data.x, data.y), F.cross_entropy, 0.1, (0, 1)
        )
        for layer, slope in zip(("h1", "h2"), slopes):
            mean = frame[frame.layer == layer].groupby("width").change.mean()
            assert abs(loglog_slope(mean.index, mean).slope - slope) < 0.35


# The linear limit.


def inf_net(d=6, o=3, **settings):
    return InfLinear1LP(d, o, **settings, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_one_step_of_the_limit_in_closed_form(alpha):
    s1, s2, eta = 0.8, 1.7, 0.3
    net = inf_net(sigma1=s1, sigma2=s2, alpha=alpha)
    x, y = batch(n=1)
    f = net(x)
    assert f.abs().max() == 0
    (chi,) = torch.autograd.grad(F.cross_entropy(f, y), f)
    opt = torch.optim.SGD(net.parameters(), lr=eta)
    F.cross_entropy(net(x), y).backward()
    opt.step()
    xi, _ = batch(seed=1)
    coefficient = s1**2 + s2**2
    # The term of second order in eta has the factor V_eff U_eff, which is zero.
    assert_close(net(xi), -eta * alpha**2 * coefficient * (xi @ x.T) * chi, 1e-14)


@pytest.mark.parametrize("biases", [(0.0, 0.0), (1.0, 0.5)])
def test_a_network_with_orthonormal_omega_is_the_limit(biases):
    """The limit replaces omega^T omega / n by the identity; here it is the identity."""
    d, o, n = 6, 3, 20
    x, y = batch()
    inf = inf_net(d, o, alpha=0.9, bias_alpha=biases)
    omega = torch.linalg.qr(torch.randn(n, d + o, generator=child(0), dtype=torch.float64)).Q
    finite = Linear1LP(omega @ inf.U.detach(), inf.V.detach() @ omega.T, 0.9, biases)
    settings = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.05}
    loss = lambda model, b: F.cross_entropy(model(b[0]), b[1])
    for net in (inf, finite):
        optimizer = lambda p: torch.optim.SGD(p, **settings)
        fit(net, (x, y), loss, steps=8, optimizer=optimizer, clip=0.3)
    assert_close(finite(x), inf(x), 1e-10)


@pytest.mark.parametrize("biases", [(0.0, 0.0), (0.6, 1.0)])
def test_a_network_trains_inside_d_plus_o_dimensions(biases):
    x, y = batch()
    gen = child(3, "compressed")
    net = Linear1LP.random(6, 3, 200, 0.9, 1.1, 1.0, biases, gen).double()
    small = net.compressed()
    assert small.U.shape[0] <= 6 + 3 + 1
    a = sgd_losses(net, torch.optim.SGD(net.parameters(), 0.3, momentum=0.5), x, y)
    b = sgd_losses(small, torch.optim.SGD(small.parameters(), 0.3, momentum=0.5), x, y)
    assert_close(b, a, 1e-9)


def regression_error(n, member):
    gen = child(0, "regression")
    x = torch.randn(20, 10, generator=gen, dtype=torch.float64) / math.sqrt(10)
    y = x @ torch.randn(10, 3, generator=gen, dtype=torch.float64)
    inf = inf_net(10, 3)

    def train(net):
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for i in range(20):
            opt.zero_grad()
            (0.5 * (net(x[i : i + 1]) - y[i : i + 1]).square().sum()).backward()
            opt.step()
        return net(x).detach()

    finite = inf.sample(n, child(member, "omega", n))
    return (train(finite) - train(inf)).square().mean().sqrt()


def test_finite_networks_approach_the_limit_as_the_root_of_width():
    widths = (32, 128, 512, 2048)
    error = [torch.stack([regression_error(n, k) for k in range(6)]).mean() for n in widths]
    assert -0.65 < loglog_slope(widths, error).slope < -0.35


def test_a_trained_state_needs_one_omega():
    x, y = batch()
    inf = inf_net()
    sgd_losses(inf, torch.optim.SGD(inf.parameters(), 0.5), x, y, steps=20)
    n = 4096
    together = inf.sample(n, child(0))
    apart = Linear1LP(together.U.detach(), inf.sample(n, child(1)).V.detach())
    error = lambda net: ((net(x) - inf(x)).norm() / inf(x).norm()).item()
    assert error(together) < 0.1
    assert error(apart) > 0.5


def test_bias_multiplier_zero_leaves_the_bias_out():
    assert inf_net().b1 is None
    assert inf_net(bias_alpha=(1.0, 0.0)).b2 is None


def test_wide_proxy_estimates_the_linear_limit():
    x, y = batch(dtype=torch.float32)
    loss = lambda model, b: F.cross_entropy(model(b[0]), b[1])
    make = lambda k: ABCMLP((6, 1024, 3), fl.mup(1), "identity", base=1, gen=child(k, "proxy"))
    proxy = fl.wide_proxy(make, 8, (x, y), loss, steps=10, eta=0.2)
    # At base 1 the first layer has variance 1/d, so sigma1 = d^{-1/2} after the shift.
    inf = InfLinear1LP(6, 3, sigma1=1 / math.sqrt(6))
    sgd_losses(inf, torch.optim.SGD(inf.parameters(), 0.2), x, y, steps=10)
    outputs = proxy(x).detach()
    error = (outputs.mean(0) - inf(x)).norm() / inf(x).norm()
    assert error < 0.15


# Deeper linear networks.


def regress(net, steps, eta=0.1, **settings):
    """Single-sample SGD steps of a regression; the outputs afterwards."""
    gen = child(0, "deep regression")
    x = torch.randn(20, 10, generator=gen, dtype=torch.float64) / math.sqrt(10)
    y = x @ torch.randn(10, 3, generator=gen, dtype=torch.float64)
    opt = torch.optim.SGD(net.parameters(), lr=eta, **settings)
    for i in range(steps):
        opt.zero_grad()
        (0.5 * (net(x[i : i + 1]) - y[i : i + 1]).square().sum()).backward()
        opt.step()
    return net(x).detach()


def test_one_hidden_layer_of_the_deep_limit_is_the_shallow_one():
    deep = InfLinear(6, 3, 1, 7, sigma=(0.8, 1.3), alpha=0.9, dtype=torch.float64)
    shallow = inf_net(sigma1=0.8, sigma2=1.3, alpha=0.9)
    x, y = batch()
    losses = [sgd_losses(m, torch.optim.SGD(m.parameters(), 0.3), x, y) for m in (deep, shallow)]
    assert_close(losses[0], losses[1], 1e-14)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_words_have_the_moments_of_products_of_gaussian_matrices(depth):
    """E tr (M^T M)^k / n for M a product of s square matrices: C(sk + k, k) / (sk + 1)."""
    s = depth - 1
    hidden = fl.word_tree(depth, 0, 3 * s)  # words this long meet in (M^T M)^k up to k = 3
    M = hidden[0]
    for w in hidden[1:]:
        M = w @ M
    root = torch.eye(M.shape[1])[0]
    for k in range(4):
        moment = root @ torch.linalg.matrix_power(M.T @ M, k) @ root
        assert moment == math.comb(s * k + k, k) // (s * k + 1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_step_of_a_deep_limit_in_closed_form(depth):
    """Every layer adds the product of the other layers' variances."""
    gen = child(depth, "deep step")
    sigma = (0.5 + torch.rand(depth + 1, generator=gen)).tolist()
    net = InfLinear(6, 3, depth, depth, sigma, alpha=0.8, dtype=torch.float64)
    x, xi = (torch.randn(k, 6, generator=gen, dtype=torch.float64) for k in (1, 5))
    chi = torch.randn(1, 3, generator=gen, dtype=torch.float64)
    assert net(xi).abs().max() == 0
    net(x).backward(chi)
    torch.optim.SGD(net.parameters(), lr=0.3).step()
    variances = [v**2 for v in sigma]
    coefficient = sum(math.prod(variances) / v for v in variances)
    assert_close(net(xi), -0.3 * 0.8**2 * coefficient * (xi @ x.T) * chi, 1e-13)


@pytest.mark.parametrize("depth, steps", [(2, 8), (3, 3)])
def test_as_many_letters_as_steps_are_exact_and_one_less_is_not(depth, steps):
    settings = {"momentum": 0.5, "weight_decay": 0.1, "eta": 0.3}
    after = lambda length: regress(
        InfLinear(10, 3, depth, length, dtype=torch.float64), steps, **settings
    )
    enough = steps * (depth - 1)
    exact = after(enough + 2)
    assert_close(after(enough), exact, 1e-14)
    few = [((after(k) - exact).norm() / exact.norm()).item() for k in range(0, 5, depth - 1)]
    assert all(short > 5 * longer > 0 for short, longer in zip(few, few[1:]))


@pytest.mark.parametrize(
    "depth, steps, settings",
    [(2, 20, {}), (3, 4, {}), (2, 10, {"momentum": 0.5, "weight_decay": 0.3})],
)
def test_deep_networks_approach_their_limit_as_the_root_of_width(depth, steps, settings):
    limit = regress(InfLinear(10, 3, depth, 8, dtype=torch.float64), steps, **settings)
    widths, error = (32, 128, 512), []
    for n in widths:
        nets = [
            DeepLinear.random(10, 3, n, depth, gen=child(k, n), dtype=torch.float64)
            for k in range(5)
        ]
        off = torch.stack(
            [(regress(net, steps, **settings) - limit).square().mean() for net in nets]
        )
        error.append(off.mean().sqrt().item())
    assert -0.65 < loglog_slope(widths, error).slope < -0.35
    assert error[-1] < 0.25 * limit.square().mean().sqrt()


def test_a_limit_without_letters_is_not_the_limit():
    """The control: independent layers that never meet their own transpose."""
    exact = regress(InfLinear(10, 3, 2, 20, dtype=torch.float64), 20)
    cut = regress(InfLinear(10, 3, 2, 0, dtype=torch.float64), 20)
    assert (cut - exact).norm() > 0.3 * exact.norm()


# The kernel limits.


@pytest.mark.parametrize("kind", ["gp", "ntk"])
def test_kernel_is_the_known_one(kind):
    x, _ = batch()
    ours = InfKernel1LP(kind, 6, 2, var_w=1 / 6, var_w2=1 / 6).kernel(x)
    nngp, theta = nngp_ntk(x, depth=1, beta=0.0)
    assert_close(ours, nngp if kind == "gp" else theta, 1e-6)


def test_gp_kernel_with_a_bias_is_that_of_random_features():
    x, _ = batch(n=5)
    net = InfKernel1LP("gp", 6, 1, var_w=0.5, var_b=0.8, dtype=torch.float64)
    gen = child(0)
    U = math.sqrt(0.5) * torch.randn(400_000, 6, generator=gen, dtype=torch.float64)
    b = math.sqrt(0.8) * torch.randn(400_000, generator=gen, dtype=torch.float64)
    h = torch.relu(x @ U.T + b)
    assert_close(h @ h.T / 400_000, net.kernel(x), 0.01)


@pytest.mark.parametrize("kind", ["gp", "ntk"])
def test_expansion_is_kernel_gradient_descent(kind):
    x, y = batch()
    probe, _ = batch(seed=1)
    net = InfKernel1LP(kind, 6, 3, 1.0, 0.3, 0.7, dtype=torch.float64)
    joint = torch.cat([x, probe])
    K, f = net.kernel(joint), torch.zeros(48, 3, dtype=torch.float64)
    for _ in range(4):
        out = f[:24].clone().requires_grad_()
        (delta,) = torch.autograd.grad(F.cross_entropy(out, y), out)
        net.descend(x, delta, lr=0.5, weight_decay=0.1)
        f = (1 - 0.5 * 0.1) * f - 0.5 * K[:, :24] @ delta
    assert len(net) == 4 * 24
    assert_close(net(probe), f[24:], 1e-10)
    before = net(probe)
    net.compact()
    assert len(net) == 24
    assert_close(net(probe), before, 1e-10)


def wide_relu(n, d=6, o=3, train_first=True, seed=0):
    gen = child(seed, "relu", n)
    U = torch.randn(n, d, generator=gen, dtype=torch.float64).requires_grad_(train_first)
    V = torch.randn(o, n, generator=gen, dtype=torch.float64).requires_grad_()
    return U, V


def test_gradient_norm_is_that_of_a_wide_network():
    x, y = batch()
    U, V = wide_relu(20_000)
    out = torch.relu(x @ U.T) @ V.T / math.sqrt(20_000)
    delta = torch.randn(24, 3, generator=child(5), dtype=torch.float64)
    gu, gv = torch.autograd.grad(out, [U, V], delta)
    limits = {k: InfKernel1LP(k, 6, 3, dtype=torch.float64) for k in ("gp", "ntk")}
    norms = {k: net.gradient_norm(x, delta) for k, net in limits.items()}
    assert norms["gp"] == pytest.approx(gv.norm().item(), rel=0.03)
    both = math.hypot(gu.norm().item(), gv.norm().item())
    assert norms["ntk"] == pytest.approx(both, rel=0.03)
    net = limits["ntk"]
    net.descend(x, delta, lr=1.0, clip=0.5)
    assert net.gradient_norm(x, net.C) == pytest.approx(0.5, rel=1e-6)


def test_gp_sample_has_the_state_s_function():
    x, y = batch()
    net = InfKernel1LP("gp", 6, 3, 1.0, 0.4, dtype=torch.float64)
    for _ in range(5):
        out = net(x).requires_grad_()
        (delta,) = torch.autograd.grad(F.cross_entropy(out, y), out)
        net.descend(x, delta, lr=1.0)
    assert_close(net.sample(40_000, child(0))(x), net(x), 0.05)


# CBOW.


def test_infinite_cbow_is_the_linear_limit_on_averaged_one_hots():
    vocab, gen = 12, child(0, "cbow")
    context = torch.randint(vocab, (30, 4), generator=gen)
    center = torch.randint(vocab, (30,), generator=gen)
    average = F.one_hot(context, vocab).double().mean(1)
    words, dense = CBOW(vocab).double(), inf_net(vocab, vocab)
    a, b = [], []
    for net, inputs, losses in ((words, context, a), (dense, average, b)):
        opt = torch.optim.SGD(net.parameters(), lr=2.0)
        for _ in range(6):
            opt.zero_grad()
            value = F.cross_entropy(net(inputs), center)
            value.backward()
            opt.step()
            losses.append(value.item())
    assert_close(torch.tensor(a), torch.tensor(b), 1e-10)
    gram = words.embeddings() @ words.embeddings().T
    assert_close(gram, (dense.U.T @ dense.U).detach(), 1e-10)


@pytest.mark.parametrize("parametrization", ["mup", "ntk"])
def test_compressed_cbow_trains_alike(parametrization):
    gen = child(1, "cbow")
    context, center = (
        torch.randint(9, (40, 4), generator=gen),
        torch.randint(9, (40,), generator=gen),
    )
    net = CBOW(9, 200, parametrization=parametrization, base=50, gen=gen).double()
    small = net.compressed()
    assert small.U.shape == (9, 18) and small.rate_factor == net.rate_factor
    losses = []
    for model in (net, small):
        opt = torch.optim.SGD(model.parameters(), lr=model.rate_factor * 2.0)
        for _ in range(5):
            opt.zero_grad()
            value = fl.softmax_loss(model, context, center)
            value.backward()
            opt.step()
        losses.append(fl.softmax_loss(model, context, center).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_ntk_cbow_is_mup_at_the_base_width_and_frozen_at_great_width():
    moved = {}
    gen = child(2, "cbow")
    context, center = (
        torch.randint(9, (40, 4), generator=gen),
        torch.randint(9, (40,), generator=gen),
    )
    for kind in ("mup", "ntk"):
        for n in (64, 4096):
            net = CBOW(9, n, parametrization=kind, base=64, gen=child(0, n))
            start = net.embeddings().clone()
            opt = torch.optim.SGD(net.parameters(), lr=net.rate_factor)
            for _ in range(5):
                opt.zero_grad()
                fl.softmax_loss(net, context, center).backward()
                opt.step()
            moved[kind, n] = ((net.embeddings() - start).norm() / start.norm()).item()
    assert moved["mup", 64] == pytest.approx(moved["ntk", 64], rel=1e-5)
    assert moved["mup", 4096] > 0.5 * moved["mup", 64]
    assert moved["ntk", 4096] < 0.2 * moved["ntk", 64]


def test_negative_loss_by_hand():
    gen = child(3, "cbow")
    net = CBOW(7, 5, gen=gen)
    context, center = torch.randint(7, (4, 3), generator=gen), torch.tensor([0, 1, 2, 3])
    negatives = torch.tensor([[4, 0], [5, 6], [2, 2], [1, 6]])
    f, total = net(context), 0.0
    for i in range(4):
        total += F.softplus(-f[i, center[i]])
        for k in negatives[i]:
            if k != center[i]:
                total += F.softplus(f[i, k])
    assert_close(fl.negative_loss(net, context, center, negatives), total / 4, 1e-6)


def test_hierarchical_softmax_is_a_distribution_with_huffman_lengths():
    counts = torch.tensor([40, 20, 10, 8, 7, 5, 1])
    tree = fl.huffman(counts)
    length = (tree.nodes >= 0).sum(1)
    assert (length[:-1] <= length[1:]).all()
    assert (0.5 ** length.double()).sum() == 1  # Kraft: a complete binary tree
    net = CBOW(7, 5, outputs=6, gen=child(4))
    context = torch.tensor([[1, 2, 3]])
    loss = [fl.hierarchical_loss(net, context, torch.tensor([w]), tree) for w in range(7)]
    assert_close(torch.stack(loss).neg().exp().sum(), torch.tensor(1.0), 1e-6)


def test_unigram_table_and_subsampling():
    table = fl.unigram_table(torch.tensor([16, 1, 0]))
    assert_close(table, torch.tensor([8.0, 1.0, 0.0]) / 9, 1e-6)
    tokens = torch.randint(2, (20_000,), generator=child(0)) * 0
    keep = fl.subsample(tokens, 0.01, child(1)).float().mean()
    assert keep.item() == pytest.approx(0.11, abs=0.01)  # sqrt(t) + t


def test_most_common_words_and_their_numbers():
    kept, numbers = fl.most_common("to be or not to be or be".split(), 3)
    assert kept == ["be", "or", "to"]
    assert numbers.tolist() == [2, 0, 1, 2, 0, 1, 0]


def test_text_windows():
    tokens = torch.arange(100, 110)
    context, center = fl.text_windows(tokens, torch.tensor([2, 7]), 2)
    assert context.tolist() == [[100, 101, 103, 104], [105, 106, 108, 109]]
    assert center.tolist() == [102, 107]


def test_relations_windows_and_questions():
    world = fl.Relations(bases=5, attributes=3)
    assert world.vocab == 15 + 3 * 8
    context, center = world.windows(500, child(0))
    words = torch.cat([context, center[:, None]], 1)
    assert ((words < world.targets).sum(1) == 1).all()
    for row in words[:20].tolist():
        target = next(w for w in row if w < world.targets)
        base, attribute = divmod(target, 3)
        names = sorted(world.word(w).split("/")[0] for w in row if w >= world.targets)
        assert names == sorted([f"b{base}"] * 2 + [f"a{attribute}"] * 2)
        assert len(set(row)) == 5
    q = world.questions(200, child(1))
    i, a = q // 3, q % 3
    assert (i[:, 0] == i[:, 1]).all() and (i[:, 2] == i[:, 3]).all()
    assert (a[:, 0] == a[:, 3]).all() and (a[:, 1] == a[:, 2]).all()
    assert (i[:, 0] != i[:, 2]).all() and (a[:, 0] != a[:, 1]).all()


def test_analogies_on_sums_of_vectors_are_all_right():
    world = fl.Relations(bases=6, attributes=4)
    gen = child(0, "analogy")
    base, attribute = torch.randn(6, 1, 40, generator=gen), torch.randn(4, 40, generator=gen)
    vectors = (base + attribute).reshape(24, 40)
    questions = world.questions(200, child(1))
    assert fl.analogy_accuracy(vectors, questions) > 0.95
    answers = fl.analogy_answers(vectors, questions, torch.arange(4))
    assert answers.max() < 4 and (answers[:, None] != questions[:, :3]).all()
    noise = torch.randn(24, 40, generator=gen)
    assert fl.analogy_accuracy(noise, questions) < 0.4


# MAML.


def task(seed=0, d=6):
    pool = torch.rand(8, 6, d, generator=child(seed, "pool"), dtype=torch.float64)
    return fl.episode(pool, 3, 2, 2, child(seed, "episode"))


def test_second_order_meta_gradient_is_the_derivative_of_adaptation():
    net = Linear1LP.random(6, 3, 10, gen=child(0)).double()
    step = fl.maml_step(net, task(), 0.5, 2, first_order=False)
    direction = {
        k: torch.randn(p.shape, generator=child(1, k)).double() for k, p in net.named_parameters()
    }
    values = []
    for sign in (1, -1):
        moved = Linear1LP(net.U.detach(), net.V.detach())
        for k, p in moved.named_parameters():
            p.data.add_(sign * 1e-5 * direction[k])
        values.append(fl.maml_step(moved, task(), 0.5, 2).loss)
    slope = (values[0] - values[1]) / 2e-5
    inner = sum((step.gradient[k] * direction[k]).sum() for k in direction)
    assert inner.item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("kind", ["gp", "ntk"])
def test_kernel_maml_is_maml_of_its_features(kind, first_order):
    """A network that is linear in its weights, with the kernel's features, does the same."""
    t = task()
    net = InfKernel1LP(kind, 6, 3, dtype=torch.float64)
    x = torch.cat([t.x, t.x_test])
    net.descend(x, torch.randn(12, 3, generator=child(2), dtype=torch.float64), lr=0.3)
    step = fl.maml_step(net, t, 0.4, 2, first_order)
    features = torch.linalg.cholesky(net.kernel(x) + 1e-12 * torch.eye(12))
    linear = torch.nn.Linear(12, 3, bias=False).double()
    linear.weight.data = torch.linalg.solve(features, net(x)).T
    as_features = fl.Task(features[:6], t.y, features[6:], t.y_test)
    other = fl.maml_step(linear, as_features, 0.4, 2, first_order)
    assert step.loss == pytest.approx(other.loss, rel=1e-6)
    assert step.accuracy == other.accuracy
    meta = features.T @ step.gradient[1]
    assert_close(meta.T, other.gradient["weight"], 1e-5)
    if first_order:
        assert step.gradient[1][:6].abs().max() == 0


def test_meta_training_of_a_finite_sample_follows_the_limit():
    pool = fl.glyphs(10, 8, child(0, "glyphs"), size=8)
    tasks = lambda step: [fl.episode(pool, 3, 1, 1, child(0, "task", k)) for k in range(4)]
    inf = InfLinear1LP(64, 3, 1.0, 0.1)
    finite = inf.sample(4096, child(1))
    settings = {"inner_lr": 0.4, "meta_lr": 0.1, "clip": 0.5}
    a = [row["loss"] for row in fl.meta_train(inf, tasks, 15, **settings)]
    b = [row["loss"] for row in fl.meta_train(finite, tasks, 15, **settings)]
    assert a[-1] < 0.95 * a[0]
    assert_close(torch.tensor(b), torch.tensor(a), 0.05)


def test_meta_training_a_kernel_is_exact_under_compaction():
    pool = fl.glyphs(6, 4, child(0, "glyphs"), size=8).double()
    tasks = lambda step: [fl.episode(pool, 3, 1, 1, child(0, "task", step, k)) for k in range(2)]
    nets = [InfKernel1LP("ntk", 64, 3, dtype=torch.float64) for _ in range(2)]
    for net, every in zip(nets, (1, 100)):
        fl.meta_train(net, tasks, 6, inner_lr=0.1, meta_lr=0.1, compact_every=every)
    assert len(nets[0]) <= 24 < len(nets[1])
    x = pool.flatten(0, 1)
    assert_close(nets[0](x), nets[1](x), 1e-10)


def test_glyphs_and_episodes():
    pool = fl.glyphs(5, 7, child(0), size=14)
    assert pool.shape == (5, 7, 196) and 0 <= pool.min() and pool.max() == 1
    ink = pool.mean()
    assert 0.05 < ink < 0.4
    # Samples of one class are nearer to one another than to other classes.
    flat = pool.flatten(0, 1)
    distance, label = torch.cdist(flat, flat), torch.arange(5).repeat_interleave(7)
    same = label[:, None] == label
    off = ~torch.eye(35, dtype=torch.bool)
    assert distance[same & off].mean() < 0.8 * distance[~same].mean()
    t = fl.episode(pool, 4, 2, 3, child(1))
    assert t.x.shape == (8, 196) and t.x_test.shape == (12, 196)
    assert fl.episode(pool.to("meta"), 4, 2, 3, child(1)).y.device.type == "meta"
    assert t.y.bincount().tolist() == [2] * 4 and t.y_test.bincount().tolist() == [3] * 4


# The paper's data.


def test_text8_and_its_analogies_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    with raises(DataError, match="does not hold text8 or text8.zip"):
        fl.text8(3)
    (tmp_path / "text8").write_text(" king man queen king woman man king zebra")
    words, tokens = fl.text8(4)
    assert words[:2] == ["king", "man"] and tokens.tolist()[:4] == [0, 1, 2, 0]
    (tmp_path / "questions-words.txt").write_text(": family\nMan king woman queen\na b c d\n")
    words = ["king", "man", "queen", "woman"]
    assert fl.analogy_questions(words).tolist() == [[0, 1, 3, 2]]
    with raises(DataError, match="no line of four words"):
        fl.analogy_questions(["king"])
    (tmp_path / "text8").write_text("King & Queen")
    with raises(DataError, match="is not text8"):
        fl.text8(3)
    with raises(ValueError, match="vocab=1"):
        fl.text8(1)
    monkeypatch.delenv("BOOK_DATA")
    with raises(DataError, match="set BOOK_DATA to a folder that holds text8"):
        fl.text8(3)
    monkeypatch.setenv("BOOK_DATA", str(tmp_path / "nowhere"))
    with raises(DataError, match="is no folder"):
        fl.omniglot("background")


def test_omniglot_is_read_from_a_folder_and_from_a_zip(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("BOOK_DATA", str(tmp_path))
    root = tmp_path / "images_evaluation"
    for character in ("Latin/character01", "Greek/character01"):
        (root / character).mkdir(parents=True)
        for k in range(20):
            page = Image.new("1", (105, 105), 1)
            page.paste(0, (0, 0, 105, 30 if character.startswith("Greek") else 75))
            page.save(root / character / f"{k:02d}.png")
    pool = fl.omniglot("evaluation", size=7)
    assert pool.shape == (2, 20, 49)
    assert_close(pool.mean((1, 2)), torch.tensor([30 / 105, 75 / 105]), 1e-3)  # Greek first
    with zipfile.ZipFile(tmp_path / "images_background.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, "images_background/" + file.relative_to(root).as_posix())
    assert_close(fl.omniglot("background", size=7), pool, 1e-12)
    (root / "Latin/character01/03.png").unlink()
    with raises(DataError, match="has 19 drawings, expected 20"):
        fl.omniglot("evaluation")
    (root / "Latin/character01/03.png").write_bytes(b"no picture")
    with raises(DataError, match="is not a whole picture"):
        fl.omniglot("evaluation")
    (tmp_path / "images_background.zip").write_bytes(b"PK no zip")
    with raises(DataError, match="is not a whole zip file"):
        fl.omniglot("background")
    with raises(ValueError, match="part='test'"):
        fl.omniglot("test")
    with raises(ValueError, match="size=0"):
        fl.omniglot("background", 0)


# Errors.


def test_errors_say_what_is_allowed():
    with raises(ValueError, match="one exponent per weight layer"):
        ABCParam((0, 0), (0, 0, 0), 0)
    with raises(ValueError, match="only the last b may be infinite"):
        ABCParam((0, 0), (math.inf, 0), 0)
    with raises(ValueError, match="depth=0"):
        fl.mup(0)
    with raises(ValueError, match="3 weight layers, allowed are 4"):
        ABCMLP((4, 8, 2), fl.mup(2))
    with raises(ValueError, match="hidden layers must have one width"):
        ABCMLP((4, 8, 9, 2), fl.mup(2))
    with raises(ValueError, match="allowed are relu"):
        ABCMLP((4, 8, 2), fl.mup(1), "gelu")
    with raises(ValueError, match="kind='rmsprop'"):
        fl.mup_optimizer(MLP((4, 8, 8, 2)), 8, 0.1, "rmsprop")
    with raises(ValueError, match="steps=0"):
        fl.coordinate_check(lambda n, s: None, (8,), 0, (None, None), None, 0.1)
    with raises(ValueError, match="o=0"):
        InfLinear1LP(3, 0)
    with raises(ValueError, match=r"\(n, d\) and \(o, n\)"):
        Linear1LP(torch.ones(3, 2), torch.ones(1, 4))
    with raises(ValueError, match="weights: shapes"):
        DeepLinear([torch.ones(3, 2), torch.ones(1, 4)])
    with raises(ValueError, match="depth=0"):
        InfLinear(3, 2, 0, 1)
    with raises(ValueError, match="length=-1"):
        InfLinear(3, 2, 2, -1)
    with raises(ValueError, match="3 of them for depth=2"):
        InfLinear(3, 2, 2, 1, sigma=(1.0, 1.0))
    with raises(ValueError, match="more than 2,000 words"):
        InfLinear(3, 2, 3, 40)
    with raises(ValueError, match="root=2"):
        fl.word_tree(2, 2, 1)
    with raises(ValueError, match=r"x must be \(..., 3\), got \(2, 5\)"):
        InfLinear1LP(3, 2)(torch.ones(2, 5))
    with raises(ValueError, match="sigma1=nan"):
        InfLinear1LP(3, 2, sigma1=math.nan)
    with raises(ValueError, match="bias_alpha"):
        InfLinear1LP(3, 2, bias_alpha=(1.0,))
    with raises(TypeError, match="inputs must be torch.float32"):
        InfKernel1LP("gp", 3, 1)(torch.ones(2, 3, dtype=torch.float64))
    with raises(ValueError, match="clip=-1"):
        InfKernel1LP("gp", 3, 1).descend(torch.ones(2, 3), torch.ones(2, 1), 0.1, clip=-1.0)
    with raises(ValueError, match="clip=-1"):
        fl.meta_train(InfLinear1LP(3, 2), lambda s: [], 1, inner_lr=0.1, meta_lr=0.1, clip=-1.0)
    with raises(ValueError, match="returned none"):
        fl.meta_train(InfLinear1LP(3, 2), lambda s: [], 1, inner_lr=0.1, meta_lr=0.1)
    with raises(ValueError, match="got none"):
        fl.meta_accuracy(InfLinear1LP(3, 2), [], 0.1)
    with raises(ValueError, match="gain=-1"):
        fl.mup_init_(MLP((4, 8, 2)), 8, gain=-1.0)
    with raises(ValueError, match="one or more of each"):
        fl.coordinate_check(lambda n, s: None, (), 1, (None, None), None, 0.1)
    with raises(ValueError, match="dim=nan"):
        CBOW(5, math.nan)
    with raises(ValueError, match="base=0"):
        CBOW(5, 8, base=0)
    with raises(ValueError, match=r"context must be \(batch, w\)"):
        CBOW(5, 8)(torch.tensor([1, 2]))
    with raises(ValueError, match="got -1"):
        fl.huffman(torch.tensor([3, -1]))
    with raises(ValueError, match="questions: words are numbers from 0 to 4"):
        fl.analogy_answers(torch.eye(5), torch.tensor([[0, 1, 2, 9]]))
    with raises(ValueError, match="no word left"):
        fl.analogy_answers(torch.eye(5), torch.tensor([[0, 1, 2, 3]]), torch.tensor([0, 1]))
    with raises(ValueError, match="size=0"):
        fl.most_common(["a"], 0)
    with raises(ValueError, match="kind='nngp'"):
        InfKernel1LP("nngp", 3, 1)
    with raises(ValueError, match="only the GP limit"):
        InfKernel1LP("ntk", 3, 1).sample(10)
    with raises(ValueError, match=r"inputs must be \(batch, 3\)"):
        InfKernel1LP("gp", 3, 1)(torch.ones(2, 4))
    with raises(ValueError, match="x and delta must be"):
        InfKernel1LP("gp", 3, 1).descend(torch.ones(2, 4), torch.ones(2, 1), 0.1)
    with raises(ValueError, match="embeddings stay as they start"):
        CBOW(5, math.inf, parametrization="ntk")
    with raises(ValueError, match="dim=2.5"):
        CBOW(5, 2.5)
    with raises(ValueError, match="inner nodes"):
        fl.hierarchical_loss(CBOW(5), None, None, fl.huffman(torch.ones(5).long()))
    with raises(ValueError, match="two words"):
        fl.huffman(torch.tensor([3]))
    with raises(ValueError, match="markers >= 2"):
        fl.Relations(markers=1).windows(3, child(0))
    with raises(ValueError, match="ways=9"):
        fl.episode(torch.rand(3, 4, 5), 9, 1, 1, child(0))
    with raises(ValueError, match="inner_steps=-1"):
        fl.maml_step(InfLinear1LP(3, 2), task(), 0.1, -1)
