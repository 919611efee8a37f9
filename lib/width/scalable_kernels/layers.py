"""Layers on random features: the layer itself, its conversion from a dense one, adapters."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.surgery import replace_modules
from lib.models.transformer import FeedForward
from lib.width.scalable_kernels.features import Features
from lib.width.scalable_kernels.series import MaclaurinFeatures

FeatureMap = Features | MaclaurinFeatures


class SNNKLinear(nn.Module):
    """``y = Wt Phi(x)``: in the place of ``f(W x + b)``, with ``width`` numbers a unit, not ``d``.

    The nonlinearity is in ``Phi``, which has no trained parameters (unless its random vectors are
    trained); ``Wt`` is trained directly.

    Args:
        features: the map ``Phi``, with its twin ``weights`` for the other side.
        n_out: units, k.
        start: ``"random"``, ``Wt = Psi(W0)`` of a dense layer drawn from N(0, 1/d), or
            ``"zero"``, for adapters.
        bias: a trained vector added to the output.
        gen: draws ``W0``; needed for ``start="random"`` alone.

    Raises:
        ValueError: ``n_out`` below 1, unknown ``start``, or ``gen`` missing.
    """

    def __init__(
        self,
        features: FeatureMap,
        n_out: int,
        *,
        start: str = "random",
        bias: bool = False,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if n_out < 1:
            raise ValueError(f"n_out={n_out}: allowed is 1 or more")
        if start not in ("random", "zero"):
            raise ValueError(f"start={start!r}: allowed are 'random' and 'zero'")
        like = next(iter(features.state_dict().values()))  # their dtype and device
        weight = torch.zeros(n_out, features.width).to(like)
        if start == "random":
            if gen is None:
                raise ValueError("gen: start='random' draws weights and needs a generator")
            W0 = torch.randn(n_out, features.d, generator=gen) / math.sqrt(features.d)
            with torch.no_grad():
                weight = features.weights(W0.to(like))
        self.features = features
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(n_out).to(like)) if bias else None

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b n_out"]:
        y = self.features.sum(x, self.weight)
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def from_linear(layer: nn.Linear, features: FeatureMap) -> SNNKLinear:
    """The layer that estimates ``f(layer(x))``: ``Wt = Psi(W, b)``.

    ``f`` is what ``features`` stand for: a spectrum's function, or another kernel of ``x`` and
    ``(w, b)``. Features without a place for a bias accept a layer without one. They become part of
    the new layer: they are moved to the old one's dtype and device in place.

    Raises:
        ValueError: the layer's inputs are not the features'; a bias that they cannot hold.
        TypeError: ``layer`` is not linear.
    """
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer: allowed is nn.Linear, got {type(layer).__name__}")
    if layer.in_features != features.d:
        raise ValueError(f"layer has {layer.in_features} inputs and features d={features.d}")
    features = features.to(layer.weight)
    made = SNNKLinear(features, layer.out_features, start="zero").to(layer.weight)
    made.weight.copy_(features.weights(layer.weight, layer.bias))
    return made


def uptrain(
    model: nn.Module, make_features: Callable[[int], FeatureMap], match: Callable | None = None
) -> nn.Module:
    """A copy whose feed-forward layers ``down(act(up(x)))`` are ``down(snnk(x))``, to be trained.

    The first matrix becomes ``Psi(W)``; where the features hold no bias, it is left out. The
    second matrix stays, and so does everything else.

    Args:
        make_features: ``d -> features``; with the activation that the model has, the result is an
            estimate of the model, with another kernel a new start.
        match: ``(path, module) -> bool``; every ``FeedForward`` if None.

    Raises:
        ValueError: nothing matches.
        TypeError: a match is no ``FeedForward``, or has a gate.
    """

    def make(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, FeedForward) or layer.gate is not None:
            raise TypeError("match: allowed are FeedForward layers without a gate")
        features = make_features(layer.up.in_features)
        up = nn.Linear(layer.up.in_features, layer.up.out_features, bias=False)
        up.weight = layer.up.weight
        holds_bias = getattr(features, "joint", True)  # universal features always do
        return nn.Sequential(from_linear(layer.up if holds_bias else up, features), layer.down)

    return replace_modules(model, match or FeedForward, make)


def adapter(features: FeatureMap, n_out: int | None = None, *, bias: bool = False) -> SNNKLinear:
    """A change that is zero at the start and has ``width * n_out`` trained numbers (and a bias).

    To be added by ``lib.models.adapters.Adapted``. The dense adapter of bottleneck ``h`` has
    ``2 d h + d + h``.

    Args:
        n_out: ``features.d`` if None.
    """
    n_out = features.d if n_out is None else n_out
    return SNNKLinear(features, n_out, start="zero", bias=bias)


def count_trained(model: nn.Module) -> int:
    """Trained numbers of ``model``."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
