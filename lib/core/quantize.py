"""Uniform quantization: integers, a scale and a zero point.

``q = round(x / s) + z``, clipped to the integers of ``bits``, and ``x ~ s (q - z)``: PyTorch's sign
of the zero point, ties to even (R. Krishnamoorthi, arXiv:1806.08342).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def limits(bits: int, symmetric: bool) -> tuple[int, int]:
    """The range of integers: ``0 .. 2^b - 1``, or if symmetric ``-(2^{b-1} - 1) .. 2^{b-1} - 1``.

    Raises:
        ValueError: ``bits`` outside 1..16, or a symmetric range of one bit, which holds only 0.
    """
    if not 1 + symmetric <= bits <= 16:
        raise ValueError(
            f"bits={bits}, symmetric={symmetric}: allowed is 1 to 16, and 2 or more if symmetric"
        )
    top = 2 ** (bits - 1) - 1
    return (-top, top) if symmetric else (0, 2**bits - 1)


def qparams(
    x: Float[Tensor, "..."], bits: int, symmetric: bool, axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point such that the integers cover the values of ``x``, and 0 is one of them.

    Args:
        axis: one pair for each index of this axis (a weight's output channels); None for one pair.

    Returns:
        ``scale`` (float32) and ``zero`` (int32), scalars or of a shape that broadcasts with ``x``.

    Raises:
        ValueError: see :func:`limits`; an empty ``x``, or values that are not finite.
    """
    low_q, high_q = limits(bits, symmetric)
    if x.numel() == 0 or not x.isfinite().all():
        raise ValueError(f"x has shape {tuple(x.shape)}: allowed are one or more finite values")
    if axis is None:
        low, high = x.amin(), x.amax()
    else:
        others = [i for i in range(x.ndim) if i != axis % x.ndim]
        low, high = x.amin(others, keepdim=True), x.amax(others, keepdim=True)
    low, high = low.float().clamp_max(0), high.float().clamp_min(0)
    if symmetric:
        scale = torch.maximum(-low, high) / high_q
    else:
        scale = (high - low) / (high_q - low_q)
    # All zeros: any scale represents them.
    scale = torch.where(scale > 0, scale, 1.0)
    zero = torch.zeros_like(scale) if symmetric else low_q - torch.round(low / scale)
    return scale, zero.to(torch.int32)


def quantize(
    x: Float[Tensor, "..."], scale: Tensor, zero: Tensor, bits: int, symmetric: bool
) -> Int[Tensor, "..."]:
    """``clip(round(x / scale) + zero)`` as int32, ties to even."""
    low, high = limits(bits, symmetric)
    return (torch.round(x.float() / scale) + zero).clamp(low, high).to(torch.int32)


def dequantize(q: Int[Tensor, "..."], scale: Tensor, zero: Tensor) -> Float[Tensor, "..."]:
    """``scale (q - zero)`` in float32."""
    return scale * (q - zero)


def fake_quantize(
    x: Float[Tensor, "..."], scale: Tensor, zero: Tensor, bits: int, symmetric: bool
) -> Float[Tensor, "..."]:
    """Quantize, dequantize; straight through, the gradient passes where ``x`` was not clipped."""
    low, high = ((n - zero) * scale for n in limits(bits, symmetric))
    inside = torch.minimum(torch.maximum(x, low), high)
    rounded = dequantize(quantize(x.detach(), scale, zero, bits, symmetric), scale, zero)
    return inside + (rounded.to(x.dtype) - inside).detach()
