"""Linear algebra that the chapters share. What torch and scipy have is called there directly."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def chol(
    K: Float[Tensor, "*batch n n"], jitter: float = 0.0, tries: int = 8
) -> tuple[Float[Tensor, "*batch n n"], float]:
    """Cholesky factor of a positive definite ``K`` in float64, and the jitter that it took.

    The device must have float64, which Apple's ("mps") has not.

    The jitter is relative to the mean of the diagonal. It starts at ``jitter`` and, where the
    factorization fails, grows tenfold from 1e-14; the second result is what was added in the end,
    so a caller can report it. Nothing is added to a matrix that needs nothing.

    Raises:
        ValueError: ``K`` is not square or not finite, or still not positive definite after
            ``tries`` attempts.
    """
    if K.ndim < 2 or K.shape[-1] != K.shape[-2]:
        raise ValueError(f"K must be square, got shape {tuple(K.shape)}")
    if jitter < 0:
        raise ValueError(f"jitter={jitter}: allowed is 0 or more")
    K = K.double()
    if not torch.isfinite(K).all():
        raise ValueError("K has entries that are not finite")
    diagonal = K.diagonal(dim1=-2, dim2=-1)
    for _ in range(tries):
        shifted = K
        if jitter > 0:
            more = jitter * diagonal.mean(-1, keepdim=True).expand_as(diagonal)
            shifted = K + torch.diag_embed(more)
        L, info = torch.linalg.cholesky_ex(shifted)
        if not info.any():
            return L, jitter
        jitter = max(10 * jitter, 1e-14)
    raise ValueError(
        f"K is not positive definite, even with {jitter / 10:.0e} of its mean diagonal added; "
        "duplicate inputs need a noise term"
    )


def random_orthogonal(
    n: int, gen: torch.Generator, k: int | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "k n"]:
    """``k`` orthonormal rows in ``n`` dimensions, uniform under the Haar measure (all if None).

    The QR factorization of a Gaussian matrix, with the signs of R's diagonal moved to Q: without
    them the distribution depends on the factorization's convention and is not uniform.

    Raises:
        ValueError: ``n`` below 1, or ``k`` not between 1 and ``n``.
    """
    k = n if k is None else k
    if n < 1:
        raise ValueError(f"n={n}: allowed is 1 or more")
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: allowed is 1 to n={n}; there are no more orthogonal rows")
    z = torch.randn(n, k, generator=gen, dtype=torch.float64, device=gen.device)
    q, r = torch.linalg.qr(z)
    return (q * r.diagonal().sign()).T.to(dtype)


def ridge(
    X: Float[Tensor, "*batch n p"], Y: Float[Tensor, "*batch n o"], lam: float
) -> Float[Tensor, "*batch p o"]:
    """The minimizer of ``||X W - Y||^2 + lam ||W||^2``, solved in float64 and returned as ``X``'s.

    Of the two normal equations the smaller is solved: ``p`` by ``p``, or ``n`` by ``n``
    (``W = X^T (X X^T + lam I)^{-1} Y``). ``lam = 0`` gives the minimizer of smallest norm.

    Raises:
        ValueError: ``lam`` is negative, or ``X`` and ``Y`` differ in length.
    """
    if lam < 0:
        raise ValueError(f"lam={lam}: allowed is 0 or more")
    if X.shape[-2] != Y.shape[-2]:
        raise ValueError(f"X has {X.shape[-2]} rows and Y {Y.shape[-2]}: allowed is one number")
    x, y = X.double(), Y.double()
    if lam == 0:
        return (torch.linalg.pinv(x) @ y).to(X.dtype)
    n, p = x.shape[-2:]
    if p <= n:
        L, _ = chol(_shifted(x.mT @ x, lam), tries=1)
        return torch.cholesky_solve(x.mT @ y, L).to(X.dtype)
    L, _ = chol(_shifted(x @ x.mT, lam), tries=1)
    return (x.mT @ torch.cholesky_solve(y, L)).to(X.dtype)


def _shifted(K: Tensor, value: float) -> Tensor:
    K = K.clone()
    K.diagonal(dim1=-2, dim2=-1).add_(value)
    return K
