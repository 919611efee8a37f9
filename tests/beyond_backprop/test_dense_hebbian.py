import itertools
import math

import numpy as np
import pytest
import torch

import lib.beyond_backprop.dense_hebbian as dh
from lib.core.seeds import child
from lib.models.hopfield import corrupt, glauber, patterns
from tests.helpers import assert_close, raises


@pytest.fixture
def small(gen):
    """Real-valued class means, and spins."""
    eb = torch.randn(5, 8, generator=gen, dtype=torch.float64)
    return eb, patterns(3, 8, gen=gen, dtype=torch.float64)


def by_tensor(s, eb, P, indices):
    """Sum over all index tuples, one by one."""
    n = eb.shape[1]
    h = torch.zeros_like(s)
    for i, *rest in itertools.product(range(n), repeat=P):
        if indices == "distinct" and len({i, *rest}) < P or indices == "others" and i in rest:
            continue
        h[:, i] += (eb[:, i] * eb[:, rest].prod(1)).sum() * s[:, rest].prod(1)
    return h / n ** (P - 1)


# The field.


@pytest.mark.parametrize("P", [2, 3, 4])
@pytest.mark.parametrize("indices", ["distinct", "others", "all"])
def test_field_is_the_tensor_contraction(P, indices, small):
    eb, s = small
    eb, s = (eb[:, :6], s[:, :6]) if P == 4 else (eb, s)
    h = dh.dense_field(s, eb, P, indices)
    assert (h - by_tensor(s, eb, P, indices)).abs().max() < 1e-12


@pytest.mark.parametrize("P", [2, 3, 4, 5, 6])
def test_two_routes_to_the_field(P, small):
    """Stored couplings and products of matrices, for spins and for magnetizations."""
    eb, s = small
    J, sets = dh.stored_couplings(eb, P)
    assert len(J) == math.comb(8, P)
    for state in (s, 0.7 * s, torch.rand_like(s)):
        assert_close(dh.dense_field(state, eb, P), dh.couplings_field(state, J, sets), 1e-11)


def test_the_formulas_written_out(small):
    """P = 3 and 4 as in the literature on dense networks, for spins."""
    eb, s = small
    n, (y, q, c) = 8, (s @ eb.T, (eb**2).sum(1), s @ (eb**3).T)
    three = (y * y - q) @ eb - 2 * s * (y @ eb**2) + 2 * (eb**3).sum(0)
    four = (y**3 - 3 * q * y + 2 * c) @ eb - 3 * s * ((y * y - q) @ eb**2)
    four += 6 * y @ eb**3 - 6 * s * (eb**4).sum(0)
    assert_close(dh.dense_field(s, eb, 3), three / n**2, 1e-12)
    assert_close(dh.dense_field(s, eb, 4), four / n**3, 1e-12)


@pytest.mark.parametrize("P", [2, 3, 4, 5])
def test_energy_and_field(P, small):
    """dH/ds = -h, and a flip costs 2 s h."""
    eb, s = small
    s = s.requires_grad_()
    (slope,) = torch.autograd.grad(dh.dense_energy(s, eb, P).sum(), s)
    s = s.detach()
    h = dh.dense_field(s, eb, P)
    assert_close(slope, -h, 1e-11)
    flipped = s.clone()
    flipped[:, 2] *= -1
    cost = dh.dense_energy(flipped, eb, P) - dh.dense_energy(s, eb, P)
    assert_close(cost, 2 * s[:, 2] * h[:, 2], 1e-11)


def test_energy_with_all_indices(small):
    eb, s = small
    X = s @ eb.T / 8
    assert_close(dh.dense_energy(s, eb, 4, "all"), -2 * (X**4).sum(1), 1e-12)


def test_own_spin_freezes_even_orders():
    """With self terms P = 4 keeps any state; without, a random state is no fixed point."""
    g = child(0, "freeze")
    xi, s = patterns(3600, 60, gen=g), patterns(50, 60, gen=g)
    kept = {i: (dh.dense_field(s, xi, 4, i).sign() * s).mean().item() for i in ("all", "distinct")}
    assert kept["all"] > 0.99 and abs(kept["distinct"]) < 0.15


def test_batches_and_chunks(small, monkeypatch):
    eb, s = small
    whole = dh.dense_field(s, eb, 4)
    assert_close(dh.dense_field(s[0], eb, 4), whole[0], 1e-12)
    assert_close(dh.dense_field(s.reshape(3, 1, 8), eb, 4)[:, 0], whole, 1e-12)
    assert dh.dense_field(s[:0], eb, 4).shape == (0, 8)
    monkeypatch.setattr(dh.fields, "_SCORES", 6)  # two patterns at a time
    assert_close(dh.dense_field(s, eb, 4), whole, 1e-12)
    assert dh.dense_energy(s, eb, 4).shape == (3,)


def test_elementary_symmetric_sums(gen):
    a = torch.randn(1, 6, generator=gen, dtype=torch.float64)
    e = dh.elementary([(a**j).sum(1, keepdim=True) for j in range(1, 7)])
    roots = np.poly(-a[0].numpy())  # prod (x + a_j)
    assert_close(torch.cat([v.expand(1, 1) for v in e])[:, 0], torch.tensor(roots.copy()), 1e-10)


def test_coupling_noise_reaches_the_field_as_stated():
    """Field noise of stored, noisy couplings against its closed form: 300 draws, within 15 %."""
    n, P, omega = 10, 3, 2.0
    s = patterns(1, n, gen=child(0, "spins"), dtype=torch.float64)
    zero, g = torch.zeros(1, n, dtype=torch.float64), child(0, "noise")
    drawn = torch.cat(
        [dh.couplings_field(s, *dh.stored_couplings(zero, P, omega, g)) for _ in range(300)]
    )
    short = torch.cat([dh.noisy_field(s, zero, P, omega, g) for _ in range(300)])
    formula = omega**2 * math.factorial(P - 1) * dh.falling(n, P) / n ** (2 * (P - 1))
    assert abs(drawn.var().item() / formula - 1) < 0.15
    assert abs(short.var().item() / formula - 1) < 0.15


# Learning.


def test_class_means_and_modes(gen):
    xi = patterns(4, 12, gen=gen, dtype=torch.float64)
    examples = corrupt(xi, 0.5, 6, gen)
    labels = torch.arange(4).repeat(6)
    shuffled = torch.randperm(24, generator=gen)
    flat = examples.reshape(24, 12)
    net = dh.DenseHebbianNetwork(3).fit(flat[shuffled], labels[shuffled])
    assert_close(net.eb, examples.mean(0), 1e-12)
    assert abs(net.R - examples.mean(0).square().mean().item()) < 1e-12
    s = patterns(2, 12, gen=gen, dtype=torch.float64)
    alone = dh.DenseHebbianNetwork(3, "unsupervised").fit(flat, labels)
    by_hand = sum(dh.dense_field(s, e, 3) for e in examples) / 6
    assert_close(alone.field(s), by_hand, 1e-12)
    stored = dh.DenseHebbianNetwork(3, "storing").fit(xi)
    perfect = dh.DenseHebbianNetwork(3).fit(xi, torch.arange(4))
    assert_close(stored.field(s), perfect.field(s), 1e-12)
    assert_close(stored.energy(s), dh.dense_energy(s, xi, 3), 1e-12)
    assert dh.DenseHebbianNetwork(3, rescale=True).fit(flat, labels).R == pytest.approx(1)


def test_sampled_means_have_the_law_of_means(gen):
    xi, r, M = patterns(400, 100, gen=gen), 0.4, 5
    for eb in (dh.sample_means(xi, r, M, gen), corrupt(xi, r, M, gen).mean(0)):
        agree = eb * xi
        assert abs(agree.mean().item() - r) < 0.01
        assert abs(agree.square().mean().item() - (r**2 + (1 - r**2) / M)) < 0.01
        assert abs(agree.var().item() / r**2 - dh.entropy(r, M)) < 0.05


# Dynamics.


@pytest.mark.parametrize("P", [2, 3, 4])
@pytest.mark.parametrize("beta", [math.inf, 1.5])
def test_sweep_is_glauber(P, beta, gen):
    """The short cut walks through the same states as the plain dynamics."""
    xi = patterns(6, 20, gen=gen, dtype=torch.float64)
    net = dh.DenseHebbianNetwork(P).from_means(dh.sample_means(xi, 0.8, 6, gen))
    s = plain = corrupt(xi, 0.6, 1, gen)[0]
    g, h = child(3), child(3)
    for _ in range(2):
        s = dh.sequential_sweep(s, net.eb, P, beta, scale=net.scale, gen=g)
        plain = glauber(net.field, plain, beta, gen=h)
    assert torch.equal(s, plain)
    assert torch.equal(net.retrieve(corrupt(xi, 0.6, 1, child(9))[0], 0, gen=g).abs(), s.abs())


def test_zero_temperature_never_climbs(gen):
    eb = dh.sample_means(patterns(40, 30, gen=gen, dtype=torch.float64), 0.6, 4, gen)
    net, s = dh.DenseHebbianNetwork(3).from_means(eb), patterns(8, 30, gen=gen, dtype=torch.float64)
    before = net.energy(s)
    for _ in range(4):
        s = net.retrieve(s, 1, gen=gen)
        assert (net.energy(s) <= before + 1e-9).all()
        before = net.energy(s)


def test_sweeps_sample_the_gibbs_law(gen):
    """Ten spins, all 1024 states enumerated: mean energy within 3 %."""
    eb, beta, n = patterns(3, 10, gen=gen, dtype=torch.float64), 1.2, 10
    net = dh.DenseHebbianNetwork(3).from_means(eb)
    states = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)
    energy = net.energy(states)
    weight = torch.softmax(-beta * energy, 0)
    s, seen = patterns(1500, n, gen=gen, dtype=torch.float64), []
    for step in range(40):
        s = net.retrieve(s, 1, beta, gen=gen)
        if step >= 20:
            seen.append(net.energy(s).mean().item())
    truth = (weight * energy).sum().item()
    assert abs(sum(seen) / len(seen) / truth - 1) < 0.03


def test_plefka_follows_sampling(gen):
    """Low load and moderate noise: both orders within 0.03 of Glauber averages."""
    xi, beta = patterns(60, 150, gen=gen), 1.6
    net = dh.DenseHebbianNetwork(3, "storing").fit(xi)
    s, seen = xi[:20], []
    for step in range(20):
        s = net.retrieve(s, 1, beta, gen=gen)
        if step >= 8:
            seen.append((s * xi[:20]).mean().item())
    for order in (1, 2):
        m = dh.plefka(net, xi[:20], beta, order)
        assert abs((m * xi[:20]).mean().item() - sum(seen) / len(seen)) < 0.03
    assert_close(
        dh.plefka_step(xi[:2], net, 0.0, damping=0.25), 0.25 * xi[:2], 1e-6
    )  # infinite temperature: nothing but the damping


# Theory.


def test_one_step_limits():
    assert dh.one_step_overlap(0.0, 1.0, 1, 4) == 1.0
    assert dh.one_step_overlap(0.0, 0.5, 12, 4) == pytest.approx(math.erf(math.sqrt(2)))
    for P in (2, 3, 4):  # perfect examples need no teacher
        modes = [dh.one_step_overlap(0.05, 1.0, 7, P, m) for m in dh.theory.MODES]
        assert max(modes) - min(modes) < 1e-15
        large = dh.one_step_overlap(0.05, 0.4, 400, P, N=10**6, finite_size=True)
        assert large == pytest.approx(dh.one_step_overlap(0.05, 0.4, 400, P), abs=2e-3)
    at = lambda mode, P: dh.one_step_overlap(0.02, 0.4, 20, P, mode)
    assert at("supervised", 4) > at("unsupervised", 4) + 0.3
    # At r = 1 coupling noise of variance omega^2 is omega^2 more patterns.
    more = dh.one_step_overlap(0.02 + 25 / 60**3, 1.0, 1, 4)
    assert dh.one_step_overlap(0.02, 1.0, 1, 4, N=60, omega=5.0) == pytest.approx(more)


@pytest.mark.parametrize(("P", "N", "load"), [(3, 100, 0.05), (4, 50, 0.02)])
def test_one_step_against_simulation(P, N, load):
    """Two data sets of 150 archetypes each: within 0.03 (seen: 0.015)."""
    found = []
    for seed in (0, 1):
        g = child(seed, "one step")
        xi = patterns(round(load * N ** (P - 1)), N, gen=g)
        h = dh.dense_field(xi[:150], dh.sample_means(xi, 0.6, 20, g), P)
        found.append((torch.where(h == 0, xi[:150], h.sign()) * xi[:150]).mean().item())
    formula = dh.one_step_overlap(load, 0.6, 20, P, N=N, finite_size=True)
    assert abs(sum(found) / 2 - formula) < 0.03


def test_examples_needed():
    with_, without = (
        dh.examples_needed(0.8, 0.1 / 6, 0.4, 4, m) for m in ("supervised", "unsupervised")
    )
    assert 16 < with_ < 18 and 300 < without < 320
    assert dh.one_step_overlap(0.1 / 6, 0.4, with_, 4) == pytest.approx(0.8, abs=1e-9)
    assert dh.examples_needed(0.8, 1.0, 0.4, 4) == math.inf
    assert dh.examples_needed(0.5, 0.0, 1.0, 4) == 1.0


def test_fixed_point_is_one():
    gamma, r, M, P = 0.05, 0.6, 20, 3
    m, n, _ = dh.rs_zero_temperature(gamma, r, M, P)
    rho = dh.entropy(r, M)
    S = math.sqrt(rho * n ** (2 * (P - 1)) + gamma * math.factorial(P - 1) * (1 + rho) ** P)
    x = n ** (P - 1) / S
    assert_close(m, torch.erf(x / math.sqrt(2)), 1e-9)
    phi = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    assert_close(n, m + 2 * rho * x * phi, 1e-9)


def test_few_examples():
    """Perfect data and many examples: the normal law. One example: a pattern like any other."""
    for P in (2, 3, 4):
        load = 0.5 * dh.critical_load(0.7, 300, P)
        few, many = (f(load, 0.7, 300, P) for f in (dh.rs_few_examples, dh.rs_zero_temperature))
        assert_close(few.m, many.m, 1e-3)
        assert_close(few.n, many.n, 1e-3)
        clean = [f(load, 1.0, 1, P).m for f in (dh.rs_few_examples, dh.rs_zero_temperature)]
        assert_close(clean[0], clean[1], 1e-6)
    m, n, _ = dh.rs_few_examples(torch.tensor([0.01, 0.05]), 0.4, 1, 3)
    assert_close(n, m / 0.4**2, 1e-9)  # the state is near the example, whose quality is r
    assert (m - 0.4).abs().max() < 0.01
    xi = patterns(round(0.05 * 100**2), 100, gen=child(0, "few"))
    net = dh.DenseHebbianNetwork(3).from_means(dh.sample_means(xi, 0.8, 3, child(0, "few means")))
    end = net.retrieve(net.eb[:60].sign(), 4, gen=child(0, "few sweeps"))  # odd M: no zeros
    load = dh.storage_load(len(xi), 100, 3)
    m, n, _ = dh.rs_few_examples(load, 0.8, 3, 3)
    assert abs((end * xi[:60]).mean().item() - m) < 0.03
    assert abs((end * net.eb[:60]).mean().item() / 0.8 - n) < 0.03


def test_known_points():
    assert dh.critical_load(1.0, 1, 2) == pytest.approx(0.138, abs=0.001)  # Amit et al. 1985
    # Low load: m = tanh(beta m^(P-1)).
    for P, beta in ((2, 1.5), (3, 1.8), (4, 3.0)):
        m, n, q = dh.rs_finite_temperature(beta, 0.0, 1.0, 1, P)
        assert_close(m, torch.tanh(beta * m ** (P - 1)), 1e-8)
        assert_close(n, m, 1e-8) and assert_close(q, m * m, 1e-8)
    assert dh.rs_finite_temperature(0.9, 0.0, 1.0, 1, 2).m < 1e-3  # above Curie's temperature
    assert dh.critical_load(0.05, 1, 3) == 0.0 or dh.critical_load(0.05, 1, 3) < 1e-3


@pytest.mark.parametrize("P", [2, 3, 4])
def test_cold_limit(P):
    gamma = torch.tensor([0.3, 0.6]) * dh.critical_load(0.7, 10, P)
    cold = dh.rs_zero_temperature(gamma, 0.7, 10, P)
    warm = dh.rs_finite_temperature(40.0, gamma, 0.7, 10, P, nodes=400)
    assert_close(warm.m, cold.m, 5e-3)
    assert_close(warm.n, cold.n, 5e-3)


def test_partial_integration():
    """The average over both noises, as it stands, at the solution found by the short form."""
    beta, gamma, r, M, P = 2.5, 0.03, 0.7, 8, 3
    m, n, q = dh.rs_finite_temperature(beta, gamma, r, M, P)
    rho = dh.entropy(r, M)
    z, w = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(60))
    w = w / w.sum()
    slow = 1 + math.sqrt(rho) * z[:, None]
    cross = torch.sqrt(gamma * math.factorial(P - 1) * (1 + rho) ** P * q ** (P - 1))
    t = torch.tanh(beta / (1 + rho) ** (P / 2) * (slow * n ** (P - 1) + cross * z[None, :]))
    mean = lambda v: w @ v @ w
    for value, route in ((m, t), (q, t * t), (n, slow * t)):
        assert_close(value, mean(route), 1e-6)


def test_phase_diagram():
    rs, Ms = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([2.0, 20.0, 200.0])
    m = dh.phase_diagram(rs, Ms, 0.05, 3)
    assert m.shape == (3, 3)
    assert (m.diff(dim=0) >= -1e-9).all() and (m.diff(dim=1) >= -1e-9).all()
    assert m[0, 0] < 0.5 < m[2, 2]
    assert_close(m[1, 2], dh.rs_zero_temperature(0.05, 0.5, 200, 3).m, 1e-9)
    assert dh.phase_diagram(rs, Ms, 0.05, 3, beta=0.1).max() < 0.01


def test_storage_load():
    assert dh.storage_load(3600, 60, 4, exact=False) == pytest.approx(1 / 60)
    assert dh.storage_load(3600, 60, 4) == pytest.approx(3600 / (59 * 58 * 57))


# Pictures.


def test_digits_as_spins():
    data = dh.structured_datasets()
    assert data.x.shape == (1197, int(data.keep.sum())) and data.x_test.shape[0] == 600
    assert set(data.x.unique().tolist()) == {-1.0, 1.0}
    assert data.keep.shape == (8, 8) and 40 < data.keep.sum() < 56
    assert data.x.mean(0).abs().median() < 0.1  # each pixel against its own median


# Errors.


def test_errors(small, gen):
    eb, s = small
    with raises(ValueError, match="P=1: allowed"):
        dh.dense_field(s, eb, 1)
    with raises(ValueError, match="indices='none': allowed are 'distinct'"):
        dh.dense_field(s, eb, 3, "none")
    with raises(ValueError, match="last sizes must be equal"):
        dh.dense_field(s[:, :4], eb, 3)
    with raises(ValueError, match="has no energy"):
        dh.dense_energy(s, eb, 3, "others")
    with raises(ValueError, match="gen: noise needs a generator"):
        dh.stored_couplings(eb, 3, 1.0)
    with raises(ValueError, match="omega=-1"):
        dh.noisy_field(s, eb, 3, -1, gen)
    with raises(ValueError, match="mode='teacher': allowed"):
        dh.DenseHebbianNetwork(3, "teacher")
    with raises(ValueError, match="needs the class"):
        dh.DenseHebbianNetwork(3).fit(s)
    with raises(ValueError, match="labels has shape"):
        dh.DenseHebbianNetwork(3).fit(s, torch.zeros(2, dtype=torch.long))
    with raises(ValueError, match="call fit"):
        dh.DenseHebbianNetwork(3).field(s)
    with raises(ValueError, match="r=0"):
        dh.entropy(0, 3)
    with raises(ValueError, match="M=0"):
        dh.entropy(0.5, 0)
    with raises(ValueError, match="N: give the number"):
        dh.one_step_overlap(0.1, 0.5, 3, 3, finite_size=True)
    with raises(ValueError, match="N=3: allowed is more than P=3"):
        dh.one_step_overlap(0.1, 0.5, 3, 3, N=3)
    with raises(ValueError, match="gamma=-1"):
        dh.one_step_overlap(-1, 0.5, 3, 3)
    with raises(ValueError, match="gamma="):
        dh.rs_zero_temperature(-1.0, 0.5, 3, 3)
    with raises(ValueError, match="beta=inf"):
        dh.rs_finite_temperature(math.inf, 0.1, 0.5, 3, 3)
    with raises(ValueError, match="m1=1"):
        dh.examples_needed(1, 0.1, 0.5, 3)
    with raises(ValueError, match="K=-1"):
        dh.storage_load(-1, 60, 3)
    net = dh.DenseHebbianNetwork(3, "storing").fit(s)
    with raises(ValueError, match="order=3"):
        dh.plefka_step(s, net, 1.0, 3)
    with raises(ValueError, match="damping=1"):
        dh.plefka_step(s, net, 1.0, 1, 1)
    with raises(ValueError, match="beta=-1.0: allowed"):
        dh.sequential_sweep(s, eb, 3, -1.0, gen=gen)
    with raises(ValueError, match="mode='unsupervised'"):
        dh.plefka_step(s, dh.DenseHebbianNetwork(3, "unsupervised").fit(s), 1.0)
    with raises(TypeError, match="s is torch.float32 and eb torch.float64"):
        dh.dense_field(s.float(), eb, 3)
    with raises(TypeError, match="eb is torch.int64"):
        dh.dense_field(s.long(), eb.long(), 3)
    with raises(ValueError, match="n > 0"):
        dh.dense_field(s[:, :0], eb[:, :0], 3)
    with raises(ValueError, match="allowed is 20,000,000"):
        dh.stored_couplings(torch.ones(1, 300), 4)
    J, sets = dh.stored_couplings(eb, 3)
    with raises(ValueError, match="one coupling for each set"):
        dh.couplings_field(s, J[:4], sets)
    with raises(ValueError, match="sets name spins 0 to 7"):
        dh.couplings_field(s[:, :5], J, sets)
    with raises(ValueError, match="not all zero"):
        dh.DenseHebbianNetwork(3).from_means(0 * eb)
    with raises(ValueError, match="mean square nan"):
        dh.DenseHebbianNetwork(3).from_means(math.nan * eb)
    with raises(ValueError, match="steps=-1"):
        net.retrieve(s, -1, gen=gen)
    with raises(ValueError, match="other than"):
        net.retrieve(0.3 * s, 1, gen=gen)
    with raises(ValueError, match="steps=-1"):
        dh.plefka(net, s, 1.0, 2, -1)
    with raises(ValueError, match="labels has shape"):
        dh.class_means(eb, torch.zeros(2, dtype=torch.long))
    with raises(ValueError, match="M=2.5: allowed is a whole number"):
        dh.sample_means(s, 0.5, 2.5, gen)
    with raises(ValueError, match="steps=0"):
        dh.rs_zero_temperature(0.1, 0.5, 3, 3, steps=0)
    with raises(ValueError, match="gamma \\(3,\\), r \\(2,\\)"):
        dh.rs_zero_temperature(torch.zeros(3), torch.full((2,), 0.5), 3, 3)
    with raises(ValueError, match="M=2.5: allowed are whole"):
        dh.rs_few_examples(0.1, 0.5, 2.5, 3)
    with raises(ValueError, match="nodes=1"):
        dh.rs_finite_temperature(1.0, 0.1, 0.5, 3, 3, nodes=1)
    with raises(ValueError, match="two vectors"):
        dh.phase_diagram(torch.ones(1, 1), torch.ones(1), 0.1, 3)
    with raises(ValueError, match="threshold=1"):
        dh.critical_load(0.5, 3, 3, threshold=1)
    with raises(ValueError, match="least=9"):
        dh.structured_datasets(least=9.0)
    with raises(ValueError, match="name='letters'"):
        dh.structured_datasets("letters")
