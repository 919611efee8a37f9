"""How good is a saliency map? Localization, and agreement between maps."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pointing_game(
    maps: Float[Tensor, "b h w"], masks: Bool[Tensor, "b h w"], tol: float = 0.0
) -> Bool[Tensor, "b"]:
    """Does the map's largest value lie on the object, or within ``tol`` pixels of it?

    The pointing game of Zhang et al. 2016. Among equal largest values the first in reading order
    counts. A distance of exactly ``tol`` is a hit.

    Raises:
        ValueError: an object without pixels, a negative ``tol``, or maps that are not finite.
    """
    _may_point(maps, masks, tol)
    h, w = maps.shape[1:]
    best = maps.flatten(1).argmax(1)[:, None]
    row = torch.arange(h, device=maps.device) - best // w
    column = torch.arange(w, device=maps.device) - best % w
    near = row[:, :, None] ** 2 + column[:, None, :] ** 2 <= tol**2
    return (near & masks).flatten(1).any(1)


def _may_point(maps: Tensor, masks: Tensor, tol: float) -> None:
    if tol < 0:
        raise ValueError(f"tol={tol}: allowed is 0 or more")
    if not masks.flatten(1).any(1).all():
        raise ValueError("masks: at least one has no pixel, so it cannot be hit")
    if not maps.isfinite().all():
        raise ValueError("maps: not finite, so there is no largest value to point at")


def class_mean(
    hits: Bool[Tensor, "b"], labels: Int[Tensor, "b"], classes: int
) -> tuple[float, Float[Tensor, "classes"]]:
    """Hit rate hits / (hits + misses) of each class, and its mean over the classes that occur.

    A class that does not occur has rate NaN and does not enter the mean.

    Raises:
        ValueError: no hits at all to average, or a label outside the classes.
    """
    if len(hits) == 0:
        raise ValueError("hits is empty: at least one is needed")
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels: allowed are 0 to {classes - 1}")
    count = torch.bincount(labels, minlength=classes)
    rate = torch.bincount(labels, weights=_wide(hits), minlength=classes) / count
    return float(rate.nanmean()), rate.float()


def difficult(
    masks: Bool[Tensor, "b h w"], distractors: Bool[Tensor, "b h w"], area: float = 0.25
) -> Bool[Tensor, "b"]:
    """The harder part of the pointing game: a small object, and something else to point at.

    Small: the object's pixels are at most the share ``area`` of the image.
    """
    small = masks.flatten(1).float().mean(1) <= area
    return small & distractors.flatten(1).any(1)


def rank_agreement(
    a: Float[Tensor, "b ..."],
    b: Float[Tensor, "b ..."],
    kind: str = "spearman",
) -> Float[Tensor, "b"]:
    """Correlation of each map in ``a`` with its partner in ``b``: of ranks, or of values.

    Ties share their mean rank. A constant map has no correlation: the result is NaN.

    Raises:
        ValueError: different shapes, or an unknown ``kind``.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {tuple(a.shape)}, {tuple(b.shape)}")
    if kind not in ("spearman", "pearson"):
        raise ValueError(f"kind={kind!r}: allowed are 'spearman' and 'pearson'")
    a, b = _wide(a.flatten(1)), _wide(b.flatten(1))
    if kind == "spearman":
        a, b = ranks(a), ranks(b)
    a = a - a.mean(1, keepdim=True)
    b = b - b.mean(1, keepdim=True)
    scale = a.norm(dim=1) * b.norm(dim=1)
    flat = scale == 0
    value = (a * b).sum(1) / torch.where(flat, 1.0, scale)
    return torch.where(flat, float("nan"), value).float()


def ranks(x: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Ranks from 1 within each row; equal values share the mean of theirs."""
    values, order = x.sort(1)
    place = torch.arange(x.shape[1], device=x.device).expand_as(order)
    first = torch.ones_like(order, dtype=torch.bool)  # of those with its value
    first[:, 1:] = values[:, 1:] != values[:, :-1]
    low = torch.where(first, place, 0).cummax(1).values
    high = torch.where(first.roll(-1, 1), place, x.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(x).scatter_(1, order, 1 + (low + high).to(x.dtype) / 2)


def _wide(x: Tensor) -> Tensor:
    """Double precision where the device has it; Apple's GPUs do not."""
    return x.float() if x.device.type == "mps" else x.double()
