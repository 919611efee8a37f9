"""Supervised local learning: every block has a loss of its own, and no gradient leaves a block.

A network is a chain of blocks. Block ``l`` computes ``h_l = f_l(sg(h_{l-1}))``, where ``sg`` stops
the gradient, and an auxiliary head on ``h_l`` turns it into a loss. The heads are thrown away at
inference; the last one is the classifier. The heads here are those that later papers compare with:

- ``PoolLinear``: global average pooling and a linear map, the plain greedy baseline;
- ``DGL``: pointwise convolutions and an MLP (E. Belilovsky et al., ICML 2020, arXiv:1901.08164);
- ``PredSim``: cross-entropy and similarity matching (A. Nokland and L. Eidnes, ICML 2019,
  arXiv:1901.06656);
- ``InfoPro``: cross-entropy and reconstruction of the image (Y. Wang et al., ICLR 2021,
  arXiv:2101.10832).

Every head has ``forward(h) -> logits`` and ``loss(h, x, y) -> scalar``. A module without ``loss``
is trained by the cross-entropy of its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.core.linalg import ridge
from lib.core.losses import supcon


class LocalBlocks(nn.Module):
    """Blocks, each trained by the loss of its own head; ``heads[-1]`` is the classifier.

    Raises:
        ValueError: no blocks, or not one head for each block.
    """

    def __init__(self, blocks: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(blocks) < 1 or len(heads) != len(blocks):
            raise ValueError(
                f"{len(blocks)} blocks and {len(heads)} heads: allowed is one or more blocks and "
                "one head for each"
            )
        self.blocks, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b classes"]:
        """The primary network alone: blocks in order, then the classifier."""
        for block in self.blocks:
            x = block(x)
        return self.heads[-1](x)

    def hidden(self, x: Float[Tensor, "b ..."]) -> list[Tensor]:
        """``h_l`` of every block."""
        out = []
        for block in self.blocks:
            out.append(x := block(x))
        return out

    def local_losses(self, x: Float[Tensor, "b ..."], y: Int[Tensor, "b"]) -> Iterator[Tensor]:
        """The blocks' losses, one after another: block ``l + 1`` runs when its loss is asked for.

        Whoever calls ``backward`` on a loss before asking for the next never holds the activations
        of two blocks at once. Summing them first gives the same gradients and saves no memory.
        """
        h = x
        for block, head in zip(self.blocks, self.heads):
            h = block(h.detach())
            yield head_loss(head, h, x, y)

    def local_step(self, x: Float[Tensor, "b ..."], y: Int[Tensor, "b"]) -> list[Tensor]:
        """Forward and backward, block by block; gradients are added to every parameter's ``grad``.

        Returns the losses, detached.
        """
        losses = []
        for loss in self.local_losses(x, y):
            loss.backward()
            losses.append(loss.detach())
        return losses

    def primary_parameters(self) -> list[nn.Parameter]:
        """What inference needs: the blocks' parameters and the classifier's."""
        return [*self.blocks.parameters(), *self.heads[-1].parameters()]


def head_loss(head: nn.Module, h: Tensor, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
    """``head.loss(h, x, y)`` if the head has one, else the mean cross-entropy of ``head(h)``."""
    own = getattr(head, "loss", None)
    return F.cross_entropy(head(h), y) if own is None else own(h, x, y)


def cut(layers: Sequence[nn.Module], k: int) -> list[nn.Sequential]:
    """``layers`` in ``k`` consecutive blocks, as even as can be; the first ones take the remainder.

    Raises:
        ValueError: ``k`` outside 1..len(layers).
    """
    layers = list(layers)
    if not 1 <= k <= len(layers):
        raise ValueError(f"k={k}: allowed is 1 to the number of layers, {len(layers)}")
    size, extra = divmod(len(layers), k)
    ends = [size * i + min(i, extra) for i in range(k + 1)]
    return [nn.Sequential(*layers[a:b]) for a, b in zip(ends, ends[1:])]


class PoolLinear(nn.Module):
    """Global average pooling over places, if there are any, and a linear map."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, h: Float[Tensor, "b c ..."]) -> Float[Tensor, "b classes"]:
        return self.linear(pooled(h))


class DGL(nn.Module):
    """Average pooling to a quarter of the side, three pointwise convolutions, 2 x 2, three layers.

    The auxiliary network "MLP-SR" of decoupled greedy learning. On a map whose side is below 8 the
    pooled map would lose all places, so it keeps at least 2 x 2.

    Args:
        width: channels of the pointwise convolutions; the hidden layers have four times as many.
    """

    def __init__(self, channels: int, classes: int, width: int | None = None) -> None:
        super().__init__()
        width = width or channels
        points: list[nn.Module] = []
        for c in (channels, width, width):
            points += [nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.points = nn.Sequential(*points)
        hidden: list[nn.Module] = []
        for _ in range(2):
            hidden += [nn.Linear(4 * width, 4 * width, bias=False), nn.BatchNorm1d(4 * width)]
            hidden += [nn.ReLU()]
        self.mlp = nn.Sequential(*hidden, nn.Linear(4 * width, classes))

    def forward(self, h: Float[Tensor, "b c i j"]) -> Float[Tensor, "b classes"]:
        side = [max(2, -(-n // 4)) for n in h.shape[-2:]]
        h = self.points(F.adaptive_avg_pool2d(h, side))
        return self.mlp(F.adaptive_avg_pool2d(h, 2).flatten(1))


class PredSim(nn.Module):
    """``(1 - beta)`` cross-entropy of a pooled linear map, ``beta`` similarity matching.

    The samples of a batch should be as alike as their labels: the mean squared difference between
    the cosine similarities of a 3 x 3 convolution of ``h`` and those of the one-hot labels.
    """

    def __init__(self, channels: int, classes: int, beta: float = 0.99) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta}: allowed is 0 to 1")
        self.classes, self.beta = classes, beta
        self.predict = PoolLinear(channels, classes)
        self.project = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, h: Float[Tensor, "b c i j"]) -> Float[Tensor, "b classes"]:
        return self.predict(h)

    def loss(self, h: Float[Tensor, "b c i j"], x: Tensor, y: Int[Tensor, "b"]) -> Tensor:
        wanted = similarity(F.one_hot(y, self.classes).to(h.dtype))
        # A channel enters by how much it varies over places, as in the authors' program.
        z = self.project(h).flatten(2)
        found = similarity(z.std(-1) if z.shape[-1] > 1 else z.flatten(1))
        match = F.mse_loss(found, wanted)
        return (1 - self.beta) * F.cross_entropy(self(h), y) + self.beta * match


def similarity(z: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Cosine similarities of rows from which their own mean was taken."""
    z = z - z.mean(1, keepdim=True)
    z = z / (z.norm(dim=1, keepdim=True) + 1e-8)
    return z @ z.T


class InfoPro(nn.Module):
    """``label`` times a classification loss and ``image`` times a reconstruction loss.

    Classification reads a convolution by two and two linear layers: the cross-entropy of logits, or
    with ``contrast`` the supervised contrastive loss of an embedding, and then ``forward`` returns
    that embedding. Reconstruction is an upsampling decoder whose pixels are compared with the image
    by binary cross-entropy. Keeping what the image can be rebuilt from stops an early block from
    discarding what a later one will need: the paper weighs ``image`` more in early blocks and
    ``label`` more in late ones, see :func:`interpolated`.

    Args:
        colors: channels of the image, whose values are in [0, 1].
        width: units of the hidden layer, and of the embedding.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        colors: int = 3,
        width: int = 128,
        image: float = 1.0,
        label: float = 1.0,
        contrast: bool = False,
    ) -> None:
        super().__init__()
        if image < 0 or label < 0:
            raise ValueError(f"image={image}, label={label}: allowed are weights of 0 or more")
        self.image, self.label, self.contrast = image, label, contrast
        self.classify = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * channels, width),
            nn.ReLU(),
            nn.Linear(width, width if contrast else classes),
        )
        self.decode = nn.Sequential(
            nn.Conv2d(channels, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, colors, 3, padding=1),
        )

    def forward(self, h: Float[Tensor, "b c i j"]) -> Float[Tensor, "b out"]:
        return self.classify(h)

    def loss(
        self, h: Float[Tensor, "b c i j"], x: Float[Tensor, "b k u v"], y: Int[Tensor, "b"]
    ) -> Tensor:
        up = F.interpolate(h, x.shape[-2:], mode="bilinear", align_corners=False)
        rebuilt = F.binary_cross_entropy_with_logits(self.decode(up), x)
        classify = supcon if self.contrast else F.cross_entropy
        return self.label * classify(self(h), y) + self.image * rebuilt


def interpolated(first: float, last: float, n: int) -> list[float]:
    """``n`` weights from ``first`` to ``last`` in equal steps, one for each auxiliary head."""
    return [first + (last - first) * i / max(1, n - 1) for i in range(n)]


def pooled(h: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c"]:
    """Means over all axes after the second."""
    return h.flatten(2).mean(-1) if h.ndim > 2 else h


@torch.no_grad()
def probe_curve(
    layers: Sequence[Float[Tensor, "n ..."]],
    y: Int[Tensor, "n"],
    layers_test: Sequence[Float[Tensor, "m ..."]],
    y_test: Int[Tensor, "m"],
    penalty: float = 1e-2,
) -> list[float]:
    """Test accuracy of a linear probe on every layer's pooled activations, one number a layer.

    The probe is ridge regression on one-hot labels, of standardized features and a constant:
    closed form, so that the curve depends on the layers and not on how probes were trained.

    Args:
        layers: activations of the training samples, layer by layer: ``model.hidden(x)``.
        penalty: ridge, in units of the number of samples.

    Raises:
        ValueError: different numbers of layers.
    """
    if len(layers) != len(layers_test):
        raise ValueError(f"{len(layers)} layers for training, {len(layers_test)} for testing")
    targets = F.one_hot(y).double()
    center = targets.mean(0)
    curve = []
    for h, h_test in zip(layers, layers_test):
        a, b = pooled(h).double(), pooled(h_test).double()
        mean, std = a.mean(0), a.std(0).clamp_min(1e-12)
        a, b = (a - mean) / std, (b - mean) / std
        w = ridge(a, targets - center, penalty * len(a))
        curve.append(float(((b @ w + center).argmax(1) == y_test).double().mean()))
    return curve
