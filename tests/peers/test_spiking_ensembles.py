"""The membrane, the conductances and the rule beside Brian2; places scored beside plain NumPy.

``pip install brian2``. Brian2 runs the equations of the authors' code at 0.01 ms with its own
solver; this library takes steps of 0.1 to 1 ms with average conductances.
"""

import math

import numpy as np
import pytest
import torch

import lib.beyond_backprop.spiking_ensembles as se
from lib.core.seeds import child
from tests.helpers import assert_close

D = torch.float64


def brian():
    # Brian2 is imported here: its releases ask for NumPy versions of their own.
    try:
        import brian2
    except (ImportError, AttributeError) as error:
        pytest.skip(f"pip install brian2 ({error})")
    brian2.prefs.codegen.target = "numpy"
    brian2.start_scope()
    return brian2


def test_membrane_beside_brian2():
    b2 = brian()
    gen = np.random.default_rng(0)
    times, weights = np.sort(gen.choice(np.arange(2, 95), 40, replace=False)), gen.random(40) * 0.4
    inhibition = times[::9]
    b2.defaultclock.dt = 0.01 * b2.ms
    cell = b2.NeuronGroup(
        1,
        """dv/dt = ((-65*mV - v) + ge*(0*mV - v) + gi*(-100*mV - v)) / (100*ms) : volt
        dge/dt = -ge/(1.0*ms) : 1
        dgi/dt = -gi/(0.5*ms) : 1""",
        method="rk4",
    )
    cell.v = -65 * b2.mV
    source = b2.SpikeGeneratorGroup(40, np.arange(40), times * b2.ms)
    excite = b2.Synapses(source, cell, "w : 1", on_pre="ge_post += w")
    excite.connect()
    excite.w = weights
    quiet = b2.SpikeGeneratorGroup(1, np.zeros(len(inhibition), int), inhibition * b2.ms)
    block = b2.Synapses(quiet, cell, on_pre="gi_post += 17")
    block.connect()
    seen = b2.StateMonitor(cell, "v", record=True)
    net = b2.Network(cell, source, excite, quiet, block, seen)
    net.run(100 * b2.ms)
    theirs = seen.v[0] / b2.mV

    errors = {}
    for dt in (1.0, 0.1):
        cells = se.Population((1, 1, 1), se.EXCITATORY, dt, 1.0, 0.5, torch.zeros(1, dtype=D))
        mine = []
        for step in range(round(100 / dt)):
            now = np.isclose(times, step * dt)
            cells.ge += float(weights[now].sum())
            cells.gi += 17.0 * float(np.isclose(inhibition, step * dt).sum())
            cells.integrate()
            mine.append(cells.v.item())
        # The membrane at the end of a step is Brian2's at that time.
        at = np.minimum(((np.arange(len(mine)) + 1) * dt / 0.01).round().astype(int), 9999)
        errors[dt] = np.abs(np.array(mine) - theirs[at]).max()
    assert errors[0.1] < 0.1, errors  # mV, of a swing of several
    assert errors[1.0] < 0.5, errors


def test_rule_beside_brian2():
    b2 = brian()
    gen = np.random.default_rng(1)
    pre = [np.sort(gen.choice(np.arange(1, 150), 12, replace=False)) for _ in range(5)]
    post = np.sort(gen.choice(np.arange(5, 150), 9, replace=False))
    b2.defaultclock.dt = 1 * b2.ms
    where = np.concatenate([np.full(12, k) for k in range(5)])
    source = b2.SpikeGeneratorGroup(5, where, np.concatenate(pre) * b2.ms)
    # Same step: the input's half first, as in the library.
    target = b2.SpikeGeneratorGroup(1, np.zeros(len(post), int), post * b2.ms)
    rule = b2.Synapses(
        source,
        target,
        """w : 1
        before : 1
        dx/dt = -x/(20*ms) : 1 (event-driven)
        do1/dt = -o1/(20*ms) : 1 (event-driven)
        do2/dt = -o2/(40*ms) : 1 (event-driven)""",
        on_pre="x = 1.0\nw = clip(w + 0.0001*o1, 0, 1)",
        on_post="before = o2\nw = clip(w + 0.01*x*before, 0, 1)\no1 = 1.0\no2 = 1.0",
    )
    rule.connect()
    rule.pre.order, rule.post.order = 0, 1
    rule.w = [0.3, 0.5, 0.97, 0.1, 0.2]
    b2.Network(source, target, rule).run(160 * b2.ms)
    theirs = torch.tensor(np.array(rule.w[:]), dtype=D)

    net = se.STDPModule(5, 1, gens=[child(0)], dtype=D)
    W = torch.tensor([[[0.3, 0.5, 0.97, 0.1, 0.2]]], dtype=D)
    state = net.state()
    for t in range(160):
        arrived = torch.tensor([[[float(t in pre[k]) for k in range(5)]]], dtype=D)
        se.stdp_(W, state, arrived, torch.tensor([[[t in post]]]))
    assert (W[0, 0] - torch.tensor([0.3, 0.5, 0.97, 0.1, 0.2])).min() > 0.005
    assert_close(W[0, 0], theirs, 1e-9)


def test_weighted_votes_beside_a_plain_loop():
    gen = np.random.default_rng(2)
    table, counts = gen.integers(0, 5, (12, 4)), gen.integers(0, 4, (6, 12))
    table[3] = 0
    wanted = np.zeros((6, 4))
    for q in range(6):
        for p in range(4):
            own = [j for j in range(12) if table[j].sum() and table[j, p] / table[j].sum() > 0.1]
            if not own:
                continue
            fired = sum(table[j, p] for j in own if counts[q, j])
            total = sum(
                counts[q, j] / (table[j] > 0).sum() * table[j, p] / table[j].sum() for j in own
            )
            wanted[q, p] = total * fired / sum(table[j, p] for j in own)
    mine = se.score_places(torch.tensor(counts, dtype=D), torch.tensor(table, dtype=D), "weighted")
    assert_close(mine, torch.tensor(wanted), 1e-12)
    assert math.isfinite(mine.sum())


def test_histogram_of_gradients_beside_scikit_image():
    features = pytest.importorskip("skimage.feature", reason="pip install scikit-image")
    image = 255 * torch.rand(21, 21, generator=child(3), dtype=D)
    theirs = features.hog(image.numpy(), 8, (7, 7), (1, 1), feature_vector=False, block_norm="L2")[
        :, :, 0, 0
    ]
    mine = se.hog(image.reshape(1, -1), 7, 8).view(8, 3, 3).permute(1, 2, 0)
    # The same up to the border, where scikit-image has no gradient.
    assert_close(mine[1, 1], torch.tensor(theirs[1, 1]), 1e-3)
