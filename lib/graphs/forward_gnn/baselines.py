"""What forward learning is compared with: backpropagation, and other ways to do without it.

Backpropagation through the whole network; a linear head on every layer, trained with its layer or
on random features (the cascaded forward algorithm, G. Zhao et al., arXiv:2303.09728); PEPITA (G.
Dellaferrera and G. Kreiman, arXiv:2201.11665), which replaces the backward pass by a second forward
pass on an input shifted by the error; and fixed random feedback (``lib.models.feedback``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.data.graphs import Graph
from lib.core.fitting import History, fit, progress
from lib.core.meters import stopwatch
from lib.graphs.forward_gnn.local import Layer
from lib.graphs.forward_gnn.model import CONVS, Conv, train_layer
from lib.models.feedback import FeedbackLinear, Signal
from lib.models.graph_layers import GCN, SAGE, glorot


class BackpropGNN(nn.Module):
    """Convolutions with ReLU between them; the last one's output is the classes' logits.

    Args:
        widths: length of the node features, widths of the hidden layers, number of classes.
        conv: as in ``ForwardGNN``, without ``"relational"``.
        feedback: ``None`` for backpropagation; ``"fa"``, ``"dfa"``, ``"drtp"`` send fixed random
            feedback instead (only with "gcn" and "sage").
    """

    def __init__(
        self,
        widths: Sequence[int],
        conv: Conv = "gcn",
        feedback: Literal["fa", "dfa", "drtp"] | None = None,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if conv not in CONVS or conv == "relational":
            raise ValueError(f"conv={conv!r}: allowed are 'gcn', 'sage', 'gat' and 'none'")
        if feedback is not None and conv not in ("gcn", "sage"):
            raise ValueError(f"feedback={feedback!r} with conv={conv!r}: only 'gcn' and 'sage'")
        self.conv, self.feedback, self.signal = conv, feedback, Signal()
        more: dict[str, Any] = {}
        if feedback is not None:
            direct = {} if feedback == "fa" else {"signal": self.signal, "k": widths[-1]}
            more["linear"] = lambda a, b: FeedbackLinear(a, b, feedback, gen=gen, **direct)
        self.layers = nn.ModuleList(
            CONVS[conv](a, b, gen=gen, **more) for a, b in zip(widths[:-1], widths[1:])
        )

    def forward(self, x: Float[Tensor, "n f"], edges: Any) -> Float[Tensor, "n c"]:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x, edges))
        x = self.layers[-1](x, edges)
        return self.signal.watch(x) if self.feedback == "dfa" else x

    def edges(self, graph: Graph) -> Any:
        """The graph's edges in the form the convolution wants them in."""
        known = {"gcn": GCN, "sage": SAGE}
        if self.conv in known:
            return known[self.conv].matrix(graph.edge_index, graph.n, dtype=graph.x.dtype)
        return graph.edge_index

    @torch.no_grad()
    def predict(self, graph: Graph) -> Tensor:
        """The class with the largest logit, "n"."""
        return self(graph.x, self.edges(graph)).argmax(-1)


def fit_backprop(
    model: BackpropGNN,
    graph: Graph,
    epochs: int,
    lr: float = 1e-2,
    weight_decay: float = 5e-4,
    best: bool = True,
    check: int = 10,
) -> History:
    """Cross-entropy on the training nodes, Adam with L2 penalty, through all layers.

    With ``best`` the weights of the best validation epoch are kept, looked at every ``check``.

    Raises:
        ValueError: no labels or training nodes, no validation nodes with ``best``, or ``epochs``
            or ``check`` below 1.
    """
    _check(graph, epochs)
    if best and (graph.val is None or not graph.val.any()):
        raise ValueError("best=True: the graph has no validation nodes")
    if check < 1:
        raise ValueError(f"check={check}: allowed is 1 or more")
    edges, train = model.edges(graph), graph.train
    top: dict[str, Any] = {"val": -1.0}

    def loss(net: nn.Module, batch: tuple) -> Tensor:
        out = net(graph.x, edges)[train]
        if net.feedback == "drtp":
            targets = F.one_hot(graph.y.clamp_min(0), out.shape[1]).to(out) * train[:, None]
            net.signal.value = -targets / train.sum()  # the error's sign: too little of this class
        return F.cross_entropy(out, graph.y[train])

    def look(step: int, net: nn.Module) -> dict:
        guess = net(graph.x, edges).argmax(-1) == graph.y
        found = guess[graph.val].double().mean().item()
        if found > top["val"]:
            top.update(val=found, weights=copy.deepcopy(net.state_dict()))
        return {"val": found}

    history = fit(
        model,
        lambda step: (),
        loss,
        steps=epochs,
        optimizer=lambda p: torch.optim.Adam(p, lr=lr, weight_decay=weight_decay, fused=True),
        log=[*range(check, epochs, check), epochs] if best else [],
        callback=look if best else None,
        what="backpropagation",
    )
    if best:
        model.load_state_dict(top["weights"])
    return history


class LocalHeads(nn.Module):
    """A linear head on every layer; predictions are added up. Nothing crosses a layer.

    Args:
        cascaded: the convolutions stay as they were drawn and only the heads learn.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        conv: Conv = "gcn",
        cascaded: bool = False,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if conv not in CONVS or conv == "relational":
            raise ValueError(f"conv={conv!r}: allowed are 'gcn', 'sage', 'gat' and 'none'")
        self.conv, self.cascaded = conv, cascaded
        pairs = list(zip(widths[:-1], widths[1:]))
        self.layers = nn.ModuleList(Layer(CONVS[conv](a, b, gen=gen)) for a, b in pairs)
        self.heads = nn.ModuleList(glorot(b, num_classes, gen=gen) for _, b in pairs)

    edges = BackpropGNN.edges

    def fit(self, graph: Graph, epochs: int, lr: float = 1e-2) -> History:
        """Train layer after layer, each with its head, by cross-entropy on the training nodes."""
        _check(graph, epochs)
        x, edges, history = graph.x, self.edges(graph), History()
        with stopwatch() as watch:
            for l, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
                z = layer.gather(x, edges)

                def loss(layer=layer, head=head, z=z) -> Tensor:
                    h = layer.learn(z, edges)
                    h = h.detach() if self.cascaded else h
                    return F.cross_entropy(head(h)[graph.train], graph.y[graph.train])

                pair = nn.ModuleList([head] if self.cascaded else [layer, head])
                adam = torch.optim.Adam(pair.parameters(), lr=lr, fused=True)
                train_layer(pair, loss, adam, epochs, l + 1, history)
                with torch.no_grad():
                    x = layer.learn(z, edges)
        history.seconds = watch.seconds
        return history

    @torch.no_grad()
    def scores(self, graph: Graph) -> Float[Tensor, "l n c"]:
        """Each head's probabilities."""
        x, edges, found = graph.x, self.edges(graph), []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = layer(x, edges)
            found.append(head(x).softmax(-1))
        return torch.stack(found)

    def predict(self, graph: Graph) -> Tensor:
        """The class with the largest summed probability, "n"."""
        return self.scores(graph).sum(0).argmax(-1)


def pepita_updates(
    model: BackpropGNN, x: Tensor, edges: Any, y: Tensor, train: Tensor, feedback: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """PEPITA's direction for every layer's weights and bias, from two forward passes.

    The output error ``e`` of the first pass (training nodes only) is projected onto the input,
    ``x + e F``, and a second pass runs on that. A hidden layer moves along the difference of its
    two outputs times its second input; the last one along the error itself.

    Args:
        model: a GCN or SAGE without feedback of its own.
        feedback: ``F``, "c f", fixed.
    """

    def run(h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        inputs, outputs = [], []
        for l, layer in enumerate(model.layers):
            inputs.append(layer.aggregate(h, edges))
            h = layer.linear(inputs[-1])
            h = h if l + 1 == len(model.layers) else F.relu(h)
            outputs.append(h)
        return inputs, outputs

    with torch.no_grad():
        _, clean = run(x)
        error = clean[-1].softmax(-1) - F.one_hot(y.clamp_min(0), clean[-1].shape[1])
        error = error * train[:, None] / train.sum()
        inputs, shifted = run(x + len(train) * error @ feedback)
        size = len(train)
        found = []
        for l in range(len(model.layers)):
            last = l + 1 == len(model.layers)
            delta = error if last else (clean[l] - shifted[l]) / size
            found.append((delta.T @ inputs[l], delta.sum(0)))
    return found


def fit_pepita(
    model: BackpropGNN,
    graph: Graph,
    epochs: int,
    gen: torch.Generator,
    lr: float = 1e-2,
    strength: float = 0.05,
) -> History:
    """Train with PEPITA; Adam takes its directions for gradients.

    Args:
        strength: standard deviation of the feedback matrix, times ``sqrt(2 / f)``.
    """
    if model.conv not in ("gcn", "sage") or model.feedback is not None:
        raise ValueError("model: PEPITA needs a GCN or SAGE without feedback of its own")
    _check(graph, epochs)
    edges, history = model.edges(graph), History()
    f, c = graph.x.shape[1], model.layers[-1].linear.out_features
    matrix = strength * (2 / f) ** 0.5 * torch.randn(c, f, generator=gen)
    adam = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    with stopwatch() as watch:
        for _ in progress(range(epochs), "PEPITA"):
            found = pepita_updates(model, graph.x, edges, graph.y, graph.train, matrix.to(graph.x))
            for layer, (weight, bias) in zip(model.layers, found, strict=True):
                layer.linear.weight.grad, layer.linear.bias.grad = weight, bias
            adam.step()
    history.seconds = watch.seconds
    return history


def accuracy(guess: Tensor, graph: Graph, mask: Tensor | None = None) -> float:
    """Share of right guesses on the test nodes, or on those of another mask.

    Raises:
        ValueError: the mask is missing or empty, or the graph has no labels.
    """
    mask = graph.test if mask is None else mask
    if graph.y is None or mask is None or not mask.any():
        raise ValueError("accuracy: no labels, or no nodes in the mask")
    return (guess == graph.y)[mask].double().mean().item()


def _check(graph: Graph, epochs: int) -> None:
    if graph.y is None or graph.train is None or not graph.train.any():
        raise ValueError("the graph needs labels y and training nodes in the mask train")
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: allowed is 1 or more")
