"""Named rules for drawing the weights of linear and convolutional layers."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

RULES = ("torch", "he", "glorot", "lecun", "orthogonal")


@torch.no_grad()
def initialize_(
    model: nn.Module,
    rule: str,
    gain: float = 1.0,
    fan: str = "in",
    gen: torch.Generator | None = None,
) -> dict[str, float]:
    """Draw every weight of ``nn.Linear`` and of the convolutions anew; returns their variances.

    ========== ============================== ====================================================
    rule       distribution                   variance of an entry
    ========== ============================== ====================================================
    torch      uniform                        gain^2 / (3 fan_in), what the layers do by themselves
    he         normal                         2 gain^2 / fan (He et al. 2015)
    glorot     normal                         2 gain^2 / (fan_in + fan_out) (Glorot, Bengio 2010)
    lecun      normal                         gain^2 / fan
    orthogonal rows or columns orthonormal    gain^2 / max(rows, columns) (Saxe et al. 2014)
    ========== ============================== ====================================================

    Biases become 0, except under ``"torch"``, where they are uniform within gain / sqrt(fan_in).
    Fans are counted as ``torch.nn.init`` counts them. Norms, embeddings and layers of other types
    keep their numbers.

    Args:
        gain: factor on the standard deviation.
        fan: ``"in"`` or ``"out"``, for ``"he"`` and ``"lecun"``.
        gen: source of the numbers; torch's global one if None.

    Returns:
        The variance that the rule gives an entry, by the weight's name.

    Raises:
        ValueError: unknown ``rule`` or ``fan``, ``gain`` not positive, no layer to initialize,
            or a layer whose weight is reparametrized.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: allowed are {', '.join(map(repr, RULES))}")
    if fan not in ("in", "out"):
        raise ValueError(f"fan={fan!r}: allowed are 'in' and 'out'")
    if not gain > 0:
        raise ValueError(f"gain={gain}: allowed are positive numbers")
    variances = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        if is_parametrized(layer, "weight"):
            raise ValueError(f"model: {path}.weight is computed (masked?); initialize before that")
        w, bias = layer.weight, layer.bias
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(w)
        chosen = fan_in if fan == "in" else fan_out
        variance = {
            "torch": 1 / (3 * fan_in),
            "he": 2 / chosen,
            "glorot": 2 / (fan_in + fan_out),
            "lecun": 1 / chosen,
            "orthogonal": 1 / max(w.shape[0], w.numel() // w.shape[0]),
        }[rule] * gain**2
        if rule == "torch":
            bound = math.sqrt(3 * variance)
            nn.init.uniform_(w, -bound, bound, generator=gen)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound, generator=gen)
        else:
            if rule == "orthogonal":
                nn.init.orthogonal_(w, gain, generator=gen)
            else:
                nn.init.normal_(w, 0.0, math.sqrt(variance), generator=gen)
            if bias is not None:
                nn.init.zeros_(bias)
        variances[f"{path}.weight".lstrip(".")] = variance
    if not variances:
        raise ValueError(f"model: {type(model).__name__} has no linear or convolutional layer")
    return variances
