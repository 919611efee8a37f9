"""Layers that learn on their own, and the three ways to teach them one after another or at once.

``forward_forward`` and ``single_forward`` are generators. They hand out one layer and its loss at a
time; once the layer is trained, the next step of the generator runs it on its input and goes on
from the result, without history. ``top_down`` gives all layers' losses at one time step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.models.feedback import ff_loss, goodness

Stage = tuple["Layer", Callable[[], Tensor]]
Layers = nn.ModuleList | Sequence["Layer"]
Objective = Callable[[Tensor], Tensor]


class Layer(nn.Module):
    """``x -> relu(conv(x / ||x||, edges))``: rows are normalized on the way in, not on the way out.

    The length of a row is what the layer below was rewarded for. Dividing by it leaves the
    direction, so this layer has to find something of its own.

    Args:
        normalize: ``False`` drops the division, to show what happens then.
        above: width of the state of the layer above, where the layer gets to see one.
    """

    def __init__(self, conv: nn.Module, normalize: bool = True, above: int = 0) -> None:
        super().__init__()
        self.conv, self.normalize, self.above = conv, normalize, above
        self.calls = 0

    def forward(
        self,
        x: Float[Tensor, "n below"],
        edges: Any,
        above: Float[Tensor, "n above"] | None = None,
    ) -> Float[Tensor, "n width"]:
        return self.learn(self.gather(x, edges, above), edges)

    def gather(self, x: Tensor, edges: Any, above: Tensor | None = None) -> Tensor:
        """What comes before the weights. For GCN and SAGE that includes the sum over neighbors."""
        x = self.scaled(x)
        if above is not None:
            x = torch.cat([x, self.scaled(above)], -1)
        return self.conv.aggregate(x, edges) if hasattr(self.conv, "aggregate") else x

    def learn(self, z: Tensor, edges: Any) -> Tensor:
        """The weights' part, on what ``gather`` returned; also on a stack of those."""
        self.calls += 1
        if hasattr(self.conv, "aggregate"):
            return F.relu(self.conv.linear(z))
        return F.relu(self.conv(z, edges))

    def scaled(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.normalize else x


# --------------------------------------------------------------------------- forward-forward


def forward_forward(
    layers: Layers,
    inputs: Sequence[tuple[Tensor, Any]],
    train: Bool[Tensor, "n"],
    theta: float,
    share: bool,
    total: bool = True,
) -> Iterator[Stage]:
    """Goodness of the training nodes above theta with right labels, below with wrong ones (FF).

    Args:
        inputs: features and edges of the positive graph, then of each negative one.
        share: every negative graph goes on with the positive graph's features (virtual nodes), and
            not with its own (appended labels).
        total: goodness is the sum of the squares, and not their mean.
    """
    nodes = train.nonzero()[:, 0]
    for layer in layers:
        graphs = [edges for _, edges in inputs]
        gathered = [layer.gather(x, edges) for x, edges in inputs]

        def loss(layer=layer, gathered=gathered, graphs=graphs) -> Tensor:
            outputs = [layer.learn(z, edges) for z, edges in zip(gathered, graphs)]
            g = torch.stack([goodness(h.index_select(0, nodes), total) for h in outputs])
            return ff_loss(g[0], g[1:], theta).mean()

        if hasattr(layer.conv, "aggregate"):
            # The sum over neighbors is behind us: every training node is now a row by itself.
            rows = torch.stack([z[nodes] for z in gathered])

            def loss(layer=layer, rows=rows) -> Tensor:
                g = goodness(layer.learn(rows, None), total)
                return ff_loss(g[0], g[1:], theta).mean()

        yield layer, loss
        with torch.no_grad():
            outputs = [layer.learn(z, edges) for z, edges in zip(gathered, graphs)]
        inputs = [(outputs[0] if share else h, edges) for h, edges in zip(outputs, graphs)]


# --------------------------------------------------------------------------- single forward


def class_logits(h: Float[Tensor, "m d"], n: int, temperature: float = 1.0) -> Float[Tensor, "n c"]:
    """``<h_v, h_c> / T``: every node's output against the output of every class node."""
    return h[:n] @ h[n:].T / temperature


def class_node_loss(
    y: Int[Tensor, "n"], train: Bool[Tensor, "n"], temperature: float = 1.0
) -> Objective:
    """Cross-entropy of the training nodes over the class nodes, as a function of one output.

    The gradient goes through both sides of the inner product: nodes move towards their class node,
    and class nodes towards their nodes.
    """
    nodes, labels = train.nonzero()[:, 0], y[train]

    def objective(h: Tensor) -> Tensor:
        return F.cross_entropy(h.index_select(0, nodes) @ h[len(y) :].T / temperature, labels)

    return objective


def single_forward(
    layers: Layers, x: Tensor, edges: Any, objective: Objective, rows: Any = slice(None)
) -> Iterator[Stage]:
    """One layer after another on one graph, without negative data (SF).

    Args:
        objective: a loss, as a function of those rows of a layer's output that ``rows`` names.
    """
    for layer in layers:
        z = layer.gather(x, edges)
        if hasattr(layer.conv, "aggregate"):  # each row is now on its own: the others can wait
            loss = lambda layer=layer, z=z[rows]: objective(layer.learn(z, edges))
        else:
            loss = lambda layer=layer, z=z: objective(layer.learn(z, edges)[rows])
        yield layer, loss
        with torch.no_grad():
            x = layer.learn(z, edges)


# --------------------------------------------------------------------------- top-down


def top_down(
    layers: Layers,
    states: list[Tensor],
    edges: Any,
    objective: Objective,
    signal: Literal["loss", "input"],
    top: Tensor | None = None,
) -> Iterator[tuple[Layer, Callable[[], tuple[Tensor, Tensor]]]]:
    """All layers at one time step, each from the states of the step before.

    Args:
        states: ``s_0`` (the features) to ``s_L``, without history; not changed here.
        signal: ``"loss"`` averages a layer's output with the normalized states of all layers above
            before its loss; ``"input"`` gives the layer the state above beside the one below.
        top: the state above the last layer (``"input"``).

    Yields:
        A layer and a function that returns its loss and its output.
    """
    for l, layer in enumerate(layers):
        if signal == "input":
            above = states[l + 2] if l + 2 < len(states) else top

            def step(layer=layer, x=states[l], above=above):
                h = layer(x, edges, above)
                return objective(h), h
        else:
            upper = [layer.scaled(s) for s in states[l + 2 :]]

            def step(layer=layer, x=states[l], upper=upper):
                h = layer(x, edges)
                return objective(torch.stack([h, *upper]).mean(0)), h

        yield layer, step


def turns(depth: int, order: Literal["all", "alternate"]) -> list[range]:
    """Which layers are updated together at a time step, and in which order."""
    return [range(depth)] if order == "all" else [range(0, depth, 2), range(1, depth, 2)]


def time_step(
    layers: Layers,
    states: list[Tensor],
    edges: Any,
    top: Tensor,
    order: Literal["all", "alternate"],
) -> list[Tensor]:
    """The states one time step later, each from the ones below and above it (top to input)."""
    for turn in turns(len(layers), order):
        above = [*states[2:], top]
        new = {l + 1: layers[l](states[l], edges, above[l]) for l in turn}
        states = [new.get(i, s) for i, s in enumerate(states)]
    return states


def bottom_up(layers: Layers, x: Tensor, edges: Any, top: Tensor | None = None) -> list[Tensor]:
    """States ``s_0`` to ``s_L`` of one pass; with ``top``, states not there yet are zeros."""
    states = [x]
    for l, layer in enumerate(layers):
        above = None
        if top is not None:
            last = l + 1 == len(layers)
            above = top if last else x.new_zeros(len(x), layers[l].above)
        states.append(layer(states[-1], edges, above).detach())
    return states
