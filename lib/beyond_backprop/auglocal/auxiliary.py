"""Heads like the layers that follow, and networks whose layers are trained by them.

A layer is made by a function ``layer(c_in, c_out, stride)``, the same one for the primary network
and its heads: :func:`residual`, :func:`convolution` or :func:`dense`. Heads share its shapes, never
its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.beyond_backprop.auglocal.selection import Rule, layer_selection, pyramidal_depths
from lib.models.init import initialize_
from lib.models.local_learning import HEADS as COMPARED
from lib.models.local_learning import LocalBlocks, PoolLinear, compared_heads, pooled
from lib.models.resnet import Block

Layer = Callable[[int, int, int], nn.Module]
HEADS = ("auglocal", *COMPARED)


def build_auxiliary(
    l: int, indices: Sequence[int], widths: Sequence[int], classes: int, layer: Layer | None = None
) -> nn.Sequential:
    """The head of layer ``l``: layers as wide as those at ``indices``, a pooling, a linear map.

    With one layer, a batch normalization stands before the linear map.

    Args:
        indices: which layers are copied in shape, ascending, all after ``l``.
        widths: channels of every layer of the primary network.
        layer: makes one layer; :func:`residual` if None.

    Raises:
        ValueError: no ``indices``, or some that do not ascend from ``l`` to the last layer.
    """
    if not _ascending([l, *indices], len(widths)) or len(indices) < 1:
        raise ValueError(
            f"indices={list(indices)}: allowed are one or more layers after l={l}, ascending, "
            f"from 0 up to {len(widths) - 1}"
        )
    layer = layer or residual
    chosen = [widths[i] for i in indices]
    channels = [widths[l], *chosen]
    steps = strides(widths[l], chosen)
    parts = [layer(a, b, s) for a, b, s in zip(channels, chosen, steps)]
    norm = [nn.BatchNorm1d(chosen[-1])] if len(chosen) == 1 else []
    return nn.Sequential(*parts, Pool(), *norm, nn.Linear(chosen[-1], classes))


def strides(width: int, chosen: Sequence[int]) -> list[int]:
    """Stride 2 for every doubling of the width, at most one a layer; the rest is carried on.

    A doubling that is still owed after the last layer is dropped: a pooling follows anyway.

    Raises:
        ValueError: a width below 1.
    """
    if min([width, *chosen]) < 1:
        raise ValueError(f"width={width}, chosen={list(chosen)}: allowed are widths of 1 or more")
    owed, steps = 0, []
    for c in chosen:
        owed += max(0, int(math.log2(c / width)))
        steps.append(2 if owed else 1)
        owed, width = max(0, owed - 1), c
    return steps


def _ascending(layers: Sequence[int], n: int) -> bool:
    """Whether ``layers`` go up, within 0..n-1."""
    return list(layers) == sorted(set(layers)) and layers[0] >= 0 and layers[-1] < n


class Pool(nn.Module):
    """Mean over places, if there are any."""

    def forward(self, h: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c"]:
        return pooled(h)


def residual(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A basic block of two 3x3 convolutions; a 1x1 convolution where shapes change."""
    kinds = {"conv": nn.Conv2d, "norm": nn.BatchNorm2d, "act": nn.ReLU}
    return Block(c_in, c_out, stride, shortcut="B", preact=False, **kinds)


def convolution(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A 3x3 convolution, batch normalization, ReLU: a layer of a VGG, and every stem."""
    conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def dense(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A linear map and ReLU; there are no places to step over."""
    return nn.Sequential(nn.Linear(c_in, c_out), nn.ReLU())


# ---------------------------------------------------------------------------------------- networks


def local_network(
    widths: Sequence[int],
    classes: int = 10,
    *,
    head: Literal["auglocal", "0c1f", "dgl", "predsim", "infopro"] = "auglocal",
    channels: int = 3,
    depth: int = 2,
    c: float = 1.0,
    selection: Rule = "uniform",
    ends: Sequence[int] | None = None,
    joined: int = 0,
    layer: Layer | None = None,
    gen: torch.Generator,
) -> LocalBlocks:
    """A primary network of ``len(widths)`` layers in local modules, and a head for each.

    The primary network is drawn from ``gen`` before the heads, so that the same generator starts
    every kind of head from the same primary network. Convolutions are drawn He-normal with the
    fan-out, linear maps as PyTorch draws them, or He-normal where ``layer`` is :func:`dense`.

    Args:
        widths: channels layer by layer, the stem first; ``[16] * 6 + [32] * 5 + [64] * 5`` is
            ResNet-32. A layer wider than the one before steps by two.
        head: the paper's, or one it compares with; ``"0c1f"`` is pooling and one linear map.
        channels: of the input.
        depth, c, selection: of AugLocal's heads, see :func:`auglocal_heads`.
        ends: last layer of every module; every layer is a module if None.
        joined: leave out the last ``joined`` of the heads, so that the last ``joined + 1`` layers
            are one module. The authors' program does so with ``joined=depth`` and ``c=0.5``.
        layer: makes one layer; :func:`residual` if None.

    Raises:
        ValueError: an unknown ``head``, ``ends`` or ``joined`` that leave no module, sizes below 1.
    """
    if len(widths) < 1 or min([*widths, channels, classes]) < 1:
        raise ValueError(
            f"widths={list(widths)}, channels={channels}, classes={classes}: allowed are one or "
            "more widths, and numbers of 1 or more"
        )
    n, layer = len(widths), layer or residual
    if head not in HEADS:
        raise ValueError(f"head={head!r}: allowed are {', '.join(map(repr, HEADS))}")
    if ends is None:
        if not 0 <= joined <= n - 1:
            raise ValueError(f"joined={joined}: allowed is 0 to {n - 1}, the number of heads")
        ends = [*range(n - 1 - joined), n - 1]
    elif joined:
        raise ValueError("joined and ends: give one of them")
    if len(ends) < 1 or not _ascending(ends, n) or ends[-1] != n - 1:
        raise ValueError(f"ends={list(ends)}: allowed are ascending layers, the last one {n - 1}")
    layers = primary_layers(widths, channels, layer)
    blocks = [
        nn.Sequential(*layers[a + 1 : b + 1]) if b - a > 1 else layers[b]
        for a, b in zip([-1, *ends], ends)
    ]
    last = PoolLinear(widths[-1], classes)
    linear = "he" if layer is dense else "torch"
    _initialize(nn.ModuleList([*blocks, last]), linear, gen)
    if head == "auglocal":
        heads = auglocal_heads(
            widths, classes, ends, depth=depth, c=c, selection=selection, layer=layer, gen=gen
        )
    else:
        heads = compared_heads(head, [widths[e] for e in ends[:-1]], classes, colors=channels)
    for made in heads:
        _initialize(made, linear, gen)
    return LocalBlocks(blocks, [*heads, last])


def primary_layers(
    widths: Sequence[int], channels: int, layer: Layer | None = None
) -> list[nn.Module]:
    """The layers of the primary network, in order; the stem of an image network is a convolution.

    Raises:
        ValueError: no widths, or one below 1.
    """
    if len(widths) < 1 or min(widths) < 1:
        raise ValueError(f"widths={list(widths)}: allowed is one or more numbers, each >= 1")
    layer = layer or residual
    stem = dense if layer is dense else convolution
    later = [layer(a, b, s) for a, b in zip(widths, widths[1:]) for s in strides(a, [b])]
    return [stem(channels, widths[0], 1), *later]


def auglocal_heads(
    widths: Sequence[int],
    classes: int,
    ends: Sequence[int] | None = None,
    *,
    depth: int = 2,
    c: float = 1.0,
    selection: Rule = "uniform",
    layer: Layer | None = None,
    gen: torch.Generator | None = None,
) -> list[nn.Module]:
    """AugLocal's heads for all modules but the last one.

    Args:
        ends: last layer of every module; every layer is a module if None.
        depth: layers in the head of the first module, the paper's d.
        c: how steeply depths fall with the layer, see :func:`pyramidal_depths`; 0 is constant.
        selection: which layers a head copies.
        gen: for ``selection="random"``.

    Raises:
        ValueError: ``depth`` below 1, ``c`` outside [0, 1], an unknown ``selection``.
    """
    if depth < 1:
        raise ValueError(f"depth={depth}: allowed is 1 or more")
    n = len(widths)
    ends = list(range(n)) if ends is None else list(ends)
    # Depths fall with the layer, whatever layers share a module; a joined tail ends the pyramid.
    depths = pyramidal_depths(ends[-2] + 2 if len(ends) > 1 else 1, depth, c)
    return [
        build_auxiliary(l, layer_selection(n, l, depths[l], selection, gen), widths, classes, layer)
        for l in ends[:-1]
    ]


def _initialize(model: nn.Module, linear: str, gen: torch.Generator) -> None:
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            initialize_(part, "he", fan="out", gen=gen)
        elif isinstance(part, nn.Linear):
            initialize_(part, linear, gen=gen)


# ------------------------------------------------------------------------------------------- costs


def layer_flops(c_in: int, c_out: int, stride: int, side: int) -> tuple[int, int]:
    """Forward FLOPs of one :func:`residual` layer on one map of ``side`` squared places.

    Returns the FLOPs (a multiply-add counts as two) and the side of the output.
    """
    side = -(-side // stride)
    taps = 9 * c_in + 9 * c_out + (c_in if stride > 1 or c_in != c_out else 0)
    return 2 * taps * c_out * side**2, side


def auxiliary_flops(
    l: int, indices: Sequence[int], widths: Sequence[int], classes: int, side: int
) -> int:
    """Forward FLOPs of the head of layer ``l`` for one image, residual layers.

    Args:
        side: of the map that layer ``l`` puts out.
    """
    chosen, total, width = [widths[i] for i in indices], 0, widths[l]
    for c, s in zip(chosen, strides(width, chosen)):
        flops, side = layer_flops(width, c, s, side)
        total, width = total + flops, c
    return total + 2 * width * classes
