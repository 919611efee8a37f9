"""Look at, and replace, what flows between a network's modules, without changing the network.

Forward hooks only. Gradients come from ``torch.autograd.grad`` on what was recorded: backward
hooks return wrong tensors next to in-place operations.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

Replacement = Callable[[Tensor], Tensor] | Tensor


@contextmanager
def record(
    model: nn.Module,
    names: Iterable[str],
    grad: bool = False,
    of: str = "output",
) -> Iterator[dict[str, Tensor]]:
    """Inside the block, every forward pass fills the dictionary: module name -> its output.

    A module that runs several times keeps its last tensor. What is recorded is safe from in-place
    operations further on, which get a copy.

    Args:
        grad: keep the tensor in the graph, so that ``torch.autograd.grad`` can differentiate with
            respect to it; a tensor that nothing requires a gradient of becomes a leaf that does.
            Otherwise it is detached.
        of: ``"input"`` records the module's first positional argument instead.

    Raises:
        ValueError: a name that the model does not have, or an unknown ``of``.
        TypeError: a module whose output (or first argument) is not one tensor.
    """
    if of not in ("output", "input"):
        raise ValueError(f"of={of!r}: allowed are 'output' and 'input'")
    seen: dict[str, Tensor] = {}

    def keep(name: str, tensor) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{of} of {name!r} is {type(tensor).__name__}, not one tensor")
        if not grad:
            seen[name] = tensor.detach().clone()
            return tensor
        if not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
        seen[name] = tensor
        return tensor.clone()

    handles = []
    for name, module in _find(model, names):
        if of == "output":
            hook = lambda module, args, out, name=name: keep(name, out)
            handles.append(module.register_forward_hook(hook))
        else:
            hook = lambda module, args, name=name: (keep(name, args[0]), *args[1:])
            handles.append(module.register_forward_pre_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patch(model: nn.Module, replacements: Mapping[str, Replacement]) -> Iterator[None]:
    """Inside the block, replace the output of each named module.

    A function gets the output and returns what takes its place (changing single samples is its
    business); a tensor takes the place for all.

    Raises:
        ValueError: a name that the model does not have, or a replacement of another shape.
    """

    def swap(name: str, new: Replacement, out: Tensor) -> Tensor:
        result = new(out) if callable(new) else new
        if result.shape != out.shape:
            raise ValueError(
                f"replacement of {name!r} has shape {tuple(result.shape)}; "
                f"the output has {tuple(out.shape)}"
            )
        return result

    handles = []
    for name, module in _find(model, replacements):
        hook = lambda module, args, out, name=name: swap(name, replacements[name], out)
        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def leaf_names(model: nn.Module, kind: type | tuple[type, ...] = nn.Module) -> list[str]:
    """Names of the modules without children that are of ``kind``, in order of registration."""
    found = []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()) and isinstance(module, kind):
            found.append(name)
    return found


def _find(model: nn.Module, names: Iterable[str]) -> list[tuple[str, nn.Module]]:
    if isinstance(names, str):
        names = [names]
    known = dict(model.named_modules())
    pairs = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or list(known)[1:8]
            raise ValueError(f"names: the model has no module {name!r}; near: {', '.join(near)}")
        pairs.append((name, known[name]))
    return pairs
