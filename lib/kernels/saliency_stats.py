"""Fused channel statistics of activation and gradient, for backpropagation saliency.

Every saliency map of the extract-and-aggregate grid (Rebuffi, Fong, Ji and Vedaldi 2020,
arXiv:2004.02866) is a function of a few numbers per site: sums, sums of squared positive and
negative parts, and extremes over channels, of the activation f, of the gradient g and of their
product. Code that follows the definition writes C x C (or 9 C x C) numbers per site; eager closed
forms read f and g once per statistic. Here one pass over both gives all of them.

Floor: 2 B C H W elements read and S B H W written (S = 15, or 20 with the depthwise ones), so for
C well above S the time is that of reading f and g once. About 20 operations per element pair (100
with the depthwise statistics, whose nine shifted reads of f come from the cache).

There is no backward: explanations are looked at, not differentiated.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.kernels.dispatch import Backend, check_dtype, pick_backend, tl, triton


class Statistics(NamedTuple):
    """Per site, over channels: of f, of g, of the product f g, of g times f's 3x3 neighbors.

    ``pos`` and ``neg`` are the sums of squares of the positive and the negative part, so that
    ``pos + neg`` is the squared norm. Neighbors outside the map count as zeros. The ``d_`` fields
    are None unless asked for.
    """

    f_sum: Float[Tensor, "b 1 h w"]
    f_pos: Float[Tensor, "b 1 h w"]
    f_neg: Float[Tensor, "b 1 h w"]
    f_max: Float[Tensor, "b 1 h w"]
    f_min: Float[Tensor, "b 1 h w"]
    g_sum: Float[Tensor, "b 1 h w"]
    g_pos: Float[Tensor, "b 1 h w"]
    g_neg: Float[Tensor, "b 1 h w"]
    g_max: Float[Tensor, "b 1 h w"]
    g_min: Float[Tensor, "b 1 h w"]
    p_sum: Float[Tensor, "b 1 h w"]
    p_pos: Float[Tensor, "b 1 h w"]
    p_neg: Float[Tensor, "b 1 h w"]
    p_max: Float[Tensor, "b 1 h w"]
    p_min: Float[Tensor, "b 1 h w"]
    d_sum: Float[Tensor, "b 1 h w"] | None = None
    d_pos: Float[Tensor, "b 1 h w"] | None = None
    d_neg: Float[Tensor, "b 1 h w"] | None = None
    d_max: Float[Tensor, "b 1 h w"] | None = None
    d_min: Float[Tensor, "b 1 h w"] | None = None


def saliency_stats(
    f: Float[Tensor, "b c h w"],
    g: Float[Tensor, "b c h w"],
    *,
    depthwise: bool = False,
    backend: Backend = "auto",
) -> Statistics:
    """All channel statistics of ``f`` and ``g`` in one pass; any strides, finite values.

    Half precision is accumulated and returned in float32, float64 in float64.

    Raises:
        ValueError: different shapes, no channels, or a backend that cannot run here.
        TypeError: a dtype other than float16, bfloat16, float32, float64, or two dtypes.
    """
    if f.shape != g.shape:
        raise ValueError(f"f and g must have one shape, got {tuple(f.shape)} and {tuple(g.shape)}")
    if f.shape[1] == 0:
        raise ValueError(f"f has no channels: shape {tuple(f.shape)}")
    check_dtype("f", f, (torch.float16, torch.bfloat16, torch.float32, torch.float64))
    if g.dtype != f.dtype:
        raise TypeError(f"g: dtype {g.dtype} differs from that of f, {f.dtype}")
    use_triton = pick_backend(backend, f, g) == "triton"
    stats = _saliency_stats(f.detach(), g.detach(), depthwise, use_triton)
    return Statistics(*stats.split(1, dim=1))


def reference(
    f: Float[Tensor, "b c h w"], g: Float[Tensor, "b c h w"], depthwise: bool
) -> Float[Tensor, "b s h w"]:
    """The same numbers in plain PyTorch, one statistic a line."""
    wide = _accumulator(f.dtype)
    f, g = f.to(wide), g.to(wide)
    rows = [*_five(f), *_five(g), *_five(f * g)]
    if depthwise:
        rows += _depthwise(f, g)
    return torch.stack(rows, 1)


def _five(t: Tensor) -> list[Tensor]:
    pos, neg = t.clamp(min=0), t.clamp(max=0)
    return [t.sum(1), (pos * pos).sum(1), (neg * neg).sum(1), t.amax(1), t.amin(1)]


def _depthwise(f: Tensor, g: Tensor) -> list[Tensor]:
    """Statistics of g times the nine neighbors of f, channel by channel, never written out."""

    def around(t: Tensor, op) -> Tensor:
        # Rows, then columns. Zeros outside are entries like any other. (Pooling would do the same,
        # but is an order of magnitude slower on CPUs.)
        t = F.pad(t, (1, 1, 1, 1))
        t = op(op(t[..., :-2, :], t[..., 1:-1, :]), t[..., 2:, :])
        return op(op(t[..., :-2], t[..., 1:-1]), t[..., 2:])

    fp, fn, gp, gn = f.clamp(min=0), f.clamp(max=0), g.clamp(min=0), g.clamp(max=0)
    up, down = around(fp * fp, torch.add), around(fn * fn, torch.add)
    gp, gn = gp * gp, gn * gn
    ends = around(f, torch.maximum) * g, around(f, torch.minimum) * g
    return [
        (around(f, torch.add) * g).sum(1),
        (up * gp + down * gn).sum(1),
        (up * gn + down * gp).sum(1),
        torch.maximum(*ends).amax(1),
        torch.minimum(*ends).amin(1),
    ]


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.custom_op(
    "lib::saliency_stats",
    mutates_args=(),
    schema="(Tensor f, Tensor g, bool depthwise, bool use_triton) -> Tensor",
)
def _saliency_stats(f: Tensor, g: Tensor, depthwise: bool, use_triton: bool) -> Tensor:
    b, c, h, w = f.shape
    count = 20 if depthwise else 15
    if f.numel() == 0:
        return f.new_empty(b, count, h, w, dtype=_accumulator(f.dtype))
    if not use_triton:
        return reference(f, g, depthwise)
    out = torch.empty(b, count, h, w, dtype=_accumulator(f.dtype), device=f.device)
    # Neighboring threads should read neighboring addresses: sites in the usual layout, channels
    # in the channels-last one.
    channels_last = f.stride(1) == 1 and c > 1
    block_c, block_s = (32, 16) if channels_last else (8, 64)
    tiles = triton.cdiv(h * w, block_s)
    _stats_kernel[(b * tiles,)](
        f, g, out, c, h, w, tiles, *f.stride(), *g.stride(),
        DEPTHWISE=depthwise, DOUBLE=f.dtype == torch.float64,
        BLOCK_C=block_c, BLOCK_S=block_s, num_warps=4,
    )  # fmt: skip
    return out


@_saliency_stats.register_fake
def _(f: Tensor, g: Tensor, depthwise: bool, use_triton: bool) -> Tensor:
    b, _, h, w = f.shape
    return f.new_empty(b, 20 if depthwise else 15, h, w, dtype=_accumulator(f.dtype))


if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap every
    # function in a type checker.

    @triton.jit
    @no_type_check
    def _add(t, live, total, pos, neg, high, low):
        """Take one tile into the five running statistics."""
        total += t  # dead lanes hold zeros
        up, down = tl.maximum(t, 0.0), tl.minimum(t, 0.0)
        pos += up * up
        neg += down * down
        high = tl.maximum(high, tl.where(live, t, float("-inf")))
        low = tl.minimum(low, tl.where(live, t, float("inf")))
        return total, pos, neg, high, low

    @triton.jit
    @no_type_check
    def _put(out_ptr, stride, inside, total, pos, neg, high, low):
        tl.store(out_ptr, tl.sum(total, 0), inside)
        tl.store(out_ptr + stride, tl.sum(pos, 0), inside)
        tl.store(out_ptr + 2 * stride, tl.sum(neg, 0), inside)
        tl.store(out_ptr + 3 * stride, tl.max(high, 0), inside)
        tl.store(out_ptr + 4 * stride, tl.min(low, 0), inside)

    @triton.jit
    @no_type_check
    def _stats_kernel(
        f_ptr, g_ptr, out_ptr, channels, height, width, tiles,
        fb, fc, fh, fw, gb, gc, gh, gw,
        DEPTHWISE: tl.constexpr, DOUBLE: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
    ):  # fmt: skip
        """One program: BLOCK_S sites of one image, all channels, BLOCK_C of them at a time."""
        dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
        count: tl.constexpr = 20 if DEPTHWISE else 15
        image = (tl.program_id(0) // tiles).to(tl.int64)
        sites = height * width
        site = (tl.program_id(0) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
        inside = site < sites
        y, x = (site // width).to(tl.int64), (site % width).to(tl.int64)
        rows = tl.arange(0, BLOCK_C).to(tl.int64)
        f_at = f_ptr + image * fb + (y * fh + x * fw)[None, :]
        g_at = g_ptr + image * gb + (y * gh + x * gw)[None, :]

        zero = tl.zeros((BLOCK_C, BLOCK_S), dtype)
        f0, f1, f2, f3, f4 = zero, zero, zero, zero - float("inf"), zero + float("inf")
        g0, g1, g2, g3, g4 = zero, zero, zero, zero - float("inf"), zero + float("inf")
        p0, p1, p2, p3, p4 = zero, zero, zero, zero - float("inf"), zero + float("inf")
        d0, d1, d2, d3, d4 = zero, zero, zero, zero - float("inf"), zero + float("inf")
        for start in range(0, channels, BLOCK_C):
            c = (start + rows)[:, None]
            live = (c < channels) & inside[None, :]
            f = tl.load(f_at + c * fc, live, 0.0).to(dtype)
            g = tl.load(g_at + c * gc, live, 0.0).to(dtype)
            f0, f1, f2, f3, f4 = _add(f, live, f0, f1, f2, f3, f4)
            g0, g1, g2, g3, g4 = _add(g, live, g0, g1, g2, g3, g4)
            p0, p1, p2, p3, p4 = _add(f * g, live, p0, p1, p2, p3, p4)
            if DEPTHWISE:
                for k in tl.static_range(9):
                    dy, dx = k // 3 - 1, k % 3 - 1
                    there = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                    near = tl.load(f_at + c * fc + dy * fh + dx * fw, live & there[None, :], 0.0)
                    d0, d1, d2, d3, d4 = _add(near.to(dtype) * g, live, d0, d1, d2, d3, d4)

        o = out_ptr + image * count * sites + site
        step = sites.to(tl.int64)
        _put(o, step, inside, f0, f1, f2, f3, f4)
        _put(o + 5 * step, step, inside, g0, g1, g2, g3, g4)
        _put(o + 10 * step, step, inside, p0, p1, p2, p3, p4)
        if DEPTHWISE:
            _put(o + 15 * step, step, inside, d0, d1, d2, d3, d4)
