"""U-Net: down to coarse maps, up again, and every level hands its map across (arXiv:1505.04597).

O. Ronneberger, P. Fischer and T. Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", 2015. One, two or three dimensions, any size: a map that cannot be halved evenly is
brought to its partner's size on the way up. Levels are residual blocks of two convolutions;
averages go down, interpolation comes up, so nothing in it is tied to one resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class UNet(nn.Module):
    """``widths[0]`` channels at full size, ``widths[i]`` at one ``2^i``-th of it.

    With ``bias=False`` and a homogeneous activation (the default) the network is positively
    homogeneous: ``net(c x) = c net(x)`` for ``c > 0``.

    Args:
        widths: channels of the levels, finest first.
        dims: 1, 2 or 3.
        norm: factory over channels, for instance ``lambda c: nn.GroupNorm(4, c)``.
        up: ``"bilinear"`` (linear in every dimension) or ``"nearest"``.
        pad: ``"zeros"`` or ``"circular"``, for periodic maps.
        condition: size of a vector that goes with each sample (time, class); every block adds a
            linear map of it to its channels, and ``forward`` then takes it.
        act: factory of the activation.
        process: factory over (level, channels) of what a level's map passes through before it
            is used on the way up; nothing by default.

    Raises:
        ValueError: no widths, ``dims``, ``up`` or ``pad`` that are not allowed.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        widths: Sequence[int],
        dims: int = 2,
        *,
        norm: Callable[[int], nn.Module] | None = None,
        bias: bool = True,
        up: Literal["bilinear", "nearest"] = "bilinear",
        pad: Literal["zeros", "circular"] = "zeros",
        condition: int | None = None,
        act: Callable[[], nn.Module] = nn.ReLU,
        process: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if len(widths) < 1 or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: allowed is one or more numbers, each >= 1")
        if dims not in CONV:
            raise ValueError(f"dims={dims}: allowed are 1, 2 and 3")
        if up not in ("bilinear", "nearest"):
            raise ValueError(f"up={up!r}: allowed are 'bilinear' and 'nearest'")
        if pad not in ("zeros", "circular"):
            raise ValueError(f"pad={pad!r}: allowed are 'zeros' and 'circular'")
        self.dims, self.up, self.pad, self.condition = dims, up, pad, condition
        self.channels = c_in
        make = lambda a, b: Block(a, b, dims, norm, bias, pad, condition, act)
        pairs = list(zip(widths[:-1], widths[1:]))
        self.down = nn.ModuleList([make(c_in, widths[0]), *(make(a, b) for a, b in pairs)])
        self.rise = nn.ModuleList(make(a + b, a) for a, b in pairs)
        self.process = nn.ModuleList(
            nn.Identity() if process is None else process(level, c)
            for level, c in enumerate(widths)
        )
        self.head = CONV[dims](widths[0], c_out, 1, bias=bias)

    def forward(
        self, x: Float[Tensor, "b c_in *n"], condition: Float[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b c_out *n"]:
        if (condition is None) != (self.condition is None):
            raise ValueError(
                f"condition: {'missing' if condition is None else 'given'}, but the network was "
                f"built with condition={self.condition}"
            )
        if x.ndim != self.dims + 2 or x.shape[1] != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: allowed is a batch, {self.channels} channels and "
                f"{self.dims} axes of space"
            )
        maps = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else POOL[self.dims](x, 2, ceil_mode=True), condition)
            maps.append(x)
        x = self.process[-1](maps[-1])
        for level in reversed(range(len(self.rise))):
            x = self._raise_to(x, maps[level].shape[2:])
            x = self.rise[level](torch.cat([self.process[level](maps[level]), x], 1), condition)
        return self.head(x)

    def _raise_to(self, x: Tensor, size: Sequence[int]) -> Tensor:
        size = tuple(size)
        if self.up == "nearest":
            return F.interpolate(x, size=size, mode="nearest")
        if self.pad == "circular" and all(m == 2 * n for m, n in zip(size, x.shape[2:])):
            # One more value on each side, so that the seam is interpolated like any other place.
            x = F.pad(x, [1] * (2 * self.dims), mode="circular")
            x = F.interpolate(x, scale_factor=2, mode=LINEAR[self.dims], align_corners=False)
            return x[(..., *[slice(2, -2)] * self.dims)]
        return F.interpolate(x, size=size, mode=LINEAR[self.dims], align_corners=False)


class Block(nn.Module):
    """Two 3-wide convolutions and a shortcut; ``act(norm(conv))`` twice, the sum last."""

    def __init__(self, c_in, c_out, dims, norm, bias, pad, condition, act) -> None:
        super().__init__()
        conv = lambda a, b: CONV[dims](a, b, 3, padding=1, padding_mode=pad, bias=bias)
        self.first, self.second = conv(c_in, c_out), conv(c_out, c_out)
        self.norms = nn.ModuleList(norm(c_out) if norm else nn.Identity() for _ in range(2))
        self.acts = nn.ModuleList(act() for _ in range(2))
        equal = c_in == c_out
        self.shortcut = nn.Identity() if equal else CONV[dims](c_in, c_out, 1, bias=bias)
        self.embed = None if condition is None else nn.Linear(condition, c_out)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        z = self.norms[0](self.first(x))
        if self.embed is not None:
            z = z + self.embed(condition).reshape(*z.shape[:2], *[1] * (z.ndim - 2))
        z = self.norms[1](self.second(self.acts[0](z)))
        return self.acts[1](z + self.shortcut(x))
