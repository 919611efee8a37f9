"""Where grafts lie, how those of several tasks meet, and tasks learned one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from lib.core.masks import Mask, Params
from lib.language.skill_localization.grafting import graft


def by_module(mask: Mapping[str, Tensor]) -> pd.DataFrame:
    """A row per tensor: ``layer`` (of the block, -1 outside), ``module``, ``kept``, ``size``.

    ``module`` is the name without the way to the block: ``attn.q.weight``. ``density`` is the
    share of the tensor that is grafted, ``share`` that of the graft that lies in the tensor.
    """
    rows = []
    total = max(1, sum(int(m.sum()) for m in mask.values()))
    for name, keep in mask.items():
        inside = re.search(r"(?:^|\.)blocks\.(\d+)\.(.+)$", name)
        kept, size = int(keep.sum()), keep.numel()
        rows.append(
            {
                "layer": int(inside[1]) if inside else -1,
                "module": inside[2] if inside else name,
                "kept": kept,
                "size": size,
                "density": kept / max(1, size),
                "share": kept / total,
            }
        )
    return pd.DataFrame(rows)


def union(masks: Sequence[Mapping[str, Tensor]]) -> Mask:
    """The region of several tasks together.

    Raises:
        ValueError: no masks, masks over different names or shapes, or one that is not boolean.
    """
    if not masks:
        raise ValueError("masks is empty: at least one is needed")
    result = dict(masks[0])
    for mask in masks[1:]:
        if mask.keys() != result.keys():
            raise ValueError("masks must cover the same names")
        for name, keep in result.items():
            if keep.dtype != torch.bool or mask[name].dtype != torch.bool:
                raise ValueError(f"{name}: a mask is boolean, got {mask[name].dtype}")
            if keep.shape != mask[name].shape:
                shapes = f"{tuple(keep.shape)} and {tuple(mask[name].shape)}"
                raise ValueError(f"{name}: the masks have the shapes {shapes}")
        result = {name: keep | mask[name] for name, keep in result.items()}
    return result


@dataclass(frozen=True)
class Stage:
    """The model after a task: all parameters, and the task's region (None: all of them moved)."""

    params: Params
    mask: Mask | None


def continual(
    pre: Params,
    tasks: Sequence[int],
    tune: Callable[[Params, int], Params],
    locate: Callable[[Params, Params, int], Mask] | None = None,
) -> list[Stage]:
    """Learn tasks in sequence; with ``locate``, keep of each only its region (section 5).

    Each task is fine-tuned from the present model. Naively, all that moved stays moved. With
    grafting, the model goes back to where it was before the task, except for the task's region,
    and what belongs to an earlier task's region goes back as well: its values are taken.

    Args:
        tasks: numbers of the tasks, in order.
        tune: ``tune(params, task)`` returns fine-tuned parameters.
        locate: ``locate(before, after, task)`` returns the region of the task; None for naive
            sequential fine-tuning.
    """
    stages, present = [], pre
    taken: Mask | None = None
    for task in tasks:
        tuned = tune(present, task)
        mask = None
        if locate is None:
            present = tuned
        else:
            mask = locate(present, tuned, task)
            if taken is not None:
                mask = {name: keep & ~taken[name] for name, keep in mask.items()}
            present = graft(present, tuned, mask)
            taken = mask if taken is None else union([taken, mask])
        stages.append(Stage(present, mask))
    return stages
