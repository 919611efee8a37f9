"""The grid: what to extract at each site, how to aggregate it, and closed forms for both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lib.kernels.dispatch import Backend
from lib.kernels.saliency_stats import Moments, Statistics, saliency_stats

PHASES = ("bias", "scaling", "conv1x1", "conv3x3", "conv3x3_depthwise")  # phase 1

# Phase 2: one number from the k entries of a summand.
AGGREGATES = {
    "sum": lambda t: t.sum(1, keepdim=True),
    "filter_norm": lambda t: t.clamp(min=0).norm(dim=1, keepdim=True),
    "norm": lambda t: t.norm(dim=1, keepdim=True),
    "max": lambda t: t.amax(1, keepdim=True),
    "abs_max": lambda t: t.abs().amax(1, keepdim=True),
}

# The channel statistics that each phase's closed forms are made of.
NEEDS = {"bias": "g", "scaling": "p", "conv1x1": "fg", "conv3x3": "fg", "conv3x3_depthwise": "d"}

# Where known methods sit in the grid, as (phase, aggregation).
NAMED = {
    "gradient": ("bias", "abs_max"),
    "linear approximation": ("scaling", "sum"),
    "NormGrad": ("conv1x1", "norm"),
    "NormGrad 3x3": ("conv3x3", "norm"),
    "NormGrad scaling": ("scaling", "norm"),
    "NormGrad selective": ("scaling", "filter_norm"),
}


def extract(
    f: Float[Tensor, "b c h w"],
    g: Float[Tensor, "b o i j"],
    phase: str,
    conv: nn.Conv2d | None = None,
) -> Float[Tensor, "b k i j"]:
    """Phase 1 by its definition: each site's summand of the weight gradient, written out.

    The identity layer's parameters and their gradient at site u:

    - ``"bias"``: a bias per channel; g_u, so k = c.
    - ``"scaling"``: a factor per channel; f_u * g_u, k = c.
    - ``"conv1x1"``: g_u f_u^T, k = c c.
    - ``"conv3x3"``: g_u vec(3x3 patch of f around u)^T, zeros outside the map, k = 9 c c.
    - ``"conv3x3_depthwise"``: each channel's 3x3 patch times its g, k = 9 c.
    - ``"real"``: the network's own ``conv``, with f its input and g the gradient at its output.

    The sum over sites is the gradient of the layer's parameters, flattened. This needs k numbers
    per site: it is for looking and testing, ``closed_form`` is for use.

    Raises:
        ValueError: unknown phase, ``conv`` missing or superfluous, shapes that do not belong
            together, or a padding mode other than zeros.
    """
    return summands(f, g, phase, _window(f, g, phase, conv))


def summands(f: Tensor, g: Tensor, phase: str, window: Window) -> Tensor:
    """``extract`` without its checks; ``window`` is the geometry of the layer's convolution."""
    if phase == "bias":
        return g
    if phase == "scaling":
        return f * g
    # What the window sees at each site u: q numbers in each of n channel groups.
    seen = F.unfold(f, window.kernel, window.dilation, window.padding, window.stride)
    seen = rearrange(seen, "b (n q) u -> b n q u", n=window.groups)
    slope = rearrange(g, "b (n o) i j -> b n o (i j)", n=window.groups)
    outer = einsum(seen, slope, "b n q u, b n o u -> b n o q u")
    return outer.reshape(len(f), -1, *g.shape[2:])


def aggregate(t: Float[Tensor, "b k i j"], how: str) -> Float[Tensor, "b 1 i j"]:
    """Phase 2: one number per site, over the k entries of its summand.

    ``"norm"`` is the L2 norm, ``"filter_norm"`` that of the positive part ("selective").

    Raises:
        ValueError: unknown ``how``.
    """
    _in_grid([], [how])
    return AGGREGATES[how](t)


def closed_form(
    f: Float[Tensor, "b c h w"],
    g: Float[Tensor, "b o i j"],
    phase: str,
    how: str,
    conv: nn.Conv2d | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "b 1 i j"]:
    """``aggregate(extract(f, g, phase, conv), how)`` without ever writing the summands out.

    Raises:
        ValueError: as ``extract`` and ``aggregate`` do.
    """
    window = _window(f, g, phase, conv)
    if phase != "real":
        stats = saliency_stats(f, g, NEEDS[phase], backend)
        return from_statistics(stats, phase, how)
    # Groups are convolutions of their own: put them on the batch axis, then aggregate over them.
    a = rearrange(f, "b (n c) h w -> (b n) c h w", n=window.groups)
    s = rearrange(g, "b (n o) i j -> (b n) o i j", n=window.groups)
    a, s = (saliency_stats(t, t, "f", backend).f for t in (a, s))
    parts = outer_product(around(a, window), s, how)
    return aggregate(rearrange(parts, "(b n) 1 i j -> b n i j", n=window.groups), how)


def from_statistics(stats: Statistics, phase: str, how: str) -> Float[Tensor, "b 1 h w"]:
    """A map from statistics that may serve many maps; they must hold what ``NEEDS[phase]`` names.

    Raises:
        ValueError: unknown phase or aggregation, or statistics taken of something else.
    """
    _in_grid([phase], [how])
    if any(getattr(stats, part) is None for part in NEEDS[phase]):
        need = NEEDS[phase]
        raise ValueError(f"stats: phase {phase!r} needs saliency_stats(f, g, of={need!r})")
    return finish(factors(stats, phase), how)


def factors(stats: Statistics, phase: str) -> tuple[Moments, ...]:
    """What a phase's summand is made of: one vector, or two that form an outer product."""
    f, g, p, d = stats
    if phase == "conv1x1":
        return f, g
    if phase == "conv3x3":
        return around(f, Window()), g
    return ({"bias": g, "scaling": p, "conv3x3_depthwise": d}[phase],)


def finish(vectors: tuple[Moments, ...], how: str) -> Tensor:
    """The aggregate of one vector's entries, or of two vectors' outer product."""
    return (one_vector if len(vectors) == 1 else outer_product)(*vectors, how)


def outer_product(f: Moments, g: Moments, how: str) -> Tensor:
    """Aggregates of all products t of an entry of f and an entry of g: of t = f g^T.

    sum t = sum f sum g; ||t|| = ||f|| ||g||; positive entries come from factors of equal sign, so
    ||t+||^2 = ||f+||^2 ||g+||^2 + ||f-||^2 ||g-||^2; and the largest entry is one of the four
    products of extremes.
    """
    # Roots before products: squared norms overflow long before norms do.
    if how == "norm":
        return (f.pos + f.neg).sqrt() * (g.pos + g.neg).sqrt()
    if how == "filter_norm":
        return torch.hypot(f.pos.sqrt() * g.pos.sqrt(), f.neg.sqrt() * g.neg.sqrt())
    if how == "sum":
        return f.sum * g.sum
    corners = [f.max * g.max, f.max * g.min, f.min * g.max, f.min * g.min]
    corners = torch.cat(corners, 1)
    return (corners if how == "max" else corners.abs()).amax(1, keepdim=True)


def one_vector(t: Moments, how: str) -> Tensor:
    """Aggregates of a vector's own entries."""
    if how == "norm":
        return (t.pos + t.neg).sqrt()
    if how == "filter_norm":
        return t.pos.sqrt()
    if how == "abs_max":
        return torch.maximum(t.max, -t.min)
    return t.sum if how == "sum" else t.max


def _in_grid(phases: Iterable[str], hows: Iterable[str]) -> None:
    for phase in phases:
        if phase not in PHASES:
            raise ValueError(f"phase={phase!r}: allowed are {', '.join(PHASES)}")
    for how in hows:
        if how not in AGGREGATES:
            raise ValueError(f"how={how!r}: allowed are {', '.join(AGGREGATES)}")


class Window(NamedTuple):
    """Geometry of a convolution."""

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def around(f: Moments, window: Window) -> Moments:
    """The activation's moments over each window instead of each site; padding counts as zeros.

    Box sums take the place of sums, extremes over the window that of extremes.
    """
    sums = torch.cat(f[:3], 1)
    box = sums.new_ones(3, 1, *window.kernel)
    s, pos, neg = F.conv2d(
        sums, box, None, window.stride, window.padding, window.dilation, groups=3
    ).split(1, 1)
    # max_pool2d would pad with minus infinity; the zeros are entries like any other.
    py, px = window.padding
    padded = F.pad(torch.cat([f.max, -f.min], 1), (px, px, py, py))
    pooled = F.max_pool2d(padded, window.kernel, window.stride, 0, window.dilation)
    return Moments(s, pos, neg, pooled[:, :1], -pooled[:, 1:])


def _window(f: Tensor, g: Tensor, phase: str, conv: nn.Conv2d | None) -> Window:
    """The identity layer's geometry, after checking that the arguments belong together."""
    if phase not in (*PHASES, "real"):
        raise ValueError(f"phase={phase!r}: allowed are {', '.join(PHASES)} and real")
    if (conv is None) == (phase == "real"):
        need = "needs" if phase == "real" else "takes no"
        raise ValueError(f"phase={phase!r} {need} conv=")
    if phase != "real":
        if f.shape != g.shape:
            raise ValueError(f"f and g must have one shape, got {tuple(f.shape)}, {tuple(g.shape)}")
        one = phase == "conv1x1"
        size, pad = (1, 0) if one else (3, 1)
        groups = f.shape[1] if phase == "conv3x3_depthwise" else 1
        return Window((size, size), (1, 1), (pad, pad), (1, 1), groups)
    if conv.padding_mode != "zeros":
        raise ValueError(f"conv pads with {conv.padding_mode!r}; only zeros are supported")
    if isinstance(conv.padding, str):
        reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size)]
        if conv.padding == "same" and any(r % 2 for r in reach):
            raise ValueError(f"conv: padding='same' is lopsided with kernel {conv.kernel_size}")
        padding = tuple(r // 2 for r in reach) if conv.padding == "same" else (0, 0)
    else:
        padding = conv.padding
    out = conv.out_channels
    if f.shape[1] != conv.in_channels or g.shape[1] != out:
        raise ValueError(
            f"conv maps {conv.in_channels} to {out} channels; f has {f.shape[1]}, g {g.shape[1]}"
        )
    window = Window(conv.kernel_size, conv.stride, padding, conv.dilation, conv.groups)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            f.shape[2:], padding, window.dilation, window.kernel, window.stride, strict=True
        )
    ]
    if len(f) != len(g) or list(g.shape[2:]) != size:
        raise ValueError(
            f"f of shape {tuple(f.shape)} needs g of shape {(len(f), out, *size)}, "
            f"got {tuple(g.shape)}"
        )
    return window
