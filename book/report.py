"""`_build/report.json`: what ran, how it went, what it claims; and the table at the end of a run.

One row per chapter, in the order of the book:

    part, slug, scale, seed, device   what was run (`parameters` too, if `-p` added some)
    status                            ok, failed, timeout, or cached (all else is from when it ran)
    seconds, cpu_seconds, peak_mb     of the chapter's processes: wall time, processor time, memory
    claims                            rows of text, paper, measured, holds, exact
    error                             None, or cell, cell_id, name, message, traceback
    versions, hardware                what ran it
    key                               digest of all that the result depends on (`book/cache.py`)

A row stands there only while it is true: starting to run a chapter takes its row out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from book.cache import write

FORMAT = 1
HELD_NAMES = {"ok": "ok", "cached": "cached", "failed": "FAILED", "timeout": "TIMEOUT"}


def name_of(row: Mapping[str, Any]) -> str:
    return f"{row['part']}/{row['slug']}"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by `part/slug`; a missing or broken report is an empty one."""
    try:
        rows = json.loads(path.read_text("utf-8"))["chapters"]
        return {name_of(row): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def update(
    path: Path,
    order: Iterable[str],
    rows: Iterable[Mapping[str, Any]] = (),
    drop: Iterable[str] = (),
) -> None:
    """Put rows into the report and take others out, in one step that cannot be seen half done.

    `order` names every chapter there is; rows of others go. Two runs at once do not lose each
    other's rows.
    """
    with _lock(path):
        merged = read(path)
        for name in drop:
            merged.pop(name, None)
        merged.update({name_of(row): dict(row) for row in rows})
        kept = [merged[name] for name in order if name in merged]
        text = json.dumps({"format": FORMAT, "chapters": kept}, indent=1, ensure_ascii=False)
        write(path, text + "\n")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not a Unix system: one run at a time
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(".report.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claims_held(row: Mapping[str, Any]) -> str:
    # A claim that asserts nothing (`holds` is None) is a number reported.
    claims = [c for c in row.get("claims") or [] if c.get("holds") is not None]
    return f"{sum(bool(c.get('holds')) for c in claims)}/{len(claims)}" if claims else "-"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Chapter, status, seconds, peak memory, claims held; then each failure with its traceback."""
    rows = list(rows)
    width = max([len("chapter"), *(len(name_of(row)) for row in rows)])
    head = f"{'chapter':<{width}}  {'status':<7}  {'seconds':>8}  {'peak MB':>8}  {'claims':>6}"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{name_of(row):<{width}}  {HELD_NAMES[row['status']]:<7}  {row['seconds']:>8.1f}"
            f"  {row['peak_mb']:>8.0f}  {claims_held(row):>6}"
        )
    for row in rows:
        if row["error"]:
            lines += ["", failure(row)]
    return "\n".join(lines)


def failure(row: Mapping[str, Any]) -> str:
    """One failed chapter: which cell, what happened, the end of its traceback."""
    error = row["error"]
    cell = "" if error["cell"] is None else f", cell {error['cell']}"
    message = error["message"].strip().split("\n")[0]
    lines = [f"{name_of(row)}{cell}: {error['name']}: {message}".rstrip(": ")]
    lines += ["    " + line for line in error["traceback"].splitlines()]
    return "\n".join(lines)


def length(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
