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
from lib.models.attribution.methods import Target
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
