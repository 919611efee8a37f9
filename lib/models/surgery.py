"""Changing a network that stands: other modules in the place of some."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

Match = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[str, nn.Module], bool]


def replace_modules(
    model: nn.Module, match: Match, make: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """A copy of ``model`` in which ``make(module)`` stands in the place of every match.

    A match is not searched for matches inside it, so a wrapper such as ``LoRA`` is applied once.
    A module that stands in several places (shared weights) is replaced by one module in all.

    Args:
        match: types of modules, or ``(path, module) -> bool``, where the path is the one that
            ``named_modules`` gives.

    Raises:
        ValueError: nothing matches.
        TypeError: ``make`` returns something that is no module.
    """
    model = copy.deepcopy(model)
    chosen = match
    if isinstance(match, (type, tuple)):
        chosen = lambda _, module: isinstance(module, match)
    made: dict[nn.Module, nn.Module] = {}

    def new(module: nn.Module) -> nn.Module:
        if module not in made:
            made[module] = make(module)
            if not isinstance(made[module], nn.Module):
                raise TypeError(f"make returned {made[module]!r}: allowed is a module")
        return made[module]

    def walk(path: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            below = f"{path}.{name}".lstrip(".")
            if chosen(below, child):
                setattr(module, name, new(child))
            elif child not in made.values():
                walk(below, child)

    if chosen("", model):
        return new(model)
    walk("", model)
    if not made:
        raise ValueError(f"match={match!r}: no module of the model matches")
    return model
