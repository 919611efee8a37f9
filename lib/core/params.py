"""Parameters as points in a space: as one vector, on a line, and how far apart they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor

Params = dict[str, Tensor]


def interpolate(a: Params, b: Params, t: float) -> Params:
    """``(1 - t) a + t b``, name by name; ``t`` outside 0 to 1 extrapolates.

    Raises:
        ValueError: the names or shapes of ``a`` and ``b`` differ.
    """
    _check_same(a, b)
    return {name: torch.lerp(a[name], b[name], t) for name in a}


def path_losses(
    a: Params, b: Params, loss: Callable[[Params], Tensor | float], n: int = 11
) -> list[tuple[float, float]]:
    """``(t, loss)`` at ``n`` evenly spaced points of the line from ``a`` to ``b``, ends included.

    Raises:
        ValueError: ``n`` below 2; names or shapes that differ.
    """
    if n < 2:
        raise ValueError(f"n={n}: allowed is 2 or more, for the two ends")
    points = [i / (n - 1) for i in range(n)]
    with torch.no_grad():
        return [(t, float(loss(interpolate(a, b, t)))) for t in points]


def distance(a: Params, b: Params) -> tuple[float, float, float]:
    """L2 distance, the same relative to the norm of ``b``, and the cosine of ``a`` and ``b``.

    All parameters count as one long vector. The cosine is NaN where either is zero.

    Raises:
        ValueError: names or shapes that differ.
    """
    _check_same(a, b)
    difference = sum(float((a[k].double() - b[k].double()).square().sum()) for k in a) ** 0.5
    dot = sum(float((a[k].double() * b[k].double()).sum()) for k in a)
    norm_a, norm_b = (
        sum(float(p.double().square().sum()) for p in q.values()) ** 0.5 for q in (a, b)
    )
    relative = difference / norm_b if norm_b else float("inf" if difference else 0)
    return difference, relative, dot / (norm_a * norm_b) if norm_a * norm_b else float("nan")


def flatten(params: Params) -> Shaped[Tensor, "p"]:
    """All numbers as one vector, name after name in the order of the dictionary."""
    return torch.cat([tensor.reshape(-1) for tensor in params.values()])


def unflatten(vector: Shaped[Tensor, "p"], like: Params) -> Params:
    """``flatten`` undone: views of ``vector`` with the names and shapes of ``like``.

    Raises:
        ValueError: another number of entries.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if len(vector) != sum(sizes):
        raise ValueError(f"vector has {len(vector)} entries; like has {sum(sizes)}")
    parts = vector.split(sizes)
    return {name: part.view(t.shape) for (name, t), part in zip(like.items(), parts, strict=True)}


def _check_same(a: Params, b: Params) -> None:
    if a.keys() != b.keys():
        only = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"a and b must have the same names; only one of them has {', '.join(only)}"
        )
    for name in a:
        if a[name].shape != b[name].shape:
            shapes = f"{tuple(a[name].shape)} and {tuple(b[name].shape)}"
            raise ValueError(f"{name}: the shapes differ, {shapes}")
