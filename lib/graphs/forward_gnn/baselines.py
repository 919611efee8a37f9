"""What forward learning is compared with: backpropagation, and other ways to do without it.

Backpropagation through the whole network; a linear head on every layer, trained with its layer or
on random features (the cascaded forward algorithm, G. Zhao et al., arXiv:2303.09728); signal
propagation (A. Kohan, E. Rietman and H. Siegelmann, arXiv:2204.01723), where the labels go forward
through the layers beside the nodes; PEPITA (G. Dellaferrera and G. Kreiman, arXiv:2201.11665),
which replaces the backward pass by a second forward pass on an input shifted by the error; and
fixed random feedback (``lib.models.feedback``). The authors' program has backpropagation only.
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
from lib.graphs.forward_gnn.convs import (
    CONVS,
    Conv,
    check_conv,
    check_features,
    check_widths,
    heads,
)
from lib.graphs.forward_gnn.local import (
    Layer,
    bottom_up,
    class_logits,
    class_node_loss,
    single_forward,
)
from lib.graphs.forward_gnn.training import train_layer
from lib.models.feedback import FeedbackLinear, Signal
from lib.models.graph_layers import GCN, SAGE, glorot


class BackpropGNN(nn.Module):
    """Convolutions with ReLU between them; the last one's output is the classes' logits.

    Args:
        widths: length of the node features, widths of the hidden layers, number of classes.
        conv: as in ``ForwardGNN``, without ``"relational"``.
        feedback: ``None`` for backpropagation; ``"fa"``, ``"dfa"``, ``"drtp"`` send fixed random
            feedback instead (only with "gcn" and "sage").

    Raises:
        ValueError: an unknown ``conv`` or ``feedback``, two that do not go together, too few
            ``widths`` or one below 1.
    """

    def __init__(
        self,
        widths: Sequence[int],
        conv: Conv = "gcn",
        feedback: Literal["fa", "dfa", "drtp"] | None = None,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_conv(conv)
        check_widths(widths)
        if feedback not in (None, "fa", "dfa", "drtp"):
            raise ValueError(f"feedback={feedback!r}: allowed are None, 'fa', 'dfa' and 'drtp'")
        if feedback is not None and conv not in ("gcn", "sage"):
            raise ValueError(f"feedback={feedback!r} with conv={conv!r}: only 'gcn' and 'sage'")
        self.conv, self.feedback, self.signal = conv, feedback, Signal()
        more: dict[str, Any] = {}
        if feedback is not None:
            direct = {} if feedback == "fa" else {"signal": self.signal, "k": widths[-1]}
            more["linear"] = lambda a, b: FeedbackLinear(a, b, feedback, gen=gen, **direct)
        self.features, self.classes = widths[0], widths[-1]
        self.layers = nn.ModuleList()
        for l, (a, b) in enumerate(zip(widths[:-1], widths[1:])):
            if conv == "gat":  # one head for the logits
                more["heads"] = heads(b) if l + 2 < len(widths) else 1
            self.layers.append(CONVS[conv](a, b, gen=gen, **more))

    def forward(self, x: Float[Tensor, "n f"], edges: Any) -> Float[Tensor, "n c"]:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x, edges))
        x = self.layers[-1](x, edges)
        return self.signal.watch(x) if self.feedback == "dfa" else x

    def edges(self, graph: Graph) -> Any:
        """The graph's edges in the form the convolution wants them in.

        Raises:
            ValueError: the graph's features are not the network's.
        """
        check_features(graph, self.features, next(self.parameters()).dtype)
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
        ValueError: no labels or training nodes, labels or features that the network does not
            have, no validation nodes with ``best``, or ``epochs`` or ``check`` below 1.
    """
    _check(graph, epochs, model.classes)
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
        self.layers = _layers(widths, num_classes, conv, gen)
        self.conv, self.cascaded = conv, cascaded
        self.features, self.classes = widths[0], num_classes
        pairs = zip(widths[:-1], widths[1:])
        self.heads = nn.ModuleList(glorot(b, num_classes, gen=gen) for _, b in pairs)

    edges = BackpropGNN.edges

    def fit(
        self, graph: Graph, epochs: int, lr: float = 1e-2, weight_decay: float = 5e-4
    ) -> History:
        """Train layer after layer, each with its head, by cross-entropy on the training nodes."""
        _check(graph, epochs, self.classes)
        edges, history, y = self.edges(graph), History(), graph.y[graph.train]
        heads = iter(self.heads)
        objective = lambda h: F.cross_entropy(head(h.detach() if self.cascaded else h), y)
        stages = single_forward(self.layers, graph.x, edges, objective, graph.train)
        with stopwatch() as watch:
            for l, (layer, loss) in enumerate(stages):
                head = next(heads)
                pair = nn.ModuleList([head] if self.cascaded else [layer, head])
                adam = torch.optim.Adam(
                    pair.parameters(), lr=lr, weight_decay=weight_decay, fused=True
                )
                train_layer(pair, loss, adam, epochs, l + 1, history)
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


class SignalPropagation(nn.Module):
    """Labels go forward beside the nodes: SF in which a learned map takes the place of the links.

    One row per class stands beside the first layer's output; it comes from a linear map of the
    one-hot label, which is trained with that layer. From there on the rows pass the layers' weights
    as nodes without neighbors do. Every layer is trained by cross-entropy of its nodes' inner
    products with its class rows, one layer after another, and the probabilities are added up. (The
    inner product is one of the losses in the paper.)

    Args:
        widths: length of the node features, then the width of each layer.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        conv: Conv = "gcn",
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.layers = _layers(widths, num_classes, conv, gen)
        self.conv, self.features, self.classes = conv, widths[0], num_classes
        self.targets = glorot(num_classes, widths[1], gen=gen)

    edges = BackpropGNN.edges

    def rows(self) -> Float[Tensor, "c width"]:
        """The class rows beside the first layer's output."""
        return F.relu(self.targets.weight.T + self.targets.bias)

    def fit(
        self, graph: Graph, epochs: int, lr: float = 1e-2, weight_decay: float = 5e-4
    ) -> History:
        """Train the first layer with the map of the labels, then the other layers."""
        _check(graph, epochs, self.classes)
        first, history, y = self.layers[0], History(), graph.y[graph.train]
        objective = class_node_loss(y, torch.ones_like(y, dtype=torch.bool))
        adam = lambda m: torch.optim.Adam(
            m.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )
        with stopwatch() as watch:
            with_rows = lambda h: objective(torch.cat([h, self.rows()]))
            stages = single_forward([first], graph.x, self.edges(graph), with_rows, graph.train)
            for _, loss in stages:
                pair = nn.ModuleList([first, self.targets])
                train_layer(pair, loss, adam(pair), epochs, 1, history)
            x, edges = self._start(graph)
            known = torch.cat([graph.train, graph.train.new_ones(self.classes)])
            stages = single_forward(self.layers[1:], x, edges, objective, known)
            for l, (layer, loss) in enumerate(stages):
                train_layer(layer, loss, adam(layer), epochs, l + 2, history)
        history.seconds = watch.seconds
        return history

    @torch.no_grad()
    def _start(self, graph: Graph) -> tuple[Tensor, Any]:
        """The first layer's output with the class rows below it, and edges that leave those out."""
        x = torch.cat([self.layers[0](graph.x, self.edges(graph)), self.rows()])
        if self.conv in ("gcn", "sage"):
            matrix = CONVS[self.conv].matrix
            return x, matrix(graph.edge_index, len(x), dtype=x.dtype)
        return x, graph.edge_index

    @torch.no_grad()
    def scores(self, graph: Graph) -> Float[Tensor, "l n c"]:
        """Each layer's probabilities."""
        states = bottom_up(self.layers[1:], *self._start(graph))
        return torch.stack([class_logits(h, graph.n).softmax(-1) for h in states])

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
    _check(graph, epochs, model.classes)
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


def _layers(widths: Sequence[int], num_classes: int, conv: str, gen) -> nn.ModuleList:
    check_conv(conv)
    check_widths(widths)
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: allowed is 2 or more")
    more = [{"heads": heads(b)} if conv == "gat" else {} for b in widths[1:]]
    return nn.ModuleList(
        Layer(CONVS[conv](a, b, gen=gen, **m)) for a, b, m in zip(widths[:-1], widths[1:], more)
    )


def _check(graph: Graph, epochs: int, classes: int) -> None:
    if graph.y is None or graph.train is None or not graph.train.any():
        raise ValueError("the graph needs labels y and training nodes in the mask train")
    low, high = int(graph.y[graph.train].min()), int(graph.y[graph.train].max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels of the training nodes go from {low} to {high}; the network has classes 0 to "
            f"{classes - 1}"
        )
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: allowed is 1 or more")
