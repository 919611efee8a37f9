"""Rendered scenes: simple shapes on a background, with a mask and a box for each instance.

Shapes are signed distance functions evaluated at pixel centers, so a whole batch of scenes is a
few tensor operations (2,000 images of 40 x 40 with two shapes take well under a second), edges are
smooth over one pixel, and a pixel belongs to a shape's mask exactly when its center lies inside.

Conventions: positions and lengths are in pixels, ``x`` to the right and ``y`` down, and the center
of the pixel in row i and column j is ``(x, y) = (j + 0.5, i + 0.5)``. Images are in [0, 1]. Later
shapes hide earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Background = float | Tensor | Callable[[tuple[int, int, int, int], torch.Generator], Tensor]


class Shape(NamedTuple):
    """One shape. ``radius`` is that of the circle around it; ``angle`` turns it, in radians.

    ``fill=1`` is solid; a smaller number leaves an outline of ``fill * radius`` pixels.
    """

    kind: str
    center: tuple[float, float]
    radius: float
    angle: float = 0.0
    fill: float = 1.0
    color: tuple[float, ...] = (1.0, 1.0, 1.0)


class Shapes(NamedTuple):
    """A batch of scenes with ``k`` shapes each; ``kind`` indexes ``KINDS``, -1 draws nothing."""

    kind: Int[Tensor, "b k"]
    center: Float[Tensor, "b k 2"]
    radius: Float[Tensor, "b k"]
    angle: Float[Tensor, "b k"]
    fill: Float[Tensor, "b k"]
    color: Float[Tensor, "b k c"]


class Scene(NamedTuple):
    """What ``draw`` returns; a batch has one more axis in front of each field.

    ``masks`` holds the visible pixels of each shape, ``boxes`` their half-open bounding boxes
    ``(x0, y0, x1, y1)``, all zero for a shape that is nowhere visible.
    """

    image: Float[Tensor, "*b c h w"]
    masks: Bool[Tensor, "*b k h w"]
    boxes: Int[Tensor, "*b k 4"]


def draw(
    shapes: Sequence[Shape] | Shapes,
    size: int,
    background: Background = 0.0,
    gen: torch.Generator | None = None,
    chunk: int = 256,
) -> Scene:
    """Render one scene (a sequence of ``Shape``) or a batch of them (``Shapes``).

    Args:
        size: side of the square image in pixels.
        background: a gray value, an image ("c h w" or "b c h w"), or a function of the batch's
            shape and ``gen`` that draws one (see ``texture``).
        gen: needed when ``background`` is a function.
        chunk: scenes rendered at a time, which bounds the memory.

    Raises:
        ValueError: unknown kind, no size, a radius that is not positive, a fill outside (0, 1],
            or a random background without a generator.
    """
    if size < 1:
        raise ValueError(f"size={size}: allowed is 1 or more")
    if not isinstance(shapes, Shapes):
        scene = draw(_stack(shapes), size, background, gen, chunk)
        return Scene(scene.image[0], scene.masks[0], scene.boxes[0])
    _check(shapes)
    b, k = shapes.kind.shape
    image = _background(background, (b, shapes.color.shape[-1], size, size), gen)
    masks = torch.zeros(b, k, size, size, dtype=torch.bool)
    for start in range(0, b, chunk):
        part = slice(start, start + chunk)
        depth = distance(Shapes(*(t[part] for t in shapes)), size)  # negative inside
        for i in range(k):
            alpha = (0.5 - depth[:, i]).clamp(0, 1)[:, None]  # share of the pixel that is covered
            color = shapes.color[part, i, :, None, None]
            image[part] += alpha * (color - image[part])
            inside = depth[:, i] < 0
            masks[part, :i] &= ~inside[:, None]
            masks[part, i] = inside
    return Scene(image.clamp_(0, 1), masks, boxes(masks))


def distance(shapes: Shapes, size: int) -> Float[Tensor, "b k h w"]:
    """Signed distance in pixels from each pixel's center to each outline, negative inside."""
    b, k = shapes.kind.shape
    kind, radius = shapes.kind.reshape(-1), shapes.radius.reshape(-1)
    at = torch.arange(size) + 0.5
    dx = at[None, None, :] - shapes.center.reshape(-1, 2)[:, 0, None, None]
    dy = at[None, :, None] - shapes.center.reshape(-1, 2)[:, 1, None, None]
    cos = (shapes.angle.cos() / shapes.radius).reshape(-1, 1, 1)
    sin = (shapes.angle.sin() / shapes.radius).reshape(-1, 1, 1)
    out = torch.full((b * k, size, size), float("inf"))
    for index, name in enumerate(KINDS):
        rows = (kind == index).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        c, s = cos[rows], sin[rows]
        u, v = c * dx[rows] + s * dy[rows], c * dy[rows] - s * dx[rows]
        d = KINDS[name](u, v)
        fill = shapes.fill.reshape(-1)[rows, None, None]
        if (fill < 1).any():  # the band between the outline and its copy, shrunk inwards
            d = torch.where(fill < 1, torch.maximum(d, -d - fill), d)
        out[rows] = d * radius[rows, None, None]
    return out.reshape(b, k, size, size)


def texture(
    level: float = 0.3, coarse: float = 0.06, fine: float = 0.06, block: int = 4
) -> Callable[[tuple[int, int, int, int], torch.Generator], Tensor]:
    """A noisy background: ``level``, plus blocks of ``block`` pixels, plus every pixel alone.

    ``coarse`` and ``fine`` are the standard deviations of the two noises.
    """

    def sample(shape: tuple[int, int, int, int], gen: torch.Generator) -> Tensor:
        b, c, h, w = shape
        small = torch.randn(b, c, -(-h // block), -(-w // block), generator=gen)
        blocks = small.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :h, :w]
        return level + coarse * blocks + fine * torch.randn(shape, generator=gen)

    return sample


def scatter(
    n: int,
    kinds: Sequence[str],
    size: int,
    gen: torch.Generator,
    *,
    k: int = 2,
    radius: tuple[float, float] = (4.5, 6.0),
    gap: float = 13.0,
    angle: tuple[float, float] = (0.0, 2 * torch.pi),
    color: tuple[float, float] = (0.62, 0.94),
) -> Shapes:
    """``n`` scenes of ``k`` shapes of different kinds at random places, angles, sizes and colors.

    Shapes lie inside the image and their centers are at least ``gap`` pixels apart (scenes that
    violate this are drawn again).

    Raises:
        ValueError: fewer kinds than shapes, an unknown kind, or shapes or a gap that do not fit.
    """
    if not 1 <= k <= len(kinds):
        raise ValueError(f"k={k}: allowed is 1 to {len(kinds)}, the number of kinds")
    if 2 * max(radius) > size:
        raise ValueError(f"radius={radius}: a shape that wide does not fit {size} pixels")
    index = torch.tensor([_kind(name) for name in kinds])
    order = torch.rand(n, len(kinds), generator=gen).argsort(1)[:, :k]
    r = _uniform((n, k), *radius, gen)
    center = torch.empty(n, k, 2)
    todo = torch.arange(n)
    for _ in range(1000):
        low = r[todo, :, None]
        center[todo] = low + (size - 2 * low) * torch.rand(len(todo), k, 2, generator=gen)
        apart = torch.cdist(center[todo], center[todo]) + 1e9 * torch.eye(k)
        todo = todo[(apart < gap).flatten(1).any(1)]
        if len(todo) == 0:
            break
    else:
        raise ValueError(f"gap={gap}: {k} shapes that far apart do not fit {size} pixels")
    turn = _uniform((n, k), *angle, gen)
    paint = _uniform((n, k, 3), *color, gen)
    return Shapes(index[order], center, r, turn, torch.ones(n, k), paint)


def boxes(masks: Bool[Tensor, "*b h w"]) -> Int[Tensor, "*b 4"]:
    """Half-open bounding boxes ``(x0, y0, x1, y1)`` of masks; zeros where a mask is empty."""
    ends = []
    for axis in (-2, -1):  # columns, then rows
        line = masks.any(axis)
        n = line.shape[-1]
        first = line.int().argmax(-1)
        last = n - line.flip(-1).int().argmax(-1)
        there = line.any(-1)
        ends.append((first * there, last * there))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], -1)


# Outlines in a frame where the surrounding circle has radius 1; each returns a signed distance.


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square()).sqrt_().sub_(1.0)


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square()).sqrt_().sub_(0.7).abs_().sub_(0.3)


def _box(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    du, dv = u.abs() - a, v.abs() - b
    outside = (du.clamp(min=0).square() + dv.clamp(min=0).square()).sqrt()
    return outside + torch.maximum(du, dv).clamp(max=0)


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.8, 0.8)


def _bar(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 1.0, 0.28)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 1.0, 0.28), _box(u, v, 0.28, 1.0))


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    # Equilateral, corners on the circle. Two half planes by symmetry, then the corners' distance.
    a = 0.75**0.5
    u = u.abs()
    side, base = a * u - 0.5 * v - 0.5, v - 0.5
    d = torch.maximum(side, base)
    foot = (u - a).square() + (v - 0.5).square()  # nearest point is the lower corner
    beyond = (base > 0) & (u > a) | (side > 0) & (0.5 * u + a * v > a)
    top = u.square() + (v + 1).square()
    above = (side > 0) & (0.5 * u + a * v < -a)
    return torch.where(beyond, foot.sqrt(), torch.where(above, top.sqrt(), d))


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "bar": _bar,
}


def _kind(name: str) -> int:
    if name not in KINDS:
        raise ValueError(f"kind={name!r}: allowed are {', '.join(KINDS)}")
    return list(KINDS).index(name)


def _stack(shapes: Sequence[Shape]) -> Shapes:
    if len(shapes) == 0:
        raise ValueError("shapes is empty: at least one Shape is needed")
    if len({len(s.color) for s in shapes}) > 1:
        raise ValueError(f"shapes: colors of one length, got {[len(s.color) for s in shapes]}")
    columns = [
        torch.tensor([[getattr(s, name) for s in shapes]], dtype=torch.float32)
        for name in Shapes._fields[1:]
    ]
    return Shapes(torch.tensor([[_kind(s.kind) for s in shapes]]), *columns)


def _check(shapes: Shapes) -> None:
    if shapes.kind.numel() and not -1 <= shapes.kind.min() <= shapes.kind.max() < len(KINDS):
        raise ValueError(f"kind: allowed are -1 (nothing) to {len(KINDS) - 1}")
    if not (shapes.radius > 0).all():
        raise ValueError(f"radius must be positive, got {float(shapes.radius.min())}")
    if not ((shapes.fill > 0) & (shapes.fill <= 1)).all():
        raise ValueError("fill must be in (0, 1]; 1 is solid")


def _background(background: Background, shape: tuple[int, int, int, int], gen) -> Tensor:
    if callable(background):
        if gen is None:
            raise ValueError("gen=None: a random background needs a torch.Generator")
        return background(shape, gen)
    if isinstance(background, Tensor):
        return background.expand(shape).clone()
    return torch.full(shape, float(background))


def _uniform(shape: tuple[int, ...], low: float, high: float, gen: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=gen)
