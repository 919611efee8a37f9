"""Model grafting, and the search for the smallest region that carries a skill."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from lib.core.masks import Mask, Params, random_like, top_mask
from lib.core.params import flatten, unflatten
from lib.kernels.graft_step import graft_step, magnitude_threshold, reference

Batch = tuple[Tensor, ...]  # inputs, labels, and whatever else the model takes


def graft(pre: Params, ft: Params, mask: Mapping[str, Tensor]) -> Params:
    """Fine-tuned values where ``mask`` is True, pre-trained ones elsewhere (equation 1).

    ``theta = pre + mask * (ft - pre)``, chosen instead of computed: all-True gives ``ft`` and
    all-False ``pre``, bit for bit. Names that are not in the mask stay pre-trained.

    Raises:
        ValueError: names, shapes or dtypes that differ, a mask that is not boolean.
    """
    check_same(pre, ft, mask)
    return {n: torch.where(mask[n], ft[n], p) if n in mask else p for n, p in pre.items()}


def top_movement_mask(pre: Params, ft: Params, density: float, strict: bool = False) -> Mask:
    """The share ``density`` of all parameters that fine-tuning has moved furthest.

    All tensors form one pool. Of equal movements the earlier is kept, so that the share is exact;
    ``strict`` leaves out everything that moved exactly as far as the last one, as the paper's code
    does, which keeps one parameter less and many less where movements are equal.

    Raises:
        ValueError: names, shapes or dtypes that differ; a density outside 0 to 1; a NaN.
    """
    check_same(pre, ft, {})
    if not 0 <= density <= 1:
        raise ValueError(f"density={density}: allowed is 0 to 1")
    moved = {name: (ft[name] - p).abs() for name, p in pre.items()}
    for name, distance in moved.items():
        if distance.isnan().any():
            raise ValueError(f"{name}: a movement is NaN, which has no rank")
    pool = flatten(moved)
    keep = torch.zeros_like(pool, dtype=torch.bool)
    # As in lib.core.masks: the inner rounding makes a half a half in binary numbers, too.
    if count := len(pool) - round(round((1 - density) * len(pool), 6)):
        # The kernel selects by counting and has no float64, for which PyTorch sorts.
        backend = "reference" if pool.dtype == torch.float64 else "auto"
        least = magnitude_threshold(pool, count, backend)
        keep = pool > least
        if not strict:
            level = (pool == least).nonzero()[:, 0]
            keep[level[: count - int(keep.sum())]] = True
    return unflatten(keep, pre)


def random_mask(like: Params, density: float, gen: torch.Generator) -> Mask:
    """The control: as many parameters as ``top_movement_mask`` keeps, drawn at random from all.

    Raises:
        ValueError: no parameters; a density outside 0 to 1.
    """
    if not like:
        raise ValueError("like is empty: at least one parameter is needed")
    flat = {"all": torch.cat([p.flatten() for p in like.values()])}
    keep = random_like(top_mask(flat, density), gen)["all"]
    return unflatten(keep, like)


class GraftOptimizer:
    """Gradient descent on a relaxed mask, by hand: no optimizer, no re-training of any value.

    The mask of section 2.2 is ``gamma = base (1 - p) + (1 - base) p`` with
    ``p = sigmoid(score - bias)``. It starts within ``sigmoid(1 - bias)`` of the base mask. A step
    is ``score -= eta (1 - 2 base) grad delta p (1 - p)``, so entries join the graft *and leave it*.
    Nothing in the loss asks for sparsity: it comes from the base, and from entries whose
    gradient is too small to carry them across one half.

    Movements and gradients are tiny; the paper's rate is 1e7. Here ``lr`` is in units of
    ``1 / rms(grad * delta)`` at the first step, which makes one value serve models of any size.

    Args:
        model: called as ``model(x, *more)`` and returns logits ``b c``.
        pre, ft: pre-trained and fine-tuned values.
        base_mask: where the search starts; its names are the parameters that may be grafted.
        bias: the paper's ``sigmoid_bias``.
        gen: draws the initial scores, uniform in 0 to 1.

    Raises:
        ValueError: names, shapes or dtypes that differ; no parameter in the mask has moved, or one
            has moved to NaN; ``lr`` not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        pre: Params,
        ft: Params,
        base_mask: Mask,
        *,
        gen: torch.Generator,
        lr: float = 100.0,
        bias: float = 10.0,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr={lr}: allowed are positive numbers")
        check_same(pre, ft, base_mask)
        if not base_mask:
            raise ValueError("base_mask is empty: its names are what may be grafted")
        self.model, self.loss, self.lr, self.bias = model, loss, lr, bias
        self.like = {name: pre[name] for name in base_mask}
        self.rest = {name: p for name, p in pre.items() if name not in base_mask}
        self.pre = flatten(self.like)
        self.delta = flatten({name: ft[name] for name in base_mask}) - self.pre
        self.base = flatten(base_mask)
        if not self.delta.isfinite().all():
            raise ValueError("ft - pre has entries that are not finite: nothing can be grafted")
        if not self.delta.any():
            raise ValueError("ft equals pre wherever the mask reaches: there is nothing to graft")
        wide = torch.promote_types(self.pre.dtype, torch.float32)
        start = torch.rand(len(self.pre), generator=gen, dtype=wide)
        self.score = start.to(self.pre.device)
        self.theta = reference(self.pre, self.delta, self.score, self.base, bias)
        self.eta: float | None = None

    def step(self, *batches: Batch) -> float:
        """One step on the mean loss of the batches; returns that loss, before the step.

        Raises:
            ValueError: no batches.
            FloatingPointError: the loss or its gradient is not finite.
        """
        if not batches:
            raise ValueError("batches is empty: at least one is needed")
        total, grad = 0.0, torch.zeros_like(self.theta)
        for batch in batches:
            loss, g = self.gradient(batch)
            total, grad = total + loss.item(), grad + g
        grad /= len(batches)
        if self.eta is None:
            scale = (grad * self.delta).double().square().mean().sqrt().item()
            if not math.isfinite(scale + total):
                raise FloatingPointError(
                    f"loss {total / len(batches)}, or its gradient, is not finite"
                )
            if scale > 0:  # else the loss is flat here, and the unit is set where it is not
                self.eta = self.lr / scale
        self.score, self.theta = graft_step(
            grad, self.pre, self.delta, self.score, self.base, rate=self.eta or 0.0, bias=self.bias
        )
        return total / len(batches)

    def gradient(self, batch: Batch) -> tuple[Tensor, Float[Tensor, "p"]]:
        """The loss of the relaxed graft and its derivative in the flat parameters."""
        x, y, *more = batch
        leaf = self.theta.detach().requires_grad_()
        params = {**self.rest, **unflatten(leaf, self.like)}
        loss = self.loss(functional_call(self.model, params, (x, *more)), y)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def hard_mask(self) -> Mask:
        """Every entry rounded: the base where ``score <= bias``, the opposite elsewhere."""
        return unflatten(self.base ^ (self.score > self.bias), self.like)


@dataclass(frozen=True)
class Found:
    """The best mask of a search: its step, and a row for every step (see ``find_graft``)."""

    mask: Mask
    step: int
    rows: list[dict]


@torch.no_grad()
def _accuracy(model: nn.Module, params: Params, batch: Batch) -> float:
    x, y, *more = batch
    if not len(y):
        raise ValueError("train or val has no samples: accuracy needs at least one")
    return float((functional_call(model, params, (x, *more)).argmax(-1) == y).double().mean())


def find_graft(
    model: nn.Module,
    pre: Params,
    ft: Params,
    base_mask: Mask,
    train: Batch | Callable[[int], Sequence[Batch]],
    val: Batch,
    *,
    gen: torch.Generator,
    steps: int = 100,
    lr: float = 100.0,
    bias: float = 10.0,
    most: float = 1.0,
) -> Found:
    """Search for a mask, and keep the rounded one with the best train plus validation accuracy.

    The base mask is a candidate, too (step 0). Of equally accurate masks the first is kept.

    Args:
        train: the task's own training samples, or a function from the step to a list of batches
            whose gradients are averaged. Accuracy is then that of the list's first batch.
        most: largest density of a mask that may be kept; the search ends at the first denser one.

    Returns:
        The mask with its step; rows have ``step``, ``loss`` (relaxed, before the step),
        ``train``, ``val`` (accuracies of the rounded mask after it) and ``density``.

    Raises:
        ValueError: ``steps`` is negative, ``val`` or a batch is empty, the base is denser than
            ``most``; what ``GraftOptimizer`` refuses.
    """
    if steps < 0:
        raise ValueError(f"steps={steps}: allowed is 0 or more")
    search = GraftOptimizer(model, pre, ft, base_mask, gen=gen, lr=lr, bias=bias)
    best, best_step, best_score, rows, loss = base_mask, 0, -1.0, [], math.nan
    size = len(search.base)
    for step in range(steps + 1):
        batches = train(max(step - 1, 0)) if callable(train) else [train]
        if step:
            loss = search.step(*batches)
        mask = search.hard_mask()
        params = graft(pre, ft, mask)
        row = {
            "step": step,
            "loss": loss,
            "train": _accuracy(model, params, batches[0]),
            "val": _accuracy(model, params, val),
            "density": sum(int(m.sum()) for m in mask.values()) / size,
        }
        if step == 0 and row["density"] > most:
            raise ValueError(f"base_mask: density {row['density']:.3g}; most={most} is allowed")
        rows.append(row)
        if row["density"] > most:
            break
        if row["train"] + row["val"] > best_score:
            best, best_step, best_score = mask, step, row["train"] + row["val"]
    return Found(best, best_step, rows)


def skill_bytes(mask: Mapping[str, Tensor], value_bits: int = 32) -> dict[str, float]:
    """What storing a graft takes, in bytes: the values, and where they belong.

    ``values``: one number of ``value_bits`` each. ``indices``: a 32-bit number each. ``packed``:
    the least that any code can take to name the region on average, log2 of the number of regions
    of this size (``log2 C(P, k)``). ``full``: all parameters that the mask covers.

    Raises:
        ValueError: ``value_bits`` below 1.
    """
    if value_bits < 1:
        raise ValueError(f"value_bits={value_bits}: allowed is 1 or more")
    k, n = sum(int(m.sum()) for m in mask.values()), sum(m.numel() for m in mask.values())
    regions = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return {
        "values": k * value_bits / 8,
        "indices": k * 4.0,
        "packed": regions / math.log(2) / 8,
        "full": n * value_bits / 8,
    }


def check_same(pre: Params, ft: Params, mask: Mapping[str, Tensor]) -> None:
    if not pre:
        raise ValueError("pre is empty: at least one parameter is needed")
    if pre.keys() != ft.keys():
        only = ", ".join(sorted(pre.keys() ^ ft.keys()))
        raise ValueError(f"pre and ft must have the same names; only one of them has {only}")
    for name, p in pre.items():
        if ft[name].shape != p.shape:
            shapes = f"{tuple(p.shape)} and {tuple(ft[name].shape)}"
            raise ValueError(f"{name}: pre and ft have the shapes {shapes}")
        if ft[name].dtype != p.dtype:
            raise ValueError(f"{name}: pre is {p.dtype}, ft {ft[name].dtype}; one type is needed")
    for name, keep in mask.items():
        if name not in pre:
            raise ValueError(f"mask: no parameter {name!r}; there are {', '.join(pre)}")
        if keep.dtype != torch.bool:
            raise ValueError(f"mask: {name} is {keep.dtype}; True is grafted, so bool is allowed")
        if keep.shape != pre[name].shape:
            shapes = f"{tuple(keep.shape)}, the parameter {tuple(pre[name].shape)}"
            raise ValueError(f"mask: {name} has shape {shapes}")
