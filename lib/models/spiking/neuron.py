"""One leaky integrate-and-fire neuron: its spikes, its surrogate, its three gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.kernels import lif as kernel


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


def membrane(current: Float[Tensor, "t *neurons"], decay: float) -> Float[Tensor, "t *neurons"]:
    """The potential ``v[t] = decay v[t-1] + current[t]`` of a neuron that never fires.

    A read-out of spikes that keeps time: :func:`lif` with an endless threshold, at every step. All
    steps at once, as one product with the powers ``decay^(t - s)``; exact gradients by autograd.

    Raises:
        ValueError: a decay outside 0 to 1.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay={decay}: allowed is 0 to 1 (decay = 1 - 1/tau)")
    t = torch.arange(len(current), device=current.device)
    ago = t[:, None] - t
    powers = torch.where(ago >= 0, float(decay) ** ago.clamp_min(0).double(), 0)
    return torch.tensordot(powers.to(current.dtype), current, 1)


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
