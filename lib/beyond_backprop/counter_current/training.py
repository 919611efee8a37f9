"""One step for one network; many networks side by side; a classifier under the part's interface."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib.beyond_backprop.counter_current.losses import ccl_loss
from lib.beyond_backprop.counter_current.network import CounterCurrentNet, ccl_mlp, is_feedback
from lib.core.ensemble import Ensemble
from lib.core.fitting import progress
from lib.core.seeds import batch_indices, child

Rule = Literal["ccl", "backprop", "readout", "frozen"]


def ccl_step(
    net: CounterCurrentNet,
    x: Float[Tensor, "b ..."],
    y: Int[Tensor, "b"],
    optimizers: Iterable[torch.optim.Optimizer],
    *,
    clip: float | None = 1.0,
    centralize: bool = False,
    **loss,
) -> float:
    """One update of both networks; returns the cross-entropy before it.

    Every local loss goes backward on its own. The sum would give the same gradients, but no layer
    has to know it.

    Args:
        clip: largest gradient norm of each network; ``None`` for none.
        centralize: subtract from each weight gradient its mean over the inputs, before clipping.
        loss: as for :func:`ccl_loss`.

    Raises:
        ValueError: ``clip`` not above 0, inputs that do not fit (see :func:`ccl_loss`).
        FloatingPointError: a loss is not finite; the weights are left as they were.
    """
    _check_clip(clip)
    classes = net.layers[-1].W.shape[0]
    acts, signals = net(x, torch.eye(classes, dtype=x.dtype, device=x.device))
    total, per_layer = ccl_loss(acts, signals, y, **loss)
    if not math.isfinite(total.item()):
        raise FloatingPointError(f"the losses are not all finite: their sum is {total.item()}")
    net.zero_grad()
    torch.autograd.backward(per_layer)
    for params in (net.forward_parameters(), net.feedback_parameters()):
        if centralize:
            centralize_(params)
        if clip is not None:
            nn.utils.clip_grad_norm_(params, clip)
    for opt in optimizers:
        opt.step()
    return per_layer[-1].item()


@torch.no_grad()
def centralize_(params: Iterable[Tensor], members: int = 0) -> None:
    """Gradient centralization: weight gradients get mean 0 over the inputs; biases are left.

    ``members`` is 1 if the gradients have a leading axis of networks.
    """
    for p in params:
        if p.grad is not None and p.ndim - members > 1:
            p.grad -= p.grad.mean(list(range(1 + members, p.ndim)), keepdim=True)


def train_ccl(
    nets: Sequence[CounterCurrentNet],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, "n"],
    *,
    steps: int,
    batch: int,
    seeds: Sequence[int],
    rules: Sequence[Rule] | Rule = "ccl",
    lr: float = 0.03,
    feedback_lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    feedback_momentum: float | None = None,
    feedback_weight_decay: float | None = None,
    rates: Float[Tensor, "s"] | None = None,
    clip: float | None = 1.0,
    centralize: bool = False,
    schedule: Callable[[int], float] | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    log: Iterable[int] = (),
    callback: Callable[[int, Ensemble], dict] | None = None,
    what: str = "training",
    **loss,
) -> Ensemble:
    """Train networks of one shape side by side, each by its own rule.

    Two SGD optimizers, one for each network; gradients are clipped for each network and each
    member on its own. Member ``i`` sees the mini-batches that ``fit(..., seed=seeds[i])`` would.

    Args:
        nets: one network for each member, of one architecture.
        rules: one for all, or one each. ``"ccl"``; ``"backprop"``, the cross-entropy alone, through
            all layers; ``"readout"``, only the last layer learns; ``"frozen"``, CCL with the
            feedback network left as it was drawn.
        feedback_lr, feedback_momentum, feedback_weight_decay: as for the forward network if None.
        rates: factor on each member's gradients after clipping: on its rates, without weight decay.
        schedule: step to a factor on both rates.
        validation: with it, every member ends with the weights that had the lowest cross-entropy
            on these data at a logged step.
        log: steps at which ``history`` gets a row per member: ``step``, ``seed``, ``rule``, the
            callback's values (a number each) and ``validation``.
        loss: as for :func:`ccl_loss`.

    Raises:
        ValueError: ``steps``, ``batch``, ``log``, ``clip``, an unknown rule, lists of other
            lengths, networks of different shapes, labels that are no classes, ``validation``
            without ``log``.
        FloatingPointError: a loss is not finite; the message names member and step.
    """
    rules = [rules] * len(nets) if isinstance(rules, str) else list(rules)
    seeds, log = list(seeds), set(log)
    _check(nets, seeds, rules, steps, batch, len(x), log)
    _check_clip(clip)
    classes = nets[0].layers[-1].W.shape[0]
    _check_labels("y", y, len(x), classes)
    if rates is not None and rates.shape != (len(nets),):
        raise ValueError(f"rates has shape {tuple(rates.shape)}: allowed is ({len(nets)},)")
    if validation is not None:
        _check_labels("validation", validation[1], len(validation[0]), classes)
        if not log:
            raise ValueError("validation without log: allowed with one logged step or more")
    ensemble = Ensemble(nets, seeds)
    eye = torch.eye(classes, dtype=x.dtype, device=x.device)
    # A network that only learns its readout needs no pair either: its masks do the rest.
    plain = torch.tensor([rule in ("backprop", "readout") for rule in rules], device=x.device)
    names = {False: [], True: []}
    for name in ensemble.params:
        names[is_feedback(name)].append(name)
    masks = _masks(ensemble, rules)
    optimizers = []
    for side, rate, mom, decay in (
        (False, lr, momentum, weight_decay),
        (
            True,
            lr if feedback_lr is None else feedback_lr,
            momentum if feedback_momentum is None else feedback_momentum,
            weight_decay if feedback_weight_decay is None else feedback_weight_decay,
        ),
    ):
        params = [ensemble.params[name] for name in names[side]]
        optimizers.append(torch.optim.SGD(params, lr=rate, momentum=mom, weight_decay=decay))

    def local(model, x, y):
        return ccl_loss(*model(x, eye), y, **loss)[0]

    def through(model, x, y):
        return F.cross_entropy(model(x, None, False), y)

    best = None
    start = time.perf_counter()
    for step in progress(range(steps + 1), what):
        if step in log:
            best = _record(ensemble, step, rules, callback, validation, best)
        if step == steps:
            break
        index = torch.stack([batch_indices(len(x), batch, step, k) for k in seeds]).to(x.device)
        xb, yb = x[index], y[index]
        # One kind of loss costs one pass; where rules are mixed, each member takes its own.
        losses = 0.0
        if not plain.all():
            losses = each(ensemble, local, xb, yb, per_member=True)
        if plain.any():
            losses = torch.where(plain, each(ensemble, through, xb, yb, per_member=True), losses)
        if not torch.isfinite(losses).all():
            bad = int((~torch.isfinite(losses)).nonzero()[0])
            raise FloatingPointError(
                f"the loss of member {bad} (seed {seeds[bad]}, {rules[bad]}) is not finite at "
                f"step {step}"
            )
        for opt in optimizers:
            opt.zero_grad(set_to_none=True)
        losses.sum().backward()
        factor = schedule(step) if schedule else 1.0
        for side, opt, rate in zip((False, True), optimizers, (lr, feedback_lr)):
            params = [ensemble.params[name] for name in names[side]]
            _keep_only(params, [masks[name] for name in names[side]])
            if centralize:
                centralize_(params, members=1)
            if clip is not None:
                _clip_members(params, clip)
            if rates is not None:
                _scale_members(params, rates)
            opt.param_groups[0]["lr"] = (lr if rate is None else rate) * factor
            opt.step()
    if best is not None:
        with torch.no_grad():
            for name, t in {**ensemble.params, **ensemble.buffers}.items():
                t.copy_(best[1][name])
    ensemble.history.seconds += time.perf_counter() - start
    return ensemble


def each(ensemble: Ensemble, f: Callable, *inputs: Tensor, per_member: bool = False):
    """``f(model, *inputs)`` for every member at once.

    As ``ensemble.map``, but ``model`` may return both networks' signals. ``per_member``: the inputs
    have a leading axis of members.
    """

    def one(params, buffers, *inputs):
        return f(lambda *a: functional_call(ensemble._base, (params, buffers), a), *inputs)

    axes = (0 if per_member else None,) * len(inputs)
    return vmap(one, (0, 0, *axes))(ensemble.params, ensemble.buffers, *inputs)


def accuracy(ensemble: Ensemble, x: Tensor, y: Int[Tensor, "n"]) -> Float[Tensor, "s"]:
    """Share of right answers of each member's forward network.

    Batch normalization, if there is any, uses its running statistics, and leaves them alone.
    """
    with torch.no_grad(), _evaluating(ensemble):
        return (ensemble(x).argmax(-1) == y).float().mean(1)


def prototype_accuracy(
    ensemble: Ensemble, x: Tensor, y: Int[Tensor, "n"]
) -> Float[Tensor, "s pairs"]:
    """The same for the answer ``argmax_c S_l`` of every pair: does layer ``l`` know the class?"""
    classes = ensemble._base.layers[-1].W.shape[0]
    eye = torch.eye(classes, dtype=x.dtype, device=x.device)

    def read(model, x):
        acts, signals = model(x, eye)
        pairs = zip(acts, signals)
        return torch.stack(
            [((h.flatten(1) @ g.flatten(1).T).argmax(1) == y).float().mean() for h, g in pairs]
        )

    with torch.no_grad(), _evaluating(ensemble):
        return each(ensemble, read, x)


@contextmanager
def _evaluating(ensemble: Ensemble) -> Iterator[None]:
    """Batch normalization by running statistics, which what is evaluated must not change."""
    was = ensemble._base.training
    ensemble._base.eval()
    try:
        yield
    finally:
        ensemble._base.train(was)


class CCLTrainer:
    """A classifier that learns by counter-current exchange.

    Attributes:
        model: both networks; ``groups``: parameters of each forward layer, in order.
    """

    def __init__(self, model: CounterCurrentNet, optimizers, **step) -> None:
        self.model, self._optimizers, self._step = model, optimizers, step
        self.groups = model.groups("forward")

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]) -> None:
        """One update on one batch."""
        ccl_step(self.model, x, y, self._optimizers, **self._step)

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Logits; the feedback network is not called, batch normalization uses running values."""
        was = self.model.training
        try:
            return self.model.eval()(x)
        finally:
            self.model.train(was)


def mlp_trainer(
    widths: Sequence[int],
    *,
    seed: int,
    lr: float = 0.15,
    feedback_lr: float | None = None,
    momentum: float = 0.9,
    clip: float | None = 1.0,
    **options,
) -> CCLTrainer:
    """An MLP of these widths and its feedback network, with two SGD optimizers.

    The factor ``256 / n`` in the loss makes the best rate depend on the width: the default is for
    128 units.

    Args:
        options: ``kind``, ``scale``, ``filter_target``, ``decorrelation`` and ``centralize``; the
            rest goes to :class:`DualLinear`.

    Raises:
        ValueError: fewer than three widths.
    """
    of_step = ("kind", "scale", "filter_target", "decorrelation", "centralize")
    step = {k: options.pop(k) for k in of_step if k in options}
    net = ccl_mlp(widths, gen=child(seed, "ccl"), **options)
    rates = (lr, lr if feedback_lr is None else feedback_lr)
    sides = (net.forward_parameters(), net.feedback_parameters())
    optimizers = [torch.optim.SGD(p, lr=r, momentum=momentum) for p, r in zip(sides, rates)]
    return CCLTrainer(net, optimizers, clip=clip, **step)


def _check(nets, seeds, rules, steps, batch, n, log) -> None:
    if not nets or len(seeds) != len(nets) or len(rules) != len(nets):
        raise ValueError(
            f"{len(nets)} nets, {len(seeds)} seeds and {len(rules)} rules: allowed is one of each "
            "for every member, one at least"
        )
    for rule in rules:
        if rule not in ("ccl", "backprop", "readout", "frozen"):
            raise ValueError(
                f"rules: {rule!r}; allowed are 'ccl', 'backprop', 'readout' and 'frozen'"
            )
    if steps < 0:
        raise ValueError(f"steps={steps}: allowed is 0 or more")
    if not 1 <= batch <= n:
        raise ValueError(f"batch={batch}: allowed is 1 to {n}, the number of samples")
    shapes = [[tuple(p.shape) for p in net.parameters()] for net in nets]
    for i, found in enumerate(shapes):
        if found != shapes[0]:
            raise ValueError(f"nets: number {i} has other shapes than number 0; allowed is one")
    if any(not 0 <= t <= steps for t in log):
        raise ValueError(f"log has steps outside 0 to {steps}: {sorted(log)}")


def _check_clip(clip: float | None) -> None:
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}: allowed are numbers above 0, and None")


def _check_labels(name: str, y: Tensor, n: int, classes: int) -> None:
    if y.shape != (n,) or n == 0:
        raise ValueError(
            f"{name} has labels of shape {tuple(y.shape)} for {n} samples: allowed is one for "
            "each, and one at least"
        )
    low, high = y.min().item(), y.max().item()
    if low < 0 or high >= classes:
        raise ValueError(f"{name} has labels {low} to {high}: allowed are 0 to {classes - 1}")


def _masks(ensemble: Ensemble, rules: Sequence[str]) -> dict[str, Tensor | None]:
    """Per parameter: which members train it; ``None`` where all do."""
    last = max(int(name.split(".")[1]) for name in ensemble.params)
    masks = {}
    for name, p in ensemble.params.items():
        if is_feedback(name):
            on = [rule == "ccl" for rule in rules]
        else:
            top = int(name.split(".")[1]) == last
            on = [top or rule != "readout" for rule in rules]
        masks[name] = None if all(on) else torch.tensor(on, device=p.device)
    return masks


@torch.no_grad()
def _keep_only(params: Sequence[Tensor], masks: Sequence[Tensor | None]) -> None:
    for p, mask in zip(params, masks):
        if mask is not None:
            _scale_members([p], mask)


@torch.no_grad()
def _clip_members(params: Sequence[Tensor], clip: float) -> None:
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return
    norm = sum(g.flatten(1).square().sum(1) for g in grads).sqrt()
    _scale_members(params, (clip / (norm + 1e-6)).clamp_max(1.0))


@torch.no_grad()
def _scale_members(params: Sequence[Tensor], factor: Shaped[Tensor, "s"]) -> None:
    for p in params:
        if p.grad is not None:
            p.grad.mul_(factor.to(p.grad).view(-1, *[1] * (p.ndim - 1)))


@torch.no_grad()
def _record(ensemble, step, rules, callback, validation, best):
    columns = {"rule": list(rules)}
    for name, values in ((callback(step, ensemble) if callback else None) or {}).items():
        columns[name] = values.tolist()
    if validation is not None:
        x, y = validation
        with _evaluating(ensemble):
            found = each(ensemble, lambda model, x: F.cross_entropy(model(x), y), x)
        columns["validation"] = found.tolist()
        state = {**ensemble.params, **ensemble.buffers}
        if best is None:
            best = (found.clone(), {name: t.detach().clone() for name, t in state.items()})
        else:
            better = found < best[0]
            best = (torch.minimum(found, best[0]), best[1])
            for name, t in state.items():
                best[1][name][better] = t.detach()[better]
    for i, seed in enumerate(ensemble.seeds):
        row = {"step": step, "seed": seed} | {name: v[i] for name, v in columns.items()}
        ensemble.history.rows.append(row)
    return best
