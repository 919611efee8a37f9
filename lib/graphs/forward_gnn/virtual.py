"""How a label gets onto a graph: appended to the features, or as links to virtual class nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.core.data.graphs import Graph


class VirtualNodeAugmenter:
    """Adds one node per class; calling it links chosen nodes to the node of a label each.

    Class nodes come after the graph's own n nodes, in the order of the classes. Their features are
    drawn once from N(0, 1), at construction, and kept: training and inference see the same ones.

    Args:
        direction: ``"uni"`` adds node -> class node only, so class nodes collect and nothing comes
            back; ``"bi"`` adds class node -> node as well.

    Raises:
        ValueError: unknown ``direction``, or fewer than two classes.
    """

    def __init__(
        self,
        graph: Graph,
        num_classes: int,
        direction: Literal["uni", "bi"] = "uni",
        gen: torch.Generator | None = None,
    ) -> None:
        if direction not in ("uni", "bi"):
            raise ValueError(f"direction={direction!r}: allowed are 'uni' and 'bi'")
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: allowed is 2 or more")
        self.graph, self.classes, self.direction = graph, num_classes, direction
        features = torch.randn(num_classes, graph.x.shape[1], generator=gen)
        self.features = features.to(graph.x)

    def __call__(
        self, labels: Int[Tensor, "n"], nodes: Bool[Tensor, "n"], graph: Graph | None = None
    ) -> Graph:
        """The graph with n + C nodes, in which ``nodes`` are linked to the node of their label.

        ``graph`` takes the place of the graph of the construction; the class nodes' features stay.
        Its labels ``y`` are kept, and class nodes get their class. Nodes outside ``nodes`` are left
        alone, whatever their entry in ``labels`` says.

        Raises:
            ValueError: a label to be linked is none of the classes.
        """
        graph = self.graph if graph is None else graph
        n = graph.n
        chosen = nodes.nonzero()[:, 0]
        wanted = labels[chosen]
        _check_labels("labels to be linked", wanted, self.classes)
        links = torch.stack([chosen, n + wanted])
        if self.direction == "bi":
            links = torch.cat([links, links.flip(0)], 1)
        classes = torch.arange(self.classes, device=graph.x.device)
        return replace(
            graph,
            x=torch.cat([graph.x, self.features.to(graph.x)]),
            edge_index=torch.cat([graph.edge_index, links], 1),
            edge_attr=None,
            y=None if graph.y is None else torch.cat([graph.y, classes]),
            **{k: _longer(getattr(graph, k), self.classes) for k in ("train", "val", "test")},
        )


def _check_labels(what: str, labels: Tensor, num_classes: int) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"{what} go from {int(labels.min())} to {int(labels.max())}; "
            f"classes are 0 to {num_classes - 1}"
        )


def _longer(mask: Tensor | None, more: int) -> Tensor | None:
    return None if mask is None else torch.cat([mask, mask.new_zeros(more)])


def append_labels(
    x: Float[Tensor, "n f"], labels: Int[Tensor, "n"], known: Bool[Tensor, "n"], num_classes: int
) -> Float[Tensor, "n f_plus_c"]:
    """``[x, one-hot label]`` where the label is known, ``[x, 1/C everywhere]`` where it is not.

    Raises:
        ValueError: a known label is none of the classes.
    """
    _check_labels("labels to be appended", labels[known], num_classes)
    extra = x.new_full((len(x), num_classes), 1 / num_classes)
    extra[known] = torch.eye(num_classes, dtype=x.dtype, device=x.device)[labels[known]]
    return torch.cat([x, extra], 1)


def wrong_labels(
    y: Int[Tensor, "n"], num_classes: int, k: int, gen: torch.Generator
) -> Int[Tensor, "k n"]:
    """``k`` wrong classes for every node, different ones, each choice equally likely.

    Raises:
        ValueError: ``k`` is not between 1 and the number of wrong classes.
    """
    if not 1 <= k < num_classes:
        raise ValueError(f"k={k}: allowed is 1 to {num_classes - 1}, the number of wrong classes")
    order = torch.rand(len(y), num_classes - 1, generator=gen).argsort(1)[:, :k].T.to(y.device)
    return (y.clamp_min(0) + 1 + order) % num_classes
