"""The delayed layer, the width of its bumps over training, and the network built from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.core.schedules import schedule
from lib.kernels.delays import delay_conv
from lib.models.spiking import Surrogate, lif, membrane

OFFSET = {"gauss": 0.27, "max": 1.0}
"""What the layer adds to the size of its width parameter ``SIG``: the true width is
``|SIG| + 0.27`` for the Gaussian, and the triangle's half-base ``|SIG| + 1``."""

_BUMP = {"gauss": "gauss", "max": "triangle"}
_ARCTAN = Surrogate("arctan", 5.0)  # the authors' choice


class DelayConv1d(nn.Module):
    """``y[o, t] = sum_i sum_n k[o, i, n] x[i, t - n]`` with bumps ``k`` of learnable position.

    Each synapse is ``kernel_count`` bumps of weight ``w`` around a delay ``p`` between 0 and
    ``bins - 1`` steps. Under ``"gauss"`` the bump is a Gaussian that sums to ``w``, under ``"max"``
    a triangle; ``lib.kernels.delays.delay_conv`` has the formula and the gradients.

    Attributes:
        weight, delay: parameters ``"(g o) i m"``; ``delay`` in steps, kept in range by
            :meth:`clamp_parameters` after each update.
        sigma: the bumps' true width, one for each output; a buffer, set by :meth:`set_width`.
        version: ``"gauss"``, ``"max"``, or ``"tap"``: one tap at the rounded delay.
        cut: taps beyond so many widths are left out (the paper's layer has none; 3 saves time on a
            GPU once the bumps are narrow).

    Args:
        groups: so many independent layers side by side, channels of one after those of another.
        gen: one generator, or one for each group.
        right: steps beyond the input's end, in which late taps still arrive.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        bins: int,
        kernel_count: int = 1,
        version: Literal["gauss", "max"] = "gauss",
        *,
        gen: torch.Generator | Sequence[torch.Generator],
        groups: int = 1,
        right: int = 0,
        cut: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("n_in", n_in), ("n_out", n_out), ("bins", bins)):
            if value < 1:
                raise ValueError(f"{name}={value}: allowed is 1 or more")
        if groups < 1:
            raise ValueError(f"groups={groups}: allowed is 1 or more")
        if right < 0:
            raise ValueError(f"right={right}: allowed is 0 or more steps")
        if cut is not None and not cut > 0:
            raise ValueError(f"cut={cut}: allowed is any positive number of widths, or None")
        if kernel_count < 1:
            raise ValueError(f"kernel_count={kernel_count}: allowed is 1 or more taps a synapse")
        if version not in OFFSET:
            raise ValueError(f"version={version!r}: allowed are 'gauss' and 'max'")
        gens = [gen] if isinstance(gen, torch.Generator) else list(gen)
        if len(gens) not in (1, groups):
            raise ValueError(f"gen: {len(gens)} generators; allowed is 1, or {groups} for groups")
        self.bins, self.version, self.groups = bins, version, groups
        self.right, self.cut = right, cut
        size = (groups * n_out, n_in, kernel_count)
        self.weight, self.delay = (nn.Parameter(torch.empty(size)) for _ in range(2))
        self.register_buffer("sigma", torch.full(size[:1], bins // 2 + OFFSET[version]))
        bound = math.sqrt(6 / (n_in * kernel_count))  # Kaiming's uniform rule for a ReLU
        with torch.no_grad():
            per_gen = zip(gens, zip(self.weight.chunk(len(gens)), self.delay.chunk(len(gens))))
            for g, (w, p) in per_gen:
                w.uniform_(-bound, bound, generator=g)
                p.uniform_(0, bins - 1, generator=g)

    def forward(self, x: Float[Tensor, "b gi t"]) -> Float[Tensor, "b go t_out"]:
        shape = _BUMP.get(self.version, "tap")
        reach = None
        if self.cut is not None and shape != "tap":
            reach = math.ceil(self.cut * float(self.sigma.max()))
        return delay_conv(
            x, self.weight, self.delay, self.sigma, self.bins, shape=shape, reach=reach,
            groups=self.groups, right=self.right,
        )  # fmt: skip

    @torch.no_grad()
    def set_width(self, sigma: float | Float[Tensor, "g"]) -> None:
        """The bumps' true width, one number or one for each group.

        Raises:
            ValueError: another number of widths, or one that is not positive.
        """
        width = torch.as_tensor(sigma)
        if width.ndim and len(width) != self.groups:
            raise ValueError(
                f"sigma: {len(width)} widths; allowed is one, or one for each of the "
                f"{self.groups} groups"
            )
        if not (width > 0).all():
            raise ValueError(f"sigma={width.tolist()}: allowed is any positive number of bins")
        width = width.to(self.sigma)
        if width.ndim:
            width = width.repeat_interleave(len(self.sigma) // self.groups)
        self.sigma.copy_(width)

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        """Bring delays that an update has moved out of range back to its ends."""
        self.delay.clamp_(0, self.bins - 1)

    @torch.no_grad()
    def round_positions(self) -> None:
        self.delay.copy_((self.delay + 0.5).floor())
        self.clamp_parameters()

    def effective_delays(self) -> Int[Tensor, "go i m"]:
        """The whole delays that evaluation uses, in steps."""
        return (self.delay + 0.5).floor().clamp(0, self.bins - 1).long()

    def extra_repr(self) -> str:
        o, i, m = self.weight.shape
        return f"{i}, {o}, bins={self.bins}, m={m}, version={self.version!r}, groups={self.groups}"


def position_to_delay(position: Float[Tensor, "*s"], bins: int) -> Float[Tensor, "*s"]:
    """The delay of a position ``P`` as the package DCLS stores it.

    There ``P`` counts from the middle, ``P + bins // 2`` is an index into the kernel, and the
    convolution is a correlation, so a larger index is an *earlier* tap.
    """
    return bins - 1 - (position + bins // 2)


def delay_to_position(delay: Float[Tensor, "*s"], bins: int) -> Float[Tensor, "*s"]:
    """The inverse of :func:`position_to_delay`."""
    return bins - 1 - delay - bins // 2


def width_schedule(
    start: float,
    total: int,
    share: float = 0.25,
    end: float = 0.23,
    version: Literal["gauss", "max"] = "gauss",
) -> Callable[[int], float]:
    """The bumps' true width at each step: ``SIG`` falls geometrically, then stays.

    ``SIG`` runs from ``start`` (the authors take ``bins // 2``) to ``end`` in the first ``share``
    of ``total`` steps, and the layer adds its :data:`OFFSET`: with the defaults a Gaussian ends at
    0.50, not at 0.23.

    Raises:
        ValueError: ``share`` outside (0, 1], ``end`` not between 0 and ``start``.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: allowed is above 0, up to 1")
    if not 0 < end <= start:
        raise ValueError(f"end={end}: allowed is above 0, up to start={start}")
    factor = schedule("exponential", max(1, round(share * total)), floor=end / start)
    return lambda step: start * factor(step) + OFFSET[version]


@contextmanager
def rounded(net: nn.Module) -> Iterator[None]:
    """Inside the block every delay is whole and every bump one tap: how results are reported.

    Afterward the real-valued delays are back, and training goes on where it was.
    """
    layers = [m for m in net.modules() if isinstance(m, DelayConv1d)]
    before = [(layer.version, layer.delay.detach().clone()) for layer in layers]
    for layer in layers:
        layer.round_positions()
        layer.version = "tap"
    try:
        yield
    finally:
        for layer, (version, delay) in zip(layers, before, strict=True):
            layer.version = version
            with torch.no_grad():
                layer.delay.copy_(delay)


class DelayNetwork(nn.Module):
    """Delayed layer, batch norm, spiking neurons, dropout, again and again; a silent read-out.

    The last layer's neurons integrate and never fire; their potentials at every step are the
    output. With ``fire_out`` they fire at that threshold, and the output is their spikes, to be
    counted (the authors take 2 there). Batch norm is over samples and steps, for each feature.

    Args:
        widths: inputs, hidden layers, classes (paper: 140, 256, 256, 20 for SHD).
        bins: delays of a synapse (paper: 25 bins of 10 ms).
        tau: time constant in steps; the paper's 1.005 keeps half a percent a step.
        groups: networks side by side; channels of one member after those of another.
        gen: one generator, or one for each group.
        right: steps beyond its input that each layer computes; ``(bins - 1) // 2`` by default.
        layer: further arguments of :class:`DelayConv1d`.

    Raises:
        ValueError: fewer than two widths, ``tau`` below 1, a dropout outside [0, 1).
    """

    def __init__(
        self,
        widths: Sequence[int],
        bins: int,
        *,
        gen: torch.Generator | Sequence[torch.Generator],
        tau: float = 1.005,
        threshold: float = 1.0,
        spike: Surrogate = _ARCTAN,
        dropout: float = 0.0,
        norm: bool = True,
        groups: int = 1,
        right: int | None = None,
        fire_out: float | None = None,
        **layer,
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths={list(widths)}: allowed are two or more numbers, each >= 1")
        if not tau >= 1:
            raise ValueError(f"tau={tau}: allowed is 1 or more steps (1 forgets at once)")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: allowed is 0 up to, not including, 1")
        self.widths, self.groups, self.bins = tuple(widths), groups, bins
        self.decay, self.threshold = 1 - 1 / tau, threshold
        self.surrogate, self.dropout, self.fire_out = spike, dropout, fire_out
        right = (bins - 1) // 2 if right is None else right
        self.layers = nn.ModuleList(
            DelayConv1d(n, m, bins, gen=gen, groups=groups, right=right, **layer)
            for n, m in zip(widths[:-1], widths[1:])
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(groups * n) if norm else nn.Identity() for n in widths[1:-1]
        )

    def forward(self, x: Float[Tensor, "b gi t"]) -> Float[Tensor, "t_out b g c"]:
        """Potentials (or spikes) of the read-out at every step."""
        spikes = self.spikes(x)
        current = self.layers[-1](spikes[-1] if spikes else x).permute(2, 0, 1)
        if self.fire_out is None:
            v = membrane(current, self.decay)
        else:
            v = self._fire(current, self.fire_out)
        return v.unflatten(-1, (self.groups, -1))

    def spikes(self, x: Float[Tensor, "b gi t"]) -> list[Float[Tensor, "b gn t_l"]]:
        """What each hidden layer sends on."""
        found = []
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            current = norm(layer(x)).permute(2, 0, 1).contiguous()
            s = self._fire(current, self.threshold)
            x = F.dropout(s.permute(1, 2, 0), self.dropout, self.training)
            found.append(x)
        return found

    def _fire(self, current: Tensor, threshold: float) -> Tensor:
        neuron = (self.decay, threshold, "hard", self.surrogate)
        return lif(current, *neuron, detach_reset=True)[0]

    def set_width(self, sigma: float | Float[Tensor, "g"]) -> None:
        for layer in self.layers:
            layer.set_width(sigma)

    def clamp_parameters(self) -> None:
        for layer in self.layers:
            layer.clamp_parameters()
