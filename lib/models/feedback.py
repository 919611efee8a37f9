"""Learning signals that are not the backward pass: goodness, random feedback, targets.

Goodness and its loss are those of the forward-forward algorithm (G. Hinton, arXiv:2212.13345).
``FeedbackLinear`` is a linear layer whose backward pass uses a fixed random matrix: feedback
alignment (T. Lillicrap et al., Nature Communications 2016), direct feedback alignment (A. Nokland,
arXiv:1609.01596) and direct random target projection (C. Frenkel et al., arXiv:1909.01311).
``TargetPropagation`` is difference target propagation (D.-H. Lee, S. Zhang, A. Fischer and
Y. Bengio, 2015, arXiv:1412.7525) for fully connected layers; inverses and layers learn side by
side, as there. Its later relatives with Gauss-Newton targets are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.models.init import initialize_


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


class TargetPropagation(nn.Module):
    """Difference target propagation (D.-H. Lee et al. 2015, arXiv:1412.7525).

    ``h_l = act(W_l h_{l-1} + b_l)`` for the hidden layers and a linear output. A learned inverse
    ``g_l`` of every hidden layer but the first carries targets down:

    .. math:: \\hat h_{L} = h_{L} - \\eta\\,\\partial\\mathcal L/\\partial h_{L},\\qquad
              \\hat h_{l-1} = h_{l-1} - g_l(h_l) + g_l(\\hat h_l)

    with ``L`` hidden layers. The difference makes a poor inverse harmless where ``h_l`` is at its
    target already. A layer is trained to come closer to its target, an inverse to undo its layer
    near the data; no gradient leaves a layer.

    Args:
        widths: input, hidden layers, classes.
        act: makes the activation of layers and inverses.
        gen: source of the initial weights; torch's global one if None.

    Raises:
        ValueError: fewer than three widths, or one below 1.
    """

    def __init__(
        self,
        widths: Sequence[int],
        act: Callable[[], nn.Module] = nn.Tanh,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(widths) < 3 or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: allowed are three or more numbers, each >= 1")
        hidden = list(widths[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(n, m), act()) for n, m in zip(hidden, hidden[1:])
        )
        self.inverses = nn.ModuleList(
            nn.Sequential(nn.Linear(m, n), act()) for n, m in zip(hidden[1:], hidden[2:])
        )
        self.output = nn.Linear(widths[-2], widths[-1])
        initialize_(self, "orthogonal", gen=gen)

    def hidden(self, x: Float[Tensor, "b n_in"]) -> list[Float[Tensor, "b _"]]:
        """``h_1, ..., h_L``, each layer's input cut off from the layer below."""
        found = []
        for layer in self.layers:
            x = layer(x.detach())
            found.append(x)
        return found

    def forward(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b classes"]:
        return self.output(self.hidden(x)[-1])

    def targets(
        self,
        hidden: Sequence[Float[Tensor, "b _"]],
        loss: Callable[[Float[Tensor, "b classes"]], Float[Tensor, ""]],
        step: float,
    ) -> list[Float[Tensor, "b _"]]:
        """``h_hat_1, ..., h_hat_L``, detached. ``loss`` is a function of the output's logits.

        ``step`` (the paper's ``eta``) is counted for a loss that averages over the batch as if it
        summed: the targets of a sample do not depend on how many others there are.

        Raises:
            ValueError: ``step`` not a positive number, or not one entry of ``hidden`` a layer.
        """
        if not 0 < step < float("inf") or len(hidden) != len(self.layers):
            raise ValueError(
                f"step={step}, {len(hidden)} hidden layers: allowed are a finite step above 0 and "
                f"the {len(self.layers)} layers that hidden(x) gives"
            )
        top = hidden[-1].detach().requires_grad_()
        with torch.enable_grad():
            (pull,) = torch.autograd.grad(loss(self.output(top)), top)
        found = [top.detach() - step * len(top) * pull]
        with torch.no_grad():
            for inverse, below, here in zip(
                reversed(self.inverses), reversed(hidden[:-1]), reversed(hidden)
            ):
                found.append(below - inverse(here) + inverse(found[-1]))
        return found[::-1]

    def losses(
        self,
        x: Float[Tensor, "b n_in"],
        y: Int[Tensor, "b"],
        gen: torch.Generator | None = None,
        step: float = 0.5,
        sigma: float = 0.1,
    ) -> dict[str, Float[Tensor, ""]]:
        """Every local loss: ``"layer l"``, ``"inverse l"`` for l >= 2, and ``"output"``.

        Half squared distances, summed over units and averaged over the batch; cross-entropy at
        the output. ``sigma`` is the noise around the data at which an inverse is trained.

        Raises:
            ValueError: no samples, a wrong number of labels, inputs of another width, a negative
                ``sigma``.
        """
        n_in = self.layers[0][0].in_features
        if len(x) == 0 or x.shape[1:] != (n_in,) or y.shape != (len(x),):
            raise ValueError(
                f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}: allowed are one or more "
                f"samples of {n_in} numbers and a label for each"
            )
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma={sigma}: allowed is a finite number of 0 or more")
        hidden = self.hidden(x)
        targets = self.targets(hidden, lambda logits: F.cross_entropy(logits, y), step)
        found = {}
        for i, (h, target) in enumerate(zip(hidden, targets), 1):
            found[f"layer {i}"] = 0.5 * (h - target).square().sum(1).mean()
        pairs = zip(self.inverses, self.layers[1:], hidden)
        for i, (inverse, layer, h) in enumerate(pairs, 2):
            eps = torch.randn(h.shape, generator=gen, dtype=h.dtype).to(h.device)
            corrupted = h.detach() + sigma * eps
            with torch.no_grad():
                above = layer(corrupted)
            found[f"inverse {i}"] = 0.5 * (inverse(above) - corrupted).square().sum(1).mean()
        found["output"] = F.cross_entropy(self.output(hidden[-1].detach()), y)
        return found
