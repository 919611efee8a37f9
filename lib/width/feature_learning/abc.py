"""abc-parametrizations: three exponents a layer, what they do, and networks built with them.

``W^l = n^{-a_l} w^l`` with ``w^l ~ N(0, n^{-2 b_l})`` trained by SGD at rate ``eta n^{-c}``; ``n``
is the width of the hidden layers, ``l = 1, ..., L + 1``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.fitting import progress
from lib.models.infinite_width import ACTIVATIONS
from lib.models.mlp import MLP

_TOLERANCE = 1e-9  # exponents are sums of a few halves; this forgives their rounding


@dataclass(frozen=True)
class ABCParam:
    """Exponents ``a_1 ... a_{L+1}``, ``b_1 ... b_{L+1}`` and ``c`` for L hidden layers.

    An infinite ``b`` of the last layer starts it at zero.

    Raises:
        ValueError: ``a`` and ``b`` of different lengths or shorter than 2, an exponent that is
            NaN, or an infinite one other than the last ``b``.
    """

    a: Sequence[float]
    b: Sequence[float]
    c: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", tuple(float(v) for v in self.a))
        object.__setattr__(self, "b", tuple(float(v) for v in self.b))
        object.__setattr__(self, "c", float(self.c))
        if len(self.a) != len(self.b) or len(self.a) < 2:
            raise ValueError(
                f"a and b need one exponent per weight layer, at least 2; got {len(self.a)} and "
                f"{len(self.b)}"
            )
        finite = all(map(math.isfinite, (*self.a, *self.b[:-1], self.c)))
        if not finite or not self.b[-1] > -math.inf:
            raise ValueError(f"a={self.a}, b={self.b}, c={self.c}: only the last b may be infinite")

    @property
    def depth(self) -> int:
        """L, the number of hidden layers."""
        return len(self.a) - 1

    def classify(self) -> dict:
        """Does a wide network of this kind stay finite, move at all, and learn features?

        The paper's conditions for stability, nontriviality and feature learning. Keys:
        ``stable``, ``nontrivial``, ``feature_learning``, ``kernel_regime`` (booleans; the last two
        are False when one of the first two is), ``uniform`` (every hidden layer's own weights move
        its features at one order), ``r`` and the powers of ``1/n`` that it promises where training
        is stable: ``layer_rates[l]`` of the change of ``h^{l+1}``, ``output_rate`` of the change
        of ``f``.
        """
        a, b, c, last = self.a, self.b, self.c, self.a[-1] + self.b[-1]
        # What comes back through the last layer: its initial weights or what training added.
        backward = min(last, 2 * a[-1] + c) + c - 1
        own = [2 * a_l + (l == 0) for l, a_l in enumerate(a[:-1])]
        r = backward + min(own)
        stable = (
            _equal(a[0] + b[0], 0)
            and all(_equal(a[l] + b[l], 0.5) for l in range(1, self.depth))
            and _at_least(last, 0.5)
            and _at_least(r, 0)
            and _at_least(2 * a[-1] + c, 1)
            and _at_least(last + r, 1)
        )
        nontrivial = _equal(last + r, 1) or _equal(2 * a[-1] + c, 1)
        return {
            "stable": stable,
            "nontrivial": nontrivial,
            "feature_learning": stable and nontrivial and _equal(r, 0),
            "kernel_regime": stable and nontrivial and not _equal(r, 0),
            "uniform": all(_equal(v, own[0]) for v in own),
            "r": r,
            "layer_rates": tuple(backward + min(own[: l + 1]) for l in range(self.depth)),
            "output_rate": min(last + r, 2 * a[-1] + c) - 1,
        }

    def shifted(self, t: float) -> ABCParam:
        """``(a + t, b - t, c - 2t)`` in all layers: SGD trains the same functions."""
        return ABCParam([v + t for v in self.a], [v - t for v in self.b], self.c - 2 * t)

    def zero_output(self) -> ABCParam:
        """The same with a last layer that starts at zero."""
        return replace(self, b=(*self.b[:-1], math.inf))


def standard(depth: int, c: float = 0.0) -> ABCParam:
    """Standard parametrization: variance 1/fan-in, no multipliers; ``c=1`` keeps it stable."""
    _check_depth(depth)
    return ABCParam([0.0] * (depth + 1), [0.0] + [0.5] * depth, c)


def ntk(depth: int) -> ABCParam:
    """NTK parametrization: unit variances, multipliers ``n^{-1/2}`` after the first layer."""
    _check_depth(depth)
    return ABCParam([0.0] + [0.5] * depth, [0.0] * (depth + 1), 0.0)


def mean_field() -> ABCParam:
    """Mean field parametrization of one hidden layer: ``f = (1/n) sum_i v_i s(u_i x)``."""
    return ABCParam([0.0, 1.0], [0.0, 0.0], -1.0)


def mup(depth: int) -> ABCParam:
    """Maximal update parametrization: every layer learns as much as stability allows."""
    _check_depth(depth)
    return ABCParam([-0.5] + [0.0] * (depth - 1) + [0.5], [0.5] * (depth + 1), 0.0)


class ABCMLP(nn.Module):
    """``h^1 = W^1 x``, ``h^{l+1} = W^{l+1} s(h^l)``, output ``f = W^{L+1} s(h^L)``, no biases.

    At a finite width the powers are of ``m = n / base``, and constants of order one complete the
    variances: 1/d in the first layer and 1/base after it. So all parametrizations are one network
    at ``n = base``, with one learning rate.

    Args:
        widths: ``(d, n, ..., n, o)``; hidden widths are equal.
        activation: ``"relu"``, ``"erf"``, ``"identity"``, ``"sin"`` or an elementwise function.
        gain: the activation is multiplied by its root; 2 keeps a ReLU network's variance.
        gen: source of the initial weights; torch's global one if ``None``.

    Raises:
        ValueError: widths that do not fit ``abc``, an unknown activation.
    """

    def __init__(
        self,
        widths: Sequence[int],
        abc: ABCParam,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        base: int = 64,
        gain: float = 1.0,
        gen: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(abc.a) + 1 or min(widths) < 1:
            raise ValueError(
                f"widths={list(widths)}: with {len(abc.a)} weight layers, allowed are "
                f"{len(abc.a) + 1} numbers, each >= 1"
            )
        if len(set(widths[1:-1])) != 1:
            raise ValueError(f"widths={list(widths)}: hidden layers must have one width")
        if base < 1 or not 0 < gain < math.inf:
            raise ValueError(f"base={base}, gain={gain}: allowed are base >= 1 and gain > 0")
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(
                f"activation={activation!r}: allowed are {', '.join(ACTIVATIONS)}, or a function"
            )
        self.widths, self.abc, self.gain = tuple(widths), abc, gain
        self.m = widths[1] / base
        self._act = ACTIVATIONS.get(activation, activation)
        constants = [1 / math.sqrt(widths[0])] + [1 / math.sqrt(base)] * abc.depth
        self.layers = nn.ModuleList(
            ABCLinear(n, k, self.m**-a, constant * self.m**-b, gen, dtype)
            for n, k, a, b, constant in zip(widths[:-1], widths[1:], abc.a, abc.b, constants)
        )

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch o"]:
        check_inputs(x, self.widths[0])
        h = self.layers[0](x)
        for layer in self.layers[1:]:
            h = layer(math.sqrt(self.gain) * self._act(h))
        return h

    def rate(self, eta: float) -> float:
        """The learning rate ``eta m^{-c}``."""
        return eta * self.m**-self.abc.c

    def sgd(self, eta: float) -> torch.optim.SGD:
        """Plain SGD at ``rate(eta)``, one rate for all layers."""
        return torch.optim.SGD(self.parameters(), lr=self.rate(eta))


class ABCLinear(nn.Module):
    """``multiplier * w x`` with ``w ~ N(0, std^2)``."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        multiplier: float,
        std: float,
        gen: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.weight = nn.Parameter(std * torch.randn(n_out, n_in, generator=gen, dtype=dtype))

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        return nn.functional.linear(self.multiplier * x, self.weight)


# muP in an ordinary network: the multipliers move into the initial weights and the rates.


@torch.no_grad()
def mup_init_(
    model: MLP, base_width: int, gain: float = 1.0, gen: torch.Generator | None = None
) -> MLP:
    """Draw an ordinary MLP's weights as muP wants them, biases at zero; returns the model.

    Shifting every layer by ``t = -a_l`` removes the multipliers and leaves the variances 1/d,
    gain/n, and ``gain / (base m^2)`` for the output, ``m = n / base_width``.

    Raises:
        ValueError: hidden widths that differ, a ``gain`` or ``base_width`` that is not positive.
    """
    m = _relative_width(model, base_width)
    if not 0 < gain < math.inf:
        raise ValueError(f"gain={gain}: allowed is more than 0")
    last = len(model.layers) - 1
    for l, layer in enumerate(model.layers):
        variance = 1 / layer.in_features if l == 0 else gain / (base_width * m)
        variance /= m if l == last else 1
        layer.weight.copy_(math.sqrt(variance) * torch.randn(layer.weight.shape, generator=gen))
        if layer.bias is not None:
            layer.bias.zero_()
    return model


def mup_optimizer(
    model: MLP, base_width: int, lr: float, kind: str = "sgd", **settings
) -> torch.optim.Optimizer:
    """SGD or Adam with the rate that muP gives each layer of an MLP without multipliers.

    With ``m = n / base_width``, the factors on ``lr`` are

    =====================  =======  =======
    parameters             SGD      Adam
    =====================  =======  =======
    first layer, biases    m        1
    hidden layers          1        1/m
    output layer           1/m      1/m
    output bias            1        1
    =====================  =======  =======

    Adam's updates have the size of the rate whatever the gradient, hence its own column (G. Yang
    et al., 2022, arXiv 2203.03466, table 3). ``settings`` go to the optimizer.

    Raises:
        ValueError: hidden widths that differ, an unknown ``kind``, a ``base_width`` below 1.
    """
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: allowed are 'sgd' and 'adam'")
    m = _relative_width(model, base_width)
    first, hidden, output = (m, 1.0, 1 / m) if kind == "sgd" else (1.0, 1 / m, 1 / m)
    last, groups = len(model.layers) - 1, []
    for l, layer in enumerate(model.layers):
        factor = first if l == 0 else output if l == last else hidden
        groups.append({"params": [layer.weight], "lr": lr * factor})
        if layer.bias is not None:
            groups.append({"params": [layer.bias], "lr": lr * (1.0 if l == last else first)})
    return kinds[kind](groups, lr=lr, **settings)


# What the exponents promise, measured.


def coordinate_check(
    make_model: Callable[[int, int], nn.Module],
    widths: Iterable[int],
    steps: int,
    data: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    lr: float,
    seeds: Iterable[int] = (0,),
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] | None = None,
) -> pd.DataFrame:
    """Root mean square change, per coordinate, of every layer's output after ``steps`` of training.

    ``make_model(n, seed)`` builds a network with a list ``layers``; the same full batch
    ``data = (x, y)`` trains and probes it at every width.

    Args:
        loss: ``loss(model(x), y) -> scalar``.
        optimizer: ``optimizer(model, lr)``; by default ``model.sgd(lr)``.

    Returns:
        One row per width, seed and layer: ``width, seed, layer, change``. Layer ``l`` is ``h^l``
        before its nonlinearity; the last one is called ``"f"``.

    Raises:
        ValueError: ``steps`` below 1, no width or no seed, a model without ``layers``.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: allowed is 1 or more")
    widths, seeds = list(widths), list(seeds)
    if not widths or not seeds:
        raise ValueError(f"widths={widths}, seeds={seeds}: allowed is one or more of each")
    optimizer = optimizer or (lambda model, lr: model.sgd(lr))
    x, y = data
    rows = []
    for n, seed in progress([(n, seed) for n in widths for seed in seeds], "coordinate check"):
        model = make_model(n, seed)
        opt = optimizer(model, lr)
        before = layer_outputs(model, x)
        for _ in range(steps):
            opt.zero_grad(set_to_none=True)
            loss(model(x), y).backward()
            opt.step()
        after = layer_outputs(model, x)
        names = [f"h{l + 1}" for l in range(len(before) - 1)] + ["f"]
        for name, old, new in zip(names, before, after):
            change = (new - old).square().mean().sqrt().item()
            rows.append({"width": n, "seed": seed, "layer": name, "change": change})
    return pd.DataFrame(rows)


@torch.no_grad()
def layer_outputs(model: nn.Module, x: Float[Tensor, "batch d"]) -> list[Float[Tensor, "batch _"]]:
    """``h^1, ..., h^L, f``: what each module of ``model.layers`` returns for ``x``."""
    if not hasattr(model, "layers"):
        raise ValueError(f"model: allowed is a network with a list `layers`, got {type(model)}")
    found: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, out: found.append(out))
        for layer in model.layers
    ]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _relative_width(model: MLP, base_width: int) -> float:
    hidden = set(model.widths[1:-1])
    if len(hidden) != 1:
        raise ValueError(f"model: hidden layers must have one width, got {model.widths[1:-1]}")
    if base_width < 1:
        raise ValueError(f"base_width={base_width}: allowed is 1 or more")
    return hidden.pop() / base_width


def check_inputs(x: Tensor, d: int) -> None:
    """The last axis of ``x`` has ``d`` numbers, or a ``ValueError`` says so."""
    if x.ndim < 1 or x.shape[-1] != d:
        raise ValueError(f"x must be (..., {d}), got {tuple(x.shape)}")


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"depth={depth}: allowed is 1 or more hidden layers")


def _equal(x: float, y: float) -> bool:
    return abs(x - y) < _TOLERANCE


def _at_least(x: float, y: float) -> bool:
    return x > y - _TOLERANCE
