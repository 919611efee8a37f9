"""Learning signals that are not the backward pass: goodness, and fixed random feedback.

Goodness and its loss are those of the forward-forward algorithm (G. Hinton, arXiv:2212.13345).
``FeedbackLinear`` is a linear layer whose backward pass uses a fixed random matrix: feedback
alignment (T. Lillicrap et al., Nature Communications 2016), direct feedback alignment (A. Nokland,
arXiv:1609.01596) and direct random target projection (C. Frenkel et al., arXiv:1909.01311).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def goodness(h: Float[Tensor, "*b d"], total: bool = False) -> Float[Tensor, "*b"]:
    """Mean square of each row, ``|h|^2 / d``; with ``total`` the sum, ``|h|^2``.

    Rectifying ``h`` first is the caller's part. A threshold ``theta`` on the sum is ``theta / d``
    on the mean, but the loss is steeper by ``d``.
    """
    return h.square().sum(-1) if total else h.square().mean(-1)


def ff_loss(
    pos: Float[Tensor, "*b"], neg: Float[Tensor, "*c"], theta: float
) -> Float[Tensor, "*d"]:
    """``softplus(theta - pos) + softplus(neg - theta)``: good data above theta, bad data below.

    The cross-entropy of ``sigmoid(g - theta)`` as the probability that the data are good. ``pos``
    and ``neg`` are goodnesses and broadcast: one row of ``neg`` for each set of negatives. Nothing
    is averaged here.
    """
    return F.softplus(theta - pos) + F.softplus(neg - theta)


class Signal:
    """Carries the teaching signal from the output to the layers that ask for it directly.

    ``watch(out)`` returns ``out`` and keeps the loss's gradient there, in the backward pass, as
    ``value``: the error of direct feedback alignment. For target projection, set ``value`` to the
    one-hot targets before the backward pass, and watch nothing.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def watch(self, out: Tensor) -> Tensor:
        return _Watch.apply(out, self)


class FeedbackLinear(nn.Module):
    """``x W^T + b`` forward; backward, a fixed random matrix takes the place of the weights.

    The layer's own weights get the usual gradient. What it passes to its input is

    - ``"fa"``: its own output's gradient times ``B: "n_out n_in"``;
    - ``"dfa"``, ``"drtp"``: ``signal.value: "b k"`` times ``B: "k n_in"``, whatever comes above.

    ``B`` is drawn once, Glorot uniform, and never trained. The first layer of a network passes
    nothing on, so its matrix is not used.

    Args:
        signal: where "dfa" and "drtp" find the signal; ``k`` is its width.

    Raises:
        ValueError: an unknown mode, or a mode and a ``signal`` that do not go together.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        mode: Literal["fa", "dfa", "drtp"] = "fa",
        signal: Signal | None = None,
        k: int | None = None,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("fa", "dfa", "drtp"):
            raise ValueError(f"mode={mode!r}: allowed are 'fa', 'dfa' and 'drtp'")
        if (mode == "fa") != (signal is None and k is None) or (signal is None) != (k is None):
            raise ValueError(
                f"mode={mode!r} with signal={signal} and k={k}: 'dfa' and 'drtp' need both, "
                "'fa' takes neither"
            )
        if min(n_in, n_out) < 1 or (k is not None and k < 1):
            raise ValueError(f"n_in={n_in}, n_out={n_out}, k={k}: allowed is 1 or more")
        self.mode, self.signal = mode, signal
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.register_buffer("feedback", torch.empty(n_out if k is None else k, n_in))
        for matrix in (self.weight.data, self.feedback):
            nn.init.xavier_uniform_(matrix, generator=gen)

    def forward(self, x: Float[Tensor, "*b n_in"]) -> Float[Tensor, "*b n_out"]:
        return _Feedback.apply(x, self.weight, self.bias, self.feedback, self.signal)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, mode={self.mode!r}"


class _Feedback(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, feedback, signal):
        ctx.save_for_backward(x, feedback)
        ctx.signal = signal
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, feedback = ctx.saved_tensors
        source = g if ctx.signal is None else ctx.signal.value
        if source is None:
            raise RuntimeError("signal.value is not set: watch the output, or set the targets")
        if source.shape != (*g.shape[:-1], len(feedback)):
            raise ValueError(
                f"signal.value has shape {tuple(source.shape)}; this layer wants "
                f"{(*g.shape[:-1], len(feedback))}, one row for each of its outputs and k columns"
            )
        flat = g.flatten(0, -2)
        return source @ feedback, flat.T @ x.flatten(0, -2), flat.sum(0), None, None


class _Watch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out, signal):
        ctx.signal = signal
        return out.view_as(out)

    @staticmethod
    def backward(ctx, g):
        ctx.signal.value = g
        return g, None
