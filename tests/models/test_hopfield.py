import itertools
import math

import torch

from lib.models.hopfield import corrupt, glauber, overlap, patterns, sequential_sweep
from tests.helpers import assert_close, raises


def hopfield(xi):
    """Fields of the Hopfield network without self-interaction."""
    J = xi.T @ xi / xi.shape[-1]
    J = J - torch.diag(J.diagonal())
    return lambda s: s @ J


def test_patterns_and_examples_have_their_statistics(gen):
    xi = patterns(50, 2000, 0.3, gen=gen)
    assert set(xi.unique().tolist()) == {-1.0, 0.0, 1.0}
    # 100,000 entries: standard deviations 0.0015 and 0.0026.
    assert abs((xi == 0).double().mean() - 0.3) < 0.008
    assert abs(xi.double().mean()) < 0.012
    examples = corrupt(xi, 0.4, 7, gen)
    assert examples.shape == (7, 50, 2000)
    assert torch.equal(examples == 0, (xi == 0).expand(7, -1, -1))
    agreement = (examples * xi).sum() / (7 * (xi != 0).sum())
    assert abs(agreement - 0.4) < 0.006
    assert torch.equal(corrupt(xi, 1.0, 2, gen), xi.expand(2, -1, -1))
    assert (patterns(3, 100, 0.0, gen=gen) != 0).all() and (patterns(3, 9, 1.0, gen=gen) == 0).all()
    assert patterns(2, 5, gen=gen, dtype=torch.float64).dtype == torch.float64


def test_overlap(gen):
    xi = patterns(4, 300, gen=gen)
    assert_close(overlap(xi, xi).diagonal(), torch.ones(4))
    s = patterns(6, 300, gen=gen).view(2, 3, 300)
    assert_close(overlap(xi, s)[1, 2, 3], (xi[3] * s[1, 2]).mean())


def test_sequential_sweeps_sample_the_boltzmann_distribution(gen):
    n, beta = 4, 0.7
    xi = patterns(2, n, gen=gen, dtype=torch.float64)
    field = hopfield(xi)
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)
    energy = -0.5 * (states * field(states)).sum(-1)
    expected = torch.softmax(-beta * energy, 0)
    s = states[torch.randint(16, (20_000,), generator=gen)]
    for _ in range(30):
        s = glauber(field, s, beta, gen=gen)
    index = ((s + 1) / 2 * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum(-1).long()
    found = torch.bincount(index, minlength=16) / len(s)
    # Standard deviation of a frequency p: sqrt(p / 20,000) <= 0.005.
    assert (found - expected).abs().max() < 0.02


def test_zero_temperature_descends_and_keeps_spins_without_a_field(gen):
    xi = patterns(3, 120, 0.4, gen=gen, dtype=torch.float64)
    field = hopfield(xi)
    s = patterns(5, 120, gen=gen, dtype=torch.float64)
    before = -0.5 * (s * field(s)).sum(-1)
    for _ in range(8):
        s = glauber(field, s, math.inf, gen=gen)
        after = -0.5 * (s * field(s)).sum(-1)
        assert (after <= before + 1e-12).all()
        before = after
    h = field(s)
    assert torch.equal(s, torch.where(h == 0, s, h.sign()))  # a fixed point
    silent = patterns(4, 30, gen=gen)
    for order in ("sequential", "parallel"):
        assert torch.equal(glauber(torch.zeros_like, silent, math.inf, order, gen=gen), silent)


def test_parallel_and_blocks_agree_where_they_must(gen):
    s = patterns(3, 40, gen=gen)
    clamp = torch.randn(40, generator=gen).expand(3, 40)
    assert torch.equal(glauber(lambda s: clamp, s, math.inf, "parallel", gen=gen), clamp.sign())
    # A pair that each wants to copy the other: in parallel they swap for ever, in turn they agree.
    swap = lambda s: s.flip(-1)
    pair = torch.tensor([[1.0, -1.0]])
    assert torch.equal(glauber(swap, pair, math.inf, "parallel", gen=gen), -pair)
    assert glauber(swap, pair, math.inf, gen=gen).sum().abs() == 2
    assert torch.equal(glauber(swap, pair, math.inf, blocks=1, gen=gen), -pair)
    calls = []
    glauber(lambda s: calls.append(1) or s, s, math.inf, blocks=4, gen=gen)
    assert len(calls) == 4
    hot = glauber(lambda s: clamp, torch.ones(3, 40), 0.0, "parallel", gen=gen)
    assert 20 < (hot > 0).sum() < 100  # fair coins: standard deviation 5.5
    assert torch.equal(pair, torch.tensor([[1.0, -1.0]]))  # the argument is left alone


def test_sweep_with_sums_carried_along_is_glauber(gen):
    """One memory for all states and one for each, cold and warm, integer and real couplings."""
    s = patterns(6, 30, gen=gen, dtype=torch.float64)
    xi = patterns(6 * 3, 30, 0.3, gen=gen, dtype=torch.float64).view(6, 3, 30)
    real = torch.randn(3, 30, generator=gen, dtype=torch.float64)
    for beta in (math.inf, 1.5):
        for P, eb in ((2, xi), (3, xi), (2, real), (2, xi[0])):

            def field(s, eb=eb, P=P):
                y = torch.einsum("...kn,...n->...k", eb, s)[..., None] - eb * s[..., None, :]
                power = y if P == 2 else y**2 - (eb**2).sum(-1, keepdim=True) + eb**2
                return 0.7 * (eb * power).sum(-2) / 30 ** (P - 1)

            seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
            found = sequential_sweep(s, eb, P, beta, scale=0.7, gen=seeds[0])
            assert torch.equal(found, glauber(field, s, beta, gen=seeds[1]))
    # A scale for every state: each goes its way as if alone.
    scale = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    many = sequential_sweep(s, xi, 2, math.inf, scale=scale, gen=seeds[0].manual_seed(1))
    one = sequential_sweep(s[4:5], xi[4], 2, math.inf, gen=seeds[0].manual_seed(1))
    assert torch.equal(many[4:5], one)


def test_errors(gen):
    s = torch.ones(2, 5)
    with raises(ValueError, match="dilution=1.5: allowed is 0 to 1"):
        patterns(2, 3, 1.5, gen=gen)
    with raises(ValueError, match="k=0"):
        patterns(0, 3, gen=gen)
    with raises(ValueError, match="r=-0.1"):
        corrupt(s, -0.1, 2, gen)
    with raises(ValueError, match="m=0"):
        corrupt(s, 0.1, 0, gen)
    with raises(ValueError, match="s has 4 spins, the patterns xi have 5"):
        overlap(s, s[:, :4])
    with raises(ValueError, match="beta=nan"):
        glauber(lambda s: s, s, float("nan"), gen=gen)
    with raises(ValueError, match="order='random'"):
        glauber(lambda s: s, s, 1.0, "random", gen=gen)
    with raises(ValueError, match="blocks=9"):
        glauber(lambda s: s, s, 1.0, blocks=9, gen=gen)
    with raises(ValueError, match=r"field returned shape \(2, 4\)"):
        glauber(lambda s: s[:, :4], s, 1.0, gen=gen)
    with raises(ValueError, match="P=1: allowed"):
        sequential_sweep(s, s, 1, 1.0, gen=gen)
    with raises(ValueError, match="beta=-1.0: allowed"):
        sequential_sweep(s, s, 2, -1.0, gen=gen)
    with raises(ValueError, match="last sizes must be equal"):
        sequential_sweep(s, s[:, :4], 2, 1.0, gen=gen)
    with raises(ValueError, match=r"eb \(3, 2, 5\)"):
        sequential_sweep(s, torch.ones(3, 2, 5), 2, 1.0, gen=gen)
