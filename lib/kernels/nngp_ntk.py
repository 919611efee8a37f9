"""The two kernels of an infinitely wide fully connected network, fused: Gram tile to last layer.

The recursion (A. Jacot, F. Gabriel and C. Hongler, 2018, arXiv 1806.07572, theorem 1, with a gain)
starts from the Gram matrix ``c = x1 x2^T / d + beta^2`` and its diagonals ``a`` (of x1) and ``b``
(of x2), and repeats ``depth`` times

    Sigma <- gain * E[s(u) s(v)] + beta^2
    Theta <- Theta * gain * E[s'(u) s'(v)] + Sigma,       (u, v) ~ N(0, [[a, Sigma], [Sigma, b]])

Written with eager tensor operations this moves about ten matrices of size P x Q per layer. Here a
tile of the Gram matrix stays in registers through all layers and is stored once.

Floor of the forward: reads ``w (P + Q) d`` bytes (``w`` bytes an input word), writes ``4 P Q`` per
output; ``2 P Q d`` FLOPs for the products and about ``30 depth P Q`` for the recursion.
Floor of the backward: reads X1 and X2 and one cotangent per output, writes both gradients;
``6 P Q d + 80 depth P Q`` FLOPs. The kernel here writes the gradient of the Gram matrix (``4 P Q``
bytes) and leaves the last two products to the matrix library, which reads it twice.

The backward carries tangents forward through the layers (with respect to the Gram entry and its two
diagonals) instead of storing what each layer did, so its memory does not grow with depth. It needs
a third dual, ``E[s''(u) s''(v)]``.

Implemented: ReLU and erf. Other activations: ``lib.models.infinite_width``.
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
import contextlib
import math
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels.dispatch import check_dtype, pick_backend, tl, triton

_ACTIVATIONS = ("relu", "erf")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def nngp_ntk(
    x1: Float[Tensor, "p d"],
    x2: Float[Tensor, "q d"],
    depth: int,
    act: str = "relu",
    beta: float = 0.1,
    gain: float = 1.0,
    which: str = "both",
    backend: str = "auto",
) -> tuple[Float[Tensor, "p q"] | None, Float[Tensor, "p q"] | None]:
    """``(Sigma, Theta)`` of the limit network with ``depth`` nonlinearities, differentiable in x.

    Sums are kept in float32 (float64 for float64 inputs), and so are the results. Near
    coincident inputs the angle is the square root of a rounding error: expect a relative error of
    1e-3 there in float32, and use float64 where that matters.

    Args:
        depth: nonlinearities, the paper's L minus 1; 0 gives the linear kernel twice.
        which: ``"both"``, or only ``"nngp"`` or ``"ntk"``; what was not asked for is ``None`` and
            is not stored.
        backend: ``"auto"`` (Triton on CUDA tensors), ``"triton"``, ``"reference"``.

    Raises:
        ValueError: shapes that do not fit, a negative ``depth``, ``beta`` or ``gain``, unknown
            ``act``, ``which`` or ``backend``.
        TypeError: integer inputs, or two different dtypes.
    """
    if act not in _ACTIVATIONS:
        raise ValueError(f"act={act!r}: the fused kernel has {', '.join(_ACTIVATIONS)}")
    if which not in ("both", "nngp", "ntk"):
        raise ValueError(f"which={which!r}: allowed are 'both', 'nngp' and 'ntk'")
    if depth < 0 or beta < 0 or gain <= 0:
        raise ValueError(
            f"depth={depth}, beta={beta}, gain={gain}: allowed are depth >= 0, beta >= 0, gain > 0"
        )
    if x1.ndim != 2 or x2.ndim != 2 or x1.shape[1] != x2.shape[1] or x1.shape[1] == 0:
        raise ValueError(
            f"x1 and x2 must be (p, d) and (q, d) with one d > 0, got {tuple(x1.shape)} and "
            f"{tuple(x2.shape)}"
        )
    check_dtype("x1", x1, _DTYPES)
    if x1.dtype != x2.dtype:
        raise TypeError(f"x1 and x2 must have one dtype, got {x1.dtype} and {x2.dtype}")
    if pick_backend(backend, x1, x2) == "reference":
        sigma, theta = nngp_ntk_reference(x1, x2, depth, act, beta, gain)
    else:
        sigma, theta = _forward(x1, x2, depth, act, float(beta), float(gain), which)
    return (None if which == "ntk" else sigma), (None if which == "nngp" else theta)


# The duals: what one layer does to a pair of inputs.


def relu_dual(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], c: Float[Tensor, "..."], gain: float = 1.0
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """``gain * E[s(u) s(v)]`` and ``gain * E[s'(u) s'(v)]`` for ReLU; u, v have variances a, b and
    covariance c.

    With the angle ``t`` between the two inputs, ``cos t = c / sqrt(ab)``, these are
    ``sqrt(ab) (sin t + (pi - t) cos t) / 2 pi`` and ``(pi - t) / 2 pi``. The angle comes from
    atan2, because acos loses half the digits, and its gradient, where the inputs coincide.
    """
    norm, cos, sin = _angle(a, b, c)
    rest = math.pi - torch.atan2(sin, cos)
    return gain * norm * (sin + rest * cos) / (2 * math.pi), gain * rest / (2 * math.pi)


def erf_dual(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], c: Float[Tensor, "..."], gain: float = 1.0
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """``gain * E[s(u) s(v)]`` and ``gain * E[s'(u) s'(v)]`` for erf (Williams, 1997).

    These are ``(2 / pi) asin(c / m)`` with ``m^2 = (a + 1/2)(b + 1/2)``, and ``(2 / pi) / root``
    with ``root^2 = m^2 - c^2``.
    """
    root = torch.sqrt(torch.addcmul((a + 0.5) * (b + 0.5), c, c, value=-1))
    return (2 * gain / math.pi) * torch.atan2(c, root), (2 * gain / math.pi) / root


def _angle(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``sqrt(ab)``, cosine and sine of the angle, with a gradient that is finite everywhere.

    Where the inputs coincide the sine's gradient diverges and is set to zero: the kernel has a cusp
    there, and zero is the mean of its slopes on both sides.
    """
    # high * sqrt(low / high): the product ab leaves the range of float32 long before its root does,
    # and sqrt(a) sqrt(b) would not be exactly a where a = b. Zeros are masked in a and b, which
    # are small, being a column and a row.
    (a, some_a), (b, some_b) = ((torch.where(v > 0, v, 1.0), (v > 0).to(v.dtype)) for v in (a, b))
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    norm = high * torch.sqrt((low / high).clamp_min(torch.finfo(c.dtype).tiny))
    cos = (c / norm).clamp(-1.0, 1.0)
    norm = norm * some_a * some_b
    square = (1 - cos) * (1 + cos)
    apart = square > _coincident(c.dtype)
    sin = torch.sqrt(torch.where(apart, square, 1.0))
    return norm, cos, torch.where(apart, sin, square.detach().sqrt())


def _coincident(dtype: torch.dtype) -> float:
    """Squared sine below which two inputs count as one: a few rounding errors of the cosine."""
    return 8 * torch.finfo(dtype).eps


def _diagonal(act: str, a: Tensor, beta: float, gain: float) -> Tensor:
    """One layer of the diagonal: the dual at c = b = a, which no rounding of c can disturb."""
    if act == "relu":
        return gain * a / 2 + beta**2
    return gain * (2 / math.pi) * torch.asin(2 * a / (1 + 2 * a)) + beta**2


# The reference.


def nngp_ntk_reference(
    x1: Float[Tensor, "p d"],
    x2: Float[Tensor, "q d"],
    depth: int,
    act: str = "relu",
    beta: float = 0.1,
    gain: float = 1.0,
) -> tuple[Float[Tensor, "p q"], Float[Tensor, "p q"]]:
    """The recursion in plain PyTorch, line by line; autograd differentiates it.

    Where no gradient is wanted, it runs on blocks of rows that stay in the processor's cache, and
    the memory beyond the two results does not grow.
    """
    x1, x2 = (x.to(_accumulator(x.dtype)) for x in (x1, x2))
    rows = max(1, CHUNK // max(1, len(x2)))
    plain = not any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in (x1, x2))
    taped = torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad)
    if len(x1) <= rows or taped or not plain:
        return _recursion(x1, x2, depth, act, beta, gain)
    sigma, theta = (x1.new_empty(len(x1), len(x2)) for _ in range(2))
    for start in range(0, len(x1), rows):
        here = slice(start, start + rows)
        sigma[here], theta[here] = _recursion(x1[here], x2, depth, act, beta, gain)
    return sigma, theta


CHUNK = 2**17
"""Pairs that the reference works on at once."""


def _recursion(
    x1: Tensor, x2: Tensor, depth: int, act: str, beta: float, gain: float
) -> tuple[Tensor, Tensor]:
    d = x1.shape[1]
    a = (x1 * x1).sum(1, keepdim=True) / d + beta**2
    b = (x2 * x2).sum(1)[None] / d + beta**2
    sigma = x1 @ x2.T / d + beta**2
    theta = sigma
    for _ in range(depth):
        value, slope = (relu_dual if act == "relu" else erf_dual)(a, b, sigma, gain)
        sigma = value + beta**2
        theta = torch.addcmul(sigma, theta, slope)
        a, b = _diagonal(act, a, beta, gain), _diagonal(act, b, beta, gain)
    return sigma, theta


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# The operator on the GPU.


@torch.library.custom_op("lib::nngp_ntk", mutates_args=())
def _forward(
    x1: Tensor, x2: Tensor, depth: int, act: str, beta: float, gain: float, which: str
) -> tuple[Tensor, Tensor]:
    sigma, theta = _outputs(x1, x2, which)
    p, q, d = len(x1), len(x2), x1.shape[1]
    if p and q:
        block = 32 if x1.dtype == torch.float64 else 64  # larger float64 tiles spill
        tiles = triton.cdiv(p, block) * triton.cdiv(q, block)
        with _on(x1):
            _forward_kernel[(tiles,)](
                x1, x2, sigma, theta, _scalars(x1, beta, gain), p, q, d,
                *x1.stride(), *x2.stride(), depth,
                ERF=act == "erf", SIGMA=which != "ntk", THETA=which != "nngp",
                ACC=tl.float64 if x1.dtype == torch.float64 else tl.float32,
                BM=block, BN=block, BK=32, num_warps=4,
            )  # fmt: skip
    return sigma, theta


@_forward.register_fake
def _(x1, x2, depth, act, beta, gain, which):
    return _outputs(x1, x2, which)


def _outputs(x1: Tensor, x2: Tensor, which: str) -> tuple[Tensor, Tensor]:
    full = (x1.shape[0], x2.shape[0])
    dtype = _accumulator(x1.dtype)
    return (
        x1.new_empty((0,) if which == "ntk" else full, dtype=dtype),
        x1.new_empty((0,) if which == "nngp" else full, dtype=dtype),
    )


def _scalars(x: Tensor, beta: float, gain: float) -> Tensor:
    # A tensor, since Triton passes a Python float as float32, which float64 inputs would notice,
    # and a compile-time constant would compile anew for each value of a sweep.
    dtype = _accumulator(x.dtype)
    return torch.tensor([beta * beta, gain, _coincident(dtype)], dtype=dtype, device=x.device)


@torch.library.custom_op("lib::nngp_ntk_backward", mutates_args=())
def _backward(
    x1: Tensor, x2: Tensor, g_sigma: Tensor, g_theta: Tensor,
    depth: int, act: str, beta: float, gain: float, which: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    p, q, d = len(x1), len(x2), x1.shape[1]
    if not (p and q):
        return torch.zeros_like(x1), torch.zeros_like(x2)
    block = 32
    rows, columns = triton.cdiv(p, block), triton.cdiv(q, block)
    dtype = _accumulator(x1.dtype)
    gram = x1.new_empty((p, q), dtype=dtype)
    # One partial sum per tile and no atomics, so two runs give the same bits.
    left = x1.new_empty((columns, p), dtype=dtype)
    right = x1.new_empty((rows, q), dtype=dtype)
    with _on(x1):
        _backward_kernel[(rows * columns,)](
            x1, x2, g_sigma.contiguous(), g_theta.contiguous(), gram, left, right,
            _scalars(x1, beta, gain), p, q, d, *x1.stride(), *x2.stride(), depth,
            ERF=act == "erf", SIGMA=which != "ntk", THETA=which != "nngp",
            ACC=tl.float64 if x1.dtype == torch.float64 else tl.float32,
            BM=block, BN=block, BK=32, num_warps=8 if x1.dtype == torch.float64 else 4,
        )  # fmt: skip
    wide1, wide2 = x1.to(dtype), x2.to(dtype)
    dx1 = (gram @ wide2 + 2 * left.sum(0)[:, None] * wide1) / d
    dx2 = (gram.T @ wide1 + 2 * right.sum(0)[:, None] * wide2) / d
    return dx1.to(x1.dtype), dx2.to(x2.dtype)


@_backward.register_fake
def _(x1, x2, g_sigma, g_theta, depth, act, beta, gain, which):
    return torch.empty_like(x1), torch.empty_like(x2)


def _setup(ctx, inputs, output):
    x1, x2, *ctx.settings = inputs
    ctx.save_for_backward(x1, x2)


def _autograd(ctx, g_sigma, g_theta):
    x1, x2 = ctx.saved_tensors
    dx1, dx2 = _backward(x1, x2, g_sigma, g_theta, *ctx.settings)
    return dx1, dx2, *[None] * len(ctx.settings)


_forward.register_autograd(_autograd, setup_context=_setup)


def _on(x: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap
    # every function in a type checker.
    _PI = tl.constexpr(math.pi)

    @triton.jit
    @no_type_check
    def _atan(t):
        """Arc tangent on [-1, 1], to the last digit of float64 (Cephes' rational function).

        libdevice has one, but the interpreter cannot call it.
        """
        m = tl.abs(t)
        big = m > 0.66
        x = tl.where(big, (m - 1.0) / (m + 1.0), m)
        z = x * x
        top = -8.750608600031904122785e-1 * z - 1.615753718733365076637e1
        top = top * z - 7.500855792314704667340e1
        top = top * z - 1.228866684490136173410e2
        top = top * z - 6.485021904942025371773e1
        low = z + 2.485846490142306297962e1
        low = low * z + 1.650270098316988542046e2
        low = low * z + 4.328810604912902668951e2
        low = low * z + 4.853903996359136964868e2
        low = low * z + 1.945506571482613964425e2
        y = x + x * z * (top / low)
        y = tl.where(big, y + _PI / 4, y)
        return tl.where(t < 0, -y, y)

    @triton.jit
    @no_type_check
    def _dual(a, b, c, ERF: tl.constexpr):
        """``E[s s]``, ``E[s' s']``, ``sqrt(ab)`` and the sine; for erf the last is the root."""
        if ERF:
            product = (1.0 + 2.0 * a) * (1.0 + 2.0 * b)
            norm, sin = tl.sqrt(product), tl.sqrt(product - 4.0 * c * c)
            # asin(y) = 2 atan(y / (1 + sqrt(1 - y^2))) with y = 2c / norm
            value = (4.0 / _PI) * _atan(2.0 * c / (norm + sin))
            slope = (4.0 / _PI) / sin
        else:
            # Not the root of ab, which leaves the range of float32 long before its root does.
            high, low = tl.maximum(a, b), tl.minimum(a, b)
            norm = high * tl.sqrt(low / tl.where(high > 0, high, 1.0))
            cos = tl.where(norm > 0, c / tl.where(norm > 0, norm, 1.0), 0.0)
            cos = tl.minimum(tl.maximum(cos, -1.0), 1.0)
            sin = tl.sqrt((1.0 - cos) * (1.0 + cos))
            half = 2.0 * _atan(sin / (1.0 + tl.abs(cos)))  # half-angle tangent, in [0, 1]
            rest = tl.where(cos < 0, half, _PI - half)  # pi minus the angle
            value = norm * (sin + rest * cos) / (2.0 * _PI)
            slope = rest / (2.0 * _PI)
        return value, slope, norm, sin

    @triton.jit
    @no_type_check
    def _diagonal_dual(a, ERF: tl.constexpr):
        """``E[s s]`` of an input with itself."""
        if ERF:
            y = 2.0 * a / (1.0 + 2.0 * a)
            value = (4.0 / _PI) * _atan(y / (1.0 + tl.sqrt((1.0 - y) * (1.0 + y))))
        else:
            value = a * 0.5
        return value

    @triton.jit
    @no_type_check
    def _first_layer(
        x1, x2, bias, p, q, d, s1m, s1k, s2m, s2k,
        ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """Block row and column of this program, its rows and columns, ``a``, ``b`` and ``c``."""
        pid = tl.program_id(0)
        columns = tl.cdiv(q, BN)
        group = pid // (8 * columns)  # eight row blocks after one another share columns in L2
        height = tl.minimum(tl.cdiv(p, BM) - group * 8, 8)
        within = pid % (8 * columns)
        pm, pn = group * 8 + within % height, within // height
        rm, rn = pm * BM + tl.arange(0, BM), pn * BN + tl.arange(0, BN)
        a, b = tl.zeros((BM,), dtype=ACC), tl.zeros((BN,), dtype=ACC)
        c = tl.zeros((BM, BN), dtype=ACC)
        row = rm.to(tl.int64)[:, None] * s1m
        column = rn.to(tl.int64)[None, :] * s2m
        for k in range(0, d, BK):
            rk = k + tl.arange(0, BK)
            wide = rk.to(tl.int64)
            inside1 = (rm[:, None] < p) & (rk[None, :] < d)
            inside2 = (rn[None, :] < q) & (rk[:, None] < d)
            left = tl.load(x1 + row + wide[None, :] * s1k, mask=inside1, other=0.0)
            right = tl.load(x2 + column + wide[:, None] * s2k, mask=inside2, other=0.0)
            # "ieee": TF32 keeps 10 bits, and the angle of close inputs needs them all.
            c = tl.dot(left, right, c, input_precision="ieee", out_dtype=ACC)
            a += tl.sum(left.to(ACC) * left.to(ACC), axis=1)
            b += tl.sum(right.to(ACC) * right.to(ACC), axis=0)
        return pm, pn, rm, rn, a / d + bias, b / d + bias, c / d + bias

    @triton.jit
    @no_type_check
    def _forward_kernel(
        x1, x2, sigma_out, theta_out, scalars, p, q, d, s1m, s1k, s2m, s2k, depth,
        ERF: tl.constexpr, SIGMA: tl.constexpr, THETA: tl.constexpr, ACC: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        bias, gain = tl.load(scalars), tl.load(scalars + 1)
        pm, pn, rm, rn, a, b, c = _first_layer(
            x1, x2, bias, p, q, d, s1m, s1k, s2m, s2k, ACC, BM, BN, BK
        )
        t = c
        for _ in range(depth):
            value, slope, norm, sin = _dual(a[:, None], b[None, :], c, ERF)
            a = gain * _diagonal_dual(a, ERF) + bias
            b = gain * _diagonal_dual(b, ERF) + bias
            c = gain * value + bias
            t = t * gain * slope + c
        keep = (rm[:, None] < p) & (rn[None, :] < q)
        where = rm.to(tl.int64)[:, None] * q + rn[None, :]
        if SIGMA:
            tl.store(sigma_out + where, c, mask=keep)
        if THETA:
            tl.store(theta_out + where, t, mask=keep)

    @triton.jit
    @no_type_check
    def _backward_kernel(
        x1, x2, g_sigma, g_theta, gram, left, right, scalars, p, q, d, s1m, s1k, s2m, s2k, depth,
        ERF: tl.constexpr, SIGMA: tl.constexpr, THETA: tl.constexpr, ACC: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        bias, gain, coincident = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2)
        pm, pn, rm, rn, a, b, c = _first_layer(
            x1, x2, bias, p, q, d, s1m, s1k, s2m, s2k, ACC, BM, BN, BK
        )
        t = c
        # Tangents of (Sigma, Theta) along the Gram entry (c), x1's diagonal (a), x2's (b).
        zero, one = tl.zeros((BM, BN), dtype=ACC), tl.full((BM, BN), 1.0, dtype=ACC)
        cc, ca, cb = one, zero, zero
        tc, ta, tb = one, zero, zero
        da, db = tl.full((BM,), 1.0, dtype=ACC), tl.full((BN,), 1.0, dtype=ACC)
        for _ in range(depth):
            value, slope, norm, sin = _dual(a[:, None], b[None, :], c, ERF)
            if ERF:
                va, vb = (1.0 + 2.0 * a)[:, None], (1.0 + 2.0 * b)[None, :]
                third = slope / (sin * sin)
                value_a = -slope * c / va * da[:, None]
                value_b = -slope * c / vb * db[None, :]
                slope_c = 4.0 * c * third
                slope_a = -vb * third * da[:, None]
                slope_b = -va * third * db[None, :]
                da = gain * da * (4.0 / _PI) / ((1.0 + 2.0 * a) * tl.sqrt(1.0 + 4.0 * a))
                db = gain * db * (4.0 / _PI) / ((1.0 + 2.0 * b) * tl.sqrt(1.0 + 4.0 * b))
            else:
                # E[s'' s''] = 1 / (2 pi sqrt(ab - c^2)); 0 at the cusp, where the inputs coincide.
                apart = (sin * sin > coincident) & (norm > 0)
                third = tl.where(apart, 1.0 / (2.0 * _PI * tl.where(apart, norm * sin, 1.0)), 0.0)
                ratio_a = da / tl.where(a > 0, a, 1.0)
                ratio_b = db / tl.where(b > 0, b, 1.0)
                value_a = norm * sin / (4.0 * _PI) * ratio_a[:, None]
                value_b = norm * sin / (4.0 * _PI) * ratio_b[None, :]
                slope_c = third
                slope_a = -0.5 * c * third * ratio_a[:, None]
                slope_b = -0.5 * c * third * ratio_b[None, :]
                da, db = gain * da * 0.5, gain * db * 0.5
            a = gain * _diagonal_dual(a, ERF) + bias
            b = gain * _diagonal_dual(b, ERF) + bias
            # Theta' = Theta * slope + Sigma', before Sigma and Theta themselves move on.
            slope_a += slope_c * ca
            slope_b += slope_c * cb
            slope_c *= cc
            ca = gain * (slope * ca + value_a)
            cb = gain * (slope * cb + value_b)
            cc = gain * slope * cc
            ta = gain * (ta * slope + t * slope_a) + ca
            tb = gain * (tb * slope + t * slope_b) + cb
            tc = gain * (tc * slope + t * slope_c) + cc
            c = gain * value + bias
            t = t * gain * slope + c
        keep = (rm[:, None] < p) & (rn[None, :] < q)
        where = rm.to(tl.int64)[:, None] * q + rn[None, :]
        gc, ga, gb = zero, zero, zero
        if SIGMA:
            g = tl.load(g_sigma + where, mask=keep, other=0.0)
            gc, ga, gb = gc + g * cc, ga + g * ca, gb + g * cb
        if THETA:
            g = tl.load(g_theta + where, mask=keep, other=0.0)
            gc, ga, gb = gc + g * tc, ga + g * ta, gb + g * tb
        tl.store(gram + where, gc, mask=keep)
        tl.store(left + pn.to(tl.int64) * p + rm, tl.sum(ga, axis=1), mask=rm < p)
        tl.store(right + pm.to(tl.int64) * q + rn, tl.sum(gb, axis=0), mask=rn < q)
