import itertools
import math

import numpy as np
import pytest
import torch

import lib.beyond_backprop.multitask_hebbian as mh
from lib.models.hopfield import corrupt, patterns
from tests.helpers import assert_close, raises

DOUBLE = {"dtype": torch.float64}


def memories(K, N, d, B, gen, **kind):
    """Patterns of B networks, "B K N", and free spins."""
    return patterns(K * B, N, d, gen=gen, **kind).view(B, K, N), patterns(B, N, gen=gen, **kind)


def every_state(N):
    bits = torch.arange(2**N)[:, None] >> torch.arange(N)
    return 2.0 * (bits & 1).double() - 1


def sixteen():
    """Two patterns on 16 spins in which every column comes exactly as often as at d = 1/2."""
    entries = (-1.0, 0.0, 0.0, 1.0)
    return torch.tensor(list(itertools.product(entries, repeat=2)), **DOUBLE).T.contiguous()


# The network.


def test_field_is_the_couplings(gen):
    """All modes against the matrix J written down, for one network and for several."""
    xi, s = memories(3, 12, 0.4, 4, gen, **DOUBLE)
    examples = corrupt(xi, 0.6, 5, gen)
    eb, M = examples.mean(0), 5
    R = eb.square().sum((1, 2)) / (xi != 0).sum((1, 2))
    flat = examples.movedim(0, 1).reshape(4, 15, 12)
    for mode, data, rows, scale in (
        ("storing", xi, xi, torch.ones(4, **DOUBLE)),
        ("supervised", examples, eb, 1 / R),
        ("unsupervised", examples, flat, 1 / (M * R)),
    ):
        J = scale[:, None, None] * rows.mT @ rows / 12
        energy = -0.5 * torch.einsum("bi,bij,bj->b", s, J, s)
        free = J - torch.diag_embed(J.diagonal(dim1=1, dim2=2))
        h = torch.einsum("bij,bj->bi", free, s)
        assert_close(mh.hebbian_field(s, data, mode), h, 1e-12)
        assert_close(mh.hebbian_energy(s, data, mode), energy, 1e-12)
        alone = data[1] if mode == "storing" else data[:, 1]
        assert_close(mh.hebbian_field(s[1], alone, mode), h[1], 1e-12)
        net = mh.MultitaskHebbianNetwork(mode).fit(data)
        assert_close(net.overlaps(s), mh.mattis(xi if mode == "storing" else eb, s), 1e-12)


def test_perfect_examples_are_patterns(gen):
    xi, s = memories(3, 20, 0.3, 2, gen, **DOUBLE)
    copies = corrupt(xi, 1.0, 3, gen)
    for mode in ("supervised", "unsupervised"):
        assert_close(mh.hebbian_field(s, copies, mode), mh.hebbian_field(s, xi), 1e-12)


def test_energy_is_products_of_losses(gen):
    """m^2 + L+ L- = ((1 + a)/2)^2 for spins, real states, patterns and class means."""
    xi, s = memories(4, 300, 0.4, 3, gen, **DOUBLE)
    eb = corrupt(xi, 0.5, 3, gen).mean(0)
    for rows, state in itertools.product((xi, eb), (s, 0.3 * s, torch.randn_like(s))):
        loss = mh.MultitaskLoss(rows)
        minus, plus = loss.losses(state)
        m, a, q = mh.mattis(rows, state), rows.square().mean(-1), state.square().mean(-1)
        whole = ((q[:, None] + a) / 2) ** 2
        assert (m**2 + plus * minus - whole).abs().max() < 1e-12
        assert_close(minus, (q[:, None] + a) / 2 - m, 1e-12)
        assert_close(loss(state), -150 * m.square().sum(-1), 1e-12)
    h, a = mh.hebbian_field(s, xi), xi.square().mean(-1)
    assert_close(mh.MultitaskLoss(xi)(s), -0.5 * (s * h).sum(-1) - 0.5 * a.sum(-1), 1e-12)
    (slope,) = torch.autograd.grad(mh.MultitaskLoss(xi)(s.requires_grad_()).sum(), s)
    assert_close(-slope, h + s * (xi**2).sum(1) / 300, 1e-11)  # the self term is in the energy


@pytest.mark.parametrize("mode", ["storing", "supervised", "unsupervised"])
def test_zero_temperature_never_climbs_and_stops(mode, gen):
    xi, s = memories(3, 120, 0.4, 5, gen, **DOUBLE)
    net = mh.MultitaskHebbianNetwork(mode)
    net.fit(xi if mode == "storing" else corrupt(xi, 0.5, 5, gen))
    before = net.energy(s)
    for _ in range(12):
        s = net.run(s, 1, gen=gen)
        assert (net.energy(s) <= before + 1e-12).all()
        before = net.energy(s)
    h = net.field(s)
    assert torch.equal(s, torch.where(h == 0, s, h.sign()))
    state = gen.get_state()
    assert torch.equal(net.run(s, 50, gen=gen), s)
    gen.set_state(state)
    torch.randperm(120, generator=gen)
    after_one = gen.get_state()
    gen.set_state(state)
    net.run(s, 50, gen=gen)
    assert torch.equal(gen.get_state(), after_one)  # one sweep, not fifty


def test_silent_sites_keep_their_spins(gen):
    xi, s = memories(3, 200, 0.8, 3, gen)
    end = mh.MultitaskHebbianNetwork().fit(xi).run(s, 10, gen=gen)
    silent = (xi == 0).all(1)
    assert silent.sum() > 200 and torch.equal(end[silent], s[silent])


def test_parallel_updates_can_cycle(gen):
    """Two spins that serve one pattern, in disagreement: they swap for ever, or settle in turn."""
    net = mh.MultitaskHebbianNetwork().fit(torch.ones(1, 2))
    s = torch.tensor([[1.0, -1.0]])
    assert torch.equal(net.run(s, 7, order="parallel", gen=gen), -s)
    assert net.run(s, 7, gen=gen).sum().abs() == 2


def test_hierarchical_state(gen):
    xi, free = memories(3, 500, 0.5, 2, gen)
    s = mh.hierarchical_state(xi, free)
    first = torch.where(xi[:, 0] != 0, xi[:, 0], torch.where(xi[:, 1] != 0, xi[:, 1], xi[:, 2]))
    assert torch.equal(s, torch.where(first == 0, free, first))
    one = mh.hierarchical_state(xi, free, 1)
    assert torch.equal(one[xi[:, 0] == 0], free[xi[:, 0] == 0])
    assert torch.equal(mh.hierarchical_state(xi, free, 0), free)
    xi, free = memories(3, 4000, 0.4, 6, gen)
    s = mh.hierarchical_state(xi, free)
    assert torch.equal(mh.MultitaskHebbianNetwork().fit(xi).run(s, 5, gen=gen), s)


# Sixteen spins, all states.


def test_free_energy_against_all_states():
    """Z = (beta N / 2 pi)^(K/2) int dm exp(-beta N f(m)), an identity at N = 16."""
    xi, beta, N = sixteen(), 3.0, 16
    log_Z = torch.logsumexp(-beta * mh.hebbian_energy(every_state(N), xi), 0)
    t = torch.linspace(-3, 3, 241, **DOUBLE)
    grid = torch.cartesian_prod(t, t)
    f = mh.free_energy(grid, 0.5, beta)
    integral = torch.logsumexp(-beta * N * f, 0) + 2 * (t[1] - t[0]).log()
    assert abs(integral + math.log(beta * N / (2 * math.pi)) - log_Z) < 1e-9


def test_sweeps_sample_the_gibbs_law(gen):
    """Mean energy and overlaps of 2^16 states: 2000 chains within 2 % (seen: 0.6 %)."""
    xi, beta = patterns(3, 16, 0.3, gen=gen, **DOUBLE), 2.0
    states = every_state(16)
    energy = mh.hebbian_energy(states, xi)
    weight = torch.softmax(-beta * energy, 0)
    net, s, seen = mh.MultitaskHebbianNetwork().fit(xi), patterns(2000, 16, gen=gen, **DOUBLE), []
    for step in range(30):
        s = net.run(s, 1, beta, gen=gen)
        if step >= 15:
            seen.append(torch.cat([net.energy(s).mean()[None], net.overlaps(s).abs().mean(0)]))
    truth = torch.cat([energy[:, None], net.overlaps(states).abs()], 1)
    assert_close(torch.stack(seen).mean(0), weight @ truth, 0.02)


def test_ground_state_is_the_hierarchy():
    """K = 2, d = 1/2: no state of 16 spins lies lower, and the silent spins are free."""
    xi = sixteen()
    energy = mh.hebbian_energy(every_state(16), xi)
    m = mh.hierarchical_overlaps(2, 0.5)
    assert abs(energy.min() - 16 * mh.energy_density(m)) < 1e-9
    # Four silent spins, two signs, two orders.
    assert int((energy < energy.min() + 1e-9).sum()) == 2**4 * 2 * 2 * 2


# The equations.


@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_hierarchy_solves_the_equations_below_its_threshold(K):
    d = torch.tensor([0.05, 0.3, 0.5, 0.9 if K < 3 else 0.51], **DOUBLE)
    solved = mh.self_consistency(K, d, math.inf)
    assert_close(solved.m, mh.hierarchical_overlaps(K, d), 1e-12)
    assert_close(solved.n, solved.m, 1e-12)
    beyond = mh.self_consistency(K, 0.7, math.inf).m
    gap = (beyond - mh.hierarchical_overlaps(K, 0.7)).abs().max()
    assert gap < 1e-12 if K < 3 else gap > 0.01


def test_majority_is_a_fixed_point_at_every_dilution():
    for d in (0.01, 0.3, 0.55, 0.7, 0.95):
        m = mh.majority_overlaps(d)
        assert_close(mh.self_consistency(3, d, math.inf, m0=m, steps=1).m, m, 1e-12)
    assert_close(mh.majority_overlaps(0.0), torch.full((3,), 0.5), 1e-12)
    assert_close(mh.self_consistency(3, 0.7, math.inf).m, mh.majority_overlaps(0.7), 1e-12)
    ratio = [(mh.majority_overlaps(d)[2] / mh.majority_overlaps(d)[0]).item() for d in (0.7, 0.95)]
    assert [round(v, 2) for v in ratio] == [0.56, 0.9]
    # The majority lies lower before the hierarchy breaks: between 0.54 and 0.56.
    for d, lower in ((0.54, False), (0.56, True)):
        a, b = mh.majority_overlaps(d), mh.hierarchical_overlaps(3, d)
        assert (mh.energy_density(a) < mh.energy_density(b)).item() == lower


def test_equal_overlaps_are_no_minimum():
    for d in (0.1, 0.5, 0.9):
        m = mh.parallel_overlap(2, d)
        assert_close(mh.self_consistency(2, d, math.inf, m0=m.expand(2), steps=1).m, m.expand(2))
        pushed = mh.self_consistency(2, d, math.inf, m0=m + torch.tensor([1e-6, 0.0])).m
        assert_close(pushed, mh.hierarchical_overlaps(2, d), 1e-9)
        assert mh.energy_density(m.expand(2)) > mh.energy_density(pushed)
    assert_close(mh.parallel_overlap(3, 0.0), torch.tensor(0.5), 1e-12)


def test_critical_dilution():
    assert mh.critical_dilution(3) == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-12)
    assert mh.critical_dilution(4) == pytest.approx(0.5437, abs=1e-4)
    assert mh.critical_dilution(1) == mh.critical_dilution(2) == 1.0
    assert mh.critical_dilution(30) == pytest.approx(0.5, abs=1e-6)
    for K in (3, 4, 6):
        d = mh.critical_dilution(K)
        for shift, works in ((-1e-6, True), (1e-6, False)):
            m = mh.hierarchical_overlaps(K, d + shift)
            again = mh.self_consistency(K, d + shift, math.inf, steps=1).m
            assert ((again - m).abs().max() < 1e-9).item() == works


def test_temperature():
    m = mh.self_consistency(1, 0.3, torch.tensor([0.5, 2.0, 5.0], **DOUBLE)).m[:, 0]
    assert_close(m[1:], 0.7 * torch.tanh(torch.tensor([2.0, 5.0]) * m[1:]), 1e-8)
    assert m[0] < 1e-8  # above 1 - d nothing is retrieved
    cold = mh.self_consistency(3, 0.4, 300.0).m
    assert_close(cold, mh.hierarchical_overlaps(3, 0.4), 1e-6)
    # A grid is solved as its points are.
    d, beta = torch.tensor([[0.2], [0.5]], **DOUBLE), torch.tensor([2.5, 7.0, 30.0], **DOUBLE)
    grid = mh.self_consistency(3, d, beta)
    assert grid.m.shape == (2, 3, 3) and grid.residual < 1e-9
    assert_close(grid.m[1, 2], mh.self_consistency(3, 0.5, 30.0).m, 1e-7)


def test_solutions_are_minima_of_the_free_energy():
    for d, beta in ((0.4, 7.0), (0.4, 20.0), (0.75, 15.0)):
        m = mh.self_consistency(3, d, beta).m.requires_grad_()
        f = lambda m, d=d, beta=beta: mh.free_energy(m, d, beta)
        (slope,) = torch.autograd.grad(f(m), m)
        assert slope.abs().max() < 1e-7
        hessian = torch.autograd.functional.hessian(f, m.detach())
        lowest = torch.linalg.eigvalsh(hessian)[0]
        assert_close(mh.stability(m.detach(), d, beta), lowest, 1e-8)
        assert lowest > 0
    m = mh.hierarchical_overlaps(3, 0.4)
    assert_close(mh.free_energy(m, 0.4, math.inf), mh.energy_density(m), 1e-12)
    # Cold, the hierarchy's curvature turns at its threshold.
    signs = [
        mh.stability(mh.hierarchical_overlaps(3, d), d, 400.0).item() > 0 for d in (0.6, 0.618)
    ]
    assert signs == [True, False]


def test_onsets():
    assert mh.onset(0.4, 1) == pytest.approx(1 / 0.6)
    for level in (2, 3):
        beta = mh.onset(0.4, level)
        bare = 1 / (0.6 * 0.4 ** (level - 1))
        assert 0.9 * bare < beta < bare
        start = torch.tensor([0.6, 0.24, 0.096], **DOUBLE)
        below, above = (mh.self_consistency(3, 0.4, b * beta, m0=start).m for b in (0.97, 1.03))
        assert below[level - 1] < 1e-4 and above[level - 1] > 0.01


def test_equal_overlaps_beyond_two_thirds(gen):
    """Below T = 1 - d the overlaps start alone at d < 2/3, equal at d > 2/3; colder they part."""
    for d, equal in ((0.62, False), (0.72, True)):
        for K in (2, 3, 4):
            m = mh.self_consistency(K, d, 1.05 / (1 - d), steps=6000).m
            assert (m.min() > 0.999 * m.max()).item() == equal
            assert equal or m[1] < 1e-3 * m[0]
    at = lambda beta: mh.self_consistency(3, 0.8, beta, m0=torch.full((3,), 0.15, **DOUBLE)).m
    curvature = [mh.stability(at(beta), 0.8, beta).item() for beta in (10.0, 25.0)]
    assert curvature[0] > 0.2 and curvature[1] < -0.1
    # The fourth order of the free energy, by differences.
    d, beta, m = 0.7, 1 / 0.3, torch.tensor([0.02, 0.05, 0.01], **DOUBLE)
    quartic = beta**3 / 12 * (3 * 0.09 * m.square().sum() ** 2 + 0.3 * 0.1 * (m**4).sum())
    f = mh.free_energy(m, d, beta) - mh.free_energy(0 * m, d, beta)
    assert_close(f, quartic, 0.03)
    # Spins: the hierarchy they start from is gone (predicted deviation 0.004).
    xi, free = memories(3, 20_000, 0.8, 4, gen)
    net = mh.MultitaskHebbianNetwork().fit(xi)
    s = net.run(mh.hierarchical_state(xi, free), 20, 10.0, gen=gen, blocks=2)
    assert (mh.mattis(xi, s).abs().mean(0) - at(10.0)).abs().max() < 0.02
    for level in (1, 2, 3):
        assert mh.onset(0.8, level) == pytest.approx(5.0)


# Learning.


def test_entry_law_and_learned_overlaps():
    r, M, d = 0.4, 12, torch.tensor([0.2, 0.7], **DOUBLE)
    rho = mh.entropy(r, M)
    xi, v, p = mh.entry_law(d, (r, M))
    assert_close(p.sum(-1), torch.ones(2), 1e-12)
    assert_close(p @ (xi * v), 1 - d, 1e-12)
    assert_close(p @ v**2, (1 - d) * (1 + rho), 1e-12)
    # One clean example, and hardly any noise.
    for beta in (9.0, math.inf):
        for exact in ({"examples": (1.0, 1)}, {"rho": 1e-8}):
            again = mh.self_consistency(3, 0.4, beta, **exact).m
            assert_close(again, mh.self_consistency(3, 0.4, beta).m, 1e-5)
    # The exact law of many examples is the normal one, cold and warm; of few it is not.
    for beta, M, tol in ((4.0, 60, 0.01), (math.inf, 201, 0.01)):
        exact, normal = (
            mh.self_consistency(2, 0.4, beta, **kind).m
            for kind in ({"examples": (0.5, M)}, {"rho": mh.entropy(0.5, M)})
        )
        assert_close(exact, normal, tol)
    few = mh.self_consistency(2, 0.4, math.inf, examples=(0.6, 5)).m
    assert few[0] > mh.self_consistency(2, 0.4, math.inf, rho=mh.entropy(0.6, 5)).m[0] + 0.03


def test_integration_by_parts():
    """The average over a normal variable for each entry, as it stands, at the solution."""
    d, beta, rho = 0.3, 3.0, 0.4
    m, n, _ = mh.self_consistency(2, d, beta, rho=rho)
    z, w = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(50))
    v = 1 + math.sqrt(rho) * z
    xi = torch.tensor([0.0, 1, -1], **DOUBLE).repeat_interleave(50)
    values, law = xi * v.repeat(3), (w / w.sum()).repeat(3)
    law = law * torch.where(xi == 0, d, (1 - d) / 2)
    t = torch.tanh(beta / (1 + rho) * (n[0] * values[:, None] + n[1] * values))
    for mine, entry in ((m, xi), (n, values)):
        assert_close(torch.stack([(law * entry) @ t @ law, law @ t @ (law * entry)]), mine, 1e-6)
    cold = mh.self_consistency(2, d, math.inf, rho=rho)
    assert_close(mh.self_consistency(2, d, 60.0, rho=rho).m, cold.m, 0.01)
    assert_close(  # one pattern: a single error function
        mh.self_consistency(1, d, math.inf, rho=rho).m[0],
        torch.tensor(mh.one_step_overlap(d, math.sqrt(1 / 1.4), 1)),
    )


def test_learned_networks_end_where_the_equations_say(gen):
    """K = 2, N = 2000, 24 networks, M = 5: within 0.015 of the exact law (seen: 0.006)."""
    xi, free = memories(2, 2000, 0.4, 24, gen)
    examples, start = corrupt(xi, 0.6, 5, gen), mh.hierarchical_state(xi, free)
    exact = mh.self_consistency(2, 0.4, math.inf, examples=(0.6, 5)).m
    for mode in ("supervised", "unsupervised"):
        s = mh.MultitaskHebbianNetwork(mode).fit(examples).run(start, 4, gen=gen, blocks=20)
        assert (mh.mattis(xi, s).mean(0) - exact).abs().max() < 0.015


def test_one_step(gen):
    assert mh.one_step_overlap(0.3, 0.4, 1, exact=True) == pytest.approx(0.7 * 0.4)
    for exact in (False, True):
        assert mh.one_step_overlap(0.3, 1.0, 3, exact) == pytest.approx(0.7)
    normal, exact = (mh.one_step_overlap(0.2, 0.3, 201, e) for e in (False, True))
    assert normal == pytest.approx(exact, abs=2e-3)
    for d, r, M in ((0.2, 0.6, 5), (0.4, 0.3, 15)):
        xi, free = memories(3, 4000, d, 8, gen)
        examples, s = corrupt(xi, r, M, gen), mh.hierarchical_state(xi, free, 1)
        found = []
        for mode in ("supervised", "unsupervised"):
            h = mh.hebbian_field(s, examples, mode)
            new = torch.where(h == 0, s, h.sign())
            found.append(mh.mattis(xi, new)[:, 0].mean().item())
        assert abs(found[0] - found[1]) < 0.01
        assert abs(found[0] - mh.one_step_overlap(d, r, M, True)) < 0.02


def test_finite_step(gen):
    """What a teacher adds at N = 250, within five standard errors; nothing in the limits."""
    K, d, r, M, N = 3, 0.3, 0.3, 21, 250
    xi, free = memories(K, N, d, 300, gen)
    examples, s = corrupt(xi, r, M, gen), mh.hierarchical_state(xi, free, 1)
    found = []
    for mode in ("supervised", "unsupervised"):
        h = mh.hebbian_field(s, examples, mode)
        found.append(mh.mattis(xi, torch.where(h == 0, s, h.sign()))[:, 0])
    gap = found[0] - found[1]
    law = [mh.finite_step(K, d, r, M, N, mode) for mode in ("supervised", "unsupervised")]
    error = gap.std().item() / math.sqrt(300)
    assert abs(gap.mean().item() - (law[0] - law[1])) < 5 * error < 0.5 * (law[0] - law[1])
    exact = mh.one_step_overlap(d, r, M, exact=True)
    for mode in ("supervised", "unsupervised"):
        assert mh.finite_step(K, d, r, M, 10**7, mode) == pytest.approx(exact, abs=1e-12)
        assert mh.finite_step(K, 1.0, r, M, N, mode) == 0
    one = [mh.finite_step(K, d, r, 1, N, mode) for mode in ("supervised", "unsupervised")]
    assert one[0] == pytest.approx(one[1])  # a single example needs no sorting


# Finite size.


def test_covariance_of_overlaps(gen):
    """Standard deviations within 12 % of the formula: 400 networks each (seen: 6 %)."""
    K, d, N = 3, 0.4, 600
    xi, free = memories(K, N, d, 400, gen)
    s = mh.hierarchical_state(xi, free)
    m = mh.hierarchical_overlaps(K, d)
    V = mh.overlap_covariance(m, d, math.inf)
    assert_close(V.diagonal(), (1 - d) - m**2, 1e-12)
    found = math.sqrt(N) * (mh.mattis(xi, s) - m)
    assert_close(found.square().mean(0).sqrt(), V.diagonal().sqrt(), 0.12)
    # Warm: 200 networks of two patterns. Either sign of the second is as good.
    beta, d = 20.0, 0.3
    xi, free = memories(2, N, d, 200, gen)
    warm = mh.self_consistency(2, d, beta).m
    s = mh.MultitaskHebbianNetwork().fit(xi).run(mh.hierarchical_state(xi, free), 8, beta, gen=gen)
    V = mh.overlap_covariance(warm, d, beta)
    found = math.sqrt(N) * (mh.mattis(xi, s).abs() - warm)
    assert_close(found.square().mean(0).sqrt(), V.diagonal().sqrt(), 0.12)
    # One pattern, by hand.
    m = mh.self_consistency(1, 0.3, 2.0).m
    t = torch.tanh(2 * m)
    C = 2 * 0.7 * (1 - t**2)
    by_hand = (0.7 * t**2 - m**2) / (1 - C) ** 2 + C / (1 - C) / 2
    assert_close(mh.overlap_covariance(m, 0.3, 2.0)[0], by_hand, 1e-8)


def test_survival(gen):
    """Share of 300 networks whose hierarchy stands, within 0.09 of the formula."""
    for K, d in ((2, 0.9), (3, 0.4), (5, 0.6)):
        assert mh.hierarchy_margin(K, d)[0] == pytest.approx(1 - 2 * d + d**K, abs=1e-12)
    for N, d in itertools.product((400, 1600), (0.56, 0.618, 0.65, 0.75)):
        xi, free = memories(3, N, d, 300, gen)
        s = mh.hierarchical_state(xi, free)
        stands = (s * mh.hebbian_field(s, xi) >= -1e-6).all(1).double().mean().item()
        assert abs(stands - mh.survival_probability(3, d, N)) < 0.09
    assert mh.survival_probability(3, 0.5, 10**6) > 0.999
    assert mh.survival_probability(3, 0.7, 10**6) < 0.001


def test_one_pattern_or_several(gen):
    """The paper's contrast, from the same kind of start, N = 2000."""
    ends = {}
    for d in (0.0, 0.4, 0.7):
        xi, free = memories(3, 2000, d, 8, gen)
        s = mh.hierarchical_state(xi, free, 1)
        s = mh.MultitaskHebbianNetwork().fit(xi).run(s, 20, gen=gen)
        ends[d] = mh.mattis(xi, s).abs().sort(-1, descending=True).values.mean(0)
    assert ends[0.0][0] > 0.999 and ends[0.0][1] < 0.05
    assert (ends[0.4] - mh.hierarchical_overlaps(3, 0.4)).abs().max() < 0.03
    assert (ends[0.7] - mh.majority_overlaps(0.7)).abs().max() < 0.02
    assert ends[0.7][1] / ends[0.7][0] > 0.74


def test_errors(gen):
    xi, s = memories(3, 10, 0.4, 2, gen)
    with raises(ValueError, match="mode='teacher': allowed are 'storing'"):
        mh.MultitaskHebbianNetwork("teacher")
    with raises(ValueError, match=r"needs \(M, \*b, k, n\)"):
        mh.MultitaskHebbianNetwork("supervised").fit(xi[0])
    with raises(ValueError, match="every entry of a network is zero"):
        mh.MultitaskHebbianNetwork().fit(torch.stack([xi[0], 0 * xi[0]]))
    with raises(ValueError, match="the examples cancel"):
        mh.MultitaskHebbianNetwork("unsupervised").fit(torch.stack([xi, -xi]))
    with raises(ValueError, match=r"shape \(0, 3, 5\): every axis"):
        mh.MultitaskHebbianNetwork("supervised").fit(torch.zeros(0, 3, 5))
    with raises(ValueError, match="not finite"):
        mh.MultitaskHebbianNetwork().fit(xi / 0)
    with raises(TypeError, match=r"data has dtype torch.int64"):
        mh.MultitaskHebbianNetwork().fit(xi.long())
    net = mh.MultitaskHebbianNetwork().fit(xi)
    with raises(TypeError, match=r"s has dtype torch.float64, the patterns torch.float32"):
        net.field(s.double())
    with raises(ValueError, match=r"s has shape \(3, 10\), the patterns \(2, 3, 10\)"):
        net.field(s[[0, 0, 1]])
    with raises(ValueError, match=r"s0 has shape \(10,\): allowed is \(b, n\)"):
        net.run(s[0], 1, gen=gen)
    with raises(ValueError, match="s0 has other entries"):
        net.run(0.5 * s, 1, gen=gen)
    with raises(ValueError, match="steps=-1"):
        net.run(s, -1, gen=gen)
    with raises(ValueError, match="s has 1 spins, the patterns have 10"):
        mh.MultitaskLoss(xi)(s[:, :1])
    with raises(ValueError, match="free has 4 spins"):
        mh.hierarchical_state(xi, s[:, :4])
    with raises(ValueError, match="call fit"):
        mh.MultitaskHebbianNetwork().field(s)
    with raises(ValueError, match="s has 4 spins, the patterns have 10"):
        mh.mattis(xi, s[:, :4])
    with raises(ValueError, match="levels=4: allowed is 0 to 3"):
        mh.hierarchical_state(xi, s, 4)
    with raises(ValueError, match="K=0"):
        mh.self_consistency(0, 0.4, 1.0)
    with raises(ValueError, match=r"d=1.2: allowed is 0 to 1"):
        mh.self_consistency(2, 1.2, 1.0)
    with raises(ValueError, match="beta=-1.0"):
        mh.self_consistency(2, 0.4, -1.0)
    with raises(ValueError, match="tensor with an infinite entry"):
        mh.self_consistency(2, 0.4, torch.tensor([1.0, math.inf]))
    with raises(ValueError, match=r"m0 has shape \(3,\): allowed is \(..., 2\)"):
        mh.self_consistency(2, 0.4, 1.0, m0=torch.ones(3))
    with raises(ValueError, match="steps=0"):
        mh.self_consistency(2, 0.4, 1.0, steps=0)
    with raises(ValueError, match="beta=inf: allowed is above 0, finite"):
        mh.stability(torch.ones(2), 0.4, math.inf)
    with raises(ValueError, match="beta=-1.0: allowed is above 0"):
        mh.free_energy(torch.ones(2), 0.4, -1.0)
    with raises(ValueError, match=r"m has shape \(1, 2\): allowed is \(K,\)"):
        mh.overlap_covariance(torch.ones(1, 2), 0.4, 1.0)
    with raises(ValueError, match="level=20: allowed is 1 to 8"):
        mh.onset(0.4, 20)
    with raises(ValueError, match="mode='both'"):
        mh.finite_step(3, 0.4, 0.5, 3, 100, "both")
    with raises(ValueError, match="M=2.5"):
        mh.entropy(0.5, 2.5)
    with raises(ValueError, match="give one of them"):
        mh.self_consistency(2, 0.4, 1.0, rho=0.1, examples=(0.5, 3))
    with raises(ValueError, match="columns, allowed are"):
        mh.self_consistency(5, 0.4, 1.0, examples=(0.5, 30))
    with raises(ValueError, match="rho=-1"):
        mh.self_consistency(2, 0.4, 1.0, rho=-1.0)
    with raises(ValueError, match="K=2.5"):
        mh.critical_dilution(2.5)
    with raises(ValueError, match="d=0: allowed is inside"):
        mh.onset(0, 2)
    with raises(ValueError, match="level=0"):
        mh.onset(0.4, 0)
    with raises(ValueError, match="N=0"):
        mh.survival_probability(3, 0.4, 0)
    with raises(ValueError, match="r=0"):
        mh.one_step_overlap(0.4, 0, 3)
    with raises(ValueError, match="M=0"):
        mh.entropy(0.5, 0)
