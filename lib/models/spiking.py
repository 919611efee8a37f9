"""Spiking neurons and networks: leaky integrate-and-fire, surrogates, encoders, read-outs.

One neuron is an ``nn.Module`` that stands where an activation would stand, so the backbones of
``lib.models`` become spiking networks through their ``act=`` factories. A network runs in one of
two orders, which give the same spikes:

- *step by step*: one call a time step; the neurons remember their membrane. What an online rule
  needs.
- *layer by layer*: time is folded into the batch axis, ``"(t b) ..."``, and each neuron runs its
  whole sequence in one fused scan (``lib.kernels.lif``). Faster where the graph over all steps is
  kept anyway. Batch normalization then sees all steps at once instead of each on its own.

Conventions (Meng et al. 2023, arXiv:2302.14311): ``decay = 1 - 1/tau``, the input is not scaled by
the leak, the membrane starts at zero, the surrogate's argument is ``v - threshold``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor, nn

from lib.kernels import lif as kernel
from lib.models.cnn import ConvNet
from lib.models.mlp import MLP
from lib.models.resnet import NFResNet, preact18

# --------------------------------------------------------------------------- one neuron


@dataclass(frozen=True)
class Surrogate:
    """The derivative that stands in for the step's; build it with :func:`surrogate`."""

    kind: str
    alpha: float

    def __call__(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``s'(x)`` at ``x = v - threshold``; its integral is 1."""
        return kernel.surrogate_slope(x, self.kind, self.alpha)

    def step(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The smooth step whose derivative this is."""
        return kernel.smooth_step(x, self.kind, self.alpha)


def surrogate(
    kind: Literal["triangle", "rectangle", "sigmoid", "arctan"] = "triangle", alpha: float = 1.0
) -> Surrogate:
    """A surrogate derivative of sharpness ``alpha``.

    ======== =====================================  ==================
    triangle ``max(0, alpha - alpha^2 |x|)``        zero beyond 1/alpha
    rectangle ``alpha`` for ``|x| <= 1/(2 alpha)``  zero beyond
    sigmoid  ``alpha p (1 - p)``, p = sigmoid(alpha x)
    arctan   ``(alpha/2) / (1 + (pi alpha x / 2)^2)``
    ======== =====================================  ==================

    Raises:
        ValueError: unknown ``kind``, or ``alpha`` that is not positive.
    """
    if kind not in kernel.KINDS:
        raise ValueError(f"kind={kind!r}: allowed are {', '.join(map(repr, kernel.KINDS))}")
    if not alpha > 0:
        raise ValueError(f"alpha={alpha}: allowed is any positive number")
    return Surrogate(kind, alpha)


def lif(
    current: Float[Tensor, "t *neurons"],
    decay: float,
    threshold: float,
    reset: Literal["soft", "hard"],
    surrogate: Surrogate,
    temporal_grad: bool = True,
    *,
    detach_reset: bool = False,
    initial: Float[Tensor, "*neurons"] | None = None,
    window: int | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "t *neurons"], Float[Tensor, "*neurons"]]:
    """Spikes over all steps and the membrane after the last reset.

    ``v[t] = decay u[t-1] + current[t]``, ``s[t] = [v[t] >= threshold]``, then
    ``u[t] = v - threshold s`` (soft) or ``v (1 - s)`` (hard). ``temporal_grad=False``
    differentiates each step as if the membrane before it were a constant. ``window`` cuts the
    gradient at every multiple of it (truncated backpropagation). ``detach_reset`` leaves the reset
    out of the derivative.

    Raises:
        ValueError: a window below 1, or what :func:`lib.kernels.lif.lif` refuses.
    """
    if window is not None and window < 1:
        raise ValueError(f"window={window}: allowed is 1 or more steps, or None")
    pieces, state = [], initial
    for piece in current.split(window or len(current)):
        spikes, state = kernel.lif(
            piece, decay=decay, threshold=threshold, reset=reset, kind=surrogate.kind,
            alpha=surrogate.alpha, temporal_grad=temporal_grad, detach_reset=detach_reset,
            initial=state, backend=backend,
        )  # fmt: skip
        pieces.append(spikes)
        if window is not None:
            state = state.detach()
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces), state


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons, in the place of an activation.

    Attributes:
        path: which gradient leaves the layer backward. ``"temporal"`` goes through the membrane
            (backpropagation through time), ``"spatial"`` does not, ``"rate"`` differentiates the
            weighted firing rate instead of the spikes (:class:`RateGradient`; layer by layer only).
        steps: None runs step by step; a number folds that many steps out of the first axis.
        window: layer by layer, cuts the temporal gradient at multiples of it.
        state: the membrane after the last step, None after :func:`reset`.
    """

    def __init__(
        self,
        tau: float = 1.1,
        threshold: float = 1.0,
        reset: Literal["soft", "hard"] = "soft",
        surrogate: Surrogate = Surrogate("triangle", 1.0),
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        if not tau >= 1:
            raise ValueError(f"tau={tau}: allowed is 1 or more steps (1 forgets at once)")
        self.tau, self.threshold, self.reset_kind = tau, threshold, reset
        self.surrogate, self.detach_reset = surrogate, detach_reset
        self.path: Literal["temporal", "spatial", "rate"] = "temporal"
        self.steps: int | None = None
        self.window: int | None = None
        self.state: Tensor | None = None

    @property
    def decay(self) -> float:
        return 1 - 1 / self.tau

    def forward(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        rule = {"temporal_grad": self.path == "temporal", "detach_reset": self.detach_reset}
        neuron = (self.decay, self.threshold, self.reset_kind, self.surrogate)
        if self.steps is None:
            if self.path == "rate":
                raise ValueError("path='rate' needs the whole sequence: run layer by layer")
            before = self.state
            if before is not None and self.path == "spatial":
                before = before.detach()
            spikes, self.state = lif(x[None], *neuron, initial=before, **rule)
            return spikes[0]
        current = x.unflatten(0, (self.steps, -1))
        if self.path == "rate":
            spikes = RateGradient.apply(current, *neuron)
        else:
            spikes, _ = lif(current, *neuron, window=self.window, **rule)
        return spikes.flatten(0, 1)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, threshold={self.threshold}, reset={self.reset_kind!r}"


class RateGradient(torch.autograd.Function):
    """Differentiation on spike representation (Meng et al. 2022, arXiv:2205.00459).

    With weights ``w[t]`` proportional to ``decay^(T-1-t)`` and summing to 1, a soft-reset neuron
    obeys ``threshold sum_t w[t] s[t] = sum_t w[t] I[t] - (what is left in the membrane)``, so its
    weighted rate is close to ``clamp(sum_t w[t] I[t] / threshold, 0, 1)``. The backward pass is
    that of the clamp: ``g_I[t] = w[t] [0 < mean input < threshold] / threshold * sum_t g_s[t]``.
    """

    @staticmethod
    def forward(ctx, current, decay, threshold, reset, surrogate):
        if reset != "soft":
            raise ValueError(f"reset={reset!r}: the rate gradient holds for the soft reset only")
        weights = rate_weights(len(current), decay).to(current)
        mean = torch.tensordot(weights, current, 1)
        ctx.save_for_backward(((mean > 0) & (mean < threshold)).to(current.dtype) / threshold)
        ctx.weights = weights
        with torch.no_grad():
            return lif(current, decay, threshold, reset, surrogate)[0]

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        shared = grad.sum(0) * slope
        return ctx.weights.view(-1, *[1] * shared.ndim) * shared, None, None, None, None


def rate_weights(steps: int, decay: float) -> Float[Tensor, "t"]:
    """``decay^(T-1-t)`` over its sum: how much each step counts in the weighted firing rate."""
    w = decay ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    return (w / w.sum()).float()


# --------------------------------------------------------------------------- running a network


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


def firing_rates(net: nn.Module, x: Float[Tensor, "t b *features"]) -> list[float]:
    """Spikes per neuron and step in each spiking layer. A dead layer (0) passes no gradient."""
    rates: list[float] = []
    hooks = [
        n.register_forward_hook(lambda _m, _i, out: rates.append(out.mean().item()))
        for n in neurons(net)
    ]
    try:
        with torch.no_grad():
            run(net, x)
    finally:
        for h in hooks:
            h.remove()
    return rates


# --------------------------------------------------------------------------- in and out


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

    kinds = {
        "sum": lambda out: out.sum(0),
        "mean": lambda out: out.mean(0),
        "softmax": lambda out: F.softmax(out, -1).sum(0),
        "max": lambda out: out.amax(0),
        "count": count,
    }
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: allowed are {', '.join(map(repr, kinds))}")
    return kinds[kind]


# --------------------------------------------------------------------------- networks


class MemberLinear(nn.Module):
    """``members`` linear layers side by side: ``"s b in" -> "s b out"``, member by member.

    One network of these is ``s`` independent networks, trained in the same operations, also by
    rules that cannot run inside ``vmap`` because they call ``backward`` at every step.
    """

    def __init__(self, members: int, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(members, n_out)) if bias else None
        for w in self.weight:
            nn.init.kaiming_uniform_(w, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "ts b n_in"]) -> Float[Tensor, "ts b n_out"]:
        return self.affine(x, self.weight, self.bias)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        members, (total, batch) = len(weight), x.shape[:2]
        # Layer by layer, time is folded into the first axis: bring it next to the batch.
        x = x.unflatten(0, (-1, members)).transpose(0, 1).flatten(1, 2)
        out = x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
        return out.unflatten(1, (total // members, batch)).transpose(0, 1).flatten(0, 1)


def spiking_mlp(
    widths: Sequence[int],
    *,
    tau: float = 1.1,
    gen: torch.Generator | Sequence[torch.Generator],
    gain: float = 2.0,
    readout_gain: float | None = None,
    **neuron,
) -> MLP:
    """Linear layers with LIF neurons between them; the last layer is a linear read-out.

    Weights of spiking layers are normal with deviation ``gain / sqrt(fan_in)``, biases 0. PyTorch's
    own initialization is too small here: the second layer would not spike once, and next to no
    gradient would pass it. The read-out keeps PyTorch's rule unless ``readout_gain`` is given.

    Args:
        gen: one generator, or one for each of several members (then inputs are ``"s b d"``).
        neuron: further arguments of :class:`LIF`.
    """
    if isinstance(gen, torch.Generator):
        generators, linear = [gen], nn.Linear
    else:
        generators = list(gen)
        if not generators:
            raise ValueError("gen is empty: one generator for each member is needed")
        linear = lambda n, m, bias: MemberLinear(len(generators), n, m, bias)
    net = MLP(widths, act=lambda: LIF(tau, **neuron), linear=linear)
    with torch.no_grad():
        for layer in net.layers:
            weight, bias = layer.weight, layer.bias
            fan_in, scale = weight.shape[-1], gain
            if layer is net.layers[-1]:
                scale = readout_gain
            for i, g in enumerate(generators):
                w, b = (weight, bias) if linear is nn.Linear else (weight[i], bias[i])
                if scale is not None:
                    w.normal_(0, scale / math.sqrt(fan_in), generator=g)
                    b.zero_()
                else:
                    w.uniform_(-1, 1, generator=g).div_(math.sqrt(fan_in))
                    b.uniform_(-1, 1, generator=g).div_(math.sqrt(fan_in))
    return net


def spiking_cnn(
    widths: Sequence[int | Sequence[int]],
    classes: int,
    *,
    channels: int,
    tau: float = 1.1,
    norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
    **neuron,
) -> ConvNet:
    """Convolution, norm, LIF, average pooling; an average over space and a linear read-out.

    Run step by step, the batch norm is that of each step (its running statistics are shared).
    """
    act = lambda: LIF(tau, **neuron)
    return ConvNet(widths, classes, channels=channels, pool="avg", norm=norm, act=act)


def spiking_vgg11(classes: int = 10, channels: int = 2, **options) -> ConvNet:
    """VGG-11 with LIF neurons, for event frames of 48x48 and more."""
    return spiking_cnn(
        [64, 128, [256] * 2, [512] * 2, [512] * 2], classes, channels=channels, **options
    )


def spiking_resnet18(classes: int = 10, channels: int = 3, tau: float = 1.1, **neuron) -> nn.Module:
    """The pre-activated ResNet-18 for 32x32 images with LIF neurons and batch norm.

    Shortcuts carry spikes: they leave after a block's first neurons.
    """
    act = lambda: LIF(tau, **neuron)
    return preact18(classes, channels=channels, act=act, skip_activated=True)


def spiking_nf_resnet(
    depth: int,
    classes: int = 1000,
    tau: float = 1.1,
    threshold: float = 1.0,
    **options,
) -> NFResNet:
    """A spiking ResNet-34, -50 or -101 without normalization, to learn one step at a time.

    Spikes are multiplied by :func:`spike_gain`. ``options``: those of ``NFResNet``.

    Raises:
        ValueError: another depth.
    """
    plans = {
        34: ((3, 4, 6, 3), "basic"),
        50: ((3, 4, 6, 3), "bottleneck"),
        101: ((3, 4, 23, 3), "bottleneck"),
    }
    if depth not in plans:
        raise ValueError(f"depth={depth}: allowed are {', '.join(map(str, plans))}")
    counts, block = plans[depth]
    act = lambda: LIF(tau, threshold)
    return NFResNet(
        counts, classes, block=block, act=act, act_gain=spike_gain(threshold), **options
    )


def spike_gain(threshold: float = 1.0) -> float:
    """``1 / sqrt(p (1 - p))`` with ``p = P(z >= threshold)``, z standard normal: about 2.74.

    The factor that gives spikes of a normal current unit variance.
    """
    p = 0.5 * math.erfc(threshold / math.sqrt(2))
    return 1 / math.sqrt(p * (1 - p))
