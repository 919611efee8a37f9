"""Gaussian process regression and kernel ridge regression, with any kernel function."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.linalg import chol

Kernel = Callable[[Tensor, Tensor], Tensor]


def rbf(
    x1: Float[Tensor, "*batch n d"], x2: Float[Tensor, "*batch m d"], length: float = 1.0
) -> Float[Tensor, "*batch n m"]:
    """``exp(-|x - x'|^2 / (2 length^2))``."""
    return torch.exp(-0.5 * _distances(x1, x2, length).square())


def laplace(
    x1: Float[Tensor, "*batch n d"], x2: Float[Tensor, "*batch m d"], length: float = 1.0
) -> Float[Tensor, "*batch n m"]:
    """``exp(-|x - x'| / length)``, the Matern kernel of smoothness 1/2."""
    return torch.exp(-_distances(x1, x2, length))


def matern(
    x1: Float[Tensor, "*batch n d"],
    x2: Float[Tensor, "*batch m d"],
    length: float = 1.0,
    nu: float = 1.5,
) -> Float[Tensor, "*batch n m"]:
    """The Matern kernel of smoothness ``nu``: 0.5 (see ``laplace``), 1.5 or 2.5.

    Raises:
        ValueError: another ``nu``; only half-integers have a closed form.
    """
    if nu not in (0.5, 1.5, 2.5):
        raise ValueError(f"nu={nu}: allowed are 0.5, 1.5 and 2.5")
    r = math.sqrt(2 * nu) * _distances(x1, x2, length)
    polynomial = {0.5: 1.0, 1.5: 1 + r, 2.5: 1 + r + r.square() / 3}[nu]
    return polynomial * torch.exp(-r)


def kernel_ridge(
    K: Float[Tensor, "*batch n n"], y: Float[Tensor, "*batch n o"], lam: float
) -> Float[Tensor, "*batch n o"]:
    """Coefficients ``(K + lam I)^{-1} y``, in float64; a prediction is ``K(x, X) @ coefficients``.

    ``lam`` is the weight of the sum form, ``sum of squares + lam f^T K^{-1} f``. The device must
    have float64, which Apple's ("mps") has not.

    Raises:
        ValueError: ``lam`` is negative, or the matrix is singular (a larger ``lam`` mends it).
    """
    if lam < 0:
        raise ValueError(f"lam={lam}: allowed is 0 or more")
    L, _ = chol(_add_to_diagonal(K, lam), tries=1)
    return torch.cholesky_solve(y.double(), L)


class GP:
    """Posterior of ``f ~ GP(0, kernel)`` given ``y = f(X) + noise``.

    Everything is in float64. Leading axes of the inputs are separate data sets, if the kernel
    allows them.

    Args:
        kernel: ``(x1, x2) -> "n m"``.
        noise: variance of the observation noise.

    Attributes:
        jitter: what the factorization added, relative to the mean diagonal; 0 if nothing.
    """

    def __init__(self, kernel: Kernel, noise: float = 0.0) -> None:
        if noise < 0:
            raise ValueError(f"noise={noise}: a variance cannot be negative")
        self.kernel, self.noise, self.jitter = kernel, noise, 0.0

    def fit(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n o"]) -> GP:
        """Factorize the covariance of the observations.

        Raises:
            ValueError: ``x`` and ``y`` differ in length, or the covariance is singular.
        """
        if x.shape[-2] != y.shape[-2]:
            raise ValueError(f"x has {x.shape[-2]} rows and y {y.shape[-2]}: allowed is one number")
        self.L, self.jitter = chol(_add_to_diagonal(self.kernel(x, x), self.noise))
        self.x, self.y = x, y.double()
        self.alpha = torch.cholesky_solve(self.y, self.L)
        return self

    def predict(
        self, x: Float[Tensor, "*batch m d"], cov: bool = False
    ) -> Float[Tensor, "*batch m o"] | tuple[Tensor, Tensor]:
        """Posterior mean of ``f(x)``, and with ``cov=True`` its covariance (``"m m"``) too."""
        cross = self.kernel(x, self.x).double()
        mean = cross @ self.alpha
        if not cov:
            return mean
        half = torch.linalg.solve_triangular(self.L, cross.mT, upper=False)
        return mean, self.kernel(x, x).double() - half.mT @ half

    def log_marginal(self) -> Float[Tensor, "*batch"]:
        """``log p(y)``, summed over the outputs."""
        n, o = self.y.shape[-2:]
        fit = (self.y * self.alpha).sum((-2, -1))
        volume = self.L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * fit - o * volume - 0.5 * n * o * math.log(2 * math.pi)

    def sample(
        self, x: Float[Tensor, "*batch m d"], n: int, gen: torch.Generator
    ) -> Float[Tensor, "n *batch m"]:
        """``n`` functions at ``x``, from the prior; kernels that are barely singular get jitter."""
        L, self.jitter = chol(self.kernel(x, x))
        z = torch.randn(n, *x.shape[:-1], generator=gen, dtype=torch.float64).to(L.device)
        return (L @ z[..., None])[..., 0]


def sparse_predict(
    Kzz: Float[Tensor, "*batch m m"],
    Kzx: Float[Tensor, "*batch m n"],
    kxx: Float[Tensor, "*batch n"],
    mean: Float[Tensor, "*batch m o"],
    cov: Float[Tensor, "*batch m m"],
    jitter: float = 0.0,
) -> tuple[Float[Tensor, "*batch n o"], Float[Tensor, "*batch n"]]:
    """Marginals at ``x`` of a Gaussian process that is ``N(mean, cov)`` at its inducing points.

    With ``A = Kxz Kzz^{-1}`` the mean is ``A mean`` and the variance
    ``kxx - diag(A Kzx) + diag(A cov A^T)`` (Titsias, 2009; Hensman et al., 2013, 1309.6835).
    ``cov = Kzz`` and ``mean = 0`` give the prior back. In the inputs' precision, differentiable.

    Args:
        kxx: the prior's variance at ``x``.
        cov: shared by the outputs.
        jitter: relative to the mean of ``Kzz``'s diagonal, added before it is factorized.

    Raises:
        ValueError: ``Kzz`` cannot be factorized with that jitter, or ``jitter`` is negative.
    """
    if jitter < 0:
        raise ValueError(f"jitter={jitter}: allowed is 0 or more")
    diagonal = Kzz.diagonal(dim1=-2, dim2=-1)
    shift = jitter * diagonal.mean(-1, keepdim=True).expand_as(diagonal)
    L, info = torch.linalg.cholesky_ex(Kzz + torch.diag_embed(shift))
    if info.any():
        raise ValueError(f"Kzz is not positive definite with jitter={jitter}; try a larger one")
    half = torch.linalg.solve_triangular(L, Kzx, upper=False)
    At = torch.linalg.solve_triangular(L.mT, half, upper=True)
    variance = kxx - half.square().sum(-2) + (At * (cov @ At)).sum(-2)
    return At.mT @ mean, variance


def _add_to_diagonal(K: Tensor, value: float) -> Tensor:
    K = K.to(torch.float64, copy=True)
    K.diagonal(dim1=-2, dim2=-1).add_(value)
    return K


def _distances(x1: Tensor, x2: Tensor, length: float) -> Tensor:
    if length <= 0:
        raise ValueError(f"length={length}: allowed is a number above 0")
    # Differences, not the expanded square: that loses the small distances.
    return torch.cdist(x1, x2, compute_mode="donot_use_mm_for_euclid_dist") / length
