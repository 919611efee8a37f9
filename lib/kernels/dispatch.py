"""Which implementation of an operator runs: Triton on CUDA tensors, the reference elsewhere."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton exists for Linux only; every operator has its reference.
    triton = None
    tl = None

Backend = Literal["auto", "triton", "reference"]


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def pick_backend(backend: str, *tensors: Tensor) -> Literal["triton", "reference"]:
    """Choose the implementation for ``tensors``.

    ``"auto"`` runs Triton where all tensors are on one CUDA device and Triton is installed, the
    reference otherwise. ``"triton"`` insists: it raises where the kernel cannot run, so that a
    benchmark never times the reference by mistake. The interpreter counts as a place where it
    can run.

    Raises:
        ValueError: unknown ``backend``; tensors on different devices; ``"triton"`` with CPU
            tensors outside the interpreter.
        ModuleNotFoundError: ``"triton"`` where Triton is not installed.
    """
    if backend not in ("auto", "triton", "reference"):
        raise ValueError(f"backend={backend!r}: allowed are 'auto', 'triton' and 'reference'")
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, got {', '.join(devices)}")
    if backend == "reference":
        return "reference"
    on_cuda = bool(tensors) and all(t.is_cuda for t in tensors)
    if backend == "auto":
        return "triton" if on_cuda and triton is not None else "reference"
    if triton is None:
        raise ModuleNotFoundError("backend='triton' needs the package triton: pip install triton")
    if not on_cuda and not interpreting():
        where = devices[0] if devices else "no device"
        raise ValueError(
            f"backend='triton' needs CUDA tensors, got {where}; "
            "set TRITON_INTERPRET=1 before the import to run kernels in Triton's interpreter"
        )
    return "triton"


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise a ``TypeError`` that names argument, dtype and what is allowed."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: dtype {got} is not supported; allowed are {names}")
