"""A small training loop, and what goes with it: logging steps, progress, chunked evaluation."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.core.seeds import batch_indices

Params = dict[str, Tensor]


@dataclass
class History:
    """What a run recorded: one row for each logged step, and its wall time in seconds."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def frame(self) -> pd.DataFrame:
        """Rows as a data frame with columns ``step``, ``loss`` and whatever the callback gave."""
        return pd.DataFrame(self.rows)

    def last(self, column: str) -> Any:
        """The last recorded value of ``column``.

        Raises:
            KeyError: no row has that column.
        """
        for row in reversed(self.rows):
            if column in row:
                return row[column]
        known = sorted({name for row in self.rows for name in row})
        raise KeyError(f"{column!r} was not recorded; recorded are {', '.join(known) or 'nothing'}")


def fit(
    model: nn.Module,
    data: tuple[Tensor, ...] | Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    batch: int | None = None,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    log: Iterable[int] = (),
    callback: Callable[[int, nn.Module], Mapping[str, Any] | None] | None = None,
    seed: int = 0,
    what: str = "training",
) -> History:
    """Train ``model`` for ``steps`` optimizer steps.

    Step ``t`` draws a batch, evaluates ``loss(model, batch)`` and updates. ``data`` is either a
    tuple of tensors that share their first axis (``batch=None`` takes all of it at every step,
    otherwise mini-batch ``t`` is ``batch_indices(n, batch, t, seed)``), or a function from the
    step to a batch, for tasks that are drawn anew. Tensors stay on the device they are on.

    Args:
        loss: returns the scalar to minimize, so every reduction is visible where it is written.
        optimizer: builds the optimizer from the parameters that require a gradient.
        schedule: factor on every group's base learning rate, as a function of the step.
        clip: largest allowed norm of the whole gradient.
        log: steps at which a row (``step``, ``loss``, callback's values) is recorded. The loss
            is that of the batch before the update. Step ``steps`` means after the last update:
            its row has the callback's values and no loss.
        callback: called at the logged steps, with gradients off and the model in its mode.

    Raises:
        ValueError: bad ``steps``, ``batch`` or ``log``; tensors of different lengths; a loss
            that is not a scalar.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    if steps < 0:
        raise ValueError(f"steps={steps}: allowed is 0 or more")
    log = set(log)
    if any(not 0 <= t <= steps for t in log):
        raise ValueError(f"log has steps outside 0 to {steps}: {sorted(log)}")
    draw = data if callable(data) else _sampler(data, batch, seed)
    if callable(data) and batch is not None:
        raise ValueError(f"batch={batch}: leave it out when data is a function of the step")
    opt = optimizer([p for p in model.parameters() if p.requires_grad])
    base = [group["lr"] for group in opt.param_groups]
    history = History()
    start = time.perf_counter()
    for step in progress(range(steps), what):
        if schedule is not None:
            for group, rate in zip(opt.param_groups, base, strict=True):
                group["lr"] = rate * schedule(step)
        value = loss(model, draw(step))
        if value.ndim != 0:
            raise ValueError(f"loss must return a scalar, got shape {tuple(value.shape)}")
        if not math.isfinite(number := value.item()):
            raise FloatingPointError(f"the loss is {number} at step {step}")
        if step in log:
            _record(history, step, model, callback, number)
        opt.zero_grad(set_to_none=True)
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()
    if steps in log:
        _record(history, steps, model, callback)
    history.seconds = time.perf_counter() - start
    return history


def _sampler(data: tuple[Tensor, ...], batch: int | None, seed: int) -> Callable[[int], tuple]:
    lengths = {len(t) for t in data}
    if len(lengths) != 1:
        raise ValueError(f"data: tensors must have one length, got {[len(t) for t in data]}")
    n = lengths.pop()
    if batch is None:
        return lambda step: data
    if not 1 <= batch <= n:
        raise ValueError(f"batch={batch}: allowed is 1 to {n}, the number of samples")

    def draw(step: int) -> tuple[Tensor, ...]:
        index = batch_indices(n, batch, step, seed)
        return tuple(t[index.to(t.device)] for t in data)

    return draw


def _record(history, step, model, callback, loss: float | None = None) -> None:
    row: dict[str, Any] = {"step": step}
    if loss is not None:
        row["loss"] = loss
    if callback is not None:
        with torch.no_grad():
            row.update(callback(step, model) or {})
    history.rows.append(row)


def progress(items: Iterable, what: str) -> Iterator:
    """Iterate with a progress bar that leaves nothing on the page once it is done.

    Where nobody watches (a batch run, a pipe) there is no bar at all.
    """
    yield from tqdm(items, desc=what, leave=False, disable=not _watched())


def _watched() -> bool:
    if sys.stderr.isatty():
        return True
    if "ipykernel" not in sys.modules:
        return False
    # A kernel that prints the book has a display, too, but a page must not carry a bar's remains.
    return os.environ.get("BOOK_PRESS") != "1"


def log_steps(total: int, k: int) -> list[int]:
    """Up to ``k`` steps from 0 to ``total``, both included, evenly spaced on a log axis.

    Raises:
        ValueError: ``total`` is negative or ``k`` is below 2.
    """
    if total < 0 or k < 2:
        raise ValueError(f"total={total}, k={k}: allowed are total >= 0 and k >= 2")
    grid = [round((total + 1) ** (i / (k - 1))) - 1 for i in range(k)]
    return sorted(set(grid))


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n ..."],
    y: Tensor,
    metric: Callable[[Tensor, Tensor], Tensor | float],
    chunk: int = 1024,
) -> float:
    """Sample-weighted mean of ``metric(model(x), y)`` over chunks, in evaluation mode.

    The model's mode is restored afterwards. For metrics that are means over samples this equals
    one pass over everything, in bounded memory.

    Raises:
        ValueError: no samples, or ``x`` and ``y`` of different lengths.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"x and y must have one length, at least 1; got {len(x)} and {len(y)}")
    training = getattr(model, "training", None)
    if isinstance(model, nn.Module):
        model.eval()
    try:
        total = 0.0
        for a, b in zip(x.split(chunk), y.split(chunk), strict=True):
            total += float(metric(model(a), b)) * len(a)
    finally:
        if isinstance(model, nn.Module):
            model.train(training)
    return total / len(x)


def inner_sgd(
    params: Params,
    loss: Callable[[Params], Tensor],
    lr: float,
    steps: int = 1,
    create_graph: bool = False,
    only: Sequence[str] | None = None,
) -> Params:
    """``steps`` plain gradient steps on ``loss(params)``; returns new parameters.

    With ``create_graph=True`` the result is a differentiable function of ``params`` (second-order
    meta-gradients). Otherwise the new parameters are constants that require a gradient.

    Args:
        only: names that move; the others are passed on as they are.

    Raises:
        ValueError: ``only`` names a parameter that is not there, or ``steps`` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps={steps}: allowed is 0 or more")
    names = list(params) if only is None else list(only)
    if missing := [n for n in names if n not in params]:
        raise ValueError(f"only: no parameter {missing[0]!r}; there are {', '.join(params)}")
    current = dict(params)
    for _ in range(steps):
        if not create_graph:
            current = {n: p.detach().requires_grad_(n in names) for n, p in current.items()}
        moving = [current[n] for n in names]
        grads = torch.autograd.grad(
            loss(current), moving, create_graph=create_graph, allow_unused=True
        )
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                current[name] = current[name] - lr * grad
    if not create_graph:
        current = {n: p.detach().requires_grad_(n in names) for n, p in current.items()}
    return current
