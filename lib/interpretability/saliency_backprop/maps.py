"""Maps of a model at points of the grid, known methods among them, and maps of several layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.hooks import patch, record
from lib.interpretability.saliency_backprop.grid import (
    AGGREGATES,
    NEEDS,
    PHASES,
    _in_grid,
    closed_form,
    factors,
    finish,
)
from lib.kernels.saliency_stats import saliency_stats
from lib.models.attribution.methods import (
    Layer,
    Target,
    layer_gradients,
    no_mixing,
    pick,
    upsample,
)


def grid_saliency(
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Target,
    layer: str,
    phase: str = "conv1x1",
    how: str = "norm",
    mean_gradient: bool = False,
) -> Float[Tensor, "b 1 i j"]:
    """The saliency map at one layer and one point of the grid, at the layer's resolution.

    Args:
        target: class to explain, one per image or one for all.
        layer: name of a module, or ``"input"`` for x itself. With ``phase="real"`` it must be a
            convolution.
        mean_gradient: replace g by its mean over space first, as Grad-CAM does.

    Raises:
        ValueError: as ``extract`` and ``layer_gradients`` do; ``"real"`` at another module.
    """
    conv = None
    with ExitStack() as stack:
        if phase == "real":
            conv = dict(model.named_modules()).get(layer)
            if not isinstance(conv, nn.Conv2d):
                raise ValueError(f"layer={layer!r} is no nn.Conv2d, which phase='real' needs")
            inputs = stack.enter_context(record(model, [layer], of="input"))
        f, g = layer_gradients(model, x, target, [layer])[layer]
        if phase == "real":
            f = inputs[layer]
    if mean_gradient:
        g = g.mean((2, 3), keepdim=True).expand_as(g)
    return closed_form(f, g, phase, how, conv)


def normgrad(
    model: nn.Module, x: Float[Tensor, "b c h w"], target: Target, layer: str
) -> Float[Tensor, "b 1 i j"]:
    """NormGrad: the Frobenius norm of an identity 1x1 convolution's gradient at each site.

    In closed form ||f_u|| ||g_u||.
    """
    return grid_saliency(model, x, target, layer, "conv1x1", "norm")


def grad_cam_point(
    model: nn.Module, x: Float[Tensor, "b c h w"], target: Target, layer: str
) -> Float[Tensor, "b 1 i j"]:
    """Grad-CAM as a point of the grid: scaling and sum of the mean gradient, then ReLU."""
    return grid_saliency(model, x, target, layer, "scaling", "sum", mean_gradient=True).clamp(min=0)


def grid_maps(
    layers: dict[str, Layer],
    phases: Sequence[str] = PHASES,
    hows: Sequence[str] = tuple(AGGREGATES),
) -> dict[tuple[str, str, str], Float[Tensor, "b 1 h w"]]:
    """Every map of the grid at every layer, from one backward pass and one read of each layer.

    Raises:
        ValueError: unknown phase or aggregation.
    """
    _in_grid(phases, hows)
    maps, needed = {}, "".join({part for phase in phases for part in NEEDS[phase]})
    for name, (f, g) in layers.items():
        stats = saliency_stats(f, g, needed)
        for phase in phases:
            vectors = factors(stats, phase)
            for how in hows:
                maps[name, phase, how] = finish(vectors, how)
    return maps


def identity_gradient(
    model: nn.Module, x: Float[Tensor, "b c h w"], target: Target, layer: str, phase: str
) -> Float[Tensor, "k"]:
    """Put a real identity layer behind ``layer`` and return its parameters' gradient, by autograd.

    Equals the sum over images and sites of ``extract``: the statement the framework rests on.

    Raises:
        ValueError: a phase that is not one of the five identities, or a batch-normalization layer
            in training mode.
    """
    no_mixing(model)
    if phase not in PHASES:
        raise ValueError(f"phase={phase!r}: allowed are {', '.join(PHASES)}")
    weight: list[Tensor] = []

    def insert(out: Tensor) -> Tensor:
        c = out.shape[1]
        delta = out.new_zeros(1, 1, 3, 3)
        delta[..., 1, 1] = 1
        eye = torch.eye(c, dtype=out.dtype, device=out.device)[:, :, None, None]
        w = {
            "bias": out.new_zeros(1, c, 1, 1),
            "scaling": out.new_ones(1, c, 1, 1),
            "conv1x1": eye,
            "conv3x3": eye * delta,
            "conv3x3_depthwise": delta.repeat(c, 1, 1, 1),
        }[phase].requires_grad_()
        weight.append(w)
        if phase == "bias":
            return out + w
        if phase == "scaling":
            return out * w
        pad, groups = (0, 1) if phase == "conv1x1" else (1, 1)
        return F.conv2d(out, w, padding=pad, groups=c if "depthwise" in phase else groups)

    with torch.enable_grad(), patch(model, {layer: insert}):
        score = pick(model(x), target).sum()
    return torch.autograd.grad(score, weight[0])[0].flatten()


def combine_layers(
    maps: Sequence[Float[Tensor, "b 1 _ _"]],
    size: int | tuple[int, int],
    weights: Sequence[float] | None = None,
    how: str = "product",
    floor: float = 1e-3,
) -> Float[Tensor, "b 1 i j"]:
    """Combine maps of several layers at ``size``.

    Each map is upsampled bilinearly and scaled to [0, 1] per image; ``floor`` is added, because
    one map's zero would otherwise decide alone. With ``weights=None`` the result is the plain
    product. With weights w, divided by their sum, it is the geometric mean prod m_j^w_j; with
    ``how="sum"`` the arithmetic one.

    Raises:
        ValueError: no maps, weights that do not fit or are negative, a negative floor, unknown
            ``how``.
    """
    shares = _shares(len(maps), weights, how, floor)
    scaled = [min_max(upsample(m, size)) + floor for m in maps]
    if how == "sum":
        return sum(w * m for w, m in zip(shares, scaled))
    # In logarithms, so that many small factors do not underflow.
    logs = [m.clamp(min=torch.finfo(m.dtype).tiny).log() for m in scaled]
    return sum(w * m for w, m in zip(shares, logs)).exp()


def _shares(n: int, weights: Sequence[float] | None, how: str, floor: float) -> list[float]:
    """The weight of each of ``n`` maps, after checking that the arguments belong together."""
    if how not in ("product", "sum"):
        raise ValueError(f"how={how!r}: allowed are 'product' and 'sum'")
    if n == 0 or floor < 0:
        raise ValueError(f"maps: {n}, floor={floor}: allowed are one or more, 0 or more")
    if weights is None:
        return [1.0 if how == "product" else 1 / n] * n
    if len(weights) != n or min(weights) < 0 or sum(weights) == 0:
        raise ValueError(f"weights={weights}: allowed are {n} numbers >= 0, not all zero")
    return [w / sum(weights) for w in weights]


def min_max(maps: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Each image's map moved and scaled to [0, 1]; a constant map becomes 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1)
