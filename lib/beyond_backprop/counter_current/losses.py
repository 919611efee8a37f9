"""What a pair of layers wants of each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Kind = Literal["prototype", "mse", "normalized"]


def prototype_loss(
    h: Float[Tensor, "b n"], g: Float[Tensor, "c n"], y: Int[Tensor, "b"], scale: float = 0.5
) -> Float[Tensor, ""]:
    """``256 scale / n`` times the mean square of ``S - M``, with ``S = h g^T`` and ``M`` one-hot.

    The inner product of an activity with its own class's prototype should be 1, with all others 0.
    Its gradient goes to both: ``h`` learns from ``g`` and ``g`` from ``h``.

    Raises:
        ValueError: shapes that do not go together, no samples, a label that is no class, a negative
            ``scale``.
    """
    _check_pair(h, g, y)
    _check_factor("scale", scale)
    S = h @ g.T
    return 256 * scale / h.shape[1] * (S - one_hot(y, len(g)).to(S)).square().mean()


def ccl_loss(
    acts: Sequence[Float[Tensor, "b ..."]],
    signals: Sequence[Float[Tensor, "c ..."]],
    y: Int[Tensor, "b"],
    kind: Kind = "prototype",
    *,
    scale: float = 0.5,
    filter_target: bool = False,
    decorrelation: float = 0.5,
) -> tuple[Float[Tensor, ""], list[Float[Tensor, ""]]]:
    """The sum of all local losses, and each: one a pair, the cross-entropy of the logits last.

    Args:
        acts: ``h_1, ..., h_L``, logits last. With ``x`` in front and ``g_0`` in ``signals``, the
            map down to the input is trained too, as in the authors' program.
        signals: ``g_1, ..., g_{L-1}``, one row for each class.
        kind: ``"prototype"``; ``"mse"``, the squared distance of an activity from its class's
            prototype; ``"normalized"``, prototypes and activities of length 1, and activities of
            different samples and prototypes of different classes made orthogonal.
        filter_target: activities of samples whose class has a probability above 0.9 already count
            as 0 in the pair losses. Their target row stays.
        decorrelation: weight of the two last terms of ``"normalized"``.

    Raises:
        ValueError: an unknown ``kind``, lists and widths that do not go together, no samples, a
            label that is no class, a negative ``scale`` or ``decorrelation``.
    """
    if kind not in ("prototype", "mse", "normalized"):
        raise ValueError(f"kind={kind!r}: allowed are 'prototype', 'mse' and 'normalized'")
    if len(signals) != len(acts) - 1:
        raise ValueError(
            f"signals: {len(signals)} for {len(acts)} activities; every one but the logits has one"
        )
    _check_factor("scale", scale)
    _check_factor("decorrelation", decorrelation)
    *hidden, logits = acts
    if len(y) != len(logits) or len(y) == 0:
        raise ValueError(
            f"y has {len(y)} labels for {len(logits)} rows of logits: allowed is one for each, "
            "and one at least"
        )
    per_layer = []
    for i, (h, g) in enumerate(zip(hidden, signals), 1):
        h, g = h.flatten(1), g.flatten(1)
        if h.shape[1] != g.shape[1]:
            raise ValueError(
                f"pair {i}: the activity has {h.shape[1]} features and the signal {g.shape[1]}"
            )
        if filter_target:
            h = h * unsure(logits, y)[:, None]
        if kind == "prototype":
            loss = prototype_loss(h, g, y, scale)
        elif kind == "mse":
            loss = scale * (h - one_hot(y, len(g)).to(g) @ g).square().mean()
        else:
            loss = _normalized(h, g, y, scale, decorrelation)
        per_layer.append(loss)
    per_layer.append(F.cross_entropy(logits, y))
    return sum(per_layer), per_layer


def unsure(
    logits: Float[Tensor, "b c"], y: Int[Tensor, "b"], margin: float = 0.1
) -> Float[Tensor, "b"]:
    """0 for samples whose class has a probability within ``margin`` of 1, 1 for the others.

    Raises:
        ValueError: ``margin`` outside 0 to 1, a label that is no class.
    """
    if not 0 <= margin <= 1:
        raise ValueError(f"margin={margin}: allowed is 0 to 1")
    with torch.no_grad():
        p = (logits.softmax(1) * one_hot(y, logits.shape[1])).sum(1)
        return (1 - p >= margin).to(logits)


def autoencoder_loss(
    acts: Sequence[Float[Tensor, "b ..."]],
    signals: Sequence[Float[Tensor, "b ..."]],
    target: Float[Tensor, "b ..."],
    *,
    legacy: bool = False,
    scale: float = 1.0,
) -> tuple[Float[Tensor, ""], list[Float[Tensor, ""]]]:
    """Mean squared difference of the two networks at every pair, and of the output from ``target``.

    ``legacy`` is the older program: every term times the map's height and ``scale``, and between
    the ends a second one for the maps centered and scaled to length 1, channel by channel.

    As in :func:`ccl_loss`, ``x`` and ``g_0`` may stand in front.

    Raises:
        ValueError: not one signal for each activity but the last, a pair of different shapes, a
            negative ``scale``.
    """
    _check_factor("scale", scale)
    if len(signals) != len(acts) - 1:
        raise ValueError(
            f"signals: {len(signals)} for {len(acts)} activities; every one but the last has one"
        )
    per_layer = []
    for i, (a, b) in enumerate(zip(acts, [*signals, target])):
        if a.shape != b.shape or a.numel() == 0:
            raise ValueError(
                f"pair {i + 1} of {len(acts)}: the activity has shape {tuple(a.shape)}, the signal "
                f"or target {tuple(b.shape)}; allowed are equal shapes that are not empty"
            )
        loss = (a - b).square().mean()
        if legacy:
            loss = loss * a.shape[2] * scale
            if i < len(signals) and a.shape != target.shape:
                gap = (_unit_maps(a) - _unit_maps(b)).square().mean()
                loss = loss + gap * a.shape[2] * scale
        per_layer.append(loss)
    return sum(per_layer), per_layer


def local_gradients(
    x: Float[Tensor, "b m"],
    pre: Float[Tensor, "b n"],
    below: Float[Tensor, "c k"],
    pre_g: Float[Tensor, "c n"],
    y: Int[Tensor, "b"],
    act: Callable[[Tensor], Tensor] = F.elu,
    slope: Callable[[Tensor], Tensor] = lambda z: z.clamp_max(0).exp(),
    scale: float = 0.5,
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n k"]]:
    """Gradients of one pair's loss in its ``W`` and in the ``V`` that made its signal, by hand.

    With ``h = act(pre)``, ``g = act(pre_g)``, ``S = h g^T``, ``e = 512 scale / (n B C) (S - M)``:

    ``dW = (e g * act'(pre))^T x`` and ``dV = (e^T h * act'(pre_g))^T below``.

    The two are mirror images. Nothing in them is known outside the pair but its own inputs.

    Args:
        x: input of the forward layer; ``pre``: its output before the activation.
        below: input of the feedback layer (which comes from above); ``pre_g``: its output before
            the activation.
        slope: derivative of ``act``; the default is that of the ELU.

    Raises:
        ValueError: as for :func:`prototype_loss`.
    """
    h, g = act(pre), act(pre_g)
    _check_pair(h, g, y)
    _check_factor("scale", scale)
    (b, n), c = h.shape, len(g)
    e = 512 * scale / (n * b * c) * (h @ g.T - one_hot(y, c).to(h))
    return (e @ g * slope(pre)).T @ x, (e.T @ h * slope(pre_g)).T @ below


def one_hot(y: Int[Tensor, "b"], classes: int) -> Float[Tensor, "b c"]:
    """Rows of the identity. (``F.one_hot`` looks at the labels' values and cannot be batched.)

    Raises:
        ValueError: a label outside 0 to ``classes - 1``, or labels that are not whole numbers.
    """
    if y.is_floating_point():
        raise ValueError(f"y has dtype {y.dtype}: allowed are whole numbers, 0 to {classes - 1}")
    try:
        return torch.zeros(len(y), classes, device=y.device).scatter(1, y.long()[:, None], 1.0)
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"y has a label outside 0 to {classes - 1}") from error


def _check_pair(h: Tensor, g: Tensor, y: Tensor) -> None:
    if (
        h.ndim != 2
        or g.ndim != 2
        or h.shape[1] != g.shape[1]
        or y.shape != h.shape[:1]
        or not len(y)
    ):
        raise ValueError(
            f"h has shape {tuple(h.shape)}, g {tuple(g.shape)}, y {tuple(y.shape)}: allowed are "
            "(b, n), (c, n) and (b,) with b of 1 or more"
        )


def _check_factor(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: allowed is a finite number of 0 or more")


def _normalized(h, g, y, scale: float, decorrelation: float) -> Tensor:
    h, g = (z / (z.norm(dim=1, keepdim=True) + 1e-8) for z in (h, g))
    apart = lambda z: (z @ z.T - torch.eye(len(z), dtype=z.dtype, device=z.device)).square().mean()
    agree = (h @ g.T - one_hot(y, len(g)).to(h)).square().mean()
    return scale * agree + decorrelation * (apart(h) + apart(g))


def _unit_maps(a: Tensor) -> Tensor:
    a = a - a.mean((2, 3), keepdim=True)
    return a / (a.flatten(2).norm(dim=2)[..., None, None] + 1e-8)
