"""What a computation costs: seconds, bytes, FLOPs, calls, waiting.

Each meter takes a function without arguments and runs it, except :func:`stopwatch` and
:func:`count_calls`, which are contexts. Memory comes in three kinds. :func:`saved_bytes` is what
autograd keeps between forward and backward, exact and the same on every device: the number to
compare training rules by. :func:`peak_bytes` is everything allocated at the worst moment.
:func:`state_bytes` is what an optimizer holds between steps.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Watch:
    """``seconds`` of wall time and ``cpu_seconds`` of processor time once the context has ended."""

    seconds: float = float("nan")
    cpu_seconds: float = float("nan")


@contextmanager
def stopwatch() -> Iterator[Watch]:
    """Time a block; a CUDA device is synchronized on both ends."""
    watch = Watch()
    _synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    yield watch
    _synchronize()
    watch.seconds, watch.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu


def saved_bytes(fn: Callable[[], object], exclude: nn.Module | Iterable[Tensor] = ()) -> int:
    """Peak bytes of the tensors that autograd holds for a later backward pass while ``fn`` runs.

    Storages are counted once, however many operations save them, and only while they are held:
    ``fn`` may run several backward passes, each of which lets go of what it used.

    Args:
        exclude: a module, whose parameters and buffers are not counted, or tensors (the input,
            say). Parameters are left out in any case.
    """
    if isinstance(exclude, nn.Module):
        exclude = [*exclude.parameters(), *exclude.buffers()]
    ledger = _Ledger({t.untyped_storage().data_ptr() for t in exclude})
    with torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda packed: packed.tensor):
        fn()
    return ledger.peak


class _Ledger:
    def __init__(self, excluded: set[int]):
        self.excluded, self.held, self.now, self.peak = excluded, Counter(), 0, 0

    def pack(self, tensor: Tensor) -> _Packed:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        packed = _Packed(tensor)
        owner = tensor if tensor._base is None else tensor._base
        if size == 0 or isinstance(owner, nn.Parameter) or key in self.excluded:
            return packed
        if self.held[key] == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.held[key] += 1
        weakref.finalize(packed, self.release, key, size)
        return packed

    def release(self, key: int, size: int) -> None:
        self.held[key] -= 1
        if self.held[key] == 0:
            self.now -= size


class _Packed:
    """What the graph keeps instead of the tensor; its end is the tensor's release."""

    __slots__ = ("tensor", "__weakref__")

    def __init__(self, tensor: Tensor):
        # Detached: an operation's own output, saved with its history, would keep itself alive.
        self.tensor = tensor.detach()


def peak_bytes(fn: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes alive at once beyond what was there before, while ``fn`` runs.

    On CUDA this is the allocator's own counter. On the CPU every tensor that an operation returns
    is followed until its storage is freed; scratch memory inside an operation is not seen.

    Raises:
        ValueError: a device that is neither the CPU nor CUDA.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise ValueError(f"device={device}: allowed are 'cpu' and 'cuda'")
    with _Allocations() as seen:
        fn()
    return seen.peak


class _Allocations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        }
        out = func(*args, **kwargs)
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._follow(t.untyped_storage(), inputs)
        return out

    def _follow(self, storage, inputs: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in inputs or key in self.known or size == 0:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def flops(fn: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions that ``fn`` runs, forward and backward.

    A multiply-add counts as two. Element-wise work is not counted.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        fn()
    return int(counter.get_total_flops())


class count_ops(TorchDispatchMode):
    """Context: how often each tensor operation runs, by name (``"mm"``, ``"mul"``, ``"lif"``).

    ``.counts`` is a ``Counter``. Views and other operations that move no data are left out.
    """

    VIEWS = frozenset(
        "view t transpose permute expand squeeze unsqueeze detach select slice alias "
        "_unsafe_view unbind split as_strided".split()
    )

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in self.VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


PRODUCTS = frozenset(
    "mm addmm bmm baddbmm addbmm mv addmv dot vdot convolution convolution_overrideable "
    "convolution_backward _scaled_dot_product_flash_attention_for_cpu".split()
)


def waiting(
    fn: Callable[[], object], groups: Mapping[str, nn.Module | Iterable[Tensor]]
) -> dict[str, int]:
    """How many products stand in line before each group of parameters has its update.

    The length of the longest chain of matrix products and convolutions, each waiting for the one
    before, from the start of ``fn`` to the values that the group holds when ``fn`` has ended. It is
    the time of a training step on a machine that does everything at once that can be done at once,
    in units of a product; element-wise work is free. A layer trained by back-propagation through
    ``L`` layers waits for all of them, up and down; a layer that needs nobody waits for its own
    products alone.

    Args:
        fn: one training step, which changes the parameters in place, as optimizers do.
        groups: a module, or tensors, by name.

    Raises:
        ValueError: a group that holds no tensors, or whose tensors ``fn`` leaves alone.
    """
    members = {
        name: list(group.parameters() if isinstance(group, nn.Module) else group)
        for name, group in groups.items()
    }
    with _Chains() as chains:
        fn()
    out = {}
    for name, tensors in members.items():
        if not any(chains.reached(t) for t in tensors):
            what = "holds no tensors" if not tensors else "is not changed in place by fn"
            raise ValueError(f"groups: {name!r} {what}")
        out[name] = max(chains.length(t) for t in tensors)
    return out


class _Chains(TorchDispatchMode):
    """Longest chain of products behind every storage; an operation on lists goes item by item."""

    def __init__(self):
        super().__init__()
        self.lengths: dict[int, int] = {}
        self.written: set[int] = set()
        # Held, so that no address is used twice.
        self.storages: list[torch.UntypedStorage] = []

    def reached(self, t: Tensor) -> bool:
        return t.untyped_storage()._cdata in self.written

    def length(self, t: Tensor) -> int:
        return self.lengths.get(t.untyped_storage()._cdata, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        out = func(*args, **kwargs)
        changed = [
            value
            for argument, value in self._bound(func, args, kwargs)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self.written |= {t.untyped_storage()._cdata for t in _tensors(changed)}
        if name.startswith(("_foreach_", "_fused_")):
            given = [*args, *kwargs.values()]
            lists = [a for a in given if isinstance(a, (list, tuple)) and a]
            rest = [a for a in given if not isinstance(a, (list, tuple))]
            for targets in changed or [out]:
                for i, target in enumerate(targets):
                    self._set([target], [[each[i] for each in lists], rest], 0)
        else:
            self._set([out, changed], [args, kwargs], int(name.rstrip("_") in PRODUCTS))
        return out

    def _set(self, targets, sources, cost: int) -> None:
        length = max((self.length(t) for t in _tensors(sources)), default=0) + cost
        for t in _tensors(targets):
            storage = t.untyped_storage()
            if storage._cdata not in self.lengths:
                self.storages.append(storage)
            self.lengths[storage._cdata] = length

    @staticmethod
    def _bound(func, args, kwargs):
        arguments = func._schema.arguments
        yield from zip(arguments, args)
        yield from ((a, kwargs[a.name]) for a in arguments if a.name in kwargs)


def _tensors(tree) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


@dataclass
class Calls:
    """``total`` calls and ``samples``, the sum of the first argument's first axis."""

    total: int = 0
    samples: int = 0
    shapes: Counter = field(default_factory=Counter)


@contextmanager
def count_calls(module: nn.Module) -> Iterator[Calls]:
    """Count the calls of ``module`` (network evaluations) inside the block."""
    calls = Calls()

    def hook(_module, args):
        calls.total += 1
        if args and isinstance(args[0], Tensor):
            calls.samples += args[0].shape[0] if args[0].ndim else 1
            calls.shapes[tuple(args[0].shape)] += 1

    handle = module.register_forward_pre_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors in the optimizer's state (momenta, second moments)."""
    tensors = [t for t in tree_leaves(list(optimizer.state.values())) if isinstance(t, Tensor)]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
