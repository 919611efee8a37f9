"""Data that needs no network."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.seeds import child


class Split(NamedTuple):
    """Training and test samples; ``x`` as floats, ``y`` as int64 labels or as float targets."""

    x: Float[Tensor, "n ..."]
    y: Int[Tensor, "n"] | Float[Tensor, "n"]
    x_test: Float[Tensor, "m ..."]
    y_test: Int[Tensor, "m"] | Float[Tensor, "m"]

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


def table(name: str, seed: int, test: float = 0.2) -> Split:
    """One of scikit-learn's tables, split at random and standardized by its training part.

    ``"diabetes"`` (442 patients, 10 columns; the target is standardized too) is regression;
    ``"breast_cancer"`` (569, 30 columns, 2 classes), ``"wine"`` (178, 13, 3) and ``"iris"``
    (150, 4, 3) are classification. A column that is constant in training becomes zero.

    Args:
        seed: of the split.
        test: fraction of the rows that are kept for testing, rounded up.

    Raises:
        ValueError: an unknown name, a fraction that leaves nothing to train or to test on.
    """
    if name not in TABLES:
        raise ValueError(f"name={name!r}: allowed are {', '.join(sorted(TABLES))}")
    x, y = _table(name)
    n_test = math.ceil(test * len(x)) if 0 < test < 1 else 0
    if not 0 < n_test < len(x):
        raise ValueError(f"test={test}: allowed is a fraction between 0 and 1")
    order = torch.randperm(len(x), generator=child(seed, "table", name))
    learn, held = order[:-n_test], order[-n_test:]
    x = _standardized(x, x[learn])
    if y.is_floating_point():
        y = _standardized(y, y[learn])
    return Split(x[learn], y[learn], x[held], y[held])


TABLES = {
    "diabetes": "load_diabetes",
    "breast_cancer": "load_breast_cancer",
    "wine": "load_wine",
    "iris": "load_iris",
}


def photographs() -> list[Float[Tensor, "3 h w"]]:
    """Two color photographs, 427 x 640, values in [0, 1]: a temple and a flower (scikit-learn's).

    Reading them needs Pillow.
    """
    return [image.clone() for image in _photographs()]


def patches(
    images: Sequence[Float[Tensor, "c _ _"]], size: int, n: int, gen: torch.Generator
) -> Float[Tensor, "n c size size"]:
    """``n`` square windows at random places of random images, all places alike.

    Raises:
        ValueError: no images, a side below 1, or larger than an image.
    """
    sides = [tuple(image.shape[-2:]) for image in images]
    if not images or size < 1 or any(size > min(side) for side in sides):
        raise ValueError(f"size={size} with images of {sides}: allowed is 1 to the smallest side")
    places = torch.tensor([(h - size + 1) * (w - size + 1) for h, w in sides]).double()
    which = torch.multinomial(places, n, replacement=True, generator=gen)
    u, v = torch.rand(2, n, generator=gen, device=gen.device).tolist()
    out = []
    for i, a, b in zip(which.tolist(), u, v):
        top, left = (int(t * (side - size + 1)) for t, side in zip((a, b), sides[i]))
        out.append(images[i][:, top : top + size, left : left + size])
    return torch.stack(out)


def _standardized(values: Tensor, reference: Tensor) -> Tensor:
    mean, std = reference.mean(0), reference.std(0, correction=0)
    return ((values - mean) / torch.where(std > 0, std, torch.inf)).float()


@functools.cache
def _table(name: str) -> tuple[Tensor, Tensor]:
    import sklearn.datasets

    raw = getattr(sklearn.datasets, TABLES[name])()
    dtype = torch.float64 if name == "diabetes" else torch.int64
    return torch.tensor(raw.data, dtype=torch.float64), torch.tensor(raw.target, dtype=dtype)


@functools.cache
def _photographs() -> list[Tensor]:
    try:
        from sklearn.datasets import load_sample_images

        raw = load_sample_images().images
    except ImportError as error:
        raise ImportError(
            "photographs() reads JPEG files with Pillow: pip install pillow"
        ) from error
    return [torch.tensor(image, dtype=torch.float32).permute(2, 0, 1) / 255 for image in raw]


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1998))
    return x[order], y[order]
