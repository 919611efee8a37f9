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
