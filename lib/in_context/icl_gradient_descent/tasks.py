"""Regression tasks as sequences of tokens."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lib.models.positions import sinusoidal


def sample_regression(
    batch: int | tuple[int, ...],
    n: int,
    d: int,
    *,
    input_range: float = 1.0,
    w_scale: float = 1.0,
    gen: torch.Generator,
) -> tuple[Float[Tensor, "*b {n+1} {d+1}"], Float[Tensor, "*b"]]:
    """Random linear teachers: ``W ~ N(0, w_scale^2 I)``, ``x ~ U(-input_range, input_range)^d``.

    Returns tokens ``(x_i, W x_i)`` for ``i = 1 .. n`` followed by the query ``(x_t, 0)``, and the
    target ``W x_t``. The paper's code divides its range by two: its "1" is 0.5 here.

    Args:
        batch: number of tasks, or a shape such as ``(seeds, tasks)``.
        gen: where the numbers come from; tokens are made on its device.

    Raises:
        ValueError: a size or a scale is not positive.
    """
    shape = (batch,) if isinstance(batch, int) else tuple(batch)
    positive(batch=min(shape, default=1), n=n, d=d, input_range=input_range, w_scale=w_scale)
    where = gen.device
    w = w_scale * torch.randn(*shape, d, 1, generator=gen, device=where)
    tokens = torch.empty(*shape, n + 1, d + 1, device=where)
    x = torch.rand(*shape, n + 1, d, generator=gen, device=where)
    tokens[..., :d] = x.mul_(2 * input_range).sub_(input_range)
    y = (x @ w)[..., 0]
    tokens[..., d] = y
    tokens[..., -1, d] = 0.0
    return tokens, y[..., -1].clone()


def split(
    tokens: Float[Tensor, "*b m e"],
) -> tuple[Float[Tensor, "*b n d"], Float[Tensor, "*b n 1"], Float[Tensor, "*b d"]]:
    """Tokens as inputs ``x``, outputs ``y`` and the query's input ``x_t``."""
    return tokens[..., :-1, :-1], tokens[..., :-1, -1:], tokens[..., -1, :-1]


def sample_sines(
    batch: int, n: int, *, input_range: float = 5.0, gen: torch.Generator
) -> tuple[Float[Tensor, "{batch} {n+1} 2"], Float[Tensor, "{batch}"]]:
    """Waves ``y = a sin(x + rho)``, ``a ~ U(0.1, 0.5)``, ``rho ~ U(0, pi)``, as tokens and targets.

    Amplitude, phase and the range ``|x| < 5`` are those of the paper's code.
    """
    positive(batch=batch, n=n, input_range=input_range)
    where = gen.device
    x = input_range * (2 * torch.rand(batch, n + 1, generator=gen, device=where) - 1)
    amplitude = 0.1 + 0.4 * torch.rand(batch, 1, generator=gen, device=where)
    phase = torch.pi * torch.rand(batch, 1, generator=gen, device=where)
    y = amplitude * torch.sin(x + phase)
    tokens = torch.stack([x, y], -1)
    tokens[:, -1, 1] = 0.0
    return tokens, y[:, -1]


def separate_tokens(
    tokens: Float[Tensor, "*b m e"], positions: int = 10
) -> Float[Tensor, "*b k f"]:
    """``(x_i, y_i)`` as two tokens ``(x_i, 0)`` and ``(0, y_i)``, in turn, then the query.

    Each carries a sinusoidal code of its position, in front, so ``y`` stays the last entry:
    ``2n + 1`` tokens of ``positions + d + 1`` entries.
    """
    x, y, _ = split(tokens)
    first = torch.cat([x, torch.zeros_like(y)], -1)
    second = torch.cat([torch.zeros_like(x), y], -1)
    turns = torch.stack([first, second], -2).flatten(-3, -2)
    content = torch.cat([turns, tokens[..., -1:, :]], -2)
    code = sinusoidal(torch.arange(content.shape[-2]), positions).to(tokens)
    return torch.cat([code.expand(*content.shape[:-1], positions), content], -1)


def positive(**values: int | float) -> None:
    """Raise a ``ValueError`` for the first argument that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: allowed is more than 0")
