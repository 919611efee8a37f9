"""The fully connected network, and the layer of the width laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """``widths[0]`` inputs, hidden layers, ``widths[-1]`` outputs; no activation after the last.

    A hidden layer is ``linear``, ``norm`` (if any), ``act``, dropout (if any). Every one of them
    is a module of its own, so hooks, attribution and surgery find each call site.

    Args:
        act: makes an activation module, ``nn.ReLU`` by default.
        norm: makes a normalization from the width, for instance ``nn.LayerNorm``.
        bias: whether the layers have one.
        linear: makes a layer from ``(n_in, n_out, bias=...)``: ``nn.Linear``, ``NTKLinear``, or
            anything with weights in another form.

    Raises:
        ValueError: fewer than two widths, or one below 1.
    """

    def __init__(
        self,
        widths: Sequence[int],
        act: Callable[[], nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        linear: Callable[..., nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: allowed are two or more numbers, each >= 1")
        self.widths = tuple(widths)
        pairs = list(zip(widths[:-1], widths[1:]))
        hidden = widths[1:-1]
        self.layers = nn.ModuleList(linear(n, m, bias=bias) for n, m in pairs)
        self.norms = nn.ModuleList(norm(n) if norm else nn.Identity() for n in hidden)
        self.acts = nn.ModuleList(act() for _ in hidden)
        self.drops = nn.ModuleList(
            nn.Dropout(dropout) if dropout else nn.Identity() for _ in hidden
        )

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        for layer in range(len(self.acts)):
            x = self._hidden(layer, x)
        return self.layers[-1](x)

    def hidden(self, x: Float[Tensor, "*batch n_in"]) -> list[Float[Tensor, "*batch width"]]:
        """What each hidden layer passes on, the first layer first; the output is not in it."""
        found = []
        for layer in range(len(self.acts)):
            x = self._hidden(layer, x)
            found.append(x)
        return found

    def _hidden(self, layer: int, x: Tensor) -> Tensor:
        x = self.norms[layer](self.layers[layer](x))
        return self.drops[layer](self.acts[layer](x))


class NTKLinear(nn.Module):
    """``z = sqrt(gain / n_in) W x + beta b`` with all W and b drawn from N(0, 1).

    The scale that keeps the sum finite stands outside the trained weights, so it also scales their
    gradients: a step of one size suits every width. ``parametrization="standard"`` draws the same
    function from ``W ~ N(0, gain / n_in)``, ``b ~ N(0, beta^2)`` and multiplies by nothing; its
    gradients grow with width.

    Args:
        bias: ``False`` leaves the bias out, as ``beta=0`` does.
        gen: source of the initial weights; torch's global one if ``None``.

    Raises:
        ValueError: ``beta`` negative, ``gain`` not positive, unknown ``parametrization``.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        beta: float = 0.1,
        gain: float = 1.0,
        parametrization: str = "ntk",
        bias: bool = True,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if beta < 0 or gain <= 0:
            raise ValueError(f"beta={beta}, gain={gain}: allowed are beta >= 0, gain > 0")
        if parametrization not in ("ntk", "standard"):
            raise ValueError(
                f"parametrization={parametrization!r}: allowed are 'ntk' and 'standard'"
            )
        scale = math.sqrt(gain / n_in)
        inside = (1.0, 1.0) if parametrization == "ntk" else (scale, beta)
        self.n_in, self.n_out, self.parametrization = n_in, n_out, parametrization
        self.scale, self.shift = (scale, beta) if parametrization == "ntk" else (1.0, 1.0)
        self.weight = nn.Parameter(inside[0] * torch.randn(n_out, n_in, generator=gen))
        bias = bias and beta > 0
        self.bias = nn.Parameter(inside[1] * torch.randn(n_out, generator=gen)) if bias else None

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        # The factor goes to the narrower side, so no scaled copy of the weights is made.
        z = nn.functional.linear(self.scale * x, self.weight)
        return z if self.bias is None else z + self.shift * self.bias

    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_out}, parametrization={self.parametrization!r}"
