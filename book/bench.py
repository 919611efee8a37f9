"""Time the library beside other implementations of the same work, and print the ratios.

Each script in `tests/benchmarks/` defines `main() -> list[dict]`. A row has `name` (the work),
`peer` (what it is compared with), `ratio` (the peer's time over ours: above 1 we are faster) and
whatever else the script measured, such as `memory_ratio` (the peer's peak memory over ours) and the
seconds of both, taken in the same run.
Writes `_build/bench.json`.

examples:
  python -m book bench               every script
  python -m book bench kernels
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from book.cache import write
from book.errors import BookError, nearest

FIRST = ("name", "peer", "ratio")

# Each script runs in a process of its own: what one imports or allocates does not slow the next.
RUNNER = """
import json, runpy, sys
rows = runpy.run_path(sys.argv[1], run_name="book_benchmark")["main"]()
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(rows, file, default=float)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="scripts in tests/benchmarks")


def main(args: argparse.Namespace) -> int:
    folder = args.root / "tests" / "benchmarks"
    scripts = {
        path.stem: path
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_") and path.stem != "conftest"
    }
    if not scripts:
        raise BookError("there is no script in tests/benchmarks")
    for name in args.names:
        if name not in scripts:
            near = nearest(name, scripts) or f"; there are {', '.join(scripts)}"
            raise BookError(f"unknown benchmark {name!r}{near}")
    results, failed = {}, []
    for name in args.names or scripts:
        print(f"{name} ...", flush=True)
        rows = measure(args.root, scripts[name])
        if isinstance(rows, str):
            failed.append(name)
            print(f"FAILED {name}: {rows}", file=sys.stderr)
            continue
        results[name] = rows
        print(table(rows), end="\n\n", flush=True)
    write(args.root / "_build" / "bench.json", json.dumps(results, indent=1) + "\n")
    return 1 if failed else 0


def measure(root: Path, script: Path) -> list[dict[str, Any]] | str:
    """The script's rows, or what went wrong."""
    path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path))
    with tempfile.TemporaryDirectory(prefix="book-") as scratch:
        out = Path(scratch) / "rows.json"
        command = [sys.executable, "-c", RUNNER, str(script), str(out)]
        status = subprocess.run(command, cwd=root, env=environment).returncode
        if status != 0:
            return f"exit status {status}"
        rows = json.loads(out.read_text("utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return "main() must return a list of dictionaries"
    for row in rows:
        if missing := [key for key in FIRST if key not in row]:
            return f"a row lacks {', '.join(missing)}: {row}"
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns: name, peer, ratio, then what else the rows hold."""
    columns = [*FIRST, *dict.fromkeys(key for row in rows for key in row if key not in FIRST)]
    lines = [columns, *([_text(row.get(c), c) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    numeric = [all(isinstance(r.get(c), (int, float, type(None))) for r in rows) for c in columns]
    out = [
        "  ".join(
            cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(line, widths, numeric)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([out[0], "-" * len(out[0]), *out[1:]])


def _text(value: Any, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}x" if column.endswith("ratio") else f"{value:.4g}"
    return str(value)
