"""Does a map depend on the class, and on the network? And a step that makes it depend more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.fitting import inner_sgd
from lib.core.metrics import ssim
from lib.interpretability.saliency_backprop.maps import min_max
from lib.models.attribution.methods import Target, no_mixing, targets
from lib.models.attribution.scores import rank_agreement

Saliency = Callable[[nn.Module, Tensor, Tensor], Tensor]


def class_sensitivity(
    saliency: Saliency,
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    kind: str = "spearman",
) -> Float[Tensor, "b"]:
    """Correlation of each image's maps for its most and its least probable class.

    Lower is more class sensitive. Undefined (NaN) where a map is constant. The authors' code ranks
    (Spearman) maps at input resolution; here the maps are compared as ``saliency`` returns them.

    Raises:
        ValueError: a batch-normalization layer in training mode.
    """
    no_mixing(model)
    with torch.no_grad():
        y = model(x)
    most, least = (saliency(model, x, t) for t in (y.argmax(1), y.argmin(1)))
    return rank_agreement(most, least, kind)


def meta_saliency(
    saliency: Saliency,
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Target,
    eps: float = 1e-4,
    order: int = 1,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ascend: bool = False,
) -> Tensor:
    """Any saliency of the network after one gradient step on the image's own loss.

    theta' = theta - eps grad loss(theta; x, c), one theta' for each image, then
    ``saliency(model with theta', x, c)``.

    Args:
        eps: size of the step; 1e-4 is the default of the authors' code. What matters is how far
            the logits move: a step that changes the answer explains another network.
        order: 1 takes theta' as a constant, as the authors' code does; 2 also differentiates
            through the step, because the activation acts on the score through theta', too. Methods
            that change the backward pass (guided backpropagation, excitation backpropagation)
            would change the step as well: they allow order 1 only.
        loss: ``(logits: "1 classes", target: "1") -> scalar``.
        ascend: step uphill instead: what would make the network worse on this image.

    Raises:
        ValueError: ``order`` is not 1 or 2, ``eps`` is negative, no images, a wrong number of
            targets, a batch-normalization layer in training mode, or a method that changes the
            backward pass with ``order=2``.
    """
    _may_step(model, x, eps, order)
    stepped = OneStep(model, -eps if ascend else eps, order, loss)
    maps = []
    for image, c in zip(x.split(1), targets(target, x).split(1), strict=True):
        stepped.aim(image, c)
        maps.append(saliency(stepped, image, c))
    return torch.cat(maps)


def _may_step(model: nn.Module, x: Tensor, eps: float, order: int) -> None:
    if order not in (1, 2):
        raise ValueError(f"order={order}: allowed are 1 and 2")
    if eps < 0:
        raise ValueError(f"eps={eps}: allowed is 0 or more; ascend=True changes the direction")
    if len(x) == 0:
        raise ValueError("x is empty: at least one image is needed")
    no_mixing(model)


class OneStep(nn.Module):
    """A model that first takes a gradient step on one image and class, then answers.

    Call ``aim(x, target)``, then the model. Module names are those of the model inside, so hooks
    and layer names work as before.
    """

    def __init__(self, model: nn.Module, eps: float, order: int, loss: Callable):
        super().__init__()
        self.inside, self.eps, self.order, self.loss = model, eps, order, loss
        self.target: Tensor | None = None
        self.theta: dict[str, Tensor] | None = None
        self.passes = order  # how often each layer runs in one call
        self.training = model.training

    def aim(self, x: Tensor, target: Tensor) -> None:
        """Choose the class to step towards. Order 1 steps here, before any hook is in place."""
        self.target = target
        self.theta = self.step(x) if self.order == 1 else None

    def step(self, x: Tensor) -> dict[str, Tensor]:
        """theta' = theta - eps grad loss(theta; x, target)."""

        def inner(params: dict[str, Tensor]) -> Tensor:
            y = torch.func.functional_call(self.inside, params, (x,))
            return self.loss(y, self.target)

        theta = {n: p.detach().requires_grad_() for n, p in self.inside.named_parameters()}
        with torch.enable_grad():
            theta = inner_sgd(theta, inner, self.eps, 1, create_graph=self.order == 2)
        return theta if self.order == 2 else {n: p.detach() for n, p in theta.items()}

    def forward(self, x: Tensor) -> Tensor:
        if self.target is None:
            raise RuntimeError("OneStep has no class to step towards: call aim(x, target) first")
        # With order 2 the step is part of the graph: a hook sees two passes and keeps the second.
        theta = self.step(x) if self.order == 2 else self.theta
        return torch.func.functional_call(self.inside, theta, (x,))

    def named_modules(self, *args, **kwargs):
        return self.inside.named_modules(*args, **kwargs)

    def get_submodule(self, target: str) -> nn.Module:
        return self.inside.get_submodule(target)


def cascade(
    model: nn.Module, prefixes: Sequence[str | Sequence[str]], gen: torch.Generator
) -> Iterator[tuple[str, nn.Module]]:
    """Re-initialize a copy of the model part after part, and yield it after each.

    Model-randomization check of Adebayo et al. 2018 (arXiv:1810.03292). Each prefix names a part
    (``"head"``, then ``"stages.3"``, ...), or several names make one part; what was re-initialized
    stays so. The same object is yielded each time.

    Raises:
        ValueError: a prefix under which nothing can be re-initialized.
    """
    model = copy.deepcopy(model)
    for step in prefixes:
        part = {}
        for prefix in [step] if isinstance(step, str) else step:
            found = {
                name: m
                for name, m in model.named_modules()
                if (name == prefix or name.startswith(prefix + "."))
                and hasattr(m, "reset_parameters")
            }
            if not found:
                raise ValueError(f"prefixes: {prefix!r} has nothing to re-initialize")
            part |= found
        # reset_parameters draws from the global generator: lend it ours, and give it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=gen)))
            for module in part.values():
                module.reset_parameters()
        yield step if isinstance(step, str) else ", ".join(step), model


def randomization_curve(
    saliency: Saliency,
    model: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Target,
    prefixes: Sequence[str | Sequence[str]],
    gen: torch.Generator,
) -> pd.DataFrame:
    """How much of the trained network's map is left as parts of it are re-initialized.

    One row per step: ``step`` (0 is the trained network), ``part``, and the means over images of
    the Spearman correlation and of SSIM (maps scaled to [0, 1]) with the trained network's map.
    Images whose map has become constant have no rank correlation; ``defined`` is the share of the
    others. A map that survives the randomization of everything explains the image, not the network.

    Raises:
        ValueError: a batch-normalization layer in training mode, or as ``cascade`` does.
    """
    no_mixing(model)
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
