"""Routes to recognize places on, and the descriptors that the networks are compared with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.core.data import patches, photographs

GREY = (0.299, 0.587, 0.114)
MARGIN = 4
"""Pixels around a window of the photograph, so that a later view can be shifted."""


def windows(places: int, gen: torch.Generator, size: int = 84) -> Float[Tensor, "p side side"]:
    """Places: grey windows of two photographs, values 0 to 255, with ``MARGIN`` pixels around."""
    if places < 1:
        raise ValueError(f"places={places}: allowed is 1 or more")
    weights = torch.tensor(GREY).view(3, 1, 1)
    grey = [255 * (image * weights).sum(0, keepdim=True) for image in photographs()]
    return patches(grey, size + 2 * MARGIN, places, gen)[:, 0]


def view(
    scene: Float[Tensor, "p side side"],
    *,
    side: int = 14,
    contrast: float = 1.0,
    blur: bool = False,
    noise: float = 0.0,
    shift: tuple[int, int] = (0, 0),
    gen: torch.Generator | None = None,
    patch: int = 7,
) -> Float[Tensor, "p pixels"]:
    """One traverse: the places as they look on another day, as pixels 0 to 255 for the network.

    Shift, contrast about the mean, blur (3 x 3), noise of standard deviation ``noise`` in the
    photograph's units, then an average over cells to ``side`` x ``side`` and
    :func:`patch_normalize`.

    Raises:
        ValueError: a shift beyond the margin, noise without ``gen``, a side that does not divide.
    """
    size = scene.shape[-1] - 2 * MARGIN
    if max(map(abs, shift)) > MARGIN:
        raise ValueError(f"shift={shift}: allowed are at most {MARGIN} pixels")
    if noise < 0:
        raise ValueError(f"noise={noise}: allowed are 0 and positive numbers")
    if noise and gen is None:
        raise ValueError("gen=None: noise needs a generator")
    if side < 1 or size < side or size % side:
        raise ValueError(f"side={side}: allowed are divisors of the window's {size} pixels")
    top, left = MARGIN + shift[0], MARGIN + shift[1]
    x = scene[:, top : top + size, left : left + size]
    mean = x.mean((1, 2), keepdim=True)
    x = mean + contrast * (x - mean)
    if blur:
        x = F.avg_pool2d(F.pad(x[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    if noise:
        x = x + noise * torch.randn(x.shape, generator=gen).to(x)
    x = F.avg_pool2d(x[:, None], size // side)[:, 0]
    return patch_normalize(x, patch).flatten(1)


def traverses(
    places: int, gen: torch.Generator, side: int = 14
) -> dict[str, Float[Tensor, "p pixels"]]:
    """Four traverses of one procedural route: two to learn from, one to calibrate, one to query.

    The first is clean, the others differ in contrast, sharpness, noise and viewpoint.
    """
    scene = windows(places, gen)
    look = {
        "reference 1": {},
        "reference 2": {"contrast": 0.8, "blur": True, "noise": 3.0, "shift": (2, -2)},
        "calibration": {"contrast": 1.15, "noise": 6.0, "shift": (-2, 3)},
        "query": {"contrast": 0.7, "blur": True, "noise": 5.0, "shift": (3, 2)},
    }
    return {name: view(scene, side=side, gen=gen, **how) for name, how in look.items()}


def patch_normalize(
    x: Float[Tensor, "b h w"], patch: int = 7, how: Literal["tiles", "sliding"] = "tiles"
) -> Float[Tensor, "b h w"]:
    """Contrast made equal everywhere, as pixels 0 to 255.

    ``"tiles"`` standardizes squares of ``patch`` pixels, ``127 + 60 z``, clipped. ``"sliding"`` is
    the paper's code: each pixel by mean and deviation of the ``patch`` x ``patch`` pixels around
    it (fewer at the border), ``z`` clipped to [-1, 1] and spread over 0 to 255. A constant
    surrounding gives ``z = 0``.

    Raises:
        ValueError: tiles that do not fit, a sliding patch of even size, an unknown ``how``.
    """
    b, h, w = x.shape
    if patch < 1:
        raise ValueError(f"patch={patch}: allowed is 1 or more")
    if how == "tiles":
        if h % patch or w % patch:
            raise ValueError(f"patch={patch}: allowed are common divisors of {h} and {w}")
        tiles = x.view(b, h // patch, patch, w // patch, patch)
        spread = tiles.std((2, 4), correction=0, keepdim=True)
        z = (tiles - tiles.mean((2, 4), keepdim=True)) / spread.clamp_min(1e-6)
        return (127 + 60 * z).clamp(0, 255).view(b, h, w)
    if how != "sliding":
        raise ValueError(f"how={how!r}: allowed are 'tiles' and 'sliding'")
    if patch % 2 == 0:
        raise ValueError(f"patch={patch}: allowed are odd numbers")
    near = lambda t: F.avg_pool2d(
        t[:, None], patch, 1, padding=patch // 2, count_include_pad=False
    )[:, 0]
    mean = near(x.double())
    spread = (near(x.double().square()) - mean.square()).clamp_min(0).sqrt()
    z = torch.where(spread > 1e-6, (x - mean) / spread.clamp_min(1e-6), 0.0)
    return (127.5 * (1 + z.clamp(-1, 1))).to(x.dtype)


def folder_traverse(
    folder: str | Path, side: int = 28, skip: int = 1, places: int | None = None
) -> Float[Tensor, "p pixels"]:
    """A traverse from a folder of pictures in order of name, every ``skip``-th of them.

    For Nordland or Oxford RobotCar, which have to be downloaded. Needs Pillow.

    Raises:
        FileNotFoundError: no pictures there. ValueError: fewer than ``places``.
    """
    from PIL import Image

    if skip < 1:
        raise ValueError(f"skip={skip}: allowed is 1 or more")
    names = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in (".png", ".jpg"))
    if not names:
        raise FileNotFoundError(f"{folder}: no .png or .jpg pictures there")
    names = names[::skip][:places]
    if places is not None and len(names) < places:
        raise ValueError(f"places={places}: {folder} has {len(names)} with skip={skip}")
    rows = []
    for name in names:
        picture = Image.open(name).convert("L").resize((side, side), Image.Resampling.BILINEAR)
        rows.append(torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(side, side))
    return patch_normalize(torch.stack(rows), how="sliding").flatten(1)


# --------------------------------------------------------------------------- baselines


def sad(query: Float[Tensor, "b i"], reference: Float[Tensor, "t p i"]) -> Float[Tensor, "b p"]:
    """Minus the sum of absolute differences of pixels, best over the reference traverses."""
    _same(query, reference)
    return -torch.stack([torch.cdist(query, r, p=1) for r in reference]).amin(0)


def cosine(query: Float[Tensor, "b d"], reference: Float[Tensor, "t p d"]) -> Float[Tensor, "b p"]:
    """Cosine of descriptors, best over the reference traverses."""
    _same(query, reference)
    q, r = F.normalize(query, dim=-1), F.normalize(reference, dim=-1)
    return (q @ r.mT).amax(0)


def hog(pixels: Float[Tensor, "*b i"], cell: int = 7, bins: int = 8) -> Float[Tensor, "*b d"]:
    """Histograms of oriented gradients: one per square of ``cell`` pixels, unsigned, normalized.

    Raises:
        ValueError: pixels that are no square image, or a cell that does not divide it.
    """
    side = _side(pixels)
    if cell < 1 or side % cell:
        raise ValueError(f"cell={cell}: allowed are divisors of the side {side}")
    votes = _votes(pixels, bins)
    cells = F.normalize(F.avg_pool2d(votes, cell) * cell**2, dim=1)
    return cells.reshape(*pixels.shape[:-1], -1)


def local_descriptors(
    pixels: Float[Tensor, "*b i"], size: int = 6, stride: int = 2, bins: int = 8
) -> Float[Tensor, "*b l d"]:
    """Gradient histograms of 2 x 2 cells on a dense grid of windows, as square roots of shares.

    Raises:
        ValueError: a window of odd size or larger than the image, pixels that are no square image.
    """
    side, cell = _side(pixels), size // 2
    if stride < 1:
        raise ValueError(f"stride={stride}: allowed is 1 or more")
    if size % 2 or not 2 <= size <= side:
        raise ValueError(f"size={size}: allowed are even numbers from 2 to {side}")
    cells = F.avg_pool2d(_votes(pixels, bins), cell, 1)
    here, there = slice(0, side - size + 1, stride), slice(cell, side - cell + 1, stride)
    window = [cells[:, :, u, v] for u in (here, there) for v in (here, there)]
    found = F.normalize(torch.cat(window, 1).flatten(2).mT, p=1.0, dim=-1).sqrt()
    return found.reshape(*pixels.shape[:-1], *found.shape[1:])


def vocabulary(
    descriptors: Float[Tensor, "*b l d"], words: int, gen: torch.Generator, rounds: int = 15
) -> Float[Tensor, "k d"]:
    """Visual words: centers of k-means over descriptors of the reference traverses.

    Raises:
        ValueError: more words than descriptors, or none.
    """
    x = descriptors.flatten(0, -2)
    if not 1 <= words <= len(x):
        raise ValueError(f"words={words}: allowed is 1 to {len(x)}, the number of descriptors")
    centers = x[torch.randperm(len(x), generator=gen)[:words].to(x.device)]
    for _ in range(rounds):
        which = F.one_hot(torch.cdist(x, centers).argmin(1), words).to(x)
        size = which.sum(0)[:, None]
        centers = torch.where(size > 0, which.T @ x / size.clamp_min(1), centers)
    return centers


def vlad(
    descriptors: Float[Tensor, "*b l d"], centers: Float[Tensor, "k d"]
) -> Float[Tensor, "*b kd"]:
    """Vector of locally aggregated descriptors: what remains after the nearest word, summed.

    Each word's sum is normalized. With :func:`local_descriptors` this is DenseVLAD in small
    (A. Torii and others, *24/7 place recognition by view synthesis*, CVPR 2015), without its
    several scales and its projection.
    """
    if descriptors.shape[-1] != centers.shape[-1]:
        raise ValueError(
            f"centers of {centers.shape[-1]} entries, descriptors of {descriptors.shape[-1]}"
        )
    which = F.one_hot(torch.cdist(descriptors, centers).argmin(-1), len(centers)).to(centers)
    rest = which.mT @ descriptors - which.sum(-2).unsqueeze(-1) * centers
    return F.normalize(rest, dim=-1).flatten(-2)


def dct(pixels: Float[Tensor, "*b i"], keep: int = 6) -> Float[Tensor, "*b d"]:
    """The lowest ``keep`` x ``keep`` coefficients of the cosine transform, without the mean."""
    side = _side(pixels)
    if not 2 <= keep <= side:
        raise ValueError(f"keep={keep}: allowed is 2 to {side}")
    n, k = torch.arange(side), torch.arange(keep)[:, None]
    basis = torch.cos(math.pi / side * (n + 0.5) * k).to(pixels) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    x = pixels.reshape(-1, side, side)
    return (basis @ x @ basis.T).flatten(1)[:, 1:].reshape(*pixels.shape[:-1], -1)


def _votes(pixels: Tensor, bins: int) -> Tensor:
    """Each pixel's gradient in the bin of its direction, "b bins side side"."""
    if bins < 1:
        raise ValueError(f"bins={bins}: allowed is 1 or more")
    side = _side(pixels)
    x = F.pad(pixels.reshape(-1, 1, side, side), (1, 1, 1, 1), mode="replicate")[:, 0]
    dx, dy = x[:, 1:-1, 2:] - x[:, 1:-1, :-2], x[:, 2:, 1:-1] - x[:, :-2, 1:-1]
    size, angle = torch.hypot(dx, dy), torch.atan2(dy, dx) % math.pi
    which = (angle / math.pi * bins).long().clamp_max(bins - 1)
    return (F.one_hot(which, bins) * size.unsqueeze(-1)).permute(0, 3, 1, 2)


def _same(query: Tensor, reference: Tensor) -> None:
    if not len(reference) or query.shape[-1] != reference.shape[-1]:
        raise ValueError(
            f"reference: {len(reference)} traverses of {reference.shape[-1]} entries a place; "
            f"allowed are 1 or more, of {query.shape[-1]} as in the query"
        )


def _side(pixels: Tensor) -> int:
    side = math.isqrt(pixels.shape[-1])
    if side**2 != pixels.shape[-1]:
        raise ValueError(f"pixels: {pixels.shape[-1]} of them; allowed are square images")
    return side
