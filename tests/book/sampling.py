"""Which pages and which graders of a large book get the dear checks today.

Every page is looked at in every run. Both themes' contrast, the pictures without scripts, the
sliders, the first load and wrong answers to the exercises take seconds a chapter: where there are
more than `FEW` of a kind, those that changed get them and an eighth of the others, another eighth
with every commit and every week. BOOK_SITE_ALL=1 takes them all.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import zlib
from collections.abc import Iterable
from pathlib import Path

FEW = 12
SHARE = 8


def sample(pages: Iterable[str], changed: Iterable[str], turn: int, few: int = FEW) -> list[str]:
    """The pages to look at closely: all of a few; else those that changed, then a rotating share.

    Parameters
    ----------
    pages
        addresses within the site, e.g. `chapters/width/ntk.html`.
    changed
        files of the repository; a chapter's are its notebook and its module.
    turn
        which eighth; eight turns in a row see every page.
    """
    pages = list(dict.fromkeys(pages))
    if len(pages) <= few or os.environ.get("BOOK_SITE_ALL") == "1":
        return pages
    names = {name for path in changed for name in names_of(path)}
    fresh = [page for page in pages if page.removesuffix(".html") in names]
    share = [page for page in pages if (zlib.crc32(page.encode()) - turn) % SHARE == 0]
    return list(dict.fromkeys([*fresh, *share]))


def names_of(path: str) -> set[str]:
    """The pages that a file of the repository belongs to, without suffix."""
    first, _, rest = path.removeprefix("tests/graders/").partition("/")
    if path.startswith("tests/graders/"):
        first, rest = "chapters", f"{first}/{rest}"
    pieces = rest.split("/")
    if first not in ("chapters", "lib") or len(pieces) < 2:
        return set()
    slug = pieces[1].removesuffix(".ipynb").removesuffix(".py")
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return {f"chapters/{pieces[0]}/{slug}", f"reference/{module}"}


def changes(root: Path) -> list[str]:
    """Files that differ from where the branch began; on the main branch, from the last commit."""
    base = "HEAD~1"
    head = _git(root, "rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        fork = _git(root, "merge-base", "HEAD", main)
        if fork and fork != head:
            base = fork[0]
            break
    new = _git(root, "ls-files", "--others", "--exclude-standard")
    return sorted({*(_git(root, "diff", "--name-only", base)), *new})


def turn(root: Path, day: datetime.date | None = None) -> int:
    """Commits so far, and weeks: a clone that knows one commit rotates by the week."""
    count = _git(root, "rev-list", "--count", "HEAD")
    week = (day or datetime.date.today()).toordinal() // 7
    return week + (int(count[0]) if count else 0)


def _git(root: Path, *arguments: str) -> list[str]:
    """Lines of an answer; none where there is no git, no repository or no such commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
