"""A teacher whose delays are known, and students that look for them by gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.fitting import progress
from lib.core.seeds import child
from lib.kernels.delays import delay_conv, delay_linear
from lib.models.spiking import membrane


@dataclass
class Recovery:
    """What :func:`recover` found.

    Attributes:
        true: the teacher's delays ``"s o i"``.
        steps: the recorded steps; the last one is after training.
        delays: the students' delays at those steps, by arm, ``"k s o i"``.
        loss, sigma: at every training step, by arm: ``"steps s"`` and a list.
    """

    true: Int[Tensor, "s o i"]
    steps: list[int]
    delays: dict[str, Float[Tensor, "k s o i"]]
    loss: dict[str, Float[Tensor, "n s"]]
    sigma: dict[str, list[float]]

    def exact(self, arm: str) -> Float[Tensor, "s"]:
        """Share of the teacher's delays that an arm's rounded delays hit, for each seed."""
        found = (self.delays[arm][-1] + 0.5).floor() == self.true
        return found.double().mean((1, 2))


def recover(
    arms: Mapping[str, Callable[[int], float]],
    seeds: Sequence[int],
    *,
    outputs: int = 4,
    inputs: int = 10,
    bins: int = 21,
    time: int = 120,
    rate: float = 0.05,
    batch: int = 16,
    steps: int = 300,
    lr: float = 0.2,
    decay: float = 0.5,
    record: Sequence[int] = (),
    what: str = "looking for delays",
) -> Recovery:
    """Students with the teacher's weights learn nothing but the delays.

    Teacher and students see random spikes and are compared by their membranes, ``decay`` a step,
    which never fire: the mean squared difference. Weights stay away from zero (0.3 and more), since
    a synapse without weight has no delay to find. Arms of one seed share teacher, start and input.

    Args:
        arms: ``step -> true width`` of the Gaussian, by name.
        rate: probability of a spike in each bin.
        lr: Adam's rate on the delays, in bins.
        record: steps at which delays are kept, besides the last.
    """
    if not arms or not seeds:
        raise ValueError(f"{len(arms)} arms and {len(seeds)} seeds: at least one of each is needed")
    n, a = len(seeds), len(arms)
    gens = [child(seed, "teacher") for seed in seeds]
    size = (outputs, inputs)
    w = torch.stack([torch.randn(size, generator=g) for g in gens])
    w = w.sign() * (w.abs() + 0.3)
    true = torch.stack([torch.randint(bins, size, generator=g) for g in gens])
    first = torch.stack([(bins - 1) * torch.rand(size, generator=g) for g in gens])
    # One group for each seed; in it the arms' outputs one after another.
    side_by_side = lambda t: t[:, None].expand(n, a, *size).reshape(n * a * outputs, inputs, 1)
    weight = side_by_side(w).contiguous()
    delay = side_by_side(first).clone().requires_grad_()
    opt = torch.optim.Adam([delay], lr=lr)
    steps_kept, kept, losses = sorted({*record, steps}), [], []
    widths = {name: [sigma(step) for step in range(steps)] for name, sigma in arms.items()}
    for step in progress(range(steps + 1), what):
        if step in steps_kept:
            kept.append(delay.detach().view(n, a, *size).clone())
        if step == steps:
            break
        x = torch.stack(
            [torch.rand(batch, inputs, time, generator=child(s, "input", step)) for s in seeds],
            1,
        )
        x = (x < rate).float().flatten(1, 2)
        target = delay_linear(x, w.flatten(0, 1), true.flatten(0, 1), groups=n)
        sigma = torch.tensor([widths[name][step] for name in arms])
        sigma = sigma.repeat_interleave(outputs).repeat(n)
        y = delay_conv(x, weight, delay, sigma, bins, groups=n).view(batch, n, a, outputs, time)
        off = y - target.view(batch, n, 1, outputs, time)
        loss = membrane(off.movedim(-1, 0), decay).square().mean((0, 1, 4))
        opt.zero_grad()
        loss.sum().backward()
        opt.step()
        with torch.no_grad():
            delay.clamp_(0, bins - 1)
        losses.append(loss.detach())
    path, curve = torch.stack(kept), torch.stack(losses)
    return Recovery(
        true,
        steps_kept,
        {name: path[:, :, k] for k, name in enumerate(arms)},
        {name: curve[:, :, k] for k, name in enumerate(arms)},
        widths,
    )
