"""The paper's networks and how it trains them (its figure 2 and sections 3 and 4)."""

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
    convolutions share one pool and the output layer stays dense.
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


def _deep(make, steps, batch, milestones, lr=0.1) -> Recipe:
    return Recipe(make, "cifar10", steps, batch, _sgd(lr), 0.2, 0.0, "global", ("head",),
                  milestones)  # fmt: skip


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
    # Its ResNet-18 is the CIFAR network of 20 layers without the two shortcut convolutions.
    "resnet18": _deep(lambda: resnet_cifar(20), 30_000, 128, (20_000, 25_000)),
    "vgg19": _deep(lambda: vgg(19, 10), 112_480, 64, (56_240, 84_360)),
}
