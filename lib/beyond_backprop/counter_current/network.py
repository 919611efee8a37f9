"""The two networks side by side, and the three shapes they take in the paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.counter_current.layers import (
    DualConv2d,
    DualConvTranspose2d,
    DualFlatten,
    DualLayer,
    DualLinear,
)


class CounterCurrentNet(nn.Module):
    """A forward network and a feedback network with layers of the same widths, in opposite order.

    ``net(x)`` predicts and runs the forward network only. ``net(x, targets)`` returns what both
    networks say at every pair. ``detach`` is what makes the learning local.

    Args:
        layers: from the input to the output; two or more, each but the first with feedback.

    Raises:
        ValueError: fewer than two layers with weights, or a layer without feedback in between.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        dual = [layer for layer in layers if isinstance(layer, DualLayer)]
        if len(dual) < 2:
            raise ValueError(f"layers: {len(dual)} with weights, allowed are two or more")
        for i, layer in enumerate(dual[1:], 2):
            if layer.down is None:
                raise ValueError(f"layers: number {i} has feedback=False; only the first may")
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Tensor, targets: Tensor | None = None, detach: bool = True
    ) -> Tensor | tuple[list[Tensor], list[Tensor]]:
        acts = self.forward_signals(x, detach)
        return acts[-1] if targets is None else (acts, self.feedback_signals(targets, detach))

    def forward_signals(self, x: Tensor, detach: bool = True) -> list[Tensor]:
        """``h_1, ..., h_L``: every layer's output, the logits last. A flattened map counts once."""
        acts = []
        for layer, above in zip(self.layers, [*self.layers[1:], None]):
            x = layer(x, detach)
            if not isinstance(above, DualFlatten):
                acts.append(x)
        return acts

    def feedback_signals(
        self, targets: Tensor, detach: bool = True, to_input: bool = False
    ) -> list[Tensor]:
        """``g_1, ..., g_{L-1}`` from the output's side; ``to_input`` puts ``g_0`` in front.

        For a classifier ``targets`` is the identity, "c c": all classes, whatever the batch.
        """
        g, signals = targets, []
        for layer in reversed(self.layers if to_input else self.layers[1:]):
            g = layer.reverse(g, detach)
            if not isinstance(layer, DualFlatten):
                signals.append(g)
        return signals[::-1]

    def forward_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not is_feedback(name)]

    def feedback_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if is_feedback(name)]

    def groups(self, side: str = "forward") -> dict[str, list[nn.Parameter]]:
        """Parameters of each layer, ``"W1"``, ... or, with ``side="feedback"``, ``"V2"``, ..."""
        if side not in ("forward", "feedback"):
            raise ValueError(f"side={side!r}: allowed are 'forward' and 'feedback'")
        letter, path = ("W", "up") if side == "forward" else ("V", "down")
        return {
            f"{letter}{i}": list(getattr(layer, path).parameters())
            for i, layer in enumerate(self._dual(), 1)
            if getattr(layer, path) is not None
        }

    def _dual(self) -> Iterator[DualLayer]:
        return (layer for layer in self.layers if isinstance(layer, DualLayer))


def is_feedback(name: str) -> bool:
    """Whether a parameter of this name belongs to the feedback network."""
    return ".down." in name


def ccl_mlp(
    widths: Sequence[int],
    *,
    to_input: bool = False,
    gen: torch.Generator | None = None,
    **options,
) -> CounterCurrentNet:
    """Fully connected: ``widths`` are input, hidden layers, classes. The paper's L is the number
    of maps, ``len(widths) - 1``; ``depth`` (nonlinearities) is one less.

    Args:
        to_input: also the map down to the input's width, which no forward layer ever sees.
        options: as for :class:`DualLinear`.

    Raises:
        ValueError: fewer than three widths.
    """
    if len(widths) < 3:
        raise ValueError(f"widths={list(widths)}: allowed are three or more numbers, each >= 1")
    pairs, layers = list(zip(widths, widths[1:])), []
    for i, (n_in, n_out) in enumerate(pairs):
        last, first = i == len(pairs) - 1, i == 0
        ends = ({"act_f": None} if last else {}) | ({"act_b": None} if first else {})
        layers.append(
            DualLinear(n_in, n_out, feedback=to_input or not first, gen=gen, **(options | ends))
        )
    return CounterCurrentNet(layers)


def ccl_cnn(
    channels: Sequence[int],
    size: int,
    classes: int = 10,
    *,
    gen: torch.Generator | None = None,
    **options,
) -> CounterCurrentNet:
    """Convolutions of stride 2 (``channels[0]`` is the image's), then one linear map.

    Raises:
        ValueError: fewer than two numbers of channels, or ``size`` cannot be halved
            ``len(channels) - 1`` times.
    """
    steps = len(channels) - 1
    if steps < 1:
        raise ValueError(f"channels={list(channels)}: allowed are two or more numbers, each >= 1")
    if size < 1 or size % 2**steps:
        raise ValueError(f"size={size}: allowed are multiples of {2**steps}, for {steps} halvings")
    layers: list[nn.Module] = [
        DualConv2d(a, b, feedback=i > 0, gen=gen, **options)
        for i, (a, b) in enumerate(zip(channels, channels[1:]))
    ]
    side = size // 2**steps
    flat = DualFlatten(channels[-1], side, side)
    top = {k: v for k, v in options.items() if k in ("act_b", "norm_b", "zero_bias")}
    out = DualLinear(channels[-1] * side**2, classes, act_f=None, gen=gen, **top)
    return CounterCurrentNet([*layers, flat, out])


def ccl_autoencoder(
    channels: Sequence[int],
    *,
    shrink: float = 1e-3,
    gen: torch.Generator | None = None,
    **options,
) -> CounterCurrentNet:
    """Encoder and its mirror image as decoder; every layer has both directions.

    The last forward map and the last feedback map (the one to the input) are linear.

    Args:
        shrink: factor on the initial weights of the second half of each network (the decoder
            going up, the encoder coming down), so that both start close to silent there.

    Raises:
        ValueError: fewer than two numbers of channels.
    """
    if len(channels) < 2:
        raise ValueError(f"channels={list(channels)}: allowed are two or more numbers, each >= 1")
    pairs, layers = list(zip(channels, channels[1:])), []
    for i, (a, b) in enumerate(pairs):
        ends = {"act_b": None} if i == 0 else {}
        layers.append(DualConv2d(a, b, gen=gen, **(options | ends)))
    for i, (a, b) in enumerate(reversed(pairs)):
        ends = {"act_f": None} if i == len(pairs) - 1 else {}
        layers.append(DualConvTranspose2d(b, a, gen=gen, **(options | ends)))
    with torch.no_grad():
        for i, layer in enumerate(layers):
            (layer.V if i < len(pairs) else layer.W).mul_(shrink)
    return CounterCurrentNet(layers)


def prototypes_read(
    acts: Sequence[Float[Tensor, "b ..."]], signals: Sequence[Float[Tensor, "c ..."]]
) -> Int[Tensor, "pairs b"]:
    """The class each pair would answer: the prototype ``g_l`` with the largest ``h_l . g_l``."""
    return torch.stack([(h.flatten(1) @ g.flatten(1).T).argmax(1) for h, g in zip(acts, signals)])


def transported_floats(widths: Sequence[int], batch: int, rule: str) -> int:
    """Numbers that pass from one layer to another in a step, biases and weights not counted.

    With ``N`` the hidden units in all: ``2 batch N`` for "backprop" and "fa" (activities up, errors
    down), ``batch N + batch C`` for every hidden layer for "dfa" (activities up, the output's
    error to each), ``(batch + C) N`` for "ccl" (activities up, class prototypes down). What the
    two halves of one pair tell each other stays inside the layer.

    Raises:
        ValueError: an unknown rule, fewer than three widths, a batch below 1.
    """
    if len(widths) < 3 or min(widths) < 1 or batch < 1:
        raise ValueError(
            f"widths={list(widths)}, batch={batch}: allowed are three or more widths of 1 or more "
            "and a batch of 1 or more"
        )
    hidden, classes = widths[1:-1], widths[-1]
    up = batch * sum(hidden)
    down = {
        "backprop": up,
        "fa": up,
        "dfa": batch * classes * len(hidden),
        "ccl": classes * sum(hidden),
    }
    if rule not in down:
        raise ValueError(f"rule={rule!r}: allowed are {', '.join(map(repr, down))}")
    return up + down[rule]
