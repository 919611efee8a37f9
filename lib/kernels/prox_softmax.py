"""A damped softmax, the proximal operator of mean-field inference, in one pass over memory.

Mean-field inference solves ``q = softmax(Phi q + b)``, one distribution for every node. Softmax is
the proximal operator of ``f(x) = sum x log x - |x|^2 / 2`` on the simplex, and forward-backward
splitting with step ``alpha`` (Z. Feng, E. Winston and J. Z. Kolter, TMLR 2023, arXiv:2307.04990)
needs the proximal operator of ``alpha f``: the ``x`` with ``sum x = 1`` and::

    (1 - alpha) x_j + alpha log x_j = z_j - lam        for every state j

``alpha = 1`` is softmax. For ``alpha < 1`` there is no formula. Newton's method runs on
``u = log x`` and on the multiplier at once. With ``e = exp(u)``, ``d = (1 - alpha) e + alpha`` and
``r = z - (1 - alpha) e - alpha u``::

    lam = (sum e + sum e r / d - 1) / sum(e / d)        u <- min(0, u + (r - lam) / d)

It starts at ``lam = max z - (1 - alpha)``, below the solution, and
``u = min(0, (z - lam) / alpha)``, or, in :func:`prox_step`, at the previous iterate; 3 to 6 rounds
are usual and 14 the most seen down to ``alpha = 0.01``. With two states the problem is one equation
in ``s = u_1 - u_2``, ``(1 - alpha) tanh(s/2) + alpha s = z_1 - z_2``; the reference solves that
instead, from a lower bound, from where Newton's method climbs to the root without passing it.

Backward, with ``d = x / ((1 - alpha) x + alpha)``: ``g_z = d (g - sum(d g) / sum d)``. It needs
``x`` alone.

Floor, for N numbers of ``w`` bytes: ``2 w N`` bytes forward (``3 w N`` for a step, which reads two
arrays), ``3 w N`` backward (``4 w N``). Arithmetic: about 20 FLOPs and one exponential a number and
round, all in registers. Written as separate operations, every round makes about ten passes. A
program holds some 512 numbers: whole groups, states in the lanes of a row; a group of k states
occupies the next power of two.
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
from collections.abc import Sequence
from contextlib import nullcontext
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels.dispatch import Backend, check_dtype, pick_backend, tl, triton

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST = 1024
"""States of a group that one program of the kernel holds."""
ROUNDS = 40
"""Rounds after which Newton's method gives up; it stops much earlier."""

Groups = Sequence[tuple[int, int]]
"""Runs of nodes along the last axis: ``(count, states)``, e.g. ``((64, 2), (1, 10))``."""


def prox_softmax(
    z: Float[Tensor, "*b K"],
    alpha: float,
    groups: Groups | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "*b K"]:
    """``argmin_x |x - z|^2 / 2 + alpha f(x)`` over distributions, one for each node.

    The last axis holds the nodes one after another; ``groups=None`` makes it one node. Half
    precision is computed in float32 and rounded once. Differentiable in ``z``.

    Raises:
        ValueError: ``alpha`` outside (0, 1]; groups that do not fill the axis; a group of more
            than 1,024 states with ``backend="triton"``; NaN or infinity is not looked for.
        TypeError: a dtype other than float16, bfloat16, float32, float64.
    """
    runs = _check("z", z, alpha, groups)
    chosen = _choose(backend, runs, z)
    return _prox(z, None, float(alpha), runs, chosen)[0]


def prox_step(
    q: Float[Tensor, "*b K"],
    v: Float[Tensor, "*b K"],
    alpha: float,
    groups: Groups | None = None,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "*b K"], Float[Tensor, ""]]:
    """One step ``x = prox_softmax((1 - alpha) q + alpha v)`` and ``sum (x - q)^2``, in one pass.

    ``v = Phi q + b`` is the field at ``q``. Newton's method starts at ``q``, so a step that hardly
    moves costs little. The sum runs over everything, in a fixed order; it has no gradient.

    Raises:
        ValueError, TypeError: as :func:`prox_softmax`; ``q`` and ``v`` of different shape or type.
    """
    runs = _check("v", v, alpha, groups)
    if q.shape != v.shape:
        raise ValueError(f"q: shape {tuple(q.shape)}; v has {tuple(v.shape)}")
    if q.dtype != v.dtype:
        raise TypeError(f"q: dtype {q.dtype} differs from that of v, {v.dtype}")
    chosen = _choose(backend, runs, q, v)
    if chosen == "reference" and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        return _forward_reference(v, q, float(alpha), runs)  # saves the dispatch, in long loops
    return _prox(v, q, float(alpha), runs, chosen)


def prox_vjp(
    x: Float[Tensor, "*b K"],
    g: Float[Tensor, "*b K"],
    alpha: float,
    groups: Groups | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "*b K"]:
    """The operator's Jacobian at the output ``x``, times ``g``; the Jacobian is symmetric.

    Raises:
        ValueError, TypeError: as :func:`prox_softmax`.
    """
    runs = _check("x", x, alpha, groups)
    if x.shape != g.shape or x.dtype != g.dtype:
        raise ValueError(
            f"g: {tuple(g.shape)}, {g.dtype}; allowed is that of x: {tuple(x.shape)}, {x.dtype}"
        )
    chosen = _choose(backend, runs, x, g)
    if chosen == "reference" and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        wide = _wide(x.dtype)
        return _vjp_reference(x.to(wide), g.to(wide), float(alpha), runs).to(x.dtype)
    return _vjp(x, g, float(alpha), False, runs, chosen)[0]


# --------------------------------------------------------------------------- plain PyTorch


def reference(
    z: Tensor, start: Tensor | None, alpha: float, runs: Sequence[int]
) -> Float[Tensor, "*b K"]:
    """The operator on ``z``, from ``start`` or cold; the runs one after another."""
    parts = []
    starts = [None] * len(runs) if start is None else _split(start, runs)
    for t, s in zip(_split(z, runs), starts):
        if alpha == 1:
            part = torch.softmax(t, -1)
        elif t.shape[-1] == 1:
            part = torch.ones_like(t)
        elif t.shape[-1] == 2:
            part = _two_states(t, alpha, s)
        else:
            part = _newton(t, alpha, s)
        parts.append(part.flatten(-2))
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _newton(z: Tensor, alpha: float, start: Tensor | None) -> Tensor:
    # States first: sums over a short last axis cost six times as much on a CPU.
    z = z.movedim(-1, 0).contiguous()
    least, tol = _limits(z.dtype)
    beta = 1 - alpha
    if start is None:
        u = ((z - z.amax(0) + beta) / alpha).clamp_(least, 0)
    else:
        u = start.movedim(-1, 0).log().clamp_(least, 0)
    for _ in range(ROUNDS if z.numel() else 0):
        e = u.exp()
        d = torch.add(alpha, e, alpha=beta)
        r = z.sub(e, alpha=beta).sub_(u, alpha=alpha)
        w = e / d
        lam = (e.addcmul_(w, r).sum(0) - 1) / w.sum(0)
        u_next = r.sub_(lam).div_(d).add_(u).clamp_(least, 0)
        moved = w.mul_(u.sub_(u_next)).abs_().amax()
        u = u_next
        if not moved > tol:  # NaN ends the loop, too
            break
    x = u.exp_()
    return (x / x.sum(0)).movedim(0, -1)


def _two_states(z: Tensor, alpha: float, start: Tensor | None) -> Tensor:
    """``s = log(x_1 / x_2)``, on the side where it is positive; ``least`` lies below the root."""
    _, tol = _limits(z.dtype)
    gap = z[..., 0] - z[..., 1]
    size = gap.abs()
    least = torch.maximum(size * (2 / (1 + alpha)), (size - (1 - alpha)) / alpha)
    s = least
    if start is not None:
        tiny = torch.finfo(z.dtype).tiny
        before = (start[..., 0].clamp_min(tiny) / start[..., 1].clamp_min(tiny)).log_()
        # From beyond the root a step may fall back too far; the bound catches it.
        s = torch.maximum(before.mul_(gap.sign()), least)
    for _ in range(ROUNDS if s.numel() else 0):
        t = torch.tanh(0.5 * s)
        slope = torch.addcmul(t.new_tensor(alpha + (1 - alpha) / 2), t, t, value=-(1 - alpha) / 2)
        new = size.sub(t, alpha=1 - alpha).sub_(s, alpha=alpha).div_(slope).add_(s)
        new = torch.maximum(new, least)
        moved = (s - new).mul_(1 - t.square_()).abs_().amax()
        s = new
        if not moved > tol:
            break
    first = torch.sigmoid(torch.copysign(s, gap))
    return torch.stack([first, torch.sigmoid(torch.copysign(s, -gap))], -1)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    """The smallest logarithm, and the change of x that ends the rounds.

    The error left is the change's square times at most ``1 / (2 alpha)``.
    """
    return (-700.0, 1e-9) if dtype == torch.float64 else (-80.0, 1e-3)


def _vjp_reference(x: Tensor, g: Tensor, alpha: float, runs: Sequence[int]) -> Tensor:
    d = x / torch.add(alpha, x, alpha=1 - alpha)
    if len(runs) == 2 and runs[0] == 1:
        return d * (g - (d * g).sum(-1, keepdim=True) / d.sum(-1, keepdim=True))
    parts = []
    for d_, h in zip(_split(d, runs), _split(g, runs), strict=True):
        if d_.shape[-1] == 2:  # d1 d2 / (d1 + d2) times the difference
            part = d_[..., 0] * d_[..., 1]
            part = part / (d_[..., 0] + d_[..., 1]) * (h[..., 0] - h[..., 1])
            parts.append(torch.stack([part, -part], -1).flatten(-2))
        else:
            d_, h = (t.movedim(-1, 0).contiguous() for t in (d_, h))
            part = d_ * (h - (d_ * h).sum(0) / d_.sum(0))
            parts.append(part.movedim(0, -1).flatten(-2))
    return torch.cat(parts, -1)


def _split(t: Tensor, runs: Sequence[int]) -> list[Tensor]:
    """Views ``"*b count states"``, one for each run."""
    sizes = [c * k for c, k in zip(runs[::2], runs[1::2], strict=True)]
    pieces = t.split(sizes, -1)
    return [p.unflatten(-1, (c, k)) for p, c, k in zip(pieces, runs[::2], runs[1::2], strict=True)]


def _forward_reference(v, q, alpha, runs):
    wide = _wide(v.dtype)
    if q is None:
        return reference(v.to(wide), None, alpha, runs).to(v.dtype), v.new_zeros((), dtype=wide)
    q_wide = q.to(wide)
    x = reference(torch.lerp(q_wide, v.to(wide), alpha), q_wide, alpha, runs)
    return x.to(v.dtype), (x - q_wide).square().sum()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# --------------------------------------------------------------------------- Triton

if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap every
    # function in a type checker.

    @triton.jit
    @no_type_check
    def _forward_kernel(
        v_ptr, q_ptr, x_ptr, partial_ptr, rows, nodes, stride, first,
        alpha_high, alpha_low, least, tol, rounds,
        STATES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
        STEP: tl.constexpr, SOFTMAX: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """One program: ``ROWS`` groups of ``STATES`` numbers. Row = sample * nodes + node."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        state = tl.arange(0, BLOCK)
        at = (row // nodes) * stride + first + (row % nodes) * STATES
        at = at[:, None] + state[None, :]
        live = (row < rows)[:, None] & (state < STATES)[None, :]
        alpha = tl.full((1, 1), alpha_high, WIDE) + tl.full((1, 1), alpha_low, WIDE)
        beta = 1 - alpha
        z = tl.load(v_ptr + at, live, 0.0).to(WIDE)
        q = z
        if STEP:
            q = tl.load(q_ptr + at, live, 0.0).to(WIDE)
            z = beta * q + alpha * z
        top = tl.max(tl.where(live, z, -float("inf")), 1)
        # Rows beyond the end solve a problem of equal numbers, so that they do not hold up others.
        top = tl.where(row < rows, top, 0.0)[:, None]
        inside = (state < STATES)[None, :]
        if SOFTMAX:
            e = tl.where(inside, tl.exp(z - top), 0.0)
        else:
            if STEP:
                u = tl.where(live, tl.log(tl.maximum(q, 1e-37)), 0.0)
            else:
                u = (z - top + beta) / alpha
            u = tl.minimum(tl.maximum(u, least), 0.0)
            moved = tl.max(tl.max(tl.zeros((ROWS, BLOCK), WIDE) + 1e30, 1), 0)
            k = 0
            while (moved > tol) & (k < rounds):
                e = tl.where(inside, tl.exp(u), 0.0)
                d = beta * e + alpha
                r = z - beta * e - alpha * u
                w = e / d
                lam = (tl.sum(e + w * r, 1) - 1) / tl.sum(w, 1)
                new = u + (r - lam[:, None]) / d
                new = tl.minimum(tl.maximum(new, least), 0.0)
                moved = tl.max(tl.max(w * tl.abs(new - u), 1), 0)
                u = new
                k += 1
            e = tl.where(inside, tl.exp(u), 0.0)
        x = e / tl.sum(e, 1)[:, None]
        tl.store(x_ptr + at, x.to(x_ptr.dtype.element_ty), live)
        if STEP:
            change = tl.where(live, x - q, 0.0)
            total = tl.sum(tl.sum(change * change, 1), 0)
            tl.store(partial_ptr + tl.program_id(0), total)

    @triton.jit
    @no_type_check
    def _backward_kernel(
        x_ptr, g_ptr, gv_ptr, gq_ptr, rows, nodes, stride, first, alpha_high, alpha_low,
        STATES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
        STEP: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        state = tl.arange(0, BLOCK)
        at = (row // nodes) * stride + first + (row % nodes) * STATES
        at = at[:, None] + state[None, :]
        live = (row < rows)[:, None] & (state < STATES)[None, :]
        alpha = tl.full((1, 1), alpha_high, WIDE) + tl.full((1, 1), alpha_low, WIDE)
        x = tl.load(x_ptr + at, live, 0.0).to(WIDE)
        g = tl.load(g_ptr + at, live, 0.0).to(WIDE)
        d = x / ((1 - alpha) * x + alpha)
        total = tl.sum(d, 1)
        mean = tl.sum(d * g, 1) / tl.where(total > 0, total, 1.0)
        gz = d * (g - mean[:, None])
        if STEP:
            tl.store(gv_ptr + at, (alpha * gz).to(gv_ptr.dtype.element_ty), live)
            tl.store(gq_ptr + at, ((1 - alpha) * gz).to(gq_ptr.dtype.element_ty), live)
        else:
            tl.store(gv_ptr + at, gz.to(gv_ptr.dtype.element_ty), live)


def _launches(like: Tensor, runs: Sequence[int]):
    """For each run: programs, and what all kernels take: rows, nodes, stride, first; sizes."""
    total, first = like.shape[-1], 0
    samples = like.numel() // total
    for count, states in zip(runs[::2], runs[1::2], strict=True):
        block = triton.next_power_of_2(states)
        height = max(1, 512 // block)
        rows = samples * count
        sizes = {"STATES": states, "BLOCK": block, "ROWS": height}
        yield triton.cdiv(rows, height), (rows, count, total, first), sizes
        first += count * states


def _parts(alpha: float) -> tuple[float, float]:
    """A float64 as two float32: a number reaches a kernel in single precision."""
    high = torch.tensor(alpha, dtype=torch.float32).item()
    return high, alpha - high


def _forward_triton(v, q, alpha, runs):
    wide = _wide(v.dtype)
    v = v.contiguous()
    q = q.contiguous() if q is not None else None
    x = torch.empty_like(v)
    if v.numel() == 0:
        return x, v.new_zeros((), dtype=wide)
    least, tol = _limits(wide)
    launches = list(_launches(v, runs))
    partial = v.new_empty(sum(n for n, _, _ in launches) if q is not None else 0, dtype=wide)
    done = 0
    kind = tl.float64 if wide == torch.float64 else tl.float32
    with torch.cuda.device(v.device) if v.is_cuda else nullcontext():
        for programs, where, sizes in launches:
            _forward_kernel[(programs,)](
                v, v if q is None else q, x, partial[done:] if q is not None else x, *where,
                *_parts(alpha), least, tol, ROUNDS, **sizes,
                STEP=q is not None, SOFTMAX=alpha == 1, WIDE=kind, num_warps=4,
            )  # fmt: skip
            done += programs
    return x, partial.sum()


def _vjp_triton(x, g, alpha, step, runs):
    x, g = x.contiguous(), g.contiguous()
    gv = torch.empty_like(x)
    gq = torch.empty_like(x) if step else x.new_empty(0)
    if x.numel():
        kind = tl.float64 if x.dtype == torch.float64 else tl.float32
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            for programs, where, sizes in _launches(x, runs):
                _backward_kernel[(programs,)](
                    x, g, gv, gq if step else gv, *where, *_parts(alpha), **sizes,
                    STEP=step, WIDE=kind, num_warps=4,
                )  # fmt: skip
    return gv, gq


# --------------------------------------------------------------------------- the operators


@torch.library.custom_op("lib::prox_softmax", mutates_args=())
def _prox(
    v: Tensor, q: Tensor | None, alpha: float, runs: Sequence[int], backend: str
) -> tuple[Tensor, Tensor]:
    forward = _forward_triton if backend == "triton" else _forward_reference
    return forward(v, q, alpha, runs)


@_prox.register_fake
def _(v, q, alpha, runs, backend):
    return v.new_empty(v.shape), v.new_empty((), dtype=_wide(v.dtype))


@torch.library.custom_op("lib::prox_softmax_vjp", mutates_args=())
def _vjp(
    x: Tensor, g: Tensor, alpha: float, step: bool, runs: Sequence[int], backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of ``v`` and, in a step, of ``q``."""
    if backend == "triton":
        return _vjp_triton(x, g, alpha, step, runs)
    wide = _wide(x.dtype)
    gz = _vjp_reference(x.to(wide), g.to(wide), alpha, runs)
    if not step:
        return gz.to(x.dtype), x.new_empty(0)
    return (alpha * gz).to(x.dtype), ((1 - alpha) * gz).to(x.dtype)


@_vjp.register_fake
def _(x, g, alpha, step, runs, backend):
    return x.new_empty(x.shape), x.new_empty(x.shape if step else 0)


def _setup_context(ctx, inputs, output):
    _, q, ctx.alpha, ctx.runs, ctx.backend = inputs
    ctx.step = q is not None
    ctx.save_for_backward(output[0])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, g, _change):
    (x,) = ctx.saved_tensors
    gv, gq = _vjp(x, g, ctx.alpha, ctx.step, ctx.runs, ctx.backend)
    return gv, gq if ctx.step else None, None, None, None


_prox.register_autograd(_backward, setup_context=_setup_context)


def _choose(backend: str, runs: Sequence[int], *tensors: Tensor) -> str:
    chosen = pick_backend(backend, *tensors)
    if chosen == "triton" and max(runs[1::2]) > MOST:
        if backend == "triton":
            raise ValueError(f"backend='triton': {max(runs[1::2])} states; allowed is {MOST}")
        return "reference"
    return chosen


def _check(name: str, z: Tensor, alpha: float, groups: Groups | None) -> list[int]:
    """The groups as a flat list: count, states, count, states, ..."""
    check_dtype(name, z, DTYPES)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha={alpha}: allowed is above 0, up to 1")
    if z.ndim < 1 or z.shape[-1] < 1:
        raise ValueError(f"{name}: shape {tuple(z.shape)}; its last axis holds at least one state")
    if groups is None:
        return [1, z.shape[-1]]
    runs = [int(n) for pair in groups for n in pair]
    total = sum(c * k for c, k in zip(runs[::2], runs[1::2]))
    if any(len(pair) != 2 for pair in groups) or min(runs, default=0) < 1 or total != z.shape[-1]:
        raise ValueError(
            f"groups={tuple(map(tuple, groups))}: pairs (count, states), 1 or more each, that fill "
            f"the last axis of {name}, {z.shape[-1]} long"
        )
    return runs
