"""Model-agnostic meta-learning of finite networks and of the muP, GP and NTK limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from lib.core.fitting import inner_sgd, progress
from lib.width.feature_learning.limits import InfKernel1LP

Loss = Callable[[Tensor, Tensor], Tensor]


class Task(NamedTuple):
    """One task: samples to adapt to, and samples to be judged on."""

    x: Float[Tensor, "n d"]
    y: Int[Tensor, "n"]
    x_test: Float[Tensor, "m d"]
    y_test: Int[Tensor, "m"]


class MetaStep(NamedTuple):
    """What ``maml_step`` returns.

    ``gradient`` is the meta-gradient: for a module a dictionary of tensors; for a kernel limit a
    pair ``(x, delta)``, which stands for the function ``sum_i delta_i k(x_i, .)``.
    """

    loss: float
    accuracy: float
    gradient: dict[str, Tensor] | tuple[Tensor, Tensor]


def maml_step(
    model: nn.Module | InfKernel1LP,
    task: Task,
    inner_lr: float,
    inner_steps: int = 1,
    first_order: bool = True,
    loss: Loss = F.cross_entropy,
) -> MetaStep:
    """Adapt to the task by ``inner_steps`` of gradient descent, then ask how to start better.

    The meta-gradient is that of the test loss after adaptation, in the weights before it. With
    ``first_order`` the inner gradients count as constants.
    """
    if inner_steps < 0:
        raise ValueError(f"inner_steps={inner_steps}: allowed is 0 or more")
    if not len(task.x) or not len(task.x_test):
        raise ValueError(
            f"task: {len(task.x)} samples to adapt to and {len(task.x_test)} to judge; allowed is "
            "1 or more of each"
        )
    if isinstance(model, InfKernel1LP):
        return kernel_step(model, task, inner_lr, inner_steps, first_order, loss)
    params = dict(model.named_parameters())

    def inner(p: dict[str, Tensor]) -> Tensor:
        return loss(functional_call(model, p, (task.x,)), task.y)

    adapted = inner_sgd(params, inner, inner_lr, inner_steps, create_graph=not first_order)
    outputs = functional_call(model, adapted, (task.x_test,))
    value = loss(outputs, task.y_test)
    at = adapted if first_order else params
    grads = torch.autograd.grad(value, list(at.values()))
    return MetaStep(value.item(), _accuracy(outputs, task.y_test), dict(zip(at, grads)))


def kernel_step(
    model: InfKernel1LP, task: Task, lr: float, steps: int, first_order: bool, loss: Loss
) -> MetaStep:
    """The same in function space: outputs move by the kernel, ``f <- f - lr K delta``."""
    n = len(task.x)
    x = torch.cat([task.x, task.x_test])
    K = model.kernel(x)[:, :n]
    start = model(x).detach().requires_grad_()
    f = start
    for _ in range(steps):
        inner = loss(f[:n], task.y)
        (delta,) = torch.autograd.grad(inner, f, create_graph=not first_order)
        f = f - lr * K @ delta[:n]
    value = loss(f[n:], task.y_test)
    # First order: f depends on start by an identity, so the test samples alone get coefficients.
    (delta,) = torch.autograd.grad(value, start)
    return MetaStep(value.item(), _accuracy(f[n:], task.y_test), (x, delta))


def meta_train(
    model: nn.Module | InfKernel1LP,
    tasks: Callable[[int], Sequence[Task]],
    steps: int,
    *,
    inner_lr: float,
    meta_lr: float,
    inner_steps: int = 1,
    first_order: bool = True,
    clip: float | None = None,
    weight_decay: float = 0.0,
    loss: Loss = F.cross_entropy,
    compact_every: int = 25,
) -> list[dict]:
    """SGD on the mean meta-gradient of ``tasks(step)``; one row per step: step, loss, accuracy.

    Args:
        clip: largest norm of the mean meta-gradient.
        compact_every: steps after which a kernel limit merges the terms of equal samples.
    """
    if steps < 0 or compact_every < 1 or (clip is not None and not clip > 0):
        raise ValueError(
            f"steps={steps}, compact_every={compact_every}, clip={clip}: allowed are steps >= 0, "
            "compact_every >= 1, clip > 0 or None"
        )
    history = []
    for step in progress(range(steps), "meta-training"):
        batch = tasks(step)
        if not batch:
            raise ValueError(f"tasks({step}) returned none; allowed is 1 or more")
        done = [maml_step(model, t, inner_lr, inner_steps, first_order, loss) for t in batch]
        if isinstance(model, InfKernel1LP):
            x = torch.cat([s.gradient[0] for s in done])
            delta = torch.cat([s.gradient[1] for s in done]) / len(batch)
            used = (delta != 0).any(1)
            model.descend(x[used], delta[used], meta_lr, weight_decay, clip)
            if (step + 1) % compact_every == 0:
                model.compact()
        else:
            _descend(model, [s.gradient for s in done], meta_lr, weight_decay, clip)
        rows = {"loss": [s.loss for s in done], "accuracy": [s.accuracy for s in done]}
        history.append({"step": step} | {k: sum(v) / len(v) for k, v in rows.items()})
    return history


def meta_accuracy(
    model: nn.Module | InfKernel1LP,
    tasks: Iterable[Task],
    inner_lr: float,
    inner_steps: int = 1,
    loss: Loss = F.cross_entropy,
) -> float:
    """Mean accuracy on the tasks' test samples after adaptation."""
    done = [maml_step(model, t, inner_lr, inner_steps, True, loss).accuracy for t in tasks]
    if not done:
        raise ValueError("tasks: allowed is 1 or more, got none")
    return sum(done) / len(done)


@torch.no_grad()
def _descend(model: nn.Module, grads: list[dict], lr: float, decay: float, clip) -> None:
    mean = {name: sum(g[name] for g in grads) / len(grads) for name in grads[0]}
    norm = sum(g.square().sum() for g in mean.values()).sqrt().item()
    factor = 1.0 if clip is None else min(1.0, clip / (norm + 1e-12))
    for name, p in model.named_parameters():
        p.mul_(1 - lr * decay).sub_(lr * factor * mean[name])


def _accuracy(outputs: Tensor, y: Tensor) -> float:
    if y.is_floating_point():
        return float("nan")
    return (outputs.argmax(1) == y).float().mean().item()


# Tasks.


def episode(
    x: Float[Tensor, "classes samples d"],
    ways: int,
    shots: int,
    test_shots: int,
    gen: torch.Generator,
) -> Task:
    """An N-way K-shot task: ``ways`` classes in random order, ``shots`` samples of each.

    Raises:
        ValueError: more classes or samples than there are.
    """
    classes, samples = x.shape[:2]
    if not 2 <= ways <= classes or min(shots, test_shots) < 1 or shots + test_shots > samples:
        raise ValueError(
            f"ways={ways}, shots={shots}, test_shots={test_shots}: there are {classes} classes of "
            f"{samples} samples, and ways must be 2 or more"
        )
    chosen = torch.randperm(classes, generator=gen)[:ways]
    pick = torch.rand(ways, samples, generator=gen).argsort(1)[:, : shots + test_shots]
    both = x[chosen[:, None], pick]
    train, test = both[:, :shots].flatten(0, 1), both[:, shots:].flatten(0, 1)
    label = torch.arange(ways, device=x.device)
    return Task(train, label.repeat_interleave(shots), test, label.repeat_interleave(test_shots))


def glyphs(
    classes: int,
    samples: int,
    gen: torch.Generator,
    size: int = 14,
    strokes: int = 3,
    jitter: float = 0.06,
    light: float = 0.0,
) -> Float[Tensor, "classes samples pixels"]:
    """Invented handwriting: each class is a few curved strokes, each sample moves them a little.

    A stroke is a quadratic Bezier curve in the unit square. ``jitter`` is the standard deviation
    of its three points between samples, and a third of it that of the whole character's place.
    Pixels are in [0, 1], ink is 1. ``light`` adds to every sample a brightness that changes
    linearly across the page: three Gaussian numbers of this standard deviation, for the mean and
    for the change from the middle to either edge.
    """
    if min(classes, samples, size, strokes) < 1 or min(jitter, light) < 0:
        raise ValueError(
            f"classes={classes}, samples={samples}, size={size}, strokes={strokes}, "
            f"jitter={jitter}, light={light}: allowed are 1 or more, jitter and light 0 or more"
        )
    points = 0.12 + 0.76 * torch.rand(classes, 1, strokes, 3, 2, generator=gen)
    points = points + jitter * torch.randn(classes, samples, strokes, 3, 2, generator=gen)
    points = points + jitter / 3 * torch.randn(classes, samples, 1, 1, 2, generator=gen)
    t = torch.linspace(0, 1, 12)[:, None]
    weights = torch.cat([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)
    curve = torch.einsum("tk,csjkx->csjtx", weights, points).flatten(2, 3)
    at = (torch.arange(size) + 0.5) / size
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
    images = []
    for one in curve:  # a class at a time bounds the memory
        distance = torch.cdist(grid.expand(samples, -1, -1), one).amin(-1)
        images.append((1.5 - size * distance).clamp(0, 1))
    plane = torch.cat([torch.ones(len(grid), 1), 2 * grid - 1], 1)
    return torch.stack(images) + light * torch.randn(classes, samples, 3, generator=gen) @ plane.T
