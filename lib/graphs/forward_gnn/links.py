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
from lib.graphs.forward_gnn.convs import (
    CONVS,
    Conv,
    check_conv,
    check_features,
    check_widths,
    heads,
)
from lib.graphs.forward_gnn.local import Layer, bottom_up, single_forward, time_step, top_down
from lib.graphs.forward_gnn.training import train_layer, train_step
from lib.models.feedback import goodness
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


LINK_MODES = ("sf", "ff", "sf_top2loss", "sf_top2input", "bp")


class ForwardLinks(nn.Module):
    """A graph network that scores pairs by ``<h_u, h_v>``, each layer with a loss of its own.

    Modes:
        ``"sf"``: layer after layer.
        ``"ff"``: layer after layer, by the goodness of the product ``h_u * h_v``, entry by entry.
        ``"sf_top2input"``: all at once, each layer gets the state above beside the one below; the
            last layer has none above. (The authors' top-down variant for links.)
        ``"sf_top2loss"``: all at once, a layer's output averaged with the states above it.
        ``"bp"``: all layers through the last one's loss, for comparison.

    Args:
        mode: one of the five.
        conv: ``"gcn"``, ``"sage"``, ``"gat"`` or ``"none"``.
        widths: length of the node features, then the width of each layer.
        theta: threshold of the goodness, which sums the squares ("ff").
        order: of the updates at a time step, as in ``ForwardGNN``.

    Raises:
        ValueError: an unknown mode, conv or order, too few widths, unequal ones with "sf_top2loss".
    """

    def __init__(
        self,
        mode: Literal["sf", "ff", "sf_top2loss", "sf_top2input", "bp"],
        conv: Conv = "gcn",
        widths: Sequence[int] = (),
        *,
        theta: float = 2.0,
        order: Literal["all", "alternate"] | None = None,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mode not in LINK_MODES:
            raise ValueError(f"mode={mode!r}: allowed are {', '.join(map(repr, LINK_MODES))}")
        check_conv(conv)
        check_widths(widths)
        if order not in (None, "all", "alternate"):
            raise ValueError(f"order={order!r}: allowed are 'all' and 'alternate'")
        if mode == "sf_top2loss" and len(set(widths[1:])) > 1:
            raise ValueError(f"widths={list(widths)}: 'sf_top2loss' averages layers of one width")
        self.mode, self.conv, self.features, self.theta = mode, conv, widths[0], theta
        self.order = order or ("alternate" if mode == "sf_top2input" else "all")
        self.gen = gen if gen is not None else torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList()
        for a, b, above in zip(widths[:-1], widths[1:], [*widths[2:], 0], strict=True):
            extra = above if mode == "sf_top2input" else 0
            more = {"heads": heads(b)} if conv == "gat" else {}
            self.layers.append(Layer(CONVS[conv](a + extra, b, gen=self.gen, **more), above=extra))

    def fit(
        self,
        split: LinkSplit,
        epochs: int,
        lr: float = 1e-3,
        weight_decay: float | None = None,
        clip: float = 1.0,
    ) -> History:
        """Cross-entropy of training edges against as many non-edges, which are drawn once.

        Args:
            weight_decay: by default 5e-4, and 0 for "sf_top2input", as in the authors' program.
            clip: "sf_top2loss": largest norm of a layer's gradient.

        Raises:
            ValueError: ``epochs`` below 1, a split without training edges, or features that are
                not the network's.
        """
        if epochs < 1 or split.train.shape[1] == 0:
            raise ValueError(
                f"epochs={epochs} with {split.train.shape[1]} edges: allowed are 1 or more of both"
            )
        if weight_decay is None:
            weight_decay = 0.0 if self.mode == "sf_top2input" else 5e-4
        graph, history = split.graph, History()
        x, edges = graph.x, self._edges(graph)
        theta = self.theta if self.mode == "ff" else None
        others = non_edges(graph, split.train.shape[1], self.gen)
        objective = link_loss(split.train, others, theta)
        adam = lambda m: torch.optim.Adam(
            m.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )
        with stopwatch() as watch:
            if self.mode in ("sf", "ff"):
                for l, (layer, loss) in enumerate(single_forward(self.layers, x, edges, objective)):
                    train_layer(layer, loss, adam(layer), epochs, l + 1, history)
            elif self.mode == "bp":
                loss = lambda: objective(self(x, edges))
                train_layer(self, loss, adam(self), epochs, len(self.layers), history)
            else:
                signal, top = self.mode.removeprefix("sf_top2"), self._top(x)
                clip = clip if signal == "loss" else None
                steps = lambda s: top_down(self.layers, s, edges, objective, signal, top)
                optimizers = [adam(layer) for layer in self.layers]
                with torch.no_grad():
                    states = bottom_up(self.layers, x, edges, top)
                for _ in progress(range(epochs), "training"):
                    states, _ = train_step(steps, states, optimizers, self.order, clip)
        history.seconds = watch.seconds
        return history

    def _top(self, x: Tensor) -> Tensor | None:
        """What stands above the last layer: nothing, as columns."""
        return x[:, :0] if self.mode == "sf_top2input" else None

    def forward(self, x: Tensor, edges: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, edges)
        return x

    @torch.no_grad()
    def scores(
        self, graph: Graph, pairs: Int[Tensor, "2 k"], times: Sequence[int] = range(3, 11)
    ) -> Float[Tensor, "l k"]:
        """Each layer's probability of a link; for "bp" the last layer's alone.

        Args:
            times: "sf_top2input": time steps after the first pass whose probabilities are averaged.

        Raises:
            ValueError: features that are not the network's, or ``times`` empty or below 1.
        """
        if len(times) == 0 or min(times) < 1:
            raise ValueError(f"times={tuple(times)}: allowed are one or more steps, from 1")
        edges, top = self._edges(graph), self._top(graph.x)
        states = bottom_up(self.layers, graph.x, edges, top)
        if self.mode == "ff":
            size = [goodness(product(h, pairs), total=True) for h in states[1:]]
            return torch.stack([(g - self.theta).sigmoid() for g in size])
        if self.mode != "sf_top2input":
            states = states[-1:] if self.mode == "bp" else states[1:]
            return torch.stack([inner(h, pairs).sigmoid() for h in states])
        found = []
        for time in range(1, max(times) + 1):
            states = time_step(self.layers, states, edges, top, self.order)
            if time in times:
                found.append(torch.stack([inner(h, pairs).sigmoid() for h in states[1:]]))
        return torch.stack(found).mean(0)

    def _edges(self, graph: Graph) -> Any:
        check_features(graph, self.features, next(self.parameters()).dtype)
        known = {"gcn": GCN, "sage": SAGE}
        if self.conv in known:
            return known[self.conv].matrix(graph.edge_index, graph.n, dtype=graph.x.dtype)
        return graph.edge_index


def product(h: Float[Tensor, "n d"], pairs: Int[Tensor, "2 k"]) -> Float[Tensor, "k d"]:
    """``h_u * h_v`` of every pair, entry by entry."""
    return h.index_select(0, pairs[0]) * h.index_select(0, pairs[1])


def inner(h: Float[Tensor, "n d"], pairs: Int[Tensor, "2 k"]) -> Float[Tensor, "k"]:
    """``<h_u, h_v>`` of every pair."""
    return product(h, pairs).sum(-1)


def link_loss(
    positive: Int[Tensor, "2 m"], negative: Int[Tensor, "2 k"], theta: float | None = None
):
    """Cross-entropy of ``sigmoid(<h_u, h_v>)``: edges should score high, non-edges low.

    With ``theta`` it is the forward-forward loss on the goodness of ``h_u * h_v``, summed.
    """

    def objective(h: Tensor) -> Tensor:
        if theta is not None:
            up, down = (goodness(product(h, p), total=True) for p in (positive, negative))
            return F.softplus(theta - up).mean() + F.softplus(down - theta).mean()
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
