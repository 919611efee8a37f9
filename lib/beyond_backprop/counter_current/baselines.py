"""The rules of the paper's tables on one plain network: random feedback and targets.

Feedback alignment (T. Lillicrap et al. 2016), direct feedback alignment (A. Nokland, 2016,
arXiv:1609.01596), direct random target projection (C. Frenkel et al., 2019, arXiv:1909.01311),
difference target propagation (D.-H. Lee et al., 2015, arXiv:1412.7525), and three ways to do better
by its inverses: the difference reconstruction loss (DRL: A. Meulemans et al., 2020,
arXiv:2006.14331), its local form (L-DRL: M. Ernoult et al., 2022, arXiv:2201.13415) and none at
all, fixed random ones (FW-DTP: T. Shibuya et al., 2023, arXiv:2212.10352). They follow the papers'
losses; step sizes and schedules are ours, and there are no convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.counter_current.losses import one_hot
from lib.core.seeds import child
from lib.models.feedback import FeedbackLinear, Signal, TargetPropagation
from lib.models.mlp import MLP

Baseline = Literal["backprop", "fa", "dfa", "drtp", "dtp", "drl", "l-drl", "fw-dtp"]
# SGD with momentum 0.9 (random feedback), Adam (targets): chosen on seeds set aside.
RATES = {
    "backprop": 0.03,
    "fa": 0.03,
    "dfa": 0.03,
    "drtp": 0.05,
    "dtp": 3e-3,
    "drl": 3e-3,
    "l-drl": 3e-3,
    "fw-dtp": 3e-3,
}


class RandomFeedbackMLP(nn.Module):
    """An MLP of :class:`FeedbackLinear` layers, ELU between them.

    For "drtp" it is the hyperbolic tangent: its signal never fades, and units must saturate.
    ``signal.value`` is set by ``loss``: the error at the output, or the targets ("drtp"), divided
    by the batch as the loss is.
    """

    def __init__(
        self,
        widths: Sequence[int],
        mode: Literal["fa", "dfa", "drtp"],
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(widths) < 3 or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: allowed are three or more numbers, each >= 1")
        self.mode = mode
        self.signal = None if mode == "fa" else Signal()
        k = None if mode == "fa" else widths[-1]
        self.layers = nn.ModuleList(
            FeedbackLinear(n, m, mode, self.signal, k, gen) for n, m in zip(widths, widths[1:])
        )

    def forward(self, x: Float[Tensor, "b n_in"]) -> Float[Tensor, "b classes"]:
        for layer in self.layers[:-1]:
            x = layer(x).tanh() if self.mode == "drtp" else F.elu(layer(x))
        return self.layers[-1](x)

    def loss(self, x: Float[Tensor, "b n_in"], y: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        logits = self(x)
        if self.mode == "dfa":
            logits = self.signal.watch(logits)
        elif self.mode == "drtp":
            self.signal.value = one_hot(y, logits.shape[1]).to(x) / len(y)
        return F.cross_entropy(logits, y)


class TaughtInverses(TargetPropagation):
    """Target propagation whose inverses learn from ``inverse``: "drl", "l-drl" or "fixed".

    With a linear layer ``F`` and a linear inverse ``G``, "l-drl" has its minimum at ``G = F^T``:
    the targets then are gradients. "drl" sends the noise of a layer up to the last hidden layer
    and back by differences; what comes back should be the noise, up to weight decay on ``G``.
    """

    def __init__(self, widths, inverse: str, act=nn.Tanh, gen=None, decay: float = 0.1) -> None:
        if inverse not in ("drl", "l-drl", "fixed"):
            raise ValueError(f"inverse={inverse!r}: allowed are 'drl', 'l-drl' and 'fixed'")
        if not 0 <= decay < math.inf:
            raise ValueError(f"decay={decay}: allowed is a finite number of 0 or more")
        super().__init__(widths, act, gen)
        self.inverse, self.decay = inverse, decay
        if inverse == "fixed":
            self.inverses.requires_grad_(False)

    def losses(self, x, y, gen=None, step=0.5, sigma=0.1) -> dict[str, Tensor]:
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma={sigma}: allowed is a finite number above 0")
        found = super().losses(x, y, gen, step, sigma)
        hidden = [h.detach() for h in self.hidden(x)]
        for i in range(2, len(hidden) + 1):
            if self.inverse == "fixed":
                del found[f"inverse {i}"]
            else:
                rule = self._reconstruct if self.inverse == "drl" else self._match
                found[f"inverse {i}"] = rule(i, hidden, gen, sigma)
        return found

    def _match(self, i: int, hidden, gen, sigma: float) -> Tensor:
        inverse, layer, h, above = self.inverses[i - 2], self.layers[i - 1], *hidden[i - 2 : i]
        eps, eta = (sigma * torch.randn(z.shape, generator=gen).to(z) for z in (h, above))
        with torch.no_grad():
            moved = layer(h + eps)
        back, there, beside = inverse(above), inverse(moved), inverse(above + eta)
        along = (eps * (there - back)).sum(1).mean()
        return (0.5 * (beside - back).square().sum(1).mean() - along) / sigma**2

    def _reconstruct(self, i: int, hidden, gen, sigma: float) -> Tensor:
        h = hidden[i - 2]
        eps = sigma * torch.randn(h.shape, generator=gen).to(h)
        with torch.no_grad():
            there = h + eps
            for layer in self.layers[i - 1 :]:
                there = layer(there)
            for j in range(len(hidden), i, -1):
                inverse = self.inverses[j - 2]
                there = hidden[j - 2] + inverse(there) - inverse(hidden[j - 1])
        inverse = self.inverses[i - 2]
        back = inverse(there) - inverse(hidden[i - 1])
        size = sum(p.square().sum() for p in inverse.parameters())
        return (0.5 * (back - eps).square().sum(1).mean()) / sigma**2 + 0.5 * self.decay * size


class BaselineTrainer:
    """A plain classifier and its rule, with the interface of :class:`CCLTrainer`."""

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module], loss, opt) -> None:
        self.model, self._loss, self._opt = model, loss, opt
        self.groups = {f"W{i}": list(layer.parameters()) for i, layer in enumerate(layers, 1)}

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]) -> None:
        """One update on one batch."""
        self._opt.zero_grad(set_to_none=True)
        torch.autograd.backward(self._loss(x, y))
        self._opt.step()

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self.model(x)


def baseline_trainer(
    rule: Baseline, widths: Sequence[int], *, seed: int, lr: float | None = None
) -> BaselineTrainer:
    """A network of these widths trained by ``rule``.

    Raises:
        ValueError: an unknown rule, fewer than three widths.
    """
    if rule not in RATES:
        raise ValueError(f"rule={rule!r}: allowed are {', '.join(map(repr, RATES))}")
    if len(widths) < 3 or min(widths) < 1:
        raise ValueError(f"widths={list(widths)}: allowed are three or more numbers, each >= 1")
    gen, noise = child(seed, "weights"), child(seed, "noise")
    lr = RATES[rule] if lr is None else lr
    if rule in ("backprop", "fa", "dfa", "drtp"):
        if rule == "backprop":
            model = MLP(widths, nn.ELU)
            for layer in model.layers:
                nn.init.xavier_uniform_(layer.weight, generator=gen)
                nn.init.zeros_(layer.bias)
            loss = lambda x, y: [F.cross_entropy(model(x), y)]
        else:
            model = RandomFeedbackMLP(widths, rule, gen)
            loss = lambda x, y: [model.loss(x, y)]
        opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        return BaselineTrainer(model, model.layers, loss, opt)
    if rule == "dtp":
        model = TargetPropagation(widths, gen=gen)
    else:
        model = TaughtInverses(widths, "fixed" if rule == "fw-dtp" else rule, gen=gen)
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    loss = lambda x, y: list(model.losses(x, y, noise).values())
    return BaselineTrainer(model, [*model.layers, model.output], loss, opt)
