"""One way of training for the dense network, its tickets and their controls: many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.core.ensemble import Ensemble, fit_ensemble
from lib.core.fitting import evaluate, fit
from lib.core.masks import Mask, Masked, Params, apply_mask, density, plain_name
from lib.core.seeds import batch_indices

Pair = tuple[Tensor, Tensor]


@dataclass
class Start:
    """What a training starts from: a mask, the values under it, and the order of the batches.

    ``init_state`` holds all parameters and buffers by name, zeros where the mask prunes. A start
    that rewinds to a later step also carries the optimizer's state at that ``step``.
    """

    mask: Mask
    init_state: Params
    seed: int
    round: int = 0
    step: int = 0
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def remaining(self) -> float:
        """Share of the prunable weights that is left, 0 to 1."""
        return density(self.mask)

    def pruned(self, mask: Mask, round: int) -> Start:
        """The same start under another mask, the optimizer's averages masked too."""
        state = {name: dict(values) for name, values in self.optimizer.items()}
        for name in mask.keys() & state.keys():
            for key, value in state[name].items():
                if value.shape == mask[name].shape:
                    state[name][key] = torch.where(mask[name], value, 0)
        init = apply_mask(self.init_state, mask)
        return Start(mask, init, self.seed, round, self.step, state)

    def to(self, device: torch.device | str) -> Start:
        """The same with all its tensors on ``device``."""
        state = {n: {k: v.to(device) for k, v in s.items()} for n, s in self.optimizer.items()}
        mask, init = ({n: t.to(device) for n, t in d.items()} for d in (self.mask, self.init_state))
        return Start(mask, init, self.seed, self.round, self.step, state)

    def fresh(self) -> Start:
        """A plain start, from step 0 with a new optimizer."""
        return Start(self.mask, self.init_state, self.seed, self.round)


@dataclass
class Ticket(Start):
    """A start and what training made of it.

    ``history`` has a row for each logged step: ``step``, ``loss`` (of the batch),
    ``validation_loss``, ``validation_accuracy`` and ``test_accuracy``. ``saved`` is the network at
    the step that was asked for, ready to start from.
    """

    final_state: Params = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    saved: Start | None = None

    def restart(self) -> Start:
        """Where training ended, as the beginning of another."""
        return Start(self.mask, self.final_state, self.seed, self.round)

    def at(self, step: int, column: str = "test_accuracy") -> float:
        """What the history says at ``step``."""
        self._logged()
        row = self.history.loc[self.history.step == step, column]
        if row.empty:
            raise ValueError(f"step={step} was not logged; logged are {[*self.history.step]}")
        return float(row.iloc[0])

    def last(self, column: str = "test_accuracy") -> float:
        """What the history says at its last logged step."""
        self._logged()
        return float(self.history[column].iloc[-1])

    def _logged(self) -> None:
        if self.history.empty:
            raise ValueError("history is empty: the training logged no steps")


def accuracy(logits: Float[Tensor, "n c"], y: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """Share of samples whose largest logit is their class."""
    return (logits.argmax(-1) == y).float().mean()


def _cross_entropy(logits: Float[Tensor, "n c"], y: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    # vmap takes F.cross_entropy apart into many small operations, a tenth of a training's time.
    return -logits.log_softmax(-1).gather(-1, y[:, None]).mean()


def adam(lr: float) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    """Factory of Adam, fused: the update of a stack of small networks is one pass."""
    return lambda params: torch.optim.Adam(params, lr=lr, fused=True)


@dataclass(eq=False)
class Training:
    """Trains starts: the same data, batches, optimizer and schedule for each of them.

    Attributes:
        make: builds the architecture; its numbers are replaced by the start's.
        data, validation, test: samples and class labels, on the device to train on.
        steps: length of a training that starts at step 0.
        optimizer: factory over parameters.
        schedule: factor on the learning rate by absolute step, such as a warm-up.
        log: absolute steps at which the history gets a row.
        augment: changes a batch of inputs, ``augment(x, step, seed) -> x``.
        stack: how many networks are trained in the same tensor operations. Dropout and batch
            statistics need 1.
    """

    make: Callable[[], nn.Module]
    data: Pair
    validation: Pair
    test: Pair
    steps: int
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]
    batch: int = 60
    schedule: Callable[[int], float] | None = None
    log: Sequence[int] = ()
    augment: Callable[[Tensor, int, int], Tensor] | None = None
    stack: int = 24

    def __post_init__(self) -> None:
        if self.steps < 1 or self.stack < 1:
            raise ValueError(f"steps={self.steps}, stack={self.stack}: both must be at least 1")
        for name in ("data", "validation", "test"):
            x, y = getattr(self, name)
            if len(x) != len(y) or not len(x):
                raise ValueError(f"{name}: {len(x)} samples and {len(y)} labels")

    def __call__(self, starts: Sequence[Start], save_at: int | None = None) -> list[Ticket]:
        """Train every start to step ``steps``; save the networks at step ``save_at`` on the way.

        Raises:
            ValueError: no starts, a step outside the training, or networks that cannot be stacked.
        """
        if not starts:
            raise ValueError("starts is empty: nothing to train")
        run, tickets = self._together if self.stack > 1 else self._alone, {}
        for first in sorted({s.step for s in starts}):
            if not 0 <= first < self.steps:
                raise ValueError(f"step={first}: allowed is 0 to {self.steps - 1}")
            if save_at is not None and not first <= save_at < self.steps:
                raise ValueError(f"save_at={save_at}: allowed is {first} to {self.steps - 1}")
            places = [i for i, s in enumerate(starts) if s.step == first]
            for k in range(0, len(places), self.stack):
                part = places[k : k + self.stack]
                moved = [starts[i].to(self.data[0].device) for i in part]
                tickets.update(zip(part, run(moved, first, save_at), strict=True))
        return [tickets[i] for i in range(len(starts))]

    def _network(self, start: Start) -> nn.Module:
        model = self.make().to(self.data[0].device)
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        if differ := sorted(named.keys() ^ start.init_state.keys()):
            # A parameter that is not given would silently keep the random numbers of make().
            raise ValueError(f"init_state: only it or the network has {', '.join(differ)}")
        for name, value in start.init_state.items():
            if value.shape != named[name].shape:
                shapes = f"{tuple(value.shape)}, the network's {tuple(named[name].shape)}"
                raise ValueError(f"init_state: {name} has shape {shapes}")
        with torch.no_grad():
            for name, value in start.init_state.items():
                named[name].copy_(value)
        return model

    def _batches(
        self, seeds: Sequence[int], first: int, save_at: int | None, save: Callable[[], None]
    ) -> Callable[[int], Pair]:
        """``step -> (x, y)`` with a leading axis for the networks; calls ``save`` at its step."""
        x, y = self.data
        place = {seed: i for i, seed in enumerate(dict.fromkeys(seeds))}
        member = torch.tensor([place[seed] for seed in seeds])

        def draw(step: int) -> Pair:
            step += first
            if step == save_at:
                # Before the step's forward pass, which would already move batch statistics.
                save()
            index = torch.stack([batch_indices(len(x), self.batch, step, seed) for seed in place])
            if self.augment is None:
                index = index[member].to(x.device)
                return x[index], y[index]
            index = index.to(x.device)
            xs = [self.augment(x[i], step, seed) for i, seed in zip(index, place, strict=True)]
            return torch.stack(xs)[member], y[index[member]]

        return draw

    def _shared(self, first: int) -> dict:
        """What both ways of training hand to the loop: steps count from where the start is."""
        schedule = self.schedule
        return {
            "steps": self.steps - first,
            "schedule": None if schedule is None else (lambda t: schedule(t + first)),
            "log": [t - first for t in self.log if t >= first],
        }

    def _together(self, starts: Sequence[Start], first: int, save_at: int | None) -> list[Ticket]:
        if any(s.mask.keys() != starts[0].mask.keys() for s in starts):
            raise ValueError("mask: networks that are stacked must have masks of the same names")
        networks = [self._network(s) for s in starts]
        Masked(self.make(), starts[0].mask)  # refuses masks that it could not keep
        if bad := [type(m).__name__ for m in networks[0].modules() if _has_statistics(m)]:
            raise ValueError(f"stack={self.stack}: {bad[0]} needs stack=1")
        stack = Ensemble(networks)
        masks = {n: torch.stack([s.mask[n] for s in starts]) for n in starts[0].mask}
        pairs = [(stack.params[n], keep.to(stack.params[n])) for n, keep in masks.items()]
        optimizer = _Resumable(self.optimizer, stack.params, starts, stacked=True, hold=pairs)
        saved: list[Start] = []

        def save() -> None:
            states = [optimizer.state(i) for i in range(len(starts))]
            saved.extend(_saved(starts, _unstack(stack, len(starts)), states, save_at))

        def measure(step: int, stack: Ensemble) -> dict[str, Tensor]:
            return stack.map(self._scores, *self.validation, *self.test)

        draw = self._batches([s.seed for s in starts], first, save_at, save)
        fit_ensemble(stack, range(len(starts)), draw,
                     lambda model, b: _cross_entropy(model(b[0]), b[1]), optimizer=optimizer,
                     per_member=True, callback=measure, what=f"training {len(starts)} networks",
                     **self._shared(first))  # fmt: skip
        rows = pd.DataFrame(stack.history.rows)
        finals, tickets = _unstack(stack, len(starts)), []
        for i, start in enumerate(starts):
            own = rows[rows.seed == i].drop(columns="seed") if len(rows) else rows
            tickets.append(_ticket(start, finals[i], own, first, saved[i] if saved else None))
        return tickets

    def _alone(self, starts: Sequence[Start], first: int, save_at: int | None) -> list[Ticket]:
        return [self._one(start, first, save_at) for start in starts]

    def _one(self, start: Start, first: int, save_at: int | None) -> Ticket:
        network, saved = Masked(self._network(start), start.mask), []
        named = dict(network.named_parameters())
        optimizer = _Resumable(self.optimizer, named, [start], stacked=False)

        def save() -> None:
            saved.extend(_saved([start], [network.state()], [optimizer.state(0)], save_at))

        def measure(step: int, model: nn.Module) -> dict[str, float]:
            (vx, vy), (tx, ty) = self.validation, self.test
            return {
                "validation_loss": evaluate(model, vx, vy, F.cross_entropy),
                "validation_accuracy": evaluate(model, vx, vy, accuracy),
                "test_accuracy": evaluate(model, tx, ty, accuracy),
            }

        draw = self._batches([start.seed], first, save_at, save)
        history = fit(
            network,
            lambda t: tuple(v[0] for v in draw(t)),
            lambda model, b: F.cross_entropy(model(b[0]), b[1]),
            optimizer=optimizer,
            callback=measure,
            **self._shared(first),
        )
        rows = pd.DataFrame(history.rows)
        return _ticket(start, network.state(), rows, first, saved[0] if saved else None)

    @staticmethod
    def _scores(f: Callable, vx: Tensor, vy: Tensor, tx: Tensor, ty: Tensor) -> dict[str, Tensor]:
        on_validation = f(vx)
        return {
            "validation_loss": F.cross_entropy(on_validation, vy),
            "validation_accuracy": accuracy(on_validation, vy),
            "test_accuracy": accuracy(f(tx), ty),
        }


class _Resumable:
    """An optimizer factory that remembers its optimizer, and lets it continue from a state."""

    def __init__(
        self, make: Callable, named: Mapping[str, Tensor], starts, stacked: bool, hold=()
    ) -> None:
        self.make, self.starts, self.stacked, self.hold = make, starts, stacked, hold
        self.names = [plain_name(n.removeprefix("module.")) for n, p in named.items()
                      if p.requires_grad]  # fmt: skip

    def __call__(self, params: Iterable[Tensor]) -> torch.optim.Optimizer:
        params = list(params)
        self.optimizer = self.make(params)
        self.params = dict(zip(self.names, params, strict=True))
        for name, p in self.params.items():
            each = [s.optimizer.get(name, {}) for s in self.starts]
            for key, value in each[0].items():
                if self.stacked and value.shape == p.shape[1:]:
                    value = torch.stack([state[key] for state in each])
                self.optimizer.state[p][key] = value.clone()
        if self.hold:
            _hold(self.hold, self.optimizer)
        return self.optimizer

    def state(self, i: int) -> dict[str, dict[str, Tensor]]:
        """Network ``i``'s part of the optimizer's tensors, by parameter name."""

        def own(p: Tensor, value: Tensor) -> Tensor:
            split = self.stacked and value.shape == p.shape
            return (value[i] if split else value).detach().clone()

        return {
            name: {k: own(p, v) for k, v in self.optimizer.state[p].items() if torch.is_tensor(v)}
            for name, p in self.params.items()
        }


@torch.no_grad()
def _hold(pairs: Sequence[Pair], optimizer: torch.optim.Optimizer) -> None:
    """Keep pruned weights of a stack at 0, as ``Masked`` does, with less work for small networks.

    A pruned weight starts at 0, its gradient is 0, and it is 0 again after every step, whatever the
    optimizer adds.
    """
    weights, masks = (list(part) for part in zip(*pairs, strict=True))
    torch._foreach_mul_(weights, masks)
    for w, m in pairs:
        w.register_hook(lambda grad, m=m: grad * m)

    def after(*_) -> None:
        with torch.no_grad():
            torch._foreach_mul_(weights, masks)

    optimizer.register_step_post_hook(after)


def _unstack(stack: Ensemble, n: int) -> list[Params]:
    """Each network's parameters and buffers."""
    both = {**stack.params, **stack.buffers}
    return [{name: t[i].detach().clone() for name, t in both.items()} for i in range(n)]


def _saved(starts, states, optimizers, step: int) -> list[Start]:
    return [
        Start(s.mask, state, s.seed, s.round, step, optimizer)
        for s, state, optimizer in zip(starts, states, optimizers, strict=True)
    ]


def _ticket(start: Start, final: Params, rows: pd.DataFrame, first: int, saved) -> Ticket:
    if len(rows):
        rows = rows.assign(step=rows.step + first).reset_index(drop=True)
    return Ticket(start.mask, start.init_state, start.seed, start.round, start.step,
                  start.optimizer, final, rows, saved)  # fmt: skip


def _has_statistics(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return dropout or isinstance(module, nn.modules.batchnorm._BatchNorm)
