"""ForwardGNN: five ways to train a graph network without a backward pass across its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.core.data.graphs import Graph
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
from lib.graphs.forward_gnn.local import (
    Layer,
    bottom_up,
    class_logits,
    class_node_loss,
    forward_forward,
    single_forward,
    time_step,
    top_down,
)
from lib.graphs.forward_gnn.training import Best, row, train_layer, train_step
from lib.graphs.forward_gnn.virtual import VirtualNodeAugmenter, append_labels, wrong_labels
from lib.models.feedback import goodness
from lib.models.graph_layers import SAGE

Mode = Literal["ff_la", "ff_vn", "sf", "sf_top2loss", "sf_top2input"]
MODES = ("ff_la", "ff_vn", "sf", "sf_top2loss", "sf_top2input")


class ForwardGNN(nn.Module):
    """A graph network whose layers learn from losses of their own.

    Modes:
        ``"ff_la"``: forward-forward, labels appended to the features.
        ``"ff_vn"``: forward-forward, labels as links to virtual class nodes.
        ``"sf"``: single forward, each layer classifies by its output at the class nodes.
        ``"sf_top2loss"``, ``"sf_top2input"``: the same with a signal from the layers above.

    Args:
        mode: one of the five.
        conv: ``"gcn"``, ``"sage"``, ``"gat"`` (four heads), ``"relational"`` (a SAGE for the
            graph's edges and one for the links to class nodes), ``"none"`` (an MLP).
        widths: length of the node features, then the width of each layer.
        num_classes: number of classes, C.
        direction: of the links to class nodes; ``"bi"`` for "ff_vn" and ``"uni"`` else by default.
            The authors' programs use "bi" throughout.
        theta: threshold of the goodness (FF).
        total: goodness is the sum of the squares, as in the authors' training, or their mean (FF).
        negatives: sets of wrong labels, ``"all"`` takes every wrong class (FF).
        temperature: divides the inner products with the class nodes (SF).
        order: of the updates at a time step, in training and inference (top-down). ``"all"`` at
            once, each layer from the states of the step before; ``"alternate"`` updates layers 1,
            3, ... and then, from their new states, layers 2, 4, ... By default "alternate" for
            "sf_top2input" and "all" for "sf_top2loss", as in the authors' programs.
        normalize: divide each row by its length on the way into a layer.
        gen: source of all draws: weights, class nodes' features, wrong labels.

    Raises:
        ValueError: an unknown mode or conv, too few widths, unequal widths with "sf_top2loss",
            one-way links with "ff_vn" (no label would reach a node), fewer than two classes, a
            temperature that is not positive, ``negatives`` that is no number of wrong classes, an
            unknown ``order`` or one for a mode that has none.
    """

    def __init__(
        self,
        mode: Mode,
        conv: Conv = "gcn",
        widths: Sequence[int] = (),
        num_classes: int = 2,
        *,
        direction: Literal["uni", "bi"] | None = None,
        theta: float = 2.0,
        total: bool = True,
        negatives: int | Literal["all"] = "all",
        temperature: float = 1.0,
        order: Literal["all", "alternate"] | None = None,
        normalize: bool = True,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")
        check_conv(conv, relational=True)
        check_widths(widths)
        if direction not in (None, "uni", "bi"):
            raise ValueError(f"direction={direction!r}: allowed are 'uni' and 'bi'")
        if mode == "sf_top2loss" and len(set(widths[1:])) > 1:
            raise ValueError(f"widths={list(widths)}: 'sf_top2loss' averages layers of one width")
        if mode == "ff_vn" and direction == "uni":
            raise ValueError("direction='uni': with 'ff_vn' labels must reach the nodes, use 'bi'")
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: allowed is 2 or more")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: allowed are numbers above 0")
        self.mode, self.conv, self.classes = mode, conv, num_classes
        self.features = widths[0]
        self.direction = direction or ("bi" if mode == "ff_vn" else "uni")
        negatives = num_classes - 1 if negatives == "all" else negatives
        if not isinstance(negatives, int) or not 1 <= negatives < num_classes:
            raise ValueError(
                f"negatives={negatives!r}: allowed are 'all' and 1 to {num_classes - 1}, the "
                "number of wrong classes"
            )
        if order not in (None, "all", "alternate"):
            raise ValueError(f"order={order!r}: allowed are 'all' and 'alternate'")
        if order is not None and not mode.startswith("sf_"):
            raise ValueError(f"order={order!r}: {mode!r} trains one layer after another; leave it")
        self.order = order or ("alternate" if mode == "sf_top2input" else "all")
        self.theta, self.total, self.negatives = theta, total, negatives
        self.temperature = temperature
        self.gen = gen if gen is not None else torch.Generator().manual_seed(0)
        self.augmenter: VirtualNodeAugmenter | None = None
        self.wrong: Tensor | None = None
        below, above = list(widths[:-1]), [*widths[2:], num_classes]
        if mode == "ff_la":
            below[0] += num_classes
        self.layers = nn.ModuleList()
        for a, upper, b in zip(below, above, widths[1:], strict=True):
            extra = upper if mode == "sf_top2input" else 0
            more = {"heads": heads(b)} if conv == "gat" else {}
            conv_layer = CONVS[conv](a + extra, b, gen=self.gen, **more)
            self.layers.append(Layer(conv_layer, normalize, extra))

    @property
    def forward_calls(self) -> int:
        """Calls of a layer so far, each on one whole graph (a stack of graphs counts as one)."""
        return sum(layer.calls for layer in self.layers)

    # ----------------------------------------------------------------------- training

    def fit(
        self,
        graph: Graph,
        epochs: int,
        lr: float = 1e-3,
        *,
        weight_decay: float = 5e-4,
        clip: float = 1.0,
        patience: int | None = None,
        check: int = 2,
        what: str = "training",
    ) -> History:
        """Train every layer for ``epochs`` updates of its own Adam.

        The greedy modes finish one layer before they go on to the next; the top-down modes update
        all layers at every time step.

        Args:
            patience: stop when the validation accuracy has not risen for so many epochs, and go
                back to the best weights. Looked at every ``check`` epochs. In the greedy modes
                each layer stops by itself, judged by the network up to it. The authors' programs
                stop after 100 looks, one every 2 epochs, which is ``patience=200``.
            clip: "sf_top2loss": largest norm of a layer's gradient.

        Returns:
            Rows ``step``, ``layer`` (from 1), ``loss``; with patience, ``val`` as well.

        Raises:
            ValueError: the graph lacks labels or masks, its features do not fit, ``epochs`` or
                ``check`` or ``patience`` below 1.
            FloatingPointError: a loss is not finite.
        """
        self._check(graph)
        if epochs < 1 or check < 1:
            raise ValueError(f"epochs={epochs}, check={check}: allowed is 1 or more")
        if patience is not None and patience < 1:
            raise ValueError(f"patience={patience}: allowed are None and 1 or more")
        if patience is not None and (graph.val is None or not graph.val.any()):
            raise ValueError("patience: the graph has no validation nodes")
        self.prepare(graph)
        history = History()
        adam = lambda layer: torch.optim.Adam(
            layer.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )
        with stopwatch() as watch:
            if self.mode in ("sf_top2loss", "sf_top2input"):
                stop = None if patience is None else Best(patience)
                self._fit_top_down(graph, epochs, adam, clip, stop, check, history, what)
            else:
                for l, (layer, loss) in enumerate(self.stages(graph)):
                    score = None
                    if patience is not None:
                        score = lambda l=l: self._validation(graph, l + 1)
                    train_layer(
                        layer, loss, adam(layer), epochs, l + 1, history, score, patience, check,
                        f"{what}, layer {l + 1}",
                    )  # fmt: skip
        history.seconds = watch.seconds
        return history

    def prepare(self, graph: Graph) -> None:
        """Draw what is drawn once: the class nodes' features and the wrong labels."""
        self._check(graph)
        if self.mode != "ff_la":
            self.augmenter = VirtualNodeAugmenter(graph, self.classes, self.direction, self.gen)
        if self.mode in ("ff_la", "ff_vn"):
            self.wrong = wrong_labels(graph.y, self.classes, self.negatives, self.gen)

    def stages(self, graph: Graph):
        """The greedy modes' layers with their losses, one at a time; see ``local.py``."""
        self._ready(graph)
        if self.mode == "sf":
            x, edges = self._linked(graph, graph.y, graph.train)
            known = graph.train.nonzero()[:, 0]
            rows = torch.cat([known, torch.arange(graph.n, len(x), device=known.device)])
            y = graph.y[known]
            objective = class_node_loss(y, torch.ones_like(y, dtype=torch.bool), self.temperature)
            return single_forward(self.layers, x, edges, objective, rows)
        if self.wrong.shape[1] != graph.n:
            raise ValueError(
                f"the wrong labels were drawn for {self.wrong.shape[1]} nodes, the graph has "
                f"{graph.n}: call fit or prepare with it"
            )
        inputs = [self._labeled(graph, y, graph.train) for y in (graph.y, *self.wrong)]
        share = self.mode == "ff_vn"
        return forward_forward(self.layers, inputs, graph.train, self.theta, share, self.total)

    def losses(self, graph: Graph) -> list[Float[Tensor, ""]]:
        """Each layer's loss with the present weights, with its history: what ``fit`` descends."""
        if self.mode in ("sf_top2loss", "sf_top2input"):
            states, edges, top = self._start(graph)
            return [step()[0] for _, step in self._top_down(graph, states, edges, top)]
        return [loss() for _, loss in self.stages(graph)]

    def _fit_top_down(self, graph, epochs, adam, clip, stop, check, history, what) -> None:
        states, edges, top = self._start(graph)
        optimizers = [adam(layer) for layer in self.layers]
        clip = clip if self.mode == "sf_top2loss" else None
        steps = lambda states: self._top_down(graph, states, edges, top)
        logged = set(range(0, epochs, max(1, epochs // 20))) | {epochs - 1}
        for epoch in progress(range(epochs), what):
            states, losses = train_step(steps, states, optimizers, self.order, clip)
            if epoch in logged:
                history.rows += [row(epoch, l, loss) for l, loss in losses.items()]
            if stop is not None and ((epoch + 1) % check == 0 or epoch + 1 == epochs):
                found = self._validation(graph, len(self.layers))
                history.rows += [
                    {"step": epoch + 1, "layer": l + 1, "val": found}
                    for l in range(len(self.layers))
                ]
                if stop.look(found, epoch, self.layers):
                    break
        if stop is not None:
            stop.back(self.layers)

    def _top_down(self, graph, states, edges, top):
        signal = self.mode.removeprefix("sf_top2")
        objective = class_node_loss(graph.y, graph.train, self.temperature)
        return top_down(self.layers, states, edges, objective, signal, top)

    def _start(self, graph: Graph) -> tuple[list[Tensor], Any, Tensor | None]:
        x, edges = self._linked(graph, graph.y, graph.train)
        top = None
        if self.mode == "sf_top2input":
            known = torch.cat([graph.train, graph.train.new_ones(self.classes)])
            labels = torch.cat([graph.y, torch.arange(self.classes, device=graph.y.device)])
            top = append_labels(x[:, :0], labels, known, self.classes)
        with torch.no_grad():
            return bottom_up(self.layers, x, edges, top), edges, top

    # ----------------------------------------------------------------------- inference

    @torch.no_grad()
    def scores(
        self,
        graph: Graph,
        known: Bool[Tensor, "n"] | None = None,
        times: Sequence[int] = range(3, 11),
    ) -> Float[Tensor, "l n c"]:
        """What each layer thinks of each class: goodness minus theta (FF), probabilities (SF).

        Args:
            known: nodes that keep their true label: the training nodes by default. FF modes may
                add validation nodes when they are tested.
            times: "sf_top2input": time steps after the first pass whose probabilities are averaged.

        Raises:
            RuntimeError: called before ``fit`` or ``prepare``.
            ValueError: ``times`` is empty or holds a number below 1.
        """
        self._ready(graph)
        if len(times) == 0 or min(times) < 1:
            raise ValueError(f"times={tuple(times)}: allowed are one or more steps, from 1")
        known = graph.train if known is None else known
        if self.mode in ("ff_la", "ff_vn"):
            everyone = torch.ones_like(known)
            found = []
            for c in range(self.classes):
                labels = torch.where(known, graph.y, c)
                x, edges = self._labeled(graph, labels, everyone)
                found.append([])
                for layer in self.layers:
                    x = layer(x, edges)
                    found[-1].append(goodness(x[: graph.n], self.total) - self.theta)
            return torch.stack([torch.stack(layers) for layers in found], -1)
        probability = lambda s: class_logits(s, graph.n, self.temperature).softmax(-1)
        if self.mode != "sf_top2input":
            x, edges = self._linked(graph, graph.y, graph.train)
            outputs = bottom_up(self.layers, x, edges)[1:]
            if self.mode == "sf_top2loss":  # what the losses saw: averages with the states above
                above = [
                    [layer.scaled(s) for s in outputs[l + 1 :]]
                    for l, layer in enumerate(self.layers)
                ]
                outputs = [torch.stack([h, *u]).mean(0) for h, u in zip(outputs, above)]
            return torch.stack([probability(h) for h in outputs])
        states, edges, top = self._start(graph)
        found = []
        for time in range(1, max(times) + 1):
            states = time_step(self.layers, states, edges, top, self.order)
            if time in times:
                found.append(torch.stack([probability(s) for s in states[1:]]))
        return torch.stack(found).mean(0)

    def predict(self, graph: Graph, known: Bool[Tensor, "n"] | None = None) -> Int[Tensor, "n"]:
        """The class with the largest score, summed over all layers."""
        return self.scores(graph, known).sum(0).argmax(-1)

    @torch.no_grad()
    def embed(self, graph: Graph) -> list[Float[Tensor, "m d"]]:
        """Every layer's output, class nodes last (SF and Top2Loss)."""
        if self.mode not in ("sf", "sf_top2loss"):
            raise ValueError(f"embed: mode is {self.mode!r}; allowed are 'sf' and 'sf_top2loss'")
        self._ready(graph)
        x, edges = self._linked(graph, graph.y, graph.train)
        return bottom_up(self.layers, x, edges)[1:]

    @torch.no_grad()
    def _validation(self, graph: Graph, depth: int) -> float:
        """Validation accuracy of the first ``depth`` layers, as if there were no others."""
        layers = self.layers
        try:
            self.layers = layers[:depth]
            guess = self.predict(graph)
        finally:
            self.layers = layers
        return (guess == graph.y)[graph.val].double().mean().item()

    # ----------------------------------------------------------------------- labels on graphs

    def _labeled(self, graph: Graph, labels: Tensor, nodes: Tensor) -> tuple[Tensor, Any]:
        """Features and edges of the graph with labels on ``nodes`` (FF)."""
        if self.mode == "ff_la":
            x = append_labels(graph.x, labels, nodes, self.classes)
            return x, self._edges(graph.edge_index, graph.n, graph.n)
        return self._linked(graph, labels, nodes)

    def _linked(self, graph: Graph, labels: Tensor, nodes: Tensor) -> tuple[Tensor, Any]:
        """Features and edges of the graph with ``nodes`` linked to their class nodes."""
        linked = self.augmenter(labels, nodes, graph)
        return linked.x, self._edges(linked.edge_index, linked.n, graph.n)

    def _edges(self, edge_index: Tensor, n: int, own: int) -> Any:
        """The edges in the form the convolution wants them in."""
        if self.conv in ("gcn", "sage"):
            return CONVS[self.conv].matrix(edge_index, n, dtype=self._dtype())
        if self.conv == "relational":
            virtual = (edge_index >= own).any(0)
            kinds = (edge_index[:, ~virtual], edge_index[:, virtual])
            return tuple(SAGE.matrix(kind, n, dtype=self._dtype()) for kind in kinds)
        return edge_index

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _check(self, graph: Graph) -> None:
        if graph.y is None or graph.train is None or not graph.train.any():
            raise ValueError("the graph needs labels y and training nodes in the mask train")
        check_features(graph, self.features, self._dtype())

    def _ready(self, graph: Graph) -> None:
        self._check(graph)
        missing = self.wrong if self.mode == "ff_la" else self.augmenter
        if missing is None:
            raise RuntimeError("call fit (or prepare) first: nothing has been drawn yet")
