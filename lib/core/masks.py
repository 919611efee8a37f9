"""Masks over parameters: which weights stay. True keeps, everywhere in the book.

A mask is a dictionary from parameter names to booleans of the parameter's shape. Names that are not
in it are not masked. Scores can be anything with the weights' shapes: magnitude, movement, gradient
times weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

Params = dict[str, Tensor]
Mask = dict[str, Bool[Tensor, "..."]]


def top_mask(
    scores: Mapping[str, Tensor],
    density: float | Mapping[str, float],
    scope: str = "layer",
    largest: bool = True,
    within: Mapping[str, Tensor] | None = None,
) -> Mask:
    """Keep the share ``density`` of the candidates that have the largest scores.

    With ``n`` candidates, ``round((1 - density) n)`` are dropped (halves to even). Of equal scores
    the earlier stays, in the order of the flattened tensor.

    Args:
        scores: real numbers by parameter name.
        density: kept share of the candidates, 0 to 1; one for all names or one for each.
        scope: ``"layer"`` ranks every tensor for itself, ``"global"`` puts all into one pool.
        largest: False keeps the smallest scores instead.
        within: the candidates; all entries if None. What is not a candidate is not kept, and its
            score plays no part.

    Raises:
        ValueError: unknown ``scope``, a density outside 0 to 1 or missing, one density per name
            with a global pool or an empty one, names or shapes of ``within`` that differ, a score
            that is NaN.
    """
    if scope not in ("layer", "global"):
        raise ValueError(f"scope={scope!r}: allowed are 'layer' and 'global'")
    candidates = _candidates(scores, within)
    if scope == "layer":
        share = _each("density", density, scores)
        return {
            name: _top(score.flatten(), candidates[name].flatten(), share[name], largest, name)
            .view(score.shape)
            for name, score in scores.items()
        }  # fmt: skip
    if isinstance(density, Mapping):
        raise ValueError("density: one number for scope='global', which has one pool; got several")
    share = _each("density", density, ["all"])["all"]
    if not scores:
        raise ValueError("scores is empty: a global pool needs at least one tensor")
    pool = torch.cat([s.flatten() for s in scores.values()])
    among = torch.cat([c.flatten() for c in candidates.values()])
    pieces = _top(pool, among, share, largest, "scores").split([s.numel() for s in scores.values()])
    return {n: p.view(s.shape) for (n, s), p in zip(scores.items(), pieces, strict=True)}


def _top(score: Tensor, among: Tensor, share: float, largest: bool, name: str) -> Tensor:
    everything = bool(among.all())
    values = score if everything else score[among]
    if torch.isnan(values).any():
        raise ValueError(f"{name}: a score is NaN, which has no rank")
    # 1 - 0.7 is 0.30000000000000004: without the inner rounding a half would not be one.
    dropped = round(round((1 - share) * len(values), 6))
    kept = len(values) - dropped
    if kept == 0:
        return torch.zeros_like(among)
    # The last score that stays; of those equal to it, as many of the first as there is room for.
    edge = torch.kthvalue(values, dropped + 1 if largest else kept).values
    inside = values > edge if largest else values < edge
    level = (values == edge).nonzero()[:, 0]
    inside[level[: kept - int(inside.sum())]] = True
    if everything:
        return inside
    keep = torch.zeros_like(among)
    keep[among] = inside
    return keep


def random_like(mask: Mapping[str, Tensor], gen: torch.Generator) -> Mask:
    """A mask that keeps as many entries of every tensor, at places drawn anew."""
    result = {}
    for name, keep in mask.items():
        order = torch.randperm(keep.numel(), generator=gen).to(keep.device)
        result[name] = keep.flatten()[order].view(keep.shape)
    return result


def density(mask: Mapping[str, Tensor]) -> float:
    """Kept share of all entries that the mask covers.

    Raises:
        ValueError: the mask covers nothing.
    """
    total = sum(keep.numel() for keep in mask.values())
    if total == 0:
        raise ValueError("mask is empty: it has no entries to count")
    return sum(int(keep.sum()) for keep in mask.values()) / total


def overlap(masks: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, "k k"]:
    """Entry (i, j): the share of what mask ``j`` keeps that mask ``i`` keeps too.

    The diagonal is 1. A random mask of density ``d`` has about ``d`` in its row. A column is NaN
    where mask ``j`` keeps nothing.

    Raises:
        ValueError: no masks, masks of nothing, or masks over different names or shapes.
    """
    if not masks or not masks[0]:
        raise ValueError("masks is empty: at least one mask of at least one tensor is needed")
    for mask in masks[1:]:
        _candidates(masks[0], mask)
    flat = torch.stack([torch.cat([m[n].flatten() for n in masks[0]]) for m in masks]).double()
    return (flat @ flat.T / flat.sum(1)).float()


def prunable(model: nn.Module, exclude: Sequence[str] = ()) -> list[str]:
    """Names of the weights one prunes: matrices and filters, not biases, norms or embeddings.

    Args:
        exclude: names, or beginnings of names up to a dot, that stay dense: ``["head"]``.

    Raises:
        ValueError: an entry of ``exclude`` matches no parameter.
    """
    named = dict(model.named_parameters())
    for start in exclude:
        if not any(_under(name, start) for name in named):
            raise ValueError(f"exclude={start!r}: no parameter of that name; there are {[*named]}")
    embedded = {
        f"{path}.weight".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    return [
        name
        for name, p in named.items()
        if p.ndim >= 2 and name not in embedded and not any(_under(name, s) for s in exclude)
    ]


def full_mask(model: nn.Module, exclude: Sequence[str] = ()) -> Mask:
    """The mask that keeps every prunable weight."""
    named = dict(model.named_parameters())
    return {n: torch.ones_like(named[n], dtype=torch.bool) for n in prunable(model, exclude)}


def apply_mask(params: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Params:
    """``m * w`` for the names in the mask, the others as they are; pruned entries are exactly 0.

    Raises:
        ValueError: a name that ``params`` lacks, a shape that differs, a mask that is not boolean.
    """
    for name, keep in mask.items():
        if name not in params:
            raise ValueError(f"mask: no parameter {name!r}; there are {', '.join(params)}")
        _check_like(name, keep, params[name])
    return {n: torch.where(mask[n], p, 0) if n in mask else p for n, p in params.items()}


class Masked(nn.Module):
    """``module`` with ``m * w`` in the place of its weights ``w``, for training.

    The mask is a reparametrization (``torch.nn.utils.parametrize``), so every call of the module or
    of one of its parts sees masked weights, a pruned weight has gradient exactly 0, and whatever an
    optimizer does to the hidden ``w`` (momentum, weight decay) cannot revive it. ``w`` itself is
    set to 0 where pruned. Masks are buffers: a stack of networks can hold a different one each.

    The module is changed in place. ``state()`` has its parameters under their old names.

    Raises:
        ValueError: a name that is no parameter, a shape that differs, a mask that is not boolean, a
            weight that the module also uses under another name.
        TypeError: weights of ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``, which would not see the mask.
    """

    def __init__(self, module: nn.Module, mask: Mapping[str, Tensor]) -> None:
        super().__init__()
        named = dict(module.named_parameters())
        for name, keep in mask.items():
            if name not in named:
                raise ValueError(f"mask: no parameter {name!r}; there are {', '.join(named)}")
            _check_like(name, keep, named[name])
            every = module.named_parameters(remove_duplicate=False)
            if others := [n for n, p in every if p is named[name] and n != name]:
                # The mask would cover one use only, and the other would revive pruned weights.
                raise ValueError(f"mask: {name!r} is tied to {others[0]!r}, which it cannot cover")
        for name, keep in mask.items():
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            if isinstance(owner, nn.RNNBase):
                # It keeps its own list of the raw weights and would go on using that.
                raise TypeError(f"{name}: {type(owner).__name__} reads its weights past the mask")
            parametrize.register_parametrization(owner, leaf, _Keep(keep, named[name]))
        self.module, self.names = module, tuple(mask)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def _keeps(self) -> dict[str, _Keep]:
        found = {}
        for name in self.names:
            path, _, leaf = name.rpartition(".")
            found[name] = self.module.get_submodule(path).parametrizations[leaf][0]
        return found

    @property
    def mask(self) -> Mask:
        return {name: keep.mask for name, keep in self._keeps().items()}

    @torch.no_grad()
    def set_mask(self, mask: Mapping[str, Tensor]) -> None:
        """Put another mask in place; a weight that comes back starts at 0.

        Raises:
            ValueError: names or shapes that differ from the present mask's.
        """
        _candidates(self.mask, mask)
        for name, keep in self._keeps().items():
            path, _, leaf = name.rpartition(".")
            hidden = self.module.get_submodule(path).parametrizations[leaf].original
            hidden.mul_(keep.mask & mask[name])
            keep.ones.copy_(mask[name])

    def state(self) -> Params:
        """Copies of the module's parameters and buffers under their own names, weights masked."""
        mask, result = self.mask, {}
        for full, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if (name := plain_name(full)) is not None:
                result[name] = tensor.detach().clone()
        return apply_mask(result, mask)


def plain_name(name: str) -> str | None:
    """A parameter's name as it is without masks; None for what the mask itself has added."""
    head, found, tail = name.rpartition("parametrizations.")
    if not found:
        return name
    leaf, _, rest = tail.partition(".")
    return f"{head}{leaf}" if rest == "original" else None


class _Keep(nn.Module):
    """Zeros and ones in the weight's own type: a product with booleans would convert them first."""

    def __init__(self, mask: Tensor, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("ones", mask.to(like))

    @property
    def mask(self) -> Tensor:
        return self.ones.bool()

    def forward(self, w: Tensor) -> Tensor:
        return w * self.ones

    def right_inverse(self, w: Tensor) -> Tensor:
        return w * self.ones


def _under(name: str, start: str) -> bool:
    return name == start or name.startswith(start + ".")


def _each(what: str, value: float | Mapping[str, float], names) -> dict[str, float]:
    shares = dict(value) if isinstance(value, Mapping) else dict.fromkeys(names, value)
    if missing := [name for name in names if name not in shares]:
        raise ValueError(f"{what}: nothing for {missing[0]!r}; there are {', '.join(shares)}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            where = f" for {name!r}" if isinstance(value, Mapping) else ""
            raise ValueError(f"{what}={share}{where}: allowed is 0 to 1")
    return shares


def _candidates(like: Mapping[str, Tensor], within: Mapping[str, Tensor] | None) -> Mask:
    if within is None:
        return {name: torch.ones_like(t, dtype=torch.bool) for name, t in like.items()}
    if within.keys() != like.keys():
        only = sorted(within.keys() ^ like.keys())
        raise ValueError(f"masks must cover the same names; only one side has {', '.join(only)}")
    for name, keep in within.items():
        _check_like(name, keep, like[name])
    return dict(within)


def _check_like(name: str, keep: Tensor, like: Tensor) -> None:
    if keep.dtype != torch.bool:
        raise ValueError(f"{name}: a mask is boolean (True keeps), got {keep.dtype}")
    if keep.shape != like.shape:
        shapes = f"{tuple(keep.shape)}, the tensor {tuple(like.shape)}"
        raise ValueError(f"{name}: the mask has shape {shapes}")
