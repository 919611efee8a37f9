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
is trained by the cross-entropy of its output. :func:`compared_heads` makes one for every block,
:func:`train` is the loop, local or end to end, and :func:`block_bytes` says what a block holds.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.core.fitting import History, progress
from lib.core.linalg import ridge
from lib.core.losses import supcon
from lib.core.meters import saved_bytes
from lib.core.schedules import schedule
from lib.core.seeds import batch_indices


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

        After its backward pass, parts of a head that have a method ``follow(block)`` are shown the
        next block, whose weights no optimizer has moved yet. Returns the losses, detached.
        """
        losses, following = [], [*list(self.blocks)[1:], None]
        for loss, head, block in zip(self.local_losses(x, y), self.heads, following):
            loss.backward()
            losses.append(loss.detach())
            for part in head.modules() if block is not None else ():
                if hasattr(part, "follow"):
                    part.follow(block)
        return losses

    def primary_parameters(self) -> list[nn.Parameter]:
        """What inference needs: the blocks' parameters and the classifier's."""
        return [*self.blocks.parameters(), *self.heads[-1].parameters()]

    def spread(self, x: Float[Tensor, "b ..."]) -> Tensor:
        """What the first block reads: ``x`` itself, unless several networks share it."""
        return x


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


def train(
    model: LocalBlocks,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, "n"],
    *,
    steps: int,
    batch: int,
    lr: float = 0.05,
    end_to_end: bool = False,
    weight_decay: float = 1e-4,
    augment: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    log: Sequence[int] = (),
    callback: Callable[[int, LocalBlocks], dict] | None = None,
    what: str = "training",
) -> History:
    """SGD with Nesterov momentum 0.9 and a cosine schedule, locally or end to end.

    Locally, an update is ``model.local_step``: every block's backward pass runs before the next
    block's forward pass.

    Args:
        end_to_end: train the primary network by back-propagation; the heads are left alone.
        augment: what is done to the samples of a batch.
        seed: of the batches.
        log: steps at which ``callback(step, model)`` is recorded; ``steps`` is the end.

    Returns:
        A row for each logged step: ``step`` and what the callback gave.

    Raises:
        ValueError: ``steps``, ``batch``, ``lr`` or ``weight_decay`` out of range, not one
            label for each sample, ``log`` without ``callback`` or outside 0..steps.
        FloatingPointError: a loss is not finite; the message names the step.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} samples x and {len(y)} labels y: allowed is one label for each")
    if steps < 0 or not 1 <= batch <= len(x):
        raise ValueError(
            f"steps={steps}, batch={batch}: allowed are 0 or more, and 1 to {len(x)} samples"
        )
    if not lr > 0 or not weight_decay >= 0:
        raise ValueError(f"lr={lr}, weight_decay={weight_decay}: allowed are > 0 and >= 0")
    if log and (callback is None or not all(0 <= t <= steps for t in log)):
        raise ValueError(f"log={list(log)}: allowed are steps 0 to {steps}, with a callback")
    parameters = model.primary_parameters() if end_to_end else model.parameters()
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": weight_decay, "foreach": True}
    optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=lr, **options)
    decay = schedule("cosine", steps) if steps else None
    history, start = History(), time.perf_counter()
    for step in progress(range(steps + 1), what):
        if step in log:
            with torch.no_grad():
                history.rows.append({"step": step, **callback(step, model)})
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * decay(step)
        index = batch_indices(len(x), batch, step, seed).to(x.device)
        samples = x[index] if augment is None else augment(x[index])
        optimizer.zero_grad(set_to_none=True)
        if end_to_end:
            losses = [end_to_end_step(model, samples, y[index])]
        else:
            losses = model.local_step(samples, y[index])
        if not math.isfinite(total := float(sum(losses))):
            raise FloatingPointError(f"the losses add up to {total} at step {step}: a smaller lr?")
        optimizer.step()
    history.seconds = time.perf_counter() - start
    return history


def end_to_end_step(
    model: LocalBlocks,
    x: Float[Tensor, "b ..."],
    y: Int[Tensor, "b"],
    segments: int | None = None,
) -> Tensor:
    """Back-propagation through the primary network; returns the loss, detached.

    Args:
        segments: keep only what passes between so many segments, and run each one again in the
            backward pass (gradient checkpointing). None keeps everything. A segment that runs twice
            updates the running averages of its batch normalizations twice.

    Raises:
        ValueError: ``segments`` outside 1..number of blocks.
    """
    if segments is not None and not 1 <= segments <= len(model.blocks):
        raise ValueError(
            f"segments={segments}: allowed is 1 to the number of blocks, {len(model.blocks)}"
        )
    h = model.spread(x)
    if segments is None:
        for block in model.blocks:
            h = block(h)
    else:
        # The first input must ask for a gradient, or a segment's parameters get none.
        h = h.detach().requires_grad_()
        for segment in cut(list(model.blocks), segments):
            h = checkpoint(segment, h, use_reentrant=True)
    loss = head_loss(model.heads[-1], h, x, y)
    loss.backward()
    return loss.detach()


@torch.no_grad()
def accuracy(
    model: LocalBlocks, x: Float[Tensor, "n ..."], y: Int[Tensor, "n"], chunk: int = 1024
) -> list[float]:
    """Share of right answers of the primary network in evaluation mode.

    A list, with one number for each network: one, unless several run side by side.

    Raises:
        ValueError: no samples, not one label for each, or ``chunk`` below 1.
    """
    if len(x) < 1 or len(x) != len(y) or chunk < 1:
        raise ValueError(
            f"{len(x)} samples x, {len(y)} labels y, chunk={chunk}: allowed are one or more "
            "samples, one label for each, and a chunk of 1 or more"
        )
    training = model.training
    model.eval()
    logits = torch.cat([model(part) for part in x.split(chunk)], -2)
    model.train(training)
    right = (logits.argmax(-1) == y).double().mean(-1)
    return right.reshape(-1).tolist()


def block_bytes(model: LocalBlocks, x: Float[Tensor, "b ..."], y: Int[Tensor, "b"]) -> list[int]:
    """Bytes that each block and its head keep for their backward pass; weights not counted.

    Training locally needs the largest of them at a time; the end-to-end pass needs those of all
    blocks at once, without their heads. A copy is measured: ``model`` stays as it is.
    """
    model = copy.deepcopy(model)
    h, kept = model.spread(x), []
    for block, head in zip(model.blocks, model.heads):
        kept.append(saved_bytes(partial(_loss_of, block, head, h, x, y), exclude=model))
        with torch.no_grad():
            h = block(h)
    return kept


def _loss_of(block: nn.Module, head: nn.Module, h: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return head_loss(head, block(h), x, y)


# ------------------------------------------------------------------------------------------- heads


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
    the cosine similarities of a 3 x 3 convolution of ``h`` and those of the one-hot labels. The
    authors' classifier reads a coarse map of about 1,024 numbers; here it reads channel means.
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


HEADS = ("0c1f", "dgl", "predsim", "infopro")


def compared_heads(
    head: Literal["0c1f", "dgl", "predsim", "infopro"],
    channels: Sequence[int],
    classes: int,
    *,
    colors: int = 3,
    image: tuple[float, float] = (5.0, 0.2),
    label: tuple[float, float] = (0.05, 0.5),
    beta: tuple[float, float] = (0.99, 0.99),
) -> list[nn.Module]:
    """Heads that papers compare with, one for each of the blocks' output ``channels``.

    ``"0c1f"`` is :class:`PoolLinear`: no convolution, one fully connected layer. Weights of losses
    are (first, last) and interpolated over the heads; the defaults are those of the ResNet-32 runs
    of AugLocal's authors (arXiv:2402.17318).

    Args:
        colors: channels of the image, for InfoPro's decoder.
        image, label: InfoPro's weights of reconstruction and classification.
        beta: PredSim's weight of similarity matching; the rest weighs the cross-entropy.

    Raises:
        ValueError: an unknown ``head``, or ``channels`` or ``classes`` below 1.
    """
    if head not in HEADS:
        raise ValueError(f"head={head!r}: allowed are {', '.join(map(repr, HEADS))}")
    if classes < 1 or any(c < 1 for c in channels):
        raise ValueError(f"channels={list(channels)}, classes={classes}: allowed is 1 or more")
    images, labels, betas = (interpolated(*w, len(channels)) for w in (image, label, beta))
    make = {
        "0c1f": lambda i, c: PoolLinear(c, classes),
        "dgl": lambda i, c: DGL(c, classes),
        "predsim": lambda i, c: PredSim(c, classes, betas[i]),
        "infopro": lambda i, c: InfoPro(c, classes, colors, image=images[i], label=labels[i]),
    }
    return [make[head](i, c) for i, c in enumerate(channels)]


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
