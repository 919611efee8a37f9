"""Fused channel statistics of activation and gradient, for backpropagation saliency.

Every saliency map of the extract-and-aggregate grid (Rebuffi, Fong, Ji and Vedaldi 2020,
arXiv:2004.02866) is a function of a few numbers per site: the sum, the sums of squared positive and
negative parts, and the extremes over channels, of the activation f, of the gradient g, of their
product, or of g times f's neighbors. Code that follows the definition writes C x C (or 9 C x C)
numbers per site; eager closed forms read f and g once per statistic. Here one pass over both gives
all that were asked for.

Floor: 2 B C H W elements read and S B H W written, S = 5 for each of the four; so for C well above
S the time is that of reading f and g once. About 6 operations per element for each of f, g and
their product, 80 for the neighbors, whose nine shifted reads of f come from the cache.

There is no backward: explanations are looked at, not differentiated.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.kernels.dispatch import Backend, check_dtype, pick_backend, tl, triton


class Moments(NamedTuple):
    """Five numbers per site about the entries of a vector.

    ``pos`` and ``neg`` are the sums of squares of the positive and the negative part, so that
    ``pos + neg`` is the squared norm.
    """

    sum: Float[Tensor, "b 1 h w"]
    pos: Float[Tensor, "b 1 h w"]
    neg: Float[Tensor, "b 1 h w"]
    max: Float[Tensor, "b 1 h w"]
    min: Float[Tensor, "b 1 h w"]


class Statistics(NamedTuple):
    """Moments over channels: of f, of g, of p = f g, and of d, g times the 3x3 neighbors of f.

    Neighbors outside the map count as zeros. What was not asked for is None.
    """

    f: Moments | None = None
    g: Moments | None = None
    p: Moments | None = None
    d: Moments | None = None


def saliency_stats(
    f: Float[Tensor, "b c h w"],
    g: Float[Tensor, "b c h w"],
    of: str = "fgp",
    backend: Backend = "auto",
) -> Statistics:
    """Channel statistics of ``f`` and ``g`` in one pass; any strides, finite values.

    Half precision is accumulated and returned in float32, float64 in float64.

    Args:
        of: what to take the moments of, letters among the fields of ``Statistics``, each once.

    Raises:
        ValueError: different shapes, no channels, other letters, or a backend that cannot run here.
        TypeError: a dtype other than float16, bfloat16, float32, float64, or two dtypes.
    """
    if not of or len(set(of)) < len(of) or not set(of) <= set(Statistics._fields):
        raise ValueError(f"of={of!r}: allowed are the letters f, g, p and d, each at most once")
    if f.shape != g.shape:
        raise ValueError(f"f and g must have one shape, got {tuple(f.shape)} and {tuple(g.shape)}")
    if f.shape[1] == 0:
        raise ValueError(f"f has no channels: shape {tuple(f.shape)}")
    check_dtype("f", f, (torch.float16, torch.bfloat16, torch.float32, torch.float64))
    if g.dtype != f.dtype:
        raise TypeError(f"g: dtype {g.dtype} differs from that of f, {f.dtype}")
    of = "".join(name for name in Statistics._fields if name in of)
    compute = _saliency_stats if pick_backend(backend, f, g) == "triton" else reference
    rows = compute(f.detach(), g.detach(), of).split(1, dim=1)
    return Statistics(**{name: Moments(*rows[5 * k : 5 * k + 5]) for k, name in enumerate(of)})


def reference(
    f: Float[Tensor, "b c h w"], g: Float[Tensor, "b c h w"], of: str
) -> Float[Tensor, "b s h w"]:
    """The same numbers in plain PyTorch, one statistic a line."""
    wide = _accumulator(f.dtype)
    f, g = f.to(wide), g.to(wide)
    moments = {
        "f": lambda: _five(f),
        "g": lambda: _five(g),
        "p": lambda: _five(f * g),
        "d": lambda: _depthwise(f, g),
    }
    return torch.stack([row for name in of for row in moments[name]()], 1)


def _five(t: Tensor) -> list[Tensor]:
    pos, neg = t.clamp(min=0), t.clamp(max=0)
    return [t.sum(1), (pos * pos).sum(1), (neg * neg).sum(1), t.amax(1), t.amin(1)]


def _depthwise(f: Tensor, g: Tensor) -> list[Tensor]:
    """Moments of g times the nine neighbors of f, channel by channel, never written out."""

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
    "lib::saliency_stats", mutates_args=(), schema="(Tensor f, Tensor g, str of) -> Tensor"
)
def _saliency_stats(f: Tensor, g: Tensor, of: str) -> Tensor:
    b, c, h, w = f.shape
    out = torch.empty(b, 5 * len(of), h, w, dtype=_accumulator(f.dtype), device=f.device)
    if f.numel() == 0:
        return out
    # Neighboring threads should read neighboring addresses: sites in the usual layout, channels
    # in the channels-last one.
    channels_last = f.stride(1) == 1 and c > 1
    block_c, block_s = (32, 16) if channels_last else (8, 64)
    tiles = triton.cdiv(h * w, block_s)
    with torch.cuda.device(f.device) if f.is_cuda else nullcontext():
        _stats_kernel[(b * tiles,)](
            f, g, out, c, h, w, tiles, *f.stride(), *g.stride(),
            OF_F="f" in of, OF_G="g" in of, OF_P="p" in of, OF_D="d" in of,
            DOUBLE=f.dtype == torch.float64, BLOCK_C=block_c, BLOCK_S=block_s, num_warps=4,
        )  # fmt: skip
    return out


@_saliency_stats.register_fake
def _(f: Tensor, g: Tensor, of: str) -> Tensor:
    b, _, h, w = f.shape
    return f.new_empty(b, 5 * len(of), h, w, dtype=_accumulator(f.dtype))


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
        """Write the five of one vector; where those of the next belong."""
        tl.store(out_ptr, tl.sum(total, 0), inside)
        tl.store(out_ptr + stride, tl.sum(pos, 0), inside)
        tl.store(out_ptr + 2 * stride, tl.sum(neg, 0), inside)
        tl.store(out_ptr + 3 * stride, tl.max(high, 0), inside)
        tl.store(out_ptr + 4 * stride, tl.min(low, 0), inside)
        return out_ptr + 5 * stride

    @triton.jit
    @no_type_check
    def _stats_kernel(
        f_ptr, g_ptr, out_ptr, channels, height, width, tiles,
        fb, fc, fh, fw, gb, gc, gh, gw,
        OF_F: tl.constexpr, OF_G: tl.constexpr, OF_P: tl.constexpr, OF_D: tl.constexpr,
        DOUBLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
    ):  # fmt: skip
        """One program: BLOCK_S sites of one image, all channels, BLOCK_C of them at a time."""
        dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
        count: tl.constexpr = 5 * (int(OF_F) + int(OF_G) + int(OF_P) + int(OF_D))
        image = (tl.program_id(0) // tiles).to(tl.int64)
        sites = height * width
        site = (tl.program_id(0) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
        inside = site < sites
        y, x = (site // width).to(tl.int64), (site % width).to(tl.int64)
        rows = tl.arange(0, BLOCK_C).to(tl.int64)
        f_at = f_ptr + image * fb + (y * fh + x * fw)[None, :]
        g_at = g_ptr + image * gb + (y * gh + x * gw)[None, :]

        # What was not asked for is never used, and the compiler drops it, loads included.
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
            if OF_F:
                f0, f1, f2, f3, f4 = _add(f, live, f0, f1, f2, f3, f4)
            if OF_G:
                g0, g1, g2, g3, g4 = _add(g, live, g0, g1, g2, g3, g4)
            if OF_P:
                p0, p1, p2, p3, p4 = _add(f * g, live, p0, p1, p2, p3, p4)
            if OF_D:
                for k in tl.static_range(9):
                    dy, dx = k // 3 - 1, k % 3 - 1
                    there = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                    near = tl.load(f_at + c * fc + dy * fh + dx * fw, live & there[None, :], 0.0)
                    d0, d1, d2, d3, d4 = _add(near.to(dtype) * g, live, d0, d1, d2, d3, d4)

        o = out_ptr + image * count * sites + site
        step = sites.to(tl.int64)
        if OF_F:
            o = _put(o, step, inside, f0, f1, f2, f3, f4)
        if OF_G:
            o = _put(o, step, inside, g0, g1, g2, g3, g4)
        if OF_P:
            o = _put(o, step, inside, p0, p1, p2, p3, p4)
        if OF_D:
            _put(o, step, inside, d0, d1, d2, d3, d4)
