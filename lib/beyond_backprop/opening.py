"""For the part's opening page: one network and data set under every rule that can train them.

A *rule* makes a trainer: an object with ``step(x, y)``, one update on one batch, ``predict(x)``,
one score a class, and ``groups``, the parameters of each layer from the input up. The chapters
define the trainers; here they stand side by side, and what a step costs is measured: the bytes
that it keeps for backward passes, and how long each layer waits for its update. The spiking
networks, the recurrent one and the associative memories of the part have no such trainer: they
are other models, for other data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop import (
    auglocal,
    boltzmann,
    counter_current,
    momentum_auxiliary,
    noprop,
    physical_networks,
)
from lib.beyond_backprop.counter_current.baselines import baseline_trainer
from lib.core.data import Split
from lib.core.fitting import progress
from lib.core.meters import saved_bytes, stopwatch, waiting
from lib.core.seeds import batch_indices


class Trainer(Protocol):
    """What a rule makes."""

    groups: dict[str, list[nn.Parameter]]

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]) -> None: ...

    def predict(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]: ...


@dataclass(frozen=True)
class Rule:
    """A way to train a network of given widths.

    Attributes:
        make: ``make(widths, seed=...)`` returns a new trainer.
        local: within a step no layer's update depends on the layers above it, to the last bit.
        chapter: where it is explained; empty for the baselines that several chapters use.
    """

    make: Callable[..., Trainer]
    local: bool
    chapter: str = ""


def _baseline(rule: str, lr: float | None = None) -> Callable[..., Trainer]:
    return lambda widths, *, seed: baseline_trainer(rule, widths, seed=seed, lr=lr)


RULES: dict[str, Rule] = {
    "backpropagation": Rule(_baseline("backprop"), False),
    # With the rate 0.03 that is best for two layers, six diverge on some seeds.
    "feedback alignment": Rule(_baseline("fa", lr=0.01), False),
    "direct feedback alignment": Rule(_baseline("dfa", lr=0.01), False),
    "direct random targets": Rule(_baseline("drtp"), True),
    "target propagation": Rule(partial(noprop.mlp_trainer, method="target propagation"), False),
    "forward-forward": Rule(partial(noprop.mlp_trainer, method="forward-forward"), True),
    "local forward gradient": Rule(partial(noprop.mlp_trainer, method="forward gradient"), True),
    "local classifiers": Rule(partial(auglocal.mlp_trainer, head="0c1f"), True),
    "NoProp": Rule(noprop.mlp_trainer, True, "noprop"),
    # Its layers share one number, the norm at which the gradient of all of them is clipped.
    "counter-current": Rule(counter_current.mlp_trainer, False, "counter_current"),
    "AugLocal": Rule(auglocal.mlp_trainer, True, "auglocal"),
    "momentum auxiliary": Rule(momentum_auxiliary.mlp_trainer, True, "momentum_auxiliary"),
    "physical local learning": Rule(physical_networks.mlp_trainer, True, "physical_networks"),
    "Boltzmann machine": Rule(boltzmann.mlp_trainer, False, "boltzmann"),
}
"""Every rule by name. The first is the one to beat."""


@dataclass(frozen=True)
class Trial:
    """``accuracy`` on the test set; processor ``seconds`` of one step, the median."""

    accuracy: float
    seconds: float


def trial(
    rule: Rule,
    widths: Sequence[int],
    data: Split,
    *,
    steps: int,
    batch: int,
    seed: int,
    what: str = "training",
) -> Trial:
    """Trains a new network by ``rule`` and tests it.

    Raises:
        ValueError: ``steps`` or ``batch`` below 1.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps={steps}, batch={batch}: allowed is 1 or more")
    trainer, times = rule.make(list(widths), seed=seed), []
    for t in progress(range(steps), what):
        index = batch_indices(len(data.y), batch, t, seed).to(data.y.device)
        x, y = data.x[index], data.y[index]
        with stopwatch() as watch:
            trainer.step(x, y)
        times.append(watch.cpu_seconds)
    right = trainer.predict(data.x_test).argmax(1) == data.y_test
    return Trial(right.double().mean().item(), torch.tensor(times).median().item())


@dataclass(frozen=True)
class Cost:
    """Of one step.

    Attributes:
        saved: most bytes held for backward passes at one time, without parameters, buffers (such
            as fixed feedback) and batch.
        waits: products in line before each hidden layer has its update, from the input up.
    """

    saved: int
    waits: list[int]


def cost(
    rule: Rule, widths: Sequence[int], x: Float[Tensor, "b d"], y: Int[Tensor, "b"], *, seed: int
) -> Cost:
    """Measures the second step of a new network: the first sets up what the optimizer keeps."""
    trainer = rule.make(list(widths), seed=seed)
    trainer.step(x, y)
    fixed = [b for m in vars(trainer).values() if isinstance(m, nn.Module) for b in m.buffers()]
    saved = saved_bytes(lambda: trainer.step(x, y), exclude=[x, y, *fixed])
    waits = list(waiting(lambda: trainer.step(x, y), trainer.groups).values())
    return Cost(saved, waits[: len(widths) - 2])
