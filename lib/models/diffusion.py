"""Gaussian diffusion: noise schedules and the posterior of one step.

Time runs from ``t = 0``, data, to ``t = 1``, noise: ``x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps``
with ``ab = alpha_bar`` falling (J. Ho et al., arXiv:2006.11239; A. Nichol and P. Dhariwal,
arXiv:2102.09672). Papers that count the other way turn the arrays around and say so.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def cosine(steps: int, offset: float = 0.008, clip: float = 1e-4) -> Float[Tensor, "{steps}+1"]:
    """``alpha_bar`` at ``t = 0, 1/steps, ..., 1``: a quarter of a squared cosine, in float64.

    ``cos^2((t + offset) / (1 + offset) * pi / 2)``, divided by its value at 0 and kept within
    ``clip`` of 0 and 1.

    Raises:
        ValueError: no steps, a negative offset, or ``clip`` outside [0, 1/2).
    """
    if steps < 1 or offset < 0 or not 0 <= clip < 0.5:
        raise ValueError(
            f"steps={steps}, offset={offset}, clip={clip}: allowed are 1 or more steps, an offset "
            "of 0 or more and 0 <= clip < 1/2"
        )
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
    return (f / f[0]).clamp(clip, 1 - clip)


def posterior_coefficients(
    alpha_bar: Float[Tensor, "times"],
) -> tuple[Float[Tensor, "times-1"], Float[Tensor, "times-1"], Float[Tensor, "times-1"]]:
    r"""``a, b, c`` of ``q(x_s | x_t, x_0) = N(a x_0 + b x_t, c I)`` for neighbors ``s < t``.

    With ``alpha = ab_t / ab_s``:

    .. math:: a = \frac{\sqrt{ab_s}\,(1 - \alpha)}{1 - ab_t},\quad
              b = \frac{\sqrt{\alpha}\,(1 - ab_s)}{1 - ab_t},\quad
              c = \frac{(1 - ab_s)(1 - \alpha)}{1 - ab_t}

    Entry ``i`` leads from ``alpha_bar[i + 1]`` to ``alpha_bar[i]``.

    Raises:
        ValueError: values that do not fall, or outside (0, 1] (only the first may be 1).
    """
    s, t = alpha_bar[:-1], alpha_bar[1:]
    if len(alpha_bar) < 2 or not ((t < s).all() and s[0] <= 1 and t[-1] > 0):
        raise ValueError(
            f"alpha_bar={alpha_bar.tolist()}: allowed are two or more falling values in (0, 1]"
        )
    alpha = t / s
    a = s.sqrt() * (1 - alpha) / (1 - t)
    b = alpha.sqrt() * (1 - s) / (1 - t)
    c = (1 - s) * (1 - alpha) / (1 - t)
    return a, b, c
