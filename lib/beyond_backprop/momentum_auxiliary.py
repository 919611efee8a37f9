"""Momentum auxiliary networks: a head that sees what the next block has become.

Junhao Su, Changpeng Cai, Feiyu Zhu, Chenghao He, Xiaojie Xu, Dongzhi Guan and Chenyang Si,
*Momentum Auxiliary Network for Supervised Local Learning*, ECCV 2024, arXiv:2407.05623.

In local learning no gradient comes from block ``i + 1`` to block ``i``. Here weights come down
instead. Between block ``i`` and its head stand two copies of the first layer of block ``i + 1``: a
moving average of that layer's weights, which no gradient changes, and a copy that learns, the
paper's "learnable bias". The head reads the sum of both. In front of any head of
:mod:`lib.models.local_learning` that makes a ``LocalBlocks``, whose ``local_step`` moves the
averages after each block's backward pass; losses, training, memory and members side by side are
those of ``lib.models``.

The paper's K blocks are ``len(model.blocks)``; blocks are counted from 0. Not here: bottleneck
networks and the recipes for ImageNet, STL-10 and SVHN.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.core.seeds import child
from lib.models.init import initialize_
from lib.models.local_learning import LocalBlocks, PoolLinear, compared_heads, cut
from lib.models.local_mlp import LocalTrainer
from lib.models.resnet import ResNet

STARTS = ("copy", "fresh")


class MomentumAuxiliary(nn.Module):
    """``z = LB(f) + EMA(f)``: an averaged and a learned copy of the next block's first layer.

    Gradients pass *through* the averaged copy to ``f`` and never into its weights. Only weights are
    averaged. Running averages of batch normalizations in the copies are left alone, as in the
    authors' program: they follow the copies' own inputs while in training mode, where they are not
    read, and the copies are thrown away before evaluation.

    Args:
        next_layer: what is copied; it is neither kept nor changed.
        momentum: m, how much of the average stays at an update.
        learnable_bias, use_ema: leave out one of the copies with False.

    Raises:
        TypeError: ``next_layer`` is no module.
        ValueError: ``momentum`` outside 0..1, or both copies left out.
    """

    def __init__(
        self,
        next_layer: nn.Module,
        momentum: float = 0.995,
        learnable_bias: bool = True,
        use_ema: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(next_layer, nn.Module):
            raise TypeError(f"next_layer={next_layer!r}: allowed is a module")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: allowed is 0 (follow at once) to 1 (never)")
        if not (learnable_bias or use_ema):
            raise ValueError("learnable_bias=False, use_ema=False: at least one copy is needed")
        self.momentum = momentum
        self.learned = copy.deepcopy(next_layer) if learnable_bias else None
        self.average = copy.deepcopy(next_layer).requires_grad_(False) if use_ema else None

    def forward(self, f: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        if self.average is None:
            return self.learned(f)
        z = self.average(f)
        return z if self.learned is None else self.learned(f) + z

    @torch.no_grad()
    def update(self, next_layer: nn.Module) -> None:
        """``theta_EMA <- m theta_EMA + (1 - m) theta``, over the weights of ``next_layer``.

        Raises:
            ValueError: ``next_layer`` has weights of other shapes, or of another dtype, than the
                layer that was copied.
        """
        if self.average is None:
            return
        mine, theirs = list(self.average.parameters()), list(next_layer.parameters())
        if (found := _kinds(theirs)) != (wanted := _kinds(mine)):
            raise ValueError(f"next_layer has weights {found}: allowed are the copy's, {wanted}")
        if mine:
            torch._foreach_lerp_(mine, [p.detach() for p in theirs], 1 - self.momentum)

    def follow(self, block: nn.Sequential) -> None:
        """Called by ``LocalBlocks.local_step`` after this head's backward pass."""
        self.update(block[0])

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"


def _kinds(weights: Sequence[Tensor]) -> str:
    return ", ".join(f"{list(p.shape)} {str(p.dtype)[6:]}" for p in weights) or "none"


def half_life(momentum: float) -> float:
    """Updates after which half of what the average held is left: ``log(1/2) / log(m)``.

    Raises:
        ValueError: ``momentum`` outside (0, 1).
    """
    if not 0 < momentum < 1:
        raise ValueError(f"momentum={momentum}: allowed is a number between 0 and 1")
    return math.log(0.5) / math.log(momentum)


def lag(model: LocalBlocks) -> list[float]:
    """``|theta_EMA - theta| / |theta|`` between every average and the layer that it follows.

    A layer without weights has nothing to follow and gives 0.
    """
    out = []
    for head, block in zip(model.heads, list(model.blocks)[1:]):
        for part in head.modules():
            if isinstance(part, MomentumAuxiliary) and part.average is not None:
                pairs = list(zip(part.average.parameters(), block[0].parameters(), strict=True))
                gap, size = (
                    sum(float(p.detach().square().sum()) for p in ps) ** 0.5
                    for ps in ([a - b for a, b in pairs], [b for _, b in pairs])
                )
                out.append(gap / size if gap else 0.0)
    return out


# ------------------------------------------------------------------------------------ the networks

Base = Literal["0c1f", "dgl", "predsim", "infopro"] | Callable[[int, int], nn.Module]


def local_network(
    widths: Sequence[int],
    classes: int = 10,
    *,
    k: int | None = None,
    base: Base = "0c1f",
    channels: int = 3,
    momentum: float = 0.995,
    learnable_bias: bool = True,
    use_ema: bool = True,
    start: Literal["copy", "fresh"] = "copy",
    image: tuple[float, float] = (4.6, 3.9),
    label: tuple[float, float] = (0.46, 0.39),
    gen: torch.Generator,
) -> LocalBlocks:
    """A residual network in ``k`` local blocks, with momentum auxiliary networks in the heads.

    The primary network is drawn from ``gen`` first, so that all kinds of heads start from the same
    one. Convolutions are drawn He-normal with the fan-out, linear maps as PyTorch draws them.

    Args:
        widths: channels of the residual blocks, as for ``lib.models.resnet.ResNet``; the stem is a
            layer of its own. ``[16] * 5 + [32] * 5 + [64] * 5`` is ResNet-32.
        k: the paper's K; every layer is a block if None, 16 for ResNet-32 and 55 for ResNet-110.
            (The authors join the stem to the block after it, which leaves 15 and 54.)
        base: the head behind the copies, see :func:`lib.models.local_learning.compared_heads`, or a
            function of the block's index and of the channels that the head reads.
        momentum, learnable_bias, use_ema: see :class:`MomentumAuxiliary`; without both copies, this
            is the local network that MAN starts from.
        start: ``"copy"``: the copies begin with the weights of the layer that they copy.
            ``"fresh"``: with weights of their own, as in the authors' program.
        image, label: InfoPro's weights, first and last head. The authors' command for ResNet-32
            says 5 to 0 and 0.5 to 0, which would leave the last head without a loss; but their
            program interpolates by the stage, 1 to 3 of 14, and so reaches the weights here.

    Raises:
        ValueError: unknown ``start`` or ``base``; ``widths``, ``classes``, ``channels``,
            ``momentum`` or ``k`` out of range.
    """
    if channels < 1 or classes < 1:
        raise ValueError(f"channels={channels}, classes={classes}: allowed is 1 or more")
    model = ResNet(widths, classes, channels=channels)
    layers = [model.stem, *model.blocks]
    outputs = [widths[0], *widths]
    return assemble(
        layers,
        outputs,
        PoolLinear(widths[-1], classes),
        classes,
        k=k,
        base=base,
        colors=channels,
        momentum=momentum,
        learnable_bias=learnable_bias,
        use_ema=use_ema,
        start=start,
        weights={"image": image, "label": label},
        gen=gen,
    )


def assemble(
    layers: Sequence[nn.Module],
    outputs: Sequence[int],
    classifier: nn.Module,
    classes: int,
    *,
    k: int | None,
    base: Base,
    colors: int,
    momentum: float,
    learnable_bias: bool,
    use_ema: bool,
    start: str,
    weights: dict,
    gen: torch.Generator,
    linear: str = "torch",
) -> LocalBlocks:
    """``layers`` in ``k`` blocks; ``outputs`` are their channels. The rest as in local_network."""
    if start not in STARTS:
        raise ValueError(f"start={start!r}: allowed are 'copy' and 'fresh'")
    for part in (*layers, classifier):
        _draw(part, linear, gen)
    blocks = cut(layers, len(layers) if k is None else k)
    ends = [sum(len(b) for b in blocks[: i + 1]) - 1 for i in range(len(blocks))]
    copies = learnable_bias or use_ema
    # A head reads what the next block's first layer puts out: other channels where they double.
    read = [outputs[e + 1 if copies else e] for e in ends[:-1]]
    if callable(base):
        bases = [base(i, c) for i, c in enumerate(read)]
    else:
        bases = compared_heads(base, read, classes, colors=colors, **weights)
    for head in bases:
        _draw(head, linear, gen)
    if not copies:
        return LocalBlocks(blocks, [*bases, classifier])
    heads = momentum_heads(
        blocks, bases, momentum=momentum, learnable_bias=learnable_bias, use_ema=use_ema
    )
    if start == "fresh":
        for head in heads:
            for part in head[0].children():
                _draw(part, linear, gen)
    return LocalBlocks(blocks, [*heads, classifier])


def momentum_heads(
    blocks: Sequence[nn.Sequential],
    bases: Sequence[nn.Module],
    *,
    momentum: float = 0.995,
    learnable_bias: bool = True,
    use_ema: bool = True,
) -> list[nn.Module]:
    """``bases`` behind copies of the first layers of ``blocks[1:]``: heads for all but the last.

    Raises:
        ValueError: not one base for each block but the last.
    """
    if len(bases) != len(blocks) - 1:
        raise ValueError(
            f"{len(blocks)} blocks and {len(bases)} bases: allowed is one base for each block but "
            "the last, which keeps the classifier"
        )
    heads = []
    for base, block in zip(bases, blocks[1:]):
        copies = MomentumAuxiliary(block[0], momentum, learnable_bias, use_ema)
        heads.append((_OwnLoss if hasattr(base, "loss") else nn.Sequential)(copies, base))
    return heads


class _OwnLoss(nn.Sequential):
    """Copies, and a head that has a loss of its own."""

    def loss(self, h: Tensor, x: Tensor, y: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        return self[1].loss(self[0](h), x, y)


def _draw(model: nn.Module, linear: str, gen: torch.Generator) -> None:
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            initialize_(part, "he", fan="out", gen=gen)
        elif isinstance(part, nn.Linear):
            initialize_(part, linear, gen=gen)


# ------------------------------------------------------------------------------------------- an MLP


def mlp_trainer(
    widths: Sequence[int],
    *,
    seed: int,
    momentum: float = 0.995,
    learnable_bias: bool = True,
    use_ema: bool = True,
    start: Literal["copy", "fresh"] = "copy",
    lr: float = 2e-3,
    device: torch.device | str = "cpu",
) -> LocalTrainer:
    """An MLP; every hidden layer reads the next one's weights as a moving average.

    A layer is a linear map and ReLU, the head behind the copies one linear map. The paper has no
    MLPs, and SGD with momentum; here the optimizer is Adam, because deep MLPs without normalization
    diverge with it.

    Args:
        widths: inputs, hidden layers, classes: ``[64, 128, 128, 10]``. Every hidden layer is a
            block; the last one is trained with the classifier.
        lr: of Adam.

    Raises:
        ValueError: fewer than three ``widths``, or one below 1; settings as in
            :func:`local_network`.
    """
    if len(widths) < 3 or min(widths) < 1:
        raise ValueError(
            f"widths={list(widths)}: allowed are inputs, hidden layers and classes, each >= 1"
        )
    hidden, classes = list(widths[1:-1]), widths[-1]
    model = assemble(
        [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths, hidden)],
        hidden,
        PoolLinear(hidden[-1], classes),
        classes,
        k=None,
        base="0c1f",
        colors=1,
        momentum=momentum,
        learnable_bias=learnable_bias,
        use_ema=use_ema,
        start=start,
        weights={},
        gen=child(seed, "momentum auxiliary"),
        linear="he",
    ).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    return LocalTrainer(model, torch.optim.Adam(trained, lr=lr))
