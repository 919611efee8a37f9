"""Iterative magnitude pruning and the controls it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.compression.lottery_ticket.training import Start, Ticket
from lib.core.masks import Mask, Params, apply_mask, full_mask, prunable, random_like, top_mask
from lib.core.seeds import child

Rate = float | Mapping[str, float]
ModelFn = Callable[[torch.Generator], nn.Module]
TrainFn = Callable[..., list[Ticket]]


def magnitude_mask(
    weights: Mapping[str, Tensor], mask: Mask, rate: Rate, scope: str = "layer"
) -> Mask:
    """Remove the share ``rate`` of the surviving weights, those of smallest magnitude.

    Of ``n`` survivors ``round(rate n)`` go; of equal magnitudes the later one goes first. What was
    pruned before stays pruned and is not counted. (The authors' code prunes up to and including the
    weight at that place, which is one more, and all that equal it.)

    Args:
        weights: trained weights by name; names that are not in the mask are not looked at.
        rate: one for all, or one for each name (layer scope only).
        scope: ``"layer"`` removes this share of every layer, ``"global"`` of all weights together.

    Raises:
        ValueError: a rate outside 0 to 1, a name of the mask without weights or without a rate, or
            what ``lib.core.masks.top_mask`` refuses.
    """
    _check_rate(rate)
    for what, given in (("weights", weights), ("rate", rate)):
        if isinstance(given, Mapping) and (missing := [n for n in mask if n not in given]):
            raise ValueError(f"{what}: nothing for {missing[0]!r}; there are {', '.join(given)}")
    kept = {n: 1 - r for n, r in rate.items()} if isinstance(rate, Mapping) else 1 - rate
    return top_mask({name: weights[name].abs() for name in mask}, kept, scope, within=mask)


@dataclass
class IterativeMagnitudePruning:
    """Train, prune, reset, and again: the paper's search for winning tickets.

    Attributes:
        model_fn: draws a network, ``model_fn(gen)``.
        train_fn: trains a list of starts and returns their tickets; a ``Training``.
        rounds: how many times to prune. One round is one-shot pruning.
        rate: share of the survivors that a round removes; one number, or one for each weight.
        strategy: ``"reset"`` starts every round from the initial values (strategy 1 of the paper's
            appendix B). ``"continue"`` trains on from the pruned values and resets only to find
            out how good the ticket of a round is (strategy 2).
        scope: ``"layer"`` or ``"global"`` ranking.
        rewind_step: 0 resets to the initialization. Any later step rewinds weights, optimizer and
            schedule to where they were then (late resetting).
        exclude: weights that stay dense, by name or beginning of the name.
        resets: with ``"continue"``, the rounds whose tickets are trained; all of them if None.
    """

    model_fn: ModelFn
    train_fn: TrainFn
    rounds: int
    rate: Rate
    strategy: str = "reset"
    scope: str = "layer"
    rewind_step: int = 0
    exclude: Sequence[str] = ()
    resets: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds}: allowed is 0 or more")
        if self.strategy not in ("reset", "continue"):
            raise ValueError(f"strategy={self.strategy!r}: allowed are 'reset' and 'continue'")
        if self.scope not in ("layer", "global"):
            raise ValueError(f"scope={self.scope!r}: allowed are 'layer' and 'global'")
        _check_rate(self.rate)
        if self.scope == "global" and isinstance(self.rate, Mapping):
            raise ValueError("rate: one number for scope='global', which has one pool; got several")
        if self.rewind_step < 0:
            raise ValueError(f"rewind_step={self.rewind_step}: allowed is 0 or more")
        if self.resets is not None and self.strategy == "reset":
            raise ValueError("resets: only strategy='continue' can leave tickets out")
        if out := [r for r in self.resets or () if not 1 <= r <= self.rounds]:
            raise ValueError(f"resets: round {out[0]} is outside 1 to {self.rounds}")

    def run(self, seeds: Sequence[int] = (0,)) -> list[Ticket]:
        """Tickets of every round and seed; round 0 is the dense network.

        All seeds go through a round together. Seed ``k`` draws its network from its own stream and
        sees the batches of ``k`` in every round.
        """
        return run_together([self], seeds)[0]

    def search(self, dense: list[Ticket]) -> Generator[list[Start], list[Ticket], list[Ticket]]:
        """The method. It yields what is to be trained, and is sent the tickets."""
        origin, tickets, trained = [t.saved for t in dense], list(dense), dense
        for r in range(1, self.rounds + 1):
            masks = [magnitude_mask(t.final_state, t.mask, self.rate, self.scope) for t in trained]
            starts = [o.pruned(m, round=r) for o, m in zip(origin, masks, strict=True)]
            if self.strategy == "reset":
                trained = yield starts
                tickets += trained
            else:
                if self.resets is None or r in self.resets:
                    tickets += yield starts
                if r < self.rounds:
                    further = [t.restart() for t in trained]
                    trained = yield [t.pruned(m, r) for t, m in zip(further, masks, strict=True)]
        return tickets

    def draw(self, seed: int) -> Start:
        """The dense network of ``seed`` before training: all weights kept."""
        model = self.model_fn(child(seed, "init"))
        names = set(prunable(model, self.exclude))
        if isinstance(self.rate, Mapping):
            if unknown := sorted(set(self.rate) - names):
                raise ValueError(f"rate: {unknown[0]!r} is no prunable weight; {sorted(names)} are")
            # A weight without a rate stays dense.
            names &= set(self.rate)
        mask = {n: keep for n, keep in full_mask(model, self.exclude).items() if n in names}
        return Start(mask, state_of(model), seed)


def run_together(
    searches: Sequence[IterativeMagnitudePruning],
    seeds: Sequence[int] = (0,),
    dense: list[Ticket] | None = None,
) -> list[list[Ticket]]:
    """Several searches from the same dense networks; what they ask for is trained in one call.

    Args:
        dense: the trained networks to begin with, saved at the rewind step; trained here if None.

    Raises:
        ValueError: no searches, searches that train or rewind differently, or dense networks that
            were not saved.
    """
    if not searches:
        raise ValueError("searches is empty: at least one is needed")
    first = searches[0]
    for name in ("model_fn", "train_fn", "rewind_step", "exclude"):
        if any(getattr(s, name) != getattr(first, name) for s in searches):
            raise ValueError(f"{name}: searches that run together must agree on it")
    if dense is None:
        dense = first.train_fn([first.draw(k) for k in seeds], save_at=first.rewind_step)
    if any(t.saved is None or t.saved.step != first.rewind_step for t in dense):
        raise ValueError(f"dense: every ticket must be saved at step {first.rewind_step}")
    running, found = [s.search(dense) for s in searches], {}

    def ask(i: int, tickets: list[Ticket] | None) -> list[Start]:
        try:
            return running[i].send(tickets)
        except StopIteration as end:
            found[i] = end.value
            return []

    asked = {i: ask(i, None) for i in range(len(searches))}
    while len(found) < len(searches):
        trained = iter(first.train_fn([start for starts in asked.values() for start in starts]))
        answers = {i: [next(trained) for _ in starts] for i, starts in asked.items()}
        asked = {i: ask(i, tickets) for i, tickets in answers.items() if i not in found}
    return [found[i] for i in range(len(searches))]


def state_of(model: nn.Module) -> Params:
    """Copies of all parameters and buffers by name."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: t.detach().clone() for name, t in named}


# The controls. Both keep the number of weights in every layer, the batches and the round.


def random_reinit(start: Start, model_fn: ModelFn, gen: torch.Generator) -> Start:
    """The same mask on a network drawn anew from the same distribution."""
    fresh = {n: t.to(start.init_state[n].device) for n, t in state_of(model_fn(gen)).items()}
    return Start(start.mask, apply_mask(fresh, start.mask), start.seed, start.round)


def random_mask_like(start: Start, dense: Start, gen: torch.Generator) -> Start:
    """The original initial values under a mask with its entries shuffled within every layer.

    Args:
        dense: the network before pruning, for the values at the new places.
    """
    mask = random_like(start.mask, gen)
    return Start(mask, apply_mask(dense.init_state, mask), start.seed, start.round)


# How much is left.


def one_shot_rate(rate: Rate, rounds: int) -> Rate:
    """The rate with which one round removes as much as ``rounds`` rounds: ``1 - (1 - p)^n``.

    Up to the rounding of each round.

    Raises:
        ValueError: a rate outside 0 to 1, or fewer than 0 rounds.
    """
    _check_rate(rate)
    _check_rounds(rounds)
    if isinstance(rate, Mapping):
        return {name: 1 - (1 - p) ** rounds for name, p in rate.items()}
    return 1 - (1 - rate) ** rounds


def remaining_after(sizes: Mapping[str, int], rate: Rate, rounds: int) -> float:
    """Share of the weights left after ``rounds`` rounds by layer, with each round's rounding.

    Args:
        sizes: weights of every layer by name.
        rate: one for all, or one for each name; a layer without one stays dense.

    Raises:
        ValueError: no weights, a rate outside 0 to 1, or fewer than 0 rounds.
    """
    _check_rate(rate)
    _check_rounds(rounds)
    if sum(sizes.values()) < 1:
        raise ValueError(f"sizes={dict(sizes)}: at least one weight is needed")
    left = 0
    for name, size in sizes.items():
        share = rate.get(name, 0.0) if isinstance(rate, Mapping) else rate
        n = size
        for _ in range(rounds):
            # As in top_mask: 0.575 * 100 is 57.49999999999999 and means a half.
            n -= round(round(share * n, 6))
        left += n
    return left / sum(sizes.values())


def _check_rate(rate: Rate) -> None:
    rates = dict(rate) if isinstance(rate, Mapping) else {"rate": rate}
    for name, share in rates.items():
        if not 0 <= share <= 1:
            raise ValueError(f"rate={share} ({name}): allowed is 0 to 1, a share of the survivors")


def _check_rounds(rounds: int) -> None:
    if rounds < 0:
        raise ValueError(f"rounds={rounds}: allowed is 0 or more")
