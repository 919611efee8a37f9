"""How fast a network learns, and what distinguishes the weights that stay."""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.compression.lottery_ticket.training import Start, Ticket
from lib.core.masks import Mask, Params


def early_stop_iteration(history: pd.DataFrame) -> int:
    """The logged step of smallest validation loss, the first if several: the paper's measure of
    how fast a network learns. The paper logs every 100 iterations; a coarser log, a coarser step.

    Raises:
        ValueError: no row with a validation loss.
    """
    if "validation_loss" not in history or history.validation_loss.isna().all():
        raise ValueError("history has no validation loss: log some steps")
    return int(history.step[history.validation_loss.idxmin()])


def first_reach(history: pd.DataFrame, level: float, column: str = "test_accuracy") -> int | None:
    """The first logged step at which ``column`` is at least ``level``; None if it never is."""
    reached = history.step[history[column] >= level]
    return None if reached.empty else int(reached.iloc[0])


def split_by(mask: Mask, values: Params) -> dict[str, tuple[Tensor, Tensor]]:
    """By name: the values where the mask keeps and where it prunes, each as one axis.

    With a dense network's ``init_state`` this is the paper's question what the winning weights
    looked like at initialization.
    """
    return {name: (values[name][keep], values[name][~keep]) for name, keep in mask.items()}


def movement(dense: Ticket, mask: Mask) -> dict[str, tuple[Tensor, Tensor]]:
    """By name: the distance ``|theta_T - theta_0|`` that the *dense* network's weights went, for
    those that a later mask keeps and those it prunes."""
    names = mask.keys()
    distance = {n: (dense.final_state[n] - dense.init_state[n]).abs() for n in names}
    return split_by(mask, distance)


def sign_agreement(
    start: Start, final_state: Params, mask: Mask | None = None
) -> dict[str, Float[Tensor, ""]]:
    """By name: the share of the mask's weights that have the same sign at the end as at the start.

    Args:
        mask: the weights to count; the start's own mask if None.
    """
    mask = start.mask if mask is None else mask
    same = {n: start.init_state[n].sign() == final_state[n].sign() for n in mask}
    return {n: torch.mean(same[n][keep].double()).float() for n, keep in mask.items()}
