"""Locality, counts, leaks, and what the layers learn."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lib.core.data.graphs import Graph, both_ways, sbm, split_nodes
from lib.core.derivatives import gradient_map
from lib.core.meters import count_calls, saved_bytes
from lib.core.seeds import child
from lib.graphs import forward_gnn as fg
from lib.graphs.forward_gnn import (
    MODES,
    BackpropGNN,
    ForwardGNN,
    ForwardLinks,
    LocalHeads,
    SignalPropagation,
    VirtualNodeAugmenter,
    accuracy,
    append_labels,
    auc,
    class_logits,
    class_node_loss,
    fit_backprop,
    fit_pepita,
    link_loss,
    non_edges,
    pepita_updates,
    split_links,
    wrong_labels,
)
from lib.models.feedback import FeedbackLinear, Signal
from lib.models.graph_layers import Relational, pool
from tests.helpers import assert_close, raises

C = 4


def graph(n=40, sep=2.0, seed=0):
    g = sbm([n] * C, 6, 0.8, 8, child(seed, "graph"), sep)
    return split_nodes(g, 0.4, 0.2, child(seed, "split"))


def model(mode, widths=(8, 16, 16, 16), seed=0, **options):
    if mode.startswith("ff"):
        options = {"negatives": 2} | options
    return ForwardGNN(mode, "gcn", list(widths), C, gen=child(seed, "model"), **options)


# --------------------------------------------------------------------------- labels on a graph


def test_the_augmented_graph_is_counted():
    g = graph()
    m, e = int(g.train.sum()), g.edge_index.shape[1]
    for direction, factor in (("uni", 1), ("bi", 2)):
        linked = VirtualNodeAugmenter(g, C, direction, child(0, "v"))(g.y, g.train)
        assert linked.n == g.n + C and linked.edge_index.shape[1] == e + factor * m
        assert torch.equal(linked.edge_index[:, :e], g.edge_index)
        new = linked.edge_index[:, e:]
        nodes, classes = new.min(0).values, new.max(0).values - g.n
        assert torch.equal(g.y[nodes], classes) and g.train[nodes].all()
        assert torch.equal(linked.y[g.n :], torch.arange(C)) and not linked.train[g.n :].any()
        if direction == "uni":
            assert (new[1] >= g.n).all(), "nothing comes back from a class node"


def test_class_nodes_keep_their_features():
    augment = VirtualNodeAugmenter(graph(), C, gen=child(0, "v"))
    g = augment.graph
    a, b = augment(g.y, g.train), augment((g.y + 1) % C, g.test)
    assert torch.equal(a.x, b.x)


def test_appended_and_wrong_labels():
    g = graph()
    x = append_labels(g.x, g.y, g.train, C)
    assert torch.equal(x[:, :8], g.x) and torch.equal(x[g.train, 8:].argmax(1), g.y[g.train])
    assert (x[~g.train, 8:] == 1 / C).all() and torch.equal(x[:, 8:].sum(1), torch.ones(g.n))
    wrong = wrong_labels(g.y, C, 3, child(0, "w"))
    # Three different wrong classes out of three: with the right one they are all of them.
    assert (torch.cat([wrong, g.y[None]]).sort(0).values == torch.arange(C)[:, None]).all()
    many = wrong_labels(torch.zeros(6000).long(), C, 1, child(0, "u"))[0]
    assert (many.bincount(minlength=C)[1:] - 2000).abs().max() < 4 * (6000 * 2 / 9) ** 0.5


@pytest.mark.parametrize("conv", ["gcn", "sage", "gat", "relational"])
@pytest.mark.parametrize("direction", ["uni", "bi"])
def test_one_way_links_leak_nothing(conv, direction):
    g = graph()
    net = ForwardGNN("sf", conv, [8, 12, 12], C, direction=direction, gen=child(0, "leak"))
    net.prepare(g)
    right = net.embed(g)
    order = torch.randperm(g.n, generator=child(0, "shuffle"))
    wrong = net.embed(replace(g, y=g.y[order]))
    for a, b in zip(right, wrong, strict=True):
        real = (a[: g.n] - b[: g.n]).abs().max()
        assert (real == 0) if direction == "uni" else (real > 1e-3)
        assert (a[g.n :] - b[g.n :]).abs().max() > 1e-3, "the class nodes do differ"


def test_ff_with_virtual_nodes_needs_the_way_back():
    # With one-way links the goodness of the real nodes cannot depend on the links at all.
    g, h = graph(), model("ff_vn")
    h.direction = "uni"
    h.prepare(g)
    scores = h.scores(g)
    assert_close(scores, scores[..., :1].expand_as(scores), 1e-6)
    bi = model("ff_vn")
    bi.prepare(g)
    assert (bi.scores(g).amax(-1) - bi.scores(g).amin(-1)).mean() > 1e-4


# --------------------------------------------------------------------------- locality and cost


@pytest.mark.parametrize("mode", MODES)
def test_every_loss_reaches_its_own_layer_only(mode):
    g, net = graph(), model(mode)
    net.prepare(g)
    losses = {f"loss {l}": loss for l, loss in enumerate(net.losses(g))}
    table = gradient_map(losses, {f"layer {l}": layer for l, layer in enumerate(net.layers)})
    norms = torch.tensor(table.to_numpy())
    assert (norms.diagonal() > 0).all()
    assert (norms - norms.diagonal().diag()).abs().max() == 0


@pytest.mark.parametrize("mode", ["ff_la", "ff_vn", "sf"])
def test_greedy_layers_do_not_know_what_comes_after(mode):
    g = graph()
    short, long = model(mode, (8, 16)), model(mode, (8, 16, 16))
    long.layers[0].load_state_dict(short.layers[0].state_dict())
    for net in (short, long):
        net.gen = child(0, "same draws")
        net.fit(g, 15, 1e-2)
    for a, b in zip(short.layers[0].parameters(), long.layers[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_memory_of_an_update_does_not_grow_with_depth():
    g = graph()
    held = {}
    for depth in (2, 8):
        widths = [8, *[32] * depth]
        for mode in ("sf", "sf_top2loss"):
            net = model(mode, widths)
            held[mode, depth] = saved_bytes(lambda net=net: net.fit(g, 1), exclude=[g.x])
        bp = BackpropGNN([*widths, C])
        held["bp", depth] = saved_bytes(lambda bp=bp: fit_backprop(bp, g, 1, best=False))
    assert held["sf", 8] <= 1.1 * held["sf", 2]
    assert held["sf_top2loss", 8] <= 1.1 * held["sf_top2loss", 2]
    assert held["bp", 8] >= 2.5 * held["bp", 2]


@pytest.mark.parametrize(
    "mode, calls",
    [("sf", 3), ("sf_top2loss", 3), ("ff_vn", 12), ("ff_la", 12), ("sf_top2input", 33)],
)
def test_layer_calls_of_a_prediction(mode, calls):
    g, net = graph(), model(mode)
    net.prepare(g)
    before = net.forward_calls
    with count_calls(net.layers[1]) as one:
        net.predict(g)
    assert net.forward_calls - before == calls and one.total == calls // 3


def test_a_gradient_through_both_sides_of_the_inner_product():
    g = graph()
    h = torch.rand(g.n + C, 5, generator=child(0, "h"), dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(class_node_loss(g.y, g.train, 0.7)(h), h)
    with torch.no_grad():
        logits = class_logits(h, g.n, 0.7)
        assert_close(logits, torch.einsum("nd,cd->nc", h[: g.n], h[g.n :]) / 0.7, 1e-14)
        error = (logits.softmax(-1) - F.one_hot(g.y, C)) * g.train[:, None] / g.train.sum() / 0.7
        assert_close(grad[: g.n], error @ h[g.n :], 1e-12)
        assert_close(grad[g.n :], error.T @ h[: g.n], 1e-12)


def test_cached_aggregation_is_the_layer():
    g, net = graph(), model("sf")
    net.prepare(g)
    x, edges = net._linked(g, g.y, g.train)
    layer = net.layers[0]
    assert_close(layer.learn(layer.gather(x, edges), edges), layer(x, edges), 0)
    direct = layer.conv(F.normalize(x, dim=1), edges).relu()
    assert_close(layer(x, edges), direct, 1e-6)
    # Rows are divided by their length: a layer does not see how good the layer below was.
    assert_close(layer(3 * x, edges), layer(x, edges), 1e-5)


def test_top_down_states_use_the_step_before():
    g, net = graph(), model("sf_top2loss", (8, 16, 16))
    net.prepare(g)
    states, edges, _ = net._start(g)
    objective = class_node_loss(g.y, g.train)
    h = net.layers[0](states[0], edges)
    wanted = objective((h + F.normalize(states[2], dim=1)) / 2)
    assert_close(net.losses(g)[0], wanted, 1e-6)
    assert_close(net.losses(g)[1], objective(net.layers[1](states[1], edges)), 1e-6)
    # Inference averages as the losses did.
    wanted = class_logits((h + F.normalize(states[2], dim=1)) / 2, g.n).softmax(-1)
    assert_close(net.scores(g)[0], wanted, 1e-6)


def test_top_to_input_sees_the_label_state_of_training_nodes_only():
    g, net = graph(), model("sf_top2input", (8, 16, 12))
    net.prepare(g)
    _, _, top = net._start(g)
    assert torch.equal(top[: g.n][g.train].argmax(1), g.y[g.train])
    assert (top[: g.n][~g.train] == 1 / C).all() and torch.equal(top[g.n :], torch.eye(C))
    assert [l.conv.linear.in_features for l in net.layers] == [8 + 12, 16 + C]


# --------------------------------------------------------------------------- learning

# Chance is 0.25. Worst of five seeds: 0.69, 0.48, 0.71, and 0.88 for the other modes.
FLOOR = {"ff_la": 0.5, "ff_vn": 0.35, "sf_top2input": 0.6}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("conv", ["gcn", "sage", "gat", "relational"])
def test_every_mode_learns(mode, conv):
    g = graph(30, 3.0)
    net = ForwardGNN(mode, conv, [8, 24, 24], C, gen=child(0, "learn"))
    history = net.fit(g, 40, 2e-2).frame()
    assert accuracy(net.predict(g), g) > FLOOR.get(mode, 0.75)
    for _, rows in history.groupby("layer"):
        assert rows.loss.iloc[-1] < rows.loss.iloc[0]
    assert net.scores(g).shape == (2, g.n, C)


def test_permuted_links_carry_nothing():
    g = graph(60, 2.0)
    y = g.y.clone()
    nodes = g.train.nonzero()[:, 0]
    y[nodes] = y[nodes[torch.randperm(len(nodes), generator=child(0, "perm"))]]
    net, fair = (model("sf", (8, 24, 24)) for _ in range(2))
    net.fit(replace(g, y=y), 60, 2e-2)
    fair.fit(g, 60, 2e-2)
    guess = net.predict(replace(g, y=y))
    assert accuracy(guess, g) <= 1.6 / C < 0.6 < accuracy(fair.predict(g), g)


@pytest.mark.parametrize("mode", MODES)
def test_another_graph_is_judged_by_its_own_nodes(mode):
    # Of the same size as the training graph, and of another size.
    g, net = graph(20), model(mode, (8, 16, 16))
    net.fit(g, 3, 1e-2)
    for other in (graph(20, seed=1), graph(30, seed=1)):
        scores = net.scores(other)
        assert scores.shape[1] == other.n
        order = torch.randperm(other.n, generator=child(0, "order"))
        place = torch.empty_like(order).scatter_(0, order, torch.arange(other.n))
        masks = {k: getattr(other, k)[order] for k in ("y", "train", "val", "test")}
        moved = replace(other, x=other.x[order], edge_index=place[other.edge_index], **masks)
        assert_close(net.scores(moved), scores[:, order], 1e-4)


def test_two_kinds_of_links_are_two_sage_layers():
    g, net = graph(), ForwardGNN("sf", "relational", [8, 12], C, gen=child(0, "two"))
    net.prepare(g)
    linked = net.augmenter(g.y, g.train)
    kind = (linked.edge_index >= g.n).any(0).long()
    conv = net.layers[0].conv
    direct = Relational.forward(conv, F.normalize(linked.x, dim=1), linked.edge_index,
                                edge_type=kind)  # fmt: skip
    assert_close(net.embed(g)[0], direct.relu(), 1e-6)


def test_alternating_updates_and_same_seed_same_numbers():
    g, runs = graph(), {}
    for order in ("all", "alternate", None):
        runs[order] = []
        for _ in range(2):
            net = model("sf_top2input", (8, 16, 16), order=order)
            runs[order].append(net.fit(g, 12, 1e-2).frame().loss.to_list())
        assert runs[order][0] == runs[order][1]
    assert runs["all"] != runs["alternate"] == runs[None]


def test_a_time_step_by_hand():
    # Three layers: 1 and 3 from the old states, then 2 from their new ones.
    g, net = graph(), model("sf_top2input", (8, 16, 12, 10))
    net.prepare(g)
    states, edges, top = net._start(g)
    one, two, three = net.layers
    first = one(states[0], edges, states[2])
    third = three(states[2], edges, top)
    second = two(first, edges, third)
    wanted = class_logits(second, g.n).softmax(-1)
    assert_close(net.scores(g, times=[1])[1], wanted, 1e-6)
    net.order = "all"
    wanted = class_logits(two(states[1], edges, states[3]), g.n).softmax(-1)
    assert_close(net.scores(g, times=[1])[1], wanted, 1e-6)


def test_goodness_as_a_sum_is_the_mean_at_another_threshold():
    # Same predictions from the same weights: sum - 2 = d (mean - 2 / d), up to the factor d.
    g = graph()
    total, mean = (
        model("ff_la", (8, 16, 16)),
        model("ff_la", (8, 16, 16), total=False, theta=2 / 16),
    )
    for net in (total, mean):
        net.prepare(g)
    assert_close(total.scores(g), 16 * mean.scores(g), 1e-5)
    assert model("ff_la").theta == 2 and ForwardGNN("ff_la", "gcn", [8, 4], C).negatives == C - 1


def test_sf_rows_are_the_whole_loss():
    g, net = graph(), model("sf")
    net.prepare(g)
    (layer, loss), *_ = net.stages(g)
    x, edges = net._linked(g, g.y, g.train)
    assert_close(loss(), class_node_loss(g.y, g.train)(layer(x, edges)), 1e-6)


def test_early_stopping_keeps_the_best_weights():
    g, net = graph(), model("sf", (8, 16))
    rows = net.fit(g, 200, 5e-2, patience=10, check=5).frame()
    best = rows.val.max()
    assert rows.step.max() < 200, "it stopped"
    layer_one = net.scores(g)[0].argmax(-1)
    assert_close(torch.tensor(accuracy(layer_one, g, g.val)), torch.tensor(best), 1e-12)
    # With more layers the sum of all so far is looked at; top-down modes stop as one.
    for mode in ("sf", "sf_top2loss", "sf_top2input"):
        net = model(mode, (8, 16, 16))
        rows = net.fit(g, 60, 5e-2, patience=10, check=5).frame()
        best = rows[rows.layer == 2].val.max()
        assert_close(torch.tensor(accuracy(net.predict(g), g, g.val)), torch.tensor(best), 1e-12)


def test_baselines_learn_and_stay_local():
    g = graph(40, 3.0)
    for feedback in (None, "fa", "dfa", "drtp"):
        net = BackpropGNN([8, 24, C], feedback=feedback, gen=child(0, "bp"))
        fit_backprop(net, g, 60)
        assert accuracy(net.predict(g), g) > 0.6, feedback
    for cascaded in (False, True):
        heads = LocalHeads([8, 24, 24], C, cascaded=cascaded, gen=child(0, "heads"))
        before = heads.layers[0].conv.linear.weight.clone()
        heads.fit(g, 60)
        assert accuracy(heads.predict(g), g) > 0.6
        assert torch.equal(before, heads.layers[0].conv.linear.weight) == cascaded
    net = BackpropGNN([8, 24, C], gen=child(0, "bp"))
    fit_pepita(net, g, 150, child(0, "F"))
    assert accuracy(net.predict(g), g) > 0.4
    for conv in ("gcn", "sage", "gat"):
        net = SignalPropagation([8, 24, 24], C, conv, gen=child(0, "sigprop"))
        net.fit(g, 60)
        assert accuracy(net.predict(g), g) > 0.6, conv


def test_signal_propagation_is_sf_without_links():
    # From the second layer on: class nodes without neighbors, whose features are the learned rows.
    g, net = graph(), SignalPropagation([8, 16, 16], C, gen=child(0, "sigprop"))
    first = net.layers[0](g.x, net.edges(g))
    apart = Graph(torch.cat([first, net.rows()]), g.edge_index)
    h = net.layers[1](apart.x, net.edges(replace(apart, x=apart.x[:, :8])))
    assert_close(net.scores(g)[1], class_logits(h, g.n).softmax(-1), 1e-6)
    alone = F.relu(net.layers[1].conv.linear(F.normalize(net.rows(), dim=1)))
    assert_close(h[g.n :], alone, 1e-5)


def test_pepita_is_exact_in_the_last_layer():
    # Its last layer moves along the error times its (shifted) input; with a small shift that is
    # the gradient. In the hidden layer it is another direction.
    g = graph()
    net = BackpropGNN([8, 24, C], gen=child(0, "bp"))
    edges = net.edges(g)
    F.cross_entropy(net(g.x, edges)[g.train], g.y[g.train]).backward()
    found = pepita_updates(net, g.x, edges, g.y, g.train, 1e-6 * torch.randn(C, 8))
    assert_close(found[1][0], net.layers[1].linear.weight.grad, 1e-4)
    assert_close(found[1][1], net.layers[1].linear.bias.grad, 1e-4)


# --------------------------------------------------------------------------- links


def test_link_split_hides_and_draws():
    g = graph()
    split = split_links(g, 0.25, child(0, "links"))
    key = lambda p: set(map(tuple, p.T.tolist()))
    edges, hidden = key(g.edge_index), key(split.test)
    assert len(hidden) == round(0.25 * len(edges) / 2) and hidden <= edges
    assert not key(split.graph.edge_index) & hidden and not key(split.test_negative) & edges
    assert len(key(split.test_negative)) == len(hidden)
    assert key(split.train) | hidden == {e for e in edges if e[0] < e[1]}
    full = both_ways(*torch.triu_indices(5, 5, 1))
    with raises(ValueError, match="k=1: allowed is 0 to 0"):
        non_edges(Graph(torch.zeros(5, 1), full), 1, child(0, "none"))


def test_auc_and_link_loss():
    a, b = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])
    assert auc(a, b) == (1 + 1 + 0 + 0.5) / 4
    h = torch.rand(6, 3, generator=child(0, "h"))
    pos, neg = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4], [5]])
    up, down = (h[:2] * h[2:4]).sum(1), h[4] @ h[5]
    bce = F.binary_cross_entropy_with_logits
    wanted = bce(up, torch.ones(2)) + bce(down, torch.zeros(()))
    assert_close(link_loss(pos, neg)(h), wanted, 1e-6)
    size = lambda i, j: (h[i] * h[j]).square().sum(-1) - 0.3
    wanted = bce(size(pos[0], pos[1]), torch.ones(2)) + bce(size(4, 5), torch.zeros(()))
    assert_close(link_loss(pos, neg, theta=0.3)(h), wanted, 1e-6)


@pytest.mark.parametrize("mode", ["sf", "ff", "sf_top2loss", "sf_top2input", "bp"])
def test_links_are_predicted(mode):
    g = graph(60, 3.0)
    split = split_links(g, 0.2, child(0, "links"))
    net = ForwardLinks(mode, "gcn", [8, 24, 24], gen=child(0, "net"))
    net.fit(split, 60, 1e-2)
    p, n = (net.scores(split.graph, pairs) for pairs in (split.test, split.test_negative))
    assert len(p) == (1 if mode == "bp" else 2)
    assert auc(p.sum(0), n.sum(0)) > 0.6  # 0.8 of the links stay inside 4 blocks: at most 0.8


# --------------------------------------------------------------------------- errors


def test_errors():
    g = graph()
    with raises(ValueError, match="mode='ff': allowed are 'ff_la'"):
        ForwardGNN("ff", "gcn", [8, 4], C)
    with raises(ValueError, match="conv='cnn'"):
        ForwardGNN("sf", "cnn", [8, 4], C)
    with raises(ValueError, match="'sf_top2loss' averages layers of one width"):
        ForwardGNN("sf_top2loss", "gcn", [8, 4, 5], C)
    with raises(ValueError, match="labels must reach the nodes, use 'bi'"):
        ForwardGNN("ff_vn", "gcn", [8, 4], C, direction="uni")
    with raises(ValueError, match="k=4: allowed is 1 to 3"):
        wrong_labels(g.y, C, 4, child(0, "w"))
    with raises(ValueError, match="labels to be linked go from 0 to 3; classes are 0 to 1"):
        VirtualNodeAugmenter(g, 2)(g.y, g.train)
    with raises(RuntimeError, match="call fit"):
        model("sf").predict(g)
    with raises(ValueError, match="training nodes in the mask train"):
        model("sf").fit(replace(g, train=None), 3)
    with raises(ValueError, match="epochs=0"):
        model("sf").fit(g, 0)
    with raises(ValueError, match="no validation nodes"):
        model("sf").fit(replace(g, val=None), 3, patience=2)
    with raises(ValueError, match="allowed are 'sf' and 'sf_top2loss'"):
        model("ff_la").embed(g)
    for mode in MODES:
        with raises(RuntimeError, match="call fit"):
            model(mode).scores(g)
    with raises(RuntimeError, match="call fit"):
        model("ff_la").losses(g)
    with raises(RuntimeError, match="call fit"):
        model("sf").embed(g)
    with raises(ValueError, match="temperature=0: allowed"):
        model("sf", temperature=0)
    with raises(ValueError, match="check=0: allowed is 1"):
        model("sf").fit(g, 3, patience=2, check=0)
    with raises(ValueError, match="order='odd': allowed are 'all' and 'alternate'"):
        model("sf_top2loss", order="odd")
    with raises(ValueError, match="trains one layer after another"):
        model("sf", order="all")
    for k in (0, 4, "some"):
        with raises(ValueError, match=f"negatives={k!r}: allowed are 'all' and 1 to 3"):
            model("ff_la", negatives=k)
    with raises(ValueError, match="direction='both': allowed"):
        model("sf", direction="both")
    with raises(ValueError, match="patience=0: allowed are None and 1"):
        model("sf").fit(g, 3, patience=0)
    with raises(ValueError, match="takes 5 of torch.float32"):
        model("sf", (5, 4)).fit(g, 3)
    with raises(ValueError, match="8 features of torch.float64"):
        model("sf").fit(replace(g, x=g.x.double()), 3)
    none = g.y.clone()
    none[g.train.nonzero()[0]] = -1
    for mode, verb in (("ff_la", "appended"), ("sf", "linked")):
        with raises(ValueError, match=f"labels to be {verb} go from -1 to 3"):
            model(mode).fit(replace(g, y=none), 3)
    net = model("sf_top2input")
    net.prepare(g)
    with raises(ValueError, match="times=\\(0,\\): allowed"):
        net.scores(g, times=(0,))
    net = model("ff_la")
    net.prepare(g)
    with raises(ValueError, match="wrong labels were drawn for 160 nodes, the graph has 80"):
        net.losses(graph(20))


def test_errors_of_what_it_is_compared_with():
    g = graph()
    net = BackpropGNN([8, 6, C])
    for val in (None, g.val & False):
        with raises(ValueError, match="best=True: the graph has no validation nodes"):
            fit_backprop(net, replace(g, val=val), 3)
    with raises(ValueError, match="training nodes in the mask train"):
        fit_backprop(net, replace(g, y=None), 3)
    with raises(ValueError, match="epochs=0"):
        LocalHeads([8, 6], C).fit(g, 0)
    for mask in (None, g.test & False):
        with raises(ValueError, match="no nodes in the mask"):
            accuracy(g.y, replace(g, test=mask))
    with raises(ValueError, match="and no NaN"):
        auc(torch.tensor([float("nan")]), torch.zeros(3))
    with raises(ValueError, match="0 and 3 scores"):
        auc(torch.zeros(0), torch.zeros(3))
    for bad in ([], [8], [8, 0, C]):
        for make in (
            BackpropGNN,
            lambda w: LocalHeads(w, C),
            lambda w: ForwardLinks("sf", "gcn", w),
        ):
            with raises(ValueError, match=r"widths=.*: allowed are two or more numbers from 1"):
                make(bad)
    with raises(ValueError, match="conv='relational': allowed are 'gcn', 'sage', 'gat', 'none'"):
        BackpropGNN([8, 6, C], "relational")
    with raises(ValueError, match="feedback='fb': allowed are None, 'fa', 'dfa' and 'drtp'"):
        BackpropGNN([8, 6, C], feedback="fb")
    with raises(ValueError, match="feedback='dfa' with conv='gat': only 'gcn' and 'sage'"):
        BackpropGNN([8, 6, C], "gat", feedback="dfa")
    wide = replace(g, x=torch.zeros(g.n, 5))
    for act in (
        lambda: fit_backprop(net, wide, 3),
        lambda: net.predict(wide),
        lambda: LocalHeads([8, 6], C).fit(wide, 3),
        lambda: SignalPropagation([8, 6], C).fit(wide, 3),
        lambda: fit_pepita(net, wide, 3, child(0, "F")),
        lambda: ForwardLinks("sf", "gcn", [8, 4]).fit(split_links(wide, 0.2, child(0, "l")), 3),
        lambda: ForwardLinks("sf", "gcn", [8, 4]).scores(wide, g.edge_index),
    ):
        with raises(
            ValueError, match="graph.x has 5 features of torch.float32; the network takes 8"
        ):
            act()
    for act in (
        lambda: fit_backprop(BackpropGNN([8, 6, 2]), g, 3),
        lambda: LocalHeads([8, 6], 2).fit(g, 3),
        lambda: SignalPropagation([8, 6], 2).fit(g, 3),
    ):
        with raises(ValueError, match="go from 0 to 3; the network has classes 0 to 1"):
            act()
    with raises(ValueError, match="times=\\(\\): allowed"):
        ForwardLinks("sf_top2input", "gcn", [8, 4]).scores(g, g.edge_index, times=())
    with raises(ValueError, match="order='odd'"):
        ForwardLinks("sf_top2input", "gcn", [8, 4], order="odd")
    with raises(ValueError, match="none of the 160 nodes has a label"):
        _ = replace(g, y=torch.full_like(g.y, -1)).classes
    with raises(ValueError, match="epochs=0 with"):
        ForwardLinks("sf", "gcn", [8, 4]).fit(split_links(g, 0.2, child(0, "links")), 0)
    assert set(fg.__all__) <= set(dir(fg))


def test_errors_of_pooling_and_feedback():
    x = torch.zeros(3, 2)
    with raises(ValueError, match="batch is empty: give the number of graphs"):
        pool(x[:0], torch.zeros(0).long())
    assert pool(x[:0], torch.zeros(0).long(), graphs=2).shape == (2, 2)
    with raises(ValueError, match="batch goes from 0 to 2; graphs are 0 to 1"):
        pool(x, torch.arange(3), graphs=2)
    with raises(ValueError, match="batch has 2 entries for 3 nodes"):
        pool(x, torch.zeros(2).long())
    signal = Signal()
    layer = FeedbackLinear(2, 4, "drtp", signal, 5)
    x.requires_grad_()
    with raises(RuntimeError, match="signal.value is not set"):
        layer(x).sum().backward()
    signal.value = torch.zeros(3, 6)
    with raises(ValueError, match=r"signal.value has shape \(3, 6\); this layer wants \(3, 5\)"):
        layer(x).sum().backward()
    with raises(ValueError, match="n_in=0, n_out=4, k=None: allowed is 1 or more"):
        FeedbackLinear(0, 4)
