"""How alike two representations of the same samples are: centered kernel alignment."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def cka(
    x: Float[Tensor, "*batch n p"],
    y: Float[Tensor, "*batch n q"],
    kernel: Literal["linear", "rbf"] = "linear",
    debiased: bool = False,
    width: float = 0.5,
) -> Float[Tensor, "*batch"]:
    """Centered kernel alignment of two sets of features (Kornblith et al., 2019, 1905.00414).

    Row ``i`` of ``x`` and row ``i`` of ``y`` describe the same sample. Invariant to rotations and
    to one scale of the features; differentiable.

    Args:
        kernel: ``"linear"``, ``x x^T``, or ``"rbf"``, ``exp(-|x - x'|^2 / (2 s^2))``.
        debiased: use the unbiased estimate of HSIC, which may be negative and needs 4 samples.
        width: ``s`` of ``"rbf"`` as a fraction of the median distance between samples.

    Raises:
        ValueError: other numbers of rows, too few rows, ``width`` not above 0.
    """
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(f"x has {x.shape[-2]} rows and y {y.shape[-2]}: allowed is one number")
    if kernel not in ("linear", "rbf"):
        raise ValueError(f"kernel={kernel!r}: allowed are 'linear' and 'rbf'")
    if width <= 0:
        raise ValueError(f"width={width}: allowed is a number above 0")
    features = max(x.shape[-1], y.shape[-1])
    if kernel == "linear" and not debiased and x.shape[-2] < 4 * features:
        warnings.warn(
            f"{x.shape[-2]} samples for {features} features: the plain estimate is near 1 for any "
            "two such sets; use debiased=True",
            stacklevel=2,
        )
    if kernel == "linear":
        return cka_gram(x @ x.mT, y @ y.mT, debiased)
    return cka_gram(_gaussian_gram(x, width), _gaussian_gram(y, width), debiased)


def cka_gram(
    K: Float[Tensor, "*batch n n"], L: Float[Tensor, "*batch n n"], debiased: bool = False
) -> Float[Tensor, "*batch"]:
    """The same from the two Gram matrices: ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))``.

    A Gram matrix that is constant after centering has no alignment: the result is NaN.

    Raises:
        ValueError: matrices of other sizes, fewer than 2 samples (4 if ``debiased``).
    """
    if K.shape[-2:] != L.shape[-2:] or K.shape[-1] != K.shape[-2]:
        raise ValueError(
            f"K and L must be square and of one size, got {tuple(K.shape)} and {tuple(L.shape)}"
        )
    least = 4 if debiased else 2
    if K.shape[-1] < least:
        raise ValueError(f"{K.shape[-1]} samples: at least {least} are needed")
    hsic = _unbiased if debiased else _biased
    return hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()


def _biased(K: Tensor, L: Tensor) -> Tensor:
    return (_centered(K) * _centered(L)).sum((-2, -1))


def _centered(K: Tensor) -> Tensor:
    return K - K.mean(-1, keepdim=True) - K.mean(-2, keepdim=True) + K.mean((-2, -1), keepdim=True)


def _unbiased(K: Tensor, L: Tensor) -> Tensor:
    # Song et al., 2012: the diagonals say nothing of pairs and are what biases the plain estimate.
    n = K.shape[-1]
    hollow = 1 - torch.eye(n, dtype=K.dtype, device=K.device)
    K, L = K * hollow, L * hollow
    k, l = K.sum(-1), L.sum(-1)
    together = (K * L).sum((-2, -1))
    apart = k.sum(-1) * l.sum(-1) / ((n - 1) * (n - 2))
    return (together + apart - 2 / (n - 2) * (k * l).sum(-1)) / (n * (n - 3))


def _gaussian_gram(x: Tensor, width: float) -> Tensor:
    n = x.shape[-2]
    square = (x[..., :, None, :] - x[..., None, :, :]).square().sum(-1)
    upper = torch.triu_indices(n, n, 1, device=x.device)
    median = square[..., upper[0], upper[1]].median(-1).values
    return torch.exp(-square / (2 * width**2 * median[..., None, None]))
