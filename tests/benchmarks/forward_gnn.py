"""Graph layers and training steps beside PyTorch Geometric, and SF beside backpropagation.

``python -m tests.benchmarks.forward_gnn``; ratios above 1 mean that the peer takes longer. The same
weights and the same graph on both sides, forward and backward, on one thread of the CPU or on the
GPU where there is one. PyTorch Geometric gets its edges as pairs, as most programs give them, and
once more with its normalization cached.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lib.core.data.graphs import sbm, split_nodes
from lib.core.seeds import child, pick_device
from lib.graphs.forward_gnn import BackpropGNN, ForwardGNN, fit_backprop
from lib.models.graph_layers import GAT, GCN, SAGE, GATv2
from tests.benchmarks._timing import compare


def layers(device, nodes: int, width: int) -> list[dict]:
    from torch_geometric import nn as gnn

    g = sbm([nodes // 4] * 4, 8, 0.8, width, child(0, "bench")).to(device)
    rows = []
    for name, ours, theirs, edges in (
        ("GCN", GCN, lambda: gnn.GCNConv(width, width), None),
        ("GCN", GCN, lambda: gnn.GCNConv(width, width, cached=True), None),
        ("SAGE", SAGE, lambda: gnn.SAGEConv(width, width), None),
        ("GAT", GAT, lambda: gnn.GATConv(width, width), g.edge_index),
        ("GATv2", GATv2, lambda: gnn.GATv2Conv(width, width), g.edge_index),
    ):
        conv, peer = ours(width, width).to(device), theirs().to(device)
        _copy(conv, peer)
        edges = conv.matrix(g.edge_index, g.n) if edges is None else edges
        x = g.x.clone().requires_grad_()

        def run(module, e, x=x):
            (grad,) = torch.autograd.grad(module(x, e).square().sum(), x)
            return grad

        label = "cached " if getattr(peer, "cached", False) else ""
        rows.append(
            compare(
                f"{name} forward and backward, {nodes:,} nodes, width {width}, {device.type}",
                f"PyG {label}{type(peer).__name__}",
                lambda c=conv, e=edges: run(c, e),
                lambda p=peer: run(p, g.edge_index),
                1e-4,
            )
        )
    return rows


def _copy(conv, peer) -> None:
    if isinstance(conv, GCN):
        peer.lin.weight.data, peer.bias.data = conv.linear.weight.data, conv.linear.bias.data
    elif isinstance(conv, SAGE):
        f = conv.linear.weight.shape[1] // 2
        peer.lin_r.weight.data = conv.linear.weight.data[:, :f].contiguous()
        peer.lin_l.weight.data = conv.linear.weight.data[:, f:].contiguous()
        peer.lin_l.bias.data = conv.linear.bias.data
    elif isinstance(conv, GAT):
        peer.lin.weight.data = conv.linear.weight.data
        peer.att_src.data, peer.att_dst.data = conv.source.data[None], conv.target.data[None]
    else:
        for a, b in ((peer.lin_l, conv.source), (peer.lin_r, conv.target)):
            a.weight.data, a.bias.data = b.weight.data, b.bias.data
        peer.att.data = conv.score.data[None]


def training(device, nodes: int, width: int, epochs: int = 20) -> list[dict]:
    """Twenty epochs of a two-layer GCN: our backpropagation and SF against the peer's GCNConv."""
    from torch_geometric import nn as gnn

    g = sbm([nodes // 4] * 4, 8, 0.8, width, child(0, "bench"))
    g = split_nodes(g, 0.4, 0.2, child(0, "split")).to(device)
    convs = [gnn.GCNConv(a, b, cached=True) for a, b in ((width, width), (width, 4))]
    peer = torch.nn.ModuleList(convs).to(device)

    def theirs():
        adam = torch.optim.Adam(peer.parameters(), lr=1e-2, fused=True)
        for _ in range(epochs):
            adam.zero_grad()
            h = peer[1](peer[0](g.x, g.edge_index).relu(), g.edge_index)
            F.cross_entropy(h[g.train], g.y[g.train]).backward()
            adam.step()

    def backprop():
        net = BackpropGNN([width, width, 4]).to(device)
        fit_backprop(net, g, epochs, best=False)

    def single_forward():
        ForwardGNN("sf", "gcn", [width, width, width], 4).to(device).fit(g, epochs, 1e-2)

    name = f"{epochs} epochs, {nodes:,} nodes, width {width}, {device.type}"
    return [
        compare(f"backpropagation, {name}", "PyG GCNConv cached", backprop, theirs, None),
        compare(f"SF, both layers, {name}", "PyG backpropagation", single_forward, theirs, None),
    ]


def main() -> list[dict]:
    try:
        import torch_geometric  # noqa: F401
    except ImportError:
        print("pip install torch_geometric")
        return []
    device = pick_device("auto")
    if device.type == "cpu":
        torch.set_num_threads(1)
    nodes = 4_000 if device.type == "cuda" else 2_000
    return layers(device, nodes, 64) + training(device, nodes, 64)


if __name__ == "__main__":
    for row in main():
        print(
            f"{row['name']:<62} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<22}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}"
        )
