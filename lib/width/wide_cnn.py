"""Wide hierarchical CNNs: what their kernel makes easy to learn, and what stays out of reach.

F. Cagnetta, A. Favero and M. Wyart, "What Can Be Learnt With Wide Convolutional Neural Networks?",
ICML 2023, arXiv 2208.01003.

A convolutional network whose filters do not overlap is a tree of patches, patches of patches, and
so on. In the limit of great width it is a kernel machine. The eigenfunctions of its kernel are
products of functions of single patches, and the eigenvalue of one depends on the smallest node of
the tree that holds all its variables: on ``d_eff``, the number of dimensions below that node. A
target that lives in small patches is then learned at the rate of a small patch; a target drawn
from the deep network itself is not.

Implemented: the NNGP and tangent kernel of the tree (``lib.kernels.tree_ntk``, fused on a GPU) and
of fully connected networks, elementwise powers; random targets with a kernel as covariance, and the
learning curve of kernel regression on them, exactly averaged over targets or sampled; the predicted
exponents; the spectrum of one sector on patches of two pixels; the finite network with shared or
local filters, flattened or pooled, in the tangent-kernel and in the maximal-update parametrization.
Not implemented: filters that overlap, biases, and the proofs' spherical harmonics for patches of
more than two pixels.

Levels count from 1, and ``L = len(filter_sizes)`` counts nonlinearities; the paper's network of
depth ``L + 1`` counts the readout too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.linalg import chol
from lib.core.stats import loglog_slope
from lib.kernels.tree_ntk import check_filters, tree_ntk, tree_recursion

__all__ = [
    "HierarchicalCNN",
    "after_steps",
    "bound_exponent",
    "d_eff",
    "fitted_slope",
    "fc_ntk",
    "gaussian_field",
    "hierarchical_ntk",
    "learning_curve",
    "power_ntk",
    "predicted_exponent",
    "sample_patches",
    "sector_spectrum",
    "tree_recursion",
]

NU = {"ntk": 0.5, "nngp": 1.5}
"""Smoothness: eigenvalues fall as ``|k|^(-2 nu - d_eff)``."""
_BLOCK = 60_000
"""Numbers in a block on the CPU. Three times faster than 200,000, whose temporaries (1.6 MB each)
are taken from the system and returned to it one by one."""


# The kernels.


def hierarchical_ntk(
    x: Float[Tensor, "p d"],
    y: Float[Tensor, "q d"] | None = None,
    filter_sizes: Sequence[int] = (2, 2),
    kind: str = "ntk",
    normalize: bool = True,
    chunk: int | None = None,
    backend: str = "auto",
) -> Float[Tensor, "p q"]:
    """The kernel of the infinitely wide CNN with these filters; ``y=None`` means ``x``.

    The last average runs over the ``d / prod(filter_sizes)`` patches that are left, position by
    position: the readout has weights of its own for each of them.

    Args:
        kind: ``"ntk"``, with ``L + 1`` on the diagonal, or ``"nngp"``, with 1.
        normalize: divide every first patch by its norm. ``False`` insists that this is done
            already.
        chunk: rows at a time on the CPU, for memory; the default keeps a block in cache.

    Raises:
        ValueError: shapes or filters that do not fit, unknown ``kind``, a patch of zeros, patches
            that are not of norm 1 although ``normalize=False``, ``chunk`` below 1.
        TypeError: integer inputs, filters or a chunk that are not whole numbers.
    """
    if kind not in NU:
        raise ValueError(f"kind={kind!r}: allowed are 'ntk' and 'nngp'")
    if chunk is not None:
        _check_whole("chunk", chunk, 1, other=" or None")
    same = y is None or y is x
    y = x if same else y
    if x.ndim != 2 or y.ndim != 2:
        raise ValueError(f"x {tuple(x.shape)}, y {tuple(y.shape)}: allowed are (p, d) and (q, d)")
    sizes = check_filters(filter_sizes, x.shape[-1])
    if not normalize:
        for name, z in (("x", x), ("y", y)):
            _check_norms(name, z, sizes[0])
    if chunk is None:
        words = max(len(y) * (x.shape[1] // sizes[0]), 1)
        chunk = max(len(x), 1) if x.is_cuda else max(_BLOCK // words, 1)
    which = 1 if kind == "ntk" else 0
    K = None
    for first in range(0, max(len(x), 1), chunk):
        rows = slice(first, first + chunk)
        columns = slice(first if same else 0, None)  # the rest is the transpose of rows above
        block = tree_ntk(x[rows], y[columns], sizes, kind, backend)[which]
        if K is None:
            K = block.new_empty(len(x), len(y))
        K[rows, columns] = block
        if same:
            K[columns, rows] = block.T
    return K


def _check_norms(name: str, x: Tensor, patch: int) -> None:
    norms = x.double().unflatten(-1, (-1, patch)).norm(dim=-1)
    if ((norms - 1).abs() > 1e-3).any():
        raise ValueError(
            f"{name} has patches of norm {norms.min():.3g} to {norms.max():.3g}, and "
            "normalize=False allows norm 1 only"
        )


def _check_whole(name: str, value: int, least: int | None = None, other: str = "") -> int:
    """The number as an int, or the error that names it."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: allowed are whole numbers{other}") from None
    if least is not None and whole < least:
        raise ValueError(f"{name}={value}: allowed is {least} or more{other and ',' + other}")
    return whole


def fc_ntk(
    x: Float[Tensor, "p d"],
    y: Float[Tensor, "q d"] | None = None,
    depth: int = 3,
    kind: str = "ntk",
) -> Float[Tensor, "p q"]:
    """The same for a fully connected network of ``depth`` ReLU layers: a tree with one patch."""
    depth = _check_whole("depth", depth, 1)
    if x.ndim != 2:
        raise ValueError(f"x {tuple(x.shape)}: allowed is (p, d)")
    return hierarchical_ntk(x, y, (x.shape[-1],) + (1,) * (depth - 1), kind)


def power_ntk(K: Float[Tensor, "p q"], q: int) -> Float[Tensor, "p q"]:
    """``K^q`` entry by entry: its features are products of ``q`` features of ``K``.

    A product can join patches that no node of the tree joins.
    """
    if not (math.isfinite(q) and q >= 1 and q == int(q)):
        raise ValueError(f"q={q}: allowed are 1, 2, 3, ...")
    return K ** int(q)


# What theory expects.


def d_eff(level: int, filter_sizes: Sequence[int]) -> int:
    """Dimensions of a node of ``level``: ``(s_1 - 1) s_2 ... s_level``; a first patch of norm 1
    has ``s_1 - 1``."""
    sizes = check_filters(filter_sizes)
    level = _check_whole("level", level)
    if not 1 <= level <= len(sizes):
        raise ValueError(f"level={level}: allowed is 1 to {len(sizes)}, the number of filters")
    return (sizes[0] - 1) * math.prod(sizes[1:level])


def predicted_exponent(
    level: int, filter_sizes: Sequence[int], nu: float = 0.5, teacher_nu: float | None = None
) -> float:
    """``beta`` in ``error ~ P^(-beta)``: student with these filters, target of ``level``, no ridge.

    From P samples the student learns the P modes of largest eigenvalue. With ``D = d_eff(L)`` and
    eigenvalues ``k^(-2 nu - d_l)`` at level l, the P-th eigenvalue is ``P^(-1 - 2 nu / D)``, and so
    the target's modes are learned up to the wave number

        k_c = P^((2 nu + D) / (D (2 nu + d_l))).

    A Gaussian random field of smoothness ``teacher_nu`` leaves ``k_c^(-2 teacher_nu)`` beyond it.
    A smoother target gains nothing beyond ``2 (2 nu + d_l)``: errors in the learned modes rule.

    Args:
        level: the target's; above the student's depth the student lacks the modes across its nodes,
            the error stops at their variance, and the exponent is 0.
        nu: the student's smoothness, 1/2 for the tangent kernel, 3/2 for the NNGP.
        teacher_nu: the target's; the same where ``None``.
    """
    teacher_nu = nu if teacher_nu is None else teacher_nu
    if not (0 < nu < math.inf and 0 < teacher_nu < math.inf):
        raise ValueError(f"nu={nu}, teacher_nu={teacher_nu}: allowed are finite numbers above 0")
    sizes = check_filters(filter_sizes)
    if level > len(sizes):
        return 0.0
    d_l, D = d_eff(level, sizes), d_eff(len(sizes), sizes)
    if d_l == 0:
        raise ValueError("filter_sizes start with 1: a patch of one pixel has no direction")
    cutoff = (2 * nu + D) / (D * (2 * nu + d_l))
    return min(2 * teacher_nu, 2 * (2 * nu + d_l)) * cutoff


def bound_exponent(
    level: int, filter_sizes: Sequence[int], nu: float = 0.5, teacher_nu: float | None = None
) -> float:
    """The guaranteed exponent ``alpha r / (alpha r + 1)``, with the best ridge and noisy labels.

    Eigenvalues fall as ``rho^-alpha``, and the target has a finite norm of order r. Here
    ``alpha = 1 + 2 nu / D`` and ``r = 2 teacher_nu / (2 nu + d_l)``, so that ``alpha r`` is the
    exponent ``beta`` without ridge and noise, and the bound is ``beta / (1 + beta)``.
    """
    beta = predicted_exponent(level, filter_sizes, nu, teacher_nu)
    return beta / (1 + beta)


# Teachers, students, learning curves.


def sample_patches(
    n: int, d: int, patch: int, gen: torch.Generator, kind: str = "sphere"
) -> Float[Tensor, "n d"]:
    """Inputs of ``d / patch`` independent patches, float64.

    ``"sphere"``: uniform on the sphere of norm 1; ``"cube"``: entries uniform in [0, 1], which are
    not normalized.
    """
    _check_whole("n", n, 0)
    _check_whole("d", d, 1)
    check_filters((patch,), d)
    if kind == "cube":
        return torch.rand(n, d, generator=gen, dtype=torch.float64)
    if kind != "sphere":
        raise ValueError(f"kind={kind!r}: allowed are 'sphere' and 'cube'")
    x = torch.randn(n, d // patch, patch, generator=gen, dtype=torch.float64)
    return (x / x.norm(dim=-1, keepdim=True)).flatten(1)


def gaussian_field(
    K: Float[Tensor, "n n"], n_out: int, gen: torch.Generator, jitter: float = 1e-9
) -> Float[Tensor, "n n_out"]:
    """Random targets: ``n_out`` draws from ``N(0, K)`` at the points of K, by Cholesky."""
    _check_whole("n_out", n_out, 1)
    L, _ = chol(K, jitter)
    return L @ torch.randn(len(K), n_out, generator=gen, dtype=torch.float64).to(L.device)


def learning_curve(
    teacher: Float[Tensor, "n n"],
    student: Float[Tensor, "n n"],
    sizes: Sequence[int],
    ridge: float = 0.0,
    outputs: int | None = None,
    gen: torch.Generator | None = None,
) -> pd.DataFrame:
    """Test error of kernel regression on random targets, over their variance on the test points.

    Both Gram matrices are over the same points: training points first, of which the first P are
    used for each P in ``sizes``; all points after ``max(sizes)`` are for testing.

    Args:
        ridge: lambda of the sum form; 0 interpolates (with a jitter of 1e-10).
        outputs: how many targets are drawn from ``N(0, teacher)``. ``None`` takes the exact mean
            over all targets, which needs no draw: with the weights ``A = K_S(t, P) K_S(P, P)^-1``
            it is the mean diagonal of ``K_T(t, t) - 2 A K_T(P, t) + A K_T(P, P) A^T``.

    Returns:
        One row for each P: ``samples`` and ``error``.

    Raises:
        ValueError: shapes that differ or are not square, fewer than two test points, entries that
            are not finite, ``outputs`` without ``gen``.
    """
    sizes = [_check_whole("sizes", P, 1) for P in sizes]
    n, last = len(teacher), max(sizes, default=0)
    if teacher.shape != (n, n) or student.shape != (n, n) or not sizes or last > n - 2:
        raise ValueError(
            f"teacher {tuple(teacher.shape)}, student {tuple(student.shape)}, sizes {sizes}: "
            "allowed are one or more sizes and two square Gram matrices of one shape, with at "
            "least two more points than the largest size"
        )
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge}: allowed is a finite number, 0 or more")
    for name, K in (("teacher", teacher), ("student", student)):
        if not torch.isfinite(K).all():
            raise ValueError(f"{name} has entries that are not finite")
    if outputs is not None:
        _check_whole("outputs", outputs, 1, other=" or None")
        if gen is None:
            raise ValueError("gen: drawing outputs needs a generator")
    student, teacher = student.double(), teacher.double()
    shifted = student[:last, :last] + ridge * torch.eye(last, dtype=torch.float64).to(student)
    L, _ = chol(shifted, 1e-10 if ridge == 0 else 0.0)
    test = teacher[last:, last:]
    if outputs is not None:
        y = gaussian_field(teacher, outputs, gen)
        variance = y[last:].var(0, unbiased=False).mean()
    else:
        variance = test.diagonal().mean() - test.mean()
    rows = []
    for P in sizes:
        factor = L[:P, :P]  # the factor of a leading block is the leading block of the factor
        if outputs is not None:
            prediction = student[last:, :P] @ torch.cholesky_solve(y[:P], factor)
            error = (y[last:] - prediction).square().mean()
        else:
            A = torch.cholesky_solve(student[:P, last:], factor).T
            cross = teacher[last:, :P]
            error = test.diagonal() + (A * (A @ teacher[:P, :P] - 2 * cross)).sum(1)
            error = error.mean()
        rows.append({"samples": P, "error": (error / variance).item()})
    return pd.DataFrame(rows)


def after_steps(
    K: Float[Tensor, "n n"],
    K_test: Float[Tensor, "m n"],
    residual: Float[Tensor, "n o"],
    lr: float,
    steps: int,
) -> Float[Tensor, "m o"]:
    """What gradient descent on half the summed squares adds to the function at the test points.

    ``K_test K^{-1} (1 - (1 - lr K)^steps) residual``, the closed form for a constant kernel.

    Raises:
        ValueError: shapes that do not fit; ``lr`` is not above 0, or is above 2 over the largest
            eigenvalue, where the steps diverge; ``steps`` below 0.
    """
    n = len(K)
    if n == 0 or K.shape != (n, n) or K_test.shape[1:] != (n,) or len(residual) != n:
        raise ValueError(
            f"K {tuple(K.shape)}, K_test {tuple(K_test.shape)}, residual {tuple(residual.shape)}: "
            "allowed are (n, n), (m, n) and (n, o), n > 0"
        )
    steps = _check_whole("steps", steps, 0)
    values, vectors = torch.linalg.eigh(K.double())
    if not lr > 0 or lr * values[-1] >= 2:
        raise ValueError(
            f"lr={lr:.3g}: allowed is above 0 and below {2 / values[-1]:.3g}, or steps diverge"
        )
    # An eigenvalue that is zero up to rounding would be divided by itself: its limit is lr steps.
    safe = values.clamp_min(max(1e-14 * values[-1].item(), torch.finfo(torch.float64).tiny))
    small = -torch.expm1(steps * torch.log1p(-(lr * safe).clamp_max(0.5)))
    done = torch.where(lr * safe < 0.5, small, 1 - (1 - lr * safe) ** steps) / safe
    return K_test.double() @ ((vectors * done) @ (vectors.T @ residual.double()))


# The spectrum, for patches of two pixels: a patch is an angle.


def sector_spectrum(
    filter_sizes: Sequence[int],
    level: int,
    kmax: int,
    kind: str = "ntk",
    grid: int = 1024,
    outside: int = 256,
) -> pd.DataFrame:
    """Eigenvalues of the modes that fill a node of ``level``, along the diagonal of wave numbers.

    With ``s_1 = 2`` a patch of norm 1 is an angle, the kernel is a function of the differences of
    angles, and its eigenvalues are its Fourier coefficients. A mode that lives inside one node sees
    the kernel averaged over all angles outside of it. The coefficient of ``(k, ..., k)``, one wave
    number for each of the node's ``d_eff`` angles, is what is returned, for a single top patch.

    Args:
        grid: points on the circle, for each angle inside; even. The kernel is even in each angle,
            so that half of them are computed: ``(grid / 2 + 1)^d_eff`` in all.
        outside: Sobol points for the angles outside the node.

    Returns:
        One row for each k from 0 to ``kmax``: ``k`` and ``eigenvalue``.

    Raises:
        ValueError: ``s_1`` is not 2, ``grid`` is odd or too small for ``kmax`` or too large for
            memory, ``kmax`` below 0, ``outside`` below 1.
    """
    sizes = check_filters(filter_sizes)
    if kind not in NU:
        raise ValueError(f"kind={kind!r}: allowed are 'ntk' and 'nngp'")
    if sizes[0] != 2:
        raise ValueError(f"filter_sizes={sizes}: a patch is one angle only where s_1 is 2")
    inside = d_eff(level, sizes)
    kmax, grid = _check_whole("kmax", kmax, 0), _check_whole("grid", grid, 2)
    outside = _check_whole("outside", outside, 1)
    if grid % 2 or kmax > grid // 2:
        raise ValueError(f"grid={grid}: allowed is an even number of at least 2 kmax = {2 * kmax}")
    half = grid // 2 + 1
    if half**inside > 10_000_000:
        raise ValueError(f"grid={grid}: {half}^{inside} points are too many; allowed is 10^7")
    angle = torch.arange(half, dtype=torch.float64) * (2 * math.pi / grid)
    mesh = torch.stack(torch.meshgrid(*[angle] * inside, indexing="ij")).flatten(1)
    around = _sobol(math.prod(sizes[1:]) - inside, outside)  # (leaves outside, points)
    which = 1 if kind == "ntk" else 0
    parts = []
    for part in mesh.split(max(1, _BLOCK // around.shape[1]), 1):
        angles = torch.cat(
            [
                part[:, :, None].expand(-1, -1, around.shape[1]),
                around[:, None].expand(-1, part.shape[1], -1),
            ]
        )
        parts.append(tree_recursion(1 - angles.cos(), sizes)[which].mean(-1))
    values = torch.cat(parts).view([half] * inside)
    weights = torch.full((half,), 2.0, dtype=torch.float64)
    weights[[0, -1]] = 1.0
    waves = weights * torch.cos(angle * torch.arange(kmax + 1)[:, None]) / grid
    # One axis of points after the other becomes an axis of wave numbers; the diagonal is wanted.
    values = torch.einsum("ki,i...->k...", waves, values)
    for _ in range(inside - 1):
        values = torch.einsum("ki,ki...->k...", waves, values)
    return pd.DataFrame({"k": range(kmax + 1), "eigenvalue": values.tolist()})


def _sobol(dimensions: int, points: int) -> Float[Tensor, "dimensions points"]:
    """Angles that fill the torus evenly; one point for no dimension."""
    if dimensions == 0:
        return torch.zeros(0, 1, dtype=torch.float64)
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=0)
    return 2 * math.pi * engine.draw(points, dtype=torch.float64).T


# The finite network.


class HierarchicalCNN(nn.Module):
    """The CNN of finite width: filters that do not overlap, ReLU, no biases.

        h^1 = W^1 x_patch,    z = sqrt(2) relu(h),    h^l = W^l z_children / sqrt(n s_l),
        f = sum_{i, q} a_{iq} z^L_{iq} / sqrt(n d / p_L),

    all weights from N(0, 1), patches of norm 1. The sum runs over the n channels i and the
    ``d / p_L`` positions q that are left; ``p_L`` is the product of the filter sizes.

    Args:
        shared: one filter for all positions (a CNN); ``False`` gives each position its own (a
            locally connected network). The limit kernels are the same.
        readout: ``"flatten"``, as above, or ``"pool"``: the mean over positions first. The limit
            kernel of the latter averages over all pairs of positions and is another one.
        parametrization: ``"ntk"``, or ``"mup"``, whose readout is divided by another ``sqrt(n)``;
            multiply the learning rate by ``lr_scale`` and features move at any width.

    Raises:
        ValueError: filters that do not divide d, a width below 1, unknown names.
    """

    def __init__(
        self,
        d: int,
        filter_sizes: Sequence[int],
        width: int,
        outputs: int = 1,
        shared: bool = True,
        readout: str = "flatten",
        parametrization: str = "ntk",
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_whole("d", d, 1)
        self.sizes = check_filters(filter_sizes, d)
        _check_whole("width", width, 1)
        _check_whole("outputs", outputs, 1)
        if readout not in ("flatten", "pool"):
            raise ValueError(f"readout={readout!r}: allowed are 'flatten' and 'pool'")
        if parametrization not in ("ntk", "mup"):
            raise ValueError(f"parametrization={parametrization!r}: allowed are 'ntk' and 'mup'")
        self.d, self.width, self.readout = d, width, readout
        self.filters = nn.ParameterList()
        positions, n_in = d, 1
        for s in self.sizes:
            positions //= s
            shape = (1 if shared else positions, width, s * n_in)
            self.filters.append(torch.randn(shape, generator=gen))
            n_in = width
        last = width * (positions if readout == "flatten" else 1)
        self.readout_weight = nn.Parameter(torch.randn(outputs, last, generator=gen))
        self.lr_scale = float(width) if parametrization == "mup" else 1.0

    def features(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b features"]:
        """What the readout sees, scaled so that its inner products are the network's kernel."""
        if x.ndim != 2 or x.shape[1] != self.d or x.dtype != self.readout_weight.dtype:
            raise ValueError(
                f"x {tuple(x.shape)} of {x.dtype}: allowed is (b, {self.d}) of "
                f"{self.readout_weight.dtype}"
            )
        z = x.unflatten(1, (-1, 1))  # batch, positions, channels
        for level, (s, W) in enumerate(zip(self.sizes, self.filters)):
            patches = z.unflatten(1, (-1, s)).flatten(2)  # children side by side
            scale = 1.0 if level == 0 else math.sqrt(1 / patches.shape[-1])
            if len(W) == 1:  # one filter for all positions: one product
                h = scale * patches @ W[0].T
            else:
                h = torch.einsum("bqi,qni->bqn", scale * patches, W)
            z = math.sqrt(2) * torch.relu(h)
        z = z.flatten(1) if self.readout == "flatten" else z.mean(1)
        return z / math.sqrt(z.shape[1])

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b outputs"]:
        """The function ``f``, one column an output."""
        return self.features(x) @ self.readout_weight.T / math.sqrt(self.lr_scale)


def fitted_slope(curve: pd.DataFrame, first: int = 0) -> float:
    """Least-squares slope of log error against log samples, from ``first`` samples on, negated.

    ``curve`` has the columns ``samples`` and ``error``, as :func:`learning_curve` returns them.
    """
    if not {"samples", "error"} <= set(curve.columns):
        raise ValueError(f"curve has {list(curve.columns)}: needed are 'samples' and 'error'")
    part = curve[curve.samples >= first]
    if part.samples.nunique() < 2:
        raise ValueError(
            f"first={first}: {part.samples.nunique()} points are left, and a slope needs two"
        )
    if not (part.error > 0).all():
        raise ValueError(f"curve: errors {part.error.tolist()}; allowed are numbers above 0")
    return -loglog_slope(part.samples, part.error).slope
