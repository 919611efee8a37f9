"""The two output layers: a Gaussian around tanh, and a softmax population code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Gaussian(nn.Module):
    """``x_hat = tanh(raw)``; the error is half the squared distance, summed over channels."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.width = out_dim

    def mean(self, raw: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        return torch.tanh(raw)

    def error(self, raw: Float[Tensor, "*b o"], x: Float[Tensor, "*b o"]) -> Float[Tensor, "*b"]:
        return 0.5 * (x - torch.tanh(raw)).square().sum(-1)


class Softmax(nn.Module):
    """Every channel as ``units`` probabilities; the error is KL(code of x || softmax of raw).

    The code of a number is the softmax of ``-(x - c_i)^2 / (2 width^2)`` with ``units`` centers
    from -1 to 1 and a width of one spacing. It is read back as the mean of the centers. KL differs
    from the cross-entropy by the code's own entropy, which no weight moves: 0 is a perfect fit.
    """

    def __init__(self, out_dim: int, units: int = 10) -> None:
        super().__init__()
        if not isinstance(units, int) or units < 3:
            raise ValueError(f"units={units}: allowed is 3 or more")
        self.units, self.width = units, out_dim * units
        # Beyond the ends, so that a mean of centers reaches -1 and 1.
        self.register_buffer("centers", torch.linspace(-1.2, 1.2, units), persistent=False)

    def encode(self, x: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o k"]:
        spacing = 2.4 / (self.units - 1)
        return torch.softmax(-0.5 * ((x[..., None] - self.centers) / spacing).square(), -1)

    def mean(self, raw: Float[Tensor, "*b k"]) -> Float[Tensor, "*b o"]:
        return torch.softmax(raw.unflatten(-1, (-1, self.units)), -1) @ self.centers

    def error(self, raw: Float[Tensor, "*b k"], x: Float[Tensor, "*b o"]) -> Float[Tensor, "*b"]:
        logp = torch.log_softmax(raw.unflatten(-1, (-1, self.units)), -1)
        return F.kl_div(logp, self.encode(x), reduction="none").sum((-1, -2))
