"""Gaussian averages by quadrature, for one variable and for a correlated pair; Hermite series."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def gaussian_mean(
    f: Function, var: Float[Tensor, "*batch"] | float, nodes: int = 64
) -> Float[Tensor, "*batch"]:
    """``E[f(u)]`` for ``u ~ N(0, var)``, elementwise in ``var``, in float64.

    Gauss-Hermite with ``nodes`` points is exact for polynomials of degree ``2 nodes - 1`` and
    converges geometrically for entire functions. A kink (ReLU at 0) leaves an error of about
    ``1 / nodes``: use a closed form there.

    Raises:
        ValueError: a negative variance, or fewer than one node.
    """
    var = torch.as_tensor(var, dtype=torch.float64)
    if (var < 0).any():
        raise ValueError(f"var={var.min().item():.3g}: a variance cannot be negative")
    z, w = _hermite_rule(nodes, var.device)
    return (f(var.sqrt()[..., None] * z) * w).sum(-1)


def gaussian_mean2(
    f: Function, g: Function, cov: Float[Tensor, "*batch 2 2"], nodes: int = 64
) -> Float[Tensor, "*batch"]:
    """``E[f(u) g(v)]`` for ``(u, v) ~ N(0, cov)``, in float64, on a product of two rules.

    The pair is whitened by the Cholesky factor of ``cov``: ``u = sqrt(a) z1`` and
    ``v = (c / sqrt(a)) z1 + sqrt(b - c^2 / a) z2``. A variance of zero, and a correlation that
    rounding has pushed just beyond one, are allowed. Gradients are finite there as well: a pair
    that moves as one gets the derivative of its one variable.

    Raises:
        ValueError: a negative variance, ``c^2 > ab`` by more than rounding, fewer than one node.
    """
    cov = cov.double()
    a, b, c = cov[..., 0, 0], cov[..., 1, 1], cov[..., 0, 1]
    if (a < 0).any() or (b < 0).any():
        raise ValueError("cov: a variance cannot be negative")
    if (c * c > a * b * (1 + 1e-6) + 1e-300).any():
        raise ValueError("cov: c^2 > a b somewhere, which no covariance matrix has")
    z, w = _hermite_rule(nodes, cov.device)
    root = _root(a, a > 0)
    along = torch.where(a > 0, c / torch.where(a > 0, root, 1.0), 0.0)
    gap = b - along * along
    across = _root(gap, gap > 1e-12 * b)
    u = root[..., None] * z
    v = along[..., None, None] * z[:, None] + across[..., None, None] * z
    return torch.einsum("...i,...ij,i,j->...", f(u), g(v), w, w)


def hermite(degree: int, x: Float[Tensor, "*batch"]) -> Float[Tensor, "k *batch"]:
    """``h_0, ..., h_degree`` at ``x``, ``k = degree + 1`` of them: orthonormal under N(0, 1).

    ``h_1 = x``, ``h_2 = (x^2 - 1) / sqrt(2)``, ``h_3 = (x^3 - 3x) / sqrt(6)``, by the recursion
    ``sqrt(k+1) h_{k+1} = x h_k - sqrt(k) h_{k-1}``.

    Raises:
        ValueError: a negative degree.
    """
    if degree < 0:
        raise ValueError(f"degree={degree}: allowed is 0 or more")
    h = [torch.ones_like(x), x]
    for k in range(1, degree):
        h.append((x * h[k] - math.sqrt(k) * h[k - 1]) / math.sqrt(k + 1))
    return torch.stack(h[: degree + 1])


def hermite_coefficients(f: Function, degree: int) -> Float[Tensor, "k"]:
    """``E[f(z) h_k(z)]`` for ``k = 0, ..., degree`` and ``z ~ N(0, 1)``, in float64.

    The sum of their squares tends to ``E[f(z)^2]`` from below as the degree grows. Integrated by
    :func:`gaussian_panels`.

    Raises:
        ValueError: a negative degree.
    """
    z, w = gaussian_panels()
    return hermite(degree, z) @ (f(z) * w)


def gaussian_panels() -> tuple[Float[Tensor, "nodes"], Float[Tensor, "nodes"]]:
    """Nodes and weights for averages under N(0, 1): 20 Legendre nodes on each of 96 panels.

    The panels cut [-12, 12] at 0, so that a function with a kink there (ReLU) loses no digits,
    which Gauss-Hermite would. Use ``gaussian_mean`` where ``f`` is smooth: 64 nodes do.
    """
    z, w = _panels()
    return torch.tensor(z), torch.tensor(w)


def _root(v: Tensor, positive: Tensor) -> Tensor:
    # Zero, with derivative zero, elsewhere: the root has no derivative at 0, and would give NaN.
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


def _hermite_rule(nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    if nodes < 1:
        raise ValueError(f"nodes={nodes}: allowed is 1 or more")
    z, w = _rule(nodes)
    return torch.tensor(z, device=device), torch.tensor(w, device=device)


@lru_cache
def _rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    # Probabilists' nodes; the weights sum to one.
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    return z, w / w.sum()


@lru_cache
def _panels() -> tuple[np.ndarray, np.ndarray]:
    t, w = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(-12, 12, 97)
    half = np.diff(edges)[:, None] / 2
    z = (edges[:-1, None] + half * (1 + t)).ravel()
    return z, (half * w).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
