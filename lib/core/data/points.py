"""Points in the plane and in space: clusters, toy classes, spheres."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHAPES = ("moons", "rings", "spiral", "xor")


def gaussian_clusters(
    means: Float[Tensor, "c d"], std: float, n: int, gen: torch.Generator, modes: int = 1
) -> tuple[Float[Tensor, "m d"], Int[Tensor, "m"]]:
    """``n`` points around each of ``c`` centers, with isotropic standard deviation ``std``.

    Args:
        modes: centers that make one class: the label of center ``i`` is ``i % (c // modes)``, so
            a class's centers lie ``c // modes`` rows apart.

    Returns:
        Points in the order of their centers, and their labels.

    Raises:
        ValueError: negative ``std``, ``n`` below 1, ``modes`` that do not divide the centers.
    """
    c, d = means.shape
    if std < 0:
        raise ValueError(f"std={std}: allowed is 0 or more")
    if n < 1:
        raise ValueError(f"n={n}: allowed is 1 or more")
    if modes < 1 or c % modes:
        raise ValueError(f"modes={modes}: allowed is a divisor of the {c} centers")
    noise = torch.randn(c, n, d, generator=gen, dtype=means.dtype).to(means.device)
    labels = torch.arange(c, device=means.device) % (c // modes)
    return (means[:, None] + std * noise).reshape(-1, d), labels.repeat_interleave(n)


def toy2d(
    shape: Literal["moons", "rings", "spiral", "xor"],
    n: int,
    noise: float,
    gen: torch.Generator,
) -> tuple[Float[Tensor, "n 2"], Int[Tensor, "n"]]:
    """Two classes in the plane that no straight line separates, in random order.

    Before noise: ``"moons"`` are two interlocking half circles of radius 1, ``"rings"`` circles
    of radius 0.5 and 1, ``"spiral"`` two arms of one and a half turns out to radius 1, and
    ``"xor"`` the four quadrants of [-1, 1]^2, labeled by whether the coordinates' signs differ.
    Class sizes differ by at most one, except in ``"xor"``.

    Raises:
        ValueError: an unknown shape, ``n`` below 2, negative ``noise``.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r}: allowed are {', '.join(SHAPES)}")
    if n < 2:
        raise ValueError(f"n={n}: allowed is 2 or more")
    if noise < 0:
        raise ValueError(f"noise={noise}: allowed is 0 or more")
    y = torch.arange(n) % 2
    t = torch.rand(n, generator=gen)
    if shape == "moons":
        angle = math.pi * t
        x = torch.stack([angle.cos(), angle.sin()], -1)
        x = torch.where(y[:, None] == 1, torch.tensor([1.0, 0.5]) - x, x)
    elif shape == "rings":
        angle, radius = 2 * math.pi * t, 0.5 + 0.5 * y
        x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    elif shape == "spiral":
        radius = t.sqrt()  # even along the arm rather than crowded at the center
        angle = 3 * math.pi * radius + math.pi * y
        x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    else:
        x = 2 * torch.stack([t, torch.rand(n, generator=gen)], -1) - 1
        y = ((x[:, 0] > 0) != (x[:, 1] > 0)).long()
    x = x + noise * torch.randn(n, 2, generator=gen)
    order = torch.randperm(n, generator=gen)
    return x[order], y[order]


def sphere(
    n: int, d: int, gen: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n d"]:
    """``n`` points, uniform on the unit sphere of ``d`` coordinates (dimension ``d - 1``).

    Raises:
        ValueError: negative ``n``, ``d`` below 1.
    """
    if n < 0:
        raise ValueError(f"n={n}: allowed is 0 or more")
    if d < 1:
        raise ValueError(f"d={d}: allowed is 1 or more")
    z = torch.randn(n, d, generator=gen, dtype=torch.float64)
    return (z / z.norm(dim=-1, keepdim=True)).to(dtype)
