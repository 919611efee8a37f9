"""Write the copies of the chapters that Colab opens.

  OUT/chapters/<part>/<slug>.ipynb   the chapter for Colab
  OUT/README.md, OUT/colab.json      what this folder is, and from what it was made

In a copy the book's Markdown is plain Markdown, links to other chapters lead to the printed site,
solutions and hidden tests are out, the first code cell installs `lib` at REF (on Colab, and only
there), and code that the page hides or folds is folded. A check of an exercise prints what it
finds instead of raising, so `Run all` gets to the end.

examples:
  python -m book colab                            every chapter of _toc.yml, into _build/colab
  python -m book colab ntk --out /tmp/copies
  python -m book colab --ref v1.2                 copies that install `lib` of that tag

Exit status: 0 all written, 1 some chapter could not be.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from book.cache import write
from book.classroom import exercises
from book.errors import BookError
from book.plain import Plain, labels_of
from book.run import select
from book.source import Chapter, Source, SourceError, python_of, tags_of, text_of

Cell = dict[str, Any]

MANIFEST = "colab.json"
LONG = 20
"""Lines from which the code of a figure is folded, as on the page."""

FORMS = {
    'scale = "small"': '["small", "full"]',
    'device = "auto"': '["auto", "cuda", "cpu"]',
    "seed = 0": '{type: "integer"}',
}
"""Parameters that Colab shows as fields."""

CHAPTER_LINK = re.compile(r"\]\((?P<path>(?:\.\./|\./)*[\w/-]+\.ipynb)(?P<anchor>#[\w-]+)?\)")
ROLE = re.compile(r"(?<!`)\{[A-Za-z][\w:+-]*\}+`|^\s*(?:`{3,}|:{3,})\{+[\w-]+\}", re.M)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "chapters",
        nargs="*",
        metavar="CHAPTER",
        help="part/slug, slug, or a part; default: every chapter of _toc.yml",
    )
    add("--out", type=Path, metavar="DIR", help="folder to write to (default: _build/colab)")
    add(
        "--ref",
        type=git_ref,
        help="branch, tag or commit whose `lib` is installed (default: the branch in _config.yml)",
    )


def git_ref(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][\w.+/-]*", text) or ".." in text or text.endswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a branch, tag or commit")
    return text


def main(args: argparse.Namespace) -> int:
    source = Source(args.root)
    chapters = select(source, args.chapters)
    out = args.out or source.root / "_build" / "colab"
    source.site  # noqa: B018  (raises where it has no address, before anything is written)
    before = prepare(out)
    ref = args.ref or source.branch
    labels = labels_of(source)
    made, failures = [], []
    for chapter in chapters:
        try:
            notebook = copy_of(source, chapter, ref, labels)
        except SourceError as error:
            failures.append(f"chapters/{chapter.name}.ipynb: {error}")
            continue
        name = f"{chapter.docname}.ipynb"
        write(out / name, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        made.append(name)
    keep = set(made) if not args.chapters else {*before, *made}
    for name in sorted(set(before) - keep):
        (out / name).unlink(missing_ok=True)
    write(out / "README.md", readme(source, ref))
    record = {"format": 1, "ref": ref, "files": sorted(keep)}
    write(out / MANIFEST, json.dumps(record, indent=1) + "\n")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"{len(made)} of {len(chapters)} chapters in {out}; they install lib of {ref}")
    return 1 if failures else 0


def prepare(out: Path) -> list[str]:
    """Make OUT, or refuse a folder that holds something else; the copies an earlier call left."""
    if out.exists() and not out.is_dir():
        raise BookError(f"--out {out} is a file; name a folder")
    try:
        entries = [p.name for p in out.iterdir() if p.name != ".git"] if out.is_dir() else []
        if entries and MANIFEST not in entries:
            raise BookError(f"--out {out} holds other files; name a new folder or an earlier one")
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        files = json.loads((out / MANIFEST).read_text("utf-8"))["files"] if entries else []
        return [f for f in files if re.fullmatch(r"chapters/\w+/\w+\.ipynb", f)]
    except OSError as error:
        raise BookError(f"cannot write in {out}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        return []


def readme(source: Source, ref: str) -> str:
    title = source.config.get("title", "the book")
    return (
        f"# Notebooks of *{title}* for Colab\n\n"
        f"Written by `python -m book colab` from {source.address} at `{ref}`. Do not edit them "
        f"here: the chapters are in `chapters/` of the branch `{source.branch}`, and the book is "
        f"at {source.site}.\n"
    )


# ------------------------------------------------------------------------------
# One copy


def copy_of(
    source: Source, chapter: Chapter, ref: str, labels: dict[str, tuple[str, str]] | None = None
) -> dict[str, Any]:
    """The chapter as Colab opens it.

    Raises
    ------
    SourceError
        Something that has no translation, or a malformed exercise; the message names the cell.
    """
    cells = [{**cell, "source": text_of(cell)} for cell in chapter.notebook.get("cells", [])]
    original = {**chapter.notebook, "cells": cells}
    found = exercises.read(original)  # raises where solutions could stay in
    notebook = exercises.student(original)
    number = {exercise.check: n for n, exercise in enumerate(found, 1)}
    plain = Plain(source, chapter, labels)
    cells = []
    for index, cell in enumerate(notebook.get("cells", [])):
        with exercises.at(index):
            if cell.get("cell_type") == "markdown":
                text = plain.text(text_of(cell))
                cells.append(exercises.markdown(_name(cell, index), text))
                if index == 0:
                    cells[0]["source"] = opening(source, chapter, text)
                    cells.append(install_cell(source, ref))
            elif cell.get("cell_type") == "code" and "setup" not in tags_of(cell):
                cells.append(code_cell(source, chapter, cell, index, number.get(index)))
    if not any(cell["id"] == "install" for cell in cells):
        cells.insert(0, install_cell(source, ref))
    metadata: dict[str, Any] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "colab": {"name": f"{chapter.slug}.ipynb", "provenance": [], "toc_visible": True},
    }
    if chapter.book.get("gpu"):
        metadata["accelerator"] = "GPU"
        metadata["colab"]["gpuType"] = "T4"
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def install_cell(source: Source, ref: str) -> Cell:
    """The first code cell: `lib` at one commit, on Colab and only there.

    The variable is where listings of the library's source link to.
    """
    code = (
        "#@title Install the book's library (on Colab only, about 20 seconds)\n"
        "import os\n"
        f'{source.setup_cell.removesuffix(chr(34))}@{ref}"\n'
        f'    os.environ["LIB_SOURCE"] = "{source.address}/blob/{ref}/"'
    )
    return exercises.code("install", code, cellView="form")


def opening(source: Source, chapter: Chapter, text: str) -> str:
    """The first cell, with the ways to the page and to the code below the title."""
    package = (source.root / "lib" / chapter.part / chapter.slug).is_dir()
    module = f"lib/{chapter.name}" + ("" if package else ".py")
    links = [f"[Read this chapter as a page]({source.site}{chapter.docname}.html)"]
    if (source.root / module).exists():
        links.append(f"[its module]({source.link(module)})")
    links.append(f"[its source]({source.link(chapter.docname + '.ipynb')})")
    title, _, rest = text.strip().partition("\n")
    return f"{title}\n\n{' · '.join(links)}\n\n{rest.strip()}".strip()


def code_cell(
    source: Source, chapter: Chapter, cell: Cell, index: int, exercise: int | None
) -> Cell:
    text = text_of(cell).rstrip()
    if found := computed_role(text):
        raise SourceError(
            f"computes Markdown with {found!r}, which Colab shows as it stands; "
            "write it in a Markdown cell"
        )
    text = CHAPTER_LINK.sub(lambda m: _page(source, chapter, m), text)
    tags = tags_of(cell)
    metadata: dict[str, Any] = {}
    record = exercises.nbgrader(cell)
    if record:
        metadata["nbgrader"] = copy.deepcopy(record)
    title = None
    if exercise is not None:
        title, text = f"Check of exercise {exercise}: run it", soft(text)
    elif "parameters" in tags:
        text = "\n".join(
            f"{line}  #@param {FORMS[line]}" if line in FORMS else line for line in text.split("\n")
        )
    elif "remove-input" in tags or "remove-cell" in tags:
        metadata["cellView"] = "form"
    elif not record and "show-input" not in tags:
        figure = re.search(r"^(?:figure|explore)\(", text, re.M) is not None
        if "hide-input" in tags or (figure and text.count("\n") + 1 >= LONG):
            title = "The code of this figure" if figure else "The code of this result"
    if title and not text.startswith("%%"):
        metadata["cellView"] = "form"
        text = f"#@title {title}\n{text}"
    return exercises.code(_name(cell, index), text, **metadata)


def computed_role(code: str) -> str | None:
    """A role or directive of MyST in a string of a cell that displays Markdown."""
    if "Markdown" not in code:
        return None
    try:
        tree = ast.parse(python_of(code))
    except SyntaxError:
        return None
    for node in ast.walk(tree):  # within an f-string, only what is no value
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if found := ROLE.search(node.value):
                return found[0].strip()
    return None


def soft(check: str) -> str:
    """A check that prints what it finds: on Colab, an error would end `Run all`."""
    try:
        tree = ast.parse(check)
    except SyntaxError as error:
        raise SourceError(f"line {error.lineno}: {error.msg}") from None
    lines = check.split("\n")
    made = ["    " + line if line.strip() else line for line in lines]
    if ast.dump(ast.Module(_body("\n".join(made)), [])) != ast.dump(ast.Module(tree.body, [])):
        inside = {  # lines within a string over several lines keep their indentation
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))
            for line in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
        }
        made = [
            line if number in inside or not line.strip() else "    " + line
            for number, line in enumerate(lines, 1)
        ]
    return "\n".join(
        [
            "try:",
            *made,
            "except Exception as error:",
            "    if not isinstance(error, AssertionError):",
            "        import traceback",
            "",
            "        traceback.print_exc()",
            '    print("Not yet:", error)',
            "else:",
            '    print("Passed.")',
        ]
    )


def _body(indented: str) -> list[ast.stmt]:
    try:
        return ast.parse(f"if True:\n{indented}").body[0].body
    except SyntaxError:
        return []


def _page(source: Source, chapter: Chapter, found: re.Match[str]) -> str:
    """A link in computed Markdown to another chapter, as a link to the site."""
    path = posixpath.normpath(
        posixpath.join(posixpath.dirname(chapter.docname), found["path"])
    ).removesuffix(".ipynb")
    if path not in {other.docname for other in source.all_chapters}:
        raise SourceError(f"cannot translate the link to {found['path']!r}: no such chapter")
    return f"]({source.site}{path}.html{found['anchor'] or ''})"


def _name(cell: Cell, index: int) -> str:
    return str(cell.get("id") or f"cell-{index}")
