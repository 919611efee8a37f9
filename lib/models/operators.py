"""Neural operators that several chapters use: Fourier layers and DeepONet.

``SpectralConv`` and ``FNO``: Z. Li et al., "Fourier Neural Operator for Parametric Partial
Differential Equations", ICLR 2021, arXiv:2010.08895. ``DeepONet``: L. Lu et al., Nature Machine
Intelligence 2021, arXiv:1910.03193. Fourier coefficients use ``norm="forward"``, so a layer is the
same map of functions on every grid that resolves its modes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.mlp import MLP
from lib.models.unet import CONV


class SpectralConv(nn.Module):
    """A convolution with the whole box: multiply the ``modes`` lowest waves, drop the others.

    Along every axis the waves ``-m, ..., m - 1`` are kept (along the last only ``0, ..., m - 1``:
    the field is real). A grid too coarse for them uses those it has.

    Args:
        modes: ``m``, one number for all axes or one an axis.
        dims: axes of the field; taken from ``modes`` if that is a sequence.

    Raises:
        ValueError: ``modes`` below 1 or of another length than ``dims``.
    """

    def __init__(
        self, c_in: int, c_out: int, modes: int | Sequence[int], dims: int | None = None
    ) -> None:
        super().__init__()
        modes = (modes,) * (dims or 2) if isinstance(modes, int) else tuple(modes)
        if min(modes) < 1 or (dims is not None and len(modes) != dims):
            raise ValueError(f"modes={modes}: allowed are {dims or 'one or more'} numbers >= 1")
        self.modes = modes
        corners = 2 ** (len(modes) - 1)
        weight = torch.randn(corners, c_in, c_out, *modes, dtype=torch.cfloat)
        self.weight = nn.Parameter(weight / math.sqrt(2 * c_in * c_out))

    def forward(self, x: Float[Tensor, "b c_in *n"]) -> Float[Tensor, "b c_out *n"]:
        shape, d = x.shape[2:], len(self.modes)
        if len(shape) != d:
            raise ValueError(f"x: {len(shape)} axes after the channels; allowed is {d}")
        axes = tuple(range(-d, 0))
        waves = torch.fft.rfftn(x, dim=axes, norm="forward")
        out = waves.new_zeros(len(x), self.weight.shape[2], *waves.shape[2:])
        # Positive waves first, negative last; on a coarse grid the two halves must not overlap.
        kept = [min(m, (n + 1) // 2) for m, n in zip(self.modes[:-1], shape)]
        kept.append(min(self.modes[-1], waves.shape[-1]))
        for corner, signs in enumerate(itertools.product((False, True), repeat=d - 1)):
            signs = (*signs, False)
            # n even: wave -n/2 is the only one without a partner and stands with the negative.
            counts = [
                min(m, n // 2) if negative else k
                for m, n, k, negative in zip(self.modes, shape, kept, signs)
            ]
            if min(counts) == 0:
                continue
            place = [slice(-k, None) if s else slice(k) for k, s in zip(counts, signs)]
            weight = self.weight[(corner, slice(None), slice(None), *place)].to(waves.dtype)
            out[(..., *place)] = torch.einsum("bi...,io...->bo...", waves[(..., *place)], weight)
        return torch.fft.irfftn(out, s=shape, dim=axes, norm="forward")


class FNO(nn.Module):
    """Lift, ``depth`` layers ``act(spectral(v) + 1x1(v))`` (none after the last), project.

    Args:
        width: channels inside.
        coordinates: appends the points' coordinates in [0, 1] to the input.
        padding: share of the box added as zeros at the far end of every axis while the layers
            run: for fields that are not periodic.
        project: channels of the hidden layer of the projection; None makes it one linear map.
        layer: factory over ``(c_in, c_out, modes, dims)`` of the global part.

    Raises:
        ValueError: ``depth`` below 1, or a negative ``padding``.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        width: int,
        modes: int | Sequence[int],
        depth: int = 4,
        dims: int = 2,
        *,
        coordinates: bool = True,
        padding: float = 0.0,
        project: int | None = 128,
        act: Callable[[], nn.Module] = nn.GELU,
        layer: Callable[..., nn.Module] = SpectralConv,
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1 or padding < 0:
            raise ValueError(
                f"depth={depth}, width={width}, padding={padding}: allowed are >= 1, >= 1 and >= 0"
            )
        if dims not in CONV:
            raise ValueError(f"dims={dims}: allowed are 1, 2 and 3")
        conv = CONV[dims]
        self.dims, self.coordinates, self.padding = dims, coordinates, padding
        self.lift = conv(c_in + dims * coordinates, width, 1)
        self.spectral = nn.ModuleList(layer(width, width, modes, dims) for _ in range(depth))
        self.local = nn.ModuleList(conv(width, width, 1) for _ in range(depth))
        self.acts = nn.ModuleList(act() for _ in range(depth - 1))
        self.head = (
            conv(width, c_out, 1)
            if project is None
            else nn.Sequential(conv(width, project, 1), act(), conv(project, c_out, 1))
        )

    def forward(self, x: Float[Tensor, "b c_in *n"]) -> Float[Tensor, "b c_out *n"]:
        shape = x.shape[2:]
        if self.coordinates:
            x = torch.cat([x, coordinates(x)], 1)
        v = self.lift(x)
        extra = [math.ceil(self.padding * n) for n in shape]
        v = F.pad(v, [e for n in reversed(extra) for e in (0, n)])
        for i, (spectral, local) in enumerate(zip(self.spectral, self.local, strict=True)):
            v = spectral(v) + local(v)
            if i < len(self.acts):
                v = self.acts[i](v)
        return self.head(v[(..., *(slice(n) for n in shape))])


def coordinates(x: Float[Tensor, "b c *n"]) -> Float[Tensor, "b d *n"]:
    """The position of every point, from 0 to 1 along each axis, as channels."""
    axes = [torch.linspace(0, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:]]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return mesh.expand(len(x), *mesh.shape)


class DeepONet(nn.Module):
    """``G(u)(y) = sum_k branch_k(u) trunk_k(y) + bias``: a function at any points ``y``.

    Args:
        sensors: points at which the input function is given, flattened.
        d: coordinates of an output point.
        basis: number of products ``k`` for each of ``c_out`` outputs.
        hidden: widths of the hidden layers of both networks.
    """

    def __init__(
        self,
        sensors: int,
        d: int,
        basis: int,
        hidden: Sequence[int] = (64, 64),
        c_out: int = 1,
        act: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.c_out = c_out
        self.branch = MLP((sensors, *hidden, basis * c_out), act=act)
        self.trunk = MLP((d, *hidden, basis * c_out), act=act)
        self.bias = nn.Parameter(torch.zeros(c_out))

    def forward(
        self, u: Float[Tensor, "b sensors"], y: Float[Tensor, "m d"]
    ) -> Float[Tensor, "b m c_out"]:
        branch = self.branch(u).unflatten(-1, (self.c_out, -1))
        trunk = self.trunk(y).unflatten(-1, (self.c_out, -1))
        return torch.einsum("bok,mok->bmo", branch, trunk) + self.bias
