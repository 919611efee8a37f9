"""Link prediction without a backward pass across layers: edges and non-edges replace classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.core.data.graphs import Graph, both_ways
from lib.core.fitting import History, progress
from lib.core.meters import stopwatch
from lib.graphs.forward_gnn.local import Layer, bottom_up, single_forward, top_down
from lib.graphs.forward_gnn.model import CONVS, Conv, train_layer
from lib.models.graph_layers import GCN, SAGE


@dataclass(frozen=True)
class LinkSplit:
    """A graph that keeps the training edges only, and pairs to test on."""

    graph: Graph
    train: Int[Tensor, "2 m"]
    test: Int[Tensor, "2 k"]
    test_negative: Int[Tensor, "2 k"]


def split_links(graph: Graph, test: float, gen: torch.Generator) -> LinkSplit:
    """Hide a share ``test`` of the undirected edges, and draw as many pairs that are no edges.

    Raises:
        ValueError: ``test`` is not between 0 and 1, or hides no edge.
    """
    source, target = graph.edge_index
    once = graph.edge_index[:, source < target]
    hidden = round(test * once.shape[1])
    if not 0 < test < 1 or hidden == 0:
        raise ValueError(f"test={test}: allowed are shares between 0 and 1 that hide an edge")
    order = torch.randperm(once.shape[1], generator=gen).to(once.device)
    kept, left_out = once[:, order[hidden:]], once[:, order[:hidden]]
    smaller = replace(graph, edge_index=both_ways(kept[0], kept[1]), edge_attr=None)
    return LinkSplit(smaller, kept, left_out, non_edges(graph, hidden, gen))


def non_edges(graph: Graph, k: int, gen: torch.Generator) -> Int[Tensor, "2 k"]:
    """``k`` different pairs of nodes without an edge between them, smaller index first.

    Raises:
        ValueError: the graph has fewer such pairs.
    """
    n = graph.n
    linked = torch.zeros(n, n, dtype=torch.bool)
    linked[tuple(graph.edge_index.cpu())] = True
    i, j = torch.triu_indices(n, n, 1)
    free = (~linked[i, j]).nonzero()[:, 0]
    if not 0 <= k <= len(free):
        raise ValueError(f"k={k}: allowed is 0 to {len(free)}, the number of unlinked pairs")
    chosen = free[torch.randperm(len(free), generator=gen)[:k]]
    return torch.stack([i[chosen], j[chosen]]).to(graph.edge_index.device)


class ForwardLinks(nn.Module):
    """A graph network that scores pairs by ``<h_u, h_v>``, each layer with a loss of its own.

    Args:
        mode: ``"sf"`` trains layer after layer; ``"sf_top2loss"`` all at once, a layer's output
            averaged with the states above it; ``"bp"`` trains all layers through the last one's
            loss, for comparison.
        widths: length of the node features, then the width of each layer.
    """

    def __init__(
        self,
        mode: Literal["sf", "sf_top2loss", "bp"],
        conv: Conv = "gcn",
        widths: Sequence[int] = (),
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("sf", "sf_top2loss", "bp"):
            raise ValueError(f"mode={mode!r}: allowed are 'sf', 'sf_top2loss' and 'bp'")
        if conv not in CONVS or conv == "relational":
            raise ValueError(f"conv={conv!r}: allowed are 'gcn', 'sage', 'gat' and 'none'")
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: the features' length, then one per layer")
        if mode == "sf_top2loss" and len(set(widths[1:])) > 1:
            raise ValueError(f"widths={list(widths)}: 'sf_top2loss' averages layers of one width")
        self.mode, self.conv = mode, conv
        self.gen = gen if gen is not None else torch.Generator().manual_seed(0)
        pairs = zip(widths[:-1], widths[1:])
        self.layers = nn.ModuleList(Layer(CONVS[conv](a, b, gen=self.gen)) for a, b in pairs)

    def fit(self, split: LinkSplit, epochs: int, lr: float = 1e-2, clip: float = 1.0) -> History:
        """Cross-entropy of training edges against as many non-edges, which are drawn once.

        Raises:
            ValueError: ``epochs`` below 1, or a split without training edges.
        """
        if epochs < 1 or split.train.shape[1] == 0:
            raise ValueError(
                f"epochs={epochs} with {split.train.shape[1]} edges: allowed are 1 or more of both"
            )
        graph, history = split.graph, History()
        x, edges = graph.x, self._edges(graph)
        objective = link_loss(split.train, non_edges(graph, split.train.shape[1], self.gen))
        with stopwatch() as watch:
            if self.mode == "sf":
                for l, (layer, loss) in enumerate(single_forward(self.layers, x, edges, objective)):
                    adam = torch.optim.Adam(layer.parameters(), lr=lr, fused=True)
                    train_layer(layer, loss, adam, epochs, l + 1, history)
            elif self.mode == "bp":
                adam = torch.optim.Adam(self.parameters(), lr=lr, fused=True)
                loss = lambda: objective(self(x, edges))
                train_layer(self, loss, adam, epochs, len(self.layers), history)
            else:
                self._fit_top_down(x, edges, objective, epochs, lr, clip)
        history.seconds = watch.seconds
        return history

    def _fit_top_down(self, x, edges, objective, epochs, lr, clip) -> None:
        optimizers = [torch.optim.Adam(l.parameters(), lr=lr, fused=True) for l in self.layers]
        with torch.no_grad():
            states = bottom_up(self.layers, x, edges)
        for _ in progress(range(epochs), "training"):
            new = [x]
            steps = top_down(self.layers, states, edges, objective, "loss")
            for (layer, step), adam in zip(steps, optimizers, strict=True):
                loss, h = step()
                adam.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(layer.parameters(), clip)
                adam.step()
                new.append(h.detach())
            states = new

    def forward(self, x: Tensor, edges: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, edges)
        return x

    @torch.no_grad()
    def scores(self, graph: Graph, pairs: Int[Tensor, "2 k"]) -> Float[Tensor, "l k"]:
        """Each layer's probability of a link; for "bp" the last layer's alone."""
        states = bottom_up(self.layers, graph.x, self._edges(graph))[1:]
        states = states[-1:] if self.mode == "bp" else states
        return torch.stack([inner(h, pairs).sigmoid() for h in states])

    def _edges(self, graph: Graph) -> Any:
        known = {"gcn": GCN, "sage": SAGE}
        if self.conv in known:
            return known[self.conv].matrix(graph.edge_index, graph.n, dtype=graph.x.dtype)
        return graph.edge_index


def inner(h: Float[Tensor, "n d"], pairs: Int[Tensor, "2 k"]) -> Float[Tensor, "k"]:
    """``<h_u, h_v>`` of every pair."""
    return (h.index_select(0, pairs[0]) * h.index_select(0, pairs[1])).sum(-1)


def link_loss(positive: Int[Tensor, "2 m"], negative: Int[Tensor, "2 k"]):
    """Cross-entropy of ``sigmoid(<h_u, h_v>)``: edges should score high, non-edges low."""

    def objective(h: Tensor) -> Tensor:
        up, down = inner(h, positive), inner(h, negative)
        return F.softplus(-up).mean() + F.softplus(down).mean()

    return objective


def auc(positive: Float[Tensor, "a"], negative: Float[Tensor, "b"]) -> float:
    """Chance that a positive scores above a negative, ties for one half.

    Raises:
        ValueError: one of them is empty, or holds a NaN.
    """
    if not len(positive) or not len(negative) or (positive.isnan().any() | negative.isnan().any()):
        raise ValueError(f"{len(positive)} and {len(negative)} scores: some of both, and no NaN")
    above = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
    return above.mean().item()
