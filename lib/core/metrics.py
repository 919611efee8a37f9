"""Scores that several chapters report."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
