"""Leaky integrate-and-fire neurons over a whole time axis, in one kernel.

For every neuron, with membrane ``u`` (after the reset), input current ``I`` and leak ``decay``::

    v[t] = decay * u[t-1] + I[t]                       charge (the input is not scaled by the leak)
    s[t] = 1 if v[t] >= threshold else 0               fire
    u[t] = v[t] - threshold * s[t]   or   v[t] * (1 - s[t])          soft or hard reset

The step has no useful derivative, so the backward pass uses a surrogate ``s'(v - threshold)``:

    temporal (BPTT)   g_v[t] = g_s[t] s'[t] + k[t] decay g_v[t+1],    k[t] = d u[t] / d v[t]
    spatial  (SLTT)   g_v[t] = g_s[t] s'[t]

and ``g_I[t] = g_v[t]``. The first is a scan from the last step to the first. The second has no
scan left: it is one product, parallel over time (Meng et al. 2023, arXiv:2302.14311).

Floor, for ``T`` steps of ``N`` neurons in a ``b``-byte type. Forward: read ``I``, write the spikes
and ``s'``: ``3 b T N`` bytes, or ``(b + 1) T N`` with byte spikes and nothing stored. Backward:
read ``g_s`` and ``s'``, write ``g_I``: ``3 b T N``, plus ``b T N`` for ``k`` with a hard reset.
About ten operations an element, so memory decides. A loop of separate PyTorch operations moves the
membrane through memory four to six times a step; here it never leaves the registers.

A NaN is never hidden: it does not fire, it stays in the membrane, and every gradient that passes it
is NaN. An infinite potential has the surrogate's limit, slope 0. The soft reset leaves it infinite;
with the hard one ``inf * (1 - 1)``, and the reset's derivative at either infinity, are NaN.

``decay``, ``threshold`` and ``alpha`` are compile-time constants of the Triton kernel (a network
has one value of each): another value means another compilation.
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
import inspect
import math
from typing import Literal, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels.dispatch import Backend, check_dtype, pick_backend, tl, triton

Kind = Literal["triangle", "rectangle", "sigmoid", "arctan"]
KINDS: tuple[str, ...] = ("triangle", "rectangle", "sigmoid", "arctan")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def lif(
    current: Float[Tensor, "t *neurons"],
    *,
    decay: float,
    threshold: float = 1.0,
    reset: Literal["soft", "hard"],
    kind: Kind = "triangle",
    alpha: float = 1.0,
    temporal_grad: bool = True,
    detach_reset: bool = False,
    initial: Float[Tensor, "*neurons"] | None = None,
    byte_spikes: bool = False,
    smooth: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Float[Tensor, "*neurons"]]:
    """Spikes ``"t *neurons"`` and the membrane after the last reset, ``"*neurons"``.

    Half-precision input is computed in float32 and stored in its own type. What the backward pass
    needs is stored whenever gradients are enabled, so run inference under ``torch.no_grad()``.

    Args:
        decay: the leak ``1 - 1/tau``, between 0 and 1.
        temporal_grad: True differentiates through the membrane (BPTT); False keeps the spatial
            path alone (SLTT), and the returned membrane carries no gradient.
        detach_reset: leaves the reset out of the derivative: ``k`` is 1 (soft) or ``1 - s`` (hard).
        initial: the membrane before the first step, zero if None.
        byte_spikes: spikes as ``uint8``, for inference; such spikes carry no gradient.
        smooth: replaces the step by the surrogate's integral. Then the gradient is the true one,
            and finite differences can check it.

    Raises:
        ValueError: an argument outside its range, ``initial`` of another shape, ``byte_spikes``
            while gradients are enabled or with ``smooth``.
        TypeError: a dtype other than float16, bfloat16, float32, float64.
    """
    _check(current, initial, decay, threshold, reset, kind, alpha)
    tensors = [current] if initial is None else [current, initial]
    chosen = pick_backend(backend, *tensors)
    # Not `requires_grad`, which a tensor inside torch.func.vmap does not show.
    store = torch.is_grad_enabled()
    if byte_spikes and (store or smooth):
        raise ValueError(
            "byte_spikes=True: bytes carry no gradient; call under torch.no_grad(), smooth=False"
        )
    if smooth and kind == "arctan" and chosen == "triton":
        raise ValueError("smooth=True with kind='arctan' needs backend='reference'")
    numbers = (
        decay, threshold, reset == "hard", kind, alpha, temporal_grad, detach_reset, byte_spikes,
        smooth, store, chosen,
    )  # fmt: skip
    if chosen == "triton":
        spikes, membrane, _, _ = _lif(current, initial, *numbers)
    else:
        spikes, membrane, _, _ = _Reference.apply(current, initial, numbers)
    return spikes, membrane if temporal_grad else membrane.detach()


# --------------------------------------------------------------------------- plain PyTorch


def surrogate_slope(x: Tensor, kind: str, alpha: float, out: Tensor | None = None) -> Tensor:
    """``s'(x)`` for ``x = v - threshold``; every kind integrates to 1.

    All scale as ``alpha * s'_1(alpha * x)``. The triangle is zero beyond ``|x| = 1/alpha``, the
    rectangle beyond ``1/(2 alpha)``. Written to ``out`` where it is given.
    """
    if kind == "triangle":
        return torch.abs(x, out=out).mul_(-alpha * alpha).add_(alpha).clamp_min_(0)
    if kind == "rectangle":
        inside = (x.abs() * alpha <= 0.5).to(x.dtype) * alpha
        return torch.where(x.isnan(), x, inside, out=out)
    if kind == "sigmoid":
        p = torch.sigmoid(alpha * x)
        return torch.mul(p, 1 - p, out=out).mul_(alpha)
    return torch.square(0.5 * math.pi * alpha * x, out=out).add_(1).reciprocal_().mul_(0.5 * alpha)


def smooth_step(x: Tensor, kind: str, alpha: float) -> Tensor:
    """The integral of :func:`surrogate_slope`: a step from 0 to 1, one half at ``x = 0``."""
    z = alpha * x
    if kind == "triangle":
        z = z.clamp(-1, 1)
        return 0.5 + z - 0.5 * z * z.abs()
    if kind == "rectangle":
        return (0.5 + z).clamp(0, 1)
    if kind == "sigmoid":
        return torch.sigmoid(z)
    return 0.5 + torch.atan(0.5 * math.pi * z) / math.pi


def _forward_reference(
    current, initial, decay, threshold, hard, kind, alpha, detach_reset, smooth, store, spike_dtype
):
    wide, shape, device = _compute_dtype(current.dtype), current.shape, current.device
    spikes = torch.empty(shape, dtype=spike_dtype, device=device)
    slope = torch.empty(shape if store else 0, dtype=current.dtype, device=device)
    keep = torch.empty(shape if store and hard else 0, dtype=current.dtype, device=device)
    u = None if initial is None else initial.to(wide)
    # Results go straight to their place: at these sizes a fresh tensor costs more than its numbers.
    same = current.dtype == wide
    for t, i in enumerate(current):
        v = i.to(wide) if u is None else torch.add(i, u, alpha=decay)
        x = v - threshold
        if smooth:
            s = smooth_step(x, kind, alpha)
            spikes[t] = s
        else:
            s = torch.ge(x, 0, out=spikes[t])
        if store:
            d = surrogate_slope(x, kind, alpha, out=slope[t] if same else None)
            if not same:
                slope[t] = d
            if hard:
                keep[t] = 1 - s if detach_reset else 1 - s - v * d
        u = v * (1 - s) if hard else torch.sub(v, s, alpha=threshold)
    return spikes, u.to(current.dtype), slope, keep


def _backward_reference(grad_spikes, grad_state, slope, keep, decay, threshold, hard, detach_reset):
    wide = _compute_dtype(slope.dtype)
    grad = torch.empty(slope.shape, dtype=wide, device=slope.device)
    g_u = grad_state.to(wide)
    for t in reversed(range(len(slope))):
        g, d = grad_spikes[t].to(wide), slope[t].to(wide)
        if hard:
            carried = g_u * keep[t].to(wide)
        else:
            carried = g_u
            if not detach_reset:  # g d + g_u (1 - threshold d), in one product
                g = torch.sub(g, g_u, alpha=threshold)
        torch.addcmul(carried, g, d, out=grad[t])
        g_u = decay * grad[t]
    return grad.to(slope.dtype), g_u.to(slope.dtype)


# --------------------------------------------------------------------------- Triton

if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap
    # every function in a type checker.

    # tl.maximum and tl.minimum return the other number for a NaN; x == x brings the NaN back.

    @triton.jit
    @no_type_check
    def _slope(x, alpha: tl.constexpr, KIND: tl.constexpr):
        if KIND == "triangle":
            return tl.where(x == x, tl.maximum(alpha - alpha * alpha * tl.abs(x), 0.0), x)
        elif KIND == "rectangle":
            inside = (tl.abs(x) * alpha <= 0.5).to(x.dtype) * alpha
            return tl.where(x == x, inside, x)
        elif KIND == "sigmoid":
            # exp of a negative number only: no overflow on either side.
            e = tl.exp(-alpha * tl.abs(x))
            return alpha * e / ((1.0 + e) * (1.0 + e))
        else:
            z = 1.5707963267948966 * alpha * x
            return 0.5 * alpha / (1.0 + z * z)

    @triton.jit
    @no_type_check
    def _smooth(x, alpha: tl.constexpr, KIND: tl.constexpr):
        z = alpha * x
        if KIND == "triangle":
            z = tl.where(z == z, tl.minimum(tl.maximum(z, -1.0), 1.0), z)
            return 0.5 + z - 0.5 * z * tl.abs(z)
        elif KIND == "rectangle":
            return tl.where(z == z, tl.minimum(tl.maximum(0.5 + z, 0.0), 1.0), z)
        else:
            e = tl.exp(-tl.abs(z))
            p = 1.0 / (1.0 + e)
            return tl.where(z >= 0, p, e * p)

    @triton.jit
    @no_type_check
    def _forward_kernel(
        current, initial, spikes, membrane, slope, keep, n, steps,
        decay: tl.constexpr, threshold: tl.constexpr, alpha: tl.constexpr, KIND: tl.constexpr,
        HARD: tl.constexpr, DETACH: tl.constexpr, SMOOTH: tl.constexpr, STORE: tl.constexpr,
        START: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        # One program walks a block of neurons through all steps; the membrane stays in registers.
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        home = at
        if START:
            u = tl.load(initial + at, mask=inside, other=0.0).to(WIDE)
        else:
            u = tl.zeros([BLOCK], dtype=WIDE)
        for _ in range(0, steps):
            v = decay * u + tl.load(current + at, mask=inside, other=0.0).to(WIDE)
            x = v - threshold
            if SMOOTH:
                s = _smooth(x, alpha, KIND)
            else:
                s = (x >= 0).to(WIDE)
            if STORE:
                d = _slope(x, alpha, KIND)
                tl.store(slope + at, d.to(slope.dtype.element_ty), mask=inside)
                if HARD:
                    k = 1.0 - s
                    if not DETACH:
                        k = k - v * d
                    tl.store(keep + at, k.to(keep.dtype.element_ty), mask=inside)
            if HARD:
                u = v * (1.0 - s)
            else:
                u = v - threshold * s
            tl.store(spikes + at, s.to(spikes.dtype.element_ty), mask=inside)
            at += n  # 64-bit: steps * n passes 2^31 at full scale
        tl.store(membrane + home, u.to(membrane.dtype.element_ty), mask=inside)

    @triton.jit
    @no_type_check
    def _scan_kernel(
        grad_spikes, grad_state, slope, keep, grad, grad_initial, n, steps, last,
        decay: tl.constexpr, threshold: tl.constexpr, HARD: tl.constexpr, DETACH: tl.constexpr,
        WIDE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        home = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = home < n
        g_u = tl.load(grad_state + home, mask=inside, other=0.0).to(WIDE)
        at = home + last  # (steps - 1) * n, counted on the host in 64 bits
        for _ in range(0, steps):
            d = tl.load(slope + at, mask=inside, other=0.0).to(WIDE)
            g_v = tl.load(grad_spikes + at, mask=inside, other=0.0).to(WIDE) * d
            if HARD:
                g_v += g_u * tl.load(keep + at, mask=inside, other=0.0).to(WIDE)
            elif DETACH:
                g_v += g_u
            else:
                g_v += g_u * (1.0 - threshold * d)
            tl.store(grad + at, g_v.to(grad.dtype.element_ty), mask=inside)
            g_u = decay * g_v
            at -= n
        tl.store(grad_initial + home, g_u.to(grad_initial.dtype.element_ty), mask=inside)

    @triton.jit
    @no_type_check
    def _product_kernel(grad_spikes, slope, grad, n, WIDE: tl.constexpr, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        d = tl.load(slope + at, mask=inside, other=0.0).to(WIDE)
        g = tl.load(grad_spikes + at, mask=inside, other=0.0).to(WIDE)
        tl.store(grad + at, (g * d).to(grad.dtype.element_ty), mask=inside)


BLOCK = 1024  # 4 warps, 8 neurons a thread: 16-byte loads in half precision


def _forward_triton(
    current, initial, decay, threshold, hard, kind, alpha, detach_reset, smooth, store, spike_dtype
):
    current = current.contiguous()
    steps, n = len(current), math.prod(current.shape[1:])
    spikes = torch.empty_like(current, dtype=spike_dtype)
    slope = torch.empty_like(current) if store else current.new_empty(0)
    keep = torch.empty_like(current) if store and hard else current.new_empty(0)
    membrane = current.new_empty(current.shape[1:])
    if n:
        start = current if initial is None else initial.contiguous()
        _forward_kernel[(triton.cdiv(n, BLOCK),)](
            current, start, spikes, membrane, slope, keep, n, steps,
            decay=decay, threshold=threshold, alpha=alpha, KIND=kind, HARD=hard,
            DETACH=detach_reset, SMOOTH=smooth, STORE=store, START=initial is not None,
            WIDE=_wide(current.dtype), BLOCK=BLOCK,
        )  # fmt: skip
    return spikes, membrane, slope, keep


def _backward_triton(grad_spikes, grad_state, slope, keep, decay, threshold, hard, detach_reset):
    grad_spikes, grad_state = grad_spikes.contiguous(), grad_state.contiguous()
    steps, n = len(slope), math.prod(slope.shape[1:])
    grad, grad_initial = torch.empty_like(slope), torch.empty_like(grad_state)
    if n:
        _scan_kernel[(triton.cdiv(n, BLOCK),)](
            grad_spikes, grad_state, slope, keep, grad, grad_initial, n, steps, (steps - 1) * n,
            decay=decay, threshold=threshold, HARD=hard, DETACH=detach_reset,
            WIDE=_wide(slope.dtype), BLOCK=BLOCK,
        )  # fmt: skip
    return grad, grad_initial


def _product_triton(grad_spikes, slope):
    grad_spikes = grad_spikes.contiguous()
    grad = torch.empty_like(slope)
    if n := slope.numel():
        _product_kernel[(triton.cdiv(n, BLOCK),)](
            grad_spikes, slope, grad, n, WIDE=_wide(slope.dtype), BLOCK=BLOCK
        )
    return grad


def _wide(dtype: torch.dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32


# --------------------------------------------------------------------------- the operators


@torch.library.custom_op("lib::lif", mutates_args=())
def _lif(
    current: Tensor, initial: Tensor | None, decay: float, threshold: float, hard: bool, kind: str,
    alpha: float, temporal: bool, detach_reset: bool, byte_spikes: bool, smooth: bool, store: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    forward = _forward_triton if backend == "triton" else _forward_reference
    return forward(
        current, initial, decay, threshold, hard, kind, alpha, detach_reset, smooth, store,
        torch.uint8 if byte_spikes else current.dtype,
    )  # fmt: skip


@_lif.register_fake
def _(
    current, initial, decay, threshold, hard, kind, alpha, temporal, detach_reset, byte_spikes,
    smooth, store, backend,
):  # fmt: skip
    whole = current.new_empty(current.shape)
    return (
        current.new_empty(current.shape, dtype=torch.uint8 if byte_spikes else current.dtype),
        current.new_empty(current.shape[1:]),
        torch.empty_like(whole) if store else current.new_empty(0),
        torch.empty_like(whole) if store and hard else current.new_empty(0),
    )


@torch.library.custom_op("lib::lif_backward", mutates_args=())
def _lif_backward(
    grad_spikes: Tensor, grad_state: Tensor, slope: Tensor, keep: Tensor, decay: float,
    threshold: float, hard: bool, detach_reset: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _backward_triton(
        grad_spikes, grad_state, slope, keep, decay, threshold, hard, detach_reset
    )


@_lif_backward.register_fake
def _(grad_spikes, grad_state, slope, keep, decay, threshold, hard, detach_reset):
    return torch.empty_like(slope), slope.new_empty(slope.shape[1:])


@torch.library.custom_op("lib::lif_product", mutates_args=())
def _lif_product(grad_spikes: Tensor, slope: Tensor) -> Tensor:
    return _product_triton(grad_spikes, slope)


@_lif_product.register_fake
def _(grad_spikes, slope):
    return torch.empty_like(slope)


def _setup_context(ctx, inputs, output):
    (_, initial, decay, threshold, hard, _, _, temporal, detach_reset, _, _, _, backend) = inputs
    _, _, slope, keep = output
    # The spatial path needs s' alone; a soft reset gives k from s'.
    ctx.save_for_backward(slope, *([keep] if temporal and hard else []))
    ctx.args = (decay, threshold, hard, detach_reset, backend)
    ctx.temporal, ctx.has_initial = temporal, initial is not None
    ctx.mark_non_differentiable(slope, keep)


def _backward(ctx, grad_spikes, grad_state, _slope, _keep):
    slope, *rest = ctx.saved_tensors
    keep = rest[0] if rest else slope.new_empty(0)
    reference = ctx.args[-1] == "reference"
    if not ctx.temporal:
        product = torch.mul if reference else _lif_product
        grad, grad_initial = product(grad_spikes, slope), None
    elif reference:
        grad, grad_initial = _backward_reference(
            grad_spikes, grad_state, slope, keep, *ctx.args[:-1]
        )
    else:
        grad, grad_initial = _lif_backward(grad_spikes, grad_state, slope, keep, *ctx.args[:-1])
    return grad, grad_initial if ctx.has_initial else None, *([None] * 11)


_lif.register_autograd(_backward, setup_context=_setup_context)


def _mapped(operator):
    """The operator's rule under vmap: a mapped axis is one more axis of neurons, after time."""

    def rule(info, in_dims, current, initial, *rest):
        size = info.batch_size
        if in_dims[0] is None:
            current = current.unsqueeze(1).expand(-1, size, *current.shape[1:])
        else:
            current = current.movedim(in_dims[0], 1)
        if initial is not None:
            if in_dims[1] is None:
                initial = initial.expand(size, *initial.shape)
            else:
                initial = initial.movedim(in_dims[1], 0)
        outputs = operator(current, initial, *rest)
        dims = [1, 0, *(1 if t.shape == current.shape else None for t in outputs[2:])]
        return outputs, tuple(dims)

    return rule


_lif.register_vmap(_mapped(_lif))


class _Reference(torch.autograd.Function):
    """The reference without the operator around it, which costs a tenth of a millisecond a call.

    A network that runs step by step makes one call a layer and step; ``torch.compile`` sees plain
    PyTorch here. The numbers travel as one tuple: binding thirteen arguments takes time, too.
    """

    @staticmethod
    def forward(current, initial, numbers):
        decay, threshold, hard, kind, alpha, _, detach, byte_spikes, smooth, store, _ = numbers
        spike_dtype = torch.uint8 if byte_spikes else current.dtype
        return _forward_reference(
            current, initial, decay, threshold, hard, kind, alpha, detach, smooth, store,
            spike_dtype,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        current, initial, numbers = inputs
        _setup_context(ctx, (current, initial, *numbers), output)

    @staticmethod
    def backward(ctx, *grads):
        return *_backward(ctx, *grads)[:2], None

    @staticmethod
    def vmap(info, in_dims, current, initial, numbers):
        return _mapped(_Reference.apply)(info, in_dims, current, initial, numbers)


# Function.apply asks for the signature at every call; stored, it is not derived anew each time.
_Reference.forward.__signature__ = inspect.signature(_Reference.forward)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(current, initial, decay, threshold, reset, kind, alpha) -> None:
    check_dtype("current", current, DTYPES)
    if current.ndim < 1 or len(current) < 1:
        raise ValueError(f"current: shape {tuple(current.shape)}; allowed is (t, ...) with t >= 1")
    if initial is not None and initial.shape != current.shape[1:]:
        raise ValueError(
            f"initial: shape {tuple(initial.shape)}; allowed is current's without its first axis, "
            f"{tuple(current.shape[1:])}"
        )
    if initial is not None and initial.dtype != current.dtype:
        raise TypeError(f"initial: dtype {initial.dtype}; allowed is current's, {current.dtype}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay={decay}: allowed is 0 to 1 (decay = 1 - 1/tau)")
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: allowed is any positive number")
    if reset not in ("soft", "hard"):
        raise ValueError(f"reset={reset!r}: allowed are 'soft' and 'hard'")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: allowed are {', '.join(map(repr, KINDS))}")
    if not alpha > 0:
        raise ValueError(f"alpha={alpha}: allowed is any positive number")
