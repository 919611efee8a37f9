"""Fine-tuning with few parameters: which of a network's parameters learn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def tune_only(
    model: nn.Module, what: str | Sequence[str], within: Sequence[str] | None = None
) -> list[str]:
    """Let some parameters learn and freeze the others; returns the names of those that learn.

    Only ``requires_grad`` is changed, in place.

    Args:
        what: ``"bias"`` for all parameters of that name (BitFit, Ben Zaken et al., 2021, arXiv
            2106.10199), ``"norm"`` for the parameters of norms, or names of parameters or
            beginnings of names up to a dot: ``["blocks", "head.weight"]``.
        within: names or beginnings to choose among; all if None.

    Raises:
        ValueError: nothing is left to learn, or a name that the model does not have.
    """
    named = dict(model.named_parameters())
    if what == "bias":
        chosen = {name for name in named if name.rpartition(".")[2] == "bias"}
    elif what == "norm":
        chosen = {
            f"{path}.{leaf}".lstrip(".")
            for path, module in model.named_modules()
            if isinstance(module, NORMS)
            for leaf, _ in module.named_parameters(recurse=False)
        }
    else:
        chosen = _matching("what", [what] if isinstance(what, str) else what, named)
    if within is not None:
        chosen &= _matching("within", within, named)
    learning = [name for name in named if name in chosen]
    if not learning:
        raise ValueError(f"what={what!r}, within={within!r}: no parameter is left to learn")
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return learning


def _matching(argument: str, starts: Sequence[str], named: dict) -> set[str]:
    found: set[str] = set()
    for start in starts:
        mine = {name for name in named if name == start or name.startswith(f"{start}.")}
        if not mine:
            raise ValueError(f"{argument}: no parameter {start!r}; there are {', '.join(named)}")
        found |= mine
    return found
