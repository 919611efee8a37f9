"""The backbones of ``lib.models`` with spiking neurons in the place of their activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.cnn import ConvNet
from lib.models.mlp import MLP
from lib.models.resnet import NFResNet, preact18
from lib.models.spiking.neuron import LIF


class MemberLinear(nn.Module):
    """``members`` linear layers side by side: ``"s b in" -> "s b out"``, member by member.

    One network of these is ``s`` independent networks, trained in the same operations, also by
    rules that cannot run inside ``vmap`` because they call ``backward`` at every step.
    """

    def __init__(self, members: int, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(members, n_out)) if bias else None
        for w in self.weight:
            nn.init.kaiming_uniform_(w, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "ts b n_in"]) -> Float[Tensor, "ts b n_out"]:
        return self.affine(x, self.weight, self.bias)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        members, (total, batch) = len(weight), x.shape[:2]
        # Layer by layer, time is folded into the first axis: bring it next to the batch.
        x = x.unflatten(0, (-1, members)).transpose(0, 1).flatten(1, 2)
        out = x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
        return out.unflatten(1, (total // members, batch)).transpose(0, 1).flatten(0, 1)


def spiking_mlp(
    widths: Sequence[int],
    *,
    tau: float = 1.1,
    gen: torch.Generator | Sequence[torch.Generator],
    gain: float = 2.0,
    readout_gain: float | None = None,
    **neuron,
) -> MLP:
    """Linear layers with LIF neurons between them; the last layer is a linear read-out.

    Weights of spiking layers are normal with deviation ``gain / sqrt(fan_in)``, biases 0. PyTorch's
    own initialization is too small here: the second layer would not spike once, and next to no
    gradient would pass it. The read-out keeps PyTorch's rule unless ``readout_gain`` is given.

    Args:
        gen: one generator, or one for each of several members (then inputs are ``"s b d"``).
        neuron: further arguments of :class:`LIF`.
    """
    if isinstance(gen, torch.Generator):
        generators, linear = [gen], nn.Linear
    else:
        generators = list(gen)
        if not generators:
            raise ValueError("gen is empty: one generator for each member is needed")
        linear = lambda n, m, bias: MemberLinear(len(generators), n, m, bias)
    net = MLP(widths, act=lambda: LIF(tau, **neuron), linear=linear)
    with torch.no_grad():
        for layer in net.layers:
            weight, bias = layer.weight, layer.bias
            fan_in, scale = weight.shape[-1], gain
            if layer is net.layers[-1]:
                scale = readout_gain
            for i, g in enumerate(generators):
                w, b = (weight, bias) if linear is nn.Linear else (weight[i], bias[i])
                if scale is not None:
                    w.normal_(0, scale / math.sqrt(fan_in), generator=g)
                    b.zero_()
                else:
                    w.uniform_(-1, 1, generator=g).div_(math.sqrt(fan_in))
                    b.uniform_(-1, 1, generator=g).div_(math.sqrt(fan_in))
    return net


def spiking_cnn(
    widths: Sequence[int | Sequence[int]],
    classes: int,
    *,
    channels: int,
    tau: float = 1.1,
    norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
    **neuron,
) -> ConvNet:
    """Convolution, norm, LIF, average pooling; an average over space and a linear read-out.

    Run step by step, the batch norm is that of each step (its running statistics are shared).
    """
    act = lambda: LIF(tau, **neuron)
    return ConvNet(widths, classes, channels=channels, pool="avg", norm=norm, act=act)


def spiking_vgg11(classes: int = 10, channels: int = 2, **options) -> ConvNet:
    """VGG-11 with LIF neurons, for event frames of 48x48 and more."""
    return spiking_cnn(
        [64, 128, [256] * 2, [512] * 2, [512] * 2], classes, channels=channels, **options
    )


def spiking_resnet18(classes: int = 10, channels: int = 3, tau: float = 1.1, **neuron) -> nn.Module:
    """The pre-activated ResNet-18 for 32x32 images with LIF neurons and batch norm.

    Shortcuts carry spikes: they leave after a block's first neurons.
    """
    act = lambda: LIF(tau, **neuron)
    return preact18(classes, channels=channels, act=act, skip_activated=True)


def spiking_nf_resnet(
    depth: int,
    classes: int = 1000,
    tau: float = 1.1,
    threshold: float = 1.0,
    **options,
) -> NFResNet:
    """A spiking ResNet-34, -50 or -101 without normalization, to learn one step at a time.

    Spikes are multiplied by :func:`spike_gain`. ``options``: those of ``NFResNet``.

    Raises:
        ValueError: another depth.
    """
    plans = {
        34: ((3, 4, 6, 3), "basic"),
        50: ((3, 4, 6, 3), "bottleneck"),
        101: ((3, 4, 23, 3), "bottleneck"),
    }
    if depth not in plans:
        raise ValueError(f"depth={depth}: allowed are {', '.join(map(str, plans))}")
    counts, block = plans[depth]
    act = lambda: LIF(tau, threshold)
    return NFResNet(
        counts, classes, block=block, act=act, act_gain=spike_gain(threshold), **options
    )


def spike_gain(threshold: float = 1.0) -> float:
    """``1 / sqrt(p (1 - p))`` with ``p = P(z >= threshold)``, z standard normal: about 2.74.

    The factor that gives spikes of a normal current unit variance.
    """
    p = 0.5 * math.erfc(threshold / math.sqrt(2))
    return 1 / math.sqrt(p * (1 - p))
