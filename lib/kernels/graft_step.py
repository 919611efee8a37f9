"""Relaxed model grafting: mixed parameters, their derivative, and one step of the mask's search.

Panigrahi, Saunshi, Zhao and Arora, 2023 (arXiv 2302.06600). Between pre-trained values ``pre`` and
fine-tuned values ``pre + delta``, every parameter has a mask entry that is near 0 or near 1::

    p     = sigmoid(score - bias)
    gamma = base (1 - p) + (1 - base) p            base: 0 or 1, where the search starts
    theta = pre + gamma delta

    d L / d score = (d L / d theta) delta (1 - 2 base) p (1 - p)

``relaxed_graft`` is ``theta`` as a differentiable function of pre, delta and score. ``graft_step``
is one descent step on the score, with the derivative above, followed by the next ``theta``: what
the search does between two passes through the network.

Floor of a step in a ``b``-byte type with float32 scores: read grad, pre, delta, score and base, one
byte, and write score and theta: ``4 b + 9`` bytes a parameter, 25 in float32 and 17 in bfloat16.
The forward alone reads ``2 b + 5`` and writes ``b``; the backward reads ``2 b + 5`` and writes
``2 b + 4``, less where a derivative is not asked for. One exponential and some fifteen operations
a parameter, so memory decides. Separate operations make about ten passes over all parameters.

``magnitude_threshold`` finds the k-th largest of many absolute values without sorting them: the
bits of a float's absolute value are in its order, so four passes that count one byte each fix
them from the top (a radix selection). Floor: one read; this one reads four times.

Bias and rate are arguments of the kernel, not compile-time constants: they may change at a step.
They travel as float64, since Triton's default for a Python number, float32, would spoil that type.
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
import math
from contextlib import nullcontext
from typing import no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.kernels.dispatch import Backend, check_dtype, pick_backend, tl, triton

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDE = (torch.float32, torch.float64)


def relaxed_graft(
    pre: Float[Tensor, "*p"],
    delta: Float[Tensor, "*p"],
    score: Float[Tensor, "*p"],
    base: Bool[Tensor, "*p"],
    bias: float = 0.0,
    backend: Backend = "auto",
) -> Float[Tensor, "*p"]:
    """``pre + gamma delta``, in the type of ``pre``; differentiable in its first three arguments.

    Args:
        pre, delta: pre-trained values and what fine-tuning added; one type.
        score: the search's variable, float32 (float64 where ``pre`` is float64).
        base: the mask where the search starts; True is grafted.
        bias: ``sigmoid(score - bias)`` is the probability of leaving ``base``.

    Raises:
        ValueError: shapes that differ, a bias that is not finite.
        TypeError: a dtype that is not supported, or that does not go with that of ``pre``.
    """
    _check(pre, delta, score, base, bias)
    if pick_backend(backend, pre, delta, score, base) == "triton":
        return _relaxed_graft(pre, delta, score, base, bias)
    return reference(pre, delta, score, base, bias)


def graft_step(
    grad: Float[Tensor, "*p"],
    pre: Float[Tensor, "*p"],
    delta: Float[Tensor, "*p"],
    score: Float[Tensor, "*p"],
    base: Bool[Tensor, "*p"],
    *,
    rate: float,
    bias: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "*p"], Float[Tensor, "*p"]]:
    """One step of gradient descent on the score, and the parameters for the next one.

    ``grad`` is the loss's derivative in the parameters. Returns ``(score', theta')``.

    Raises:
        ValueError: shapes that differ, a rate or bias that is not finite.
        TypeError: a dtype that is not supported, or that does not go with that of ``pre``.
    """
    _check(pre, delta, score, base, bias, grad)
    if not math.isfinite(rate):
        raise ValueError(f"rate={rate}: allowed are finite numbers")
    step = pick_backend(backend, grad, pre, delta, score, base) == "triton"
    step = _graft_step if step else _step_reference
    return step(*(t.detach() for t in (grad, pre, delta, score, base)), rate, bias)


def magnitude_threshold(x: Float[Tensor, "n"], k: int, backend: Backend = "auto") -> float:
    """The ``k``-th largest of ``|x|``: ``k`` entries reach it, or more where some are equal.

    Raises:
        ValueError: ``k`` outside 1 to n, or a NaN.
        TypeError: with Triton, a dtype other than float16, bfloat16, float32.
    """
    if not 1 <= k <= len(x):
        raise ValueError(f"k={k}: allowed is 1 to {len(x)}, the length of x")
    if pick_backend(backend, x) == "triton":
        check_dtype("x", x, DTYPES[:3])
        value = _select_triton(x.detach().contiguous(), k)
    else:
        check_dtype("x", x, DTYPES)
        magnitude = x.detach().abs()
        # topk takes NaN for the largest number.
        nan = bool(magnitude.isnan().any())
        value = float("nan") if nan else float(magnitude.topk(k, sorted=True).values[-1])
    if math.isnan(value):
        raise ValueError("x: an entry is NaN, which has no rank")
    return value


# --------------------------------------------------------------------------- plain PyTorch


def reference(pre, delta, score, base, bias: float) -> Tensor:
    """``relaxed_graft`` in three lines; autograd differentiates it."""
    p = torch.sigmoid(score - bias)
    gamma = torch.where(base, 1 - p, p)
    return (pre.to(score) + gamma * delta.to(score)).to(pre.dtype)


def _step_reference(grad, pre, delta, score, base, rate: float, bias: float):
    p = torch.sigmoid(score - bias)
    slope = p * (1 - p)
    slope = torch.where(base, -slope, slope)
    score = score - rate * grad.to(score) * delta.to(score) * slope
    return score, reference(pre, delta, score, base, bias)


# --------------------------------------------------------------------------- Triton

BLOCK = 1024  # 4 warps, 8 parameters a thread

if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap every
    # function in a type checker.

    @triton.jit
    @no_type_check
    def _sigmoid(x):
        # exp of a negative number only: no overflow on either side. NaN stays NaN.
        e = tl.exp(-tl.abs(x))
        p = 1.0 / (1.0 + e)
        return tl.where(x >= 0, p, e * p)

    @triton.jit
    @no_type_check
    def _forward_kernel(
        pre, delta, score, base, theta, bias: "fp64", n,
        BLOCK: tl.constexpr, DOUBLE: tl.constexpr,
    ):  # fmt: skip
        wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        p = _sigmoid(tl.load(score + at, inside, 0.0) - tl.full([BLOCK], bias, wide))
        gamma = tl.where(tl.load(base + at, inside, 0) != 0, 1.0 - p, p)
        value = tl.load(pre + at, inside, 0.0).to(wide)
        value += gamma * tl.load(delta + at, inside, 0.0).to(wide)
        tl.store(theta + at, value.to(theta.dtype.element_ty), inside)

    @triton.jit
    @no_type_check
    def _backward_kernel(
        grad, delta, score, base, grad_delta, grad_score, bias: "fp64", n,
        DELTA: tl.constexpr, SCORE: tl.constexpr, BLOCK: tl.constexpr, DOUBLE: tl.constexpr,
    ):  # fmt: skip
        wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        g = tl.load(grad + at, inside, 0.0).to(wide)
        start = tl.load(base + at, inside, 0) != 0
        p = _sigmoid(tl.load(score + at, inside, 0.0) - tl.full([BLOCK], bias, wide))
        if DELTA:
            moved = g * tl.where(start, 1.0 - p, p)
            tl.store(grad_delta + at, moved.to(grad_delta.dtype.element_ty), inside)
        if SCORE:
            slope = p * (1.0 - p)
            g *= tl.load(delta + at, inside, 0.0).to(wide)
            tl.store(grad_score + at, g * tl.where(start, -slope, slope), inside)

    @triton.jit
    @no_type_check
    def _step_kernel(
        grad, pre, delta, score, base, new_score, theta, rate: "fp64", bias: "fp64", n,
        BLOCK: tl.constexpr, DOUBLE: tl.constexpr,
    ):  # fmt: skip
        wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        start = tl.load(base + at, inside, 0) != 0
        change = tl.load(delta + at, inside, 0.0).to(wide)
        s = tl.load(score + at, inside, 0.0)
        p = _sigmoid(s - tl.full([BLOCK], bias, wide))
        slope = p * (1.0 - p)
        slope = tl.where(start, -slope, slope)
        slope *= change * tl.load(grad + at, inside, 0.0).to(wide)
        s -= tl.full([BLOCK], rate, wide) * slope
        tl.store(new_score + at, s, inside)
        p = _sigmoid(s - tl.full([BLOCK], bias, wide))
        value = tl.load(pre + at, inside, 0.0).to(wide) + tl.where(start, 1.0 - p, p) * change
        tl.store(theta + at, value.to(theta.dtype.element_ty), inside)

    @triton.jit
    @no_type_check
    def _count_kernel(x, counts, prefix, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
        # Counts byte SHIFT / 8 of |x|, among the entries whose higher bits are those of prefix.
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + at, at < n, 0.0).to(tl.float32)
        bits = (value.to(tl.int32, bitcast=True) & 0x7FFFFFFF).to(tl.int64)
        alive = (at < n) & ((bits >> (SHIFT + 8)) == (prefix >> (SHIFT + 8)))
        tl.atomic_add(counts + ((bits >> SHIFT) & 255), 1, mask=alive)


def _select_triton(x: Tensor, k: int) -> float:
    prefix, left = 0, k
    with _on(x):
        for shift in (24, 16, 8, 0):
            counts = torch.zeros(256, dtype=torch.int32, device=x.device)
            _count_kernel[(triton.cdiv(len(x), BLOCK),)](
                x, counts, prefix, len(x), SHIFT=shift, BLOCK=BLOCK
            )
            # From the largest byte down: the one whose entries bring the count to k.
            above, counted = 0, counts.tolist()
            byte = 255
            while above + counted[byte] < left:
                above += counted[byte]
                byte -= 1
            if shift == 24 and counted[127]:
                # Infinities and NaN live up here, and numbers from 2^127 on.
                if bool(x.isnan().any()):
                    return float("nan")
            prefix, left = prefix | byte << shift, left - above
    return torch.tensor(prefix, dtype=torch.int32).view(torch.float32).item()


def _on(tensor: Tensor):
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


# --------------------------------------------------------------------------- the operators


@torch.library.custom_op("lib::relaxed_graft", mutates_args=())
def _relaxed_graft(pre: Tensor, delta: Tensor, score: Tensor, base: Tensor, bias: float) -> Tensor:
    pre, delta, score, base = (t.contiguous() for t in (pre, delta, score, base))
    theta = torch.empty_like(pre)
    if n := pre.numel():
        with _on(pre):
            _forward_kernel[(triton.cdiv(n, BLOCK),)](
                pre, delta, score, base.view(torch.uint8), theta, bias, n, BLOCK=BLOCK,
                DOUBLE=score.dtype == torch.float64,
            )  # fmt: skip
    return theta


@_relaxed_graft.register_fake
def _(pre, delta, score, base, bias):
    return pre.new_empty(pre.shape)


@torch.library.custom_op("lib::relaxed_graft_backward", mutates_args=())
def _relaxed_graft_backward(
    grad: Tensor, delta: Tensor, score: Tensor, base: Tensor, bias: float, of_delta: bool,
    of_score: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad, delta, score, base = (t.contiguous() for t in (grad, delta, score, base))
    grad_delta = torch.empty_like(delta) if of_delta else delta.new_empty(0)
    grad_score = torch.empty_like(score) if of_score else score.new_empty(0)
    if n := grad.numel():
        with _on(grad):
            _backward_kernel[(triton.cdiv(n, BLOCK),)](
                grad, delta, score, base.view(torch.uint8), grad_delta, grad_score, bias, n,
                DELTA=of_delta, SCORE=of_score, BLOCK=BLOCK, DOUBLE=score.dtype == torch.float64,
            )  # fmt: skip
    return grad_delta, grad_score


@_relaxed_graft_backward.register_fake
def _(grad, delta, score, base, bias, of_delta, of_score):
    return (
        delta.new_empty(delta.shape if of_delta else 0),
        score.new_empty(score.shape if of_score else 0),
    )


def _setup_context(ctx, inputs, output):
    _, delta, score, base, bias = inputs
    ctx.save_for_backward(delta, score, base)
    ctx.bias = bias


def _backward(ctx, grad):
    _, of_delta, of_score, *_ = ctx.needs_input_grad
    grad_delta = grad_score = None
    if of_delta or of_score:
        made = _relaxed_graft_backward(grad, *ctx.saved_tensors, ctx.bias, of_delta, of_score)
        grad_delta, grad_score = (t if o else None for t, o in zip(made, (of_delta, of_score)))
    return grad, grad_delta, grad_score, None, None


_relaxed_graft.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("lib::graft_step", mutates_args=())
def _graft_step(
    grad: Tensor, pre: Tensor, delta: Tensor, score: Tensor, base: Tensor, rate: float, bias: float
) -> tuple[Tensor, Tensor]:
    grad, pre, delta, score, base = (t.contiguous() for t in (grad, pre, delta, score, base))
    new_score, theta = torch.empty_like(score), torch.empty_like(pre)
    if n := pre.numel():
        with _on(pre):
            _step_kernel[(triton.cdiv(n, BLOCK),)](
                grad, pre, delta, score, base.view(torch.uint8), new_score, theta, rate, bias, n,
                BLOCK=BLOCK, DOUBLE=score.dtype == torch.float64,
            )  # fmt: skip
    return new_score, theta


@_graft_step.register_fake
def _(grad, pre, delta, score, base, rate, bias):
    return score.new_empty(score.shape), pre.new_empty(pre.shape)


def _check(pre, delta, score, base, bias, grad=None) -> None:
    check_dtype("pre", pre, DTYPES)
    check_dtype("score", score, WIDE)
    check_dtype("base", base, (torch.bool,))
    for name, t in (("delta", delta), ("grad", grad)):
        if t is not None and t.dtype != pre.dtype:
            raise TypeError(f"{name}: dtype {t.dtype}; allowed is that of pre, {pre.dtype}")
    if (pre.dtype == torch.float64) != (score.dtype == torch.float64):
        raise TypeError(f"score: dtype {score.dtype} does not go with pre's, {pre.dtype}")
    for name, t in (("delta", delta), ("score", score), ("base", base), ("grad", grad)):
        if t is not None and t.shape != pre.shape:
            raise ValueError(
                f"{name}: shape {tuple(t.shape)}; allowed is that of pre, {tuple(pre.shape)}"
            )
    if not math.isfinite(bias):
        raise ValueError(f"bias={bias}: allowed are finite numbers")
