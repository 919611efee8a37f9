"""Images altered on the way into a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def crop_and_flip(
    x: Float[Tensor, "b c h w"], gen: torch.Generator, pad: int = 4
) -> Float[Tensor, "b c h w"]:
    """Every image shifted by up to ``pad`` places, and half of the images flipped left to right.

    What a shift uncovers is the picture mirrored at its border; the border itself is not repeated.

    Raises:
        ValueError: ``x`` has not four axes, or ``pad`` is below 0 or not below the images' side.
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}: allowed are images, b x c x h x w")
    b, _, h, w = x.shape
    if not 0 <= pad < min(h, w):
        raise ValueError(f"pad={pad}: allowed is 0 to {min(h, w) - 1} for images of {h} x {w}")
    if b == 0:
        return x.clone()
    x = F.pad(x, [pad] * 4, mode="reflect")
    drawn = {"generator": gen, "device": gen.device}
    top, left = torch.randint(2 * pad + 1, (2, b, 1), **drawn).to(x.device)
    flip = (torch.rand(b, 1, **drawn) < 0.5).to(x.device)
    rows = top + torch.arange(h, device=x.device)
    columns = left + torch.arange(w, device=x.device)
    columns = torch.where(flip, columns.flip(1), columns)
    image = torch.arange(b, device=x.device)[:, None, None]
    return x[image, :, rows[:, :, None], columns[:, None]].movedim(-1, 1)
