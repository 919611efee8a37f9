"""What the repository says about itself: its address, its parts and papers, its chapters.

Reads `_config.yml`, `_toc.yml`, `book/papers.csv` and the notebooks; imports nothing of `lib` and
runs nothing, so that every verb of the press may use it.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from book.errors import BookError
from book.prerequisites import Prerequisites

ROOT = Path(__file__).resolve().parent.parent

PARTS = {
    "width": "Width",
    "dynamics": "Dynamics",
    "architecture": "Architecture",
    "optimization": "Optimization",
    "beyond_backprop": "Beyond backpropagation",
    "compression": "Compression",
    "in_context": "In-context learning",
    "language": "Language",
    "interpretability": "Interpretability",
    "transfer": "Transfer",
    "graphs": "Graphs",
    "diffusion": "Diffusion",
    "science": "Science",
}
"""The thirteen parts in reading order, with the name a reader sees."""


OPENING = "index"
"""The file of a part's first page: prose, or a notebook where it computes something."""


class SourceError(BookError):
    """Something in the repository is missing or malformed; the message says what."""


@dataclass(frozen=True)
class Paper:
    part: str
    slug: str
    title: str


@dataclass(frozen=True)
class Chapter:
    """One notebook under `chapters/`."""

    part: str
    slug: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.part}/{self.slug}"

    @property
    def is_opening(self) -> bool:
        """Whether it is its part's first page, which computes something and is no paper's."""
        return self.slug == OPENING

    @property
    def docname(self) -> str:
        return f"chapters/{self.part}/{self.slug}"

    @cached_property
    def notebook(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise SourceError(
                f"{self.path}: not a notebook (line {error.lineno}: {error.msg})"
            ) from None

    @property
    def book(self) -> dict[str, Any]:
        """The chapter's own record: title, paper, needs, gives, minutes."""
        return self.notebook.get("metadata", {}).get("book", {})


@dataclass(frozen=True)
class Source:
    """A checkout of the book."""

    root: Path = ROOT

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_yaml(self.root / "_config.yml")

    @property
    def address(self) -> str:
        """Where the repository lives, e.g. `https://github.com/owner/name`."""
        try:
            return self.config["repository"]["url"].rstrip("/")
        except (KeyError, TypeError, AttributeError):
            raise SourceError("_config.yml: repository.url is missing") from None

    @property
    def site(self) -> str:
        """Where the printed book lives, with a slash at the end."""
        address = (self.config.get("html") or {}).get("baseurl")
        if not isinstance(address, str) or not address.startswith("https://"):
            raise SourceError("_config.yml: html.baseurl is missing; give the site's https address")
        return address.rstrip("/") + "/"

    @property
    def branch(self) -> str:
        return self.config.get("repository", {}).get("branch", "main")

    @property
    def github_name(self) -> str:
        """`owner/name`."""
        return "/".join(self.address.split("/")[-2:])

    def link(self, path: str) -> str:
        """The page of a file of the repository, e.g. `lib/width/ntk.py#L10-L42`."""
        return f"{self.address}/blob/{self.branch}/{path}"

    def colab(self, chapter: Chapter) -> str:
        path = f"{chapter.docname}.ipynb"
        base = "https://colab.research.google.com/github"
        return f"{base}/{self.github_name}/blob/colab/{path}"

    @property
    def setup_cell(self) -> str:
        """The first code cell of every chapter."""
        return (
            "import sys\n"
            "\n"
            'if "google.colab" in sys.modules:'
            "  # installs `lib` on Colab, and only there\n"
            f'    %pip install -q "git+{self.address}"'
        )

    @cached_property
    def toc(self) -> dict[str, Any]:
        return read_yaml(self.root / "_toc.yml")

    @cached_property
    def toc_files(self) -> list[str]:
        """Every page that `_toc.yml` names, in order, without suffix."""
        files: list[str] = []

        def walk(node: Any) -> None:
            if isinstance(node, list):
                for item in node:
                    walk(item)
            elif isinstance(node, dict):
                for key in ("root", "file"):
                    if key in node:
                        files.append(str(node[key]).removesuffix(".md").removesuffix(".ipynb"))
                for key in ("parts", "chapters", "sections", "subtrees", "entries"):
                    walk(node.get(key, []))

        walk(self.toc)
        return files

    @cached_property
    def papers(self) -> list[Paper]:
        with open(self.root / "book" / "papers.csv", encoding="utf-8", newline="") as file:
            return [Paper(**row) for row in csv.DictReader(file)]

    @cached_property
    def all_chapters(self) -> list[Chapter]:
        """Every notebook under `chapters/`, in the order of the parts and of `papers.csv`."""
        rank = {(paper.part, paper.slug): i for i, paper in enumerate(self.papers)}
        parts = list(PARTS)
        found = [
            Chapter(path.parent.name, path.stem, path)
            for path in (self.root / "chapters").glob("*/*.ipynb")
            if path.stem != OPENING
        ]
        return sorted(
            found,
            key=lambda c: (
                parts.index(c.part) if c.part in parts else len(parts),
                rank.get((c.part, c.slug), len(rank)),
                c.slug,
            ),
        )

    @cached_property
    def chapters(self) -> list[Chapter]:
        """The chapters that `_toc.yml` lists: those that are printed."""
        listed = set(self.toc_files)
        return [chapter for chapter in self.all_chapters if chapter.docname in listed]

    @cached_property
    def all_openings(self) -> list[Chapter]:
        """The parts' first pages that are notebooks."""
        paths = {part: self.root / "chapters" / part / f"{OPENING}.ipynb" for part in PARTS}
        return [Chapter(part, OPENING, path) for part, path in paths.items() if path.is_file()]

    @cached_property
    def openings(self) -> list[Chapter]:
        """Those of them that `_toc.yml` lists."""
        listed = set(self.toc_files)
        return [opening for opening in self.all_openings if opening.docname in listed]

    @cached_property
    def prerequisites(self) -> Prerequisites:
        """Which printed chapter to read before which."""
        return Prerequisites(self, self.chapters)


def text_of(cell: dict[str, Any]) -> str:
    """A cell's source as one string."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def python_of(code: str) -> str:
    """A code cell without the lines that only IPython understands; each becomes `pass`.

    What is Python already stays as it is: a long expression may go on with a line of `% 2` or
    `!= 0`. `pass` keeps an indented block whole.
    """
    try:
        ast.parse(code)
        return code
    except (SyntaxError, ValueError):
        pass
    lines = code.splitlines()
    if lines and lines[0].lstrip().startswith("%%"):
        lines[0] = "pass"
    return "\n".join(re.sub(r"^(\s*)[%!?].*$", r"\1pass", line) for line in lines)


def tags_of(cell: dict[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file, or the error that says what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path.name} is missing in {path.parent}") from None
    except yaml.YAMLError as error:
        raise SourceError(f"{path.name}: {error}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path.name}: expected a mapping")
    return content
