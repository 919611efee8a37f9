"""Cells against closed forms, the rule by hand, modules that do not touch one another, scores."""

import math

import pytest
import torch
import torch.nn.functional as F

import lib.beyond_backprop.spiking_ensembles as se
from lib.core.seeds import child
from tests.helpers import assert_close, raises

D = torch.float64


def module(m=2, i=12, n=5, key="m", **options):
    options = {"duration": 40.0, "gain": 12.0, "theta_step": 0.1, "dtype": D} | options
    return se.STDPModule(i, n, gens=[child(0, key, k) for k in range(m)], **options)


def pictures(m=2, k=3, i=12, key=0):
    return 255 * torch.rand(m, k, i, generator=child(1, "x", key), dtype=D)


def trains(t, m, b, i, p=0.4, key=0):
    gen = child(2, "s", key)
    return (torch.rand(t, m, b, i, generator=gen, dtype=D) < p).to(D)


# --------------------------------------------------------------------------- cells


def test_membrane_without_input_decays_to_rest():
    like = torch.zeros(1, dtype=D)
    cells = se.Population((1, 1, 1), se.EXCITATORY, 0.01, 1.0, 0.5, like)
    cells.v.fill_(-55.0)
    for _ in range(5000):
        cells.integrate()
    assert_close(cells.v + 65, torch.tensor([[[10 * math.exp(-0.5)]]], dtype=D), 1e-3)


def test_one_input_spike_carries_the_same_charge_at_any_step():
    # Integral of ge(t) from w on is w tau_ge; to first order v rises by 65 mV w tau_ge / 100 ms.
    like, rises = torch.zeros(1, dtype=D), []
    for dt in (1.0, 0.5, 0.1):
        cells = se.Population((1, 1, 1), se.EXCITATORY, dt, 1.0, 0.5, like)
        cells.ge += 0.01
        for _ in range(round(8 / dt)):
            cells.integrate()
        rises.append((cells.v + 65).item())
    # The leak takes its share: the integral of ge(s) exp(-(8 - s) / 100 ms).
    wanted = 65 * 0.01 / 100 * math.exp(-0.08) * (1 - math.exp(-0.99 * 8)) / 0.99
    assert all(abs(r / wanted - 1) < 0.007 for r in rises), rises
    assert abs(rises[2] / wanted - 1) < 0.001


def test_constant_conductance_has_the_stationary_membrane():
    like = torch.zeros(1, dtype=D)
    cells = se.Population((1, 1, 1), se.EXCITATORY, 1.0, 1.0, 0.5, like)
    ge, gi = 0.1, 0.3
    for _ in range(3000):
        cells.ge.fill_(ge / (1 - math.exp(-1)))  # average of the step is ge
        cells.gi.fill_(gi / (0.5 * (1 - math.exp(-2))))
        cells.integrate()
    fixed = (-65 - 100 * gi) / (1 + ge + gi)
    assert_close(cells.v, torch.full((1, 1, 1), fixed, dtype=D), 1e-10)


def test_refractory_cells_are_held_and_stay_silent():
    net = module(1, 8, 1, theta_step=0.0)
    net.W.fill_(1.0)
    when = se.spike_times(net, torch.ones(60, 1, 1, 8, dtype=D))[:, 0]
    assert len(when) > 5
    assert (when.diff() > 5).all()
    assert (when.diff() < 12).all()  # and it does come back
    half = module(1, 8, 1, dt=0.5, theta_step=0.0)
    half.W.fill_(1.0)
    assert (se.spike_times(half, torch.ones(120, 1, 1, 8, dtype=D))[:, 0].diff() > 10).all()


def test_tie_break_takes_the_farthest_and_only_one():
    excess = torch.tensor([[[1.0, 3.0, 2.0]], [[-1.0, -2.0, -3.0]], [[2.0, 2.0, 0.0]]])
    spike = se.first_to_cross(excess)
    assert spike[:, 0].tolist() == [[False, True, False], [False] * 3, [True, False, False]]


def test_inhibition_reaches_all_others():
    like = torch.zeros(1, dtype=D)
    make = lambda kind: se.Population((1, 1, 4), kind, 1.0, 1.0, 0.5, like)
    spike = torch.tensor([[[False, True, False, False]]])
    for inh in (None, make(se.INHIBITORY)):
        exc = make(se.EXCITATORY)
        se.inhibit(exc, inh, spike)
        assert exc.gi.flatten().tolist() == [17.0, 0.0, 17.0, 17.0]
    assert inh.v[0, 0, 1] == -45.0  # the partner fired within the step


def test_simulated_inhibition_is_the_tie_break_where_one_cell_leads():
    # One cell is driven so much harder that two never cross in one step.
    spikes = trains(150, 1, 1, 12, 0.5)
    out = []
    for name in ("tie-break", "population"):
        net = module(1, inhibition=name)
        net.W.mul_(0.02)
        net.W[0, 2].fill_(0.6)
        out.append(se.spike_times(net, spikes))
    assert len(out[0]) > 5
    assert torch.equal(*out)


def test_population_without_delays_fires_together_and_learns_nothing():
    net = module(1, 40, 6, inhibition="population", duration=60.0)
    net.W.copy_(net.W[:, :1].expand_as(net.W))  # equal starts stay equal for ever
    net.learn(pictures(1, 3, 40), 2)
    assert (net.W == net.W[:, :1]).all()
    assert net.theta.unique().numel() == 1
    assert net.theta.min() > 20
    delayed = module(1, 40, 6, inhibition="population", max_delay=10.0, duration=60.0)
    delayed.learn(pictures(1, 3, 40), 2)
    assert delayed.theta.unique().numel() > 1


# --------------------------------------------------------------------------- plasticity


@pytest.mark.parametrize("delays", [False, True])
def test_rule_by_hand(delays):
    """Event by event in plain Python, two updates and two clips, against one of rank two."""
    net = module(1, 6, 3, max_delay=3.0 if delays else 0.0)
    net.W.uniform_(0.2, 0.99, generator=child(0, "w"))
    W, spikes = net.W[0].clone(), trains(50, 1, 1, 6, 0.5)
    seen = []
    # The rule's own spikes: what the network fires is recorded, then replayed by hand.
    se.present(net, spikes, True, watch=lambda t, s, _: seen.append(s[0, 0].clone()))
    assert sum(int(s.sum()) for s in seen) > 3
    shift = net.delays[0].tolist() if delays else [[0] * 6 for _ in range(3)]
    last_pre = [[-math.inf] * 6 for _ in range(3)]
    last_post = [-math.inf] * 3
    for t in range(50):
        trace = lambda last, tau: math.exp((last - t) / tau) if last > -math.inf else 0.0  # noqa: B023
        for j in range(3):
            for k in range(6):
                at = t - shift[j][k]
                if at >= 0 and spikes[at, 0, 0, k]:
                    W[j, k] = min(1.0, W[j, k] + 1e-4 * trace(last_post[j], 20))
                    last_pre[j][k] = t
            if seen[t][j]:
                for k in range(6):
                    grow = 1e-2 * trace(last_pre[j][k], 20) * trace(last_post[j], 40)
                    W[j, k] = min(1.0, W[j, k] + grow)
                last_post[j] = t
    assert_close(net.W[0], W, 1e-12)


def test_invariants_of_training():
    net = module(3, 20, 6)
    sums, spread = [], []

    def look(shown):
        spread.append((net.W.min().item(), net.W.max().item()))
        copy = net.W.clone()
        se.normalize_(copy, net.weight_sum)
        sums.append(copy.sum(-1))

    net.learn(pictures(3, 4, 20), 3, look)
    assert len(sums) == 12
    assert_close(torch.stack(sums), torch.full((12, 3, 6), 20 * 78 / 784, dtype=D), 1e-12)
    assert min(low for low, _ in spread) >= 0
    assert max(high for _, high in spread) <= 1
    assert (net.theta.std(1) > 0).all()
    steps = net.updates // net.W.numel()
    assert steps == 3 * 4 * 40
    assert net.updates == se.synapse_updates(
        12, 4, 6, 20, images=1, epochs=3, steps=40
    )  # 3 modules of 4 places


def test_frozen_networks_do_not_change():
    net = module()
    net.learn(pictures(), 1)
    W, theta = net.W.clone(), net.theta.clone()
    a = net.respond(pictures(1, 4), [child(5)], 2)
    assert torch.equal(net.W, W)
    assert torch.equal(net.theta, theta)
    assert torch.equal(a, net.respond(pictures(1, 4), [child(5)], 2))
    assert a.shape == (2, 4, 5)
    # An image's counts do not depend on the images beside it: same spikes, shown alone.
    spikes = trains(40, 2, 3, 12)
    together = se.present(net, spikes, False)[0]
    alone = se.present(net, spikes[:, :, 1:2], False)[0]
    assert torch.equal(together[:, 1:2], alone)


def test_alone_and_in_the_ensemble_are_the_same_numbers():
    together = module(4, 30, 8)
    x = pictures(4, 3, 30)
    together.learn(x, 2)
    for k in (0, 3):
        alone = se.STDPModule(
            30, 8, gens=[child(0, "m", k)], duration=40.0, gain=12.0, theta_step=0.1, dtype=D
        )
        alone.learn(x[k : k + 1], 2)
        assert torch.equal(alone.theta[0], together.theta[k])
        assert_close(alone.W[0], together.W[k], 1e-13)


def test_adding_a_module_changes_no_others_counts():
    images = pictures(1, 6, 12, 3)
    small, large = module(2), module(3)
    assert torch.equal(
        small.respond(images, [child(7)], 2), large.respond(images, [child(7)], 2)[:2]
    )


@pytest.mark.parametrize("silence", ["settle", "simulate"])
def test_silence_between_images(silence):
    net = module(1, 12, 5, silence=silence, rest=150.0, tau_theta=1e4)
    seen = []
    net.learn(pictures(1, 2), 1, lambda k: seen.append(net.theta.clone()))
    # Thresholds fall by exp(-150 / tau) in the silence either way; no spikes in it.
    quick = module(1, 12, 5, rest=0.0, tau_theta=1e4)
    quick.learn(pictures(1, 2), 1, lambda k: seen.append(quick.theta.clone()))
    assert_close(seen[0], seen[2] * math.exp(-150 / 1e4), 1e-9)


def test_delays_shift_the_input():
    net = module(1, 6, 3, max_delay=5.0)
    state, spikes = net.state(1), trains(20, 1, 1, 6)
    arrived = torch.stack([state.arrive(f, net.delays)[0, 0] for f in spikes])
    for j in range(3):
        for k in range(6):
            d = int(net.delays[0, j, k])
            assert torch.equal(arrived[d:, j, k], spikes[: 20 - d, 0, 0, k])
            assert (arrived[:d, j, k] == 0).all()
    assert net.respond(pictures(1, 2, 6), [child(1)]).shape == (1, 2, 3)


def test_input_is_poisson():
    net = se.STDPModule(784, 4, gens=[child(0)])
    # 240 / 4 = 60 Hz for 350 ms: 21 spikes.
    spikes = net.encode(torch.full((784,), 60.0), child(1))
    assert spikes.shape == (350, 784)
    assert abs(spikes.sum(0).mean() - 21) < 0.5
    assert abs(spikes.sum(0).var() / (21 * 0.94) - 1) < 0.2


# --------------------------------------------------------------------------- recognition


def hand_made():
    # Three cells, two places; cell 2 fires for everything, cell 3 never.
    counts = torch.tensor([[4.0, 0, 6, 0], [2.0, 0, 6, 0], [0.0, 3, 5, 0], [0.0, 1, 5, 0]])
    return counts, torch.tensor([0, 0, 1, 1])


def test_assignment_and_scores_by_hand():
    counts, labels = hand_made()
    table = se.response_table(counts, labels, 2)
    assert table.T.tolist() == [[3, 0, 6, 0], [0, 2, 5, 0]]
    assert se.assign(table).tolist() == [0, 1, 0, -1]
    probe = torch.tensor([[2.0, 4.0, 6.0, 9.0]])
    assert se.score_places(probe, table).tolist() == [[4.0, 4.0]]
    assert se.score_places(probe, table, "sum").tolist() == [[8.0, 4.0]]
    mask = torch.tensor([True, True, False, True])
    # The masked cell loses its spikes and still counts: (2 + 0) / 2.
    assert se.score_places(probe, table, mask=mask).tolist() == [[1.0, 4.0]]
    everyone = torch.ones(4, dtype=torch.bool)
    for mode in se.MODES:
        plain = se.score_places(probe, table, mode)
        assert torch.equal(plain, se.score_places(probe, table, mode, everyone))
    # Cell 2 learned both places, with shares 6/11 and 5/11.
    share = torch.tensor([6 / 11, 5 / 11])
    assert_close(
        se.score_places(probe, table, "strength"), torch.tensor([[2.0, 4.0]]) + 6 * share, 1e-6
    )
    assert_close(
        se.score_places(probe, table, "involvement"), torch.tensor([[2.0 + 3, 4.0 + 3]]), 1e-6
    )
    silent = torch.tensor([[0.0, 4.0, 6.0, 0.0]])  # cell 0 should fire for place 0
    assert_close(se.score_places(silent, table, "penalty"), torch.tensor([[6 * 6 / 9, 10.0]]), 1e-6)
    weighted = torch.tensor([[6 * share[0] / 2 * 6 / 9, 4 + 6 * share[1] / 2]])
    assert_close(se.score_places(silent, table, "weighted"), weighted, 1e-6)


def test_scores_broadcast_over_modules():
    counts = torch.rand(3, 2, 7, 5).round()
    table = torch.rand(3, 2, 5, 4)
    for mode in se.MODES:
        whole = se.score_places(counts, table, mode)
        assert whole.shape == (3, 2, 7, 4)
        assert_close(whole[1, 1], se.score_places(counts[1, 1], table[1, 1], mode), 1e-6)


def test_hyperactive_cells_and_a_mask_that_takes_a_whole_place():
    counts, labels = hand_made()
    outside = se.outside_activity(counts)
    assert outside.tolist() == [6, 4, 22, 0]
    assert se.outside_activity(counts, "images").tolist() == [2, 2, 4, 0]
    assert se.find_hyperactive(outside, 6.0).tolist() == [False, False, True, False]
    table = se.response_table(counts, labels, 2)
    mask = torch.tensor([True, False, True, True])  # the only cell of place 1
    scores = se.score_places(counts, table, mask=mask)
    assert (scores[:, 1] == 0).all()
    assert se.recall(scores, labels) == 0.5


def test_recall_ties_and_ranks():
    scores = torch.tensor([[3.0, 2, 1], [3.0, 2, 1], [0.0, 0, 0]])
    truth = torch.tensor([0, 1, 2])
    assert_close(se.recall(scores, truth), torch.tensor(1 / 3), 1e-6)
    assert_close(se.recall(scores, truth, 2), torch.tensor(1.0), 1e-6)  # one of three ties
    assert se.recall(scores[2:], truth[2:]) == 0  # saying nothing is no hit
    assert_close(se.foreign_share(scores, truth, 1), torch.tensor(2 / 3), 1e-6)
    flat = se.unit_range(torch.tensor([[2.0, 4.0], [1.0, 1.0]]))
    assert flat.tolist() == [[0, 1], [0, 0]]


def test_precision_recall_is_average_precision():
    from sklearn.metrics import average_precision_score

    scores = torch.rand(40, 6, generator=child(3), dtype=D)
    truth = torch.randint(6, (40,), generator=child(4))
    precision, found, area = se.precision_recall(scores, truth)
    sure, answer = scores.max(1)
    right = answer == truth
    theirs = average_precision_score(right.numpy(), sure.numpy()) * right.double().mean().item()
    assert abs(area - theirs) < 1e-9
    assert found[-1] == precision[-1] == right.double().mean()


def small(region, seeds=(0, 1), **options):
    options = {"duration": 50.0, "gain": 10.0, "theta_step": 0.1, "tau_theta": 1e12} | options
    return se.ModularPlaceRecognizer(region, 10, seeds=seeds, **options)


def route(places=6, seeds=(0, 1)):
    drawn = [se.traverses(places, child(s, "route")) for s in seeds]
    return {name: torch.stack([d[name] for d in drawn]) for name in drawn[0]}


def test_recognizer():
    r, truth = route(), torch.arange(6)
    reference = torch.stack([r["reference 1"], r["reference 2"]], 1)
    model = small(3)
    model.fit(reference, 2)
    assert model.table.shape == (2, 2, 10, 3)
    counts = model.respond(r["query"], "query")
    assert counts.shape == (2, 2, 6, 10)
    before = model.scores(counts)
    assert torch.equal(before, model.scores(counts, mask=model.mask))
    assert torch.equal(before, model.query(r["query"]))
    found = model.calibrate(r["calibration"], truth)
    assert found.shape == (2, 11)
    chosen = model.sweep(
        model.respond(r["calibration"], "calibration"), truth, model.threshold[:, None]
    )
    assert torch.equal(chosen[:, 0], found.amax(1))
    assert torch.equal(model.mask, model.outside <= model.threshold[:, None, None])
    assert (model.mask.sum((1, 2)) >= 10).all()  # at most half are above the median
    # A route's modules do not know of the other route.
    other = small(3, seeds=(1,))
    other.fit(reference[1:], 2)
    assert_close(other.net.W, model.net.W[2:], 1e-5)
    # One region that holds the whole route is the single network: nothing is outside.
    one = small(6, seeds=(0,))
    one.fit(reference[:1], 1)
    assert (one.outside == 0).all()
    assert one.mask.all()


def test_the_papers_dynamics_run_end_to_end():
    r, truth = route(4, (0,)), torch.arange(4)
    options = {"inhibition": "population", "max_delay": 4.0, "silence": "simulate"}
    model = small(2, (0,), **options, dt=0.5, duration=30.0, rest=10.0, chunk=3, measure="images")
    model.fit(torch.stack([r["reference 1"], r["reference 2"]], 1), 1)
    model.calibrate(r["calibration"], truth, quantiles=(0.5, 1.0))
    assert model.query(r["query"]).shape == (1, 4, 4)
    assert model.net.theta.min() > 20 - 1e-3
    assert model.net.theta.max() > 20
    # Silence is steps like any other: 2 modules x 4 images x 80 steps.
    assert model.net.updates == 4 * 80 * model.net.W.numel()
    assert model.outside.max() <= 4  # images answered, of 2 places on 2 traverses


def test_chunks_and_choice():
    net, x = module(2), pictures(1, 6)
    assert torch.equal(net.respond(x, [child(1)], 2), net.respond(x, [child(1)], 2, chunk=6))
    assert net.respond(x, [child(1)], 2, chunk=4).shape == (2, 6, 5)
    # At most `chunk` images are held at once, and each part is the part shown alone.
    sizes, make = [], net.state
    net.state = lambda images=1: sizes.append(images) or make(images)
    gen = child(1)
    parts = torch.cat([net.respond(part, [gen], 1) for part in (x[:, :4], x[:, 4:])], 1)
    assert torch.equal(parts, net.respond(x, [child(1)], 1, chunk=4))
    assert sizes == [4, 2, 4, 2]
    net.state = make
    model = small(3, (0,))
    # Cell 9 of module 0 answers place 0 whatever is shown; without it every query is right.
    model.table = torch.eye(3).repeat(4, 1)[:10].expand(1, 2, 10, 3).clone()
    counts = torch.zeros(1, 2, 6, 10)
    for place in range(6):
        counts[0, place // 3, place, place % 3] = 2.0
    counts[0, 0, :, 9] = 9.0
    model.outside = counts.sum(2)
    threshold, found = model.choose(counts, torch.arange(6))
    assert found[0, -1] < 1
    assert found[0].max() == 1
    mask = model.keep(threshold)
    assert mask.sum() == 19
    assert not mask[0, 0, 9]


def test_work_per_place_is_constant_for_modules():
    work = lambda places, region, n: se.synapse_updates(
        places, region, n, 196, images=2, epochs=12, steps=100
    )
    assert work(24, 6, 48) / 24 == work(48, 6, 48) / 48
    assert work(48, 48, 384) / 48 == 2 * work(24, 24, 192) / 24


# --------------------------------------------------------------------------- images


def test_patch_normalization():
    x = 255 * torch.rand(3, 14, 14, generator=child(6))
    out = se.patch_normalize(x)
    assert_close(out, se.patch_normalize(3 * x + 7), 1e-4)  # contrast and brightness drop out
    tile = out[:, :7, 7:]
    inside = (tile > 0) & (tile < 255)
    z = (x[:, :7, 7:] - x[:, :7, 7:].mean((1, 2), keepdim=True)) / x[:, :7, 7:].std(
        (1, 2), correction=0, keepdim=True
    )
    assert_close(tile[inside], (127 + 60 * z)[inside], 1e-5)
    sliding = se.patch_normalize(x, how="sliding")
    near = x[0, 2:9, 3:10]
    wanted = ((x[0, 5, 6] - near.mean()) / near.std(correction=0)).clamp(-1, 1)
    assert_close(sliding[0, 5, 6], 127.5 * (1 + wanted), 1e-4)
    corner = x[0, :4, :4]
    wanted = ((x[0, 0, 0] - corner.mean()) / corner.std(correction=0)).clamp(-1, 1)
    assert_close(sliding[0, 0, 0], 127.5 * (1 + wanted), 1e-4)
    assert (se.patch_normalize(torch.full((1, 14, 14), 9.0), how="sliding") == 127.5).all()
    assert (se.patch_normalize(torch.full((1, 14, 14), 9.0)) == 127).all()


def test_descriptors():
    x = 255 * torch.rand(5, 196, generator=child(7))
    assert_close(se.sad(x, x[None]).diagonal() + 1, torch.ones(5), 1e-5)
    assert_close(se.sad(x, x[None])[0, 1], -(x[0] - x[1]).abs().sum(), 1e-5)
    both = se.sad(x, torch.stack([x + 9, x]))
    assert_close(both.diagonal() + 1, torch.ones(5), 1e-5)
    for describe in (se.hog, se.dct):
        d = describe(x)
        assert torch.equal(se.cosine(d, d[None]).argmax(1), torch.arange(5))
        assert_close(describe(x.view(1, 5, 196))[0], d, 1e-6)
        assert_close(describe(x + 20), d, 1e-4)  # brightness drops out
    assert_close(se.dct(x, 14).square().sum(1), (x - x.mean(1, keepdim=True)).square().sum(1), 1e-4)
    ramp = torch.arange(14.0).expand(14, 14).reshape(1, 196)  # gradients point along x: bin 0
    assert se.hog(ramp).view(8, 4)[0].min() > 0.99


def test_vlad():
    x = 255 * torch.rand(5, 196, generator=child(8))
    d = se.local_descriptors(x)
    assert d.shape == (5, 25, 32)
    assert_close(d.square().sum(-1), torch.ones(5, 25), 1e-5)
    # The first window by hand: pixels 0 to 5, its upper left cell the first eight numbers.
    ramp = torch.arange(14.0).expand(14, 14).reshape(1, 196)
    assert_close(se.local_descriptors(ramp)[0, 6], torch.eye(8)[0].repeat(4) / 2, 1e-5)
    words = se.vocabulary(d, 4, child(9))
    assert words.shape == (4, 32)
    which = torch.cdist(d, words).argmin(-1)
    # Residuals summed by hand; and at the centers of k-means all of them cancel.
    v = se.vlad(d, words).view(5, 4, 32)
    wanted = (d[2] - words[1])[which[2] == 1].sum(0)
    assert_close(v[2, 1], wanted / wanted.norm(), 1e-4)
    rest = torch.stack([(d - words[k])[which == k].sum(0) for k in range(4)])
    assert rest.norm() < 0.2 * d.flatten(0, 1).sum(0).norm()
    assert torch.equal(se.cosine(v.flatten(1), v.flatten(1)[None]).argmax(1), torch.arange(5))


def test_views():
    scene = se.windows(3, child(0, "route"))
    assert scene.shape == (3, 92, 92)
    assert 0 <= scene.min()
    assert scene.max() <= 255
    plain = se.view(scene)
    assert plain.shape == (3, 196)
    crop = F.avg_pool2d(scene[:, None, 6:90, 2:86], 6)[:, 0]
    assert_close(se.view(scene, shift=(2, -2)), se.patch_normalize(crop).flatten(1), 1e-5)
    assert_close(se.view(scene, contrast=0.5), plain, 1e-4)  # undone by the normalization
    assert not torch.allclose(se.view(scene, noise=5.0, gen=child(1)), plain)


def test_folder(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    for k in range(4):
        Image.new("RGB", (40, 30), (60 * k, 10, 10)).save(tmp_path / f"{k}.png")
    assert se.folder_traverse(tmp_path, skip=2).shape == (2, 784)
    with raises(ValueError, match="places=3"):
        se.folder_traverse(tmp_path, skip=2, places=3)
    with raises(FileNotFoundError, match=r"no \.png or \.jpg"):
        se.folder_traverse(tmp_path / "none")


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: module(0), "gens is empty"),
        (lambda: module(n=0), "n_exc=0"),
        (lambda: module(dt=-1.0), "dt=-1.0"),
        (lambda: module(duration=0.2), "duration=0.2"),
        (lambda: module(gain=-1.0), "gain=-1.0"),
        (lambda: module(tau_theta=0.0), "tau_theta=0.0"),
        (lambda: module(tau_ge=-1.0), "tau_ge=-1.0"),
        (lambda: module(weight_sum=13.0), "weight_sum=13.0: allowed is at most 12"),
        (lambda: module(weight_sum=0.0), "weight_sum=0.0"),
        (lambda: module(max_delay=-1.0), "max_delay=-1.0"),
        (lambda: module(theta_step=-1.0), "theta_step=-1.0"),
        (lambda: module(duration=math.nan), "duration=nan"),
        (lambda: module().learn(pictures(), 0), "epochs=0"),
        (lambda: module().learn(pictures() - 255, 1), "pixels from -2"),
        (lambda: module().learn(pictures() * math.nan, 1), "pixels from nan to nan"),
        (lambda: module().learn(pictures(k=0), 1), "0 of 12 pixels"),
        (lambda: module().respond(pictures(i=11), [child(0)] * 2), "3 of 11 pixels"),
        (lambda: module().respond(pictures(), [child(0)] * 2, chunk=0), "chunk=0"),
        (lambda: se.normalize_(torch.ones(1, 2, 3), -1.0), "total=-1.0"),
        (lambda: se.synapse_updates(4, 0, 3, 4, images=1, epochs=1, steps=1), "region=0"),
        (lambda: se.receptive_fields(module(), 2, 3), "module=2: allowed are 0 to 1"),
        (lambda: se.receptive_fields(module(), 0, 3), "side=3: 9 pixels"),
        (lambda: small(3).respond(torch.ones(2, 1, 16), "query"), "call fit first"),
        (lambda: small(3, measure="rate"), "measure='rate'"),
        (lambda: small(3).fit(torch.zeros(2, 0, 6, 196), 1), "0 traverses"),
        (lambda: small(3).levels((0.5, 1.5), torch.ones(1, 2, 3)), "numbers from 0 to 1"),
        (lambda: se.recall(torch.ones(2, 3), torch.tensor([0, 3])), "truth from 0 to 3"),
        (lambda: se.recall(torch.ones(2, 3), torch.tensor([0])), "1 places for 2 queries"),
        (lambda: se.recall(torch.full((2, 3), math.nan), torch.tensor([0, 1])), "scores hold nan"),
        (lambda: se.foreign_share(torch.ones(2, 3), torch.tensor([0, 1]), 0), "region_size=0"),
        (lambda: se.precision_recall(torch.ones(0, 3), torch.arange(0)), "0 places for 0 queries"),
        (lambda: se.windows(0, child(0)), "places=0"),
        (lambda: se.view(torch.zeros(1, 92, 92), noise=-1.0, gen=child(0)), "noise=-1.0"),
        (lambda: se.patch_normalize(torch.zeros(1, 14, 14), 0), "patch=0"),
        (lambda: se.sad(torch.zeros(2, 5), torch.zeros(0, 3, 5)), "0 traverses"),
        (lambda: se.vlad(torch.zeros(2, 3, 4), torch.zeros(2, 5)), "centers of 5"),
        (lambda: se.hog(torch.zeros(2, 196), bins=0), "bins=0"),
        (lambda: module(silence="skip"), "silence='skip'"),
        (lambda: module(inhibition="none"), "inhibition='none'"),
        (lambda: se.present(module(), trains(2, 2, 3, 12), True), "3 images at once"),
        (lambda: se.present(module(), trains(2, 3, 1, 12), False), r"allowed is \(t, 2, b, 12\)"),
        (lambda: module().learn(pictures(3), 1), "3 sets for 2 modules"),
        (lambda: module(3).respond(pictures(2), [child(0)] * 2), "with 3 modules"),
        (lambda: se.score_places(torch.ones(1, 2), torch.ones(2, 2), "max"), "mode='max'"),
        (lambda: se.score_places(torch.ones(1, 3), torch.ones(2, 2)), "counts of 3 cells"),
        (lambda: se.response_table(torch.ones(2, 3), torch.tensor([0, 0]), 2), "of place 1"),
        (lambda: se.response_table(torch.ones(2, 3), torch.tensor([0, 2]), 2), "from 0 to 2"),
        (lambda: se.outside_activity(torch.ones(2, 3), "rate"), "measure='rate'"),
        (lambda: se.recall(torch.ones(2, 3), torch.zeros(2, dtype=torch.long), 4), "n=4"),
        (lambda: small(0), "region_size=0"),
        (lambda: small(4).fit(torch.zeros(2, 1, 6, 196), 1), "2 routes of 6 places"),
        (lambda: se.patch_normalize(torch.zeros(1, 15, 15)), "patch=7"),
        (lambda: se.patch_normalize(torch.zeros(1, 14, 14), 6, "sliding"), "patch=6"),
        (lambda: se.patch_normalize(torch.zeros(1, 14, 14), how="all"), "how='all'"),
        (lambda: se.view(torch.zeros(1, 92, 92), shift=(5, 0)), r"shift=\(5, 0\)"),
        (lambda: se.view(torch.zeros(1, 92, 92), noise=1.0), "gen=None"),
        (lambda: se.view(torch.zeros(1, 92, 92), side=13), "side=13"),
        (lambda: se.hog(torch.zeros(2, 195)), "195 of them"),
        (lambda: se.hog(torch.zeros(2, 196), 5), "cell=5"),
        (lambda: se.dct(torch.zeros(2, 196), 15), "keep=15"),
        (lambda: se.local_descriptors(torch.zeros(2, 196), 5), "size=5"),
        (lambda: se.vocabulary(torch.zeros(2, 4, 3), 9, child(0)), "words=9"),
    ],
)
def test_errors(call, message):
    with raises(ValueError, match=message):
        call()
