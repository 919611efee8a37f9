"""Classifiers made of a language model, and the ways to fine-tune them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from lib.core.fitting import fit
from lib.core.masks import Mask, Params
from lib.core.metrics import ece
from lib.language.skill_localization.grafting import Batch, check_same, graft
from lib.models.lm import label_logits
from lib.models.transformer import LanguageModel


class PromptClassifier(nn.Module):
    """A language model asked by prompt: its scores of the label words at one position.

    With an ``Encoder`` the prompt has a mask token at ``position``; with a ``Decoder`` the answer
    follows ``position``. Prompts of different lengths are padded on the right; each then has its
    own position, and ``real`` is False at the padding.
    """

    def __init__(self, model: LanguageModel, position: int = -1) -> None:
        super().__init__()
        self.model, self.position = model, position

    def forward(
        self,
        ids: Int[Tensor, "b n"],
        words: Int[Tensor, "c"] | Int[Tensor, "b c"],
        position: Int[Tensor, "b"] | None = None,
        real: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b c"]:
        """``words``: a label word for each class, for all prompts or for each its own."""
        where = self.position if position is None else position
        return label_logits(self.model, ids, where, words, real)


class HeadClassifier(nn.Module):
    """A linear head on one token's last state, the first by default ([CLS]), in the usual way."""

    def __init__(self, model: LanguageModel, classes: int, position: int = 0) -> None:
        super().__init__()
        self.model, self.position = model, position
        self.linear = nn.Linear(model.embed.weight.shape[1], classes)

    def forward(self, ids: Int[Tensor, "b n"], *unused: Tensor) -> Float[Tensor, "b c"]:
        state = self.model.hidden(ids)[-1][:, self.position]
        return self.linear(self.model.norm(state))


def trainable(model: nn.Module) -> Params:
    """Copies of the parameters that require a gradient, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def fine_tune(
    model: nn.Module,
    pre: Params,
    data: Batch | Callable[[int], Batch],
    *,
    steps: int,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    batch: int | None = None,
    schedule: Callable[[int], float] | None = None,
    l1: float = 0.0,
    mask: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Params:
    """Train from ``pre`` and return the new values; the model gets its own back.

    Args:
        pre: where training starts; its names are the parameters that learn.
        data: (inputs, labels, what else the model takes), as in ``lib.core.fitting.fit``.
        l1: weight of ``sum |theta - pre|``. AdamW moves every parameter by about the same amount
            and needs this, or the movement says nothing about where the skill is (section 3).
        mask: entries that may move; the others stay exactly as they are (see ``retrain``).

    Raises:
        ValueError: a name that the model or ``pre`` does not have, a mask that is not boolean or
            of another shape, a negative ``l1``.
    """
    named = dict(model.named_parameters())
    if unknown := [name for name in pre if name not in named]:
        raise ValueError(f"pre: the model has no parameter {unknown[0]!r}")
    if l1 < 0:
        raise ValueError(f"l1={l1}: allowed is 0 or more")
    check_same(pre, pre, mask or {})
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in named.items()}
    moving = [named[name] for name in pre]
    start = [value.detach().clone() for value in pre.values()]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x, y, *more = batch
        value = F.cross_entropy(model(x, *more), y)
        if l1:
            value = value + l1 * sum((p - q).abs().sum() for p, q in zip(moving, start))
        return value

    hooks = []
    try:
        with torch.no_grad():
            for name, p in named.items():
                p.requires_grad_(name in pre)
                if name in pre:
                    p.copy_(pre[name])
        for name, keep in (mask or {}).items():
            hooks.append(named[name].register_hook(lambda g, keep=keep: g * keep))
        fit(
            model, data, loss, steps=steps, optimizer=optimizer, batch=batch, schedule=schedule,
            seed=seed, what="fine-tuning",
        )  # fmt: skip
        tuned = {name: named[name].detach().clone() for name in pre}
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for name, (value, learns) in before.items():
                named[name].copy_(value).requires_grad_(learns)
    # Weight decay has moved what the gradient did not.
    return tuned if mask is None else graft(pre, tuned, mask)


def retrain(model: nn.Module, pre: Params, mask: Mask, data: Batch, **options) -> Params:
    """Train the parameters of a region alone, from their pre-trained values.

    The comparison with lottery tickets: a graft *copies* the values that full fine-tuning gave
    these parameters while all others moved, too. Options are those of ``fine_tune``.
    """
    return fine_tune(model, pre, data, mask=mask, **options)


@torch.no_grad()
def logits_of(model: nn.Module, params: Params, data: Batch) -> Float[Tensor, "n c"]:
    """The model's answers with ``params`` in the place of its own; labels are not looked at."""
    x, _, *more = data
    training = model.training
    model.eval()
    try:
        return functional_call(model, params, (x, *more))
    finally:
        model.train(training)


class Score(NamedTuple):
    """Shares of samples: right, and as the reference model says; calibration error in 10 bins."""

    accuracy: float
    ece: float
    agreement: float


def score(
    model: nn.Module, params: Params, data: Batch, like: Params | None = None, bins: int = 10
) -> Score:
    """Accuracy, calibration error, and agreement with the model that has the parameters ``like``.

    Without ``like`` the agreement is NaN.

    Raises:
        ValueError: no samples.
    """
    if not len(data[1]):
        raise ValueError("data has no samples: a score needs at least one")
    logits = logits_of(model, params, data)
    answers = logits.argmax(-1)
    agreement = float("nan")
    if like is not None:
        other = logits_of(model, like, data).argmax(-1)
        agreement = float((answers == other).double().mean())
    accuracy = float((answers == data[1]).double().mean())
    return Score(accuracy, ece(logits.double().softmax(-1), data[1], bins), agreement)
