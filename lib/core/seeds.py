"""Random numbers that can be repeated, and the choice of device."""

from __future__ import annotations

import functools
import hashlib
import random

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and PyTorch, and return a CPU generator with the same seed.

    The same seed gives the same numbers on the same machine.

    Raises:
        ValueError: ``seed`` is negative or does not fit 32 bits (NumPy's limit).
    """
    _check_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def child(seed: int, *key: int | str) -> torch.Generator:
    """A generator for the stream ``key`` of ``seed``, independent of every other key's.

    ``child(0, "data")`` and ``child(0, "init", 3)`` do not overlap, and neither depends on how
    many numbers the other has drawn.
    """
    return torch.Generator().manual_seed(_mix(seed, *key))


def batch_indices(n: int, batch: int, step: int, seed: int) -> Int[Tensor, "batch"]:
    """Indices of the mini-batch at ``step``: a slice of the permutation of (seed, epoch).

    An epoch has ``n // batch`` full batches; the remainder is left out and returns in another
    permutation. The result depends on (seed, step) alone, so a run that is rewound, or a second
    run beside it, sees the same batches.

    Raises:
        ValueError: ``batch`` is not between 1 and ``n``, or ``step`` is negative.
    """
    if not 1 <= batch <= n:
        raise ValueError(f"batch={batch}: allowed is 1 to n={n}")
    if step < 0:
        raise ValueError(f"step={step}: allowed is 0 or more")
    epoch, position = divmod(step, n // batch)
    return _order(n, epoch, seed)[position * batch : (position + 1) * batch].clone()


@functools.lru_cache(maxsize=64)
def _order(n: int, epoch: int, seed: int) -> Tensor:
    # Every step of an epoch asks for the same permutation.
    return torch.randperm(n, generator=child(seed, "epoch", epoch))


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """``"auto"`` is CUDA, then MPS, then CPU; anything else is what it says.

    Raises:
        ValueError: the device does not exist here or its name is not one PyTorch knows.
    """
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is no device; allowed are 'auto', 'cpu', 'cuda', 'cuda:N', 'mps'"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: no CUDA device here; use 'auto' or 'cpu'")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}: no MPS device here; use 'auto' or 'cpu'")
    return chosen


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: allowed is 0 to 2**32 - 1")


def _mix(seed: int, *key: int | str) -> int:
    # A hash and not a sum: seed + index would make (0, 1) and (1, 0) the same stream.
    _check_seed(seed)
    text = "/".join([str(int(seed)), *(f"{type(k).__name__}:{k}" for k in key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
