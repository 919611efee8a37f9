"""Random functions, and the partial differential equations that turn them into other functions.

Every solver is our own finite-volume or Fourier code; sparse factorizations come from SciPy. What
each one is worth is stated where it is defined and tested: order of convergence, conservation, and
closed-form solutions. Fields have batch axes in front; where the numbers stand is a
:class:`lib.core.grids.Grid`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from lib.core.grids import (
    Boundary,
    Grid,
    _check_boundary,
    _check_field,
    _divergence,
    _faces,
    cycle,
    hierarchy,
    inverse_laplacian,
    wavenumbers,
)


def random_field(
    shape: Sequence[int],
    decay: float,
    gen: torch.Generator,
    boundary: Boundary = "periodic",
    *,
    n: int = 1,
    tau: float = 3.0,
    modes: int | None = None,
    on: Grid | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n *shape"]:
    """``n`` draws of the Gaussian field ``N(0, (-Laplace + tau^2)^(-decay))`` on the unit box.

    A sum of waves that satisfy ``boundary`` (Fourier, sine or cosine) with independent normal
    coefficients of standard deviation ``(|k|^2 + tau^2)^(-decay / 2)``, scaled so that the variance
    of a value, averaged over the box, is one. Larger ``decay`` is smoother; ``tau`` is one over the
    correlation length. The draw belongs to the *function*: with ``modes`` given, another ``shape``
    and the same generator sample the same functions at other points.

    Args:
        modes: waves along each axis, the constant included for periodic and cosine fields;
            as many as the shortest axis resolves where absent.
        on: where to evaluate, if not on the boundary's own grid: cosine fields at interior nodes,
            for instance.

    Raises:
        ValueError: another ``boundary``; ``modes``, ``n`` or ``decay`` out of range; ``on`` of
            another shape.
    """
    _check_boundary(boundary)
    grid = Grid(tuple(shape), 1.0, boundary) if on is None else on
    if grid.shape != tuple(shape):
        raise ValueError(f"on: shape {grid.shape}; allowed is {tuple(shape)}, that of `shape`")
    if modes is None:
        modes = min(shape) - 1 + min(shape) % 2 if boundary == "periodic" else min(shape)
    if modes < 1 or n < 1 or not decay >= 0:
        raise ValueError(f"modes={modes}, n={n}, decay={decay}: allowed are >= 1, >= 1, >= 0")
    frequencies = _frequencies(modes, boundary)
    bases = [_waves(x, modes, boundary) for x in grid.points()]
    k2 = 0.0
    for axis in range(grid.dims):
        k2 = k2 + frequencies.square().reshape(-1, *[1] * (grid.dims - 1 - axis))
    scale = k2 + tau**2
    if not (scale > 0).all():  # tau = 0: the constant would have infinite variance
        scale = torch.where(scale > 0, scale, torch.inf)
    std = scale ** (-decay / 2)
    std = std / std.square().sum().sqrt()
    field = torch.randn(n, *std.shape, generator=gen, dtype=torch.float64) * std
    for basis in bases:  # the first axis is used up, its points come in last
        field = torch.tensordot(field, basis, dims=([1], [1]))
    return field.to(dtype)


def _frequencies(modes: int, boundary: str) -> Float[Tensor, "modes"]:
    j = torch.arange(modes, dtype=torch.float64)
    if boundary == "periodic":  # 1, cos 1, sin 1, cos 2, sin 2, ...
        return 2 * math.pi * torch.floor((j + 1) / 2)
    return math.pi * (j + 1 if boundary == "dirichlet" else j)


def _waves(x: Tensor, modes: int, boundary: str) -> Float[Tensor, "x modes"]:
    """The waves of one axis at ``x``, each with mean square one on [0, 1]."""
    phase = x[:, None] * _frequencies(modes, boundary)
    if boundary == "dirichlet":
        return math.sqrt(2) * torch.sin(phase)
    wave = math.sqrt(2) * torch.cos(phase)
    if boundary == "periodic":
        wave[:, 2::2] = math.sqrt(2) * torch.sin(phase[:, 2::2])
    wave[:, 0] = 1.0
    return wave


# --------------------------------------------------------------------------- elliptic equations


def darcy(
    a: Float[Tensor, "*b"],
    f: Float[Tensor, "*c"] | float = 1.0,
    grid: Grid | None = None,
    *,
    method: Literal["direct", "multigrid"] = "direct",
    tol: float = 1e-10,
    max_steps: int = 200,
) -> Float[Tensor, "*b"]:
    """Pressure of a slow flow: ``-div(a grad u) = f``, ``u = 0`` on the boundary.

    Finite volumes (:func:`lib.core.grids.laplacian`): second order for a smooth ``a``; where ``a``
    jumps, the harmonic means keep the flux continuous and the error is of first order. ``"direct"``
    factorizes one sparse matrix a sample, in float64. ``"multigrid"`` runs conjugate gradients with
    a V-cycle as preconditioner on the whole batch at once, for grids of thousands of points.

    Args:
        a: positive, at the grid's points; two axes of interior nodes where ``grid`` is None.
        tol: relative residual at which multigrid stops.

    Raises:
        ValueError: ``a`` not positive, a grid that is not Dirichlet, another ``method``, a grid
            that multigrid cannot halve.
        RuntimeError: multigrid has not reached ``tol`` after ``max_steps``.
    """
    if grid is None:
        grid = Grid(tuple(a.shape[-2:]), 1.0, "dirichlet")
    _check_field("a", a, grid)
    if grid.boundary != "dirichlet":
        raise ValueError(f"grid: boundary {grid.boundary!r}; allowed is 'dirichlet'")
    if not (a > 0).all():
        raise ValueError("a must be positive everywhere")
    f = torch.as_tensor(f, dtype=a.dtype, device=a.device).expand(a.shape)
    if method == "direct":
        flat_a, flat_f = (t.reshape(-1, *grid.shape) for t in (a, f))
        u = [_solve(_matrix(grid, c), b) for c, b in zip(flat_a, flat_f, strict=True)]
        return torch.stack(u).reshape(a.shape).to(a)
    if method != "multigrid":
        raise ValueError(f"method={method!r}: allowed are 'direct' and 'multigrid'")
    grid.coarse()  # raises where there is none, and says which sizes can be halved
    axes = tuple(range(-grid.dims, 0))
    dot = lambda p, q: (p * q).sum(axes, keepdim=True)
    wide_a, wide_f = a.double(), f.double()
    u, r = torch.zeros_like(wide_f), wide_f.clone()
    levels = hierarchy(grid, wide_a, wide_f)
    p = z = cycle(r, levels)
    rz, target = dot(r, z), tol * dot(wide_f, wide_f).sqrt()
    for _ in range(max_steps):
        if (dot(r, r).sqrt() <= target).all():
            return u.to(a.dtype)
        Ap = -_divergence(p, grid, levels[0].faces)
        step = rz / dot(p, Ap).clamp_min(torch.finfo(torch.float64).tiny)
        u, r = u + step * p, r - step * Ap
        z = cycle(r, levels)
        rz, old = dot(r, z), rz
        p = z + rz / old.clamp_min(torch.finfo(torch.float64).tiny) * p
    worst = (dot(r, r).sqrt() / dot(wide_f, wide_f).sqrt()).max().item()
    raise RuntimeError(f"multigrid: relative residual {worst:.2g} after {max_steps} steps")


def poisson(
    f: Float[Tensor, "*b"], grid: Grid, mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*b"]:
    """``-Laplace(u) = f``, to rounding on the grid; second order in its spacing.

    Without a ``mask`` by fast transforms. With one (True where ``u`` is unknown) ``u`` is zero
    elsewhere, which makes any shape of domain, and one factorization serves the whole batch.

    Raises:
        ValueError: a field of another shape; a mask that is, or a mask without Dirichlet grid.
    """
    _check_field("f", f, grid)
    if mask is None:
        return -inverse_laplacian(f, grid)
    if tuple(mask.shape) != grid.shape or grid.boundary != "dirichlet":
        raise ValueError(
            f"mask: shape {tuple(mask.shape)} on a {grid.boundary} grid; allowed is {grid.shape} "
            "on a Dirichlet grid"
        )
    inside = np.flatnonzero(mask.cpu().numpy())
    matrix = _matrix(grid, torch.ones(grid.shape, dtype=torch.float64))[inside][:, inside]
    b = f.detach().cpu().double().reshape(-1, math.prod(grid.shape)).numpy()
    u = np.zeros_like(b)
    if len(inside):
        u[:, inside] = splu(matrix.tocsc()).solve(b[:, inside].T).T
    return torch.from_numpy(u).reshape(f.shape).to(f)


def _matrix(grid: Grid, a: Tensor) -> sparse.csr_matrix:
    """``-div(a grad .)`` of one Dirichlet field as a sparse matrix, points in C order."""
    a = a.detach().cpu().double()
    number = np.arange(math.prod(grid.shape)).reshape(grid.shape)
    diag = np.zeros(grid.shape)
    rows, columns, values = [], [], []
    for axis, h in enumerate(grid.spacing):
        n = grid.shape[axis]
        faces = _faces(a, axis - grid.dims, "dirichlet").numpy() / h**2
        diag += np.take(faces, range(n), axis) + np.take(faces, range(1, n + 1), axis)
        left = np.take(number, range(n - 1), axis).ravel()
        right = np.take(number, range(1, n), axis).ravel()
        inner = np.take(faces, range(1, n), axis).ravel()
        rows += [left, right]
        columns += [right, left]
        values += [-inner, -inner]
    rows, columns = [*rows, number.ravel()], [*columns, number.ravel()]
    values = np.concatenate([*values, diag.ravel()])
    where = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix((values, where), shape=(number.size, number.size))


def _solve(matrix: sparse.csr_matrix, b: Tensor) -> Tensor:
    # Symmetric positive definite: an ordering for A + A^T, and no pivoting.
    options = {"SymmetricMode": True}
    factor = splu(
        matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options
    )
    return torch.from_numpy(factor.solve(b.detach().cpu().double().numpy().ravel())).view(b.shape)


# --------------------------------------------------------------------------- equations in time


def burgers(
    u0: Float[Tensor, "b n"],
    nu: float,
    times: Sequence[float],
    *,
    length: float = 1.0,
    dt: float | None = None,
) -> Float[Tensor, "b t n"]:
    """Viscous Burgers ``u_t + (u^2 / 2)_x = nu u_xx``, periodic, at the given times.

    Fourier in space with the 2/3 rule, fourth-order Runge-Kutta in time with the viscous part exact
    (integrating factor). Spectrally accurate once the shock's width, about ``nu / max|u|``, spans a
    few points; conserves the mean to rounding.

    Args:
        dt: largest step; half a cell at the initial top speed where absent.

    Raises:
        ValueError: ``nu`` negative, ``times`` not increasing from 0 on, or ``dt`` not positive.
        FloatingPointError: the solution is not finite: a smaller ``dt`` or more points are needed.
    """
    grid = Grid((u0.shape[-1],), length, "periodic")
    k = wavenumbers(grid, u0)[0][: u0.shape[-1] // 2 + 1].abs()
    alias = k < 2 / 3 * k.max()

    def advect(waves: Tensor) -> Tensor:
        u = torch.fft.irfft(waves, n=u0.shape[-1], norm="forward")
        return -0.5j * k * alias * torch.fft.rfft(u * u, norm="forward")

    if dt is None:
        dt = 0.5 * grid.spacing[0] / max(u0.abs().max().item(), 1e-12)
    start = torch.fft.rfft(u0, norm="forward")
    out = _integrate(start, -nu * k.square(), advect, times, dt, nu)
    return torch.fft.irfft(torch.stack(out, 1), n=u0.shape[-1], norm="forward")


def vorticity(
    w0: Float[Tensor, "b n n"],
    nu: float,
    times: Sequence[float],
    *,
    forcing: Float[Tensor, "n n"] | None = None,
    length: float = 1.0,
    dt: float = 1e-3,
) -> Float[Tensor, "b t n n"]:
    """Two-dimensional Navier-Stokes: ``w_t + v . grad w = nu Laplace(w) + forcing``, periodic.

    The velocity is ``v = (psi_y, -psi_x)`` with ``Laplace(psi) = -w``. Scheme and accuracy as in
    :func:`burgers`. A steady shear or a Taylor-Green vortex decays as ``exp(-nu |k|^2 t)`` to
    rounding, and the mean of ``w`` stays.

    Raises:
        ValueError: as :func:`burgers`.
        FloatingPointError: the solution is not finite: a smaller ``dt`` is needed.
    """
    n = w0.shape[-1]
    grid = Grid((n, n), length, "periodic")
    full = wavenumbers(grid, w0)[0]
    kx, ky = full[:, None], full[None, : n // 2 + 1].abs()
    k2 = kx.square() + ky.square()
    inverse = torch.where(k2 > 0, 1 / k2.clamp_min(1e-30), 0.0)
    top = 2 / 3 * full.abs().max()
    alias = (kx.abs() < top) & (ky < top)
    push = 0.0 if forcing is None else torch.fft.rfft2(forcing, norm="forward")

    def advect(waves: Tensor) -> Tensor:
        psi = waves * inverse
        parts = torch.stack([1j * ky * psi, -1j * kx * psi, 1j * kx * waves, 1j * ky * waves])
        vx, vy, wx, wy = torch.fft.irfft2(parts * alias, s=(n, n), norm="forward")
        return push - alias * torch.fft.rfft2(vx * wx + vy * wy, norm="forward")

    start = torch.fft.rfft2(w0, norm="forward")
    out = _integrate(start, -nu * k2, advect, times, dt, nu)
    return torch.fft.irfft2(torch.stack(out, 1), s=(n, n), norm="forward")


def _integrate(
    waves: Tensor,
    linear: Tensor,
    nonlinear: Callable[[Tensor], Tensor],
    times: Sequence[float],
    dt: float,
    nu: float,
) -> list[Tensor]:
    """``w_t = linear w + nonlinear(w)`` by RK4 on ``exp(-linear t) w``; ``w`` at each time."""
    times = [float(t) for t in times]
    if nu < 0 or not dt > 0:
        raise ValueError(f"nu={nu}, dt={dt}: allowed are nu >= 0 and dt > 0")
    if not times or times[0] < 0 or any(b <= a for a, b in zip(times, times[1:], strict=False)):
        raise ValueError(f"times={times}: allowed are increasing numbers from 0 on")
    out, now = [], 0.0
    for end in times:
        steps = math.ceil((end - now) / dt - 1e-9)
        h = (end - now) / max(steps, 1)
        half, whole = torch.exp(linear * h / 2), torch.exp(linear * h)
        for _ in range(steps):
            k1 = nonlinear(waves)
            k2 = nonlinear(half * (waves + h / 2 * k1))
            k3 = nonlinear(half * waves + h / 2 * k2)
            k4 = nonlinear(whole * waves + h * half * k3)
            waves = whole * waves + h / 6 * (whole * k1 + 2 * half * (k2 + k3) + k4)
        if not torch.isfinite(torch.view_as_real(waves)).all():
            raise FloatingPointError(f"the solution is not finite at t={end}: take a smaller dt")
        out.append(waves)
        now = end
    return out
