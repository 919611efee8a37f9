"""The two data sets: a finite-state machine with one random symbol, and drawn primitives."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

LEVEL = 0.8
"""A symbol 1 is the value 0.8, a symbol 0 the value -0.8."""


def finite_state_machine(
    sequences: int, steps: int, gen: torch.Generator, p: float = 0.3
) -> tuple[Float[Tensor, "s t 1"], Int[Tensor, "s t"]]:
    """``0, 1, b, 0, 1, b, ...`` with a new ``b`` in every cycle: 1 with probability ``p``.

    Every sequence begins at a random place of the cycle.

    Returns:
        The values, and the place in the cycle: 0, 1, or 2 where the symbol is random.
    """
    if sequences < 1 or steps < 1:
        raise ValueError(f"sequences={sequences}, steps={steps}: allowed is 1 or more")
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: allowed is 0 to 1")
    start = torch.randint(3, (sequences, 1), generator=gen)
    place = (start + torch.arange(steps)) % 3
    b = torch.rand(sequences, steps, generator=gen) < p
    one = (place == 1) | ((place == 2) & b)
    return torch.where(one, LEVEL, -LEVEL)[..., None], place


def lissajous_primitives(
    sequences: int,
    steps: int,
    gen: torch.Generator,
    period: int = 12,
    noise: float = 0.05,
) -> tuple[Float[Tensor, "s t 2"], Float[Tensor, "s t"]]:
    """Two closed curves drawn by an unsteady hand, one after another, in random order.

    Curve 0 is a circle, curve 1 a figure of eight; both start at the right and take ``period``
    steps. Each repetition has its own size and speed (standard deviations ``noise`` and half of
    it), and every point a small error (``noise / 5``). After a repetition a coin decides which
    curve comes next.

    Returns:
        The positions, within about [-1, 1], and which curve it is, 0.0 or 1.0.
    """
    if sequences < 1 or steps < 1 or period < 4:
        raise ValueError(
            f"sequences={sequences}, steps={steps}, period={period}: allowed are 1, 1, 4 or more"
        )
    if not 0 <= noise < 0.3:
        raise ValueError(f"noise={noise}: allowed is 0 up to 0.3")
    count = steps // period + 3
    which = torch.randint(2, (sequences, count), generator=gen).float()
    size, speed = (torch.randn(sequences, count, generator=gen) for _ in range(2))
    size = 0.75 * (1 + noise * size.clamp(-2, 2))
    speed = (1 + 0.5 * noise * speed.clamp(-2, 2)) / period
    x = torch.empty(sequences, steps, 2)
    label = torch.empty(sequences, steps)
    phase = torch.rand(sequences, generator=gen)  # somewhere in the first repetition
    row = torch.arange(sequences)
    for t in range(steps):
        cycle = phase.floor().long()
        angle = 2 * math.pi * (phase - cycle)
        eight, r = which[row, cycle], size[row, cycle]
        x[:, t, 0] = r * angle.cos()
        x[:, t, 1] = r * torch.where(eight > 0, (2 * angle).sin(), angle.sin())
        label[:, t] = eight
        phase = phase + speed[row, cycle]
    return x + 0.2 * noise * torch.randn(x.shape, generator=gen), label
