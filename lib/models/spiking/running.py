"""A spiking network in time: both orders of running, and what its neurons do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.spiking.neuron import LIF


def neurons(net: nn.Module) -> list[LIF]:
    """The spiking layers of ``net``, in the order in which they were built."""
    return [m for m in net.modules() if isinstance(m, LIF)]


def reset(net: nn.Module) -> None:
    """Empty every membrane: the start of a sequence."""
    for n in neurons(net):
        n.state = None


def detach(net: nn.Module) -> None:
    """Keep every membrane's value and forget how it came about."""
    for n in neurons(net):
        n.state = None if n.state is None else n.state.detach()


@contextmanager
def settings(net: nn.Module, **values) -> Iterator[None]:
    """Set attributes of every spiking layer (``path``, ``steps``, ``window``) inside the block."""
    before = [{k: getattr(n, k) for k in values} for n in neurons(net)]
    for n in neurons(net):
        for k, v in values.items():
            setattr(n, k, v)
    try:
        yield
    finally:
        for n, old in zip(neurons(net), before, strict=True):
            for k, v in old.items():
                setattr(n, k, v)


def run(
    net: nn.Module,
    x: Float[Tensor, "t b *features"],
    *,
    path: Literal["temporal", "spatial", "rate"] = "temporal",
    order: Literal["step", "layer"] = "layer",
    window: int | None = None,
) -> Float[Tensor, "t b *out"]:
    """The outputs at every step, membranes starting at zero, with one graph over all steps.

    Raises:
        ValueError: unknown ``order`` or ``path``, no time steps, a window below 1.
    """
    if order not in ("step", "layer"):
        raise ValueError(f"order={order!r}: allowed are 'step' and 'layer'")
    if path not in ("temporal", "spatial", "rate"):
        raise ValueError(f"path={path!r}: allowed are 'temporal', 'spatial' and 'rate'")
    if len(x) < 1:
        raise ValueError(f"x: shape {tuple(x.shape)}; allowed is (t, b, ...) with t >= 1")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: allowed is 1 or more steps, or None")
    reset(net)
    if order == "layer":
        with settings(net, path=path, steps=len(x), window=window):
            return net(x.flatten(0, 1)).unflatten(0, (len(x), -1))
    out = []
    with settings(net, path=path):
        for t, frame in enumerate(x):
            if window is not None and t % window == 0:
                detach(net)
            out.append(net(frame))
    reset(net)
    return torch.stack(out)


# --------------------------------------------------------------------------- watching


def watch(
    net: nn.Module,
    x: Float[Tensor, "t *b_in"],
    look: Callable[[LIF, Tensor, Tensor], Any],
) -> list[Any]:
    """``look(neuron, currents, spikes)`` for every spiking layer, in one run without gradients.

    Currents and spikes are ``"t b ..."``.
    """
    found: list[Any] = []

    def hook(n: LIF, args: tuple[Tensor], out: Tensor) -> None:
        found.append(look(n, *(z.unflatten(0, (n.steps, -1)) for z in (args[0], out))))

    hooks = [n.register_forward_hook(hook) for n in neurons(net)]
    try:
        with torch.no_grad():
            run(net, x)
    finally:
        for h in hooks:
            h.remove()
    return found


def spike_trains(net: nn.Module, x: Float[Tensor, "t *b_in"]) -> list[Float[Tensor, "t ..."]]:
    """The spikes of every spiking layer."""
    return watch(net, x, lambda _n, _currents, spikes: spikes)


def firing_rates(net: nn.Module, x: Float[Tensor, "t *b_in"]) -> list[float]:
    """Spikes per neuron and step in each spiking layer. A dead layer (0) passes no gradient."""
    return watch(net, x, lambda _n, _currents, spikes: spikes.mean().item())


def temporal_factor(net: nn.Module, x: Float[Tensor, "t *b_in"]) -> list[Float[Tensor, "t _"]]:
    """``d v[t+1] / d v[t]`` along a neuron's own membrane, for every spiking layer, step, neuron.

    ``decay (1 - threshold s'(v - threshold))`` with the soft reset: what one step back in time
    multiplies a gradient by. Zero everywhere is the assumption of spatial learning through time.
    """

    def factors(n: LIF, currents: Tensor, spikes: Tensor) -> Tensor:
        u, found = torch.zeros_like(currents[0]), []
        for i, s in zip(currents, spikes, strict=True):
            v = n.decay * u + i
            slope = n.surrogate(v - n.threshold)
            soft = n.reset_kind == "soft"
            share = (n.threshold if soft else v) * slope * (not n.detach_reset)
            found.append(n.decay * ((1 if soft else 1 - s) - share))
            u = v - n.threshold * s if soft else v * (1 - s)
        return torch.stack(found).flatten(1)

    return watch(net, x, factors)
