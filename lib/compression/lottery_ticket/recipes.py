"""The paper's networks and how it trains them (its figure 2, sections 3 and 4, appendices).

What stands behind the numbers. The authors' published code covers LeNet-300-100 only: Gaussian
Glorot weights, zero biases, 50,000 iterations, rates of 20 % and 10 % for the output layer, each
layer ranked for itself by the magnitude of the trained survivors. It differs from the paper and
from here in that it trains with plain gradient steps of 0.1 on batches of 64, draws from a Gaussian
cut off at two standard deviations, and removes one weight more than ``round(rate n)``. Their later
framework, OpenLTH, has the same two deep networks (160 epochs, a tenth of the rate after 80 and
120, weight decay 1e-4, Adam and layer ranking left out), but starts them from He's initialization,
rounds up, and prunes the shortcuts of the ResNet too, and its output layer; the paper leaves the
2,560 weights of the shortcuts and the 640 of the output layer dense.

Second-hand, from those who reproduced it and quote the paper: the lengths and milestones of the
deep networks, what they leave dense, and the 20,000 iterations of warm-up of ResNet-18. From memory
of the paper and confirmed by nothing: the settings of Conv-2, Conv-4 and Conv-6, where their
dropout sits (here after each hidden layer of the head), and the 10,000 iterations of warm-up of
VGG-19.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.compression.lottery_ticket.training import adam
from lib.core.masks import prunable
from lib.core.schedules import schedule
from lib.models.cnn import conv_n, lenet300, vgg
from lib.models.init import initialize_
from lib.models.resnet import resnet_cifar


def layer_rates(
    model: nn.Module, linear: float, conv: float | None = None, output: float = 0.5
) -> dict[str, float]:
    """Pruning rate of every weight: fully connected, convolutional, and the output layer's.

    Args:
        conv: rate of the convolutions; as ``linear`` if None.
        output: factor on the last layer's rate. The paper halves it; 0 leaves the layer dense.
    """
    names, params = prunable(model), dict(model.named_parameters())
    rates = {n: linear if conv is None or params[n].ndim == 2 else conv for n in names}
    rates[names[-1]] *= output
    return rates


@dataclass(frozen=True)
class Recipe:
    """One of the paper's experiments.

    ``rate`` is that of the convolutions (or of all layers where there are none), ``linear`` that of
    the fully connected layers; the output layer has half of it. With ``scope="global"`` the
    convolutions share one pool, and what ``exclude`` names stays dense. ``warmup`` is the number of
    iterations over which the paper raises the learning rate where that helps.
    """

    make: Callable[[], nn.Module]
    data: str
    steps: int
    batch: int
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]
    conv: float | None
    linear: float
    scope: str = "layer"
    exclude: tuple[str, ...] = ()
    milestones: tuple[int, ...] = ()
    warmup: int = 0

    def draw(self, gen: torch.Generator) -> nn.Module:
        """The network with Gaussian Glorot weights and zero biases, as everywhere in the paper."""
        model = self.make()
        initialize_(model, "glorot", gen=gen)
        return model

    def rates(self) -> float | dict[str, float]:
        """What ``IterativeMagnitudePruning`` takes as ``rate``."""
        if self.scope == "global":
            return self.conv
        return layer_rates(self.make(), self.linear, self.conv)

    def schedule(self, warmup: int = 0) -> Callable[[int], float]:
        """Constant or dropping by ten at the milestones, after a linear warm-up of ``warmup``
        steps, without which the deep networks have no winning tickets at a high rate."""
        name = "step" if self.milestones else "constant"
        return schedule(name, self.steps, warmup=warmup, milestones=self.milestones)


def _sgd(lr: float) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    return lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=1e-4)


def _deep(make, steps, batch, milestones, warmup, lr=0.1, dense=()) -> Recipe:
    return Recipe(make, "cifar10", steps, batch, _sgd(lr), 0.2, 0.0, "global", ("head", *dense),
                  milestones, warmup)  # fmt: skip


def _conv(n: int, lr: float, steps: int, rate: float, dropout: float = 0.0) -> Recipe:
    return Recipe(lambda: conv_n(n, dropout=dropout), "cifar10", steps, 60, adam(lr), rate, 0.2)


RECIPES = {
    "lenet": Recipe(lenet300, "mnist", 50_000, 60, adam(1.2e-3), None, 0.2),
    "conv2": _conv(2, 2e-4, 20_000, 0.1),
    "conv4": _conv(4, 3e-4, 25_000, 0.1),
    "conv6": _conv(6, 3e-4, 30_000, 0.15),
    "conv2_dropout": _conv(2, 2e-4, 20_000, 0.1, 0.5),
    "conv4_dropout": _conv(4, 3e-4, 25_000, 0.1, 0.5),
    "conv6_dropout": _conv(6, 3e-4, 30_000, 0.15, 0.5),
    # Its ResNet-18 is the CIFAR network of 20 layers: 270,256 weights in convolutions, of which the
    # two shortcuts' 2,560 are not pruned. With warm-up it has tickets at a rate of 0.03.
    "resnet18": _deep(
        lambda: resnet_cifar(20, shortcut="B"),
        30_000,
        128,
        (20_000, 25_000),
        20_000,
        dense=("blocks.3.skip", "blocks.6.skip"),
    ),  # fmt: skip
    # 160 epochs of 703 batches: 45,000 images train, 5,000 validate.
    "vgg19": _deep(lambda: vgg(19, 10), 112_480, 64, (56_240, 84_360), 10_000),
}
