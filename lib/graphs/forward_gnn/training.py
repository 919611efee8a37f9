"""Training one layer, or all layers by one time step, and stopping at the best weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lib.core.fitting import History, progress
from lib.graphs.forward_gnn.local import turns


def train_layer(
    layer: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    number: int,
    history: History,
    score: Callable[[], float] | None = None,
    patience: int | None = None,
    check: int = 10,
    what: str = "training",
) -> None:
    """Descend one layer's loss; with ``score`` and ``patience``, stop early at its best."""
    logged = set(range(0, epochs, max(1, epochs // 20))) | {epochs - 1}
    best = Best(patience)
    for epoch in progress(range(epochs), what):
        value = loss()
        if epoch in logged:
            history.rows.append(row(epoch, number, value))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        if score is None or ((epoch + 1) % check and epoch + 1 < epochs):
            continue
        found = score()
        history.rows.append({"step": epoch + 1, "layer": number, "val": found})
        if best.look(found, epoch, layer):
            break
    if score is not None:
        best.back(layer)


def train_step(
    steps: Callable[[list[Tensor]], Iterator],
    states: list[Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    order: Literal["all", "alternate"],
    clip: float | None,
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """One update of every layer; returns the new states, and the losses by layer, from 1.

    Args:
        steps: ``top_down`` as a function of the states.
    """
    losses = {}
    for turn in turns(len(optimizers), order):
        ready, new = list(steps(states)), {}
        for l in turn:
            layer, step = ready[l]
            losses[l + 1], h = step()
            optimizers[l].zero_grad(set_to_none=True)
            losses[l + 1].backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(layer.parameters(), clip)
            optimizers[l].step()
            new[l + 1] = h.detach()
        states = [new.get(i, s) for i, s in enumerate(states)]
    return states, losses


class Best:
    """The best weights so far, and whether it is time to stop looking for better ones."""

    def __init__(self, patience: int | None) -> None:
        self.patience, self.score, self.epoch, self.weights = patience, -1.0, 0, None

    def look(self, score: float, epoch: int, layer: nn.Module) -> bool:
        """Keep the weights if ``score`` is a new best; else, whether patience is at an end."""
        if score > self.score:
            self.score, self.epoch = score, epoch
            self.weights = copy.deepcopy(layer.state_dict())
            return False
        return epoch - self.epoch >= self.patience

    def back(self, layer: nn.Module) -> None:
        """Put the best weights back."""
        layer.load_state_dict(self.weights)


def row(epoch: int, number: int, loss: Tensor) -> dict:
    value = loss.item()
    if value != value or abs(value) == float("inf"):
        raise FloatingPointError(f"layer {number}: the loss is {value} at epoch {epoch}")
    return {"step": epoch, "layer": number, "loss": value}
