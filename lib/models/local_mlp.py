"""A plain classifier of dense layers under local losses: one update, one prediction."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.models.local_learning import LocalBlocks


class LocalTrainer:
    """``LocalBlocks`` over vectors with its optimizer: ``step``, ``predict`` and ``groups``.

    Attributes:
        groups: the parameters of the primary network layer by layer; heads are not in it.
    """

    def __init__(self, model: LocalBlocks, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        parts = [*model.blocks, model.heads[-1]]
        self.groups: dict[str, list[nn.Parameter]] = {
            f"layer {i}": list(part.parameters()) for i, part in enumerate(parts)
        }

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]) -> None:
        """One update on one batch, block by block; all blocks' weights move at its end."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.local_step(x, y)
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Logits of the primary network, as in evaluation; its mode comes back."""
        training = self.model.training
        self.model.eval()
        logits = self.model(x)
        self.model.train(training)
        return logits
