"""Run Colab copies to their end, each alone in an empty folder, and write down which passed when.

    python book/colab_pass.py DIR [CHAPTER ...] [--passes FILE] [--ref REF] [--before CODE]

DIR is what `python -m book colab --out DIR` wrote. This file stands alone: besides the standard
library it needs nbclient and nbformat, so that the Python of Colab's image can run it without the
rest of the press. A copy passes when no cell raises; the checks of exercises catch what an
unanswered exercise raises.

FILE holds for each chapter its last pass; a chapter that fails keeps the date of the last one:

    {"format": 1, "chapters": {"width/ntk": {"date": "2026-03-02", "ref": "...", "seconds": 31.5,
                                             "python": "3.12.3", "torch": "2.9.0"}}}

Exit status: 0 all passed, 1 some did not, 2 there is nothing to run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT = 900
"""Seconds for one cell; Colab's machines are slow at times."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR")
    add("names", nargs="*", metavar="CHAPTER", help="part/slug; default: every copy in DIR")
    add("--passes", type=Path, metavar="FILE", help="where to write down what passed")
    add("--ref", default="", help="what the copies were made from")
    add("--before", default="", metavar="CODE", help="code for the kernel to run first")
    add("--timeout", type=int, default=TIMEOUT, metavar="SECONDS", help="limit for one cell")
    args = parser.parse_args(arguments)
    found = copies(args.folder)
    names = args.names or list(found)
    if unknown := [name for name in names if name not in found]:
        print(f"colab_pass: no copy of {unknown[0]!r} in {args.folder}", file=sys.stderr)
        return 2
    if not names:
        print(f"colab_pass: no copies in {args.folder}", file=sys.stderr)
        return 2
    failed = []
    for number, name in enumerate(names, 1):
        row = run(found[name], args.before, args.timeout)
        said = f"[{number}/{len(names)}] {name}: {row['seconds']:.0f} s"
        print(f"{said}, FAILED in {row['error']}" if row["error"] else said, flush=True)
        if row["error"]:
            failed.append(name)
        elif args.passes:
            record(args.passes, name, row["seconds"], args.ref)
    print(
        f"{len(names) - len(failed)} of {len(names)} passed" + "".join(f"\n  {n}" for n in failed)
    )
    return 1 if failed else 0


def copies(folder: Path) -> dict[str, Path]:
    """The notebooks in `folder/chapters/<part>/`, by `part/slug`."""
    paths = sorted((folder / "chapters").glob("*/*.ipynb"))
    return {f"{path.parent.name}/{path.stem}": path for path in paths}


def run(path: Path, before: str = "", timeout: int = TIMEOUT) -> dict[str, Any]:
    """Execute one copy where nothing else lies; `error` is None or says which cell raised what."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    if before:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(before))
    started = time.monotonic()
    error = None
    with tempfile.TemporaryDirectory(prefix="colab-") as empty:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": empty}},
        )
        try:
            client.execute()
        except CellExecutionError as problem:
            error = f"{_place(notebook, bool(before))}: {problem.ename}: {problem.evalue}"
        except Exception as problem:  # the kernel died or a cell took too long
            error = f"{_place(notebook, bool(before))}: {type(problem).__name__}: {problem}"
    return {"seconds": round(time.monotonic() - started, 1), "error": error, "notebook": notebook}


def _place(notebook: Any, shifted: bool) -> str:
    """The cell that was running: the last code cell that was begun."""
    begun = [
        number
        for number, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and (cell.execution_count or cell.outputs)
    ]
    return f"cell {begun[-1] - shifted}" if begun else "the start"


def record(path: Path, name: str, seconds: float, ref: str = "") -> None:
    """Write down that a chapter passed today."""
    passes = read(path)
    passes[name] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "ref": ref,
        "seconds": seconds,
        "python": platform.python_version(),
        "torch": _version("torch"),
    }
    text = json.dumps({"format": 1, "chapters": dict(sorted(passes.items()))}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text + "\n", "utf-8")
    os.replace(part, path)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """What passed when, by chapter; nothing where the file is missing or not ours."""
    try:
        content = json.loads(path.read_text("utf-8"))
        chapters = content["chapters"] if content["format"] == 1 else {}
        return {name: row for name, row in chapters.items() if _is_date(row["date"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def last_pass(root: Path, name: str) -> datetime.date | None:
    """The day on which a chapter last ran to its end in Colab's image, as the site knows it."""
    row = read(root / "book" / "results" / "colab_passes.json").get(name)
    return datetime.date.fromisoformat(row["date"]) if row else None


def _is_date(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", text) is not None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
