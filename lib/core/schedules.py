"""Learning-rate schedules as pure functions of the step: ``f(step) -> factor``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

Name = Literal["constant", "linear", "polynomial", "cosine", "exponential", "step"]


def schedule(
    name: Name,
    total: int,
    *,
    warmup: int = 0,
    floor: float = 0.0,
    power: float = 1.0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> Callable[[int], float]:
    """A factor on the base rate as a function of the absolute step.

    After the warm-up, with ``p`` the share of the rest that is done, from 0 to 1::

        constant     1
        linear       floor + (1 - floor) (1 - p)
        polynomial   floor + (1 - floor) (1 - p)^power
        cosine       floor + (1 - floor) (1 + cos(pi p)) / 2
        exponential  floor^p                                     (floor must be positive)
        step         gamma^(number of milestones passed)

    The warm-up rises linearly and is never zero: step ``t < warmup`` has factor
    ``(t + 1) / warmup``. From ``total`` on the last value stays. Being a pure function, a schedule
    can be entered in the middle, and can drive anything else that anneals.

    Args:
        total: steps until the floor is reached, the warm-up included.
        milestones: absolute steps at which "step" multiplies by ``gamma``.

    Raises:
        ValueError: an unknown name, or a number outside its range.
    """
    if total < 1:
        raise ValueError(f"total={total}: allowed is 1 or more")
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup={warmup}: allowed is 0 to total={total}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor}: allowed is 0 to 1, a share of the base rate")
    if not power > 0:
        raise ValueError(f"power={power}: allowed is any positive number")
    if not gamma > 0:
        raise ValueError(f"gamma={gamma}: allowed is any positive number")
    if milestones and name != "step":
        raise ValueError(f"milestones={tuple(milestones)}: only name='step' has them, not {name!r}")
    if name == "exponential" and floor == 0:
        raise ValueError("floor=0.0: name='exponential' needs a positive floor")
    shapes = {
        "constant": lambda p: 1.0,
        "linear": lambda p: floor + (1 - floor) * (1 - p),
        "polynomial": lambda p: floor + (1 - floor) * (1 - p) ** power,
        "cosine": lambda p: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * p)),
        "exponential": lambda p: floor**p,
        "step": None,
    }
    if name not in shapes:
        raise ValueError(f"name={name!r}: allowed are {', '.join(map(repr, shapes))}")
    shape, marks = shapes[name], sorted(milestones)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if shape is None:
            return gamma ** sum(step >= m for m in marks)
        return shape(min(1.0, (step - warmup) / max(1, total - warmup)))

    return factor


def per_step(
    optimizer: torch.optim.Optimizer, f: Callable[[int], float]
) -> torch.optim.lr_scheduler.LambdaLR:
    """PyTorch's scheduler for ``f``; call its ``step()`` after every ``optimizer.step()``."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, f)
