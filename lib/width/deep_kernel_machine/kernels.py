"""Kernels of Gram matrices, the divergence between two of them, and the linear closed form.

A kernel here is a function ``(a, b, c) -> k`` of two points' squared lengths ``a``, ``b`` and
their inner product ``c``, entry by entry and of any shapes that broadcast. It never sees the
points: of the layer below, the next one knows the Gram matrix and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lib.models.infinite_width import relu_dual

GramKernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def linear(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``K(G) = G``: a deep linear model."""
    return c.clone()


def squared_exponential(length: float = 1.0) -> GramKernel:
    """``exp(-(a - 2 c + b) / (2 length^2))``: the distance read off the Gram matrix.

    Raises:
        ValueError: ``length`` is not a finite number above 0.
    """
    if not 0 < length < math.inf:
        raise ValueError(f"length={length}: allowed is a finite number above 0")
    return lambda a, b, c: torch.exp(-(a - 2 * c + b) / (2 * length**2))


def arc_cosine(normalized: bool = True) -> GramKernel:
    """The covariance of ReLU features with gain 2, which keeps variances (Cho and Saul, 2009).

    Args:
        normalized: first scale every point to length one, so that only angles count and the
            diagonal of ``K(G)`` is one. A point of length zero has no angle and makes it NaN.
    """

    def kernel(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        if not normalized:
            return relu_dual(a, b, c, gain=2.0)[0]
        one = torch.ones_like(c)
        return relu_dual(one, one, c / (a * b).sqrt(), gain=2.0)[0]

    return kernel


def polynomial(degree: int, offset: float = 1.0) -> GramKernel:
    """``(c + offset)^degree``.

    Raises:
        ValueError: ``degree`` is no whole number above 0, or ``offset`` not finite and 0 or more:
            the kernel is then not positive.
    """
    if degree != int(degree) or degree < 1 or not 0 <= offset < math.inf:
        raise ValueError(
            f"degree={degree}, offset={offset}: allowed are 1, 2, .. and a finite number >= 0"
        )
    return lambda a, b, c: (c + offset) ** degree


def sum_kernel(*kernels: GramKernel, weights: Sequence[float] | None = None) -> GramKernel:
    """A weighted sum of kernels, with weights one where none are given.

    Raises:
        ValueError: no kernels, another number of weights, one that is negative or not finite.
    """
    weights = [1.0] * len(kernels) if weights is None else list(weights)
    finite = all(0 <= w < math.inf for w in weights)
    if not kernels or len(weights) != len(kernels) or not finite:
        raise ValueError(
            f"weights={weights} for {len(kernels)} kernels: allowed is one kernel or more, and a "
            "finite weight of 0 or more for each"
        )
    return lambda a, b, c: sum(w * kernel(a, b, c) for w, kernel in zip(weights, kernels))


def kernel_of(
    G: Float[Tensor, "*batch p p"], kernel: GramKernel, jitter: float = 0.0
) -> Float[Tensor, "*batch p p"]:
    """``K(G) + jitter I``."""
    v = G.diagonal(dim1=-2, dim2=-1)
    K = kernel(v[..., :, None], v[..., None, :], G)
    return K + jitter * torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)


def kl_gram(
    G: Float[Tensor, "*batch p p"], K: Float[Tensor, "*batch p p"], taylor: bool = False
) -> Float[Tensor, "*batch"]:
    """``KL( N(0, G) || N(0, K) ) = (Tr(K^-1 G) - log det(K^-1 G) - P) / 2``, in nats.

    The order matters: the learned Gram matrix comes first.

    Args:
        taylor: the second order in ``E = G^-1 K - I`` instead, ``Tr(E E) / 4``: near ``G = K``,
            where the three terms above cancel, it keeps its digits.

    Raises:
        ValueError: matrices of other shapes, or one that is not finite, symmetric and positive
            definite.
    """
    if G.shape != K.shape or G.ndim < 2 or G.shape[-1] != G.shape[-2]:
        raise ValueError(f"G {tuple(G.shape)} and K {tuple(K.shape)} must be square, of one shape")
    L_G, L_K = _factor(G, "G"), _factor(K, "K")
    if taylor:
        E = torch.cholesky_solve(K - G, L_G)
        return (E * E.mT).sum((-2, -1)) / 4
    ratio = torch.linalg.solve_triangular(L_K, L_G, upper=False)  # triangular, like both
    volume = ratio.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (ratio.square().sum((-2, -1)) - G.shape[-1]) - volume


def kl_factors(
    V: Float[Tensor, "*batch p p"], L: Float[Tensor, "*batch p p"]
) -> Float[Tensor, "*batch"]:
    """``kl_gram(V V^T, L L^T)`` for any square ``V`` and a lower triangular ``L``."""
    ratio = torch.linalg.solve_triangular(L, V, upper=False)
    return kl_ratio(ratio)


def kl_ratio(M: Float[Tensor, "*batch p p"]) -> Float[Tensor, "*batch"]:
    """``kl_gram(V V^T, L L^T)`` from the ratio ``M = L^-1 V``; zero where ``M`` is orthogonal."""
    volume = torch.linalg.slogdet(M).logabsdet
    return 0.5 * (M.square().sum((-2, -1)) - M.shape[-1]) - volume


def linear_dkm_closed_form(
    G0: Float[Tensor, "p p"],
    Gout: Float[Tensor, "p p"],
    depth: int,
    nu: Sequence[float] | None = None,
) -> list[Float[Tensor, "p p"]]:
    """``G_1 .. G_depth`` of the deep linear machine between the Gram matrices of input and output.

    ``G_l = G_0 (G_0^-1 G_out)^{l / (depth + 1)}`` for equal ``nu``: the geodesic between the two
    matrices. In the coordinates where ``G_0 = I`` all layers have ``G_out``'s eigenvectors, and
    the growth ``r_l`` of an eigenvalue from layer to layer obeys ``nu_l (r_l - 1) = const``.

    Args:
        nu: ``depth + 1`` numbers above 0, the output's last; equal ones if None.

    Raises:
        ValueError: ``depth`` below 1, matrices that are not square and of one shape, ``nu`` of
            another length or not finite and above 0, a matrix that is not positive definite.
    """
    if depth != int(depth) or depth < 1:
        raise ValueError(f"depth={depth}: allowed is a whole number, 1 or more")
    if G0.shape != Gout.shape or G0.ndim != 2 or G0.shape[0] != G0.shape[1]:
        raise ValueError(
            f"G0 {tuple(G0.shape)} and Gout {tuple(Gout.shape)} must be square, of one shape"
        )
    nu = [1.0] * (depth + 1) if nu is None else [float(v) for v in nu]
    if len(nu) != depth + 1 or not all(0 < v < math.inf for v in nu):
        raise ValueError(f"nu={nu}: allowed are {depth + 1} finite numbers above 0, one per layer")
    L, _ = _factor(G0, "G0"), _factor(Gout, "Gout")
    half = torch.linalg.solve_triangular(L, Gout, upper=False)
    M = torch.linalg.solve_triangular(L, half.mT, upper=False)
    values, vectors = torch.linalg.eigh((M + M.mT) / 2)
    growth = _growth(values, torch.tensor(nu, dtype=G0.dtype, device=G0.device))
    back = L @ vectors
    return [(back * g) @ back.mT for g in growth.cumprod(0)[:-1]]


def _growth(values: Tensor, nu: Tensor) -> Tensor:
    """``r_l = 1 + c / nu_l`` with the ``c`` of each eigenvalue that makes their product."""
    if (nu == nu[0]).all():
        return values.pow(1 / len(nu)).expand(len(nu), -1)
    # The logarithm of the product grows with c from -inf at -min(nu): bisection cannot fail.
    low = (-nu.min()).expand_as(values)
    high = nu.max() * (values.clamp(min=1) - 1) + 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        above = torch.log1p(middle / nu[:, None]).sum(0) > values.log()
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return 1 + (low + high) / 2 / nu[:, None]


def _factor(G: Tensor, name: str) -> Tensor:
    if not G.is_floating_point() or not torch.isfinite(G).all():
        raise ValueError(f"{name} ({G.dtype}): allowed are finite floating-point numbers")
    if G.numel() and (G - G.mT).abs().max() > 1e-4 * G.abs().max():  # only half of it is read
        raise ValueError(f"{name} is not symmetric")
    L, info = torch.linalg.cholesky_ex(G)
    if info.any():
        raise ValueError(f"{name} is not positive definite; a little jitter on its diagonal helps")
    return L
