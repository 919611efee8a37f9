"""Which of the layers that follow layer l its head copies, and how many of them."""

from __future__ import annotations

from typing import Literal

import torch

Rule = Literal["uniform", "next", "last", "random"]
RULES = ("uniform", "next", "last", "random")


def uniform_layer_selection(n: int, l: int, d: int) -> list[int]:
    """``d`` layers evenly spaced between layer ``l`` and the last one, ``n - 1``.

    ``round(l + (n - 1 - l) k / d)`` for ``k = 1..d``; halves go to the even neighbor. The last
    layer is always among them and ``l`` never is. Where ``d`` or fewer layers follow, all of them.

    Raises:
        ValueError: ``n`` below 2, ``l`` outside 0..n-2, or ``d`` below 1.
    """
    _check(n, l, d)
    following = n - 1 - l
    if d >= following:
        return list(range(l + 1, n))
    return [round(l + following / d * k) for k in range(1, d + 1)]


def layer_selection(
    n: int, l: int, d: int, rule: Rule = "uniform", gen: torch.Generator | None = None
) -> list[int]:
    """``d`` of the layers after ``l``: evenly spaced, the next ones, the last ones, or at random.

    All rules take every following layer where ``d`` or fewer follow.

    Raises:
        ValueError: unknown ``rule``, "random" without ``gen``, ``l`` or ``d`` out of range.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: allowed are {', '.join(map(repr, RULES))}")
    if rule == "uniform":
        return uniform_layer_selection(n, l, d)
    _check(n, l, d)
    following = list(range(l + 1, n))
    if rule == "next":
        return following[:d]
    if rule == "last":
        return following[-d:]
    if gen is None:
        raise ValueError("gen=None: rule='random' needs a generator")
    chosen = torch.randperm(len(following), generator=gen)[:d]
    return sorted(following[i] for i in chosen.tolist())


def pyramidal_depths(n: int, d: int, c: float = 1.0) -> list[int]:
    """Depths of the heads of modules 0..n-2: ``d`` at the bottom, falling linearly.

    ``max(1, round(d (1 - r) + r))`` with ``r = c l / (n - 2)``: at ``c = 1`` the topmost head has
    depth 1, at ``c = 0`` all have ``d``. The authors' program uses ``c = 0.5`` and counts
    ``n - d`` modules, because there the last ``d + 1`` layers are one module, trained end to end.

    Raises:
        ValueError: ``n`` or ``d`` below 1, ``c`` outside [0, 1].
    """
    if n < 1 or d < 1:
        raise ValueError(f"n={n}, d={d}: both must be 1 or more")
    if not 0 <= c <= 1:
        raise ValueError(f"c={c}: allowed is 0 (constant depth) to 1 (down to depth 1)")
    shares = [c * l / max(1, n - 2) for l in range(n - 1)]
    return [max(1, round(d * (1 - r) + r)) for r in shares]


def constant_depths(n: int, d: int) -> list[int]:
    """``d`` for every head, or as many layers as follow: ``min(d, n - 1 - l)``."""
    return [min(a, n - 1 - l) for l, a in enumerate(pyramidal_depths(n, d, c=0.0))]


def _check(n: int, l: int, d: int) -> None:
    if n < 2:
        raise ValueError(f"n={n}: allowed is 2 or more layers, so that one follows another")
    if not 0 <= l <= n - 2:
        raise ValueError(f"l={l}: allowed is 0 to n - 2 = {n - 2}; no layer follows the last one")
    if d < 1:
        raise ValueError(f"d={d}: allowed is 1 or more")
