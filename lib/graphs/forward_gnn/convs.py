"""The convolutions that a layer may have, by name, and checks of what a network is built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lib.core.data.graphs import Graph
from lib.models.graph_layers import GAT, GCN, SAGE, Relational, glorot, propagate

Conv = Literal["gcn", "sage", "gat", "relational", "none"]


class NoGraph(nn.Module):
    """A linear layer in a convolution's place: edges are not looked at."""

    def __init__(self, n_in: int, n_out: int, gen: torch.Generator | None = None) -> None:
        super().__init__()
        self.linear = glorot(n_in, n_out, gen=gen)

    def aggregate(self, x: Tensor, edges: Any) -> Tensor:
        return x

    def forward(self, x: Tensor, edges: Any) -> Tensor:
        return self.linear(x)


class TwoKinds(Relational):
    """Two SAGE layers, one for the graph's edges and one for the links to class nodes, added up.

    ``edges`` is a pair of matrices. Like the layers it consists of, it can gather once: oneself,
    then the mean over either kind of neighbor.
    """

    def __init__(self, n_in: int, n_out: int, gen: torch.Generator | None = None) -> None:
        super().__init__(lambda: SAGE(n_in, n_out, gen=gen), 2)

    def aggregate(self, x: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat([x, *(propagate(matrix, x) for matrix in edges)], -1)

    def linear(self, z: Tensor) -> Tensor:
        own, *near = z.chunk(3, -1)
        parts = [conv.linear(torch.cat([own, m], -1)) for conv, m in zip(self.convs, near)]
        return parts[0] + parts[1]

    def forward(self, x: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
        return self.linear(self.aggregate(x, edges))


CONVS: dict[str, Callable[..., nn.Module]] = {
    "gcn": GCN,
    "sage": SAGE,
    "gat": GAT,
    "none": NoGraph,
    "relational": TwoKinds,
}


def check_conv(conv: str, relational: bool = False) -> None:
    """Whether there is such a convolution, and whether its kind of edges is at hand."""
    names = [name for name in CONVS if relational or name != "relational"]
    if conv not in names:
        raise ValueError(f"conv={conv!r}: allowed are {', '.join(map(repr, names))}")


def check_widths(widths: Sequence[int]) -> None:
    """Whether there are features, a layer at least, and no width below 1."""
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(
            f"widths={list(widths)}: allowed are two or more numbers from 1, the features' length "
            "and then one per layer"
        )


def check_features(graph: Graph, features: int, dtype: torch.dtype) -> None:
    """Whether the graph's features are the network's."""
    if (graph.x.shape[1], graph.x.dtype) != (features, dtype):
        raise ValueError(
            f"graph.x has {graph.x.shape[1]} features of {graph.x.dtype}; the network takes "
            f"{features} of {dtype} (see widths)"
        )


def heads(width: int) -> int:
    """Heads of a GAT layer: four, or fewer where the width does not divide by four."""
    return next(h for h in (4, 2, 1) if width % h == 0)
