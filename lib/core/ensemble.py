"""Many networks of one architecture, evaluated and trained at once along a leading axis ``s``."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lib.core.fitting import History, progress
from lib.core.seeds import batch_indices

Params = dict[str, Tensor]


class Ensemble:
    """``s`` members of one architecture: a call evaluates them all.

    Attributes:
        params: parameters by name, each with a leading axis ``s``.
        buffers: buffers by name, likewise.
        seeds: one for each member.
        history: what ``fit_ensemble`` recorded.
    """

    def __init__(self, models: Sequence[nn.Module], seeds: Sequence[int] | None = None) -> None:
        if not models:
            raise ValueError("models is empty: an ensemble needs at least one member")
        self.params, self.buffers = stack_module_state(list(models))
        self.seeds = list(range(len(models))) if seeds is None else list(seeds)
        self.history = History()
        # A skeleton without numbers: the members' are in params.
        self._base = copy.deepcopy(models[0]).to("meta")

    def __len__(self) -> int:
        return len(self.seeds)

    def __call__(
        self, x: Float[Tensor, "..."], per_member: bool = False
    ) -> Float[Tensor, "s n ..."]:
        """All members' outputs; ``per_member`` says that ``x`` has a leading axis ``s`` too."""
        return self.map(lambda model, x: model(x), x, per_member=per_member)

    def map(
        self,
        f: Callable[..., Any],
        *inputs: Tensor,
        per_member: bool | Sequence[bool] = False,
    ) -> Any:
        """``f(model, *inputs)`` for every member at once; ``model`` is a function of its input.

        ``per_member`` says, for all inputs or for each, whether a leading axis ``s`` is split.
        """

        def one(params: Params, buffers: Params, *inputs: Tensor) -> Any:
            def model(*x: Tensor) -> Tensor:
                return functional_call(self._base, (params, buffers), x)

            return f(model, *inputs)

        axes = _axes(per_member, len(inputs))
        return vmap(one, (0, 0, *axes), randomness="different")(self.params, self.buffers, *inputs)

    def member(self, i: int) -> nn.Module:
        """Member ``i`` as a module of its own, with copies of its parameters."""
        model = copy.deepcopy(self._base).to_empty(device=next(iter(self.params.values())).device)
        state = {name: t[i].detach().clone() for name, t in {**self.params, **self.buffers}.items()}
        model.load_state_dict(state, strict=False)
        return model


def stack(models: Sequence[nn.Module]) -> tuple[Params, Callable[..., Tensor]]:
    """``(params, call)`` with ``call(params, x) -> "s n o"``: the functional form of an ensemble.

    For derivatives in the parameters. Buffers keep their values.
    """
    ensemble = Ensemble(models)

    def call(params: Params, x: Tensor, per_member: bool = False) -> Tensor:
        def one(params: Params, buffers: Params, x: Tensor) -> Tensor:
            return functional_call(ensemble._base, (params, buffers), (x,))

        axes = (0, 0, 0 if per_member else None)
        return vmap(one, axes, randomness="different")(params, ensemble.buffers, x)

    return ensemble.params, call


def fit_ensemble(
    make: Callable[[int], nn.Module] | Ensemble,
    seeds: Sequence[int],
    data: tuple[Tensor, ...] | Callable[[int], Any],
    loss: Callable[[Callable[[Tensor], Tensor], Any], Tensor],
    *,
    steps: int,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    batch: int | None = None,
    per_member: bool | Sequence[bool] = False,
    rates: Float[Tensor, "s"] | None = None,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    log: Iterable[int] = (),
    callback: Callable[[int, Ensemble], Mapping[str, Any] | None] | None = None,
    what: str = "training",
) -> Ensemble:
    """Train one network per seed, all in the same tensor operations.

    The members do not see one another: losses are summed, so each gets its own gradient, and an
    elementwise optimizer (SGD, Adam, ...) does to the stack what it does to one. With mini-batches
    member ``seeds[i]`` sees those that ``lib.core.fitting.fit(..., seed=seeds[i])`` would draw.

    Args:
        make: ``make(seed)`` builds a member; or an ensemble, which is trained further.
        loss: ``loss(model, batch) -> scalar`` of one member, as in ``fit``.
        per_member: whether the tensors of ``data`` have a leading axis ``s``; one answer for all
            or one for each.
        rates: factor on each member's learning rate.
        clip: largest gradient norm, of each member on its own.
        log: steps at which a row per member (``step``, ``seed``, ``loss``, callback's values) is
            recorded; the loss is that before the update, step ``steps`` has none.
        callback: its values are one number per member, or one for all.

    Raises:
        ValueError: bad ``steps``, ``batch``, ``log`` or ``seeds``; a loss that is not a scalar.
        FloatingPointError: a member's loss is not finite; the message names seed and step.
    """
    if steps < 0:
        raise ValueError(f"steps={steps}: allowed is 0 or more")
    seeds = list(seeds)
    ensemble = make if isinstance(make, Ensemble) else Ensemble([make(k) for k in seeds], seeds)
    if len(ensemble) != len(seeds):
        raise ValueError(f"seeds: {len(seeds)} given for {len(ensemble)} members")
    log = set(log)
    if any(not 0 <= t <= steps for t in log):
        raise ValueError(f"log has steps outside 0 to {steps}: {sorted(log)}")
    draw = _sampler(data, batch, per_member, seeds)
    trained = [p for p in ensemble.params.values() if p.requires_grad]
    opt = optimizer(trained)
    base = [group["lr"] for group in opt.param_groups]
    start = time.perf_counter()
    for step in progress(range(steps), what):
        for group, rate in zip(opt.param_groups, base, strict=True):
            group["lr"] = rate * (schedule(step) if schedule else 1.0)
        tensors, split = draw(step)
        losses = ensemble.map(lambda model, *b: loss(model, b), *tensors, per_member=split)
        if losses.ndim != 1:
            raise ValueError(f"loss must return a scalar, got shape {tuple(losses.shape[1:])}")
        if not torch.isfinite(losses).all():
            bad = int((~torch.isfinite(losses)).nonzero()[0])
            raise FloatingPointError(f"the loss of seed {seeds[bad]} is not finite at step {step}")
        if step in log:
            _record(ensemble, step, callback, losses.detach())
        opt.zero_grad(set_to_none=True)
        losses.sum().backward()
        if clip is not None:
            _clip_members(trained, clip)
        _step(opt, trained, rates)
    if steps in log:
        _record(ensemble, steps, callback)
    ensemble.history.seconds += time.perf_counter() - start
    return ensemble


def _axes(per_member: bool | Sequence[bool], n: int) -> tuple[int | None, ...]:
    flags = [per_member] * n if isinstance(per_member, bool) else list(per_member)
    if len(flags) != n:
        raise ValueError(f"per_member: {len(flags)} answers for {n} tensors")
    return tuple(0 if flag else None for flag in flags)


def _sampler(data, batch: int | None, per_member, seeds: list[int]):
    """``step -> (tensors, per_member)``."""
    if callable(data):
        if batch is not None:
            raise ValueError(f"batch={batch}: leave it out when data is a function of the step")

        def fresh(step: int):
            drawn = data(step)
            return (drawn if isinstance(drawn, tuple) else (drawn,)), per_member

        return fresh
    axes = _axes(per_member, len(data))
    lengths = {t.shape[0 if axis is None else 1] for t, axis in zip(data, axes)}
    if len(lengths) != 1:
        raise ValueError(f"data: tensors must have one length, got {sorted(lengths)}")
    n = lengths.pop()
    if batch is None:
        return lambda step: (data, per_member)
    if not 1 <= batch <= n:
        raise ValueError(f"batch={batch}: allowed is 1 to {n}, the number of samples")

    def draw(step: int):
        index = torch.stack([batch_indices(n, batch, step, seed) for seed in seeds])
        rows = torch.arange(len(seeds))[:, None]
        index, rows = (i.to(data[0].device) for i in (index, rows))
        return tuple(
            t[index] if axis is None else t[rows, index] for t, axis in zip(data, axes)
        ), True

    return draw


def _clip_members(params: list[Tensor], clip: float) -> None:
    grads = [p.grad for p in params if p.grad is not None]
    norm = sum(g.flatten(1).square().sum(1) for g in grads).sqrt()
    factor = (clip / (norm + 1e-6)).clamp_max(1.0)
    for g in grads:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))


@torch.no_grad()
def _step(opt: torch.optim.Optimizer, params: list[Tensor], rates: Tensor | None) -> None:
    if rates is None:
        opt.step()
        return
    before = [p.clone() for p in params]
    opt.step()
    # An update is proportional to the learning rate, so a member's rate scales its own.
    for p, old in zip(params, before):
        p.copy_(old + rates.to(p).view(-1, *[1] * (p.ndim - 1)) * (p - old))


def _record(ensemble: Ensemble, step: int, callback, losses: Tensor | None = None) -> None:
    columns: dict[str, list[Any]] = {} if losses is None else {"loss": losses.tolist()}
    if callback is not None:
        with torch.no_grad():
            for name, value in (callback(step, ensemble) or {}).items():
                one_each = isinstance(value, Tensor) and value.ndim == 1
                columns[name] = value.tolist() if one_each else [float(value)] * len(ensemble)
                if one_each and len(value) != len(ensemble):
                    raise ValueError(f"callback: {name!r} has {len(value)} values, not one each")
    for i, seed in enumerate(ensemble.seeds):
        row = {"step": step, "seed": seed, **{name: v[i] for name, v in columns.items()}}
        ensemble.history.rows.append(row)
