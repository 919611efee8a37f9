"""One smoothing step of a learned multigrid, ``u + S * (f - A * u)``, without writing the residual.

``A`` and ``S`` are 3x3 convolutions with few channels (J. He, X. Liu and J. Xu, "MgNO",
arXiv:2310.19809). As separate operations the step moves about seven fields through memory: u into
A, A u out; f and A u in, the residual out; the residual into S, S r out; both in, the sum out. Here
a program holds one 16 x 16 tile of the residual on chip, uses it for the 14 x 14 places inside, and
writes the sum.

Adjoint. With ``r = f - A * u``, ``g`` the gradient of the result and ``A^T``, ``S^T`` the adjoint
convolutions (channels exchanged, stencils turned by 180 degrees)::

    h = S^T * g          grad f = h          grad u = g - A^T * h
    grad S = corr(g, r)  grad A = -corr(h, u)

The first line is the same step again, with ``A := S^T`` and ``S := A^T`` on ``(g, 0)``, whose
"residual" is ``-h``: one kernel serves both directions. The second line is a reduction over places
and samples, a small matrix product for each of the nine neighbors; every program sums its own
places in registers, and the partial sums are added afterwards in a fixed order, so the gradient is
the same in every run.

Floor, for ``B`` samples of ``N`` places, ``c`` channels each, in a ``b``-byte type. Forward: read u
and f, write the result: ``3 b c B N`` bytes (``4`` when the residual is kept for the backward
pass), ``36 c^2 B N`` FLOPs. Backward: read g, write both gradients, read g, r, h, u once more for
the stencils: ``7 b c B N`` bytes, three times the FLOPs. At c = 24 in float32 that is about 70
FLOPs a byte: near the ridge of a GPU without tensor cores, far below it with them. Tiles
overlap by two, so 256 residuals are computed for 196 results.

``tl.dot`` runs with ``input_precision="ieee"``: TF32 would lose three digits, which a smoother that
is applied again and again would show.
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
from contextlib import nullcontext
from typing import Literal, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.kernels.dispatch import Backend, check_dtype, pick_backend, tl, triton

Padding = Literal["zeros", "circular", "reflect", "replicate"]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST = 32
"""Channels that fit: two accumulators of that many rows and 256 columns stay in registers."""


def smooth_step(
    u: Float[Tensor, "b cu h w"],
    f: Float[Tensor, "b cf h w"],
    A: Float[Tensor, "cf cu 3 3"],
    S: Float[Tensor, "cu cf 3 3"],
    padding_mode: Padding = "zeros",
    backend: Backend = "auto",
) -> Float[Tensor, "b cu h w"]:
    """``u + S * (f - A * u)``; convolutions as in PyTorch, size kept, no bias.

    Under autocast the tensors first take its type, as those of a convolution do. Triton computes
    half precision in float32 and rounds the result once. It knows the paddings
    whose adjoint is a convolution of the same kind, zeros and circular, and up to 32 channels;
    ``backend="auto"`` takes the reference for everything else.

    Raises:
        ValueError: shapes that do not fit together, another ``padding_mode``, ``"triton"`` for what
            it does not know or cannot run here.
        TypeError: a dtype other than float16, bfloat16, float32, float64, or several dtypes.
    """
    kind = u.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        u, f, A, S = (t if t.dtype == torch.float64 else t.to(low) for t in (u, f, A, S))
    _check(u, f, A, S, padding_mode)
    known = padding_mode in ("zeros", "circular") and max(S.shape[:2]) <= MOST
    chosen = pick_backend(backend, u, f, A, S)
    if chosen == "triton" and not known:
        if backend == "triton":
            raise ValueError(
                f"backend='triton': padding_mode={padding_mode!r} with {S.shape[0]} and "
                f"{S.shape[1]} channels; allowed are 'zeros' and 'circular', up to {MOST} channels"
            )
        chosen = "reference"
    if chosen == "reference":
        return reference(u, f, A, S, padding_mode)
    store = torch.is_grad_enabled() and (A.requires_grad or S.requires_grad)
    return _smooth_step(u, f, A, S, padding_mode == "circular", store, "triton")[0]


def reference(u: Tensor, f: Tensor, A: Tensor, S: Tensor, padding_mode: str = "zeros") -> Tensor:
    """The same step as it is written: two convolutions, differentiable by autograd."""
    return u + convolve(f - convolve(u, A, padding_mode), S, padding_mode)


def convolve(x: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    """A 3x3 convolution that keeps the size."""
    if padding_mode == "zeros":
        return F.conv2d(x, weight, padding=1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=padding_mode), weight)


def adjoint(weight: Float[Tensor, "o i 3 3"]) -> Float[Tensor, "i o 3 3"]:
    """The stencils of the adjoint convolution, for zero and circular padding."""
    return weight.transpose(0, 1).flip(2, 3)


def _forward_reference(u, f, A, S, circular, store):
    mode = "circular" if circular else "zeros"
    r = f - convolve(u, A, mode)
    return u + convolve(r, S, mode), r if store else r.new_empty(0)


def _stencil_reference(g: Tensor, x: Tensor, circular: bool) -> Tensor:
    """``corr(g, x)[o, i, y, x]``: gradient of the stencils that took ``x`` to what ``g`` is of."""
    wide = F.pad(x, (1, 1, 1, 1), mode="circular" if circular else "constant")
    patches = wide.unfold(2, 3, 1).unfold(3, 3, 1)
    return torch.einsum("bohw,bihwyx->oiyx", g, patches)


# --------------------------------------------------------------------------- Triton

if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap every
    # function in a type checker.

    @triton.jit
    @no_type_check
    def _place(i, n, CIRCULAR: tl.constexpr):
        """Where place ``i`` of an axis of length ``n`` is read; valid places lie in 0 .. n-1."""
        if CIRCULAR:
            # Halos reach two places out, and a tile may stand beyond the end of a short axis.
            return ((i % n) + n) % n
        else:
            return i

    @triton.jit
    @no_type_check
    def _step_kernel(
        u_ptr, f_ptr, a_ptr, s_ptr, out_ptr, r_ptr, height, width, across, tiles,
        CU: tl.constexpr, CF: tl.constexpr, BU: tl.constexpr, BF: tl.constexpr,
        CIRCULAR: tl.constexpr, HAS_F: tl.constexpr, STORE: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """One program: 14 x 14 places of one sample, all channels.

        Lane ``p`` of 256 stands for place ``(p // 16 - 1, p % 16 - 1)`` of the tile. The residual
        is right on all lanes; the sum of neighbors only on the inner ones, which are written.
        """
        program = tl.program_id(0)
        image = (program // tiles).to(tl.int64)
        tile = program % tiles
        top, left = (tile // across) * 14, (tile % across) * 14
        p = tl.arange(0, 256)
        y, x = top + p // 16 - 1, left + p % 16 - 1
        cu, cf = tl.arange(0, BU), tl.arange(0, BF)
        sites = height.to(tl.int64) * width
        u_at = u_ptr + image * CU * sites + cu[:, None] * sites
        f_at = f_ptr + image * CF * sites + cf[:, None] * sites

        # Residual on the whole tile. Each neighbor's u is read again: from the cache.
        home_y, home_x = _place(y, height, CIRCULAR), _place(x, width, CIRCULAR)
        live = (home_y >= 0) & (home_y < height) & (home_x >= 0) & (home_x < width)
        home = (home_y * width + home_x).to(tl.int64)
        r = tl.zeros((BF, 256), WIDE)
        if HAS_F:
            r = tl.load(f_at + home[None, :], (cf < CF)[:, None] & live[None, :], 0.0).to(WIDE)
        for k in range(9):
            ny = _place(home_y + k // 3 - 1, height, CIRCULAR)
            nx = _place(home_x + k % 3 - 1, width, CIRCULAR)
            there = live & (ny >= 0) & (ny < height) & (nx >= 0) & (nx < width)
            near = tl.load(
                u_at + (ny * width + nx).to(tl.int64)[None, :],
                (cu < CU)[:, None] & there[None, :], 0.0,
            ).to(WIDE)  # fmt: skip
            a = tl.load(
                a_ptr + (cf[:, None] * CU + cu[None, :]) * 9 + k,
                (cf < CF)[:, None] & (cu < CU)[None, :], 0.0,
            ).to(WIDE)  # fmt: skip
            r -= tl.dot(a, near, input_precision="ieee", out_dtype=WIDE)
        r = tl.where(live[None, :], r, 0.0)  # outside the field there is no residual

        inner = (p // 16 >= 1) & (p // 16 <= 14) & (p % 16 >= 1) & (p % 16 <= 14)
        inner = inner & (y < height) & (x < width)
        site = (y * width + x).to(tl.int64)
        if STORE:
            tl.store(
                r_ptr + image * CF * sites + cf[:, None] * sites + site[None, :],
                r.to(r_ptr.dtype.element_ty), (cf < CF)[:, None] & inner[None, :],
            )  # fmt: skip
        put = (cu < CU)[:, None] & inner[None, :]
        out = tl.load(u_at + site[None, :], put, 0.0).to(WIDE)
        for k in range(9):
            # Neighbors within the tile; lanes at its rim wrap around, and are not written.
            lane = (p + (k // 3 - 1) * 16 + (k % 3 - 1)) & 255
            near = tl.gather(r, tl.broadcast_to(lane[None, :], (BF, 256)), 1)
            s = tl.load(
                s_ptr + (cu[:, None] * CF + cf[None, :]) * 9 + k,
                (cu < CU)[:, None] & (cf < CF)[None, :], 0.0,
            ).to(WIDE)  # fmt: skip
            out += tl.dot(s, near, input_precision="ieee", out_dtype=WIDE)
        tl.store(
            out_ptr + image * CU * sites + cu[:, None] * sites + site[None, :],
            out.to(out_ptr.dtype.element_ty), put,
        )  # fmt: skip

    @triton.jit
    @no_type_check
    def _stencil_kernel(
        g_ptr, x_ptr, partial_ptr, height, width, total, chunk,
        CO: tl.constexpr, CI: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
        CIRCULAR: tl.constexpr, WIDE: tl.constexpr, PLACES: tl.constexpr,
    ):  # fmt: skip
        """One program: ``chunk`` consecutive places of the whole batch, one of nine neighbors."""
        first = tl.program_id(0).to(tl.int64) * chunk
        k = tl.program_id(1)
        o, i = tl.arange(0, BO), tl.arange(0, BI)
        sites = height.to(tl.int64) * width
        acc = tl.zeros((BO, BI), WIDE)
        for start in range(0, chunk, PLACES):
            place = first + start + tl.arange(0, PLACES)
            live = (place < total) & (start + tl.arange(0, PLACES) < chunk)
            image, site = place // sites, place % sites
            y, x = site // width, site % width
            ny = _place(y + k // 3 - 1, height, CIRCULAR)
            nx = _place(x + k % 3 - 1, width, CIRCULAR)
            there = live & (ny >= 0) & (ny < height) & (nx >= 0) & (nx < width)
            g = tl.load(
                g_ptr + (image[None, :] * CO + o[:, None]) * sites + site[None, :],
                (o < CO)[:, None] & live[None, :], 0.0,
            ).to(WIDE)  # fmt: skip
            near = tl.load(
                x_ptr + (image[:, None] * CI + i[None, :]) * sites + (ny * width + nx)[:, None],
                (i < CI)[None, :] & there[:, None], 0.0,
            ).to(WIDE)  # fmt: skip
            acc += tl.dot(g, near, input_precision="ieee", out_dtype=WIDE)
        at = (tl.program_id(0).to(tl.int64) * CO + o[:, None]) * CI + i[None, :]
        tl.store(partial_ptr + at * 9 + k, acc, (o < CO)[:, None] & (i < CI)[None, :])


def _forward_triton(u, f, A, S, circular, store):
    """``f`` None stands for zeros."""
    u, A, S = u.contiguous(), A.contiguous(), S.contiguous()
    b, cu, h, w = u.shape
    cf = len(A)
    out = torch.empty_like(u)
    r = u.new_empty(b, cf, h, w) if store else u.new_empty(0)
    if out.numel():
        across = triton.cdiv(w, 14)
        tiles = across * triton.cdiv(h, 14)
        with torch.cuda.device(u.device) if u.is_cuda else nullcontext():
            _step_kernel[(b * tiles,)](
                u, u if f is None else f.contiguous(), A, S, out, r, h, w, across, tiles,
                CU=cu, CF=cf, BU=_block(cu), BF=_block(cf), CIRCULAR=circular,
                HAS_F=f is not None, STORE=store, WIDE=_wide(u.dtype),
                num_warps=8 if max(cu, cf) > 16 else 4,
            )  # fmt: skip
    return out, r


def _stencil_triton(g, x, circular):
    g, x = g.contiguous(), x.contiguous()
    (b, co, h, w), ci = g.shape, x.shape[1]
    total = b * h * w
    if total == 0:
        return g.new_zeros(co, ci, 3, 3)
    # Enough programs for every GPU, few enough that their partial sums are small change.
    chunk = min(max(1024, triton.cdiv(total, 64)), 64 * triton.cdiv(total, 64))
    programs = triton.cdiv(total, chunk)
    wide = torch.float64 if g.dtype == torch.float64 else torch.float32
    partial = torch.empty(programs, co, ci, 3, 3, dtype=wide, device=g.device)
    with torch.cuda.device(g.device) if g.is_cuda else nullcontext():
        _stencil_kernel[(programs, 9)](
            g, x, partial, h, w, total, chunk,
            CO=co, CI=ci, BO=_block(co), BI=_block(ci), CIRCULAR=circular,
            WIDE=_wide(g.dtype), PLACES=64,
        )  # fmt: skip
    return partial.sum(0).to(g.dtype)


def _block(channels: int) -> int:
    return 16 if channels <= 16 else 32  # tl.dot wants 16 or more


def _wide(dtype: torch.dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32


# --------------------------------------------------------------------------- the operators


@torch.library.custom_op("lib::smooth_step", mutates_args=())
def _smooth_step(
    u: Tensor, f: Tensor, A: Tensor, S: Tensor, circular: bool, store: bool, backend: str
) -> tuple[Tensor, Tensor]:
    forward = _forward_triton if backend == "triton" else _forward_reference
    return forward(u, f, A, S, circular, store)


@_smooth_step.register_fake
def _(u, f, A, S, circular, store, backend):
    return u.new_empty(u.shape), u.new_empty(f.shape) if store else u.new_empty(0)


@torch.library.custom_op("lib::smooth_step_fields", mutates_args=())
def _backward_fields(
    g: Tensor, A: Tensor, S: Tensor, circular: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of ``u`` and of ``f``: the step with the adjoint stencils, on ``(g, 0)``."""
    A, S = adjoint(S), adjoint(A)
    if backend == "triton":
        grad_u, minus_h = _forward_triton(g, None, A, S, circular, True)
    else:
        zero = g.new_zeros(len(g), len(A), *g.shape[2:])
        grad_u, minus_h = _forward_reference(g, zero, A, S, circular, True)
    return grad_u, -minus_h


@_backward_fields.register_fake
def _(g, A, S, circular, backend):
    return g.new_empty(g.shape), g.new_empty(len(g), S.shape[1], *g.shape[2:])


@torch.library.custom_op("lib::smooth_step_stencil", mutates_args=())
def _backward_stencil(g: Tensor, x: Tensor, circular: bool, backend: str) -> Tensor:
    return (_stencil_triton if backend == "triton" else _stencil_reference)(g, x, circular)


@_backward_stencil.register_fake
def _(g, x, circular, backend):
    return g.new_empty(g.shape[1], x.shape[1], 3, 3)


def _setup_context(ctx, inputs, output):
    u, _, A, S, ctx.circular, ctx.store, ctx.backend = inputs
    ctx.save_for_backward(*(t if ctx.store else None for t in (u, output[1])), A, S)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, g, _r):
    u, r, A, S = ctx.saved_tensors
    grad_u, h = _backward_fields(g, A, S, ctx.circular, ctx.backend)
    grad_A = grad_S = None
    if ctx.store:
        if ctx.needs_input_grad[2]:
            grad_A = -_backward_stencil(h, u, ctx.circular, ctx.backend)
        if ctx.needs_input_grad[3]:
            grad_S = _backward_stencil(g, r, ctx.circular, ctx.backend)
    return grad_u, h, grad_A, grad_S, None, None, None


_smooth_step.register_autograd(_backward, setup_context=_setup_context)


def _check(u: Tensor, f: Tensor, A: Tensor, S: Tensor, padding_mode: str) -> None:
    if padding_mode not in ("zeros", "circular", "reflect", "replicate"):
        raise ValueError(
            f"padding_mode={padding_mode!r}: allowed are 'zeros', 'circular', 'reflect' and "
            "'replicate'"
        )
    for name, t in (("u", u), ("f", f), ("A", A), ("S", S)):
        check_dtype(name, t, DTYPES)
        if t.ndim != 4:
            raise ValueError(f"{name}: {t.ndim} axes; allowed is 4")
        if t.dtype != u.dtype:
            raise TypeError(f"{name}: dtype {t.dtype} differs from that of u, {u.dtype}")
    if (len(u), *u.shape[2:]) != (len(f), *f.shape[2:]):
        raise ValueError(
            f"u and f must differ in channels only, got {tuple(u.shape)} and {tuple(f.shape)}"
        )
    if min(u.shape[2:]) < (2 if padding_mode == "reflect" else 1):
        raise ValueError(
            f"u: shape {tuple(u.shape)}; allowed are 1 or more points along an axis, 2 or more "
            "with padding_mode='reflect'"
        )
    cu, cf = u.shape[1], f.shape[1]
    for name, t, want in (("A", A, (cf, cu, 3, 3)), ("S", S, (cu, cf, 3, 3))):
        if tuple(t.shape) != want:
            raise ValueError(f"{name}: shape {tuple(t.shape)}; allowed is {want}")
