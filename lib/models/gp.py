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


def _add_to_diagonal(K: Tensor, value: float) -> Tensor:
    K = K.to(torch.float64, copy=True)
    K.diagonal(dim1=-2, dim2=-1).add_(value)
    return K


def _distances(x1: Tensor, x2: Tensor, length: float) -> Tensor:
    if length <= 0:
        raise ValueError(f"length={length}: allowed is a number above 0")
    # Differences, not the expanded square: that loses the small distances.
    return torch.cdist(x1, x2, compute_mode="donot_use_mm_for_euclid_dist") / length
