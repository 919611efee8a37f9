"""An MLP trained by the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from lib.beyond_backprop.auglocal.auxiliary import dense, local_network
from lib.core.seeds import child
from lib.models.local_mlp import LocalTrainer


def mlp_trainer(
    widths: Sequence[int],
    *,
    seed: int,
    depth: int = 2,
    c: float = 1.0,
    head: Literal["auglocal", "0c1f"] = "auglocal",
    lr: float = 2e-3,
    device: torch.device | str = "cpu",
) -> LocalTrainer:
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
    return LocalTrainer(model, torch.optim.Adam(model.parameters(), lr=lr))
