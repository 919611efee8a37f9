"""Encodings of positions and times, for transformers, diffusion models and coordinate networks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sinusoidal(
    t: Float[Tensor, "*shape"] | Int[Tensor, "*shape"], dim: int, base: float = 1e4
) -> Float[Tensor, "*shape {dim}"]:
    """Sines and cosines of ``t`` at ``dim / 2`` frequencies from 1 down to about ``1 / base``.

    Vaswani et al., *Attention Is All You Need*, 2017 (arXiv 1706.03762), section 3.5: entry
    ``2i`` is ``sin(t base^(-2i/dim))`` and entry ``2i + 1`` the cosine of the same angle. A shift
    of ``t`` is a rotation of each pair, so relative offsets are linear maps of the code.

    Args:
        t: positions or times, any shape, integers or floats.
        dim: length of the code.
        base: ratio of the slowest to the fastest wavelength.

    Raises:
        ValueError: ``dim`` is odd or below 2, or ``base`` is not above 1.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim={dim}: allowed are even numbers from 2 (a sine and a cosine each)")
    if base <= 1:
        raise ValueError(f"base={base}: allowed is more than 1")
    if not t.is_floating_point():
        t = t.to(torch.get_default_dtype())
    exponent = torch.arange(0, dim, 2, device=t.device, dtype=t.dtype) / dim
    angle = t[..., None] * torch.exp(-math.log(base) * exponent)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
