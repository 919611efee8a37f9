"""Which samples are trained on, and what their labels say."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def few_per_class(y: Int[Tensor, "n"], k: int, gen: torch.Generator) -> Int[Tensor, "m"]:
    """Indices of ``k`` samples of every class that occurs in ``y``, in random order.

    Raises:
        ValueError: ``k`` below 1, or a class with fewer samples.
    """
    if k < 1:
        raise ValueError(f"k={k}: allowed is 1 or more")
    chosen = []
    for c in y.unique().tolist():
        places = (y == c).nonzero()[:, 0]
        if len(places) < k:
            raise ValueError(f"k={k}: class {c} has {len(places)} samples")
        order = torch.randperm(len(places), generator=gen).to(places.device)
        chosen.append(places[order[:k]])
    if not chosen:
        return y.new_empty(0)
    all_of_them = torch.cat(chosen)
    return all_of_them[torch.randperm(len(all_of_them), generator=gen).to(y.device)]


def flip_labels(
    y: Int[Tensor, "n"], p: float, gen: torch.Generator, classes: int | None = None
) -> Int[Tensor, "n"]:
    """A copy of ``y`` where each label is, with probability ``p``, one of the *other* classes.

    Args:
        classes: their number; the largest label plus one if None.

    Raises:
        ValueError: ``p`` outside 0 to 1, fewer than two classes, a label that is none of them.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: allowed is 0 to 1")
    if len(y) == 0:
        return y.clone()
    classes = int(y.max()) + 1 if classes is None else classes
    if classes < 2:
        raise ValueError(f"classes={classes}: allowed is 2 or more")
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"y: labels from 0 to {classes - 1} are allowed")
    flip = torch.rand(len(y), generator=gen) < p
    step = torch.randint(1, classes, (len(y),), generator=gen)
    return torch.where(flip.to(y.device), (y + step.to(y)) % classes, y)
