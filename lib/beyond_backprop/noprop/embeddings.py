"""Where the labels live: the class embeddings, and what goes into a denoising block."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.core.linalg import random_orthogonal
from lib.models.init import initialize_
from lib.models.positions import sinusoidal

Output = Literal["softmax", "distance", "direct"]


def make_class_embedding(
    kind: Literal["one-hot", "orthogonal", "prototypes"],
    classes: int,
    dim: int | None = None,
    x: Float[Tensor, "n ..."] | None = None,
    y: Int[Tensor, "n"] | None = None,
    gen: torch.Generator | None = None,
) -> Float[Tensor, "{classes} d"]:
    """``W_embed``: row ``y`` is ``u_y``, the clean target of every block.

    - ``"one-hot"``: the identity, meant to stay fixed.
    - ``"orthogonal"``: orthonormal rows, a start for learning. With ``dim < classes`` the rows
      cannot be orthogonal; the columns are, and the mean squared norm of a row stays 1.
    - ``"prototypes"``: one input of each class, a start for learning in the space of the inputs:
      the sample with the smallest median distance to its class mates.

    Args:
        dim: length of an embedding, for "orthogonal"; ``classes`` if None.
        x, y: training inputs and labels, for "prototypes".
        gen: source of the random numbers of "orthogonal".

    Raises:
        ValueError: an unknown kind, sizes below 1, arguments that do not go with the kind, or a
            class without samples.
    """
    if kind not in ("one-hot", "orthogonal", "prototypes"):
        raise ValueError(f"kind={kind!r}: allowed are 'one-hot', 'orthogonal' and 'prototypes'")
    if classes < 2 or (dim is not None and dim < 1):
        raise ValueError(f"classes={classes}, dim={dim}: allowed are classes >= 2 and dim >= 1")
    if kind == "prototypes":
        if x is None or y is None:
            raise ValueError("kind='prototypes' needs x and y, the training inputs and labels")
        check_batch(x, y, classes)
        if dim not in (None, x[0].numel()):
            raise ValueError(
                f"dim={dim}: a prototype is an input, of {x[0].numel()} numbers: leave dim out"
            )
        return torch.stack([_central(x.flatten(1), y, k) for k in range(classes)])
    if x is not None or y is not None:
        raise ValueError(f"kind={kind!r} does not look at x and y: leave them out")
    if kind == "one-hot":
        if dim not in (None, classes):
            raise ValueError(f"dim={dim}: a one-hot embedding has dim = classes = {classes}")
        return torch.eye(classes)
    if gen is None:
        raise ValueError("gen=None: kind='orthogonal' draws random numbers and needs a generator")
    dim = classes if dim is None else dim
    size = max(classes, dim)
    rows = random_orthogonal(size, gen).to(torch.get_default_dtype())[:classes, :dim]
    return rows * (max(1.0, classes / dim) ** 0.5)


def _central(x: Tensor, y: Tensor, k: int) -> Tensor:
    members = x[y == k]
    if len(members) == 0:
        raise ValueError(f"y holds no sample of class {k}: it has no prototype")
    return members[torch.cdist(members, members).median(1).values.argmin()].clone()


class MLPEncoder(nn.Sequential):
    """Features of the raw input: two linear layers with batch norm and ReLU, ``"b n" -> "b w"``."""

    def __init__(self, n_in: int, width: int = 64) -> None:
        if n_in < 1 or width < 1:
            raise ValueError(f"n_in={n_in}, width={width}: allowed is 1 or more")
        super().__init__(
            nn.Flatten(),
            *(nn.Linear(n_in, width), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
        )
        self.n_in, self.width = n_in, width

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b w"]:
        if x.ndim < 2 or x[:1].numel() not in (0, self.n_in):
            raise ValueError(
                f"x has shape {tuple(x.shape)}: allowed are samples of {self.n_in} numbers"
            )
        return super().forward(x)


class CNNEncoder(nn.Sequential):
    """Three convolutions, each halved by pooling, and a linear layer: ``"b c h w" -> "b width"``.

    Args:
        size: side of the square image, 8 or more.
    """

    def __init__(self, channels: int = 3, size: int = 32, width: int = 256) -> None:
        if channels < 1 or size < 8 or width < 1:
            raise ValueError(
                f"channels={channels}, size={size}, width={width}: allowed are channels and width "
                "of 1 or more and images of at least 8 x 8"
            )
        layers: list[nn.Module] = []
        sizes = (channels, 32, 64, 128)
        for n, m in zip(sizes, sizes[1:]):
            layers += [nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        flat = 128 * (size // 8) ** 2
        layers += [nn.Flatten(), nn.Linear(flat, width), nn.BatchNorm1d(width)]
        super().__init__(*layers)
        self.channels, self.size, self.width = channels, size, width

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        if x.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(
                f"x has shape {tuple(x.shape)}: allowed are images of "
                f"{(self.channels, self.size, self.size)}"
            )
        return super().forward(x)


class LabelDenoiser(nn.Module):
    """One block: from a noised label and the input to an estimate of the clean label.

    The input goes through ``x_encoder``, the noised label through ``h = A z``, ``h + B relu(h)``;
    a head joins them. With ``output``

    - ``"softmax"``: the head gives class logits, and the estimate is the mixture of the class
      embeddings with these probabilities. It cannot leave their convex hull.
    - ``"distance"``: the head gives a point, a class's logit is minus half the squared distance of
      its embedding, and the estimate is again the mixture. (The paper compares two forms of class
      probabilities; that this is its second one is not confirmed.)
    - ``"direct"``: the point itself is the estimate. Flow matching's velocity has this form.

    Args:
        x_encoder: from the input to ``x_encoder.width`` features.
        time: whether the block is told the time, as sines and cosines that a linear layer reads.
        gen: source of the initial weights of block and encoder; torch's global one if None.

    Raises:
        ValueError: an unknown ``output``, or a size below 1.
    """

    def __init__(
        self,
        x_encoder: nn.Module,
        classes: int,
        dim: int,
        width: int = 64,
        output: Output = "softmax",
        time: bool = False,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(getattr(x_encoder, "width", None), int):
            raise ValueError(
                f"x_encoder is a {type(x_encoder).__name__} without width: it must say, as an "
                "attribute, how many features it gives"
            )
        if output not in ("softmax", "distance", "direct"):
            raise ValueError(f"output={output!r}: allowed are 'softmax', 'distance' and 'direct'")
        if classes < 2 or dim < 1 or width < 2:
            raise ValueError(
                f"classes={classes}, dim={dim}, width={width}: allowed are classes >= 2, dim >= 1 "
                "and width >= 2"
            )
        self.output, self.x_encoder, self.classes, self.dim = output, x_encoder, classes, dim
        self.lift = nn.Linear(dim, width)  # A
        self.mix = nn.Linear(width, width)  # B
        self.clock = nn.Linear(TIME_CODE, width) if time else None
        joined = x_encoder.width + width * (2 if time else 1)
        self.head = nn.Sequential(
            nn.Linear(joined, width),
            nn.ReLU(),
            nn.Linear(width, classes if output == "softmax" else dim),
        )
        initialize_(self, "torch", gen=gen)

    def forward(
        self,
        z: Float[Tensor, "b d"],
        x: Float[Tensor, "b ..."],
        embedding: Float[Tensor, "c d"],
        t: Float[Tensor, "b"] | None = None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b c"]]:
        """The estimate of the clean label ``u_hat``, and the class logits behind it."""
        if (t is None) != (self.clock is None):
            raise ValueError("t: a block made with time=True needs the time, any other takes none")
        if embedding.shape != (self.classes, self.dim) or z.shape != (len(x), self.dim):
            raise ValueError(
                f"embedding {tuple(embedding.shape)}, z {tuple(z.shape)}, {len(x)} inputs: this "
                f"block takes an embedding of {(self.classes, self.dim)} and a z for every input"
            )
        h = self.lift(z)
        parts = [self.x_encoder(x), h + self.mix(torch.relu(h))]
        if t is not None:
            parts.append(torch.relu(self.clock(sinusoidal(1000 * t, TIME_CODE))))
        out = self.head(torch.cat(parts, 1))
        if self.output == "softmax":
            return out.softmax(1) @ embedding, out
        logits = out @ embedding.T - 0.5 * embedding.square().sum(1)
        return (out if self.output == "direct" else logits.softmax(1) @ embedding), logits


TIME_CODE = 32  # numbers that tell a block the time


def check_batch(x: Float[Tensor, "b ..."], y: Int[Tensor, "b"], classes: int) -> None:
    """Inputs and labels that belong together.

    Whether numbers are finite and labels in range is looked at on the CPU only: a GPU would have
    to be waited for.

    Raises:
        ValueError: no samples, other labels than samples, labels of another kind or outside
            ``0..classes - 1``, inputs that are not finite.
    """
    if len(x) == 0 or y.shape != (len(x),) or y.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)}, y {tuple(y.shape)} of {y.dtype}: allowed are one or "
            "more samples and an integer label for each"
        )
    if y.device.type == "cpu" and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"y holds {int(y.min())} to {int(y.max())}: allowed are labels from 0 to {classes - 1}"
        )
    if x.device.type == "cpu" and not torch.isfinite(x).all():
        raise ValueError("x holds values that are not finite: a batch norm would keep them")


def check_noise(eps: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError where the noise handed in has another shape than is drawn otherwise."""
    if eps.shape != shape:
        raise ValueError(f"eps has shape {tuple(eps.shape)}: allowed is {tuple(shape)}")


def check_weight(**weights: float) -> None:
    """Raises ValueError where one of the numbers, given by name, is negative or not finite."""
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value}: allowed is a finite number of 0 or more")


def readout_of(embedding: Float[Tensor, "c d"], gen: torch.Generator | None) -> nn.Linear:
    """``p_out``: a linear layer from an embedding to class logits, with PyTorch's usual start."""
    if embedding.ndim != 2 or len(embedding) < 2 or not embedding.isfinite().all():
        raise ValueError(
            f"embedding has shape {tuple(embedding.shape)}: allowed is a matrix of finite numbers "
            "with a row for each of two or more classes"
        )
    classes, dim = embedding.shape
    layer = nn.Linear(dim, classes, dtype=embedding.dtype)
    initialize_(layer, "torch", gen=gen)
    return layer


def parameter_groups(model: nn.Module, lr: float = 2e-3, readout_lr: float = 3e-2) -> list[dict]:
    """For an optimizer: the parameters of ``model.readout`` at a rate of their own.

    The readout sees labels that are almost clean and starts cold: at the rate of the rest it would
    be the last part to learn.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for n, p in named if not n.startswith("readout")], "lr": lr},
        {"params": [p for n, p in named if n.startswith("readout")], "lr": readout_lr},
    ]
