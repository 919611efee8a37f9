"""An MLP trained by the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.auglocal.auxiliary import dense, local_network
from lib.core.seeds import child
from lib.models.local_learning import LocalBlocks


class MLPTrainer:
    """A plain classifier of dense layers, trained locally.

    ``groups`` names the parameters of the primary network layer by layer; heads are not in it.
    """

    def __init__(self, model: LocalBlocks, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        parts = [*model.blocks, model.heads[-1]]
        self.groups: dict[str, list[nn.Parameter]] = {
            f"layer {i}": list(part.parameters()) for i, part in enumerate(parts)
        }

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]) -> None:
        """One update on one batch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.local_step(x, y)
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Logits of the primary network."""
        training = self.model.training
        self.model.eval()
        logits = self.model(x)
        self.model.train(training)
        return logits


def mlp_trainer(
    widths: Sequence[int],
    *,
    seed: int,
    depth: int = 2,
    c: float = 1.0,
    head: Literal["auglocal", "0c1f"] = "auglocal",
    lr: float = 2e-3,
    device: torch.device | str = "cpu",
) -> MLPTrainer:
    """An MLP whose layers learn from heads that are small MLPs themselves.

    The paper has no MLPs. Its optimizer is SGD with momentum; here it is Adam, because without
    normalization SGD with momentum diverges from eight layers on. The local gradients are the same.

    Args:
        widths: inputs, hidden layers, classes: ``[64, 128, 128, 10]``. Every hidden layer is a
            module; the last one is trained with the classifier.
        depth: layers of the first head, falling to 1 with ``c=1``.
        lr: of Adam.

    Raises:
        ValueError: fewer than three ``widths``.
    """
    if len(widths) < 3:
        raise ValueError(f"widths={list(widths)}: allowed are inputs, hidden layers and classes")
    model = local_network(
        widths[1:-1],
        widths[-1],
        head=head,
        channels=widths[0],
        depth=depth,
        c=c,
        layer=dense,
        gen=child(seed, "auglocal"),
    ).to(device)
    return MLPTrainer(model, torch.optim.Adam(model.parameters(), lr=lr))
