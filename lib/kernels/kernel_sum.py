"""Kernel sums ``f(x K^T) V``: attention without the softmax, and no n x m matrix in memory.

Three users, one loop over tiles of keys. A layer of random features multiplies ``f`` of its inputs'
projections by a trained matrix (A. Sehanobish et al., 2024, arXiv 2310.13225). The limit of an
infinitely wide and deep classifier is a vote of the training points, weighted by a kernel that is
singular where two points coincide (A. Radhakrishnan, M. Belkin and C. Uhler, 2023, arXiv
2204.14126). A dense associative memory weights its patterns by a power of the overlap.

``f`` is ``"relu"``, ``"cos"``, ``"exp"`` or ``"power"`` of the product, or ``"singular"``, which
looks at the distance instead. Distances are sums of squared differences: ``1 - x.k`` has no digit
left where ``x`` and ``k`` nearly coincide, which is where a singular weight is decided.

Floor of the forward, ``w`` bytes a word: reads ``w (n d + m d + m c)`` and writes ``w n c`` bytes;
``2 n m (d + c)`` FLOPs and ``f``. The kernel moves no more than that while the keys fit into one
tile (128 keys in half precision, 64 otherwise); beyond, it computes the scores once for every 128
columns of ``V``.
The singular sum needs ``3 n m d`` FLOPs for the distances, ``2 n m c`` for the sum and, with a
dual of degree k, ``2 k`` per pair and layer, for as many layers as the closest pair of a tile asks
(20 to 70).
Floor of the backward: reads x, K, V and the cotangent once, writes three gradients;
``2 n m (3 d + 2 c)`` FLOPs. The kernels here recompute the features per tile instead of storing
them, for each of the three gradients and each 128 of its columns (64 in float32), so their FLOPs
exceed the floor by a factor of 2 to 4. What is summed over rows is summed in up to 512 parts, in a
fixed order.
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
import contextlib
import math
from typing import no_type_check

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from lib.kernels.dispatch import check_dtype, pick_backend, tl, triton

_FUNCTIONS = ("relu", "cos", "exp", "power", "singular")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LEAST = -1e30  # below every logarithm of a weight that is not zero


def kernel_sum(
    x: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    values: Float[Tensor, "m c"] | Complex[Tensor, "m c"],
    f: str = "relu",
    *,
    bias: Float[Tensor, "m"] | Complex[Tensor, "m"] | None = None,
    rate: Float[Tensor, "m"] | Complex[Tensor, "m"] | None = None,
    norm: bool = False,
    power: int = 2,
    order: float | None = None,
    dual: Float[Tensor, "k"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "n c"]:
    """``y_i = sum_j f(x_i . k_j + b_j) v_j``, of the inputs' dtype.

    - ``"relu"``, ``"cos"``: with an optional ``bias``.
    - ``"power"``: ``(x.k + b)^power``.
    - ``"exp"``: ``exp(r_j x.k_j + b_j - r_j^2 |x|^2 / 2)``, the last term with ``norm=True`` only.
      ``rate`` r (default 1), ``bias`` and ``values`` may be complex; the real part of the sum is
      returned. With Gaussian keys and ``norm=True`` these are the random features of
      ``exp(r x.w)``; the variance-reduced ones scale the keys and put ``-M |k|^2`` in the bias.
    - ``"singular"``: ``order=a`` weights by ``|x - k|^-a`` (the Hilbert kernel); ``dual``, the
      squared Hermite coefficients ``(a_0^2 = 0, a_1^2, a_2^2, ...)`` of an activation, weights unit
      vectors by its Koenigs function (:func:`log_koenigs`). Weights are divided by the largest of
      their row, since their range exceeds any dtype: the sign of the result, and the ratio of two
      of its columns, are those of the plain sum. Points closer than the dtype's epsilon count as
      that far apart, and so nearly alone decide.

    Differentiable in ``x``, ``keys``, ``values``, ``bias`` and ``rate``, except ``"singular"``,
    which has no gradient. Half precision is summed in float32, its features are rounded before the
    second product.

    Args:
        backend: ``"auto"`` (Triton on CUDA tensors), ``"triton"``, ``"reference"``.

    Raises:
        ValueError: unknown ``f`` or ``backend``; shapes that do not fit; an option that ``f`` does
            not have; a power below 1; for ``"singular"`` not exactly one of ``order`` (positive)
            and ``dual`` (see :func:`log_koenigs`), or an input that requires a gradient.
        TypeError: integer inputs, different dtypes, complex numbers where ``f`` is not ``"exp"``.
    """
    _check(x, keys, values, f, bias, rate, norm, power)
    chosen = pick_backend(backend, x, keys, values)
    if f == "singular":
        return _singular(x, keys, values, order, dual, chosen)
    if order is not None or dual is not None:
        raise ValueError(f"order and dual belong to f='singular', not to f={f!r}")
    real, imag = (values.real, values.imag) if values.is_complex() else (values, values[:0])
    table = _table(x, keys, bias, rate, f)
    phase = any(t is not None and t.is_complex() for t in (values, bias, rate))
    settings = (f, norm, phase, power)
    # A complex tensor's parts have no half precision of their own.
    real, imag = real.to(x.dtype), imag.to(x.dtype)
    run = _forward if chosen == "triton" else reference
    return run(x, keys, real, imag, table, *settings)


def reference(
    x: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    real: Float[Tensor, "m c"],
    imag: Float[Tensor, "_ c"],
    table: Float[Tensor, "6 m"],
    f: str,
    norm: bool,
    phase: bool,
    power: int,
) -> Float[Tensor, "n c"]:
    """The same in plain PyTorch; autograd differentiates it.

    ``table`` holds, per key, the real and imaginary parts of the factor of ``x.k``, of that of
    ``|x|^2`` and of the bias; ``imag`` is empty for real values.
    """
    wide = table.dtype
    keys, real, imag = keys.to(wide), real.to(wide), imag.to(wide)
    sums = []
    for rows in x.to(wide).split(max(1, 2**22 // max(1, len(keys)))):  # bounds the n x m matrix
        t, features = rows @ keys.T, None
        if f == "exp":
            r = (rows * rows).sum(1, keepdim=True) if norm else 0.0
            size = torch.exp(t * table[0] + r * table[2] + table[4])
            if phase:
                angle = t * table[1] + r * table[3] + table[5]
                features = size * torch.cos(angle)
                if len(imag):
                    sums.append(features @ real - (size * torch.sin(angle)) @ imag)
                    continue
            else:
                features = size
        else:
            t = t + table[4]
            features = {"relu": torch.relu, "cos": torch.cos, "power": lambda t: t**power}[f](t)
        sums.append(features @ real)
    return (torch.cat(sums) if sums else real.new_zeros(0, real.shape[1])).to(x.dtype)


def _table(x: Tensor, keys: Tensor, bias: Tensor | None, rate: Tensor | None, f: str) -> Tensor:
    """Six numbers a key (see ``reference``); gradients reach ``rate`` and ``bias`` through them."""
    wide = _accumulator(x.dtype)
    zero = keys.new_zeros(len(keys), dtype=wide)

    def parts(t: Tensor) -> list[Tensor]:
        return [t.real.to(wide), t.imag.to(wide)] if t.is_complex() else [t.to(wide), zero]

    factor = zero + 1 if rate is None else rate
    square = -0.5 * factor * factor
    return torch.stack([*parts(factor), *parts(square), *parts(zero if bias is None else bias)])


def _check(x, keys, values, f, bias, rate, norm, power) -> None:
    if f not in _FUNCTIONS:
        raise ValueError(f"f={f!r}: allowed are {', '.join(_FUNCTIONS)}")
    if x.ndim != 2 or keys.ndim != 2 or x.shape[1] != keys.shape[1] or x.shape[1] == 0:
        raise ValueError(
            f"x and keys must be (n, d) and (m, d) with one d > 0, got {tuple(x.shape)} and "
            f"{tuple(keys.shape)}"
        )
    m = len(keys)
    if values.ndim != 2 or len(values) != m:
        raise ValueError(f"values must be (m, c) with m={m}, got {tuple(values.shape)}")
    if f != "exp" and (rate is not None or norm):
        raise ValueError(f"rate and norm belong to f='exp', not to f={f!r}")
    if f == "singular" and bias is not None:
        raise ValueError("bias: f='singular' looks at distances and has none")
    if f == "power" and (power < 1 or power != int(power)):
        raise ValueError(f"power={power}: allowed is a whole number from 1")
    check_dtype("x", x, _DTYPES)
    if keys.dtype != x.dtype:
        raise TypeError(f"keys: dtype {keys.dtype} differs from that of x, {x.dtype}")
    for name, t in (("values", values), ("bias", bias), ("rate", rate)):
        if t is None:
            continue
        if name != "values" and t.shape != (m,):
            raise ValueError(f"{name} must be (m,) with m={m}, got {tuple(t.shape)}")
        if t.is_complex():
            if f != "exp":
                raise TypeError(f"{name}: complex numbers belong to f='exp', not to f={f!r}")
        elif name == "values" and t.dtype != x.dtype:
            raise TypeError(f"values: dtype {t.dtype} differs from that of x, {x.dtype}")


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# The singular weights.


def log_koenigs(
    gap: Float[Tensor, "..."], dual: Float[Tensor, "k"], tol: float | None = None
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """``log|psi|`` and the sign of ``psi``, at correlations ``1 - gap``; elementwise.

    ``dual`` holds the coefficients of the dual activation ``g(s) = sum_k dual_k s^k``: they are not
    negative and sum to one, ``dual_0 = 0`` and ``0 < dual_1 < 1``. Its Koenigs function
    ``psi(s) = lim_L g^L(s) / dual_1^L`` (``g`` applied L times) solves
    ``psi(g(s)) = dual_1 psi(s)``. It is infinite at 1, where a gap below the dtype's epsilon is
    replaced by that.

    Near 1 the iteration carries the gap, which grows by the factor ``g'(1)`` a layer, and not the
    correlation, which would round to 1. The logarithm is taken of the product of up to 16 layers.
    The iteration stops when every correlation is below ``tol``: what is left out is of that
    relative size.

    Raises:
        ValueError: ``dual`` is not as described.
    """
    _check_dual(dual)
    gap, tol, limit = _clamped(gap, tol, dual)
    near, far = _polynomials(dual)
    s, first, apart = 1 - gap, float(dual[1]), False
    log, sign, product = s.abs().log(), s.sign(), torch.ones_like(s)
    every = max(1, min(16, int(-60 / math.log(first))))  # keeps the product in float32's range
    for layer in range(1, every * math.ceil(limit / every) + 1):
        ratio = _horner(far, s)  # g(s) / s
        product *= ratio
        if layer % every == 0:
            log += product.abs().log_() - every * math.log(first)
            sign *= product.sign()
            product.fill_(1.0)
            if s.numel() == 0 or s.abs().max() <= tol:
                break
        s *= ratio
        if not apart:
            close = gap < 0.1
            apart = not close.any()  # for good: gaps only grow
            gap *= _horner(near, gap)  # 1 - g(1 - gap)
            s = torch.where(close, 1 - gap, s)
            gap = torch.where(close, gap, 1 - s)
    return log, sign


def _check_dual(dual: Tensor) -> None:
    c = dual.detach().double()
    right = c.ndim == 1 and len(c) > 2 and bool((c >= 0).all()) and abs(c.sum() - 1) < 1e-6
    if not right or c[0] > 1e-12 or not 0 < c[1] < 1 - 1e-6:
        raise ValueError(
            f"dual={[round(v, 4) for v in c.flatten().tolist()[:6]]}: the squared Hermite "
            "coefficients a_0^2, a_1^2, ... must sum to 1, with a_0 = 0 and 0 < a_1^2 < 1"
        )


def _clamped(gap: Tensor, tol: float | None, dual: Tensor) -> tuple[Tensor, float, int]:
    """Gaps not below the smallest that counts, the tolerance, and a bound on the layers."""
    eps = torch.finfo(gap.dtype).eps
    tol = max(1e-12, eps / 8) if tol is None else tol
    c = dual.detach().double()
    growth = math.log(float((c * torch.arange(len(c), dtype=c.dtype, device=c.device)).sum()))
    limit = math.ceil(2 * math.log(1 / eps) / growth + math.log(tol) / math.log(float(c[1]))) + 50
    return gap.clamp_min(eps**2), tol, limit


def _polynomials(dual: Tensor) -> tuple[list[float], list[float]]:
    """Coefficients of ``(1 - g(1 - e)) / e`` in e and of ``g(s) / s`` in s, lowest first."""
    c = [float(v) for v in dual.detach().double()]
    near = []
    for j in range(1, len(c)):
        near.append(-sum(c[k] * math.comb(k, j) for k in range(j, len(c))) * (-1) ** j)
    return near, c[1:]


def _horner(coefficients: list[float], t: Tensor) -> Tensor:
    total = torch.full_like(t, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total.mul_(t).add_(c)
    return total


def _singular(x, keys, values, order, dual, chosen: str) -> Tensor:
    if (order is None) == (dual is None):
        raise ValueError(f"f='singular' needs exactly one of order and dual, got order={order}")
    if order is not None and not 0 < order < math.inf:
        raise ValueError(f"order={order}: allowed is a positive, finite number")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, keys, values)):
        raise ValueError("f='singular' has no gradient: detach x, keys and values")
    if dual is not None:
        _check_dual(dual)
    if chosen == "reference":
        return singular_reference(x, keys, values, order, dual)
    wide = _accumulator(x.dtype)
    if dual is None:
        coefficients = x.new_empty(0, dtype=wide)
        _, tol, limit = _clamped(x.new_zeros(1, dtype=wide), None, x.new_tensor([0, 0.5, 0.5]))
    else:
        near, far = _polynomials(dual)
        coefficients = x.new_tensor([near, far], dtype=wide)
        _, tol, limit = _clamped(x.new_zeros(1, dtype=wide), None, dual)
    return _singular_sum(x, keys, values, coefficients, float(order or 0), tol, limit)


def singular_reference(
    x: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    values: Float[Tensor, "m c"],
    order: float | None = None,
    dual: Float[Tensor, "k"] | None = None,
) -> Float[Tensor, "n c"]:
    """The singular sum in plain PyTorch, a block of rows at a time."""
    wide = _accumulator(x.dtype)
    out = x.new_zeros((len(x), values.shape[1]))
    if len(keys) == 0 or len(x) == 0:
        return out
    columns, values = keys.to(wide).T.contiguous(), values.to(wide)
    # Rows whose weights stay in a CPU's cache, or fill a GPU; one piece of memory for all blocks.
    block = min(len(x), max(1, (2**25 if x.is_cuda else 2**16) // len(keys)))
    memory = values.new_empty((2, block, len(keys)))
    for start in range(0, len(x), block):
        rows = x[start : start + block].to(wide)
        gap, difference = memory[:, : len(rows)]
        gap.zero_()
        for k, column in enumerate(columns):
            torch.sub(rows[:, k, None], column, out=difference)
            gap.addcmul_(difference, difference, value=0.5)
        if dual is None:
            nearest = gap.amin(1, keepdim=True)
            least = torch.finfo(wide).eps ** 2
            if not nearest.amin() >= least:  # a whole pass, and rarely needed; NaN stays NaN
                nearest.clamp_min_(least)
                gap.clamp_min_(least)
            weight = torch.div(nearest, gap, out=gap)
            # PyTorch is quick at roots, squares and cubes, and ten times slower at other powers.
            if order in (1, 3):
                weight.sqrt_().pow_(order)
            elif order != 2:
                weight.pow_(order / 2)
        else:
            log, sign = log_koenigs(gap, dual)
            largest = log.amax(1, keepdim=True).clamp_min(_LEAST)
            weight = log.sub_(largest).exp_().mul_(sign)
        out[start : start + block] = (weight @ values).to(x.dtype)
    return out


# The operators on the GPU.


@torch.library.custom_op("lib::kernel_sum", mutates_args=())
def _forward(
    x: Tensor, keys: Tensor, real: Tensor, imag: Tensor, table: Tensor,
    f: str, norm: bool, phase: bool, power: int,
) -> Tensor:  # fmt: skip
    (n, d), (m, c) = x.shape, real.shape
    out = x.new_empty((n, c))
    if n == 0 or c == 0:
        return out
    if m == 0:
        return out.zero_()
    block, hold, wide = _blocks(x, m)
    columns = _columns(c, x)
    grid = (triton.cdiv(n, block), 1 if hold else triton.cdiv(c, columns))
    with _on(x):
        _forward_kernel[grid](
            x, keys, real, imag, table.contiguous(), out, n, m, d, c,
            *x.stride(), *keys.stride(), *real.stride(), *imag.stride(),
            HOLD=hold, BM=block, BN=wide, BC=columns, **_constants(x, imag, f, norm, phase, power),
        )  # fmt: skip
    return out


@_forward.register_fake
def _(x, keys, real, imag, table, f, norm, phase, power):
    return x.new_empty((x.shape[0], real.shape[1]))


@torch.library.custom_op("lib::kernel_sum_backward", mutates_args=())
def _backward(
    x: Tensor, keys: Tensor, real: Tensor, imag: Tensor, table: Tensor, g: Tensor,
    f: str, norm: bool, phase: bool, power: int, need: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, keys, real, imag, table; ``need`` lists among "x", "k", "v" what is wanted.

    The table's comes with the keys'.
    """
    (n, d), (m, c) = x.shape, real.shape
    grads = _gradients(x, keys, real, imag, table, need)
    if n == 0 or m == 0 or c == 0:
        return tuple(t.zero_() for t in grads)
    dx, dk, dv, dw, dt = grads
    block, hold, wide = _blocks(x, m)
    constants = _constants(x, imag, f, norm, phase, power)
    inputs = (
        x, keys, real, imag, table.contiguous(), g, n, m, d, c, *x.stride(), *keys.stride(),
        *real.stride(), *imag.stride(), *g.stride(),
    )  # fmt: skip
    with _on(x):
        if "x" in need:
            columns = _columns(d, x)
            grid = (triton.cdiv(n, block), 1 if hold else triton.cdiv(d, columns))
            _dx_kernel[grid](*inputs, dx, HOLD=hold, BM=block, BN=wide, BC=columns, **constants)
        keyblocks = triton.cdiv(m, block)
        for kind in need.replace("x", ""):
            width = d if kind == "k" else c
            columns = _columns(width, x)
            parts = triton.cdiv(width, columns)
            splits = min(max(1, 512 // (keyblocks * parts)), triton.cdiv(n, block))
            # One partial sum a split and no atomics, so two runs give the same bits.
            made = [table.new_empty((splits, m, width))]
            made += [table.new_empty((splits, 6, m) if kind == "k" else (splits, *imag.shape))]
            kernel = _dkeys_kernel if kind == "k" else _dvalues_kernel
            kernel[(keyblocks, parts, splits)](
                *inputs, *made, splits, BM=block, BN=block, BC=columns, **constants
            )
            for target, partial in zip((dk, dt) if kind == "k" else (dv, dw), made):
                target.copy_(partial.sum(0))
    return dx, dk, dv, dw, dt


@_backward.register_fake
def _(x, keys, real, imag, table, g, f, norm, phase, power, need):
    return _gradients(x, keys, real, imag, table, need)


def _gradients(x, keys, real, imag, table, need) -> tuple[Tensor, ...]:
    tensors = {"x": [x], "k": [keys], "v": [real, imag]}
    made = {
        name: [t.new_empty(t.shape if name in need else (0,)) for t in group]
        for name, group in tensors.items()
    }
    return *made["x"], *made["k"], *made["v"], table.new_empty(table.shape if "k" in need else (0,))


def _setup(ctx, inputs, output):
    *tensors, ctx.f, ctx.norm, ctx.phase, ctx.power = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, g):
    wanted = ctx.needs_input_grad[:5]
    need = "x" * wanted[0] + "k" * (wanted[1] or wanted[4]) + "v" * (wanted[2] or wanted[3])
    settings = (ctx.f, ctx.norm, ctx.phase, ctx.power, need)
    grads = _backward(*ctx.saved_tensors, g, *settings)
    return *(t if w else None for t, w in zip(grads, wanted)), None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup)


def _each_member(operator):
    """The rule under vmap: one launch for each member, whose matrices are its own."""

    def rule(info, in_dims, *inputs):
        outs = [
            operator(
                *(t if axis is None else t.select(axis, i) for t, axis in zip(inputs, in_dims))
            )
            for i in range(info.batch_size)
        ]
        if isinstance(outs[0], Tensor):
            return torch.stack(outs), 0
        return tuple(map(torch.stack, zip(*outs))), (0,) * len(outs[0])

    return rule


_forward.register_vmap(_each_member(_forward))
_backward.register_vmap(_each_member(_backward))


@torch.library.custom_op("lib::singular_sum", mutates_args=())
def _singular_sum(
    x: Tensor, keys: Tensor, values: Tensor, coefficients: Tensor,
    order: float, tol: float, limit: int,
) -> Tensor:  # fmt: skip
    (n, d), (m, c) = x.shape, values.shape
    out = x.new_empty((n, c))
    if n == 0 or c == 0:
        return out
    if m == 0:
        return out.zero_()
    wide = _accumulator(x.dtype)
    # A tensor, since Triton passes a Python float as float32.
    eps = torch.finfo(wide).eps
    scalars = torch.tensor([order / 2, tol, eps**2], dtype=wide, device=x.device)
    double = wide == torch.float64
    block, columns = (16, 16) if double else (32, min(64, _columns(c, x)))
    with _on(x):
        _singular_kernel[(triton.cdiv(n, block), triton.cdiv(c, columns))](
            x, keys, values, coefficients, scalars, out, n, m, d, c,
            *x.stride(), *keys.stride(), *values.stride(), limit,
            DEGREE=coefficients.shape[-1], ACC=tl.float64 if double else tl.float32,
            LEAST=_LEAST, BM=block, BN=block, BC=columns, num_warps=4,
        )  # fmt: skip
    return out


@_singular_sum.register_fake
def _(x, keys, values, coefficients, order, tol, limit):
    return x.new_empty((x.shape[0], values.shape[1]))


def _blocks(x: Tensor, m: int) -> tuple[int, bool, int]:
    """Rows of a tile; whether one tile holds all keys; keys of a tile."""
    # Full precision has no matrix unit: larger tiles spill, and compile for many seconds.
    block = 64 if x.dtype.itemsize == 2 else 32
    hold = m <= 2 * block
    return block, hold, max(16, triton.next_power_of_2(m)) if hold else block


def _columns(width: int, x: Tensor) -> int:
    return min(max(16, triton.next_power_of_2(width)), {2: 128, 4: 64, 8: 32}[x.dtype.itemsize])


def _constants(x, imag, f, norm, phase, power) -> dict:
    double = x.dtype == torch.float64
    return {
        "F": f,
        "NORM": norm,
        "PHASE": phase,
        "IMAG": len(imag) > 0 and phase,
        "POWER": power if f == "power" else 1,
        "ACC": tl.float64 if double else tl.float32,
        "BK": 16 if double else 32,
        "num_warps": 8 if x.dtype.itemsize == 2 else 4,
    }


def _on(x: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap
    # every function in a type checker.

    @triton.jit
    @no_type_check
    def _at(base, rows, columns, stride_row, stride_column, n_rows, n_columns):
        """A tile, with zeros outside of the matrix."""
        where = rows.to(tl.int64)[:, None] * stride_row
        where += columns.to(tl.int64)[None, :] * stride_column
        inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
        return tl.load(base + where, mask=inside, other=0.0)

    @triton.jit
    @no_type_check
    def _product(
        left, right, rm, rn, n, m, inner, slm, slk, srn, srk,
        NORM: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
        BK: tl.constexpr,
    ):  # fmt: skip
        """A tile of ``left right^T``, and the squared norms of left's rows if asked for."""
        total = tl.zeros((BM, BN), dtype=ACC)
        square = tl.zeros((BM,), dtype=ACC)
        for k in range(0, inner, BK):
            rk = k + tl.arange(0, BK)
            a = _at(left, rm, rk, slm, slk, n, inner)
            b = _at(right, rk, rn, srk, srn, inner, m)
            # "ieee": TF32 keeps 10 bits, and exp and cos would multiply what is lost.
            total = tl.dot(a, b, total, input_precision="ieee", out_dtype=ACC)
            if NORM:
                wide = a.to(ACC)
                square += tl.sum(wide * wide, axis=1)
        return total, square

    @triton.jit
    @no_type_check
    def _features(
        s, r, table, rn, m,
        F: tl.constexpr, NORM: tl.constexpr, PHASE: tl.constexpr, POWER: tl.constexpr,
    ):  # fmt: skip
        """The factors of the values' real and imaginary parts, and the slope of a real ``f``."""
        inside = rn < m
        t = s
        if F == "exp":
            t *= tl.load(table + rn, mask=inside, other=0.0)[None, :]
            if NORM:
                t += r[:, None] * tl.load(table + 2 * m + rn, mask=inside, other=0.0)[None, :]
        t += tl.load(table + 4 * m + rn, mask=inside, other=0.0)[None, :]
        if F == "relu":
            first = tl.maximum(t, 0.0)
            slope = tl.where(t > 0, 1.0, 0.0).to(t.dtype)
            second = first
        elif F == "cos":
            first, slope = tl.cos(t), -tl.sin(t)
            second = first
        elif F == "power":
            slope = tl.full(t.shape, POWER, t.dtype)
            for _ in tl.static_range(POWER - 1):
                slope *= t
            first = slope * t / POWER
            second = first
        else:
            first = tl.exp(t)
            second = first
            if PHASE:
                angle = s * tl.load(table + m + rn, mask=inside, other=0.0)[None, :]
                if NORM:
                    factor = tl.load(table + 3 * m + rn, mask=inside, other=0.0)
                    angle += r[:, None] * factor[None, :]
                angle += tl.load(table + 5 * m + rn, mask=inside, other=0.0)[None, :]
                second = -first * tl.sin(angle)
                first = first * tl.cos(angle)
            slope = first
        return first, second, slope

    @triton.jit
    @no_type_check
    def _forward_kernel(
        x, keys, real, imag, table, out, n, m, d, c,
        sxn, sxd, skm, skd, srm, src, sim, sic,
        HOLD: tl.constexpr, F: tl.constexpr, NORM: tl.constexpr, PHASE: tl.constexpr,
        IMAG: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        rm = tl.program_id(0) * BM + tl.arange(0, BM)
        if HOLD:  # all keys in one tile: features once, then all columns of the values
            rn = tl.arange(0, BN)
            s, r = _product(x, keys, rm, rn, n, m, d, sxn, sxd, skm, skd, NORM, ACC, BM, BN, BK)
            first, second, _ = _features(s, r, table, rn, m, F, NORM, PHASE, POWER)
            for start in range(0, c, BC):
                rc = start + tl.arange(0, BC)
                v = _at(real, rn, rc, srm, src, m, c)
                acc = tl.dot(first.to(v.dtype), v, input_precision="ieee", out_dtype=ACC)
                if IMAG:
                    v = _at(imag, rn, rc, sim, sic, m, c)
                    acc = tl.dot(second.to(v.dtype), v, acc, input_precision="ieee", out_dtype=ACC)
                _put(out, rm, rc, acc, n, c)
        else:
            rc = tl.program_id(1) * BC + tl.arange(0, BC)
            acc = tl.zeros((BM, BC), dtype=ACC)
            for start in range(0, m, BN):
                rn = start + tl.arange(0, BN)
                s, r = _product(x, keys, rm, rn, n, m, d, sxn, sxd, skm, skd, NORM, ACC, BM, BN, BK)
                first, second, _ = _features(s, r, table, rn, m, F, NORM, PHASE, POWER)
                v = _at(real, rn, rc, srm, src, m, c)
                acc = tl.dot(first.to(v.dtype), v, acc, input_precision="ieee", out_dtype=ACC)
                if IMAG:
                    v = _at(imag, rn, rc, sim, sic, m, c)
                    acc = tl.dot(second.to(v.dtype), v, acc, input_precision="ieee", out_dtype=ACC)
            _put(out, rm, rc, acc, n, c)

    @triton.jit
    @no_type_check
    def _put(out, rows, columns, tile, n_rows, n_columns):
        """Store a tile of a contiguous matrix."""
        where = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
        inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
        tl.store(out + where, tile, mask=inside)

    @triton.jit
    @no_type_check
    def _pullback(
        x, keys, real, imag, table, g, rm, rn, n, m, d, c,
        sxn, sxd, skm, skd, srm, src, sim, sic, sgn, sgc,
        F: tl.constexpr, NORM: tl.constexpr, PHASE: tl.constexpr, IMAG: tl.constexpr,
        POWER: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
        BK: tl.constexpr,
    ):  # fmt: skip
        """Score, squared norm, and the cotangents of exponent (or argument) and of phase."""
        s, r = _product(x, keys, rm, rn, n, m, d, sxn, sxd, skm, skd, NORM, ACC, BM, BN, BK)
        first, second, slope = _features(s, r, table, rn, m, F, NORM, PHASE, POWER)
        u, _ = _product(g, real, rm, rn, n, m, c, sgn, sgc, srm, src, False, ACC, BM, BN, BK)
        size = slope * u
        turn = size
        if PHASE:
            turn = second * u
            if IMAG:
                w, _ = _product(
                    g, imag, rm, rn, n, m, c, sgn, sgc, sim, sic, False, ACC, BM, BN, BK
                )
                size += second * w
                turn -= first * w
        return s, r, size, turn

    @triton.jit
    @no_type_check
    def _to_score(size, turn, table, rn, m, F: tl.constexpr, PHASE: tl.constexpr):
        """The cotangent of ``x.k``."""
        ds = size
        if F == "exp":
            ds = size * tl.load(table + rn, mask=rn < m, other=0.0)[None, :]
            if PHASE:
                ds += turn * tl.load(table + m + rn, mask=rn < m, other=0.0)[None, :]
        return ds

    @triton.jit
    @no_type_check
    def _to_norm(size, turn, table, rn, m, PHASE: tl.constexpr):
        """The cotangent of ``|x|^2``."""
        part = size * tl.load(table + 2 * m + rn, mask=rn < m, other=0.0)[None, :]
        if PHASE:
            part += turn * tl.load(table + 3 * m + rn, mask=rn < m, other=0.0)[None, :]
        return tl.sum(part, axis=1)

    @triton.jit
    @no_type_check
    def _dx_kernel(
        x, keys, real, imag, table, g, n, m, d, c,
        sxn, sxd, skm, skd, srm, src, sim, sic, sgn, sgc, dx,
        HOLD: tl.constexpr, F: tl.constexpr, NORM: tl.constexpr, PHASE: tl.constexpr,
        IMAG: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """``dx = ds K``, plus the norm's share ``2 x``."""
        rm = tl.program_id(0) * BM + tl.arange(0, BM)
        dr = tl.zeros((BM,), dtype=ACC)
        if HOLD:
            rn = tl.arange(0, BN)
            s, r, size, turn = _pullback(
                x, keys, real, imag, table, g, rm, rn, n, m, d, c,
                sxn, sxd, skm, skd, srm, src, sim, sic, sgn, sgc,
                F, NORM, PHASE, IMAG, POWER, ACC, BM, BN, BK,
            )  # fmt: skip
            ds = _to_score(size, turn, table, rn, m, F, PHASE)
            if NORM:
                dr += _to_norm(size, turn, table, rn, m, PHASE)
            for start in range(0, d, BC):
                rd = start + tl.arange(0, BC)
                k = _at(keys, rn, rd, skm, skd, m, d)
                acc = tl.dot(ds.to(k.dtype), k, input_precision="ieee", out_dtype=ACC)
                if NORM:
                    acc += 2 * dr[:, None] * _at(x, rm, rd, sxn, sxd, n, d).to(ACC)
                _put(dx, rm, rd, acc, n, d)
        else:
            rd = tl.program_id(1) * BC + tl.arange(0, BC)
            acc = tl.zeros((BM, BC), dtype=ACC)
            for start in range(0, m, BN):
                rn = start + tl.arange(0, BN)
                s, r, size, turn = _pullback(
                    x, keys, real, imag, table, g, rm, rn, n, m, d, c,
                    sxn, sxd, skm, skd, srm, src, sim, sic, sgn, sgc,
                    F, NORM, PHASE, IMAG, POWER, ACC, BM, BN, BK,
                )  # fmt: skip
                ds = _to_score(size, turn, table, rn, m, F, PHASE)
                if NORM:
                    dr += _to_norm(size, turn, table, rn, m, PHASE)
                k = _at(keys, rn, rd, skm, skd, m, d)
                acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee", out_dtype=ACC)
            if NORM:
                acc += 2 * dr[:, None] * _at(x, rm, rd, sxn, sxd, n, d).to(ACC)
            _put(dx, rm, rd, acc, n, d)

    @triton.jit
    @no_type_check
    def _dkeys_kernel(
        x, keys, real, imag, table, g, n, m, d, c,
        sxn, sxd, skm, skd, srm, src, sim, sic, sgn, sgc, dkeys, dtable, splits,
        F: tl.constexpr, NORM: tl.constexpr, PHASE: tl.constexpr, IMAG: tl.constexpr,
        POWER: tl.constexpr, ACC: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """``dK = ds^T x`` over every splits-th block of rows, and the six sums of the table."""
        rn = tl.program_id(0) * BN + tl.arange(0, BN)
        rd = tl.program_id(1) * BC + tl.arange(0, BC)
        split = tl.program_id(2)
        acc = tl.zeros((BN, BC), dtype=ACC)
        t0, t1 = tl.zeros((BN,), dtype=ACC), tl.zeros((BN,), dtype=ACC)
        t2, t3 = tl.zeros((BN,), dtype=ACC), tl.zeros((BN,), dtype=ACC)
        t4, t5 = tl.zeros((BN,), dtype=ACC), tl.zeros((BN,), dtype=ACC)
        for start in range(split * BM, n, splits * BM):
            rm = start + tl.arange(0, BM)
            s, r, size, turn = _pullback(
                x, keys, real, imag, table, g, rm, rn, n, m, d, c,
                sxn, sxd, skm, skd, srm, src, sim, sic, sgn, sgc,
                F, NORM, PHASE, IMAG, POWER, ACC, BM, BN, BK,
            )  # fmt: skip
            ds = _to_score(size, turn, table, rn, m, F, PHASE)
            xt = _at(x, rm, rd, sxn, sxd, n, d)
            acc = tl.dot(tl.trans(ds).to(xt.dtype), xt, acc, input_precision="ieee", out_dtype=ACC)
            t4 += tl.sum(size, axis=0)
            if F == "exp":
                t0 += tl.sum(size * s, axis=0)
                if NORM:
                    t2 += tl.sum(size * r[:, None], axis=0)
                if PHASE:
                    t1 += tl.sum(turn * s, axis=0)
                    t5 += tl.sum(turn, axis=0)
                    if NORM:
                        t3 += tl.sum(turn * r[:, None], axis=0)
        _put(dkeys + split.to(tl.int64) * m * d, rn, rd, acc, m, d)
        if tl.program_id(1) == 0:
            row = dtable + split.to(tl.int64) * 6 * m + rn
            tl.store(row, t0, mask=rn < m)
            tl.store(row + m, t1, mask=rn < m)
            tl.store(row + 2 * m, t2, mask=rn < m)
            tl.store(row + 3 * m, t3, mask=rn < m)
            tl.store(row + 4 * m, t4, mask=rn < m)
            tl.store(row + 5 * m, t5, mask=rn < m)

    @triton.jit
    @no_type_check
    def _dvalues_kernel(
        x, keys, real, imag, table, g, n, m, d, c,
        sxn, sxd, skm, skd, srm, src, sim, sic, sgn, sgc, dreal, dimag, splits,
        F: tl.constexpr, NORM: tl.constexpr, PHASE: tl.constexpr, IMAG: tl.constexpr,
        POWER: tl.constexpr, ACC: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """``dV = features^T g`` over every splits-th block of rows."""
        rn = tl.program_id(0) * BN + tl.arange(0, BN)
        rc = tl.program_id(1) * BC + tl.arange(0, BC)
        split = tl.program_id(2)
        acc, other = tl.zeros((BN, BC), dtype=ACC), tl.zeros((BN, BC), dtype=ACC)
        for start in range(split * BM, n, splits * BM):
            rm = start + tl.arange(0, BM)
            s, r = _product(x, keys, rm, rn, n, m, d, sxn, sxd, skm, skd, NORM, ACC, BM, BN, BK)
            first, second, _ = _features(s, r, table, rn, m, F, NORM, PHASE, POWER)
            gt = _at(g, rm, rc, sgn, sgc, n, c)
            acc = tl.dot(
                tl.trans(first).to(gt.dtype), gt, acc, input_precision="ieee", out_dtype=ACC
            )
            if IMAG:
                other = tl.dot(
                    tl.trans(second).to(gt.dtype), gt, other, input_precision="ieee", out_dtype=ACC
                )
        place = split.to(tl.int64) * m * c
        _put(dreal + place, rn, rc, acc, m, c)
        if IMAG:
            _put(dimag + place, rn, rc, other, m, c)

    @triton.jit
    @no_type_check
    def _koenigs(s, gap, coefficients, tol, limit, DEGREE: tl.constexpr):
        """``log|psi|`` and its sign (see ``log_koenigs``); stops with the tile's last pair."""
        log = tl.log(tl.maximum(tl.abs(s), 1e-30))
        sign = tl.where(s > 0, 1.0, tl.where(s < 0, -1.0, 0.0)).to(s.dtype)
        first = tl.load(coefficients + DEGREE)  # A'^2
        step = 0
        largest = tl.max(tl.max(tl.abs(s), axis=1), axis=0)
        while (step < limit) & (largest > tol):
            ratio = tl.zeros_like(s) + tl.load(coefficients + 2 * DEGREE - 1)
            grown = tl.zeros_like(s) + tl.load(coefficients + DEGREE - 1)
            for k in tl.static_range(1, DEGREE):
                ratio = ratio * s + tl.load(coefficients + 2 * DEGREE - 1 - k)
                grown = grown * gap + tl.load(coefficients + DEGREE - 1 - k)
            log += tl.log(tl.maximum(tl.abs(ratio), 1e-30) / first)
            sign = tl.where(ratio < 0, -sign, sign)
            grown *= gap
            close = gap < 0.1
            s = tl.where(close, 1.0 - grown, s * ratio)
            gap = tl.where(close, grown, 1.0 - s)
            largest = tl.max(tl.max(tl.abs(s), axis=1), axis=0)
            step += 1
        return log, sign

    @triton.jit
    @no_type_check
    def _singular_kernel(
        x, keys, values, coefficients, scalars, out, n, m, d, c,
        sxn, sxd, skm, skd, svm, svc, limit,
        DEGREE: tl.constexpr, ACC: tl.constexpr, LEAST: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    ):  # fmt: skip
        """Weights relative to the largest so far, which is what a row is rescaled by when it grows.

        ``DEGREE == 0`` is the Hilbert kernel.
        """
        half, tol, least = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2)
        rm = tl.program_id(0) * BM + tl.arange(0, BM)
        rc = tl.program_id(1) * BC + tl.arange(0, BC)
        acc = tl.zeros((BM, BC), dtype=ACC)
        top = tl.full((BM,), LEAST, dtype=ACC)
        x_row = x + rm.to(tl.int64) * sxn
        for start in range(0, m, BN):
            rn = start + tl.arange(0, BN)
            key_row = keys + rn.to(tl.int64) * skm
            gap = tl.zeros((BM, BN), dtype=ACC)
            for k in range(d):
                wide = tl.cast(k, tl.int64)
                a = tl.load(x_row + wide * sxd, mask=rm < n, other=0.0).to(ACC)
                b = tl.load(key_row + wide * skd, mask=rn < m, other=0.0).to(ACC)
                difference = a[:, None] - b[None, :]
                gap += 0.5 * difference * difference
            known = gap == gap  # not NaN, which a maximum would drop
            gap = tl.maximum(gap, least)
            inside = (rm[:, None] < n) & (rn[None, :] < m)
            if DEGREE == 0:
                log = -half * tl.log(2.0 * gap)
                sign = tl.full((BM, BN), 1.0, dtype=ACC)
            else:
                gap = tl.where(inside & known, gap, 1.0)  # what is outside asks for no layers
                log, sign = _koenigs(1.0 - gap, gap, coefficients, tol, limit, DEGREE)
            sign = tl.where(known, sign, float("nan"))
            log = tl.where(inside, log, float("-inf"))
            higher = tl.maximum(top, tl.max(log, axis=1))
            weight = tl.exp(log - higher[:, None]) * sign
            v = _at(values, rn, rc, svm, svc, m, c).to(ACC)
            acc = acc * tl.exp(top - higher)[:, None]
            acc = tl.dot(weight, v, acc, input_precision="ieee", out_dtype=ACC)
            top = higher
        _put(out, rm, rc, acc, n, c)
