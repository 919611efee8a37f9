"""Uniform grids on a box: points, differences, transfer between grids, multigrid, field errors.

One :class:`Grid` says where the numbers of a field stand, so that nobody guesses by half a cell::

    boundary      points along an axis of length L       spacing    refine by two
    "periodic"    j h,        j = 0 .. n-1               L / n      n -> 2 n
    "dirichlet"   (j + 1) h,  j = 0 .. n-1 (interior)    L / (n+1)  n -> 2 n + 1
    "neumann"     (j + 1/2) h, j = 0 .. n-1 (cells)      L / n      n -> 2 n

Fields have shape ``(..., *grid.shape)``; axes in front are batch. Dirichlet fields are zero on the
boundary, Neumann fields have no slope there. Everything is differentiable. Fourier coefficients use
``norm="forward"`` throughout: they then do not depend on how finely a function was sampled.

Multigrid in a paragraph: a few sweeps of damped Jacobi remove what is rough in the error; what is
left is smooth, a coarser grid can carry it, and the same idea is used there (A. Brandt 1977; W. L.
Briggs, V. E. Henson and S. F. McCormick, "A Multigrid Tutorial", 2000).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Boundary = Literal["periodic", "dirichlet", "neumann"]
BOUNDARIES: tuple[str, ...] = ("periodic", "dirichlet", "neumann")


@dataclass(frozen=True)
class Grid:
    """A uniform grid on ``[0, length_1] x [0, length_2] x ...``.

    Args:
        shape: points along each axis.
        length: sides of the box; one number stands for all.
        boundary: what holds at the ends of every axis, and with it where the points stand.

    Raises:
        ValueError: no axis, a number of points below 1, a length that is not positive, another
            boundary.
    """

    shape: tuple[int, ...]
    length: float | tuple[float, ...] = 1.0
    boundary: Boundary = "periodic"

    def __post_init__(self) -> None:
        _check_boundary(self.boundary)
        if len(self.shape) == 0 or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape}: allowed are one or more numbers, each >= 1")
        if isinstance(self.length, tuple) and len(self.length) != len(self.shape):
            raise ValueError(f"length={self.length}: allowed is one number, or {len(self.shape)}")
        if not min(self.lengths) > 0:
            raise ValueError(f"length={self.length}: allowed are positive numbers")

    @property
    def dims(self) -> int:
        return len(self.shape)

    @cached_property
    def lengths(self) -> tuple[float, ...]:
        one = not isinstance(self.length, tuple)
        return (float(self.length),) * self.dims if one else tuple(map(float, self.length))

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """``h`` along each axis."""
        more = 1 if self.boundary == "dirichlet" else 0
        return tuple(L / (n + more) for n, L in zip(self.shape, self.lengths, strict=True))

    def points(self, dtype: torch.dtype = torch.float64) -> list[Float[Tensor, "n"]]:
        """Coordinates along each axis."""
        first = {"periodic": 0.0, "dirichlet": 1.0, "neumann": 0.5}[self.boundary]
        return [
            (torch.arange(n, dtype=dtype) + first) * h
            for n, h in zip(self.shape, self.spacing, strict=True)
        ]

    def mesh(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, "d *shape"]:
        """The coordinates of every point, one field an axis."""
        return torch.stack(torch.meshgrid(*self.points(dtype), indexing="ij"))

    @property
    def can_coarsen(self) -> bool:
        """Whether every second point makes a grid of the same kind."""
        odd = self.boundary == "dirichlet"
        return all(n % 2 == odd and n >= (3 if odd else 2) for n in self.shape)

    def coarse(self) -> Grid:
        """The next coarser grid, of twice the spacing.

        Raises:
            ValueError: an axis that cannot be halved: an even number of Dirichlet points, an odd
                number of the others, or too few.
        """
        if not self.can_coarsen:
            rule = "odd numbers from 3 on" if self.boundary == "dirichlet" else "even numbers"
            raise ValueError(f"shape={self.shape}: a {self.boundary} grid can be halved for {rule}")
        return Grid(tuple(n // 2 for n in self.shape), self.length, self.boundary)

    def fine(self) -> Grid:
        """The next finer grid, of half the spacing."""
        more = 1 if self.boundary == "dirichlet" else 0
        return Grid(tuple(2 * n + more for n in self.shape), self.length, self.boundary)


# --------------------------------------------------------------------------- differences


def laplacian(
    u: Float[Tensor, "*b"], grid: Grid, a: Float[Tensor, "*c"] | None = None
) -> Float[Tensor, "*b"]:
    """``div(a grad u)`` by finite volumes: 3 points in one dimension, 5 in two, 7 in three.

    Second order for smooth fields. ``a`` stands at the points of ``u``; between two of them the
    flux takes their harmonic mean, which is exact in one dimension for a coefficient that jumps
    half way. At a Dirichlet end the flux takes the last point's own ``a``; at a Neumann end it is
    zero.

    Raises:
        ValueError: a field that does not end in the grid's shape.
    """
    _check_field("u", u, grid)
    if a is not None:
        _check_field("a", a, grid)
    return _divergence(u, grid, _all_faces(a, grid))


def _divergence(u: Tensor, grid: Grid, faces: list[Tensor | None]) -> Tensor:
    """``div(a grad u)`` from ``a`` between the points, one field an axis (None for 1)."""
    total = 0.0
    for axis, h, face in zip(range(-grid.dims, 0), grid.spacing, faces, strict=True):
        slope = torch.diff(_extend(u, axis, grid.boundary), dim=axis)
        flux = slope if face is None else slope * face
        total = total + torch.diff(flux, dim=axis) / h**2
    return total


def _all_faces(a: Tensor | None, grid: Grid) -> list[Tensor | None]:
    if a is None:
        return [None] * grid.dims
    return [_faces(a, axis, grid.boundary) for axis in range(-grid.dims, 0)]


def _extend(u: Tensor, axis: int, boundary: str) -> Tensor:
    """One more value on both ends of an axis, as the boundary has it."""
    first, last = u.narrow(axis, 0, 1), u.narrow(axis, u.shape[axis] - 1, 1)
    if boundary == "periodic":
        return torch.cat([last, u, first], axis)
    if boundary == "neumann":
        return torch.cat([first, u, last], axis)
    return torch.cat([torch.zeros_like(first), u, torch.zeros_like(last)], axis)


def _faces(a: Tensor, axis: int, boundary: str) -> Tensor:
    """``a`` between neighbors, ends included: one value more than points."""
    around = "periodic" if boundary == "periodic" else "neumann"
    a = _extend(a, axis, around)
    n = a.shape[axis]
    left, right = a.narrow(axis, 0, n - 1), a.narrow(axis, 1, n - 1)
    return 2 * left * right / (left + right)


def diagonal(grid: Grid, a: Float[Tensor, "*c"] | None = None, **like) -> Tensor:
    """The diagonal of ``-laplacian``: what Jacobi divides by. ``like`` is dtype and device."""
    a = torch.ones(grid.shape, **like) if a is None else a
    total = 0.0
    for axis, h in zip(range(-grid.dims, 0), grid.spacing, strict=True):
        faces = _faces(a, axis, grid.boundary)
        n = a.shape[axis]
        if grid.boundary == "neumann":
            keep = torch.ones_like(faces)
            keep.narrow(axis, 0, 1).zero_()
            keep.narrow(axis, n, 1).zero_()
            faces = faces * keep
        total = total + (faces.narrow(axis, 0, n) + faces.narrow(axis, 1, n)) / h**2
    return total


def spectral_gradient(u: Float[Tensor, "*b"], grid: Grid) -> Float[Tensor, "d *b"]:
    """The gradient of a periodic field, exact for every wave the grid resolves.

    The highest wave of an even grid has no derivative that the grid could show; it gets none.

    Raises:
        ValueError: a grid that is not periodic, or a field of another shape.
    """
    _check_field("u", u, grid)
    _need_periodic(grid, "spectral_gradient")
    axes = tuple(range(-grid.dims, 0))
    waves = torch.fft.fftn(u, dim=axes, norm="forward")
    out = []
    for axis, k in zip(axes, wavenumbers(grid, u), strict=True):
        n = u.shape[axis]
        if n % 2 == 0:
            k = k.clone()
            k[n // 2] = 0
        k = k.reshape(-1, *[1] * (-axis - 1))
        out.append(torch.fft.ifftn(1j * k * waves, dim=axes, norm="forward").real)
    return torch.stack(out)


def wavenumbers(grid: Grid, like: Tensor) -> list[Float[Tensor, "n"]]:
    """``2 pi k / L`` along each axis, in the order of ``torch.fft.fft``."""
    dtype = torch.zeros((), dtype=like.dtype).real.dtype
    return [
        2 * math.pi * torch.fft.fftfreq(n, L / n, dtype=dtype, device=like.device)
        for n, L in zip(grid.shape, grid.lengths, strict=True)
    ]


def inverse_laplacian(
    f: Float[Tensor, "*b"], grid: Grid, symbol: Literal["stencil", "spectral"] = "stencil"
) -> Float[Tensor, "*b"]:
    """The ``u`` with ``laplacian(u) = f``, by fast Fourier transforms.

    A Dirichlet field is continued as an odd function, a Neumann field as an even one; both are then
    periodic. Where constants are in the kernel (periodic, Neumann), the mean of ``f`` is ignored
    and that of ``u`` is zero.

    Args:
        symbol: ``"stencil"`` inverts :func:`laplacian` to rounding; ``"spectral"`` inverts the
            operator that has no grid, ``-|k|^2``.

    Raises:
        ValueError: another ``symbol``, or a field that does not end in the grid's shape.
    """
    _check_field("f", f, grid)
    if symbol not in ("stencil", "spectral"):
        raise ValueError(f"symbol={symbol!r}: allowed are 'stencil' and 'spectral'")
    wide, around = f, grid
    if grid.boundary != "periodic":
        for axis in range(-grid.dims, 0):
            wide = _reflect(wide, axis, grid.boundary)
        lengths = tuple(2 * L for L in grid.lengths)
        around = Grid(tuple(wide.shape[-grid.dims :]), lengths, "periodic")
    axes = tuple(range(-grid.dims, 0))
    total = 0.0
    for axis, k, h in zip(axes, wavenumbers(around, f), around.spacing, strict=True):
        value = k.square() if symbol == "spectral" else (2 / h * torch.sin(k * h / 2)).square()
        total = total + value.reshape(-1, *[1] * (-axis - 1))
    total = torch.where(total > 0, total, torch.inf)
    u = torch.fft.ifftn(-torch.fft.fftn(wide, dim=axes) / total, dim=axes).real
    start = 1 if grid.boundary == "dirichlet" else 0
    for axis, n in zip(axes, grid.shape, strict=True):
        u = u.narrow(axis, start, n)
    return u


def _reflect(u: Tensor, axis: int, boundary: str) -> Tensor:
    """One period of the odd (zero, u, zero, -u reversed) or even (u, u reversed) continuation."""
    if boundary == "neumann":
        return torch.cat([u, u.flip(axis)], axis)
    zero = torch.zeros_like(u.narrow(axis, 0, 1))
    return torch.cat([zero, u, zero, -u.flip(axis)], axis)


# --------------------------------------------------------------------------- between grids


def restrict(
    u: Float[Tensor, "*b"], grid: Grid, how: Literal["full", "inject"] = "full"
) -> Float[Tensor, "*c"]:
    """A field on ``grid`` brought to ``grid.coarse()``.

    ``"full"`` weights neighbors by 1/4, 1/2, 1/4 along each axis (two cells by 1/2 on a Neumann
    grid) and is the transpose of :func:`prolong` up to the factor ``2^d``. ``"inject"`` takes the
    value at the coarse point (for cells, which have none, the same average).

    Raises:
        ValueError: a grid that cannot be halved, another ``how``, a field of another shape.
    """
    _check_field("u", u, grid)
    if how not in ("full", "inject"):
        raise ValueError(f"how={how!r}: allowed are 'full' and 'inject'")
    coarse = grid.coarse()
    for axis, m in zip(range(-grid.dims, 0), coarse.shape, strict=True):
        if grid.boundary == "neumann":
            u = u.unflatten(axis, (m, 2)).mean(axis)
            continue
        wide = _extend(u, axis, grid.boundary)
        # wide starts one point earlier; coarse point i is fine point 2i (periodic) or 2i+1.
        start = 0 if grid.boundary == "periodic" else 1
        parts = [
            wide.index_select(axis, torch.arange(m, device=u.device) * 2 + start + j)
            for j in range(3)
        ]
        u = parts[1] if how == "inject" else 0.25 * (parts[0] + 2 * parts[1] + parts[2])
    return u


def prolong(u: Float[Tensor, "*b"], grid: Grid) -> Float[Tensor, "*c"]:
    """A field on ``grid`` brought to ``grid.fine()`` by linear interpolation.

    Cells of a Neumann grid pass their value to the two they are cut into, along each axis.

    Raises:
        ValueError: a field that does not end in the grid's shape.
    """
    _check_field("u", u, grid)
    for axis in range(-grid.dims, 0):
        if grid.boundary == "neumann":
            u = u.repeat_interleave(2, axis)
            continue
        n = u.shape[axis]
        wide = _extend(u, axis, grid.boundary)
        half = 0.5 * (wide.narrow(axis, 0, n + 1) + wide.narrow(axis, 1, n + 1))
        if grid.boundary == "periodic":  # u_0, between 0 and 1, u_1, ...
            pairs = torch.stack([u, half.narrow(axis, 1, n)], axis % u.ndim + 1)
            u = pairs.flatten(axis % u.ndim, axis % u.ndim + 1)
        else:  # between the wall and 0, u_0, between 0 and 1, ..., between the last and the wall
            pairs = torch.stack([half.narrow(axis, 0, n), u], axis % u.ndim + 1)
            both = pairs.flatten(axis % u.ndim, axis % u.ndim + 1)
            u = torch.cat([both, half.narrow(axis, n, 1)], axis)
    return u


def resample(
    u: Float[Tensor, "*b"],
    shape: Sequence[int],
    how: Literal["linear", "fourier"] = "linear",
    boundary: Boundary = "periodic",
) -> Float[Tensor, "*c"]:
    """A field on the last ``len(shape)`` axes, brought to another number of points on the same box.

    ``"linear"`` interpolates between neighbors (and the boundary's zeros, for Dirichlet; near a
    Neumann wall the value stays). ``"fourier"`` keeps the waves that both grids resolve: exact for
    a band-limited field, up or down; Dirichlet fields go through their odd continuation.

    Raises:
        ValueError: another ``how`` or ``boundary``; Fourier for a Neumann field; too few axes.
    """
    _check_boundary(boundary)
    if how not in ("linear", "fourier"):
        raise ValueError(f"how={how!r}: allowed are 'linear' and 'fourier'")
    if len(shape) > u.ndim or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)}: allowed are 1 to {u.ndim} numbers, each >= 1")
    if how == "fourier" and boundary == "neumann":
        raise ValueError("how='fourier': allowed are the boundaries 'periodic' and 'dirichlet'")
    for axis, m in zip(range(-len(shape), 0), shape, strict=True):
        if m == u.shape[axis]:
            continue
        if how == "linear":
            u = _linear_axis(u, axis, m, boundary)
        elif boundary == "periodic":
            u = _fourier_axis(u, axis, m)
        else:
            u = _fourier_axis(_reflect(u, axis, boundary), axis, 2 * (m + 1)).narrow(axis, 1, m)
    return u


def _linear_axis(u: Tensor, axis: int, m: int, boundary: str) -> Tensor:
    n = u.shape[axis]
    at = Grid((m,), 1.0, boundary).points()[0]
    first, h = Grid((n,), 1.0, boundary).points()[0][0], Grid((n,), 1.0, boundary).spacing[0]
    # The position in a field with one more value on both ends.
    where = (at - first) / h + 1
    left = where.floor().clamp(0, n).long()
    weight = (where - left).to(u).reshape(-1, *[1] * (-axis - 1))
    wide = _extend(u, axis, boundary)
    left = left.to(u.device)
    a, b = wide.index_select(axis, left), wide.index_select(axis, left + 1)
    return a + weight * (b - a)


def _fourier_axis(u: Tensor, axis: int, m: int) -> Tensor:
    n = u.shape[axis]
    waves = torch.fft.rfft(u, dim=axis, norm="forward")
    k = min(n, m)
    kept = waves.narrow(axis, 0, k // 2 + 1)
    if k % 2 == 0 and n != m:
        # The highest wave stands for two on the finer grid and for their sum on the coarser one.
        factor = torch.ones(k // 2 + 1, dtype=u.dtype, device=u.device)
        factor[-1] = 0.5 if n < m else 2.0
        kept = kept * factor.reshape(-1, *[1] * (-axis - 1))
    return torch.fft.irfft(kept, n=m, dim=axis, norm="forward")


# --------------------------------------------------------------------------- multigrid


def jacobi(
    u: Float[Tensor, "*b"] | None,
    f: Float[Tensor, "*b"],
    grid: Grid,
    a: Float[Tensor, "*c"] | None,
    steps: int,
    omega: float,
) -> Float[Tensor, "*b"]:
    """Damped Jacobi for ``-div(a grad u) = f``: ``u <- u + omega (f - A u) / diag(A)``.

    ``u`` None starts from zero.
    """
    return _smooth(u, f, _level(grid, a, f), steps, omega)


def v_cycle(
    f: Float[Tensor, "*b"],
    grid: Grid,
    a: Float[Tensor, "*c"] | None = None,
    u: Float[Tensor, "*b"] | None = None,
    *,
    pre: int = 1,
    post: int = 1,
    omega: float = 0.8,
    visits: int = 1,
) -> Float[Tensor, "*b"]:
    """One multigrid cycle for ``-div(a grad u) = f``, starting from ``u`` (zero if None).

    Damped Jacobi, full weighting, linear interpolation, the coefficient restricted and the operator
    built anew on every grid, down to the last grid that can be halved and one below, where the same
    smoothing is all that is done. For the Poisson equation the error shrinks by a factor that does
    not depend on the grid (about 0.36 with one sweep before and one after, in two dimensions).

    Args:
        pre, post: Jacobi sweeps before and after the coarse grid.
        visits: how often the coarse grid is visited: 1 is the V-cycle, 2 the W-cycle.

    Raises:
        ValueError: a field of another shape, or ``visits`` below 1.
    """
    _check_field("f", f, grid)
    if visits < 1 or pre < 0 or post < 0:
        raise ValueError(f"pre={pre}, post={post}, visits={visits}: allowed are >= 0, >= 0, >= 1")
    return cycle(f, hierarchy(grid, a, f), u, pre=pre, post=post, omega=omega, visits=visits)


@dataclass(frozen=True)
class Level:
    """What multigrid needs of one grid: ``a`` between its points, the operator's diagonal."""

    grid: Grid
    faces: list[Tensor | None]
    diagonal: Tensor


def hierarchy(grid: Grid, a: Float[Tensor, "*c"] | None, like: Float[Tensor, "*b"]) -> list[Level]:
    """All grids, finest first; made once where many cycles run. ``like`` has dtype and device."""
    levels = [_level(grid, a, like)]
    while grid.can_coarsen:
        a = None if a is None else _restrict_coefficient(a, grid)
        grid = grid.coarse()
        levels.append(_level(grid, a, like))
    return levels


def cycle(
    f: Float[Tensor, "*b"],
    levels: list[Level],
    u: Float[Tensor, "*b"] | None = None,
    *,
    pre: int = 1,
    post: int = 1,
    omega: float = 0.8,
    visits: int = 1,
) -> Float[Tensor, "*b"]:
    """:func:`v_cycle` on a :func:`hierarchy`."""
    here, grid = levels[0], levels[0].grid
    u = _smooth(u, f, here, pre, omega)
    if len(levels) > 1:
        f_coarse, e = restrict(f + _divergence(u, grid, here.faces), grid), None
        for _ in range(visits):
            e = cycle(f_coarse, levels[1:], e, pre=pre, post=post, omega=omega, visits=visits)
        u = u + prolong(e, levels[1].grid)
    return _smooth(u, f, here, post, omega)


def _level(grid: Grid, a: Tensor | None, like: Tensor) -> Level:
    diag = diagonal(grid, a, dtype=like.dtype, device=like.device)
    return Level(grid, _all_faces(a, grid), diag)


def _smooth(u: Tensor | None, f: Tensor, level: Level, steps: int, omega: float) -> Tensor:
    if u is None:  # the first step from zero has no A u
        if steps == 0:
            return torch.zeros_like(f)
        u, steps = omega * f / level.diagonal, steps - 1
    for _ in range(steps):
        u = u + omega * (f + _divergence(u, level.grid, level.faces)) / level.diagonal
    return u


def _restrict_coefficient(a: Tensor, grid: Grid) -> Tensor:
    # Full weighting would pull in the Dirichlet zeros outside; the value is continued instead.
    outside = torch.ones_like(a)
    return restrict(a, grid) / restrict(outside, grid)


# --------------------------------------------------------------------------- errors of fields


def relative_l2(u: Float[Tensor, "b ..."], v: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """``||u - v|| / ||v||`` of each sample, over all other axes."""
    return (u - v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)


def relative_h1(
    u: Float[Tensor, "b c *shape"],
    v: Float[Tensor, "b c *shape"],
    grid: Grid,
    how: Literal["difference", "spectral"] = "difference",
    cutoff: float | None = None,
) -> Float[Tensor, "b"]:
    """``||u - v|| / ||v||`` of each sample in the norm ``||u||^2 + ||grad u||^2``.

    ``"difference"``: one difference for every pair of neighbors, the boundary's values included.
    ``"spectral"``: Fourier coefficients weighted by ``sqrt(1 + |k|^2)`` with *integer* ``k``, the
    norm that neural operators are trained on; it takes the field as periodic whatever it is.
    ``cutoff`` leaves the gradient's weight out from that wave number on, along each axis.

    Raises:
        ValueError: another ``how``, or fields that do not end in the grid's shape.
    """
    _check_field("u", u, grid)
    if how == "spectral":
        axes, k2 = tuple(range(-grid.dims, 0)), 0.0
        for axis, n in zip(axes, grid.shape, strict=True):
            k = torch.fft.fftfreq(n, 1 / n, dtype=u.dtype, device=u.device)
            if cutoff is not None:
                k = k * (k.abs() < cutoff)
            k2 = k2 + k.square().reshape(-1, *[1] * (-axis - 1))
        waves = torch.fft.fftn(torch.stack([u - v, v]), dim=axes, norm="forward")
        energy = (waves.abs().square() * (1 + k2)).flatten(2).sum(2)
    elif how == "difference":
        both = torch.stack([u - v, v])
        energy = both.flatten(2).square().sum(2)
        for axis, h in zip(range(-grid.dims, 0), grid.spacing, strict=True):
            slope = torch.diff(_extend(both, axis, grid.boundary), dim=axis) / h
            if grid.boundary == "periodic":  # the pair across the seam is there twice
                slope = slope.narrow(axis, 0, both.shape[axis])
            energy = energy + slope.flatten(2).square().sum(2)
    else:
        raise ValueError(f"how={how!r}: allowed are 'difference' and 'spectral'")
    return (energy[0] / energy[1]).sqrt()


# --------------------------------------------------------------------------- checks


def _check_boundary(boundary: str) -> None:
    if boundary not in BOUNDARIES:
        names = ", ".join(map(repr, BOUNDARIES))
        raise ValueError(f"boundary={boundary!r}: allowed are {names}")


def _check_field(name: str, u: Tensor, grid: Grid) -> None:
    if u.ndim < grid.dims or tuple(u.shape[-grid.dims :]) != grid.shape:
        raise ValueError(f"{name}: shape {tuple(u.shape)} does not end in the grid's {grid.shape}")


def _need_periodic(grid: Grid, what: str) -> None:
    if grid.boundary != "periodic":
        raise ValueError(f"{what} needs a periodic grid, got boundary={grid.boundary!r}")
