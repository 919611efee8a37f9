"""Residual networks: with normalization (He et al. 2015, 2016) and without (Brock et al. 2021).

``ResNet`` takes callables for its convolutions, norms and activations, so masked, quadratic,
quantized or spiking layers plug in. Parts are named ``stem``, ``blocks`` and ``head``, and local
learning rules cut between blocks. ``NFResNet`` replaces normalization by scaled weight
standardization and a fixed bookkeeping of the signal's variance; a network that sees one time step
at a time needs it, because batch statistics over time are not available online.

Papers: Deep Residual Learning, arXiv:1512.03385; Identity Mappings, arXiv:1603.05027;
Characterizing Signal Propagation in Unnormalized ResNets, arXiv:2101.08692. Pretrained weights
are torchvision's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Make = Callable[..., nn.Module]


class ResNet(nn.Module):
    """A stem, basic blocks of two 3x3 convolutions, global average pooling, a linear read-out.

    Args:
        widths: one width a block, ``[16] * 3 + [32] * 3 + [64] * 3``; a block whose width is larger
            than the one before steps by two.
        classes: outputs.
        channels: channels of the input.
        conv: factory with the signature of ``nn.Conv2d``.
        norm: factory over channels; None for none, and then the convolutions have biases.
        act: factory of the activation; every call site gets its own.
        shortcut: where shapes change, ``"A"`` subsamples and pads with zero channels, ``"B"``
            is a 1x1 convolution; None builds the plain net without any shortcut.
        preact: norm and activation before each convolution, and once more before the head.
        stem: ``"small"`` is one 3x3 convolution, ``"imagenet"`` 7x7 by two and a pooling by two.
        skip_activated: with ``preact``, the shortcut leaves after the block's first activation in
            every block, not only where shapes change. Spiking networks do so.

    Raises:
        ValueError: no widths, an unknown ``shortcut`` or ``stem``, or shortcut "A" with a
            narrowing width.
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        *,
        channels: int = 3,
        conv: Make = nn.Conv2d,
        norm: Make | None = nn.BatchNorm2d,
        act: Make = nn.ReLU,
        shortcut: Literal["A", "B"] | None = "B",
        preact: bool = False,
        stem: Literal["small", "imagenet"] = "small",
        skip_activated: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) < 1 or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: allowed is one or more numbers, each >= 1")
        if shortcut not in ("A", "B", None):
            raise ValueError(f"shortcut={shortcut!r}: allowed are 'A', 'B' and None")
        if stem not in ("small", "imagenet"):
            raise ValueError(f"stem={stem!r}: allowed are 'small' and 'imagenet'")
        first, bias = widths[0], norm is None
        size = {"kernel_size": 3, "padding": 1} if stem == "small" else {
            "kernel_size": 7, "stride": 2, "padding": 3
        }  # fmt: skip
        opening = [conv(channels, first, bias=bias, **size)]
        if not preact:
            opening += [_norm(norm, first), act()]
        if stem == "imagenet":
            opening += [nn.MaxPool2d(3, stride=2, padding=1)]
        self.stem = nn.Sequential(*opening)
        blocks, before = [], first
        for width in widths:
            stride = 2 if width > before else 1
            blocks.append(
                Block(
                    before,
                    width,
                    stride,
                    conv=conv,
                    norm=norm,
                    act=act,
                    shortcut=shortcut,
                    preact=preact,
                    skip_activated=skip_activated,
                )  # fmt: skip
            )
            before = width
        self.blocks = nn.Sequential(*blocks)
        closing = [_norm(norm, before), act()] if preact else []
        self.head = nn.Sequential(
            *closing, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        return self.head(self.blocks(self.stem(x)))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(
        self, c_in, c_out, stride, *, conv, norm, act, shortcut, preact, skip_activated=False
    ) -> None:
        super().__init__()
        bias = norm is None
        self.preact, self.skip_activated = preact, skip_activated
        self.conv1 = conv(c_in, c_out, kernel_size=3, stride=stride, padding=1, bias=bias)
        self.conv2 = conv(c_out, c_out, kernel_size=3, stride=1, padding=1, bias=bias)
        self.norm1 = _norm(norm, c_in if preact else c_out)
        self.norm2 = _norm(norm, c_out)
        self.act1, self.act2 = act(), act()
        self.changes = stride != 1 or c_in != c_out
        if shortcut is None:
            self.skip = None
        elif not self.changes:
            self.skip = nn.Identity()
        elif shortcut == "A":
            self.skip = PadShortcut(c_in, c_out, stride)
        else:
            projection = conv(c_in, c_out, kernel_size=1, stride=stride, bias=bias)
            # The pre-activated block adds onto a raw stream: no norm on its shortcut.
            self.skip = projection if preact else nn.Sequential(projection, _norm(norm, c_out))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        if self.preact:
            a = self.act1(self.norm1(x))
            out = self.conv2(self.act2(self.norm2(self.conv1(a))))
            source = a if self.changes or self.skip_activated else x
            return out if self.skip is None else out + self.skip(source)
        out = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(out if self.skip is None else out + self.skip(x))


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, new channels zero; no parameters."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        if c_out < c_in:
            raise ValueError(f"shortcut='A' cannot narrow from {c_in} to {c_out} channels; use 'B'")
        self.low, self.high, self.stride = (c_out - c_in) // 2, (c_out - c_in + 1) // 2, stride

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.low, self.high))


def resnet_cifar(depth: int, classes: int = 10, **options) -> ResNet:
    """ResNet-20, -32, -56, -110, ... for 32x32 images: widths 16, 32, 64, ``(depth - 2) / 6`` each.

    Raises:
        ValueError: ``depth`` is not ``6 n + 2``.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth={depth}: allowed is 6 n + 2 (8, 14, 20, 32, 44, 56, 110, ...)")
    n = (depth - 2) // 6
    return ResNet([16] * n + [32] * n + [64] * n, classes, **{"shortcut": "A", **options})


def preact18(classes: int = 10, **options) -> ResNet:
    """The pre-activated ResNet-18 for 32x32 images: widths 64, 128, 256, 512, two blocks each."""
    widths = [64] * 2 + [128] * 2 + [256] * 2 + [512] * 2
    return ResNet(widths, classes, **{"preact": True, **options})


# --------------------------------------------------------------------------- without normalization


class ScaledWSConv2d(nn.Conv2d):
    """A convolution with scaled standardized weights (arXiv:2101.08692, eq. 1).

    ``W' = gain (W - mean) / sqrt(var * fan_in)`` for each output channel, with a learned ``gain``:
    for inputs of unit second moment per entry and no mean, the output has variance ``gain^2``.
    """

    def __init__(self, *args, eps: float = 1e-4, **options) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.eps = eps

    def standardized(self) -> Float[Tensor, "out in h w"]:
        """The weight that is applied."""
        fan_in = self.weight[0].numel()
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return self.gain * (self.weight - mean) * torch.rsqrt(var * fan_in + self.eps)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return self._conv_forward(x, self.standardized(), self.bias)


class NFResNet(nn.Module):
    """A residual network without normalization, for ImageNet-sized images.

    The residual stream's variance is known in advance: it grows by ``alpha^2`` a block and starts
    anew at 1 where a block projects. Each block divides by the expected deviation, activates, and
    multiplies by ``act_gain``, which makes up for the variance the activation takes away. Every
    branch ends in a learned scalar that starts at zero.

    Args:
        counts: blocks in each of the four stages: ``(3, 4, 6, 3)`` is ResNet-34 (basic blocks) and
            ResNet-50 (bottlenecks), ``(3, 4, 23, 3)`` ResNet-101.
        act: factory of the activation.
        act_gain: ``sqrt(2 / (1 - 1/pi))`` for ReLU; for a spike see ``lib.models.spiking``.
        stem: ``"imagenet"``, or ``"small"`` for 32x32 images.

    Raises:
        ValueError: unknown ``block`` or ``stem``, or ``counts`` and ``widths`` of different length.
    """

    def __init__(
        self,
        counts: Sequence[int],
        classes: int,
        *,
        block: Literal["basic", "bottleneck"] = "basic",
        widths: Sequence[int] = (64, 128, 256, 512),
        channels: int = 3,
        act: Make = nn.ReLU,
        act_gain: float = (2 / (1 - 1 / torch.pi)) ** 0.5,
        alpha: float = 0.2,
        conv: Make = ScaledWSConv2d,
        stem: Literal["small", "imagenet"] = "imagenet",
    ) -> None:
        super().__init__()
        if block not in ("basic", "bottleneck"):
            raise ValueError(f"block={block!r}: allowed are 'basic' and 'bottleneck'")
        if stem not in ("small", "imagenet"):
            raise ValueError(f"stem={stem!r}: allowed are 'small' and 'imagenet'")
        if len(counts) != len(widths):
            raise ValueError(f"counts={tuple(counts)}: allowed is one for each of {tuple(widths)}")
        if stem == "imagenet":
            opening = [conv(channels, widths[0], kernel_size=7, stride=2, padding=3)]
            opening += [nn.AvgPool2d(3, stride=2, padding=1)]
        else:
            opening = [conv(channels, widths[0], kernel_size=3, padding=1)]
        self.stem = nn.Sequential(*opening)
        expansion = 4 if block == "bottleneck" else 1
        blocks, before, variance = [], widths[0], 1.0
        for stage, (count, width) in enumerate(zip(counts, widths, strict=True)):
            for i in range(count):
                stride = 2 if i == 0 and stage > 0 else 1
                made = NFBlock(
                    before, width, stride, expansion, conv=conv, act=act, act_gain=act_gain,
                    deviation=variance**0.5, alpha=alpha,
                )  # fmt: skip
                variance = (1.0 if made.skip is not None else variance) + alpha**2
                blocks.append(made)
                before = width * expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
        nn.init.zeros_(self.head[-1].weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        return self.head(self.blocks(self.stem(x)))


class NFBlock(nn.Module):
    """Activate, convolve, and add the branch onto the stream; two or three convolutions."""

    def __init__(
        self, c_in, width, stride, expansion, *, conv, act, act_gain, deviation, alpha
    ) -> None:
        super().__init__()
        self.act_gain, self.deviation, self.alpha = act_gain, deviation, alpha
        wide = {"kernel_size": 3, "padding": 1}
        if expansion == 1:
            convs = [conv(c_in, width, stride=stride, **wide), conv(width, width, **wide)]
        else:
            convs = [
                conv(c_in, width, kernel_size=1),
                conv(width, width, stride=stride, **wide),
                conv(width, width * expansion, kernel_size=1),
            ]
        self.convs = nn.ModuleList(convs)
        self.acts = nn.ModuleList(act() for _ in convs)
        self.skip = None
        if stride != 1 or c_in != width * expansion:
            self.skip = conv(c_in, width * expansion, kernel_size=1, stride=stride)
        self.branch_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        out = self.acts[0](x / self.deviation) * self.act_gain
        stream = x if self.skip is None else self.skip(out)
        out = self.convs[0](out)
        for conv, act in zip(self.convs[1:], self.acts[1:], strict=True):
            out = conv(act(out) * self.act_gain)
        return stream + self.alpha * self.branch_gain * out


def _norm(norm: Make | None, channels: int) -> nn.Module:
    return nn.Identity() if norm is None else norm(channels)
