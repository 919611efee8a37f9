"""What every benchmark needs: the same work twice, compared first, then timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from lib.core.meters import stopwatch
from tests.helpers import assert_close


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
    ``tol=None`` where they have been compared elsewhere.
    """
    if tol is not None:
        a, b = (torch.as_tensor(run()).detach() for run in (ours, theirs))
        assert_close(a, b, tol, name)
    a, b = median_seconds(ours, theirs, repeats=repeats)
    return {"name": name, "peer": peer, "ratio": b / a, "seconds": a, "peer_seconds": b, **more}
