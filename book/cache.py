"""What a chapter's result depends on, and the results kept.

A result may be used again when nothing that made it has changed:

* the notebook: every cell and what its metadata says, but no outputs and no layout of the JSON;
* every module of `lib` that it imports, and what those import, and the data files beside them;
* the parameters: scale, seed, device and what `-p` added;
* the version of Python and of each package that the notebook and those modules import, with the
  packages that these require.

Imports are read from the syntax tree and nothing is imported, so the keys of all chapters take a
moment. A name in a string, as in `show("lib.width.ntk:recursion")`, counts as an import.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from book.source import python_of, text_of

FORMAT = 1
"""Part of every key. Raise it when the press changes what an executed chapter looks like."""

KEPT = 4  # results per chapter: small and full, before and after an edit

# Metadata that says how an editor shows a cell, or when it ran.
VOLATILE = {"execution", "papermill", "ExecuteTime", "collapsed", "scrolled", "trusted", "widgets"}
# Packages that decide how outputs look although no chapter imports them.
MACHINERY = ("ipykernel", "ipython", "nbformat")
# Of `installed`, what is not a package.
MACHINE = ("python", "platform", "gpu")


# ---------------------------------------------------------------- the key


def key(
    notebook: Mapping[str, Any],
    sources: Mapping[str, str],
    parameters: Mapping[str, Any],
    versions: Mapping[str, str | None],
) -> str:
    """Digest of all that decides a chapter's result; `sources` maps files to their digests."""
    parts = {
        "format": FORMAT,
        "notebook": essence(notebook),
        "sources": dict(sources),
        "parameters": dict(parameters),
        "versions": dict(versions),
    }
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def essence(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """What of a notebook matters: its cells and the book's record, without outputs."""

    def stable(metadata: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in metadata.items() if k not in VOLATILE}

    cells = [
        [cell["cell_type"], cell.get("id"), text_of(cell), stable(cell.get("metadata", {}))]
        for cell in notebook.get("cells", [])
    ]
    metadata = stable(notebook.get("metadata", {}))
    for name in ("kernelspec", "language_info"):  # the press brings its own kernel
        metadata.pop(name, None)
    return {"cells": cells, "metadata": metadata}


# ---------------------------------------------------------------- what a chapter imports


@dataclass(frozen=True)
class Needs:
    """What the code of a chapter rests on."""

    files: dict[str, str]
    """Digest of each file of `lib`, by its path from the root."""
    packages: frozenset[str]
    """Top-level names of everything imported that is neither `lib` nor the standard library."""


@dataclass
class Library:
    """The sources below `root/lib`, each read once."""

    root: Path
    package: str = "lib"
    _imports: dict[Path, set[str]] = field(default_factory=dict)
    _digests: dict[Path, str] = field(default_factory=dict)

    def needs(self, notebook: Mapping[str, Any]) -> Needs:
        """Every file of `lib` and every package that running the notebook may load."""
        wanted: list[str] = []
        for cell in notebook.get("cells", []):
            if cell["cell_type"] == "code":
                wanted += imports_of_cell(text_of(cell))
        packages: set[str] = set()
        modules: set[Path] = set()
        while wanted:
            name = wanted.pop()
            top = name.split(".")[0]
            if top != self.package:
                if top not in sys.stdlib_module_names:
                    packages.add(top)
                continue
            for path in self.files_of(name) - modules:
                modules.add(path)
                wanted += self.imports(path)
        files = modules | {data for path in modules for data in self.data_beside(path)}
        digests = {path.relative_to(self.root).as_posix(): self.digest(path) for path in files}
        return Needs(digests, frozenset(packages))

    def files_of(self, name: str) -> set[Path]:
        """Files that `import name` runs: the packages above it and, if there is one, the module.

        The last part of a name may be a function; then there is no such file, and that is fine.
        """
        found = set()
        folder = self.root
        for part in name.split("."):
            module, folder = folder / f"{part}.py", folder / part
            package = folder / "__init__.py"
            found |= {path for path in (module, package) if path.is_file()}
        return found

    def imports(self, path: Path) -> set[str]:
        if path not in self._imports:
            folder = path.parent.relative_to(self.root)
            text = path.read_text("utf-8", errors="replace")
            self._imports[path] = set(imports_of(text, ".".join(folder.parts)))
        return self._imports[path]

    def data_beside(self, path: Path) -> Iterator[Path]:
        """Files of a module's package that are not modules, such as `lib/core/static/*`."""

        def walk(folder: Path) -> Iterator[Path]:
            for entry in sorted(folder.iterdir()):
                if entry.name.startswith((".", "__pycache__")):
                    continue
                if entry.is_dir():
                    if not any(entry.glob("*.py")):
                        yield from walk(entry)
                elif entry.suffix not in (".py", ".pyc"):
                    yield entry

        if path.parent != self.root:
            yield from walk(path.parent)

    def digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._digests[path]


def imports_of_cell(text: str) -> list[str]:
    """Names that a cell imports; lines that only IPython understands are left out."""
    return list(imports_of(python_of(text)))


def imports_of(text: str, package: str = "") -> Iterator[str]:
    """Dotted names that Python source may import, inside functions too.

    `from a.b import c` gives `a.b` and `a.b.c`, for `c` may be a module. A relative import counts
    from `package`. Source that does not parse is searched line by line.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        for match in re.finditer(r"^\s*(?:from|import)\s+([\w.]+)", text, re.MULTILINE):
            yield match.group(1)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            yield base
            for alias in node.names:
                if alias.name != "*":
                    yield f"{base}.{alias.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"lib(\.[A-Za-z_]\w*)+(:.*)?", node.value):
                yield node.value.split(":")[0]


# ---------------------------------------------------------------- which versions matter


def relevant(
    installed: Mapping[str, str], packages: Iterable[str], root: Path
) -> dict[str, str | None]:
    """Version of all that `packages` bring in; None for what is not there.

    Added: what every chapter runs on, and what the project's own metadata requires.
    """
    names = {*MACHINERY, *_required(root)}
    owners = _owners()
    for package in packages:
        names |= {canonical(owner) for owner in owners.get(package, [package])}
    wanted = list(names)
    while wanted:
        for name in _requires(wanted.pop()) - names:
            names.add(name)
            wanted.append(name)
    return {name: installed.get(name) for name in sorted({*names, *MACHINE})}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        try:
            name = distribution.metadata["Name"]
            tops = set((distribution.read_text("top_level.txt") or "").split())
            for line in (distribution.read_text("RECORD") or "").splitlines():
                tops.add(line.split(",", 1)[0].split("/", 1)[0].removesuffix(".py"))
        except Exception:
            continue  # what a broken removal left behind
        for top in filter(str.isidentifier, tops):
            owners.setdefault(top, []).append(name)
    return owners


@functools.cache
def _requires(name: str) -> frozenset[str]:
    """Distributions that an installed one requires here, without extras."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return frozenset()
    found = set()
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.add(canonical(requirement.name))
    return frozenset(found)


def _required(root: Path) -> set[str]:
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return set()
    return {
        canonical(re.match(r"[\w.-]+", line).group()) for line in project.get("dependencies", [])
    }


# ---------------------------------------------------------------- the results kept


@dataclass(frozen=True)
class Store:
    """`_build/cache/<part>/<slug>/<key>.json`, with the executed notebook beside it.

    The row is written last: while it is missing, there is no result.
    """

    folder: Path

    def get(self, name: str, key: str) -> tuple[dict[str, Any], str] | None:
        """The report's row and the executed notebook, or None."""
        row, notebook = self._paths(name, key)
        try:
            return json.loads(row.read_text("utf-8")), notebook.read_text("utf-8")
        except (OSError, ValueError):
            return None

    def put(self, name: str, key: str, row: Mapping[str, Any], notebook: str) -> None:
        path, executed = self._paths(name, key)
        write(executed, notebook)
        write(path, json.dumps(row, indent=1, ensure_ascii=False))
        rows = sorted(path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime)
        for old in rows[:-KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".ipynb").unlink(missing_ok=True)

    def seconds(self, name: str, scale: str) -> float | None:
        """How long the chapter took when it last ran at this scale."""
        paths = sorted(self._paths(name, "x")[0].parent.glob("*.json"), key=_age)
        for path in reversed(paths):
            try:
                row = json.loads(path.read_text("utf-8"))
                if row["scale"] == scale:
                    return float(row["seconds"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def _paths(self, name: str, key: str) -> tuple[Path, Path]:
        return self.folder / name / f"{key}.json", self.folder / name / f"{key}.ipynb"


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; an equal one keeps its time, which builds look at."""
    try:
        if path.read_text("utf-8") == text:
            return
    except (OSError, ValueError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
