"""Images for which the right answer is known: two shapes, their classes and their places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.core.data.images import KINDS, draw, scatter, texture


class ShapeScenes(NamedTuple):
    """Scenes of two shapes: image, which classes are in it, and where.

    ``pair`` holds the two classes, ``masks`` their visible pixels in the same order.
    """

    x: Float[Tensor, "n 3 h w"]
    y: Float[Tensor, "n 6"]
    pair: Int[Tensor, "n 2"]
    masks: Bool[Tensor, "n 2 h w"]


def shape_scenes(n: int, gen: torch.Generator, size: int = 32) -> ShapeScenes:
    """``n`` noisy images, each with two of six shapes: a multi-label task with known places.

    Everything but the finer of the two noises grows with ``size``.
    """
    shapes = scatter(
        n,
        list(KINDS),
        size,
        gen,
        radius=(4.5 / 32 * size, 6 / 32 * size),
        gap=13 / 32 * size,
        angle=(-0.3, 0.3),
    )
    scene = draw(shapes, size, texture(block=max(1, size // 8)), gen)
    y = torch.zeros(n, len(KINDS)).scatter_(1, shapes.kind, 1.0)
    return ShapeScenes(scene.image, y, shapes.kind, scene.masks)
