"""Training spiking networks without the gradient's path through time.

Q. Meng, M. Xiao, S. Yan, Y. Wang, Z. Lin and Z.-Q. Luo, *Towards Memory- and Time-Efficient
Backpropagation for Training Spiking Neural Networks*, ICCV 2023, arXiv:2302.14311.

Here are spatial learning through time (SLTT), its variant SLTT-K, and what they are compared with:
backpropagation through time (BPTT), truncated BPTT, online training through time (OTTT; Xiao et
al. 2022, arXiv:2210.04195) and differentiation on spike representation (DSR; Meng et al. 2022,
arXiv:2205.00459); the paper's loss; instruments that compare the rules' gradients and costs; and a
task that the cut makes impossible. Neurons, encoders and networks are in ``lib.models.spiking``,
the fused scan in ``lib.kernels.lif``. Left out: the data augmentation of the paper's runs, mixed
precision, and stage-wise pretraining at T = 1 on ImageNet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.core.fitting import History, progress
from lib.core.seeds import batch_indices
from lib.models.resnet import ScaledWSConv2d
from lib.models.spiking import MemberLinear, detach, neurons, rate_weights, reset, run, settings
from lib.models.spiking import temporal_factor as temporal_factor  # what SLTT leaves out, measured

Mode = Literal["bptt", "sltt", "sltt_k", "truncated", "ottt", "dsr"]
MODES = ("bptt", "sltt", "sltt_k", "truncated", "ottt", "dsr")
Loss = Callable[[Tensor, Tensor], Tensor]


# --------------------------------------------------------------------------- the rules


def sltt(net: nn.Module, x: Tensor, y: Tensor, loss: Loss, weights: Tensor) -> Tensor:
    """Spatial learning through time (the paper's Algorithm 1): backward at once, at every step.

    The membranes carry their values from step to step and no history, so the graph of one step is
    all that ever exists. Steps of weight zero (SLTT-K) run without a graph.

    Args:
        net: one call is one time step, ``"b ..." -> "b c"``.
        x: inputs ``"t b ..."``.
        loss: ``loss(out, y) -> scalar`` of one step.
        weights: factor of each step's loss, ``"t"``.

    Returns:
        The outputs ``"t b c"``, without history. Gradients are added to the parameters' ``.grad``.
    """
    reset(net)
    out = []
    with settings(net, path="spatial"):
        for frame, weight in zip(x, weights.tolist(), strict=True):
            with nullcontext() if weight else torch.no_grad():
                out.append(net(frame))
                if weight:
                    (weight * loss(out[-1], y)).backward()
            out[-1] = out[-1].detach()
    reset(net)
    return torch.stack(out)


def bptt(
    net: nn.Module, x: Tensor, y: Tensor, loss: Loss, weights: Tensor, window: int | None = None
) -> Tensor:
    """Backpropagation through time: one graph over all steps, one backward pass at the end.

    With a ``window`` the backward pass comes after every ``window`` steps, and the membranes
    forget their history there (truncated BPTT). Arguments and result as in :func:`sltt`.
    """
    reset(net)
    out, total, window = [], 0.0, window or len(x)
    with settings(net, path="temporal"):
        for t, (frame, weight) in enumerate(zip(x, weights.tolist(), strict=True)):
            out.append(net(frame))
            if weight:
                total = total + weight * loss(out[-1], y)
            out[-1] = out[-1].detach()
            if (t + 1) % window == 0 or t + 1 == len(x):
                if isinstance(total, Tensor):
                    total.backward()
                total = 0.0
                detach(net)
    reset(net)
    return torch.stack(out)


def ottt(net: nn.Module, x: Tensor, y: Tensor, loss: Loss, weights: Tensor) -> Tensor:
    """Online training through time: SLTT whose weight gradients see a decaying trace of the input.

    ``dL/dW = sum_t delta[t] tr[t]^T`` with ``tr[t] = decay tr[t-1] + s[t]``: the leak's share of
    the temporal path, kept forward in time. Arguments and result as in :func:`sltt`.
    """
    with traced(net):
        return sltt(net, x, y, loss, weights)


@contextmanager
def traced(net: nn.Module) -> Iterator[None]:
    """Inside the block, every weight layer but the last takes its weight gradient from a trace.

    A layer returns ``W s`` with the weights as constants plus ``W tr - W tr``, the second one a
    constant: the value and the input's gradient are those of ``W s``, the weights' gradient that
    of ``W tr``. A bias is a weight whose input is always 1. The last layer has no leaky neurons
    behind it and stays as it is.
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d | MemberLinear)]
    decay = neurons(net)[0].decay

    def replace(layer: nn.Module) -> None:
        trace, ones = 0.0, 0.0

        def forward(s: Tensor) -> Tensor:
            nonlocal trace, ones
            trace, ones = s.detach() + decay * trace, 1 + decay * ones
            weighted = _affine(layer, trace, bias_input=ones)
            return _affine(layer, s, constant=True) + (weighted - weighted.detach())

        layer.forward = forward

    for layer in layers[:-1]:
        replace(layer)
    try:
        yield
    finally:
        for layer in layers[:-1]:
            del layer.forward


def _affine(layer: nn.Module, x: Tensor, constant: bool = False, bias_input: float = 1.0) -> Tensor:
    weight = layer.standardized() if isinstance(layer, ScaledWSConv2d) else layer.weight
    bias = None if layer.bias is None else bias_input * layer.bias
    if constant:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, bias)
    if isinstance(layer, MemberLinear):
        return layer.affine(x, weight, bias)
    return F.linear(x, weight, bias)


def backward(
    net: nn.Module,
    x: Float[Tensor, "t *b_in"],
    y: Int[Tensor, "*b"],
    mode: Mode,
    *,
    loss: Loss | None = None,
    weights: Float[Tensor, "t"] | None = None,
    k: int | None = None,
    window: int | None = None,
    gen: torch.Generator | None = None,
    order: Literal["step", "layer"] = "step",
) -> Float[Tensor, "t *b_c"]:
    """Add one rule's gradient to the parameters' ``.grad``; returns the outputs at every step.

    Args:
        mode: ``"bptt"``; ``"sltt"``; ``"sltt_k"``, SLTT at ``k`` of the steps, drawn from ``gen``;
            ``"truncated"``, BPTT within windows of ``window`` steps; ``"ottt"``; ``"dsr"``, the
            gradient of the weighted rates, whose loss is that of the weighted output.
        loss: of one step's output; :func:`sltt_loss` by default.
        weights: factor of each step's loss, ``1/T`` by default. SLTT-K keeps its chosen steps'
            factors and does not rescale them.
        order: ``"step"`` runs step by step, and SLTT goes backward at once. ``"layer"`` runs each
            layer through all steps in the fused scan and keeps one graph: for BPTT, SLTT and
            truncated BPTT, the same gradient (but batch norm then sees all steps at once).

    Raises:
        ValueError: an unknown mode or order, ``k`` or ``window`` missing, out of range or not
            asked for, ``gen`` missing, "ottt" layer by layer, no time steps, ``weights`` that are
            not one number a step or go with "dsr", a net without spiking layers.
    """
    loss = loss or sltt_loss
    steps = len(x)
    if steps < 1:
        raise ValueError(f"x: shape {tuple(x.shape)}; allowed is (t, ...) with t >= 1")
    if weights is not None and (weights.shape != (steps,) or mode == "dsr"):
        raise ValueError(
            f"weights: shape {tuple(weights.shape)} with mode={mode!r}; allowed is one number for "
            f"each of the {steps} steps, and none for 'dsr', which weighs the steps itself"
        )
    if not neurons(net):
        raise ValueError("net has no spiking layers (lib.models.spiking.LIF)")
    if weights is None:
        weights = torch.full((steps,), 1 / steps, dtype=torch.float64)
    _check_mode(mode, steps, k, window, gen, order)
    if mode == "sltt_k":
        chosen = torch.randperm(steps, generator=gen)[:k]
        weights = torch.zeros_like(weights).index_copy(0, chosen, weights[chosen])
    if mode == "dsr":
        out = run(net, x, path="rate", order="layer")
        mix = rate_weights(steps, neurons(net)[0].decay).to(out)
        loss(torch.tensordot(mix, out, 1), y).backward()
        return out.detach()
    if order == "layer":
        path = "spatial" if mode in ("sltt", "sltt_k") else "temporal"
        out = run(net, x, path=path, order="layer", window=window)
        used = [w * loss(o, y) for w, o in zip(weights.tolist(), out, strict=True) if w]
        if used:  # all weights zero: no gradient, as step by step
            sum(used).backward()
        return out.detach()
    if mode in ("bptt", "truncated"):
        return bptt(net, x, y, loss, weights, window)
    return (ottt if mode == "ottt" else sltt)(net, x, y, loss, weights)


def _check_mode(mode, steps, k, window, gen, order) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")
    if order not in ("step", "layer"):
        raise ValueError(f"order={order!r}: allowed are 'step' and 'layer'")
    if order == "layer" and mode == "ottt":
        raise ValueError("order='layer': 'ottt' keeps traces step by step; use order='step'")
    if (k is not None) != (mode == "sltt_k") or (k is not None and not 1 <= k <= steps):
        raise ValueError(f"k={k} with mode={mode!r}: allowed is 1 to {steps} steps for 'sltt_k'")
    if mode == "sltt_k" and gen is None:
        raise ValueError("gen=None: 'sltt_k' draws its steps from a generator")
    if (window is not None) != (mode == "truncated") or (window is not None and window < 1):
        raise ValueError(f"window={window} with mode={mode!r}: it goes with 'truncated', from 1")


# --------------------------------------------------------------------------- loss and training


def sltt_loss(
    out: Float[Tensor, "*s b c"],
    y: Int[Tensor, "*s b"],
    weight: float = 0.05,
    mean: float | None = 1.0,
) -> Float[Tensor, ""]:
    """``(1 - weight) cross-entropy + weight MSE`` of one step, averaged over the batch.

    The squared error pulls every output towards ``mean``, or towards the one-hot label where
    ``mean`` is None. With a members axis ``s`` the members' losses are added, so that each member
    gets its own gradient.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: allowed is 0 to 1")
    batch, classes = out.shape[-2:]
    entropy = F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="sum") / batch
    if weight == 0:
        return entropy
    target = F.one_hot(y, classes).to(out) if mean is None else torch.full_like(out, mean)
    squared = F.mse_loss(out, target, reduction="sum") / (batch * classes)
    return (1 - weight) * entropy + weight * squared


def predict(net: nn.Module, x: Float[Tensor, "t *b_in"]) -> Float[Tensor, "*b_c"]:
    """The outputs summed over the steps, without gradients, in evaluation mode."""
    training = net.training
    with torch.no_grad():
        out = run(net.eval(), x).sum(0)
    net.train(training)
    return out


def accuracy(net: nn.Module, x: Float[Tensor, "t *b_in"], y: Int[Tensor, "*b"]) -> Tensor:
    """Share of right predictions, one number for each member where there are members."""
    return (predict(net, x).argmax(-1) == y).double().mean(-1)


def batches(
    x: Float[Tensor, "n *features"],
    y: Int[Tensor, "n"],
    batch: int,
    seeds: int | Sequence[int],
    encode: Callable[[Tensor], Tensor],
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """``step -> (encoded inputs, labels)``: the mini-batches of one seed, or of one per member."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        if isinstance(seeds, int):
            index = batch_indices(len(x), batch, step, seeds)
        else:
            index = torch.stack([batch_indices(len(x), batch, step, s) for s in seeds])
        index = index.to(x.device)
        return encode(x[index]), y[index]

    return draw


def train(
    net: nn.Module,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    mode: Mode,
    *,
    steps: int,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    schedule: Callable[[int], float] | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    log: Iterable[int] = (),
    gen: torch.Generator | None = None,
    what: str = "training",
    **rule,
) -> History:
    """Train ``net`` for ``steps`` updates with one of the rules.

    Args:
        draw: ``step -> (x, y)``, see :func:`batches`.
        evaluate: called at the logged steps and after the last; its value is the row's
            ``accuracy``.
        rule: further arguments of :func:`backward` (``k``, ``window``, ``loss``, ``weights``, ...).

    Returns:
        Rows ``step``, ``accuracy``, ``seconds`` (of training so far, evaluation not counted).
    """
    opt = optimizer(net.parameters())
    base = [group["lr"] for group in opt.param_groups]
    history, log, seconds = History(), {*log, steps}, 0.0
    for step in progress(range(steps + 1), what):
        if evaluate is not None and step in log:
            history.rows.append({"step": step, "accuracy": evaluate(net), "seconds": seconds})
        if step == steps:
            break
        start = time.perf_counter()
        if schedule is not None:
            for group, rate in zip(opt.param_groups, base, strict=True):
                group["lr"] = rate * schedule(step)
        opt.zero_grad(set_to_none=True)
        backward(net, *draw(step), mode, gen=gen, **rule)
        opt.step()
        seconds += time.perf_counter() - start
    history.seconds = seconds
    return history


# --------------------------------------------------------------------------- instruments


def gradients(net: nn.Module, x: Tensor, y: Tensor, mode: Mode, **rule) -> dict[str, Tensor]:
    """One rule's gradient by parameter name; the parameters' own ``.grad`` is left as it was."""
    before = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad(set_to_none=True)
    backward(net, x, y, mode, **rule)
    found = {}
    for name, p in net.named_parameters():
        found[name] = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = before[name]
    return found


def gradient_cosine(
    a: dict[str, Tensor], b: dict[str, Tensor], members: bool = False
) -> dict[str, Tensor]:
    """Cosine between two gradients, parameter by parameter; per member of the first axis if asked.

    In float64, because the interesting distance from 1 is small. NaN where a gradient is zero (a
    layer that never spikes): 0/0 is not agreement.

    Raises:
        ValueError: the two have different parameters.
    """
    if a.keys() != b.keys():
        raise ValueError(f"a and b differ in {sorted(a.keys() ^ b.keys())}")
    found = {}
    for name in a:
        u, v = (g[name].double().flatten(1 if members else 0) for g in (a, b))
        found[name] = (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1))
    return found


def multiplications(
    widths: Sequence[int], steps: int, mode: Mode, k: int | None = None
) -> dict[str, int]:
    """Scalar multiplications of the backward pass through a fully connected net, for one sample.

    ``"matrix"``: at every step that goes backward, one outer product for each layer's weights and
    one transposed product for each layer but the first. ``"surrogate"``: one for each hidden
    neuron and such step. ``"temporal"``: three for each hidden neuron and each of BPTT's
    ``steps - 1`` moves back in time.

    Raises:
        ValueError: another mode, or ``k`` that does not fit it.
    """
    if mode not in ("bptt", "sltt", "sltt_k"):
        raise ValueError(f"mode={mode!r}: allowed are 'bptt', 'sltt' and 'sltt_k'")
    if (k is not None) != (mode == "sltt_k") or (k is not None and not 1 <= k <= steps):
        raise ValueError(f"k={k} with mode={mode!r}: allowed is 1 to {steps} for 'sltt_k'")
    sizes = [n * m for n, m in zip(widths[:-1], widths[1:])]
    hidden = sum(widths[1:-1])
    active = k or steps
    return {
        "matrix": active * (sum(sizes) + sum(sizes[1:])),
        "surrogate": active * hidden,
        "temporal": 3 * hidden * (steps - 1) if mode == "bptt" else 0,
    }


# --------------------------------------------------------------------------- where the cut hurts


def silent_cue(
    n: int,
    steps: int,
    gen: torch.Generator,
    cues: int = 4,
    distractors: int = 8,
    p: float = 0.3,
) -> tuple[Float[Tensor, "t n c"], Int[Tensor, "n"]]:
    """Which of ``cues`` channels fired at the first step? They are silent ever after.

    The other channels fire with probability ``p`` at every step. The loss belongs at the last step
    only (:func:`last_step`).
    """
    if steps < 1 or cues < 2:
        raise ValueError(f"steps={steps}, cues={cues}: allowed are steps >= 1 and cues >= 2")
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: allowed is a probability, 0 to 1")
    y = torch.randint(cues, (n,), generator=gen)
    x = torch.zeros(steps, n, cues + distractors)
    x[0, torch.arange(n), y] = 1
    x[:, :, cues:] = (torch.rand(steps, n, distractors, generator=gen) < p).float()
    return x, y


def delayed_match(
    n: int, steps: int, gen: torch.Generator, cues: int = 4
) -> tuple[Float[Tensor, "t n c"], Int[Tensor, "n"]]:
    """A cue at the first step, silence, and a go signal (the last channel) at the last step."""
    if steps < 2 or cues < 2:
        raise ValueError(f"steps={steps}, cues={cues}: allowed are 2 or more")
    y = torch.randint(cues, (n,), generator=gen)
    x = torch.zeros(steps, n, cues + 1)
    x[0, torch.arange(n), y] = 1
    x[-1, :, -1] = 1
    return x, y


def last_step(steps: int) -> Float[Tensor, "t"]:
    """Loss weights: one at the last step, zero before."""
    if steps < 1:
        raise ValueError(f"steps={steps}: allowed is 1 or more")
    return F.one_hot(torch.tensor(steps - 1), steps).float()


def blind_cue_(net: nn.Module, cues: int = 4) -> nn.Module:
    """Set the first layer's weights from the cue channels to zero: the cue must be *learned*.

    With random weights the membranes would carry the cue anyway, as a reservoir does, and the
    read-out alone would learn the task.
    """
    first = next(m for m in net.modules() if isinstance(m, nn.Linear | MemberLinear))
    with torch.no_grad():
        first.weight[..., :cues] = 0
    return net
