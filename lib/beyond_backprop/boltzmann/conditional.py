"""One set of weights, any question: clamp what is known, infer the rest (Feng et al., section 5).

A batch row is the vector of all nodes' distributions: pixels first, hidden nodes, the label last.
What is observed is one-hot and stays; a pixel may also be clamped at a value between, as
``(1 - value, value)``. Training hides a random part of every image, and asks for it. Answers are
read with a learned temperature, as in the authors' code; what that code adds and this does not: a
focal loss, Anderson acceleration in training, and biases of fixed direction and learned length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.boltzmann.monotone import (
    MonotoneBoltzmann,
    lipschitz,
    monotone_weights,
    states,
)
from lib.beyond_backprop.boltzmann.solvers import (
    Solution,
    forward_backward,
    implicit_mean_field,
    multiply,
)
from lib.core.fitting import History, progress
from lib.core.seeds import batch_indices, child
from lib.kernels.prox_softmax import prox_softmax


def one_hot_pixels(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d2"]:
    """Pixels in [0, 1] as binary nodes, one after another: ``(1 - x, x)``."""
    return torch.stack([1 - x, x], -1).flatten(-2)


def log_marginals(x: Float[Tensor, "n d"]) -> Float[Tensor, "d2"]:
    """Logarithm of each binary pixel's frequency in the training set, with one count added."""
    p = (x.sum(0) + 1) / (len(x) + 2)
    return one_hot_pixels(p).log()


def clamp(
    machine: nn.Module,
    x: Float[Tensor, "*b d"],
    seen: Bool[Tensor, "*b d"],
    y: Int[Tensor, "*b"] | None = None,
    told: Bool[Tensor, "*b"] | None = None,
) -> tuple[Float[Tensor, "*b K"], Bool[Tensor, "*b K"]]:
    """``(start, free)``: seen pixels and told labels at their values, the rest free.

    Raises:
        ValueError: ``x`` has another number of pixels than the machine's first run of nodes.
    """
    pixels, classes = machine.groups[0][0], machine.groups[-1][1]
    if x.shape[-1] != pixels:
        raise ValueError(f"x: {x.shape[-1]} pixels; the machine has {pixels}")
    # The rest starts where it would be without couplings: pixels at their frequencies.
    alone = prox_softmax(machine.b.detach(), 1.0, machine.groups)
    alone = alone[:, None] if x.ndim == 3 else alone[0]
    start = alone.expand(*x.shape[:-1], alone.shape[-1]).clone()
    free = torch.ones_like(start, dtype=torch.bool)
    both = seen.repeat_interleave(2, -1)
    start[..., : 2 * pixels] = torch.where(both, one_hot_pixels(x), start[..., : 2 * pixels])
    free[..., : 2 * pixels] = ~both
    if y is not None:
        told = torch.ones_like(y, dtype=torch.bool) if told is None else told
        label = F.one_hot(y, classes).to(start)
        start[..., -classes:] = torch.where(told[..., None], label, start[..., -classes:])
        free[..., -classes:] = ~told[..., None]
    return start, free


@torch.no_grad()
def infer(
    machine: nn.Module,
    x: Float[Tensor, "*b d"],
    seen: Bool[Tensor, "*b d"],
    y: Int[Tensor, "*b"] | None = None,
    *,
    tol: float = 1e-4,
    most: int = 100,
) -> Solution:
    """Every node's marginal given the seen pixels (and the labels ``y``, if given).

    Without an axis of machines in ``x`` every machine answers for the same images: ``"s b K"``.
    """
    if x.ndim == 2:
        x, seen = (t.expand(len(machine.b), *t.shape) for t in (x, seen))
        y = None if y is None else y.expand(len(machine.b), *y.shape)
    start, free = clamp(machine, x, seen, y)
    Phi = machine.Phi()
    alpha = _step(Phi)
    return forward_backward(
        Phi, machine.b[:, None], machine.groups, alpha, start=start, free=free, tol=tol, most=most
    )


def read_out(
    machine: nn.Module, Phi: Float[Tensor, "s K K"], q: Float[Tensor, "s b K"]
) -> Float[Tensor, "s b K"]:
    """The answers ``softmax(tau_i^2 (Phi q + b)_i)``; the solution itself where ``tau = 1``.

    Mean-field beliefs of a monotone machine are soft, since attraction is bounded. ``tau`` acts
    after the fixed point: it sharpens what is said, and uniqueness is not touched.
    """
    sharp = machine.tau.square().repeat_interleave(states(machine.groups, q.device), -1)
    field = multiply(Phi, q) + machine.b[:, None]
    return prox_softmax(sharp[:, None] * field, 1.0, machine.groups)


@torch.no_grad()
def classify(machine, x, seen, **settings) -> Float[Tensor, "s b classes"]:
    """The label's probabilities given the seen pixels."""
    answers = read_out(machine, machine.Phi(), infer(machine, x, seen, **settings).q)
    return answers[..., -machine.groups[-1][1] :]


@torch.no_grad()
def complete(machine, x, seen, y=None, **settings) -> Float[Tensor, "s b d"]:
    """For every pixel, the probability that it is on; seen pixels as they are."""
    answers = read_out(machine, machine.Phi(), infer(machine, x, seen, y, **settings).q)
    return torch.where(seen, x, answers[..., 1 : 2 * machine.groups[0][0] : 2])


def draw_masks(
    batch: int, side: int, gen: torch.Generator
) -> tuple[Bool[Tensor, "b d"], Bool[Tensor, "b"]]:
    """``(seen, told)`` for a batch: which pixels and which labels are observed.

    A quarter of the images are seen whole, without their label. Of the rest one half shows a random
    fraction U(0.1, 1) of the pixels, the other hides 2 to side - 2 rows, the upper or the lower;
    among all these, three labels in ten are told.

    Raises:
        ValueError: ``batch`` below 1, ``side`` below 4.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: allowed is 1 or more")
    if side < 4:
        raise ValueError(f"side={side}: allowed is 4 or more, so that 2 to side - 2 rows can hide")
    seen = torch.ones(batch, side, side, dtype=torch.bool)
    whole, dotted = batch // 4, batch // 4 + (3 * batch) // 8
    share = 0.1 + 0.9 * torch.rand(dotted - whole, 1, 1, generator=gen)
    seen[whole:dotted] = torch.rand(dotted - whole, side, side, generator=gen) < share
    hidden = torch.randint(2, side - 1, (batch - dotted, 1, 1), generator=gen)
    upper = torch.rand(batch - dotted, 1, 1, generator=gen) < 0.5
    row = torch.arange(side)[None, :, None]
    seen[dotted:] = torch.where(upper, row >= hidden, row < side - hidden)
    told = torch.rand(batch, generator=gen) < 0.3
    told[:whole] = False
    return seen.flatten(1), told


def masked_marginal_loss(
    q: Float[Tensor, "*b K"],
    x: Float[Tensor, "*b d"],
    y: Int[Tensor, "*b"],
    seen: Bool[Tensor, "*b d"],
    told: Bool[Tensor, "*b"],
    classes: int,
    label_weight: float = 0.3,
) -> Float[Tensor, ""]:
    """Cross-entropy of hidden pixels (mean over them) and, weighted, of labels that were not told.

    ``q`` is what the machine answers (``read_out``): the model is trained as it is used.
    """
    d = x.shape[-1]
    p = q[..., 1 : 2 * d : 2].clamp(1e-6, 1 - 1e-6)
    # One logarithm: that of the probability given to what the pixel is.
    right = torch.where(x > 0.5, p, 1 - p).log()
    pixels = -torch.where(seen, 0.0, right).sum() / (~seen).sum().clamp_min(1)
    chosen = q[..., -classes:].gather(-1, y[..., None])[..., 0].clamp_min(1e-6).log()
    label = -torch.where(told, 0.0, chosen).sum() / (~told).sum().clamp_min(1)
    return pixels + label_weight * label


def fit_marginals(
    machine: nn.Module,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    *,
    steps: int,
    rate: float = 0.01,
    batch: int = 64,
    most: int = 20,
    tol: float = 1e-4,
    seeds: Sequence[int],
    schedule: Callable[[int], float] | None = None,
    log: Sequence[int] = (),
    watch: Callable[[int, nn.Module, Tensor], dict] | None = None,
) -> History:
    """Train all members at once by Adam, each on its own batches and masks.

    ``machine`` is a :class:`MonotoneBoltzmann`, or one without the constraint
    (:class:`~lib.beyond_backprop.boltzmann.baselines.FreeBoltzmann`).

    Args:
        schedule: factor on the rate as a function of the step; x0.3 after 70 % where absent.
        watch: ``watch(step, machine, Phi)`` returns values for the history at the logged steps.

    Raises:
        ValueError: not one seed for each member; images that are not square.
        FloatingPointError: the loss is not finite.
    """
    members = len(machine.b)
    if len(seeds) != members:
        raise ValueError(f"seeds: {len(seeds)} for {members} machines")
    side, classes = round(x.shape[-1] ** 0.5), machine.groups[-1][1]
    if side**2 != x.shape[-1]:
        raise ValueError(f"x: {x.shape[-1]} pixels; allowed is a square number")
    optimizer = torch.optim.Adam(machine.parameters(), lr=rate)
    if schedule is None:
        schedule = lambda step: 1.0 if step < 0.7 * steps else 0.3
    gens, history, log = [child(s, "masks") for s in seeds], History(), set(log)
    for step in progress(range(steps + 1), "training"):
        Phi = machine.Phi()
        if step in log and watch is not None:
            with torch.no_grad():
                history.rows.append({"step": step, **watch(step, machine, Phi.detach())})
        if step == steps:
            break
        index = torch.stack([batch_indices(len(x), batch, step, s) for s in seeds])
        drawn = [draw_masks(batch, side, g) for g in gens]
        seen, told = (torch.stack(t).to(x.device) for t in zip(*drawn, strict=True))
        xb, yb = x[index.to(x.device)], y[index.to(x.device)]
        start, free = clamp(machine, xb, seen, yb, told)
        q = implicit_mean_field(
            Phi, machine.b[:, None], machine.groups, _step(Phi),
            start=start, free=free, tol=tol, most=most,
        )  # fmt: skip
        answers = read_out(machine, Phi, q)
        # Members share nothing: the sum of their losses has each one's gradient.
        loss = sum(
            masked_marginal_loss(*parts, classes) for parts in zip(answers, xb, yb, seen, told)
        )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step}")
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return history


def _step(Phi: Tensor, longest: float = 0.125) -> float:
    """``min(longest, 4 / L)``: twice the proven bound, where it still converged in trials."""
    # L is at least 1, since Phi has no trace; the power method may not have got there yet.
    return min(longest, float(4 / lipschitz(Phi.detach(), 8).max().clamp_min(1)))


# --------------------------------------------------------------------------- the part's comparison


@dataclass
class Trainer:
    """A classifier with ``step``, ``predict`` and ``groups``, as the part's comparison asks."""

    machine: nn.Module
    optimizer: torch.optim.Optimizer
    groups: dict[str, list[nn.Parameter]]
    most: int
    tol: float
    longest: float = 0.5  # among hidden nodes L is small, and so may be the damping

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"]) -> None:
        """One update: cross-entropy of the label's marginal with all pixels clamped."""
        loss = F.nll_loss(self.predict(x).clamp_min(1e-9).log(), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def predict(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """The label's marginal given all pixels, which may lie between 0 and 1.

        Observed nodes act as a bias, so the iteration runs over the hidden ones alone.

        Raises:
            ValueError: ``x`` has another number of pixels than the machine.
        """
        (pixels, _), *rest = self.machine.groups
        if x.shape[-1] != pixels:
            raise ValueError(f"x: {x.shape[-1]} pixels; the machine has {pixels}")
        Phi, b = self.machine.Phi()[0], self.machine.b[0]
        seen, hidden = slice(None, 2 * pixels), slice(2 * pixels, None)
        field = b[hidden] + one_hot_pixels(x) @ Phi[seen, hidden]
        among = Phi[hidden, hidden]
        q = implicit_mean_field(
            among, field, rest, _step(among, self.longest), tol=self.tol, most=self.most
        )
        return q[..., -rest[-1][1] :]


def mlp_trainer(
    widths: Sequence[int],
    *,
    seed: int,
    states: int = 4,
    p: int = 64,
    rate: float = 0.004,
    m: float = 0.1,
    most: int = 8,
    tol: float = 1e-3,
) -> Trainer:
    """A fully connected machine with the tiers of a network ``widths``, trained as a classifier.

    ``widths[0]`` binary pixels, tiers of ``widths[i] // states`` hidden nodes (so that each tier
    has as many numbers as the network's layer), one label node of ``widths[-1]`` states. All tiers
    are coupled with all, within as well. ``groups`` holds one entry a tier: its columns of A and
    its biases. Gradients are implicit: inference keeps no activations for the backward pass.

    Raises:
        ValueError: fewer than two widths, or hidden widths not divisible by ``states``.
    """
    hidden = list(widths[1:-1])
    if states < 1:
        raise ValueError(f"states={states}: allowed is 1 or more")
    if len(widths) < 2 or any(w % states for w in hidden):
        raise ValueError(
            f"widths={list(widths)}: two or more, the hidden ones divisible by states={states}"
        )
    runs = [(widths[0], 2), *((w // states, states) for w in hidden), (1, widths[-1])]
    tiered = _Tiered(runs, p, m, child(seed, "boltzmann"))
    groups = {f"tier {i}": [A, b] for i, (A, b) in enumerate(zip(tiered.parts, tiered.biases))}
    optimizer = torch.optim.Adam(tiered.parameters(), lr=rate)
    return Trainer(tiered, optimizer, groups, most, tol)


class _Tiered(nn.Module):
    """A machine whose A and b are held tier by tier."""

    def __init__(self, groups, p: int, m: float, gen: torch.Generator) -> None:
        super().__init__()
        whole = MonotoneBoltzmann(groups, p, m, gens=[gen])
        sizes = [c * k for c, k in whole.groups]
        self.groups, self.m = whole.groups, m
        self.parts = nn.ParameterList(t.clone() for t in whole.A.detach()[0].split(sizes, -1))
        self.biases = nn.ParameterList(t.clone() for t in whole.b.detach()[0].split(sizes))

    @property
    def b(self) -> Tensor:
        return torch.cat(list(self.biases))[None]

    def Phi(self) -> Float[Tensor, "1 K K"]:
        return monotone_weights(torch.cat(list(self.parts), -1)[None], self.groups, self.m)
