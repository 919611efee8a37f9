"""Problems of the paper, made by our own solvers, and what goes with training on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from lib.core.data.fields import darcy, random_field, vorticity
from lib.core.grids import Grid

Kind = Literal["rough", "smooth", "multiscale"]


def darcy_coefficients(
    kind: Kind,
    n: int,
    size: int,
    gen: torch.Generator,
    *,
    modes: int | None = None,
    decay: float = 2.0,
    tau: float = 3.0,
) -> Float[Tensor, "n size size"]:
    """Coefficients ``a`` at ``size x size`` interior nodes of the unit square.

    - ``"rough"``: 12 where a Gaussian cosine field is positive, 3 where it is negative;
    - ``"smooth"``: its exponential, log-normal;
    - ``"multiscale"``: a product of six pairs of waves, the k-th with a wave number drawn from
      ``2^(k-1)`` to ``1.5 * 2^(k-1)``, times pi.

    The draws belong to the functions: another ``size`` sees the same ones (for the Gaussian kinds
    if ``modes`` is given).

    Raises:
        ValueError: another ``kind``.
    """
    grid = Grid((size, size), 1.0, "dirichlet")
    if kind == "multiscale":
        x, y = grid.mesh()
        a = torch.ones(n, size, size, dtype=torch.float64)
        for k in range(6):
            wave = 2**k * (1 + 0.5 * torch.rand(n, 1, 1, generator=gen, dtype=torch.float64))
            a *= 1 + 0.5 * torch.cos(wave * math.pi * (x + y))
            a *= 1 + 0.5 * torch.sin(wave * math.pi * (y - 3 * x))
        return a.float()
    if kind not in ("rough", "smooth"):
        raise ValueError(f"kind={kind!r}: allowed are 'rough', 'smooth' and 'multiscale'")
    field = random_field(
        grid.shape, decay, gen, "neumann", n=n, tau=tau, modes=modes, on=grid
    )  # fmt: skip
    return torch.where(field > 0, 12.0, 3.0) if kind == "rough" else field.exp()


def darcy_data(
    kind: Kind,
    n: int,
    size: int,
    gen: torch.Generator,
    *,
    modes: int | None = None,
    decay: float = 2.0,
    tau: float = 3.0,
    method: str = "direct",
) -> tuple[Float[Tensor, "n 1 size size"], Float[Tensor, "n 1 size size"]]:
    """Pairs (a, u) with ``-div(a grad u) = 1`` and ``u = 0`` on the boundary."""
    a = darcy_coefficients(kind, n, size, gen, modes=modes, decay=decay, tau=tau)
    u = torch.cat([darcy(part, method=method) for part in a.split(64)])
    return a[:, None], u[:, None]


def navier_stokes_data(
    n: int,
    size: int,
    gen: torch.Generator,
    *,
    nu: float = 1e-5,
    times: Sequence[float] = (),
    dt: float = 1e-3,
) -> Float[Tensor, "n t size size"]:
    """Vorticity at ``times`` (1 to 20 where absent) from random starts, periodic unit square.

    Starts are ``7^1.5 N(0, (-Laplace + 49)^-2.5)``; the forcing is
    ``0.1 (sin + cos)(2 pi (x + y))``. Data and setting of the FNO paper.
    """
    grid = Grid((size, size), 1.0, "periodic")
    w0 = random_field(grid.shape, 2.5, gen, "periodic", n=n, tau=7.0, dtype=torch.float64)
    # random_field has unit variance; this is the standard deviation of the covariance as written.
    k = 2 * math.pi * torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    k2 = k[:, None].square() + k.square()
    w0 = w0 * (7**1.5 * (k2 + 49).pow(-2.5).sum().sqrt())
    phase = 2 * math.pi * grid.mesh().sum(0)
    forcing = 0.1 * (phase.sin() + phase.cos())
    times = list(times) or list(range(1, 21))
    return vorticity(w0, nu, times, forcing=forcing, dt=dt).float()


def helmholtz_data(
    n: int,
    size: int,
    gen: torch.Generator,
    *,
    omega: float = 1000.0,
    modes: int | None = None,
    decay: float = 2.0,
    tau: float = 3.0,
) -> tuple[Float[Tensor, "n 1 size size"], Float[Tensor, "n 1 size size"]]:
    """Pairs (c, u) with ``-Laplace(u) - (omega / c)^2 u = 0``: sound in a medium of speed ``c``.

    ``c = 20 + tanh`` of a Gaussian field; no flux through three sides, and unit flux through the
    middle 30 % of the top (M. De Hoop et al., arXiv:2203.13181). Nodes include the boundary.

    Raises:
        ValueError: no sample, or fewer than two points along a side.
    """
    if n < 1 or size < 2:
        raise ValueError(f"n={n}, size={size}: allowed are >= 1 and >= 2")
    nodes = torch.linspace(0, 1, size, dtype=torch.float64)
    # Cosine fields at the nodes: a grid of the same points, read off by its own basis.
    field = _cosine_field(nodes, n, gen, decay, tau, modes or size)
    c = 20 + torch.tanh(field)
    inlet = ((nodes >= 0.35) & (nodes <= 0.65)).double()
    u = torch.stack([helmholtz(omega / speed, inlet) for speed in c])
    return c[:, None].float(), u[:, None].float()


def _cosine_field(nodes, n, gen, decay, tau, modes) -> Float[Tensor, "n s s"]:
    k = math.pi * torch.arange(modes, dtype=torch.float64)
    std = (k[:, None].square() + k.square() + tau**2).pow(-decay / 2)
    std = std / std.square().sum().sqrt()
    basis = math.sqrt(2) * torch.cos(nodes[:, None] * k)
    basis[:, 0] = 1
    draw = torch.randn(n, modes, modes, generator=gen, dtype=torch.float64) * std
    return torch.einsum("nij,xi,yj->nxy", draw, basis, basis)


def helmholtz(
    k: Float[Tensor, "s s"], top: Float[Tensor, "s"], source: Float[Tensor, "s s"] | None = None
) -> Float[Tensor, "s s"]:
    """``-Laplace(u) - k^2 u = source`` with flux ``top`` through ``y = 1`` and none elsewhere.

    Finite volumes around nodes that include the boundary (half and quarter cells there): second
    order. Waves need points: at ``k h = 0.5``, some 12 a wavelength, the phase is off by one
    percent a wavelength. First axis x, second y.

    Raises:
        ValueError: shapes that do not fit together, or fewer than two points along a side.
    """
    s = len(k)
    if s < 2 or tuple(k.shape) != (s, s) or len(top) != s:
        raise ValueError(
            f"k: {tuple(k.shape)}, top: {tuple(top.shape)}; allowed are (s, s) and (s,), s >= 2"
        )
    if source is not None and source.shape != k.shape:
        raise ValueError(f"source: {tuple(source.shape)}; allowed is that of k, {tuple(k.shape)}")
    h = 1 / (s - 1)
    share = np.ones(s)  # of a full cell, along one axis
    share[[0, -1]] = 0.5
    slope = sparse.diags([-np.ones(s - 1), np.ones(s - 1)], [0, 1], shape=(s - 1, s)) / h
    stiff = slope.T @ slope * h  # one axis, cells of width h
    mass = sparse.diags(share * h)
    k2 = k.double().numpy() ** 2
    weights = np.outer(share, share) * h * h
    matrix = sparse.kron(stiff, mass) + sparse.kron(mass, stiff)
    matrix = matrix - sparse.diags((k2 * weights).ravel())
    b = np.zeros((s, s)) if source is None else source.double().numpy() * weights
    b[:, -1] += top.double().numpy() * share * h
    return torch.from_numpy(splu(matrix.tocsc()).solve(b.ravel())).view(s, s)


# --------------------------------------------------------------------------- training


class Normalizer(nn.Module):
    """``encode`` to mean 0 and standard deviation 1, ``decode`` back.

    Args:
        x: the training set.
        pointwise: a mean and a deviation for every place (the authors' PGN) or one of each (GN).
        eps: added to the deviation, for places that never change.

    Raises:
        ValueError: fewer than two samples, which have no deviation.
    """

    def __init__(self, x: Float[Tensor, "n c *s"], pointwise: bool = False, eps: float = 1e-5):
        super().__init__()
        if len(x) < 2:
            raise ValueError(f"x: {len(x)} samples; allowed are 2 or more")
        self.eps = eps
        mean, std = (x.mean(0), x.std(0)) if pointwise else (x.mean(), x.std())
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def encode(self, x: Tensor) -> Tensor:
        return (x - self.mean) / (self.std + self.eps)

    def decode(self, x: Tensor) -> Tensor:
        return x * (self.std + self.eps) + self.mean


def one_cycle(
    total: int, *, warmup: float = 0.2, div: float = 2.0, final_div: float = 100.0
) -> Callable[[int], float]:
    """Factor on the largest rate: ``1/div`` up to 1 in the first share ``warmup``, then down.

    Both ways along half a cosine; the last step has ``1 / (div * final_div)``. The same numbers as
    ``torch.optim.lr_scheduler.OneCycleLR`` (L. Smith and N. Topin, arXiv:1708.07120).

    Raises:
        ValueError: ``total`` below 2, or ``warmup`` outside 0 to 1.
    """
    if total < 2 or not 0 < warmup < 1:
        raise ValueError(f"total={total}, warmup={warmup}: allowed are >= 2 and between 0 and 1")
    peak = warmup * total - 1
    wave = lambda a, b, p: b + (a - b) / 2 * (1 + math.cos(math.pi * p))

    def factor(step: int) -> float:
        if 0 < peak and step <= peak:
            return wave(1 / div, 1.0, step / peak)
        share = min(1.0, (step - peak) / (total - 1 - peak))
        return wave(1.0, 1 / (div * final_div), share)

    return factor
