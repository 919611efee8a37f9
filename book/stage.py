"""Turn what the run left behind into the pages that Sphinx reads.

An executed notebook is not a page: it carries set-up, solutions of exercises, widget state and
charts that would ask another host for a script. `chapter_page` makes the page from the chapter as
it is written and the outputs of its last run; `Stage` writes files only when they changed, so that
Sphinx rebuilds only what a reader would see differently.
"""

from __future__ import annotations

import base64
import html
import json
import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from book.colab_pass import last_pass
from book.pictures import Figure
from book.source import PARTS, Chapter, Source, SourceError, tags_of, text_of

Cell = dict[str, Any]
Output = dict[str, Any]

NO_CHART = "<style>.itr-chart,.itr-explore{display:none}</style>"
"""Without scripts the picture stands alone; with them, the room kept for the chart."""
WIDGET = "application/vnd.jupyter.widget-view+json"
SOLUTION = re.compile(
    r"^(?P<indent>[ \t]*)#+ *BEGIN SOLUTION.*?^[ \t]*#+ *END SOLUTION[^\n]*(?:\n|\Z)", re.M | re.S
)
COLORED = re.compile(r'<script data-itr="loader" type="image/svg\+xml">(.*?)</script>', re.S)
"""The picture whose colors follow the page, which `lib.core.plots` leaves beside a chart."""
ELEMENT = re.compile(r"<(script|style)\b(?P<attributes>[^>]*)>.*?</\1\s*>", re.S | re.I)
LIBRARY_LINK = re.compile(
    r"""(?P<quote>["'])(?:\.\./)*(?P<path>lib/[\w/]+\.py(?:#[\w-]+)?)(?P=quote)"""
)
MARKDOWN_LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")


class Stage:
    """A folder that is made to hold exactly the files written to it, touching only what changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: set[Path] = set()
        self.changed: list[str] = []

    def write(self, name: str, content: str | bytes) -> None:
        path = self.folder / name
        data = content.encode("utf-8") if isinstance(content, str) else content
        self.kept.add(path)
        if path.is_file() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.changed.append(name)

    def finish(self) -> None:
        """Remove what an earlier build left and this one did not write."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in self.kept:
                path.unlink()
                self.changed.append(str(path.relative_to(self.folder)))


# ------------------------------------------------------------------------------
# A chapter


def chapter_page(
    source: Source,
    chapter: Chapter,
    executed: dict[str, Any],
    run: dict[str, Any],
    stage: Stage,
    fill: Callable[[str], str] = str,
) -> Figure | None:
    """Write the chapter's notebook and its pictures to the stage.

    The text is the chapter's as it is now, the outputs are those of `executed`. Returns the figure
    that stands for the chapter: the first of the cell tagged `thumbnail`. A part's opening has no
    card; `fill` completes what its text asks to be generated.

    Raises
    ------
    SourceError
        if code was edited after the run, a cell failed, or a picture has no description.
    """
    ran = {cell.get("id"): cell for cell in executed.get("cells", [])}
    pictures = _Pictures(stage, chapter)
    cells: list[Cell] = []
    for index, cell in enumerate(chapter.notebook["cells"]):
        if cell["cell_type"] == "markdown":
            text = linked(source, chapter.docname, fill(text_of(cell)))
            begins = index == 0 and not chapter.is_opening
            cells += _opening(source, chapter, text, run) if begins else [_markdown(text, cell)]
            continue
        if cell["cell_type"] != "code":
            continue
        result = ran.get(cell.get("id"))
        if result is None or text_of(result).strip() != text_of(cell).strip():
            raise SourceError(
                f"{chapter.name}: cell {index} was edited after the last run; "
                f"python -m book run {chapter.name}"
            )
        cells += _code(source, cell, result, pictures, f"{chapter.name}: cell {index}")
    cells = _one_setup(cells)
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    stage.write(f"{chapter.docname}.ipynb", json.dumps(notebook, indent=1, ensure_ascii=False))
    return pictures.thumbnail


def _opening(source: Source, chapter: Chapter, text: str, run: dict[str, Any]) -> list[Cell]:
    """Title and first paragraph, then the card, then the rest of the opening cell.

    The card cites the paper and says what to know before, so the sentences that do so go.
    """
    blocks = text.strip().split("\n\n")
    lead = 2 if blocks[0].startswith("# ") and len(blocks) > 1 else 1
    number = re.escape(str((chapter.book.get("paper") or {}).get("arxiv")))
    cited = re.compile(rf"^[^\n]*\(https://arxiv\.org/abs/{number}\)[.,;]?\s*")
    rest = [cited.sub("", block).strip() for block in blocks[lead:]]
    known = next((found for block in rest if (found := KNOWN.fullmatch(block))), None)
    if known:
        rest.remove(known[0])
    parts = [
        "\n\n".join(blocks[:lead]),
        card(source, chapter, run, " ".join(known["what"].split()) if known else ""),
        "\n\n".join(filter(None, rest)),
    ]
    return [_markdown(part) for part in parts if part]


KNOWN = re.compile(
    r"(?:(?:What )?(?:to|you should) (?:know|read) (?:before|first)|you (?:will )?need|needed)\b:? "
    r"(?P<what>.+?)\.?",
    re.I | re.S,
)
"""The paragraph of the opening that says what a reader should know."""


BEFORE = 6
"""How many chapters to read before the card names; the map has them all."""


def card(source: Source, chapter: Chapter, run: dict[str, Any], known: str = "") -> str:
    """What a reader wants to know first: paper, what is needed, how long, where to run it.

    `known` is the chapter's own sentence about what is needed; it takes the place of the concepts
    in `needs`, of which only the chapters are listed then.
    """
    book = chapter.book
    paper = book.get("paper", {})
    venue = " ".join(str(paper[key]) for key in ("venue", "year") if paper.get(key))
    reference = f"{paper.get('authors', '')}, *{paper.get('title', '')}*"
    reference += f", {venue}" if venue else ""
    if paper.get("arxiv"):
        reference += f", [arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"
    if paper.get("key"):
        reference += f" {{cite}}`{paper['key']}`"
    rows = [("Paper", reference)]
    for key, name in (("needs", "You need"), ("gives", "You get")):
        link = _concept if key == "needs" else _chapter_or_text
        items = [link(source, chapter, item) for item in book.get(key) or []]
        if key == "needs" and known:
            items = [known, *(item for item in items if item.startswith("["))]
        if items:
            rows.append((name, " · ".join(items)))
    first = source.prerequisites.path.get(chapter.name, [])
    if first:
        links = [_chapter_or_text(source, chapter, other.name) for other in first]
        total = source.prerequisites.minutes(chapter.name)
        more = ""
        if len(links) > BEFORE:
            folder = posixpath.dirname(chapter.docname)
            more = f" and [{len(links) - BEFORE} more]({posixpath.relpath('map', folder)}.md)"
        rows.append(("Before this", f"{', '.join(links[:BEFORE])}{more} ({total} min to read)"))
    time = [f"{book['minutes']} minutes to read"] if book.get("minutes") else []
    if run.get("seconds") is not None:
        scale = "" if run.get("scale", "small") == "small" else f" at {run['scale']} scale"
        time.append(f"{duration(run['seconds'])} to run{scale} (measured)")
    if time:
        rows.append(("Time", " · ".join(time)))
    if passed := last_pass(source.root, chapter.name):
        rows.append(("Colab", f"last ran there without an error on {passed.day} {passed:%B %Y}"))
    package = (source.root / "lib" / chapter.part / chapter.slug).is_dir()
    module = f"lib/{chapter.name}" + ("" if package else ".py")
    lines = [":::{div} itr-card"]
    for name, value in rows:
        lines += [f"[{name}]{{.itr-card-name}} {value}", ""]
    lines += [
        f"[Open in Colab]({source.colab(chapter)}){{.itr-button}} "
        f"[Source on GitHub]({source.link(chapter.docname + '.ipynb')}){{.itr-button}} "
        f"[Module]({source.link(module)}){{.itr-button}}",
        ":::",
    ]
    return "\n".join(lines)


def _concept(source: Source, chapter: Chapter, name: str) -> str:
    """What a chapter needs, as a link to the chapter that gives it, if one does."""
    giver = source.prerequisites.giver(chapter, name)
    text = _chapter_or_text(source, chapter, name)
    return _link(chapter, giver, text) if giver and not text.startswith("[") else text


def _chapter_or_text(source: Source, chapter: Chapter, name: str) -> str:
    """A concept by name, or a link when it names a chapter that is printed."""
    for other in source.chapters:
        if name in (other.slug, other.name) and other.name != chapter.name:
            return _link(chapter, other, other.book.get("title", name))
    return name.replace("_", " ")


def _link(chapter: Chapter, other: Chapter, text: str) -> str:
    path = posixpath.relpath(other.docname, posixpath.dirname(chapter.docname))
    return f"[{text}]({path}.ipynb)"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: `0.4 s`, `24 s`, `3 min 20 s`."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"


def linked(source: Source, docname: str, text: str) -> str:
    """Point links to library files at the repository; unlink chapters that are not printed yet."""
    folder = posixpath.dirname(docname)
    printed = {other.docname for other in source.chapters}

    def mend(match: re.Match[str]) -> str:
        target = match["target"]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        anchor = f"#{anchor}" if anchor else ""
        from_root = (
            path
            if path.startswith(("lib/", "chapters/", "tests/", "book/"))
            else (posixpath.normpath(posixpath.join(folder, path)))
        )
        if from_root.startswith("chapters/") and from_root.endswith(".ipynb"):
            docname = from_root.removesuffix(".ipynb")
            if docname not in printed:
                return match["text"]
            return f"[{match['text']}]({posixpath.relpath(from_root, folder)}{anchor})"
        if from_root.startswith(("lib/", "tests/", "book/")) and "." in from_root:
            return f"[{match['text']}]({source.link(from_root + anchor)})"
        return match[0]

    return MARKDOWN_LINK.sub(mend, text)


def _markdown(text: str, cell: Cell | None = None) -> Cell:
    tags = tags_of(cell) if cell else []
    return {"cell_type": "markdown", "metadata": {"tags": tags} if tags else {}, "source": text}


def _code(
    source: Source, cell: Cell, result: Cell, pictures: _Pictures, where: str
) -> Iterable[Cell]:
    """The cell as the page shows it: nothing, folded, a stub, or with its outputs."""
    tags = list(tags_of(cell))
    if "setup" in tags or "remove-cell" in tags:
        return
    grading = cell.get("metadata", {}).get("nbgrader", {})
    code = text_of(cell).rstrip()
    fold = None
    if grading.get("solution"):
        code, outputs = stub(code), []
    elif grading.get("grade"):
        outputs, fold = [], "the check"
    else:
        pictures.is_thumbnail = "thumbnail" in tags
        description = cell.get("metadata", {}).get("mystnb", {}).get("image", {}).get("alt", "")
        outputs = list(_outputs(source, result.get("outputs", []), pictures, description, where))
        fold = _fold(code, tags, result.get("outputs", []))
    mystnb = {}
    if fold:
        tags.append("hide-cell" if fold.startswith("the set-up") else "hide-input")
        mystnb = {"code_prompt_show": f"Show {fold}", "code_prompt_hide": f"Hide {fold}"}
    metadata: dict[str, Any] = {"tags": list(dict.fromkeys(tags))} if tags else {}
    if mystnb:
        metadata["mystnb"] = mystnb
    yield {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": outputs,
        "source": code,
    }


LONG = 20
"""Lines from which the code of a figure or of the claims is folded; `show-input` keeps it open."""


def _fold(code: str, tags: list[str], outputs: list[Output]) -> str | None:
    """What to call the code of this cell when it is folded; None where it stays in view."""
    if "parameters" in tags:
        return "the set-up: parameters"
    if "remove-input" in tags:
        return None
    if SETTINGS.search(code) and "show-input" not in tags:
        return "the set-up: imports and settings"
    if {"show-input", "hide-input"} & set(tags):
        return None
    shown = {key for output in outputs for key in output.get("metadata", {})}
    if code.count("\n") + 1 >= LONG:
        if "figure" in shown:
            return "the code of this figure"
        if "claims" in shown:
            return "how the claims are measured"
    return None


SETTINGS = re.compile(r"^SETTINGS\b.*=", re.M)


def _one_setup(cells: list[Cell]) -> list[Cell]:
    """Parameters and settings in one folded cell: the page begins with the question."""
    made: list[Cell] = []
    for cell in cells:
        last = made[-1] if made else {"metadata": {}}
        if "parameters" in tags_of(last) and "hide-cell" in tags_of(cell):
            prompt = "the set-up: parameters, imports and settings"
            mystnb = {"code_prompt_show": f"Show {prompt}", "code_prompt_hide": f"Hide {prompt}"}
            made[-1] = {
                **cell,
                "metadata": {"tags": ["hide-cell"], "mystnb": mystnb},
                "source": f"{last['source']}\n\n{cell['source']}",
            }
        else:
            made.append(cell)
    return made


def stub(code: str) -> str:
    """The code with every solution region replaced by one line at the region's indentation."""
    stubbed = SOLUTION.sub(lambda match: f"{match['indent']}...  # your code here\n", code).rstrip()
    if re.search(r"(BEGIN|END) SOLUTION", stubbed):
        raise SourceError("BEGIN SOLUTION and END SOLUTION do not pair up")
    return stubbed


# ------------------------------------------------------------------------------
# Outputs


class _Pictures:
    """Writes a chapter's pictures as files of their own and knows the page's way to them."""

    suffixes = {
        "image/svg+xml": "svg",
        "image/png": "png",
        "image/jpeg": "jpg",
        "image/gif": "gif",
        "image/webp": "webp",
    }

    def __init__(self, stage: Stage, chapter: Chapter) -> None:
        self.stage = stage
        self.chapter = chapter
        self.count = 0
        self.is_thumbnail = False
        """Whether the cell being printed is the one tagged `thumbnail`."""
        self.title = ""
        """What the figure being printed says above itself."""
        self.thumbnail: Figure | None = None

    def tag(self, data: dict[str, Any], description: str, where: str) -> str:
        """Write the best picture in a MIME bundle; return the `<img>` that shows it."""
        mime = next((mime for mime in self.suffixes if mime in data), None)
        if mime is None:
            return ""
        if not description.strip():
            raise SourceError(
                f"{where} shows a picture without a description; pass description= to figure() "
                'or set the cell\'s metadata {"mystnb": {"image": {"alt": ...}}}'
            )
        content = _joined(data[mime])
        self.count += 1
        name = f"figures/{self.chapter.name}/{self.count}.{self.suffixes[mime]}"
        is_text = mime == "image/svg+xml"
        file = content if is_text else base64.b64decode(content)
        self.stage.write(f"static/{name}", file)
        if self.is_thumbnail and self.thumbnail is None:
            colored = COLORED.search(_joined(data.get("text/html", "")))
            self.thumbnail = Figure(self.title or description, colored[1] if colored else file)
        alt = html.escape(description, quote=True)
        return (
            f'<img class="itr-picture" src="../../_static/{name}" alt="{alt}"'
            f' loading="lazy"{_size(content) if is_text else ""}>'
        )


def _size(svg: str) -> str:
    """Width and height attributes, so that the page does not jump when the picture arrives."""
    found = re.search(r"<svg\b[^>]*>", svg)
    sizes = dict(re.findall(r'\b(width|height)="(\d+)', found[0])) if found else {}
    return "".join(f' {key}="{value}"' for key, value in sizes.items()) if len(sizes) == 2 else ""


def _outputs(
    source: Source, outputs: list[Output], pictures: _Pictures, description: str, where: str
) -> Iterable[Output]:
    """What a cell left behind, as the page shows it."""
    for output in outputs:
        kind = output["output_type"]
        if kind == "error":
            raise SourceError(f"{where} ended in {output.get('ename')}: {output.get('evalue')}")
        if kind == "stream":
            text = _joined(output["text"])
            if output.get("name") == "stdout" and text.strip():
                yield {"output_type": "stream", "name": "stdout", "text": text}
            continue
        shown = output.get("metadata", {}).get("figure", {})
        alt = shown.get("description") or description
        pictures.title = shown.get("title", "")
        data = _printable(source, output.get("data", {}), pictures, alt, where)
        if data:
            yield {"output_type": "display_data", "data": data, "metadata": {}}


def _printable(
    source: Source, data: dict[str, Any], pictures: _Pictures, alt: str, where: str
) -> dict[str, str]:
    """One representation of a MIME bundle, free of loaders, as the page shows it."""
    if "text/html" in data:
        page = LIBRARY_LINK.sub(
            lambda match: f"{match['quote']}{source.link(match['path'])}{match['quote']}",
            _without_loaders(_joined(data["text/html"])),
        )
        picture = pictures.tag(data, alt, where)
        return {
            "text/html": f"{page}\n<noscript>{NO_CHART}{picture}</noscript>" if picture else page
        }
    picture = pictures.tag(data, alt, where)
    if picture:
        return {"text/html": picture}
    for mime in ("text/markdown", "text/latex"):
        if mime in data:
            return {mime: linked(source, pictures.chapter.docname, _joined(data[mime]))}
    if WIDGET in data or "text/plain" not in data:
        return {}
    return {"text/plain": _joined(data["text/plain"])}


def _without_loaders(page: str) -> str:
    """Drop what is for outside the book, and every script that comes from elsewhere."""

    def keep(match: re.Match[str]) -> str:
        attributes = match["attributes"]
        loads = re.search(r"""data-itr=["']loader["']|\bsrc\s*=""", attributes)
        return "" if loads else match[0]

    return ELEMENT.sub(keep, page)


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


# ------------------------------------------------------------------------------
# Everything else


def copy_static(source: Source, stage: Stage) -> None:
    """Style sheets, logo, and the script that draws the charts."""
    for path in sorted((source.root / "book" / "static").rglob("*")):
        if path.is_file():
            stage.write(
                f"static/{path.relative_to(source.root / 'book' / 'static')}", path.read_bytes()
            )
    from lib.core.plots import STATIC, stylesheet

    stage.write("static/charts.js", (STATIC / "charts.js").read_bytes())
    stage.write("static/charts.css", stylesheet())
    for path in sorted((source.root / "book" / "templates").iterdir()):
        stage.write(f"_templates/{path.name}", path.read_bytes())
    for name in ("logo.svg", "favicon.svg"):
        stage.write(name, (source.root / "book" / "static" / name).read_bytes())


def vega_bundle(cache: Path) -> bytes:
    """Vega, the Vega-Lite that Altair writes for, and vega-embed as one script; made once."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    path = cache / f"vega-lite-{version}-{vl_convert.__version__}.js"
    if not path.is_file():
        for old in cache.glob("vega-lite-*.js"):
            old.unlink()
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        # In a function of its own: the bundle's short names would clash with Sphinx's scripts.
        bundle = vl_convert.javascript_bundle(vl_version=version)
        part.write_text(f"(() => {{\n{bundle}\n}})();\n", "utf-8")
        part.replace(path)
    return path.read_bytes()


def part_name(part: str) -> str:
    return PARTS.get(part, part.replace("_", " ").capitalize())
