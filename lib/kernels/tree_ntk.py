"""The two kernels of an infinitely wide hierarchical CNN, fused: patch cosines to the root.

The network of F. Cagnetta, A. Favero and M. Wyart (2023, arXiv 2208.01003): ReLU convolutions of
sizes ``s_1, ..., s_L`` whose stride is their size, no biases, a dense readout. Its kernels climb a
tree. At the leaves stand the cosines ``c`` between the patches of two inputs, and ``Theta = c``.
Level ``l = 1, ..., L`` applies one layer and averages over siblings,

    Theta <- mean(k0(c) Theta + k1(c)),      c <- mean(k1(c)),
    k0 = (pi - t) / pi,   k1 = (sin t + (pi - t) cos t) / pi,   t = arccos c,

over ``s_{l+1}`` neighbors, and after the last level over all that are left.

Written with eager tensor operations each level moves about ten tensors of shape (nodes, P, Q). Here
a program walks through the tree depth first with a tile of pairs in registers: one pair of sums for
each level, whatever the number of leaves.

Floor of the forward: reads ``w (P + Q) d`` bytes (``w`` bytes a word, 4 or 8), writes ``w P Q`` per
output; ``2 P Q d`` FLOPs at the leaves and about ``40`` for each of the at most ``2 d / s_1`` nodes
and each pair, which is what bounds it on a GPU. Around it, not counted: dividing by the patch norms
and transposing, ``3 w (P + Q) d`` bytes.

What climbs is not ``c`` but its complement ``m = 1 - c``, half the squared distance of two unit
patches. Near coincident inputs ``m`` keeps all its digits where ``1 - c`` has lost half of them; on
the diagonal it is exactly 0, so ``Sigma(x, x) = 1`` and ``Theta(x, x) = L + 1`` to the last bit.
(Opposite patches have no such luck: there Theta errs by the root of a rounding, 1e-8 in float64 and
3e-4 in float32. It is about 0 at such pairs.)

Implemented: the forward in Triton; the backward goes through the plain PyTorch reference, with the
memory that this takes. Fully connected networks of ``depth`` layers are the tree
``(d, 1, ..., 1)``.
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
import contextlib
import math
import operator
from collections.abc import Sequence
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels.dispatch import check_dtype, pick_backend, tl, triton

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Patches up to this size are compared by their distance, which is exact for coincident ones; larger
# ones by a matrix product.
_SMALL = 16


def tree_ntk(
    x: Float[Tensor, "p d"],
    y: Float[Tensor, "q d"],
    filter_sizes: Sequence[int],
    which: str = "both",
    backend: str = "auto",
) -> tuple[Float[Tensor, "p q"] | None, Float[Tensor, "p q"] | None]:
    """``(Sigma, Theta)`` of the limit network with ``L = len(filter_sizes)`` nonlinearities.

    Inputs are cut into patches of ``s_1`` consecutive entries, and only the patches' directions
    count: each is divided by its norm. Results are float32, or float64 for float64 inputs.

    Args:
        filter_sizes: ``(s_1, ..., s_L)``; their product must divide d.
        which: ``"both"``, or only ``"nngp"`` or ``"ntk"``; what was not asked for is ``None`` and
            is not stored.
        backend: ``"auto"`` (Triton on CUDA tensors), ``"triton"``, ``"reference"``.

    Raises:
        ValueError: shapes that do not fit, filter sizes that do not divide d, a patch of zeros,
            unknown ``which`` or ``backend``.
        TypeError: integer inputs, or two different dtypes.
    """
    if which not in ("both", "nngp", "ntk"):
        raise ValueError(f"which={which!r}: allowed are 'both', 'nngp' and 'ntk'")
    _check_shapes(x, y)
    sizes = check_filters(filter_sizes, x.shape[1])
    check_dtype("x", x, _DTYPES)
    if x.dtype != y.dtype:
        raise TypeError(f"x and y must have one dtype, got {x.dtype} and {y.dtype}")
    chosen = pick_backend(backend, x, y)
    x, y = unit_patches(x, sizes[0], "x"), unit_patches(y, sizes[0], "y")
    if chosen == "reference":
        sigma, theta = _reference(x, y, sizes)
    else:
        sigma, theta = _forward(x, y, list(sizes), which)
    return (None if which == "ntk" else sigma), (None if which == "nngp" else theta)


def _check_shapes(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        raise ValueError(
            f"x and y must be (p, d) and (q, d) with one d > 0, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )


def check_filters(filter_sizes: Sequence[int], d: int | None = None) -> tuple[int, ...]:
    """The filter sizes as a tuple, or the error that says what is wrong with them."""
    try:
        sizes = tuple(operator.index(s) for s in filter_sizes)
    except TypeError:  # not a sequence, or not of whole numbers
        raise TypeError(
            f"filter_sizes={filter_sizes!r}: allowed is a sequence of whole numbers, as (2, 2)"
        ) from None
    if not sizes or min(sizes) < 1:
        raise ValueError(f"filter_sizes={sizes}: allowed are one or more numbers, each >= 1")
    if d is not None and d % math.prod(sizes):
        raise ValueError(
            f"filter_sizes={sizes}: their product {math.prod(sizes)} must divide the input "
            f"dimension d={d}"
        )
    return sizes


# The recursion, and the reference.


def tree_recursion(
    m: Float[Tensor, "leaves *shape"], filter_sizes: Sequence[int]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """``(Sigma, Theta)`` at the root, from ``m = 1 - c`` at the leaves."""
    _check_leaves(m, filter_sizes)
    theta = 1 - m
    for siblings in (*filter_sizes[1:], None):
        m, theta = relu_layer(m, theta)
        siblings = siblings or len(m)  # the last mean takes all that are left
        m, theta = _mean(m, siblings), _mean(theta, siblings)
    return 1 - m[0], theta[0]


def _check_leaves(m: Tensor, filter_sizes: Sequence[int]) -> None:
    above = math.prod(check_filters(filter_sizes)[1:])
    if m.ndim == 0 or len(m) == 0 or len(m) % above:
        raise ValueError(
            f"m of shape {tuple(m.shape)}: its first axis is the leaves, and allowed for "
            f"filter_sizes={tuple(filter_sizes)} are multiples of {above}"
        )


def _mean(z: Float[Tensor, "nodes *shape"], siblings: int) -> Float[Tensor, "parents *shape"]:
    """Over neighbors. Sums of whole slices: quicker than a reduction over so short an axis."""
    children = z.unflatten(0, (-1, siblings)).unbind(1)
    total = children[0]
    for child in children[1:]:
        total = total + child
    return total / siblings


def relu_layer(
    m: Float[Tensor, "*shape"], theta: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """``1 - k1(c)`` and ``k0(c) theta + k1(c)``, from ``m = 1 - c``.

    The half angle has the sine ``sqrt(m / 2)`` and the cosine ``sqrt(1 - m / 2)``.
    """
    tiny = torch.finfo(m.dtype).tiny  # keeps the gradient finite at the cusp, changes no value
    sin, cos = (m / 2).clamp_min(tiny).sqrt(), (1 - m / 2).clamp_min(tiny).sqrt()
    angle = 2 * torch.atan2(sin, cos)
    m = m - (2 * sin * cos - angle * (1 - m)) / math.pi
    return m, (1 - angle / math.pi) * theta + (1 - m)


def tree_ntk_reference(
    x: Float[Tensor, "p d"], y: Float[Tensor, "q d"], filter_sizes: Sequence[int]
) -> tuple[Float[Tensor, "p q"], Float[Tensor, "p q"]]:
    """Both kernels in plain PyTorch; autograd differentiates it."""
    _check_shapes(x, y)
    sizes = check_filters(filter_sizes, x.shape[1])
    return _reference(unit_patches(x, sizes[0], "x"), unit_patches(y, sizes[0], "y"), sizes)


def _reference(x: Tensor, y: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    return tree_recursion(leaf_complements(x, y, sizes[0]), sizes)


def leaf_complements(
    x: Float[Tensor, "p d"], y: Float[Tensor, "q d"], patch: int
) -> Float[Tensor, "leaves p q"]:
    """``1 - cosine`` of every pair of unit patches at one position."""
    u, v = (z.unflatten(1, (-1, patch)).transpose(0, 1) for z in (x, y))
    if patch > _SMALL:
        return (1 - u @ v.mT).clamp(0, 2)
    m = 0.0
    for k in range(patch):
        m = m + (u[..., k, None] - v[..., None, :, k]).square()
    return (m / 2).clamp(max=2)


def unit_patches(x: Float[Tensor, "p d"], patch: int, name: str = "x") -> Float[Tensor, "p d"]:
    """Every patch divided by its norm, in float32 or float64.

    Raises:
        ValueError: a patch is zero and has no direction.
    """
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    patches = x.unflatten(1, (-1, patch))
    norm = patches.norm(dim=-1, keepdim=True)
    if (norm == 0).any():
        row, position = (norm[..., 0] == 0).nonzero()[0].tolist()
        raise ValueError(
            f"{name}: patch {position} of row {row} is zero and has no direction, or its norm "
            f"is, in {norm.dtype}: scale it up"
        )
    return (patches / norm).flatten(1)


# The operator on the GPU.


@torch.library.custom_op("lib::tree_ntk", mutates_args=())
def _forward(x: Tensor, y: Tensor, sizes: list[int], which: str) -> tuple[Tensor, Tensor]:
    sigma, theta = _outputs(x, y, which)
    p, q, d = len(x), len(y), x.shape[1]
    if p and q:
        wide = x.dtype == torch.float64
        bm, bn = (16, 32) if wide else (32, 32)  # all levels' sums fit into registers
        # Children of a node of each level, and leaves under each of its children.
        children = [*sizes[1:], d // math.prod(sizes)]
        spans = [math.prod(children[:k]) for k in range(len(children))]
        table = torch.tensor([children, spans], dtype=torch.int32).to(x.device)
        with _on(x):
            _forward_kernel[(triton.cdiv(p, bm) * triton.cdiv(q, bn),)](
                # Transposed, so that neighboring threads read neighboring words.
                x.T.contiguous(), y.T.contiguous(), sigma, theta, table, p, q, sizes[0],
                DEPTH=len(sizes), CHORD=sizes[0] <= _SMALL,
                SIGMA=which != "ntk", THETA=which != "nngp",
                ACC=tl.float64 if wide else tl.float32, BM=bm, BN=bn, BK=16, num_warps=4,
            )  # fmt: skip
    return sigma, theta


@_forward.register_fake
def _(x, y, sizes, which):
    return _outputs(x, y, which)


def _outputs(x: Tensor, y: Tensor, which: str) -> tuple[Tensor, Tensor]:
    full = (x.shape[0], y.shape[0])
    return (
        x.new_empty((0,) if which == "ntk" else full),
        x.new_empty((0,) if which == "nngp" else full),
    )


def _setup(ctx, inputs, output):
    x, y, ctx.sizes, ctx.which = inputs
    ctx.save_for_backward(x, y)


def _autograd(ctx, g_sigma, g_theta):
    x, y = (t.detach().requires_grad_() for t in ctx.saved_tensors)
    with torch.enable_grad():
        sigma, theta = _reference(x, y, ctx.sizes)
    pairs = [(sigma, g_sigma)] if ctx.which != "ntk" else []
    pairs += [(theta, g_theta)] if ctx.which != "nngp" else []
    outputs, cotangents = zip(*pairs)
    return *torch.autograd.grad(outputs, (x, y), cotangents), None, None


_forward.register_autograd(_autograd, setup_context=_setup)


def _on(x: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


if triton is not None:
    from lib.kernels.nngp_ntk import _atan

    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap
    # every function in a type checker.
    _PI = tl.constexpr(math.pi)
    # Plain minimum and maximum return the other number where one is NaN: an input that is NaN
    # would pass for one that coincides.
    _NAN = tl.constexpr(tl.PropagateNan.ALL)

    @triton.jit
    @no_type_check
    def _relu_layer(m, t):
        """As the reference's: ``1 - c`` and Theta behind one layer."""
        sin, cos = tl.sqrt(0.5 * m), tl.sqrt(1.0 - 0.5 * m)  # of half the angle
        small, large = tl.minimum(sin, cos), tl.maximum(sin, cos)
        half = _atan(small / large)
        angle = 2.0 * tl.where(sin > cos, 0.5 * _PI - half, half)
        m = m - (2.0 * sin * cos - angle * (1.0 - m)) / _PI
        m = tl.maximum(m, 0.0, propagate_nan=_NAN)
        return m, (1.0 - angle / _PI) * t + (1.0 - m)

    @triton.jit
    @no_type_check
    def _leaf(
        x, y, leaf, rm, rn, p, q, patch,
        CHORD: tl.constexpr, ACC: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """``1 - c`` of a tile of pairs at one leaf."""
        m = tl.zeros((BM, BN), dtype=ACC)
        first = leaf.to(tl.int64) * patch
        if CHORD:
            for k in range(patch):
                row = first + k
                u = tl.load(x + row * p + rm, mask=rm < p, other=0.0)
                v = tl.load(y + row * q + rn, mask=rn < q, other=0.0)
                step = u[:, None] - v[None, :]
                m += 0.5 * step * step
        else:
            for k in range(0, patch, BK):
                rk = k + tl.arange(0, BK)
                row = first + rk
                inside = rk < patch
                u = tl.load(
                    x + row[None, :] * p + rm[:, None],
                    mask=inside[None, :] & (rm[:, None] < p),
                    other=0.0,
                )
                v = tl.load(
                    y + row[:, None] * q + rn[None, :],
                    mask=inside[:, None] & (rn[None, :] < q),
                    other=0.0,
                )
                # "ieee": TF32 keeps 10 bits, and the angle of close patches needs them all.
                m = tl.dot(u, v, m, input_precision="ieee", out_dtype=ACC)
            m = 1.0 - m
        m = tl.maximum(m, 0.0, propagate_nan=_NAN)
        return tl.minimum(m, 2.0, propagate_nan=_NAN)

    @triton.jit
    @no_type_check
    def _enter(
        x, y, table, leaf, rm, rn, p, q, patch, DEPTH: tl.constexpr, LEVEL: tl.constexpr,
        CHORD: tl.constexpr, ACC: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """``1 - c`` and Theta at the entrance of level ``LEVEL + 1``, of the node above ``leaf``.

        Calls itself one level down; each level is compiled into its own loop.
        """
        if LEVEL == 0:
            m = _leaf(x, y, leaf, rm, rn, p, q, patch, CHORD, ACC, BM, BN, BK)
            t = 1.0 - m
        else:
            children = tl.load(table + (LEVEL - 1))
            span = tl.load(table + (DEPTH + LEVEL - 1))
            m, t = tl.zeros((BM, BN), dtype=ACC), tl.zeros((BM, BN), dtype=ACC)
            for child in range(children):
                below, slope = _enter(
                    x, y, table, leaf + child * span, rm, rn, p, q, patch,
                    DEPTH, LEVEL - 1, CHORD, ACC, BM, BN, BK,
                )  # fmt: skip
                below, slope = _relu_layer(below, slope)
                m += below
                t += slope
            m, t = m / children, t / children
        return m, t

    @triton.jit
    @no_type_check
    def _forward_kernel(
        x, y, sigma, theta, table, p, q, patch,
        DEPTH: tl.constexpr, CHORD: tl.constexpr, SIGMA: tl.constexpr, THETA: tl.constexpr,
        ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        columns = tl.cdiv(q, BN)
        pid = tl.program_id(0)
        rm = pid // columns * BM + tl.arange(0, BM)
        rn = pid % columns * BN + tl.arange(0, BN)
        root = tl.load(table) * 0  # leaf 0, as a tensor: the levels below add to it
        m, t = _enter(
            x, y, table, root, rm, rn, p, q, patch, DEPTH, DEPTH, CHORD, ACC, BM, BN, BK
        )  # fmt: skip
        keep = (rm[:, None] < p) & (rn[None, :] < q)
        where = rm.to(tl.int64)[:, None] * q + rn[None, :]
        if SIGMA:
            tl.store(sigma + where, 1.0 - m, mask=keep)
        if THETA:
            tl.store(theta + where, t, mask=keep)
