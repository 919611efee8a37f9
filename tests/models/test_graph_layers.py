"""Graph layers: dense formulas, relabeling the nodes, closed forms on regular graphs."""

import math

import pytest
import torch
import torch.nn.functional as F

from lib.core.data.graphs import erdos_renyi, lattice, ring
from lib.core.seeds import child
from lib.models.graph_layers import (
    GAT,
    GCN,
    GIN,
    SAGE,
    GATv2,
    Relational,
    normalized,
    pool,
    segment_softmax,
    with_loops,
)
from tests.helpers import assert_close, raises


def graph(n=30, f=5, directed=False):
    edges = erdos_renyi(n, 4, child(0, "edges"))
    if directed:
        edges = edges[:, torch.rand(edges.shape[1], generator=child(0, "half")) < 0.5]
    return torch.randn(n, f, generator=child(0, "x"), dtype=torch.float64), edges


def dense(edges, n):
    A = torch.zeros(n, n, dtype=torch.float64)
    A[edges[1], edges[0]] = 1  # rows are targets
    return A


LAYERS = {
    "gcn": lambda g: GCN(5, 6, gen=g),
    "sage": lambda g: SAGE(5, 6, gen=g),
    "gat": lambda g: GAT(5, 6, heads=2, gen=g),
    "gatv2": lambda g: GATv2(5, 6, heads=3, gen=g),
    "gin": lambda g: GIN(5, 6, gen=g),
}


@pytest.mark.parametrize("r", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("loops", [True, False])
def test_normalized_is_its_formula(r, loops):
    _, edges = graph(directed=True)
    A = dense(edges, 30) + loops * torch.eye(30, dtype=torch.float64)
    d = A.sum(1)
    power = lambda p: torch.where(d > 0, d**p, float(p == 0))
    expected = power(r - 1)[:, None] * A * power(-r)
    got = normalized(edges, 30, r, loops, torch.ones(edges.shape[1], dtype=torch.float64))
    assert_close(got.to_dense(), expected, 1e-14)


def test_normalized_row_sums_and_weights():
    edges = lattice(5, 5, periodic=True)
    for r in (0.0, 0.5, 1.0):  # on a regular graph all three are the same mean
        assert_close(normalized(edges, 25, r).to_dense().sum(1), torch.ones(25), 1e-6)
    w = torch.rand(edges.shape[1], generator=child(0, "w"), dtype=torch.float64)
    rows = normalized(edges, 25, 0.0, False, w).to_dense().sum(1)
    assert_close(rows, torch.ones(25, dtype=torch.float64), 1e-14)


def test_gcn_on_a_ring_is_a_circulant():
    # (x_{i-1} + x_i + x_{i+1}) / 3: a wave of k periods is multiplied by (1 + 2 cos(2 pi k/n)) / 3.
    n, k = 12, 2
    phase = 2 * math.pi * k * torch.arange(n, dtype=torch.float64) / n
    x = torch.stack([phase.cos(), phase.sin()], 1)
    conv = GCN(2, 2).double()
    conv.linear.weight.data = torch.eye(2, dtype=torch.float64)
    assert_close(conv(x, ring(n)), x * (1 + 2 * math.cos(2 * math.pi * k / n)) / 3, 1e-13)


def test_edges_and_their_matrix_give_the_same():
    x, edges = graph(directed=True)
    for conv in (GCN(5, 6).double(), SAGE(5, 6).double()):
        matrix = conv.matrix(edges, 30).to(torch.float64)
        assert_close(conv(x, edges), conv(x, matrix), 1e-6)
        assert_close(conv.linear(conv.aggregate(x, matrix)), conv(x, matrix), 0)
    x.requires_grad_()
    GCN(5, 6).double()(x, edges).square().sum().backward()
    assert x.grad.norm() > 0


def test_sage_is_oneself_and_the_mean():
    x, edges = graph(directed=True)
    conv = SAGE(5, 6).double()
    A = dense(edges, 30)
    mean = A @ x / A.sum(1, keepdim=True).clamp_min(1)
    W = conv.linear.weight
    assert_close(conv(x, edges), x @ W[:, :5].T + mean @ W[:, 5:].T, 1e-14)


@pytest.mark.parametrize("version", [1, 2])
def test_attention_is_its_dense_formula(version):
    x, edges = graph(directed=True)
    A = dense(with_loops(edges, 30), 30)
    if version == 1:
        conv = GAT(5, 6, heads=2).double()
        h = conv.linear(x).view(30, 2, 3)
        score = F.leaky_relu(
            (h * conv.target).sum(-1)[:, None] + (h * conv.source).sum(-1)[None], 0.2
        )
    else:
        conv = GATv2(5, 6, heads=2).double()
        h, t = conv.source(x).view(30, 2, 3), conv.target(x).view(30, 2, 3)
        score = (F.leaky_relu(t[:, None] + h[None], 0.2) * conv.score).sum(-1)
    share = score.masked_fill(A[..., None] == 0, -torch.inf).softmax(1)  # target, source, head
    assert_close(conv(x, edges), torch.einsum("tsh,shd->thd", share, h).flatten(1), 1e-12)


def test_gat_ranks_alike_everywhere_and_gatv2_does_not():
    # Static attention: with all pairs linked, every target prefers the same source.
    n = 12
    i, j = (k.flatten() for k in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    x = torch.randn(n, 4, generator=child(0, "rank"), dtype=torch.float64)
    gat, v2 = GAT(4, 4, loops=False, gen=child(0, 1)), GATv2(4, 4, loops=False, gen=child(0, 2))
    for conv, same in ((gat.double(), True), (v2.double(), False)):
        (jac,) = torch.autograd.functional.jacobian(
            lambda v, conv=conv: _shares(conv, v, torch.stack([i, j])), (x,)
        )
        assert jac.isfinite().all()
        best = _shares(conv, x, torch.stack([i, j])).view(n, n).argmax(0)
        assert (best == best[0]).all() == same


def _shares(conv, x, edges):
    s, t = edges
    if isinstance(conv, GAT):
        h = conv.linear(x)
        score = (h * conv.source).sum(-1)[s] + (h * conv.target).sum(-1)[t]
        score = F.leaky_relu(score, 0.2)
    else:
        pair = conv.source(x)[s] + conv.target(x)[t]
        score = (F.leaky_relu(pair, 0.2) * conv.score).sum(-1)
    return segment_softmax(score, t, len(x))


def test_gin_tells_multisets_apart_that_a_mean_cannot():
    # Two equal leaves or three: the mean over neighbors is the same, the sum is not.
    x = torch.ones(7, 1, dtype=torch.float64)
    edges = torch.tensor([[1, 2, 4, 5, 6], [0, 0, 3, 3, 3]])
    conv = GIN(1, 4, gen=child(0, "gin")).double()
    conv.mlp[0].weight.data.abs_()
    out = conv(x, edges)
    assert (out[0] - out[3]).norm() > 1e-3
    mean = SAGE(1, 4).double()(x, edges)
    assert_close(mean[0], mean[3], 1e-14)
    assert_close(out[0], conv.mlp(torch.tensor([3.0], dtype=torch.float64)), 1e-14)


@pytest.mark.parametrize("name", LAYERS)
def test_relabeling_the_nodes_relabels_the_output(name):
    x, edges = graph(directed=True)
    conv = LAYERS[name](child(0, name)).double()
    order = torch.randperm(30, generator=child(0, "order"))
    place = order.argsort()  # node order[i] becomes i
    assert_close(conv(x[order], place[edges]), conv(x, edges)[order], 1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_same_generator_same_layer_and_gradients(name):
    x, edges = graph()
    a, b = (LAYERS[name](child(3, "init")).double() for _ in range(2))
    assert_close(a(x, edges), b(x, edges), 0)
    a(x, edges).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in a.parameters())


def test_nodes_without_neighbors():
    x = torch.randn(3, 5, dtype=torch.float64)
    none = torch.zeros(2, 0, dtype=torch.int64)
    for make in LAYERS.values():
        assert make(child(0, "alone")).double()(x, none).isfinite().all()
    # A GCN without edges is the linear layer; GATv2 without loops gives the bias.
    conv = GCN(5, 6).double()
    assert_close(conv(x, none), conv.linear(x), 1e-14)
    assert GATv2(5, 6, loops=False).double()(x, none).abs().max() == 0


def test_edge_features_and_bipartite_graphs():
    x, edges = graph()
    e = torch.randn(edges.shape[1], 2, dtype=torch.float64, generator=child(0, "e"))
    for conv in (GATv2(5, 6, edge_dim=2).double(), GIN(5, 6, edge_dim=2).double()):
        a, b = conv(x, edges, e), conv(x, edges, -e)
        assert a.shape == (30, 6) and (a - b).norm() > 1e-3
        order = torch.randperm(edges.shape[1], generator=child(0, "p"))
        assert_close(conv(x, edges[:, order], e[order]), a, 1e-12)
    sources, targets = x[:20], x[20:]
    pairs = torch.stack([torch.arange(20), torch.arange(20) % 10])
    conv = GATv2(5, 6, loops=False).double()
    whole = conv(x, torch.stack([pairs[0], pairs[1] + 20]))
    assert_close(conv((sources, targets), pairs), whole[20:], 1e-12)


def test_relational_is_the_sum_over_types():
    x, edges = graph()
    kind = torch.randint(3, (edges.shape[1],), generator=child(0, "kind"))
    conv = Relational(lambda: GATv2(5, 6, loops=False), 3).double()
    parts = [c(x, edges[:, kind == k]) for k, c in enumerate(conv.convs)]
    assert_close(conv(x, edges, edge_type=kind), sum(parts), 1e-13)
    one = Relational(lambda: GCN(5, 6), 1).double()
    zeros = torch.zeros_like(kind)
    assert_close(one(x, edges, edge_type=zeros), one.convs[0](x, edges), 0)


def test_segment_softmax_and_pool():
    score = torch.tensor([1.0, 2.0, 500.0, 501.0, -3.0], dtype=torch.float64)
    index = torch.tensor([0, 0, 2, 2, 3])
    got = segment_softmax(score, index, 4)
    pair = torch.tensor([1.0, 2.0], dtype=torch.float64).softmax(0)
    assert_close(got, torch.cat([pair, pair, torch.ones(1, dtype=torch.float64)]), 1e-12)
    assert torch.autograd.gradcheck(
        lambda s: segment_softmax(s, index, 4), score.clone().requires_grad_()
    )
    x = torch.tensor([[-6.0, -5], [-4, -3], [-2, -1], [0, 1], [2, 3]])
    assert pool(x, index, "sum").tolist() == [[-10, -8], [0, 0], [-2, 0], [2, 3]]
    assert pool(x, index, "mean").tolist() == [[-5, -4], [0, 0], [-1, 0], [2, 3]]
    assert pool(x, index, "max").tolist() == [[-4, -3], [0, 0], [0, 1], [2, 3]]


def test_errors():
    x, edges = graph()
    with raises(ValueError, match="r=2: allowed is 0 to 1"):
        normalized(edges, 30, 2)
    with raises(ValueError, match="heads=4: n_out=6 must be a multiple"):
        GAT(5, 6, heads=4)
    with raises(ValueError, match="made for edge_attr"):
        GATv2(5, 6, edge_dim=2).double()(x, edges)
    with raises(ValueError, match="made for no edge_attr"):
        GIN(5, 6).double()(x, edges, x[edges[0]])
    with raises(ValueError, match="this layer knows 0 to 1"):
        kinds = torch.full((edges.shape[1],), 2)
        Relational(lambda: GCN(5, 6), 2).double()(x, edges, edge_type=kinds)
    with raises(ValueError, match="allowed are 'mean', 'sum' and 'max'"):
        pool(x, torch.zeros(30).long(), "min")


def test_gradients_through_the_matrix_and_through_edge_weights():
    x, edges = graph(n=8, directed=True)
    w = torch.rand(edges.shape[1], generator=child(0, "w"), dtype=torch.float64) + 0.5
    for conv in (GCN(5, 6).double(), SAGE(5, 6).double()):
        matrix = conv.matrix(edges, 8, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda z, c=conv, m=matrix: c(z, m), x.requires_grad_())
        assert torch.autograd.gradgradcheck(
            lambda z, c=conv, m=matrix: c(z, m).square(), x.requires_grad_()
        )
        assert torch.autograd.gradcheck(
            lambda v, c=conv: c(x.detach(), edges, v), w.clone().requires_grad_()
        )
