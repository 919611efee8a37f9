"""What every benchmark needs: the same work twice, compared first, timed in turn, then weighed."""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lib.core.meters import stopwatch
from tests.helpers import assert_close

# glibc's mallopt options: freed blocks above the limit go back to the system at once.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


def median_seconds(*runs: Callable[[], object], repeats: int = 9) -> list[float]:
    """Median wall time of each of ``runs``, taken in turn after one call each to warm up.

    In turn, so that a machine that is busy for a moment is busy for all of them.
    """
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, seconds in zip(runs, times, strict=True):
            with stopwatch() as watch:
                run()
            if turn > 0:
                seconds.append(watch.seconds)
    return [statistics.median(seconds) for seconds in times]


def resident_bytes(run: Callable[[], object], repeats: int = 3) -> float | None:
    """Most memory that ``run`` makes resident at once beyond what was there, whoever allocates it.

    The process's high-water mark as Linux counts it, so it is the same measure for PyTorch, JAX and
    NumPy. The smallest of ``repeats`` runs: what else the process does can only add to it. None
    where the system does not tell.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_THRESHOLD, 1 << 16)
        libc.mallopt(TRIM_THRESHOLD, 1 << 16)
    except (OSError, AttributeError):
        return None

    def kib(field: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    peaks = []
    try:
        for _ in range(repeats):
            gc.collect()
            libc.malloc_trim(0)
            reset.write_text("5")
            before = kib("VmRSS")
            run()
            peaks.append(1024 * max(0, kib("VmHWM") - before))
    except OSError:
        return None
    finally:
        # Where glibc's own rule ends up once blocks of this size have been freed.
        libc.mallopt(MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(TRIM_THRESHOLD, 1 << 26)
    return float(min(peaks))


def compare(
    name: str,
    peer: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    tol: float | None = 1e-4,
    *,
    repeats: int = 9,
    **more: Any,
) -> dict[str, Any]:
    """One row of a benchmark: ``ratio`` above 1 means that the peer takes longer.

    The results of both sides must agree to relative error ``tol`` before anything is timed;
    ``tol=None`` where they have been compared elsewhere. ``mib`` and ``peer_mib`` are what each
    side makes resident at its worst moment, its results among it, and ``memory_ratio`` is the
    peer's over ours. On a GPU they are not measured.
    """
    if tol is not None:
        a, b = (torch.as_tensor(run()).detach() for run in (ours, theirs))
        assert_close(a, b, tol, name)
    a, b = median_seconds(ours, theirs, repeats=repeats)
    row = {"name": name, "peer": peer, "ratio": b / a, "seconds": a, "peer_seconds": b}
    if not torch.cuda.is_initialized():
        sides = [resident_bytes(run) for run in (ours, theirs)]
        if None not in sides:
            mib, peer_mib = (side / 2**20 for side in sides)
            # Below a mebibyte the count is noise of the interpreter, and a ratio would be too.
            row["memory_ratio"] = peer_mib / mib if min(mib, peer_mib) > 1 else None
            row |= {"mib": mib, "peer_mib": peer_mib}
    return row | more
