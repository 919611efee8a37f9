"""Saliency by backpropagation, seen as a grid: extract per site, then aggregate to one number.

S.-A. Rebuffi, R. Fong, X. Ji and A. Vedaldi, "There and Back Again: Revisiting Backpropagation
Saliency Methods", CVPR 2020, arXiv:2004.02866.

Put an identity layer with parameters w into a network. The gradient of a class score with respect
to w is a sum over image sites. Phase 1 (extract) takes one site's summand, a vector; phase 2
(aggregate) turns it into a number, and the numbers form the saliency map. The kind of identity
layer and the kind of aggregation span a grid whose points include the gradient, the linear
approximation (gradient times input) and Grad-CAM, and whose free places suggest NormGrad: the norm
of the weight gradient of an identity convolution.

Here: every phase and aggregation with closed forms and the materialized definition they must equal,
real convolutions, the named methods, combination of layers, class sensitivity, meta-saliency, and
the model-randomization check. Symbols: f is the activation "b c h w" at the probed layer, g the
gradient of the explained logit with respect to it, u a site. Signs are those of the logit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.core.data.images import KINDS, draw, scatter, texture
from lib.core.fitting import inner_sgd
from lib.core.hooks import patch, record
from lib.core.metrics import ssim
from lib.kernels.dispatch import Backend
from lib.kernels.saliency_stats import Statistics, saliency_stats
from lib.models.attribution.methods import Layer, Target, layer_gradients, pick, upsample
from lib.models.attribution.scores import rank_agreement

Saliency = Callable[[nn.Module, Tensor, Tensor], Tensor]

PHASES = ("bias", "scaling", "conv1x1", "conv3x3", "conv3x3_depthwise")
AGGREGATES = ("sum", "filter_norm", "norm", "max", "abs_max")

# Where known methods sit in the grid, as (phase, aggregation).
NAMED = {
    "gradient": ("bias", "abs_max"),
    "linear approximation": ("scaling", "sum"),
    "NormGrad": ("conv1x1", "norm"),
    "NormGrad 3x3": ("conv3x3", "norm"),
    "NormGrad scaling": ("scaling", "norm"),
    "NormGrad selective": ("scaling", "filter_norm"),
}


def extract(
    f: Float[Tensor, "b c h w"],
    g: Float[Tensor, "b o i j"],
    phase: str,
    conv: nn.Conv2d | None = None,
) -> Float[Tensor, "b k i j"]:
    """Phase 1 by its definition: each site's summand of the weight gradient, written out.

    The identity layer's parameters and their gradient at site u:

    - ``"bias"``: a bias per channel; g_u, so k = c.
    - ``"scaling"``: a factor per channel; f_u * g_u, k = c.
    - ``"conv1x1"``: g_u f_u^T, k = c c.
    - ``"conv3x3"``: g_u vec(3x3 patch of f around u)^T, zeros outside the map, k = 9 c c.
    - ``"conv3x3_depthwise"``: each channel's 3x3 patch times its g, k = 9 c.
    - ``"real"``: the network's own ``conv``, with f its input and g the gradient at its output.

    The sum over sites is the gradient of the layer's parameters, flattened. This needs k numbers
    per site: it is for looking and testing, ``closed_form`` is for use.

    Raises:
        ValueError: unknown phase, ``conv`` missing or superfluous, shapes that do not belong
            together, or a padding mode other than zeros.
    """
    window = _window(f, g, phase, conv)
    if phase == "bias":
        return g
    if phase == "scaling":
        return f * g
    patches = F.unfold(f, window.kernel, window.dilation, window.padding, window.stride)
    patches = rearrange(patches, "b (n q) u -> b n q u", n=window.groups)
    slopes = rearrange(g, "b (n o) i j -> b n o (i j)", n=window.groups)
    outer = einsum(patches, slopes, "b n q u, b n o u -> b n o q u")
    return outer.reshape(len(f), -1, *g.shape[2:])


def aggregate(t: Float[Tensor, "b k i j"], how: str) -> Float[Tensor, "b 1 i j"]:
    """Phase 2: one number per site, over the k entries of its summand.

    ``"norm"`` is the L2 norm, ``"filter_norm"`` that of the positive part ("selective").

    Raises:
        ValueError: unknown ``how``.
    """
    if how == "norm":
        return t.norm(dim=1, keepdim=True)
    if how == "filter_norm":
        return t.clamp(min=0).norm(dim=1, keepdim=True)
    if how == "sum":
        return t.sum(1, keepdim=True)
    if how == "max":
        return t.amax(1, keepdim=True)
    if how == "abs_max":
        return t.abs().amax(1, keepdim=True)
    raise ValueError(f"how={how!r}: allowed are {', '.join(AGGREGATES)}")


def closed_form(
    f: Float[Tensor, "b c h w"],
    g: Float[Tensor, "b o i j"],
    phase: str,
    how: str,
    conv: nn.Conv2d | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "b 1 i j"]:
    """``aggregate(extract(f, g, phase, conv), how)`` without ever writing the summands out.

    Raises:
        ValueError: as ``extract`` and ``aggregate`` do.
    """
    window = _window(f, g, phase, conv)
    if phase != "real":
        stats = saliency_stats(f, g, depthwise=phase == "conv3x3_depthwise", backend=backend)
        return from_statistics(stats, phase, how)
    # Groups are convolutions of their own: put them on the batch axis, then aggregate over them.
    a = rearrange(f, "b (n c) h w -> (b n) c h w", n=window.groups)
    s = rearrange(g, "b (n o) i j -> (b n) o i j", n=window.groups)
    f_stats, g_stats = (saliency_stats(t, t, backend=backend) for t in (a, s))
    parts = _outer_product(_around(f_stats, window), _of_gradient(g_stats), how)
    return aggregate(rearrange(parts, "(b n) 1 i j -> b n i j", n=window.groups), how)


def from_statistics(stats: Statistics, phase: str, how: str) -> Float[Tensor, "b 1 h w"]:
    """Any point of the grid from sums, squared parts and extremes over channels.

    For an outer product t = f g^T: sum t = sum f sum g; ||t|| = ||f|| ||g||; its positive entries
    come from factors of equal sign, so ||t+||^2 = ||f+||^2 ||g+||^2 + ||f-||^2 ||g-||^2; and its
    largest entry is one of the four products of extremes. A 3x3 patch has box sums in place of
    sums, and extremes over the neighborhood.

    Raises:
        ValueError: unknown phase or aggregation, or statistics taken without the depthwise ones.
    """
    if how not in AGGREGATES:
        raise ValueError(f"how={how!r}: allowed are {', '.join(AGGREGATES)}")
    g = _of_gradient(stats)
    if phase == "bias":
        return _elementwise(g, how)
    if phase == "scaling":
        return _elementwise(Moments(*stats[10:15]), how)
    if phase == "conv3x3_depthwise":
        if stats.d_sum is None:
            raise ValueError("stats has no depthwise part: saliency_stats(f, g, depthwise=True)")
        return _elementwise(Moments(*stats[15:20]), how)
    if phase == "conv1x1":
        return _outer_product(Moments(*stats[:5]), g, how)
    if phase == "conv3x3":
        return _outer_product(_around(stats, Window()), g, how)
    raise ValueError(f"phase={phase!r}: allowed are {', '.join(PHASES)}")


class Moments(NamedTuple):
    """Sum, sums of squared positive and negative parts, largest and smallest entry, per site."""

    sum: Tensor
    pos: Tensor
    neg: Tensor
    max: Tensor
    min: Tensor


def _elementwise(t: Moments, how: str) -> Tensor:
    if how == "norm":
        return (t.pos + t.neg).sqrt()
    if how == "filter_norm":
        return t.pos.sqrt()
    if how == "abs_max":
        return torch.maximum(t.max, -t.min)
    return t.sum if how == "sum" else t.max


def _outer_product(f: Moments, g: Moments, how: str) -> Tensor:
    if how == "norm":
        return ((f.pos + f.neg) * (g.pos + g.neg)).sqrt()
    if how == "filter_norm":
        return (f.pos * g.pos + f.neg * g.neg).sqrt()
    if how == "sum":
        return f.sum * g.sum
    corners = torch.cat([f.max * g.max, f.max * g.min, f.min * g.max, f.min * g.min], 1)
    return (corners if how == "max" else corners.abs()).amax(1, keepdim=True)


class Window(NamedTuple):
    """Geometry of a convolution."""

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def _around(stats: Statistics, window: Window) -> Moments:
    """The activation's moments over each window instead of each site; padding counts as zeros."""
    sums = torch.cat(stats[:3], 1)
    box = sums.new_ones(3, 1, *window.kernel)
    s, pos, neg = F.conv2d(
        sums, box, None, window.stride, window.padding, window.dilation, groups=3
    ).split(1, 1)
    # max_pool2d would pad with minus infinity; the zeros are entries like any other.
    py, px = window.padding
    padded = F.pad(torch.cat([stats.f_max, -stats.f_min], 1), (px, px, py, py))
    pooled = F.max_pool2d(padded, window.kernel, window.stride, 0, window.dilation)
    return Moments(s, pos, neg, pooled[:, :1], -pooled[:, 1:])


def _of_gradient(stats: Statistics) -> Moments:
    return Moments(*stats[5:10])


def _window(f: Tensor, g: Tensor, phase: str, conv: nn.Conv2d | None) -> Window:
    """The identity layer's geometry, after checking that the arguments belong together."""
    if phase not in (*PHASES, "real"):
        raise ValueError(f"phase={phase!r}: allowed are {', '.join(PHASES)} and real")
    if (conv is None) == (phase == "real"):
        need = "needs" if phase == "real" else "takes no"
        raise ValueError(f"phase={phase!r} {need} conv=")
    if phase != "real":
        if f.shape != g.shape:
            raise ValueError(f"f and g must have one shape, got {tuple(f.shape)}, {tuple(g.shape)}")
        one = phase == "conv1x1"
        size, pad = (1, 0) if one else (3, 1)
        groups = f.shape[1] if phase == "conv3x3_depthwise" else 1
        return Window((size, size), (1, 1), (pad, pad), (1, 1), groups)
    if conv.padding_mode != "zeros":
        raise ValueError(f"conv pads with {conv.padding_mode!r}; only zeros are supported")
    if isinstance(conv.padding, str):
        reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size)]
        if conv.padding == "same" and any(r % 2 for r in reach):
            raise ValueError(f"conv: padding='same' is lopsided with kernel {conv.kernel_size}")
        padding = tuple(r // 2 for r in reach) if conv.padding == "same" else (0, 0)
    else:
        padding = conv.padding
    out = conv.out_channels
    if f.shape[1] != conv.in_channels or g.shape[1] != out:
        raise ValueError(
            f"conv maps {conv.in_channels} to {out} channels; f has {f.shape[1]}, g {g.shape[1]}"
        )
    return Window(conv.kernel_size, conv.stride, padding, conv.dilation, conv.groups)


# Maps of a model


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
    layers: dict[str, Layer], phases: Sequence[str] = PHASES, hows: Sequence[str] = AGGREGATES
) -> dict[tuple[str, str, str], Float[Tensor, "b 1 h w"]]:
    """Every map of the grid at every layer, from one backward pass and one read of each layer."""
    maps = {}
    for name, (f, g) in layers.items():
        stats = saliency_stats(f, g, depthwise="conv3x3_depthwise" in phases)
        for phase in phases:
            for how in hows:
                maps[name, phase, how] = from_statistics(stats, phase, how)
    return maps


def identity_gradient(
    model: nn.Module, x: Float[Tensor, "b c h w"], target: Target, layer: str, phase: str
) -> Float[Tensor, "k"]:
    """Put a real identity layer behind ``layer`` and return its parameters' gradient, by autograd.

    Equals the sum over images and sites of ``extract``: the statement the framework rests on.

    Raises:
        ValueError: a phase that is not one of the five identities.
    """
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
    if how not in ("product", "sum"):
        raise ValueError(f"how={how!r}: allowed are 'product' and 'sum'")
    if len(maps) == 0 or floor < 0:
        raise ValueError(f"maps: {len(maps)}, floor={floor}: allowed are one or more, 0 or more")
    if weights is not None and (len(weights) != len(maps) or min(weights) < 0 or sum(weights) == 0):
        raise ValueError(f"weights={weights}: allowed are {len(maps)} numbers >= 0, not all zero")
    total = sum(weights) if weights is not None else (1.0 if how == "product" else len(maps))
    shares = [w / total for w in weights or [1.0] * len(maps)]
    scaled = [min_max(upsample(m, size)) + floor for m in maps]
    if how == "sum":
        return sum(w * m for w, m in zip(shares, scaled))
    # In logarithms, so that many small factors do not underflow.
    return sum(
        w * m.clamp(min=torch.finfo(m.dtype).tiny).log() for w, m in zip(shares, scaled)
    ).exp()


def min_max(maps: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Each image's map moved and scaled to [0, 1]; a constant map becomes 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1)


# Does the map depend on the class? On the weights?


def class_sensitivity(
    saliency: Saliency,
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    kind: str = "spearman",
) -> Float[Tensor, "b"]:
    """Correlation of each image's maps for its most and its least probable class.

    Lower is more class sensitive. Undefined (NaN) where a map is constant. The authors' code ranks
    (Spearman) maps at input resolution; here the maps are compared as ``saliency`` returns them.
    """
    with torch.no_grad():
        y = model(x)
    most, least = (saliency(model, x, t) for t in (y.argmax(1), y.argmin(1)))
    return rank_agreement(most, least, kind)


def meta_saliency(
    saliency: Saliency,
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Target,
    eps: float = 1e-3,
    order: int = 1,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ascend: bool = False,
) -> Tensor:
    """Any saliency of the network after one gradient step on the image's own loss.

    theta' = theta - eps grad loss(theta; x, c), one theta' for each image, then
    ``saliency(model with theta', x, c)``.

    Args:
        eps: size of the step. The authors' code uses 1e-4 to 1e-2 on ImageNet networks; what
            matters is how far the logits move.
        order: 1 takes theta' as a constant, as the authors' code does; 2 also differentiates
            through the step, because the activation acts on the score through theta', too.
        loss: ``(logits: "1 classes", target: "1") -> scalar``.
        ascend: step uphill instead: what would make the network worse on this image.

    Raises:
        ValueError: ``order`` is not 1 or 2, ``eps`` is negative.
    """
    if order not in (1, 2):
        raise ValueError(f"order={order}: allowed are 1 and 2")
    if eps < 0:
        raise ValueError(f"eps={eps}: allowed is 0 or more; ascend=True changes the direction")
    target = torch.as_tensor(target, device=x.device).expand(len(x))
    stepped = OneStep(model, -eps if ascend else eps, order, loss)
    maps = []
    for image, c in zip(x.split(1), target.split(1), strict=True):
        stepped.target = c
        maps.append(saliency(stepped, image, c))
    return torch.cat(maps)


class OneStep(nn.Module):
    """A model that first takes a gradient step on what it is shown, then answers.

    Module names are those of the model inside, so hooks and layer names work as before.
    """

    def __init__(self, model: nn.Module, eps: float, order: int, loss: Callable):
        super().__init__()
        self.inside, self.eps, self.order, self.loss = model, eps, order, loss
        self.target: Tensor | None = None
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        # Hooks see two passes and keep the second. With order 1, inner_sgd returns constants, so
        # nothing of the first pass is left in the graph.
        theta = {n: p.detach().requires_grad_() for n, p in self.inside.named_parameters()}

        def inner(params: dict[str, Tensor]) -> Tensor:
            return self.loss(torch.func.functional_call(self.inside, params, (x,)), self.target)

        with torch.enable_grad():
            theta = inner_sgd(theta, inner, self.eps, 1, create_graph=self.order == 2)
        return torch.func.functional_call(self.inside, theta, (x,))

    def named_modules(self, *args, **kwargs):
        return self.inside.named_modules(*args, **kwargs)

    def get_submodule(self, target: str) -> nn.Module:
        return self.inside.get_submodule(target)


def cascade(
    model: nn.Module, prefixes: Sequence[str], gen: torch.Generator
) -> Iterator[tuple[str, nn.Module]]:
    """Re-initialize a copy of the model part after part, and yield it after each.

    Model-randomization check of Adebayo et al. 2018 (arXiv:1810.03292). Each prefix names a part
    (``"head"``, then ``"stages.3"``, ...); what was re-initialized stays so. The same object is
    yielded each time.

    Raises:
        ValueError: a prefix under which nothing can be re-initialized.
    """
    model = copy.deepcopy(model)
    for prefix in prefixes:
        part = [
            m
            for name, m in model.named_modules()
            if (name == prefix or name.startswith(prefix + ".")) and hasattr(m, "reset_parameters")
        ]
        if not part:
            raise ValueError(f"prefixes: {prefix!r} has nothing to re-initialize")
        # reset_parameters draws from the global generator: lend it ours, and give it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=gen)))
            for module in part:
                module.reset_parameters()
        yield prefix, model


def randomization_curve(
    saliency: Saliency,
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Target,
    prefixes: Sequence[str],
    gen: torch.Generator,
) -> pd.DataFrame:
    """How much of the trained network's map is left as parts of it are re-initialized.

    One row per step: ``step`` (0 is the trained network), ``part``, and the means over images of
    the Spearman correlation and of SSIM (maps scaled to [0, 1]) with the trained network's map.
    Images whose map has become constant have no rank correlation; ``defined`` is the share of the
    others. A map that survives the randomization of everything explains the image, not the network.
    """
    first = saliency(model, x, target)

    def row(step: int, part: str, maps: Tensor) -> dict:
        rho = rank_agreement(first, maps)
        window = min(7, (min(maps.shape[-2:]) - 1) // 2 * 2 + 1)
        alike = ssim(min_max(first), min_max(maps), window=window)
        return {
            "step": step,
            "part": part,
            "spearman": float(rho.nanmean()),
            "ssim": float(alike.mean()),
            "defined": float(rho.isfinite().float().mean()),
        }

    rows = [row(0, "trained", first)]
    for step, (part, copied) in enumerate(cascade(model, prefixes, gen), 1):
        rows.append(row(step, part, saliency(copied, x, target)))
    return pd.DataFrame(rows)


# Images for which the right answer is known


class ShapeScenes(NamedTuple):
    """Scenes of two shapes: image, which classes are in it, and where.

    ``pair`` holds the two classes, ``masks`` their visible pixels in the same order.
    """

    x: Float[Tensor, "n 3 h w"]
    y: Float[Tensor, "n 6"]
    pair: Int[Tensor, "n 2"]
    masks: Bool[Tensor, "n 2 h w"]


def shape_scenes(n: int, gen: torch.Generator, size: int = 32) -> ShapeScenes:
    """``n`` noisy images, each with two of six shapes: a multi-label task with known places.

    Everything but the finer of the two noises grows with ``size``.
    """
    shapes = scatter(
        n,
        list(KINDS),
        size,
        gen,
        radius=(4.5 / 32 * size, 6 / 32 * size),
        gap=13 / 32 * size,
        angle=(-0.3, 0.3),
    )
    scene = draw(shapes, size, texture(block=max(1, size // 8)), gen)
    y = torch.zeros(n, len(KINDS)).scatter_(1, shapes.kind, 1.0)
    return ShapeScenes(scene.image, y, shapes.kind, scene.masks)
