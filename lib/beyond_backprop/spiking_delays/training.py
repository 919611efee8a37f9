"""Two optimizers, a shrinking width, and the arms of the paper's ablation side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.spiking_delays.layers import (
    OFFSET,
    DelayNetwork,
    rounded,
    width_schedule,
)
from lib.core.fitting import History, progress
from lib.core.masks import Mask, random_like
from lib.core.schedules import schedule
from lib.core.seeds import batch_indices, child
from lib.models.spiking import readout

ONE_TAP = {"gauss": 0.05, "max": 1.0}
"""Widths at which a bump on a whole delay is one tap (a Gaussian's neighbors get exp(-200))."""

ARMS: dict[str, dict[str, bool]] = {
    "learned delays": {"delays": True, "weights": True, "anneal": True},
    "random delays": {"delays": False, "weights": True, "anneal": False},
    "no delays": {"delays": False, "weights": True, "anneal": False},
    "learned delays, fixed weights": {"delays": True, "weights": False, "anneal": True},
    "learned delays, constant width": {
        "delays": True,
        "weights": True,
        "anneal": False,
    },
}
"""What each arm of the ablation trains, and whether its bumps shrink."""


def arm_network(
    arms: Sequence[str],
    seeds: Sequence[int],
    widths: Sequence[int],
    bins: int,
    **network,
) -> DelayNetwork:
    """One network for every arm and seed, side by side: member ``a * len(seeds) + k``.

    Members of one seed start from the same weights and delays. Without learning, delays are whole
    and their bumps one tap; without delays they are zero.

    Raises:
        ValueError: an arm that is not in :data:`ARMS`, or no seeds.
    """
    _check_arms(arms)
    if not seeds:
        raise ValueError("seeds: there are none; at least one is needed")
    gens = [child(seed, "delays") for _ in arms for seed in seeds]
    net = DelayNetwork(widths, bins, gen=gens, groups=len(gens), **network)
    with torch.no_grad():
        for layer in net.layers:
            for arm, delay in zip(arms, layer.delay.chunk(len(arms)), strict=True):
                if not ARMS[arm]["delays"]:
                    delay.copy_((delay + 0.5).floor() * (arm != "no delays"))
    return net


def train(
    net: DelayNetwork,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int,
    arms: Sequence[str] = ("learned delays",),
    lr: float = 1e-3,
    lr_delay: float = 0.1,
    peak: float = 5.0,
    weight_decay: float = 1e-5,
    share: float = 0.25,
    start: float | None = None,
    end: float | Sequence[float] = 0.23,
    kind: str = "softmax",
    log: Sequence[int] = (),
    callback: Callable[[int, DelayNetwork], Mapping] | None = None,
    what: str = "training",
) -> History:
    """The paper's training, for all members of ``net`` at once.

    Weights: Adam, one cycle from ``lr`` to ``peak * lr`` and down. Delays: Adam at a rate a hundred
    times larger, cosine annealing, no decay, clamped to their range after every step. The width
    falls in the first ``share`` of the steps (:func:`width_schedule`).

    Args:
        draw: ``step -> (x, y)``, with x ``"b (g i) t"`` and labels ``"b g"``.
        arms: keys of :data:`ARMS`, each for an equal number of members, in their order.
        start, end: ``SIG`` at the first step (``bins // 2`` if None) and after the fall; ``end`` is
            one number, or one for each arm.
        kind: the read-out, see :func:`delay_loss`.

    Returns:
        Rows ``step``, ``loss`` (of one member, averaged over members), ``sigma`` (of the first
        arm) and the callback's values, at the steps in ``log``.
    """
    _check_arms(arms)
    rules = [ARMS[arm] for arm in arms]
    size = net.groups // len(arms)
    if steps < 0:
        raise ValueError(f"steps={steps}: allowed is 0 or more")
    if size * len(arms) != net.groups:
        raise ValueError(f"arms: {len(arms)} for {net.groups} members; they must divide evenly")
    flag = lambda name: torch.tensor([rule[name] for rule in rules]).repeat_interleave(size)
    moving, learning = flag("delays"), flag("weights")
    version = net.layers[0].version
    start = net.bins // 2 if start is None else start
    ends = [end] * len(arms) if isinstance(end, int | float) else list(end)
    if len(ends) != len(arms):
        raise ValueError(f"end: {len(ends)} numbers for {len(arms)} arms")
    falls = [width_schedule(max(start, e), steps, share, e, version) for e in ends]

    def widths(step: int) -> Tensor:
        """The true width of each member's bumps."""
        found = []
        for rule, e, fall in zip(rules, ends, falls, strict=True):
            fixed = e + OFFSET[version] if rule["delays"] else ONE_TAP[version]
            found.append(fall(step) if rule["anneal"] else fixed)
        return torch.tensor(found).repeat_interleave(size)

    delays = [layer.delay for layer in net.layers]
    weights = [p for name, p in net.named_parameters() if ".weight" in name and "layers" in name]
    norms = list(net.norms.parameters())
    groups = [{"params": weights, "weight_decay": weight_decay}]
    if norms:
        groups.append({"params": norms})
    opt_w, opt_p = (
        torch.optim.Adam(groups, lr=lr),
        torch.optim.Adam(delays, lr=lr_delay),
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(opt_w, max_lr=peak * lr, total_steps=max(2, steps))
    cosine = schedule("cosine", steps)
    held = _held(delays, moving) + _held(weights, learning)

    history, log = History(), set(log)
    net.train()
    for step in progress(range(steps + 1), what):
        sigma = widths(step)
        net.set_width(sigma)
        if step == steps:
            break
        x, y = draw(step)
        losses = delay_loss(net(x), y, kind)
        opt_w.zero_grad(set_to_none=True), opt_p.zero_grad(set_to_none=True)
        losses.sum().backward()
        if step in log:
            row = {"step": step, "loss": losses.mean().item(), "sigma": sigma[0].item()}
            history.rows.append(row | dict(callback(step, net) if callback else {}))
        opt_p.param_groups[0]["lr"] = lr_delay * cosine(step)
        opt_w.step(), opt_p.step(), cycle.step()
        with torch.no_grad():
            for p, rows, value in held:
                p[rows] = value
        net.clamp_parameters()
    if steps in log:
        row = {"step": steps, "sigma": sigma[0].item()}
        history.rows.append(row | dict(callback(steps, net) if callback else {}))
    return history


def _check_arms(arms: Sequence[str]) -> None:
    if isinstance(arms, str) or not arms:
        raise ValueError(f"arms={arms!r}: allowed is a list of one or more")
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"arms: {arm!r} is none; there are {', '.join(map(repr, ARMS))}")


def _held(params: list[nn.Parameter], free: Bool[Tensor, "g"]) -> list[tuple]:
    """Rows that an arm does not train, with their numbers: put back after each step.

    A gradient of zero would not do, since Adam divides weight decay by its own size.
    """
    found = []
    for p in params if not free.all() else []:
        rows = (~free).repeat_interleave(len(p) // len(free)).to(p.device)
        found.append((p, rows, p.detach()[rows].clone()))
    return found


def delay_loss(
    v: Float[Tensor, "t b g c"],
    y: Int[Tensor, "b g"],
    kind: Literal["softmax", "mean", "max", "sum", "count"] = "softmax",
) -> Float[Tensor, "g"]:
    """Cross-entropy of the scores that the read-out makes of all steps, for each member.

    The paper's read-out sums the softmax of every step and takes *that* for the logits.
    """
    scores = readout(kind)(v)
    entropy = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none")
    return entropy.view(y.shape).mean(0)


@torch.no_grad()
def accuracy(
    net: DelayNetwork,
    x: Float[Tensor, "n gi t"],
    y: Int[Tensor, "n g"],
    *,
    whole: bool = True,
    kind: Literal["softmax", "mean", "max", "sum", "count"] = "softmax",
    chunk: int = 200,
) -> Float[Tensor, "g"]:
    """Share of right predictions of each member; with whole delays unless ``whole`` is False."""
    mode = net.training
    net.eval()

    def right() -> Tensor:
        parts = [readout(kind)(net(part)).argmax(-1) for part in x.split(chunk)]
        return (torch.cat(parts) == y).double().mean(0)

    if whole:
        with rounded(net):
            found = right()
    else:
        found = right()
    net.train(mode)
    return found


def batches(
    x: Float[Tensor, "s n i t"],
    y: Int[Tensor, "s n"],
    batch: int,
    seeds: Sequence[int],
    copies: int,
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """``step -> (x "b (g i) t", y "b g")``: a seed's batches go to all its copies."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        index = [batch_indices(x.shape[1], batch, step, seed).to(x.device) for seed in seeds]
        pick = lambda data: torch.stack([t[i] for t, i in zip(data, index, strict=True)])
        return for_members(pick(x), pick(y), copies)

    return draw


def for_members(
    x: Float[Tensor, "s n i t"], y: Int[Tensor, "s n"], copies: int
) -> tuple[Float[Tensor, "n gi t"], Int[Tensor, "n g"]]:
    """Samples of every seed as channels of members, each seed's for all its ``copies`` (arms).

    Raises:
        ValueError: labels of another number of seeds or samples, or fewer than one copy.
    """
    if y.shape != x.shape[:2]:
        raise ValueError(f"y: shape {tuple(y.shape)}; allowed is x's {tuple(x.shape[:2])}")
    if copies < 1:
        raise ValueError(f"copies={copies}: allowed is 1 or more")
    x = x.transpose(0, 1).repeat(1, copies, 1, 1).flatten(1, 2)
    return x, y.T.repeat(1, copies)


def connectivity(net: DelayNetwork, densities: Sequence[float], seeds: Sequence[int]) -> Mask:
    """Random masks that keep a share of each layer's synapses: ``densities`` for the members.

    Members of one seed and density share their mask, whichever arm they belong to.

    Raises:
        ValueError: not one density and seed for each member, or a density outside 0 to 1.
    """
    if len(densities) != net.groups or len(seeds) != net.groups:
        raise ValueError(
            f"{len(densities)} densities and {len(seeds)} seeds for {net.groups} members"
        )
    mask = {}
    for k, layer in enumerate(net.layers):
        parts = []
        for density, seed in zip(densities, seeds, strict=True):
            if not 0 <= density <= 1:
                raise ValueError(f"densities: {density}; allowed is 0 to 1")
            size = layer.weight[: len(layer.weight) // net.groups].shape
            keep = torch.arange(size.numel()) < round(density * size.numel())
            drawn = random_like(
                {"w": keep.view(size)}, child(seed, "mask", k, round(1e6 * density))
            )
            parts.append(drawn["w"])
        mask[f"layers.{k}.weight"] = torch.cat(parts)
    return mask


def parameters_per_member(net: DelayNetwork, arm: str) -> int:
    """Numbers that one member of an arm trains: a learned delay counts like a weight."""
    rule = ARMS[arm]
    synapses = sum(layer.weight.numel() for layer in net.layers) // net.groups
    norms = sum(p.numel() for p in net.norms.parameters()) // net.groups
    return synapses * (rule["weights"] + rule["delays"]) + norms
