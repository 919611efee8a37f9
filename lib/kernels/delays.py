"""A linear layer with a delay on every synapse, by gathering taps instead of building filters.

Output ``o`` hears input ``i`` through a filter over delays ``n = 0 .. D - 1`` (``D = bins``)::

    y[b, o, t] = sum_i sum_n k[o, i, n] x[b, i, t - n]          x is zero before its first step
    k[o, i, n] = w h(n - p) / (sum_m h(m - p) + 1e-7)           w, p: the synapse's weight and delay

with the bump ``h(z) = exp(-z^2 / (2 sigma^2))`` ("gauss"), ``max(0, sigma - |z|)`` ("triangle"), or
one tap of height ``w`` at the rounded delay ("tap"). The first two are dilated convolutions with
learnable spacings (Khalfaoui-Hassani et al. 2021, arXiv:2112.03740; Hammouamri et al. 2023,
arXiv:2306.17670). Only taps within ``reach`` bins of the rounded delay count; None means all.

Backward, with ``c[o, i, n] = sum_bt g[b, o, t] x[b, i, t - n]``, ``k~ = k / w`` and ``h'`` the
derivative of ``h`` in ``p``::

    g_w = sum_n k~ c        g_p = w sum_n (h' - k~ sum h') c / (sum h + 1e-7)
    g_x[b, i, t] = sum_o sum_n k[o, i, n] g[b, o, t + n]        the same gather, the other way round

Floor, for ``K = min(2 reach + 1, D)`` taps, T steps, B samples, ``e``-byte numbers. Forward: read x
(``e B I T`` bytes, ``B I T`` for byte spikes), w and p, write y (``e B O T``); ``2BTOIK`` FLOPs.
Backward: read x, g, w, p, write three gradients; ``4BTOIK`` FLOPs. A dense convolution has
``K = D`` and builds ``O I D`` numbers first; here ``O I`` sums are stored and no filter. Operations
are plain multiply-adds: a dense convolution on matrix units has 10 to 30 times their rate,
so the gather wins for few taps (one, at inference) and long windows, not always.

``groups`` is that of ``conv1d``: several layers side by side, for instance one for each seed.
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
from typing import Literal, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lib.kernels.dispatch import Backend, check_dtype, pick_backend, tl, triton

Shape = Literal["gauss", "triangle", "tap"]
SHAPES: tuple[str, ...] = ("gauss", "triangle", "tap")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EPS = 1e-7
ALL = 2**30  # a reach beyond every tap, wherever the bump is centered


def delay_conv(
    x: Shaped[Tensor, "b gi t"],
    weight: Float[Tensor, "go i m"],
    delay: Float[Tensor, "go i m"],
    sigma: float | Float[Tensor, "go"],
    bins: int,
    *,
    shape: Shape = "gauss",
    reach: int | None = None,
    groups: int = 1,
    right: int = 0,
    backend: Backend = "auto",
) -> Float[Tensor, "b go t_out"]:
    """Currents ``"b (g o) t+right"`` of a layer with ``m`` delayed synapses for each pair.

    Differentiable in ``x``, ``weight`` and ``delay``. Half precision is computed in float32; delays
    are float32 (float64 with float64 weights), since a half has no room for a position.

    Args:
        x: real numbers of the weights' type, or ``uint8`` spikes, which get no gradient.
        delay: in bins; a bump may be centered anywhere, its taps are 0 to ``bins - 1``.
        sigma: the bump's true width in bins, one for all or one for each output; no gradient.
        reach: taps farther than this from the rounded delay are left out, also of the sum.
        right: steps beyond the end of ``x``, in which late taps still arrive.

    Raises:
        ValueError: shapes that do not fit, a number outside its range.
        TypeError: dtypes that do not go together.
    """
    _check(x, weight, delay, bins, shape, reach, groups, right)
    chosen = pick_backend(backend, x, weight, delay)
    wide = _wide(weight.dtype)
    if isinstance(sigma, Tensor):
        if sigma.shape != weight.shape[:1]:
            raise ValueError(
                f"sigma: shape {tuple(sigma.shape)}; allowed is a number or one for each of the "
                f"{len(weight)} outputs"
            )
        widths = sigma.detach().to(wide)
    else:
        if shape != "tap" and not sigma > 0:
            raise ValueError(f"sigma={sigma}: allowed is any positive number of bins")
        widths = weight.new_full(weight.shape[:1], float(sigma), dtype=wide)
    far = ALL if reach is None else min(reach, ALL)
    if shape == "tap":
        far = 0
    return _delays(x, weight, delay, widths, bins, shape, far, groups, right, chosen)[0]


def delay_linear(
    x: Shaped[Tensor, "b gi t"],
    weight: Float[Tensor, "go i"],
    delay: Int[Tensor, "go i"],
    *,
    groups: int = 1,
    right: int = 0,
    backend: Backend = "auto",
) -> Float[Tensor, "b go t_out"]:
    """``y[b, o, t] = sum_i w[o, i] x[b, i, t - d[o, i]]`` for whole delays ``d >= 0``, in bins.

    Raises:
        ValueError: a negative delay, or shapes that do not fit.
        TypeError: delays that are not integers.
    """
    if delay.is_floating_point() or delay.is_complex() or delay.dtype == torch.bool:
        raise TypeError(f"delay: dtype {delay.dtype}; allowed are whole numbers, an integer type")
    if delay.numel() and delay.min() < 0:
        raise ValueError(f"delay: the smallest is {int(delay.min())}; allowed is 0 and more")
    bins = int(delay.max()) + 1 if delay.numel() else 1
    return delay_conv(
        x, weight[..., None], delay[..., None].to(_wide(weight.dtype)), 1.0, bins, shape="tap",
        groups=groups, right=right, backend=backend,
    )  # fmt: skip


# --------------------------------------------------------------------------- plain PyTorch


def bump(
    delay: Float[Tensor, "*synapse"],
    sigma: Float[Tensor, "*#synapse"],
    bins: int,
    shape: Shape = "gauss",
    reach: int | None = None,
) -> tuple[Float[Tensor, "*synapse d"], Float[Tensor, "*synapse d"]]:
    """The normalized filter ``k~`` over delays 0 to ``bins - 1``, and its derivative in ``delay``.

    What the layer multiplies by ``w``. Written out over all bins, for reading and for the CPU.

    Raises:
        ValueError: a shape that is none, no bins, a negative reach.
    """
    _check_bump(bins, shape, reach)
    n = torch.arange(bins, dtype=delay.dtype, device=delay.device)
    center = (delay + 0.5).floor()[..., None]
    z, sigma = n - delay[..., None], sigma[..., None]
    if shape == "tap":
        one = (n == center).to(delay.dtype)
        return one, torch.zeros_like(one)
    if shape == "gauss":
        r = z / sigma
        h = torch.exp(-0.5 * r.square())
        slope = h * r / sigma
    else:
        h = (sigma - z.abs()).clamp_min(0)
        slope = torch.where(h > 0, z.sign(), 0)
    if reach is not None and reach < ALL:
        near = (n - center).abs() <= reach
        h, slope = h * near, slope * near
    total = h.sum(-1, keepdim=True) + EPS
    k = h / total
    return k, (slope - k * slope.sum(-1, keepdim=True)) / total


def _forward_reference(x, weight, delay, sigma, bins, shape, reach, groups, right):
    wide = _wide(weight.dtype)
    k, _ = bump(delay, sigma[:, None, None], bins, shape, reach)
    kernel = (weight.to(wide)[..., None] * k).sum(2).flip(-1)  # conv1d correlates: time reversed
    y = F.conv1d(F.pad(x.to(wide), (bins - 1, right)), kernel, groups=groups)
    return y.to(weight.dtype), weight.new_empty(0, dtype=wide)


def _backward_reference(grad, x, weight, delay, sigma, bins, shape, reach, groups, right, need_x):
    wide = _wide(weight.dtype)
    k, slope = bump(delay, sigma[:, None, None], bins, shape, reach)
    w = weight.to(wide)
    # Without a gradient for x the convolution's backward pass looks at the filters' shape only.
    kernel = (w[..., None] * k).sum(2).flip(-1) if need_x else torch.empty_like(k[:, :, 0])
    padded = F.pad(x.to(wide), (bins - 1, right))
    gx, gk, _ = torch.ops.aten.convolution_backward(
        grad.to(wide), padded, kernel, None, [1], [0], [1], False, [0], groups,
        [need_x, True, False],
    )  # fmt: skip
    gk = gk.flip(-1)[:, :, None]
    gw, gp = (gk * k).sum(-1), w * (gk * slope).sum(-1)
    gx = gx[..., bins - 1 : bins - 1 + x.shape[-1]].to(x.dtype) if need_x else x.new_empty(0)
    return gx.contiguous(), gw.to(weight.dtype).contiguous(), gp.contiguous()


# --------------------------------------------------------------------------- Triton

if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap every
    # function in a type checker.

    @triton.jit
    @no_type_check
    def _bump(z, sigma, KIND: tl.constexpr):
        """The bump and its derivative in the delay, at distance ``z`` from it."""
        if KIND == "gauss":
            r = z / sigma
            h = tl.exp(-0.5 * r * r)
            return h, h * r / sigma
        elif KIND == "triangle":
            h = tl.maximum(sigma - tl.abs(z), 0.0)
            side = tl.where(z > 0, 1.0, tl.where(z < 0, -1.0, 0.0)).to(h.dtype)
            return h, tl.where(h > 0, side, 0.0)
        else:
            return z * 0 + 1, z * 0

    @triton.jit
    @no_type_check
    def _tap(k, p, reach, bins, FULL: tl.constexpr):
        """The delay of tap number ``k`` of synapses with delay ``p``, and whether it counts."""
        center = tl.minimum(tl.maximum(tl.floor(p + 0.5), -1e8), 1e8).to(tl.int32)
        if FULL:
            n = center * 0 + k
        else:
            n = center - reach + k
        near = (n - center <= reach) & (center - n <= reach)
        return n, near & (n >= 0) & (n < bins)

    @triton.jit
    @no_type_check
    def _total_kernel(
        delay_ptr, sigma_ptr, total_ptr, size, synapses, bins, reach, taps,
        KIND: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        p = tl.load(delay_ptr + at, inside, 0.0)
        sigma = tl.load(sigma_ptr + at // synapses, inside, 1.0)
        total = p * 0
        for k in range(0, taps):
            n, counts = _tap(k, p, reach, bins, FULL)
            h, _ = _bump(n.to(p.dtype) - p, sigma, KIND)
            total += tl.where(counts, h, 0.0)
        tl.store(total_ptr + at, total, inside)

    @triton.jit
    @no_type_check
    def _gather_kernel(
        x_ptr, weight_ptr, delay_ptr, sigma_ptr, total_ptr, y_ptr,
        groups, rows, cols, t_in, t_out, stride_row, stride_col, bins, reach, taps, eps,
        BACK: tl.constexpr, KIND: tl.constexpr, FULL: tl.constexpr, M: tl.constexpr,
        WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    ):  # fmt: skip
        """One program: a block of rows and steps of one sample and group.

        Forward, rows are outputs and columns inputs; with ``BACK`` it is the other way round and a
        tap reaches into the future. Neighboring lanes are neighboring steps, so a tap is a shifted
        load of one stretch of ``x``, which all rows share through the cache.
        """
        pair = tl.program_id(0).to(tl.int64)  # sample * groups + group
        group = pair % groups
        r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
        t = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
        live = r < rows
        first = group * rows * cols * M + r.to(tl.int64) * stride_row
        acc = tl.zeros([BLOCK_R, BLOCK_T], dtype=WIDE)
        for c in range(0, cols):
            source = x_ptr + (pair * cols + c) * t_in
            if BACK:
                sigma = tl.load(sigma_ptr + group * cols + c) + tl.zeros([BLOCK_R], dtype=WIDE)
            else:
                sigma = tl.load(sigma_ptr + group * rows + r, live, 1.0)
            for m in tl.static_range(M):
                at = first + c * stride_col + m
                w = tl.load(weight_ptr + at, live, 0.0).to(WIDE)
                p = tl.load(delay_ptr + at, live, 0.0)
                if KIND != "tap":
                    w = w / (tl.load(total_ptr + at, live, 1.0) + eps)
                for k in range(0, taps):
                    n, counts = _tap(k, p, reach, bins, FULL)
                    h, _ = _bump(n.to(p.dtype) - p, sigma, KIND)
                    if BACK:
                        src = t[None, :] + n[:, None]
                    else:
                        src = t[None, :] - n[:, None]
                    heard = (counts & live)[:, None] & (src >= 0) & (src < t_in)
                    value = tl.load(source + src, heard, 0).to(WIDE)
                    acc += (w * h)[:, None] * value
        at = (pair * rows + r.to(tl.int64))[:, None] * t_out + t[None, :]
        keep = live[:, None] & (t < t_out)[None, :]
        tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), keep)

    @triton.jit
    @no_type_check
    def _synapse_kernel(
        x_ptr, grad_ptr, weight_ptr, delay_ptr, sigma_ptr, total_ptr, gw_ptr, gp_ptr,
        batch, groups, outs, ins, t_in, t_out, bins, reach, taps, eps,
        KIND: tl.constexpr, FULL: tl.constexpr, M: tl.constexpr,
        WIDE: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr,
    ):  # fmt: skip
        """One program: one synapse of one input, for a block of outputs; tap by tap.

        A tap's correlation of output gradient and delayed input is used at once for both gradients
        and never stored, and the sum over samples has a fixed order.
        """
        which = tl.program_id(0).to(tl.int64)  # (group * ins + input) * M + synapse
        m, i, group = which % M, (which // M) % ins, which // M // ins
        o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
        live = o < outs
        at = ((group * outs + o) * ins + i) * M + m
        w = tl.load(weight_ptr + at, live, 0.0).to(WIDE)
        p = tl.load(delay_ptr + at, live, 0.0)
        sigma = tl.load(sigma_ptr + group * outs + o, live, 1.0)
        scale = w * 0 + 1
        steep = w * 0
        if KIND != "tap":
            scale = 1 / (tl.load(total_ptr + at, live, 1.0) + eps)
            for k in range(0, taps):
                n, counts = _tap(k, p, reach, bins, FULL)
                _, slope = _bump(n.to(p.dtype) - p, sigma, KIND)
                steep += tl.where(counts, slope, 0.0)
        gw, gp = w * 0, w * 0
        for k in range(0, taps):
            n, counts = _tap(k, p, reach, bins, FULL)
            acc = tl.zeros([BLOCK_O, BLOCK_T], dtype=WIDE)
            for b in range(0, batch):
                pair = group + b * groups
                source = x_ptr + (pair * ins + i) * t_in
                above = grad_ptr + (pair * outs + o)[:, None] * t_out
                for start in range(0, t_out, BLOCK_T):
                    t = start + tl.arange(0, BLOCK_T)
                    src = t[None, :] - n[:, None]
                    heard = (counts & live)[:, None] & (src >= 0) & (src < t_in)
                    heard = heard & (t < t_out)[None, :]
                    value = tl.load(source + src, heard, 0).to(WIDE)
                    acc += value * tl.load(above + t[None, :], heard, 0.0).to(WIDE)
            c = tl.sum(acc, 1)
            h, slope = _bump(n.to(p.dtype) - p, sigma, KIND)
            h = h * scale
            gw += tl.where(counts, h * c, 0.0)
            gp += tl.where(counts, (slope - h * steep) * scale * c, 0.0)
        tl.store(gw_ptr + at, gw.to(gw_ptr.dtype.element_ty), live)
        tl.store(gp_ptr + at, w * gp, live)


BLOCK_R, BLOCK_T = 16, 64  # 128 threads with 8 numbers each


def _taps(bins: int, reach: int) -> dict:
    """How many taps a loop visits, and whether they are all bins or a window around the delay."""
    taps = min(2 * reach + 1, bins)
    return {"bins": bins, "reach": reach, "taps": taps, "FULL": 2 * reach + 1 >= bins}


def _forward_triton(x, weight, delay, sigma, bins, shape, reach, groups, right):
    x, weight, delay, sigma = (t.contiguous() for t in (x, weight, delay, sigma))
    (batch, _, t_in), (outs, ins, m) = x.shape, weight.shape
    total = torch.empty_like(delay) if shape != "tap" else delay.new_empty(0)
    y = weight.new_empty(batch, outs, t_in + right)
    window = _taps(bins, reach)
    if shape != "tap" and delay.numel():
        _total_kernel[(triton.cdiv(delay.numel(), 256),)](
            delay, sigma, total, delay.numel(), ins * m, **window, KIND=shape, BLOCK=256
        )
    if y.numel():
        rows = outs // groups
        _gather_kernel[_grid(batch * groups, rows, t_in + right)](
            x, weight, delay, sigma, total, y, groups, rows, ins, t_in, t_in + right,
            ins * m, m, **window, eps=EPS, BACK=False, KIND=shape, M=m,
            WIDE=_tl_wide(weight.dtype), BLOCK_R=BLOCK_R, BLOCK_T=BLOCK_T,
        )  # fmt: skip
    return y, total


def _backward_triton(
    grad, x, weight, delay, sigma, total, bins, shape, reach, groups, right, need_x
):
    grad, x, weight, delay, sigma = (t.contiguous() for t in (grad, x, weight, delay, sigma))
    (batch, _, t_in), (outs, ins, m) = x.shape, weight.shape
    rows, t_out, wide = outs // groups, t_in + right, _tl_wide(weight.dtype)
    gx = torch.empty_like(x) if need_x else x.new_empty(0)
    gw, gp = torch.empty_like(weight), torch.empty_like(delay)
    window = _taps(bins, reach)
    if gx.numel():
        _gather_kernel[_grid(batch * groups, ins, t_in)](
            grad, weight, delay, sigma, total, gx, groups, ins, rows, t_out, t_in,
            m, ins * m, **window, eps=EPS, BACK=True, KIND=shape, M=m, WIDE=wide,
            BLOCK_R=BLOCK_R, BLOCK_T=BLOCK_T,
        )  # fmt: skip
    if gw.numel():
        _synapse_kernel[(groups * ins * m, triton.cdiv(rows, BLOCK_R))](
            x, grad, weight, delay, sigma, total, gw, gp, batch, groups, rows, ins, t_in, t_out,
            **window, eps=EPS, KIND=shape, M=m, WIDE=wide, BLOCK_O=BLOCK_R, BLOCK_T=BLOCK_T,
        )  # fmt: skip
    return gx, gw, gp


def _grid(pairs: int, rows: int, steps: int) -> tuple[int, int, int]:
    return pairs, triton.cdiv(rows, BLOCK_R), triton.cdiv(steps, BLOCK_T)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tl_wide(dtype: torch.dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32


# --------------------------------------------------------------------------- the operators


@torch.library.custom_op("lib::delays", mutates_args=())
def _delays(
    x: Tensor, weight: Tensor, delay: Tensor, sigma: Tensor, bins: int, shape: str, reach: int,
    groups: int, right: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    forward = _forward_triton if backend == "triton" else _forward_reference
    return forward(x, weight, delay, sigma, bins, shape, reach, groups, right)


@_delays.register_fake
def _(x, weight, delay, sigma, bins, shape, reach, groups, right, backend):
    stored = backend == "triton" and shape != "tap"
    total = delay.new_empty(delay.shape if stored else 0)
    return weight.new_empty(x.shape[0], weight.shape[0], x.shape[2] + right), total


@torch.library.custom_op("lib::delays_backward", mutates_args=())
def _delays_backward(
    grad: Tensor, x: Tensor, weight: Tensor, delay: Tensor, sigma: Tensor, total: Tensor,
    bins: int, shape: str, reach: int, groups: int, right: int, need_x: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    window = (bins, shape, reach, groups, right, need_x)
    if backend == "triton":
        return _backward_triton(grad, x, weight, delay, sigma, total, *window)
    return _backward_reference(grad, x, weight, delay, sigma, *window)


@_delays_backward.register_fake
def _(
    grad, x, weight, delay, sigma, total, bins, shape, reach, groups, right, need_x, backend
):  # fmt: skip
    # New and contiguous, like the real ones, also for a weight with other strides.
    gx = x.new_empty(x.shape if need_x else 0)
    return gx, weight.new_empty(weight.shape), delay.new_empty(delay.shape)


def _setup_context(ctx, inputs, output):
    x, weight, delay, sigma, *ctx.window, ctx.backend = inputs
    ctx.save_for_backward(x, weight, delay, sigma, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _total):
    need_x = ctx.needs_input_grad[0] and ctx.saved_tensors[0].is_floating_point()
    gx, gw, gp = _delays_backward(grad, *ctx.saved_tensors, *ctx.window, need_x, ctx.backend)
    return gx if need_x else None, gw, gp, *[None] * 7


_delays.register_autograd(_backward, setup_context=_setup_context)


def _check(x, weight, delay, bins, shape, reach, groups, right) -> None:
    check_dtype("weight", weight, DTYPES)
    if x.dtype not in (weight.dtype, torch.uint8):
        raise TypeError(f"x: dtype {x.dtype}; allowed are the weights', {weight.dtype}, and uint8")
    if delay.dtype != _wide(weight.dtype):
        raise TypeError(
            f"delay: dtype {delay.dtype}; allowed is {_wide(weight.dtype)} with weights of "
            f"{weight.dtype}"
        )
    _check_bump(bins, shape, reach)
    if right < 0:
        raise ValueError(f"right={right}: allowed is 0 or more steps")
    if weight.ndim != 3 or weight.shape != delay.shape:
        raise ValueError(
            f"weight {tuple(weight.shape)}, delay {tuple(delay.shape)}: allowed is one shape, "
            "(outputs, inputs, synapses)"
        )
    if not weight.numel():
        raise ValueError(f"weight: shape {tuple(weight.shape)}; allowed is 1 or more of each")
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"groups={groups}: allowed is a divisor of the {len(weight)} outputs")
    if x.ndim != 3 or x.shape[1] != groups * weight.shape[1]:
        raise ValueError(
            f"x: shape {tuple(x.shape)}; allowed is (batch, {groups * weight.shape[1]}, steps)"
        )
    if x.shape[2] < 1:
        raise ValueError(f"x: shape {tuple(x.shape)}; at least one step is needed")


def _check_bump(bins, shape, reach) -> None:
    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r}: allowed are {', '.join(map(repr, SHAPES))}")
    if bins < 1:
        raise ValueError(f"bins={bins}: allowed is 1 or more")
    if reach is not None and reach < 0:
        raise ValueError(f"reach={reach}: allowed is 0 or more bins, or None")
