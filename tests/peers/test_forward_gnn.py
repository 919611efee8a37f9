"""The same layers, the same normalization and the same split as PyTorch Geometric."""

import os

import pytest
import torch
import torch.nn.functional as F

from lib.core.data.graphs import erdos_renyi, sbm, split_nodes
from lib.core.seeds import child
from lib.graphs.forward_gnn import BackpropGNN, ForwardGNN, auc, fit_backprop
from lib.models.graph_layers import (
    GAT,
    GCN,
    GIN,
    SAGE,
    GATv2,
    normalized,
    pool,
    segment_softmax,
)
from tests.helpers import assert_close

pyg = pytest.importorskip("torch_geometric", reason="pip install torch_geometric")
from torch_geometric import nn as gnn  # noqa: E402


@pytest.fixture
def graph():
    edges = erdos_renyi(40, 5, child(0, "edges"))
    edges = edges[:, torch.rand(edges.shape[1], generator=child(0, "some")) < 0.7]  # directed
    return torch.randn(40, 6, generator=child(0, "x"), dtype=torch.float64), edges


def same(ours, theirs, x, edges, *more, tol=1e-6):
    a, b = (x.clone().requires_grad_() for _ in range(2))
    left, right = ours(a, edges, *more), theirs(b, edges, *more)
    assert_close(left, right, tol)
    weights = torch.randn(left.shape, generator=child(0, "w"), dtype=left.dtype)
    ((left + right) * weights).sum().backward()
    assert_close(a.grad, b.grad, tol)


def test_gcn(graph):
    ours, theirs = GCN(6, 8).double(), gnn.GCNConv(6, 8).double()
    theirs.lin.weight.data, theirs.bias.data = ours.linear.weight.data, ours.linear.bias.data
    same(ours, theirs, *graph)
    weight = torch.rand(graph[1].shape[1], generator=child(0, "ew"), dtype=torch.float64)
    same(ours, theirs, *graph, weight)


def test_gcn_matrix_is_gcn_norm(graph):
    x, edges = graph
    index, weight = gnn.conv.gcn_conv.gcn_norm(edges, num_nodes=40, dtype=torch.float64)
    dense = torch.zeros(40, 40, dtype=torch.float64)
    dense[index[1], index[0]] = weight
    assert_close(normalized(edges, 40, dtype=torch.float64).to_dense(), dense, 1e-12)


def test_sage(graph):
    ours, theirs = SAGE(6, 8).double(), gnn.SAGEConv(6, 8).double()
    theirs.lin_r.weight.data = ours.linear.weight.data[:, :6]
    theirs.lin_l.weight.data = ours.linear.weight.data[:, 6:]
    theirs.lin_l.bias.data = ours.linear.bias.data
    same(ours, theirs, *graph)


def test_gat(graph):
    ours = GAT(6, 8, heads=2).double()
    theirs = gnn.GATConv(6, 4, heads=2).double()
    theirs.lin.weight.data = ours.linear.weight.data
    theirs.att_src.data, theirs.att_dst.data = ours.source.data[None], ours.target.data[None]
    same(ours, theirs, *graph)


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_gatv2(graph, edge_dim):
    x, edges = graph
    ours = GATv2(6, 8, heads=2, edge_dim=edge_dim).double()
    theirs = gnn.GATv2Conv(6, 4, heads=2, edge_dim=edge_dim).double()
    for a, b in ((theirs.lin_l, ours.source), (theirs.lin_r, ours.target)):
        a.weight.data, a.bias.data = b.weight.data, b.bias.data
    theirs.att.data = ours.score.data[None]
    more = ()
    if edge_dim:
        theirs.lin_edge.weight.data = ours.edge.weight.data
        more = (torch.randn(edges.shape[1], 3, generator=child(0, "e"), dtype=torch.float64),)
    # The peer's loops take the mean of the incoming edge features, as ours do.
    same(ours, theirs, x, edges, *more)


def test_gin(graph):
    x, edges = graph
    ours = GIN(6, 8).double()
    theirs = gnn.GINConv(ours.mlp, train_eps=True).double()
    same(ours, theirs, x, edges)
    ours = GIN(6, 8, edge_dim=3).double()
    theirs = gnn.GINEConv(ours.mlp, edge_dim=3).double()
    theirs.lin.weight.data, theirs.lin.bias.data = ours.edge.weight.data, ours.edge.bias.data
    e = torch.randn(edges.shape[1], 3, generator=child(0, "e"), dtype=torch.float64)
    same(ours, theirs, x, edges, e)


def test_softmax_and_pooling(graph):
    x, edges = graph
    score = torch.randn(edges.shape[1], 2, generator=child(0, "s"), dtype=torch.float64)
    theirs = pyg.utils.softmax(score, edges[1], num_nodes=40)
    assert_close(segment_softmax(score, edges[1], 40), theirs, 1e-12)
    batch = torch.arange(40) // 7
    peers = {
        "mean": gnn.global_mean_pool, "sum": gnn.global_add_pool, "max": gnn.global_max_pool,
    }  # fmt: skip
    for how, peer in peers.items():
        assert_close(pool(x, batch, how), peer(x, batch), 1e-12, how)


class Peer(torch.nn.Module):
    def __init__(self, ours):
        super().__init__()
        sizes = [(layer.linear.in_features, layer.linear.out_features) for layer in ours.layers]
        self.layers = torch.nn.ModuleList(gnn.GCNConv(a, b) for a, b in sizes)
        for a, b in zip(self.layers, ours.layers, strict=True):
            a.lin.weight.data = b.linear.weight.data.clone()
            a.bias.data = b.linear.bias.data.clone()

    def forward(self, x, edges):
        for layer in self.layers[:-1]:
            x = layer(x, edges).relu()
        return self.layers[-1](x, edges)


def test_backpropagation_for_ten_steps():
    g = split_nodes(sbm([30] * 3, 5, 0.8, 6, child(0, "g")), 0.4, 0.2, child(0, "s"))
    ours = BackpropGNN([6, 12, 3], gen=child(0, "net"))
    theirs = Peer(ours)
    fit_backprop(ours, g, 10, best=False)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, weight_decay=5e-4)
    for _ in range(10):
        adam.zero_grad()
        F.cross_entropy(theirs(g.x, g.edge_index)[g.train], g.y[g.train]).backward()
        adam.step()
    assert_close(ours(g.x, ours.edges(g)), theirs(g.x, g.edge_index), 1e-3)


def test_a_single_forward_layer_from_the_peer_s_convolution():
    g = split_nodes(sbm([30] * 3, 5, 0.8, 6, child(0, "g")), 0.4, 0.2, child(0, "s"))
    net = ForwardGNN("sf", "gcn", [6, 12, 12], 3, gen=child(0, "net"))
    net.prepare(g)
    linked = net.augmenter(g.y, g.train)
    h, total = linked.x, 0.0
    for layer in net.layers:
        conv = gnn.GCNConv(*layer.conv.linear.weight.shape[::-1])
        conv.lin.weight.data = layer.conv.linear.weight.data
        conv.bias.data = layer.conv.linear.bias.data
        h = conv(F.normalize(h, dim=1), linked.edge_index).relu()
        total = total + (h[: g.n] @ h[g.n :].T).softmax(1)
    assert_close(net.scores(g).sum(0), total.detach(), 1e-5)


def test_auc_is_scikit_learn_s():
    from sklearn.metrics import roc_auc_score

    gen = child(0, "auc")
    a, b = (torch.randint(5, (30,), generator=gen).float() + shift for shift in (1, 0))
    wanted = roc_auc_score([1] * 30 + [0] * 30, torch.cat([a, b]).numpy())
    assert abs(auc(a, b) - wanted) < 1e-12


def test_planetoid_is_the_peer_s(tmp_path):
    folder = os.environ.get("BOOK_DATA", "")
    source = os.path.join(folder, "planetoid")
    if not os.path.exists(os.path.join(source, "ind.cora.graph")):
        pytest.skip("set BOOK_DATA to a folder that holds planetoid/ind.cora.*")
    from torch_geometric.io import read_planetoid_data

    from lib.core.data.graphs import planetoid

    theirs, ours = read_planetoid_data(source, "cora"), planetoid("cora")
    assert torch.equal(theirs.x, ours.x) and torch.equal(theirs.y, ours.y)
    assert torch.equal(theirs.train_mask, ours.train) and torch.equal(theirs.test_mask, ours.test)
    assert torch.equal(torch.unique(theirs.edge_index, dim=1), ours.edge_index)
