"""Spike-timing-dependent plasticity, one presentation of an image, and the module that learns.

Both halves of the rule only ever strengthen a synapse; what weakens the others is the weight sum,
which every cell is brought back to before each image. (Diehl and Cook's first rule subtracts at
input spikes; the paper's code adds.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.spiking_ensembles.neurons import (
    EXCITATORY,
    INHIBITORY,
    OFFSET,
    Inhibition,
    Population,
    first_to_cross,
    inhibit,
)
from lib.core.fitting import progress
from lib.models.spiking import poisson_spikes

TAU_PRE, TAU_POST1, TAU_POST2 = 20.0, 20.0, 40.0
NU_PRE, NU_POST, W_MAX = 1e-4, 1e-2, 1.0
SUM_PER_INPUT = 78 / 784


def present(
    net: STDPModule,
    spikes: Float[Tensor, "t m b i"],
    plastic: bool,
    state: State | None = None,
    watch: Callable[[int, Bool[Tensor, "m b n"], State], None] | None = None,
) -> tuple[Float[Tensor, "m b n"], State]:
    """One presentation, step by step: spikes in, spike counts out.

    One step: input spikes raise the conductances, membranes move, cells above their threshold are
    found, the winner (or the inhibitory population) silences the others, weights and thresholds
    learn. A fused kernel could take this function's place: it would keep ``v, ge, gi``, the traces
    and a module's weights on chip for all steps. Floor: the weights read once and, while learning,
    written once, 4 to 8 bytes a synapse and presentation, one bit an input and step, and two
    operations a synapse and step (four more while learning). This loop reads the weights at every
    step and has about 35 launches in it.

    Args:
        spikes: 0 or 1 for each step, module, image and input.
        plastic: learn. One image at a time then (``b = 1``), and ``W`` and ``theta`` change in
            place. Otherwise both are frozen, and images run side by side.
        state: of the cells, from :meth:`STDPModule.state` or an earlier presentation. At rest by
            default. It is changed in place and returned.
        watch: called after every step with the step, who spiked and the state.

    Raises:
        ValueError: learning with more than one image at once, or other modules than ``net`` has.
    """
    if plastic and spikes.shape[2] != 1:
        raise ValueError(f"spikes: {spikes.shape[2]} images at once; while learning allowed is 1")
    if spikes.shape[1] != len(net.W) or spikes.shape[3] != net.W.shape[2]:
        raise ValueError(
            f"spikes: shape {tuple(spikes.shape)}; allowed is (t, {len(net.W)}, b, "
            f"{net.W.shape[2]}), the module's number and inputs"
        )
    state = net.state(spikes.shape[2]) if state is None else state
    exc, counts = state.exc, torch.zeros_like(state.exc.v)
    theta, theta_keep = net.theta[:, None], torch.exp(-net.dt / net.theta.new_tensor(net.tau_theta))
    for t, frame in enumerate(spikes):
        arrived = state.arrive(frame, net.delays)
        exc.ge.add_(_charge(arrived, net.W))
        exc.integrate()
        excess = torch.sub(exc.v, theta).masked_fill_(exc.held, -math.inf)
        if state.inh is None:
            spike = first_to_cross(excess, EXCITATORY.threshold)
        else:
            spike = excess > EXCITATORY.threshold
        exc.fire(spike)
        inhibit(exc, state.inh, spike)
        counts.add_(spike)
        if plastic:
            stdp_(net.W, state, arrived, spike)
            net.theta.mul_(theta_keep).add_(spike[:, 0], alpha=net.theta_step)
            net.updates += net.W.numel()
        if watch is not None:
            watch(t, spike, state)
    return counts, state


def stdp_(
    W: Float[Tensor, "m n i"], state: State, arrived: Tensor, spike: Bool[Tensor, "m 1 n"]
) -> None:
    """One step of both halves of the rule: one update of rank two, then the clip.

    An input spike sets ``x_pre = 1`` and adds ``nu_pre post1``; a cell's spike adds
    ``nu_post x_pre post2`` and sets ``post1 = post2 = 1``. Both only add, so one clip to [0, 1] at
    the end gives what two would. With delays an input spike is one that *arrives*, each synapse
    has its own trace, and the update has full rank.
    """
    state.fade()
    torch.maximum(state.x_pre, arrived, out=state.x_pre)
    grow = state.post * state.rates
    grow[:, 1:].mul_(spike)
    if arrived.dim() == 3:  # (m, 1, i): no delays
        W.baddbmm_(grow.mT, torch.cat([arrived, state.x_pre], 1))
    else:  # (m, 1, n, i)
        grow = grow.unsqueeze(-1)
        W.addcmul_(grow[:, 0], arrived[:, 0]).addcmul_(grow[:, 1], state.x_pre[:, 0])
    W.clamp_(0.0, W_MAX)
    state.post.masked_fill_(spike, 1.0)


def normalize_(W: Float[Tensor, "m n i"], total: float) -> None:
    """Scale the incoming weights of every cell to the sum ``total``, in place."""
    if not total > 0:
        raise ValueError(f"total={total}: allowed are positive numbers")
    W.mul_(total / W.sum(-1, keepdim=True).clamp_min(1e-12))


class State:
    """What changes while an image is shown: cells, traces, input spikes that are on their way.

    ``x_pre``: "m b i" ("m 1 n i" with delays); ``post``: the two traces of each cell, "m 2 n".
    """

    def __init__(
        self, exc: Population, inh: Population | None, x_pre: Tensor, past: Tensor | None, dt: float
    ):
        self.exc, self.inh, self.x_pre, self.past, self.dt = exc, inh, x_pre, past, dt
        m, _, n = exc.v.shape
        self.post = exc.v.new_zeros(m, 2, n)
        self.rates = exc.v.new_tensor([[NU_PRE], [NU_POST]])
        self._tau = exc.v.new_tensor([[TAU_POST1], [TAU_POST2]])
        self._keep = torch.exp(-dt / self._tau), torch.exp(-dt / exc.v.new_tensor(TAU_PRE))

    def fade(self) -> None:
        """Traces one step later, without a spike."""
        self.post.mul_(self._keep[0])
        self.x_pre.mul_(self._keep[1])

    def arrive(self, frame: Float[Tensor, "m b i"], delays: Tensor | None) -> Tensor:
        """Input spikes that reach the synapses now: "m b i", or "m b n i" with delays."""
        if delays is None:
            return frame
        self.past = torch.cat([frame[:, :, None], self.past[:, :, :-1]], 2)
        return self.past.gather(2, delays[:, None].expand(-1, frame.shape[1], -1, -1))

    def settle(self, ms: float) -> None:
        """What ``ms`` of silence leave, in closed form: cells at rest, traces faded."""
        for cells in (self.exc, self.inh):
            if cells is not None:
                cells.settle()
        self.post.mul_(torch.exp(-ms / self._tau))
        self.x_pre.mul_(math.exp(-ms / TAU_PRE))
        if self.past is not None:
            self.past.zero_()


def _charge(arrived: Tensor, W: Tensor) -> Tensor:
    return arrived @ W.mT if arrived.dim() == 3 else (arrived * W[:, None]).sum(-1)


class STDPModule(nn.Module):
    """``m`` small networks side by side: inputs, excitatory cells, lateral inhibition.

    The networks share nothing. Initial weights, delays, the order of the images and the input
    spikes of training come from one generator per network, so that a network trained alone and
    the same network trained beside others are the same numbers.

    Args:
        gens: one generator per network.
        dt: step in ms. 1 at small scale, 0.5 for the paper's dynamics.
        duration, rest: ms that an image is shown, and of silence after it.
        silence: ``"settle"`` replaces the silence by its result (cells at rest; traces and theta
            decayed in closed form); ``"simulate"`` runs it.
        inhibition: ``"tie-break"``: of the cells that cross in one step only the farthest above
            its threshold spikes, and its partner inhibits within the step. ``"population"``: the
            inhibitory cells are simulated and every cell that crosses spikes; give ``max_delay``
            too, or cells that start alike stay alike.
        max_delay: each input synapse has a delay drawn from 0 to this many ms. The paper: 10.
        gain: input rates in Hz are ``gain * pixel / 4`` for pixels 0 to 255. The paper: 1.
        weight_sum: incoming weights of a cell; 78 for 784 inputs by default, in proportion.
        theta_step, tau_theta: mV by which a spike raises the cell's threshold, and ms of its decay.

    Attributes:
        W: "m n i"; ``theta``: "m n", starts at 20 mV; ``updates``: synapse updates so far.

    Raises:
        ValueError: no generator, a number that is not positive, more weight than fits, an unknown
            name. TypeError: a ``dtype`` that is not floating point.
    """

    def __init__(
        self,
        n_inputs: int,
        n_exc: int,
        dt: float = 1.0,
        *,
        gens: Sequence[torch.Generator],
        duration: float = 350.0,
        rest: float = 150.0,
        silence: Literal["settle", "simulate"] = "settle",
        inhibition: Inhibition = "tie-break",
        max_delay: float = 0.0,
        gain: float = 1.0,
        weight_sum: float | None = None,
        theta_step: float = 0.05,
        tau_theta: float = 1e7,
        tau_ge: float = 1.0,
        tau_gi: float = 0.5,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if weight_sum is None:
            weight_sum = SUM_PER_INPUT * n_inputs
        positive = {
            "n_inputs": n_inputs,
            "n_exc": n_exc,
            "dt": dt,
            "gain": gain,
            "weight_sum": weight_sum,
            "tau_theta": tau_theta,
            "tau_ge": tau_ge,
            "tau_gi": tau_gi,
        }
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: allowed are positive numbers")
        for name, value in {"max_delay": max_delay, "theta_step": theta_step}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: allowed are 0 and positive numbers")
        for name, value in {"n_inputs": n_inputs, "n_exc": n_exc}.items():
            if value != int(value):
                raise ValueError(f"{name}={value}: allowed are whole numbers")
        if weight_sum > n_inputs * W_MAX:
            raise ValueError(
                f"weight_sum={weight_sum}: allowed is at most {n_inputs * W_MAX:g}, "
                "with every weight at its bound"
            )
        if not dtype.is_floating_point:
            raise TypeError(f"dtype={dtype}: allowed are floating point types")
        if not gens:
            raise ValueError("gens is empty: one generator for each module is needed")
        if not (dt <= duration < math.inf and 0 <= rest < math.inf):
            raise ValueError(
                f"duration={duration}, rest={rest}: allowed are at least one step of {dt} ms, "
                "and 0 or more"
            )
        if silence not in ("settle", "simulate"):
            raise ValueError(f"silence={silence!r}: allowed are 'settle' and 'simulate'")
        if inhibition not in ("tie-break", "population"):
            raise ValueError(f"inhibition={inhibition!r}: allowed are 'tie-break' and 'population'")
        self.gens, self.dt, self.duration, self.rest = list(gens), dt, duration, rest
        self.silence, self.inhibition, self.gain = silence, inhibition, gain
        self.theta_step, self.tau_theta = theta_step, tau_theta
        self.tau_ge, self.tau_gi = tau_ge, tau_gi
        self.weight_sum = weight_sum
        self.updates = 0
        start, delays = [], []
        for gen in gens:
            start.append(0.3 * (torch.rand(n_exc, n_inputs, generator=gen, dtype=dtype) + 0.01))
            if max_delay > 0:
                draw = torch.rand(n_exc, n_inputs, generator=gen)
                delays.append((draw * max_delay / dt).long())
        self.register_buffer("W", torch.stack(start))
        self.register_buffer("theta", torch.full((len(gens), n_exc), OFFSET, dtype=dtype))
        self.register_buffer("delays", torch.stack(delays) if delays else None)

    def state(self, images: int = 1) -> State:
        """Cells at rest and empty traces, for ``images`` shown at once."""
        m, n, i = self.W.shape
        make = lambda kind: Population(
            (m, images, n), kind, self.dt, self.tau_ge, self.tau_gi, self.W
        )
        zeros = lambda *shape: torch.zeros(shape, dtype=self.W.dtype, device=self.W.device)
        inh, past, x_pre = None, None, zeros(m, images, i)
        if self.inhibition == "population":
            inh = make(INHIBITORY)
        if self.delays is not None:
            past = zeros(m, images, int(self.delays.max()) + 1, i)
            x_pre = zeros(m, 1, n, i)
        return State(make(EXCITATORY), inh, x_pre, past, self.dt)

    def learn(
        self,
        images: Float[Tensor, "m k i"],
        epochs: int,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """Show each network its own ``k`` images (pixels 0 to 255), shuffled in every epoch.

        ``watch`` is called with the number of presentations so far.

        Raises:
            ValueError: images for another number of networks, none of them, pixels out of range
                or of another number, fewer than one epoch.
        """
        if len(images) != len(self.W):
            raise ValueError(f"images: {len(images)} sets for {len(self.W)} modules")
        if epochs < 1:
            raise ValueError(f"epochs={epochs}: allowed is 1 or more")
        self._check(images)
        state, shown = self.state(), 0
        silent = torch.zeros(round(self.rest / self.dt), *images.shape[:1], 1, images.shape[2])
        for _ in progress(range(epochs), "spike-timing-dependent plasticity"):
            orders = [torch.randperm(images.shape[1], generator=g) for g in self.gens]
            for chosen in zip(*orders, strict=True):
                normalize_(self.W, self.weight_sum)
                rates = self.gain / 4 * torch.stack([x[k] for x, k in zip(images, chosen)])
                trains = [self.encode(r, g) for r, g in zip(rates, self.gens, strict=True)]
                spikes = torch.stack(trains, 1)[:, :, None].to(self.W)
                _, state = present(self, spikes, True, state)
                if self.silence == "simulate":
                    _, state = present(self, silent.to(self.W), True, state)
                else:
                    state.settle(self.rest)
                    self.theta.mul_(math.exp(-self.rest / self.tau_theta))
                shown += 1
                if watch is not None:
                    watch(shown)

    def respond(
        self,
        images: Float[Tensor, "g b i"],
        gens: Sequence[torch.Generator],
        repeats: int = 1,
        chunk: int | None = None,
    ) -> Float[Tensor, "m b n"]:
        """Spike counts of frozen networks for images (pixels 0 to 255), averaged over ``repeats``.

        ``chunk`` images at a time (all by default): with delays each of them needs ``m n i``
        numbers. The draw of input spikes depends on it.

        The networks fall into ``g`` groups of equal size, in order; a group sees the same images
        and the same spikes, drawn from the group's generator. Weights are used as training left
        them: the sum is restored before a training image, not before a test image.

        Raises:
            ValueError: networks that ``g`` does not divide, not one generator a group, fewer than
                one repeat, a chunk without images, pixels out of range or of another number.
        """
        groups, modules = len(images), len(self.W)
        if groups < 1 or modules % groups or len(gens) != groups or repeats < 1:
            raise ValueError(
                f"images for {groups} groups, {len(gens)} generators, {repeats} repeats with "
                f"{modules} modules: groups must divide the modules, one generator each, "
                "and at least one repeat"
            )
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk={chunk}: allowed is 1 or more, or None for all images at once")
        self._check(images)
        found = []
        for part in images.split(chunk or images.shape[1], 1):
            total = 0.0
            for _ in range(repeats):
                rates = self.gain / 4 * part
                trains = [self.encode(r, g) for r, g in zip(rates, gens, strict=True)]
                spikes = torch.stack(trains, 1).to(self.W)
                counts, _ = present(self, spikes.repeat_interleave(modules // groups, 1), False)
                total = total + counts
            found.append(total / repeats)
        return torch.cat(found, 1)

    def _check(self, images: Tensor) -> None:
        """Pixels that are numbers from 0 to 255, at least one image, as many pixels as inputs."""
        if not images.shape[1] or images.shape[2] != self.W.shape[2]:
            raise ValueError(
                f"images: {images.shape[1]} of {images.shape[2]} pixels; allowed are 1 or more "
                f"images of {self.W.shape[2]} pixels"
            )
        if not (images.min() >= 0 and images.max() <= 255):
            raise ValueError(
                f"images: pixels from {images.min():.4g} to {images.max():.4g}; "
                "allowed are 0 to 255"
            )

    def encode(self, rate: Float[Tensor, "*b i"], gen: torch.Generator) -> Float[Tensor, "t *b i"]:
        """Poisson spikes of a presentation, for rates in Hz."""
        return poisson_spikes(rate, round(self.duration / self.dt), self.dt / 1000, gen)


def synapse_updates(
    places: int, region: int, n_exc: int, n_inputs: int, *, images: int, epochs: int, steps: int
) -> int:
    """Synapse updates of training on ``places``: steps x inputs x cells, summed over the modules.

    Each module holds ``region`` places and ``n_exc`` cells and sees ``images`` images a place.
    """
    given = {"places": places, "region": region, "n_exc": n_exc, "n_inputs": n_inputs}
    given |= {"images": images, "epochs": epochs, "steps": steps}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name}={value}: allowed is 1 or more")
    modules = -(-places // region)
    return modules * (epochs * region * images * steps) * n_inputs * n_exc


def receptive_fields(net: STDPModule, module: int, side: int) -> Float[Tensor, "n side side"]:
    """The incoming weights of one network's cells as images.

    Raises:
        ValueError: no such module, or a side whose square is not the number of inputs.
    """
    if not 0 <= module < len(net.W):
        raise ValueError(f"module={module}: allowed are 0 to {len(net.W) - 1}")
    if side**2 != net.W.shape[2]:
        raise ValueError(f"side={side}: {side**2} pixels, but there are {net.W.shape[2]} inputs")
    return net.W[module].reshape(-1, side, side)


def spike_times(
    net: STDPModule, spikes: Float[Tensor, "t m b i"], plastic: bool = False
) -> Int[Tensor, "k 4"]:
    """Step, module, image and cell of every spike of one presentation, in order of time."""
    seen = []

    def watch(t: int, spike: Tensor, state: State) -> None:
        where = spike.nonzero()
        seen.append(torch.cat([torch.full_like(where[:, :1], t), where], 1))

    present(net, spikes, plastic, watch=watch)
    return torch.cat(seen)
