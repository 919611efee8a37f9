"""Small statistics that chapters and tests share: relative error, spread, slopes with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit


def relative_error(a, b) -> float:
    """``||a - b|| / ||b||`` in float64, over all entries; 0 where both are zero.

    NaN or infinity anywhere gives NaN, which no comparison accepts. A non-zero ``a`` against an
    all-zero ``b`` gives infinity.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = _array(a), _array(b)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: a {a.shape}, b {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    difference, scale = np.linalg.norm((a - b).ravel()), np.linalg.norm(b.ravel())
    if difference == 0:
        return 0.0
    return float(difference / scale) if scale > 0 else float("inf")


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest of repeated measurements; prints as ``0.95 (0.93-0.97)``."""

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        low, high = format(self.low, spec), format(self.high, spec)
        dash = "–" if self.low >= 0 else " to "
        return f"{format(self.mean, spec)} ({low}{dash}{high})"

    def __str__(self) -> str:
        return format(self, "")

    def __iter__(self):
        return iter((self.mean, self.low, self.high))


def spread(values) -> Spread:
    """Mean and range of one number per seed: an iterable, an array or a tensor.

    Raises:
        ValueError: no values, or a value that is not finite.
    """
    v = _array(values).ravel()
    if v.size == 0:
        raise ValueError("values is empty: at least one number is needed")
    if not np.isfinite(v).all():
        raise ValueError(f"values must be finite, got {v.tolist()}")
    return Spread(float(v.mean()), float(v.min()), float(v.max()), int(v.size))


@dataclass(frozen=True)
class Slope:
    """A fitted power law ``y = exp(intercept) x^slope`` with the slope's 95 % interval."""

    slope: float
    low: float
    high: float
    intercept: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{format(self.slope, spec)} ({format(self.low, spec)} to {format(self.high, spec)})"

    def __str__(self) -> str:
        return format(self, "")

    def __call__(self, x):
        """The fitted line at ``x``."""
        return np.exp(self.intercept) * np.asarray(x, dtype=float) ** self.slope


def loglog_slope(x, y) -> Slope:
    """Least-squares slope of ``log y`` against ``log x`` and its 95 % interval.

    ``x`` and ``y`` are sequences, arrays or tensors of positive numbers. The interval is
    Student's, from the residuals; with two points it is infinite.

    Raises:
        ValueError: fewer than two points, different lengths, or a number that is not positive.
    """
    x, y = _array(x).ravel(), _array(y).ravel()
    if x.shape != y.shape or x.size < 2:
        raise ValueError(f"x and y must have the same length, at least 2; got {x.size}, {y.size}")
    if not ((x > 0).all() and (y > 0).all()):
        raise ValueError("a power law needs positive numbers; x or y has one that is not")
    log_x, log_y = np.log(x), np.log(y)
    centered = log_x - log_x.mean()
    square = float(centered @ centered)
    if square == 0:
        raise ValueError(f"x must have two different values; all {x.size} are {x[0]}")
    slope = float(centered @ log_y) / square
    intercept = float(log_y.mean() - slope * log_x.mean())
    half = float("inf")
    if (free := x.size - 2) > 0:
        residual = log_y - intercept - slope * log_x
        half = float(stdtrit(free, 0.975) * np.sqrt(residual @ residual / free / square))
    return Slope(slope, slope - half, slope + half, intercept)


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    if not isinstance(values, (np.ndarray, Sequence, float, int)):
        values = list(values)
    return np.asarray(values, dtype=np.float64)
