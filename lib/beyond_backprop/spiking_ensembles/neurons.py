"""Cells with conductances, and the two ways in which they inhibit one another.

A population is a set of tensors ``"m b n"``: modules, images shown at once, cells. Everything is
updated in place, because a step is a few hundred numbers and the launches are what it costs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Inhibition = Literal["tie-break", "population"]
E_TO_I, I_TO_E = 10.4, 17.0
"""Jumps of conductance: a cell's own inhibitory partner; all other cells of the module."""
OFFSET = 20.0
"""mV between the fixed threshold of -52 mV and the part that theta adds to."""


class Neuron(NamedTuple):
    """Constants of one kind of cell, in mV and ms; ``low`` is the reversal of inhibition.

    The excitatory reversal is 0 mV, and conductances are in units of the leak.
    """

    rest: float
    reset: float
    threshold: float
    tau: float
    refractory: float
    low: float


EXCITATORY = Neuron(-65.0, -65.0, -52.0 - OFFSET, 100.0, 5.0, -100.0)
INHIBITORY = Neuron(-60.0, -45.0, -40.0, 10.0, 2.0, -85.0)


class Population:
    """Leaky integrate-and-fire cells ``tau dv/dt = (rest - v) + ge (0 - v) + gi (low - v)``.

    ``integrate`` is one step of ``dt``: the membrane moves with the step's average conductances
    ``g tau_g / dt (1 - exp(-dt / tau_g))``, which then decay exactly. That keeps a step of 1 ms
    usable for synapses of 0.5 to 1 ms: the charge of a spike is right, only its timing is coarse.

    Attributes:
        v: membrane in mV, ``"m b n"``; ``ge``, ``gi``: conductances in units of the leak.
        wait: steps for which the membrane is still held after a spike.
        held: which cells the last step held; they cannot spike either.
    """

    def __init__(
        self, shape, neuron: Neuron, dt: float, tau_ge: float, tau_gi: float, like: Tensor
    ):
        self.neuron, self.speed = neuron, dt / neuron.tau
        zeros = lambda *shape: torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.v, self.wait, self._g = zeros(*shape) + neuron.rest, zeros(*shape), zeros(2, *shape)
        self.ge, self.gi = self._g
        keep = [math.exp(-dt / tau) for tau in (tau_ge, tau_gi)]
        mean_e, mean_i = tau_ge / dt * (1 - keep[0]), tau_gi / dt * (1 - keep[1])
        self._keep = like.new_tensor(keep).view(2, 1, 1, 1)
        # One product gives both halves of the bracket: 1 + ge + gi, and rest + low gi.
        self._mix = like.new_tensor([[mean_e, mean_i], [0.0, neuron.low * mean_i]])
        self._base = like.new_tensor([[1.0], [neuron.rest]])
        self._hold = round(neuron.refractory / dt)

    def integrate(self) -> None:
        self.held = self.wait > 0
        bracket = torch.addmm(self._base, self._mix, self._g.view(2, -1))
        total, pull = bracket.view_as(self._g)
        pull.addcmul_(total, self.v, value=-1.0).masked_fill_(self.held, 0.0)
        self.v.add_(pull, alpha=self.speed)
        self._g.mul_(self._keep)
        self.wait.sub_(1.0)

    def fire(self, spike: Bool[Tensor, "m b n"]) -> None:
        """Reset the cells that spiked and start their refractory time."""
        self.v.masked_fill_(spike, self.neuron.reset)
        self.wait.masked_fill_(spike, self._hold)

    def settle(self) -> None:
        """Back to rest at once, conductances spent: what a long silence leads to."""
        self.v.fill_(self.neuron.rest)
        self._g.zero_()
        self.wait.zero_()


def first_to_cross(excess: Float[Tensor, "m b n"], above: float = 0.0) -> Bool[Tensor, "m b n"]:
    """In each module only the cell farthest above its threshold, if any is ``above`` it.

    In continuous time the first cell to cross inhibits the others before they get there. Within
    one step of ``dt`` several may cross, and this is how they are told apart.
    """
    top, which = excess.max(-1, keepdim=True)
    return torch.zeros_like(excess, dtype=torch.bool).scatter_(-1, which, top > above)


def inhibit(exc: Population, inh: Population | None, spike: Bool[Tensor, "m b n"]) -> None:
    """Hand a step's spikes on as inhibition of all *other* cells.

    Without ``inh`` the inhibitory partner fires within the step. With it, the partner is a cell of
    its own: it gets a jump of 10.4, integrates, and inhibits if it crosses -40 mV.
    """
    if inh is not None:
        inh.ge.add_(spike, alpha=E_TO_I)
        inh.integrate()
        spike = (inh.v > inh.neuron.threshold) & ~inh.held
        inh.fire(spike)
    sent = spike.to(exc.v.dtype)
    exc.gi.add_(sent.sum(-1, keepdim=True) - sent, alpha=I_TO_E)
