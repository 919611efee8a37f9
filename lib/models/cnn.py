"""Plain convolutional networks with named stages, and the classics built from them.

``ConvNet`` is a chain of stages; a stage is one or more convolution-norm-activation blocks, and
between stages the map is halved. Hooks find the stages as ``stages.0``, ``stages.1``, ... and the
classifier as ``head``. Every call site of an activation has a module of its own, never in place,
so that rules which replace activations (guided backpropagation, relevance) see each one.

Weights are drawn as PyTorch draws them, from its global generator: seed it first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVG_POOL = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class ConvNet(nn.Module):
    """Stages of convolutions, each half the size of the one before, and a classifier.

    Args:
        widths: channels of each stage: a number for one convolution, a sequence for several.
        classes: outputs (logits).
        channels: channels of the input.
        dims: 1, 2 or 3 spatial axes.
        kernel: odd kernel size; padding keeps the map's size.
        pool: how the map is halved between stages: ``"max"`` or ``"avg"`` pooling of 2, or
            ``"stride"``, where the next stage's first convolution steps by two.
        pool_last: halve once more before the head.
        head: ``"gap"`` averages over space, ``"flatten"`` keeps places apart (needs ``size``).
        size: side of the input, for ``head="flatten"``.
        hidden: widths of hidden layers in the head.
        dropout: rate after each hidden layer of the head.
        norm: factory over channels, put after every convolution; no bias then.
        act: factory of the activation.
        conv: factory with the signature of ``nn.Conv2d``.

    Raises:
        ValueError: unknown ``pool`` or ``head``, ``dims`` outside 1 to 3, an even kernel, a
            flatten head without ``size``, or more stages than ``size`` can be halved.
    """

    def __init__(
        self,
        widths: Sequence[int | Sequence[int]],
        classes: int,
        *,
        channels: int = 3,
        dims: int = 2,
        kernel: int = 3,
        pool: str = "max",
        pool_last: bool = False,
        head: str = "gap",
        size: int | None = None,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] | None = None,
        act: Callable[[], nn.Module] = nn.ReLU,
        conv: Callable[..., nn.Module] | None = None,
    ):
        super().__init__()
        if pool not in ("max", "avg", "stride"):
            raise ValueError(f"pool={pool!r}: allowed are 'max', 'avg' and 'stride'")
        if head not in ("gap", "flatten"):
            raise ValueError(f"head={head!r}: allowed are 'gap' and 'flatten'")
        if not 1 <= dims <= 3:
            raise ValueError(f"dims={dims}: allowed are 1, 2 and 3")
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel}: allowed are odd numbers, which keep the map's size")
        if pool == "stride" and pool_last:
            raise ValueError("pool_last=True: with pool='stride' there is no next convolution")
        plan = [[w] if isinstance(w, int) else list(w) for w in widths]
        halvings = len(plan) - 1 + pool_last
        conv = conv or CONV[dims - 1]
        pools = {"max": MAX_POOL, "avg": AVG_POOL}.get(pool)

        self.stages, self.pools = nn.ModuleList(), nn.ModuleList()
        for i, stage in enumerate(plan):
            blocks: list[nn.Module] = []
            for j, width in enumerate(stage):
                stride = 2 if pool == "stride" and i > 0 and j == 0 else 1
                blocks.append(
                    conv(
                        channels,
                        width,
                        kernel,
                        stride=stride,
                        padding=kernel // 2,
                        bias=norm is None,
                    )
                )
                if norm is not None:
                    blocks.append(norm(width))
                blocks.append(act())
                channels = width
            self.stages.append(nn.Sequential(*blocks))
            halve = pools is not None and i < halvings
            self.pools.append(pools[dims - 1](2) if halve else nn.Identity())

        if head == "flatten":
            if size is None:
                raise ValueError("size=None: head='flatten' needs the side of the input")
            side = size
            for _ in range(halvings):
                side = -(-side // 2) if pool == "stride" else side // 2
            if side < 1:
                raise ValueError(f"size={size}: too small to be halved {halvings} times")
            features, first = channels * side**dims, nn.Flatten()
        else:
            pooled = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
            features, first = channels, nn.Sequential(pooled(1), nn.Flatten())
        layers: list[nn.Module] = [first]
        for width in hidden:
            layers += [nn.Linear(features, width), act()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            features = width
        self.head = nn.Sequential(*layers, nn.Linear(features, classes))

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b classes"]:
        return self.head(self.features(x)[-1])

    def features(self, x: Float[Tensor, "b c *space"]) -> list[Tensor]:
        """The stages' outputs, and last what enters the head."""
        maps = []
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = stage(x)
            maps.append(x)
            x = pool(x)
        return [*maps, x]


VGG = {
    11: [[64], [128], [256] * 2, [512] * 2, [512] * 2],
    13: [[64] * 2, [128] * 2, [256] * 2, [512] * 2, [512] * 2],
    16: [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3],
    19: [[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4],
}


def vgg(plan: int | Sequence[int | Sequence[int]], classes: int, **options) -> ConvNet:
    """VGG (Simonyan and Zisserman 2015, arXiv:1409.1556): by depth (11, 13, 16, 19) or by plan.

    With batch normalization unless ``norm`` says otherwise; other options are ``ConvNet``'s.

    Raises:
        ValueError: a depth that is not one of the four.
    """
    if isinstance(plan, int):
        if plan not in VGG:
            raise ValueError(f"plan={plan}: allowed are {', '.join(map(str, VGG))} or widths")
        plan = VGG[plan]
    options.setdefault("norm", nn.BatchNorm2d)
    options.setdefault("pool_last", True)
    return ConvNet(plan, classes, **options)


def conv_n(n: int, classes: int = 10, *, channels: int = 3, size: int = 32, **options) -> ConvNet:
    """Conv-2, Conv-4 and Conv-6 of the lottery ticket paper (arXiv:1803.03635, figure 2).

    Pairs of 3x3 convolutions (64, 128, 256 channels), each followed by max-pooling, then two
    hidden layers of 256. The paper's variant with dropout is ``dropout=0.5``, here on the hidden
    layers of the head.

    Raises:
        ValueError: ``n`` is not 2, 4 or 6.
    """
    if n not in (2, 4, 6):
        raise ValueError(f"n={n}: allowed are 2, 4 and 6")
    widths = [[w, w] for w in (64, 128, 256)[: n // 2]]
    options = {"head": "flatten", "hidden": (256, 256), "pool_last": True} | options
    return ConvNet(widths, classes, channels=channels, size=size, **options)


def lenet300(inputs: int = 784, classes: int = 10) -> nn.Sequential:
    """LeNet-300-100: the fully connected network of the pruning papers, on flattened images."""
    sizes = [inputs, 300, 100]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))
