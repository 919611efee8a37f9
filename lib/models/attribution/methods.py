"""Attribution by backpropagation: gradients, guided gradients, class activation maps.

All functions take a model or function from images to logits, images ``x: "b ..."`` and the class
to explain, and return one map per image. Maps explain the logit (not the probability) with its
sign. Models are not changed: what must differ in the backward pass differs inside a ``with`` block
of hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.core.hooks import leaf_names, patch

Target = int | Int[Tensor, "..."]  # a class for all images, or one for each


class Layer(NamedTuple):
    """What passes a layer: its output ``f`` and the score's gradient ``g`` with respect to it."""

    f: Float[Tensor, "b ..."]
    g: Float[Tensor, "b ..."]


def layer_gradients(
    model: nn.Module, x: Float[Tensor, "b ..."], target: Target, names: Iterable[str]
) -> dict[str, Layer]:
    """Activation and gradient of the target's logit at each named module, in one backward pass.

    The name ``"input"`` means ``x`` itself. The gradient is taken with respect to a zero that is
    added to the activation. A layer must run once: a ReLU used at two places has two activations
    and one name. A model that makes several passes over itself in one call says so in an attribute
    ``passes``; they share the zero, so that the gradient is the total one, and f is the last.

    Raises:
        ValueError: a batch-normalization layer in training mode (it would mix the images), a
            name that the model does not have, a layer that runs more than once, or a target that
            is no class.
    """
    no_mixing(model)
    names = list(names)
    probes: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    runs: dict[str, int] = {}
    allowed = getattr(model, "passes", 1)

    def probe(name: str, out: Tensor) -> Tensor:
        seen[name] = out
        runs[name] = runs.get(name, 0) + 1
        if runs[name] > allowed:
            raise ValueError(f"{name!r} runs more than once in a pass; its output is ambiguous")
        if name not in probes:
            probes[name] = torch.zeros_like(out, requires_grad=True)
        return out + probes[name]

    hooks = {n: lambda out, n=n: probe(n, out) for n in names if n != "input"}
    with torch.enable_grad(), patch(model, hooks):
        y = model(probe("input", x) if "input" in names else x)
        score = pick(y, target).sum()
        grads = torch.autograd.grad(score, [probes[n] for n in names])
    return {n: Layer(seen[n].detach(), g.detach()) for n, g in zip(names, grads, strict=True)}


def pick(y: Float[Tensor, "b classes"], target: Target) -> Float[Tensor, "b"]:
    """Each row's logit of its target class.

    Raises:
        ValueError: a target outside the classes, or not one per row.
        TypeError: targets that are not integers.
    """
    target = targets(target, y)
    if len(y) and not 0 <= target.min() <= target.max() < y.shape[1]:
        raise ValueError(f"target: allowed are 0 to {y.shape[1] - 1}, got {target.unique()}")
    return y.gather(1, target[:, None])[:, 0]


def targets(target: Target, x: Float[Tensor, "b ..."]) -> Int[Tensor, "b"]:
    """One class for each image in ``x``, from one for all or one for each.

    Raises:
        ValueError: another number of targets than images.
        TypeError: targets that are not integers.
    """
    target = torch.as_tensor(target, device=x.device)
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"target: allowed are integers, got {target.dtype}")
    if target.ndim == 0:
        return target.expand(len(x))
    if target.shape != x.shape[:1]:
        raise ValueError(
            f"target: one class per image, got {target.numel()} for {len(x)} images"
            + ("" if target.ndim == 1 else f" in shape {tuple(target.shape)}")
        )
    return target


def gradient(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "b ..."], target: Target, abs: bool = False
) -> Float[Tensor, "b ..."]:
    """Gradient of the target's logit with respect to ``x`` (Simonyan et al. 2014).

    Raises:
        ValueError: a batch-normalization layer in training mode, or a target that is no class.
    """
    if isinstance(f, nn.Module):
        no_mixing(f)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(pick(f(x), target).sum(), x)
    return g.abs() if abs else g


def input_x_gradient(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "b ..."], target: Target
) -> Float[Tensor, "b ..."]:
    """``x`` times the gradient: the linear approximation of what setting x to zero would remove."""
    return x * gradient(f, x, target)


@contextmanager
def guided(model: nn.Module) -> Iterator[None]:
    """Inside the block, every ReLU passes back positive gradients only.

    Together with the ReLU's own rule (nothing passes where the unit was off) this is guided
    backpropagation (Springenberg et al. 2015). Works for ReLU modules, also in-place ones.

    Raises:
        ValueError: the model has no ReLU module (``F.relu`` calls cannot be seen).
    """
    names = leaf_names(model, nn.ReLU)
    if not names:
        raise ValueError("model has no nn.ReLU module: guided backpropagation changes those")
    with patch(model, dict.fromkeys(names, _PositiveGradient.apply)):
        yield


class _PositiveGradient(torch.autograd.Function):
    """The identity, with the negative part of the gradient cut off."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        _only_once("guided backpropagation")
        return g.clamp(min=0)


def guided_backprop(
    model: nn.Module, x: Float[Tensor, "b ..."], target: Target
) -> Float[Tensor, "b ..."]:
    """Guided backpropagation to the input."""
    with guided(model):
        return gradient(model, x, target)


def grad_cam(
    model: nn.Module, x: Float[Tensor, "b c h w"], target: Target, layer: str, relu: bool = True
) -> Float[Tensor, "b i j"]:
    """Grad-CAM (Selvaraju et al. 2017) at ``layer``: channels weighted by their mean gradient."""
    f, g = layer_gradients(model, x, target, [layer])[layer]
    cam = (f * g.mean((2, 3), keepdim=True)).sum(1)
    return cam.clamp(min=0) if relu else cam


def cam(
    model: nn.Module, x: Float[Tensor, "b c h w"], target: Target, layer: str, classifier: str
) -> Float[Tensor, "b i j"]:
    """Class activation map (Zhou et al. 2016): channels weighted by the class's linear weights.

    For networks in which ``layer`` is averaged over space and goes straight into the linear module
    ``classifier``.

    Raises:
        ValueError: the classifier is not a linear layer over ``layer``'s channels.
    """
    linear = model.get_submodule(classifier)
    f = layer_gradients(model, x, target, [layer])[layer].f
    if not isinstance(linear, nn.Linear) or linear.in_features != f.shape[1]:
        raise ValueError(f"classifier={classifier!r} is not linear over {f.shape[1]} channels")
    weight = linear.weight.detach()[targets(target, x)]
    return torch.einsum("bchw,bc->bhw", f, weight)


def excitation_backprop(
    model: nn.Module,
    x: Float[Tensor, "b ..."],
    target: Target,
    layer: str,
    classifier: str,
    contrastive: bool = False,
) -> Float[Tensor, "b ..."]:
    """Excitation backpropagation (Zhang et al. 2016), summed over channels at ``layer``.

    A winning probability walks from the class down to ``layer``: each unit hands its share to its
    inputs in proportion to ``input * positive weight``. ``contrastive`` subtracts the same walk for
    "not this class" (the last weights with their sign flipped), which cancels what all classes
    have in common. The inputs of convolutions and linear layers above ``layer`` must not be
    negative (ReLU networks), and batch normalization must be folded (``fold_batchnorm``).

    Raises:
        ValueError: batch normalization present, or ``classifier`` is not a linear module.
    """
    if any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ValueError("model has batch normalization: fold it first with fold_batchnorm(model)")
    last = model.get_submodule(classifier)
    if not isinstance(last, nn.Linear):
        raise ValueError(f"classifier={classifier!r} is not a linear module")
    seen: dict[str, Tensor] = {}

    def keep(module, args):
        seen["top"] = args[0]

    def split(module, args, out):
        return _Excitation.apply(args[0], out, module)

    def leaf(out: Tensor) -> Tensor:
        seen["layer"] = out.detach().requires_grad_()
        return seen["layer"].clone()

    linear = leaf_names(model, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) + _AVERAGES)
    handles = [last.register_forward_pre_hook(keep)]
    handles += [
        model.get_submodule(name).register_forward_hook(split)
        for name in linear
        if name != classifier
    ]
    try:
        with torch.enable_grad(), patch(model, {layer: leaf}):
            logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    top = seen["top"]
    rows = targets(target, x)
    pick(logits, rows)  # checks the target
    weight = last.weight.detach()[rows]
    share = _winning(top.detach(), weight)
    if contrastive:
        share = share - _winning(top.detach(), -weight)
    (p,) = torch.autograd.grad(top, seen["layer"], share)
    return p.sum(1)


def _winning(a: Tensor, weight: Tensor) -> Tensor:
    part = a * weight.clamp(min=0)
    return part / part.sum(1, keepdim=True).clamp(min=1e-12)


_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool2d)


class _Excitation(torch.autograd.Function):
    """A linear module's output going forward; its excitation rule going back."""

    @staticmethod
    def forward(ctx, x, out, module):
        ctx.save_for_backward(x)
        ctx.module = module
        return out.detach().clone()

    @staticmethod
    def backward(ctx, p):
        _only_once("excitation backpropagation")
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = _positive(ctx.module, x)
            share = torch.where(y > 1e-12, p / y.clamp(min=1e-12), 0)
            (back,) = torch.autograd.grad(y, x, share.detach())
        return x.detach() * back, None, None


def _positive(module: nn.Module, x: Tensor) -> Tensor:
    """The module with its positive weights only and without bias."""
    if isinstance(module, _AVERAGES):
        return module(x)
    weight = module.weight.detach().clamp(min=0)
    if isinstance(module, nn.Linear):
        return F.linear(x, weight)
    return module._conv_forward(x, weight, None)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose convolutions have swallowed the batch norms behind them.

    Raises:
        ValueError: a batch normalization that does not follow a convolution in a ``Sequential``.
    """
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        if isinstance(parent, nn.Sequential):
            names = list(parent._modules)
            for a, b in zip(names, names[1:]):
                conv, norm = parent._modules[a], parent._modules[b]
                if isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and isinstance(
                    norm, _BatchNorm
                ):
                    parent._modules[a] = fuse_conv_bn_eval(conv, norm)
                    parent._modules[b] = nn.Identity()
    if left := leaf_names(model, _BatchNorm):
        raise ValueError(f"{left[0]!r} does not follow a convolution in a Sequential")
    return model


def upsample(
    maps: Float[Tensor, "b c h w"], size: int | tuple[int, int]
) -> Float[Tensor, "b c i j"]:
    """Bilinear resizing to ``size``, pixel areas aligned (``align_corners=False``)."""
    size = (size, size) if isinstance(size, int) else size
    if maps.shape[2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def no_mixing(model: nn.Module) -> None:
    """Refuse a model whose batch normalizations are in training mode.

    They would mix the images of a batch, and each pass would change the running statistics.

    Raises:
        ValueError: such a layer, by name.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"{name!r} is in training mode and would mix the images of a batch; "
                "call model.eval() first"
            )


def _only_once(what: str) -> None:
    # Autograd enables gradients inside a backward pass exactly when that pass is to be
    # differentiated, as in a gradient step that belongs to the graph.
    if torch.is_grad_enabled():
        raise ValueError(
            f"{what} changes every backward pass in its block, also one that is differentiated "
            "again; with meta_saliency use order=1"
        )
