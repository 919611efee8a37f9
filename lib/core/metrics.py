"""Scores that several chapters report."""

from __future__ import annotations

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def ssim(
    x: Float[Tensor, "b c h w"],
    y: Float[Tensor, "b c h w"],
    *,
    window: int = 7,
    data_range: float = 1.0,
) -> Float[Tensor, "b"]:
    """Structural similarity of image pairs: 1 for equal images, near 0 for unrelated ones.

    Wang, Bovik, Sheikh and Simoncelli, 2004: luminance, contrast and structure compared in a
    sliding window, with constants (0.01 L)^2 and (0.03 L)^2 for values of range L. Windows are
    uniform and lie inside the image, covariances are unbiased, channels and places are averaged
    (scikit-image's defaults).

    Raises:
        ValueError: an even window, one that does not fit, or a range that is not positive.
    """
    if window % 2 == 0 or not 3 <= window <= min(x.shape[-2:]):
        raise ValueError(
            f"window={window}: allowed are odd numbers from 3 to {min(x.shape[-2:])}, "
            "the image's shorter side"
        )
    if data_range <= 0:
        raise ValueError(f"data_range={data_range}: allowed are positive numbers")
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def mean(t: Tensor) -> Tensor:
        return F.avg_pool2d(t, window, stride=1)

    unbiased = window**2 / (window**2 - 1)
    mx, my = mean(x), mean(y)
    vx = unbiased * (mean(x * x) - mx * mx)
    vy = unbiased * (mean(y * y) - my * my)
    cov = unbiased * (mean(x * y) - mx * my)
    value = (2 * mx * my + c1) * (2 * cov + c2)
    value = value / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return torch.mean(value, dim=(1, 2, 3))


def ece(probs: Float[Tensor, "n c"], y: Int[Tensor, "n"], bins: int = 10) -> float:
    """Expected calibration error: how far confidence is from accuracy, on average.

    Naeini, Cooper and Hauskrecht, 2015; Guo et al., 2017 (arXiv 1706.04599), equation 3. Samples
    are sorted by the probability of their most probable class into ``bins`` equal widths, closed
    on the right; the error is the mean of |accuracy - confidence| over bins, weighted by samples.

    Raises:
        ValueError: what ``reliability`` refuses.
    """
    table = reliability(probs, y, bins)
    gap = (table.accuracy - table.confidence).abs()
    return float((gap * table.samples).sum() / table.samples.sum())


def reliability(probs: Float[Tensor, "n c"], y: Int[Tensor, "n"], bins: int = 10) -> pd.DataFrame:
    """A row per bin that has samples: ``low``, ``high``, ``confidence``, ``accuracy``, ``samples``.

    Confidence and accuracy are means over the bin's samples; of equally probable classes the
    first counts as the prediction.

    Raises:
        ValueError: no samples, different lengths, fewer than one bin, a probability outside 0 to
            1, or rows that do not sum to 1 (logits, for example).
    """
    if len(probs) == 0 or len(probs) != len(y):
        raise ValueError(
            f"probs and y must have one length, at least 1; got {len(probs)}, {len(y)}"
        )
    if bins < 1:
        raise ValueError(f"bins={bins}: allowed is 1 or more")
    probs = probs.detach().double()
    # Written so that NaN fails, too.
    if not (probs.min() >= 0 and ((probs.sum(1) - 1).abs() <= 1e-3).all()):
        raise ValueError("probs: rows must be probabilities that sum to 1; apply softmax to logits")
    confidence, predicted = probs.max(1)
    # Rounding can push a certain prediction past 1. The first bin is closed on the left, too.
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    frame = pd.DataFrame(
        {
            "bin": which.cpu(),
            "confidence": confidence.cpu(),
            "accuracy": (predicted == y).double().cpu(),
        }
    )
    table = frame.groupby("bin").agg(
        confidence=("confidence", "mean"),
        accuracy=("accuracy", "mean"),
        samples=("accuracy", "size"),
    )
    table = table.reset_index()
    table.insert(0, "low", table.bin / bins)
    table.insert(1, "high", (table.bin + 1) / bins)
    return table.drop(columns="bin")
