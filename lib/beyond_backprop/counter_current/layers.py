"""Layers with two directions: weights for what goes up, and others for what goes down.

Every layer has ``forward(x, detach)`` and ``reverse(g, detach)``. ``detach`` cuts the INPUT off
from what made it, so a loss on the output teaches this layer alone.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATIONS = {
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
}
Activation = Literal["elu", "tanh", "relu", "leaky_relu", "selu"]
Norm = Literal[0, 1, 2]


class DualLayer(nn.Module):
    """A path ``up`` and a path ``down`` that share nothing but the widths at their ends.

    Attributes:
        up: from ``n_in`` to ``n_out``; its weights are the paper's ``W``.
        down: from ``n_out`` to ``n_in``, weights ``V``; ``None`` where nothing goes further down.
    """

    def __init__(self, up: nn.Module, down: nn.Module | None) -> None:
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x: Tensor, detach: bool = True) -> Tensor:
        _check_input(self.up, x, "x")
        return self.up(x.detach() if detach else x)

    def reverse(self, g: Tensor, detach: bool = True) -> Tensor:
        if self.down is None:
            raise ValueError("this layer was made with feedback=False: nothing goes down from here")
        _check_input(self.down, g, "g")
        return self.down(g.detach() if detach else g)

    @property
    def W(self) -> nn.Parameter:
        return _weight(self.up)

    @property
    def V(self) -> nn.Parameter | None:
        return None if self.down is None else _weight(self.down)


class DualLinear(DualLayer):
    """``h = f(W x + b)`` up, ``g = f(V g' + c)`` down, weights drawn apart.

    Args:
        act_f, act_b: activation of each direction; ``None`` is the bare map, without norm.
        norm_f, norm_b: 0 none, 1 batch normalization before the map, 2 after it.
        bias: of both maps. The authors' program leaves it out of fully connected layers.
        zero_bias: biases start at 0; otherwise as PyTorch draws them.
        feedback: ``False`` leaves the map down out: the first layer of a classifier.
        gen: source of the initial weights; torch's global one if ``None``.

    Raises:
        ValueError: a size below 1, an unknown activation or norm.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        act_f: Activation | None = "elu",
        act_b: Activation | None = "elu",
        norm_f: Norm = 0,
        norm_b: Norm = 0,
        bias: bool = True,
        zero_bias: bool = False,
        feedback: bool = True,
        gen: torch.Generator | None = None,
    ) -> None:
        if min(n_in, n_out) < 1:
            raise ValueError(f"n_in={n_in}, n_out={n_out}: allowed is 1 or more")
        W, V = nn.Linear(n_in, n_out, bias=bias), nn.Linear(n_out, n_in, bias=bias)
        for m in (W, V):
            draw_(m, zero_bias, gen)
        super().__init__(
            _path(W, act_f, norm_f, nn.BatchNorm1d, n_in, n_out),
            _path(V, act_b, norm_b, nn.BatchNorm1d, n_out, n_in) if feedback else None,
        )


class DualConv2d(DualLayer):
    """A convolution of stride 2 up; down, every pixel doubled, then a convolution of stride 1.

    Arguments as for :class:`DualLinear`; ``kernel`` is odd, padding keeps the places aligned.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        act_f: Activation | None = "elu",
        act_b: Activation | None = "elu",
        norm_f: Norm = 0,
        norm_b: Norm = 0,
        zero_bias: bool = False,
        feedback: bool = True,
        gen: torch.Generator | None = None,
    ) -> None:
        W, V = _halve(c_in, c_out, kernel), _keep(c_out, c_in, kernel)
        for m in (W, V):
            draw_(m, zero_bias, gen)
        down = _path(V, act_b, norm_b, nn.BatchNorm2d, c_out, c_in, nn.Upsample(scale_factor=2))
        super().__init__(
            _path(W, act_f, norm_f, nn.BatchNorm2d, c_in, c_out), down if feedback else None
        )


class DualConvTranspose2d(DualLayer):
    """The mirror image, for decoders: double and convolve up, stride 2 down."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        act_f: Activation | None = "elu",
        act_b: Activation | None = "elu",
        norm_f: Norm = 0,
        norm_b: Norm = 0,
        zero_bias: bool = False,
        feedback: bool = True,
        gen: torch.Generator | None = None,
    ) -> None:
        W, V = _keep(c_in, c_out, kernel), _halve(c_out, c_in, kernel)
        for m in (W, V):
            draw_(m, zero_bias, gen)
        up = _path(W, act_f, norm_f, nn.BatchNorm2d, c_in, c_out, nn.Upsample(scale_factor=2))
        super().__init__(
            up, _path(V, act_b, norm_b, nn.BatchNorm2d, c_out, c_in) if feedback else None
        )


class DualFlatten(nn.Module):
    """Maps of ``shape`` to rows and back. It has no weights and cuts nothing."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        if not shape or min(shape) < 1:
            raise ValueError(f"shape={shape}: allowed are numbers, each 1 or more")
        self.shape = shape

    def forward(self, x: Float[Tensor, "b ..."], detach: bool = True) -> Float[Tensor, "b n"]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}: allowed is (b, *{self.shape})")
        return x.flatten(1)

    def reverse(self, g: Float[Tensor, "b n"], detach: bool = True) -> Float[Tensor, "b ..."]:
        if g.shape[1:] != (math.prod(self.shape),):
            raise ValueError(
                f"g has shape {tuple(g.shape)}: allowed is (b, {math.prod(self.shape)})"
            )
        return g.unflatten(1, self.shape)


@torch.no_grad()
def draw_(m: nn.Module, zero_bias: bool = False, gen: torch.Generator | None = None) -> None:
    """PyTorch's default: everything uniform in ``+-1/sqrt(fan_in)``; biases 0 if asked."""
    bound = 1 / math.sqrt(m.weight[0].numel())
    m.weight.uniform_(-bound, bound, generator=gen)
    if m.bias is not None:
        m.bias.uniform_(-bound, bound, generator=gen)
        if zero_bias:
            m.bias.zero_()


def _path(m, act, norm, batch_norm, n_in, n_out, first=None) -> nn.Sequential:
    if act is not None and act not in ACTIVATIONS:
        raise ValueError(f"act={act!r}: allowed are {', '.join(map(repr, ACTIVATIONS))} and None")
    if norm not in (0, 1, 2):
        raise ValueError(f"norm={norm}: allowed are 0 (none), 1 (before the map) and 2 (after it)")
    steps = [] if first is None else [first]
    if norm == 1 and act is not None:
        steps.append(batch_norm(n_in))
    steps.append(m)
    if norm == 2 and act is not None:
        steps.append(batch_norm(n_out))
    if act is not None:
        steps.append(ACTIVATIONS[act]())
    return nn.Sequential(*steps)


def _check_input(path: nn.Module, x: Tensor, name: str) -> None:
    weight = _weight(path)
    if x.ndim != weight.ndim or x.shape[1] != weight.shape[1]:
        what = "(samples, features)" if weight.ndim == 2 else "(samples, channels, height, width)"
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}: allowed is {what} with {weight.shape[1]} on axis 1"
        )


def _weight(path: nn.Module) -> Tensor:
    return next(m.weight for m in path if isinstance(m, (nn.Linear, nn.Conv2d)))


def _halve(c_in: int, c_out: int, kernel: int) -> nn.Conv2d:
    _check_channels(c_in, c_out)
    return nn.Conv2d(c_in, c_out, _odd(kernel), stride=2, padding=kernel // 2)


def _keep(c_in: int, c_out: int, kernel: int) -> nn.Conv2d:
    _check_channels(c_in, c_out)
    return nn.Conv2d(c_in, c_out, _odd(kernel), padding=kernel // 2)


def _check_channels(c_in: int, c_out: int) -> None:
    if min(c_in, c_out) < 1:
        raise ValueError(f"channels {c_in} and {c_out}: allowed is 1 or more")


def _odd(kernel: int) -> int:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: allowed are odd numbers, 1 or more")
    return kernel
