"""Networks side by side: the same structure with other weights, as one network with groups.

Small convolutions cost a call more than they cost arithmetic. Channels of all members stand next to
one another, a convolution becomes a grouped one, batch normalization already works channel by
channel. Nothing of one member reaches another, so training all at once is training each alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.models.local_learning import LocalBlocks

# Layers without weights that mix channels, and with them members.
MIXING = (
    nn.Softmax,
    nn.Softmax2d,
    nn.LogSoftmax,
    nn.Softmin,
    nn.GLU,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Unflatten,
)


def side_by_side(models: Sequence[LocalBlocks]) -> SideBySide:
    """The ``models`` as one; their weights are copied.

    Linear maps, convolutions and batch normalizations are grouped. Layers without weights, and what
    a block does between its layers, must treat channels one by one.

    Raises:
        ValueError: no models, or such of different structure.
        TypeError: no ``LocalBlocks``, a head with a loss of its own, a layer that cannot be
            grouped.
    """
    return SideBySide(models)


class SideBySide(LocalBlocks):
    """``LocalBlocks`` for several members; all see the same batch.

    ``forward`` gives "members b classes" and ``hidden`` a list of "members b c ...". Losses are
    sums over members, so that each member's gradient is what it would be alone.
    """

    def __init__(self, models: Sequence[LocalBlocks]) -> None:
        if len(models) < 1:
            raise ValueError("models: at least one")
        for model in models:
            # A subclass may have rules of its own, which the merged network would forget.
            if type(model) is not LocalBlocks:
                raise TypeError(f"models: {type(model).__name__}, allowed are LocalBlocks")
        if len(counts := {len(model.blocks) for model in models}) > 1:
            raise ValueError(f"models have {sorted(counts)} blocks: allowed is one number")
        blocks = [_merge(parts) for parts in zip(*(m.blocks for m in models))]
        heads = [_Heads(parts) for parts in zip(*(m.heads for m in models))]
        super().__init__(blocks, heads)
        self.members = len(models)
        self.train(models[0].training)

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "members b classes"]:
        return self._apart(super().forward(self.spread(x)))

    def hidden(self, x: Float[Tensor, "b c ..."]) -> list[Tensor]:
        return [self._apart(h) for h in super().hidden(self.spread(x))]

    def local_losses(self, x: Float[Tensor, "b c ..."], y: Int[Tensor, "b"]) -> Iterator[Tensor]:
        yield from super().local_losses(self.spread(x), y)

    def spread(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b mc ..."]:
        """The input once for every member."""
        return x.repeat(1, self.members, *[1] * (x.ndim - 2))

    def _apart(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (self.members, -1)).movedim(1, 0)


class _Heads(nn.Module):
    """One head of every member; the loss is the sum of their cross-entropies."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        if hasattr(heads[0], "loss"):
            raise TypeError(f"{type(heads[0]).__name__} has a loss of its own: train it alone")
        self.head, self.members = _merge(heads), len(heads)

    def forward(self, h: Float[Tensor, "b mc ..."]) -> Float[Tensor, "b mk"]:
        return self.head(h)

    def loss(self, h: Float[Tensor, "b mc ..."], x: Tensor, y: Int[Tensor, "b"]) -> Tensor:
        logits = self(h).unflatten(1, (self.members, -1)).flatten(0, 1)
        return self.members * F.cross_entropy(logits, y.repeat_interleave(self.members))


class GroupedLinear(nn.Module):
    """One linear map for each group of the input's entries."""

    def __init__(self, maps: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([a.weight.detach() for a in maps]))
        bias = maps[0].bias is not None
        self.bias = nn.Parameter(torch.stack([a.bias.detach() for a in maps])) if bias else None

    def forward(self, x: Float[Tensor, "b mc"]) -> Float[Tensor, "b mk"]:
        x = x.unflatten(1, (len(self.weight), -1))
        out = torch.einsum("bmi,moi->bmo", x, self.weight)
        return (out if self.bias is None else out + self.bias).flatten(1)


@torch.no_grad()
def _merge(parts: Sequence[nn.Module]) -> nn.Module:
    """One module that does to every group of channels what ``parts`` do to theirs."""
    first, name = parts[0], type(parts[0]).__name__
    # What a module prints holds its sizes, strides and rates, and those of all its children.
    if any(type(part) is not type(first) or repr(part) != repr(first) for part in parts):
        raise ValueError(f"models: {name} differs between members")
    if type(first) is nn.Linear:
        merged = GroupedLinear(parts)
    elif type(first) is nn.Conv2d:
        merged = _grouped_convolution(first, parts)
    elif type(first) in (nn.BatchNorm1d, nn.BatchNorm2d):
        merged = _wider_norm(first, parts)
    elif list(first.parameters(recurse=False)) or list(first.buffers(recurse=False)):
        raise TypeError(f"{name}: members of this layer cannot be grouped")
    elif isinstance(first, MIXING):
        raise TypeError(f"{name} mixes channels: members cannot stand side by side in it")
    else:
        merged = copy.copy(first)
        merged._modules = {
            key: None if child is None else _merge([p._modules[key] for p in parts])
            for key, child in first._modules.items()
        }
        return merged
    for key, parameter in merged.named_parameters():
        parameter.requires_grad_(getattr(first, key).requires_grad)
    return merged


def _grouped_convolution(first: nn.Conv2d, parts: Sequence[nn.Conv2d]) -> nn.Conv2d:
    m = len(parts)
    merged = nn.Conv2d(
        m * first.in_channels,
        m * first.out_channels,
        first.kernel_size,
        stride=first.stride,
        padding=first.padding,
        dilation=first.dilation,
        groups=m * first.groups,
        bias=first.bias is not None,
        padding_mode=first.padding_mode,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    return _fill(merged, parts)


def _wider_norm(
    first: nn.BatchNorm1d | nn.BatchNorm2d, parts: Sequence[nn.Module]
) -> nn.BatchNorm1d | nn.BatchNorm2d:
    known = [*first.parameters(), *first.buffers()]
    like = {"device": known[0].device, "dtype": known[0].dtype} if known else {}
    merged = type(first)(
        len(parts) * first.num_features,
        first.eps,
        first.momentum,
        first.affine,
        first.track_running_stats,
        **like,
    )
    return _fill(merged, parts)


def _fill(merged: nn.Module, parts: Sequence[nn.Module]) -> nn.Module:
    """Copy weights and running averages member after member; counters are those of the first."""
    states = [part.state_dict() for part in parts]
    for key, tensor in merged.state_dict().items():
        found = [state[key] for state in states]
        tensor.copy_(torch.cat(found) if tensor.ndim else found[0])
    return merged
