"""The stages of ``make test``, in order: what each does, how long it took, how long is left.

    python tests/stages.py [STAGE ...]

A stage that fails does not hide the next ones: all run, and the exit status is 1 at the end.
Times of the last run stand in ``_build/stages.json`` and give the estimate of what is left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMES = ROOT / "_build" / "stages.json"
PYTHON = sys.executable
BIN = Path(PYTHON).parent

# Seconds on two cores the first time, when nothing was measured yet.
STAGES: dict[str, tuple[str, float, list[list[str]]]] = {
    "lint": (
        "style, import floors, chapter anatomy",
        20,
        [
            [str(BIN / "ruff"), "check", "--quiet", "."],
            [str(BIN / "ruff"), "format", "--check", "--quiet", "."],
            [str(BIN / "lint-imports"), "--no-cache"],
            [PYTHON, "-m", "book", "check"],
        ],
    ),
    "unit": (
        "tests of the library, its kernels and the press",
        300,
        [
            [PYTHON, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not site"]
            + ["--cov", "--cov-report=term:skip-covered", "tests"]
        ],
    ),
    "chapters": (
        "every chapter with papermill, at small scale",
        150,
        [[PYTHON, "-m", "book", "run", "--scale", "small"]],
    ),
    "site": ("the site, warnings are errors", 60, [[PYTHON, "-m", "book", "build"]]),
    "browser": (
        "the site in a real browser",
        60,
        [[PYTHON, "-m", "pytest", "-q", "-n", "2", "-m", "site", "tests/book"]],
    ),
}


def main(names: list[str]) -> int:
    if unknown := [n for n in names if n not in STAGES]:
        print(f"no stage {unknown[0]!r}; there are {', '.join(STAGES)}", file=sys.stderr)
        return 2
    names = names or list(STAGES)
    if "browser" in names and not chromium():
        print(
            "The browser stage needs Chromium: `apt-get install chromium` (Debian, Ubuntu), or "
            "set BOOK_CHROMIUM to its path.",
            file=sys.stderr,
        )
        return 2
    known = {n: seconds for n, (_, seconds, _) in STAGES.items()} | read_times()
    env = dict(os.environ, PYTHONPATH=str(ROOT), BOOK_REQUIRE_BROWSER="1")
    failed, times = [], {}
    for i, name in enumerate(names):
        left = sum(known[n] for n in names[i:])
        say(f"[{i + 1}/{len(names)}] {name}: {STAGES[name][0]} (about {minutes(left)} left)")
        start = time.monotonic()
        for command in STAGES[name][2]:
            if subprocess.run(command, cwd=ROOT, env=env).returncode != 0:
                failed.append(name)
                say(f"FAILED in {name}: {' '.join(command).replace(str(ROOT) + '/', '')}")
        times[name] = time.monotonic() - start
        say(f"[{i + 1}/{len(names)}] {name}: {minutes(times[name])}")
    TIMES.parent.mkdir(exist_ok=True)
    TIMES.write_text(json.dumps(read_times() | times, indent=1))
    total = minutes(sum(times.values()))
    if failed:
        say(f"Failed after {total}: {', '.join(dict.fromkeys(failed))}")
        return 1
    say(f"All green in {total}: {', '.join(names)}")
    return 0


def chromium() -> str | None:
    """Path of the browser, or None."""
    if path := os.environ.get("BOOK_CHROMIUM"):
        return path if Path(path).exists() else None
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


def read_times() -> dict[str, float]:
    try:
        return {n: float(s) for n, s in json.loads(TIMES.read_text()).items() if n in STAGES}
    except (OSError, ValueError):
        return {}


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
