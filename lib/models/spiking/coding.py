"""Numbers, spikes and camera events into a spiking network, and scores out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor


def direct(x: Float[Tensor, "b *features"], steps: int) -> Float[Tensor, "t b *features"]:
    """The analog input at every step (no copy); the first layer of neurons turns it into spikes."""
    if steps < 1:
        raise ValueError(f"steps={steps}: allowed is 1 or more")
    return x.expand(steps, *x.shape)


def poisson_spikes(
    rate: Float[Tensor, "*shape"], steps: int, dt: float, gen: torch.Generator
) -> Float[Tensor, "t *shape"]:
    """Independent spikes with probability ``rate * dt`` in each of ``steps`` bins of width ``dt``.

    Raises:
        ValueError: a probability outside [0, 1]; shorten ``dt``.
    """
    p = (rate * dt).detach()
    if p.numel() and not (0 <= p.min() and p.max() <= 1):
        raise ValueError(
            f"rate * dt must lie in [0, 1], got {p.min():.3g} to {p.max():.3g} with dt={dt}"
        )
    draws = torch.rand(steps, *p.shape, generator=gen, device=gen.device).to(p.device)
    return (draws < p).to(rate.dtype)


def event_frames(
    events: Real[Tensor, "n 4"],
    steps: int,
    height: int,
    width: int,
    split: Literal["number", "time"] = "number",
) -> Float[Tensor, "t 2 h w"]:
    """Count a camera's events (time, x, y, polarity 0 or 1), in time order, in ``steps`` frames.

    ``split="number"`` gives every frame the same number of events (the last takes the rest),
    ``"time"`` the same duration.

    Raises:
        ValueError: unknown ``split``, no events, times that go back, or an event off the frame.
    """
    if split not in ("number", "time"):
        raise ValueError(f"split={split!r}: allowed are 'number' and 'time'")
    if steps < 1:
        raise ValueError(f"steps={steps}: allowed is 1 or more")
    if len(events) < 1:
        raise ValueError("events is empty: at least one is needed")
    t = events[:, 0].double()
    x, y, p = events[:, 1:].long().unbind(1)
    if (t.diff() < 0).any():
        raise ValueError("events must be in time order")
    for name, v, size in (("x", x, width), ("y", y, height), ("polarity", p, 2)):
        if v.min() < 0 or v.max() >= size:
            raise ValueError(
                f"events: {name} runs from {v.min()} to {v.max()}; allowed is 0 to {size - 1}"
            )
    if split == "number":
        frame = torch.arange(len(t), device=t.device) // max(1, len(t) // steps)
    else:
        frame = ((t - t[0]) / ((t[-1] - t[0]).clamp_min(1e-300) / steps)).long()
    frame = frame.clamp_max(steps - 1)
    index = ((frame * 2 + p) * height + y) * width + x
    counts = torch.bincount(index, minlength=steps * 2 * height * width)
    return counts.view(steps, 2, height, width).float()


def readout(
    kind: Literal["sum", "mean", "softmax", "max", "count"],
) -> Callable[[Float[Tensor, "t *b c"]], Float[Tensor, "*b c"]]:
    """A function from the outputs at every step to one score for each class.

    ``"softmax"`` sums the softmax of each step, which is not the softmax of the sum; ``"count"``
    sums spikes and refuses anything else.
    """

    def count(out: Tensor) -> Tensor:
        if not ((out == 0) | (out == 1)).all():
            raise ValueError("readout 'count' needs spikes, zeros and ones; use 'sum'")
        return out.sum(0)

    def softmax(out: Tensor) -> Tensor:
        # Classes first: over a short last axis it would take seven times as long on a CPU.
        return F.softmax(out.movedim(-1, 0).contiguous(), 0).sum(1).movedim(0, -1)

    kinds = {
        "sum": lambda out: out.sum(0),
        "mean": lambda out: out.mean(0),
        "softmax": softmax,
        "max": lambda out: out.amax(0),
        "count": count,
    }
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: allowed are {', '.join(map(repr, kinds))}")
    return kinds[kind]
