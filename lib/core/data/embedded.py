"""Data that needs no network."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Split(NamedTuple):
    """Training and test samples; ``x`` as floats, class labels ``y`` as int64."""

    x: Float[Tensor, "n ..."]
    y: Int[Tensor, "n"]
    x_test: Float[Tensor, "m ..."]
    y_test: Int[Tensor, "m"]

    def to(self, device: torch.device | str) -> Split:
        """The same samples on ``device``."""
        return Split(*(t.to(device) for t in self))


def digits(train: int = 1197, test: int = 600, image: bool = False, size: int = 8) -> Split:
    """Handwritten digits, 8x8 gray values in [0, 1]: scikit-learn's copy of the UCI test set.

    All 1,797 images stand in one fixed permutation for the whole book: training takes its first
    ``train``, testing its last ``test``, so chapters with different sizes never train on another
    chapter's test images unless their sizes overlap, which is an error.

    Args:
        image: shape "n 1 size size" instead of "n size*size".
        size: side of the image after bilinear resampling.

    Raises:
        ValueError: sizes that are not positive or overlap.
    """
    x, y = _digits()
    if train < 1 or test < 1 or train + test > len(x):
        raise ValueError(
            f"train={train}, test={test}: both must be positive and their sum at most {len(x)}"
        )
    if size < 1:
        raise ValueError(f"size={size}: allowed is 1 or more")
    if size != 8:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    if not image:
        x = x.flatten(1)
    return Split(x[:train].clone(), y[:train].clone(), x[-test:].clone(), y[-test:].clone())


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1998))
    return x[order], y[order]
