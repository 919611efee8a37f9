"""`python -m book build`: print the executed chapters as a site under `_build/html`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from book import extension, report, social
from book.generated import Report, fill
from book.pictures import Figure, Pictures, Thumbnail
from book.reference import write_reference
from book.source import ROOT, Source, SourceError
from book.stage import Stage, chapter_page, copy_static, linked, vega_bundle

REFERENCE = "reference/index"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fresh", action="store_true", help="forget earlier builds")


def main(args: argparse.Namespace) -> int:
    return build(args.root, fresh=args.fresh)


def build(root: Path, fresh: bool = False) -> int:
    """Stage the chapters that have run, call Jupyter Book, look whether every page is there."""
    started = time.perf_counter()
    target = root / "_build"
    if fresh:
        for folder in ("html", ".doctrees", "stage"):
            shutil.rmtree(target / folder, ignore_errors=True)
    try:
        source = Source(root)
        stage, pages = stage_all(source, target)
    except SourceError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    say(f"staged {len(source.chapters)} chapters, {len(pages)} pages; {len(stage.changed)} changed")
    if any(name.startswith(("_config.yml", "_templates")) for name in stage.changed):
        shutil.rmtree(target / ".doctrees", ignore_errors=True)  # Sphinx would overlook some of it
    status = jupyter_book(target)
    if not status:
        refresh(target / "stage" / "static", target / "html" / "_static")
        forget(target / "html", pages)
        (target / "html" / "sitemap.xml").write_text(social.sitemap(source, pages), "utf-8")
    missing = [page for page in pages if not (target / "html" / f"{page}.html").is_file()]
    for page in missing[:10]:
        print(f"build: page {page}.html is missing", file=sys.stderr)
    if len(missing) > 10:
        print(f"build: and {len(missing) - 10} pages more", file=sys.stderr)
    if status or missing:
        # Sphinx warns only about pages that it reads; without its memory the next build reads all.
        shutil.rmtree(target / ".doctrees", ignore_errors=True)
        print(f"build: failed; the full log is {target / 'site.log'}", file=sys.stderr)
        return 1
    say(f"built in {time.perf_counter() - started:.0f} s: {target / 'html' / 'index.html'}")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


# ------------------------------------------------------------------------------


def stage_all(source: Source, target: Path) -> tuple[Stage, list[str]]:
    """Write everything Sphinx reads to `_build/stage`; return the stage and the pages to expect.

    Raises
    ------
    SourceError
        with one line per chapter that has not run, failed, or cannot be printed.
    """
    stage = Stage(target / "stage")
    runs = report.read(target / "report.json")
    problems = []
    figures: dict[str, Figure] = {}
    openings: dict[str, dict[str, Any]] = {}
    for chapter in [*source.chapters, *source.openings]:
        run = runs.get(chapter.name, {})
        executed = target / "executed" / chapter.part / f"{chapter.slug}.ipynb"
        if run.get("status") in ("failed", "timeout"):
            error = run.get("error") or {}
            what = " ".join(f"{error.get('name', '')}: {error.get('message', '')}".split())[:200]
            problems.append(f"{chapter.name}: {run['status']} in cell {error.get('cell')}: {what}")
        elif not executed.is_file():
            problems.append(f"{chapter.name} has not run; python -m book run {chapter.name}")
        else:
            try:
                notebook = json.loads(executed.read_text("utf-8"))
                if chapter.is_opening:  # its text may show the chapters' thumbnails
                    openings[chapter.docname] = notebook
                    continue
                figure = chapter_page(source, chapter, notebook, run, stage)
                figures |= {chapter.name: figure} if figure else {}
            except SourceError as error:
                problems.append(str(error))
            except json.JSONDecodeError:
                problems.append(f"{executed} is cut short; python -m book run {chapter.name}")
    if problems:
        raise SourceError("\nbuild: ".join(problems))
    copy_static(source, stage)
    stage.write("static/vega.js", vega_bundle(target / "cache"))
    stage.write("_config.yml", (source.root / "_config.yml").read_text("utf-8"))
    code = [Path(module.__file__).read_bytes() for module in (extension, social)]
    stage.write("_templates/press.txt", hashlib.sha256(b"".join(code)).hexdigest())
    bibliography = source.root / "book" / "references.bib"
    stage.write("references.bib", bibliography.read_text("utf-8"))
    pictures = Pictures(target / "cache" / "pictures")
    thumbnails = write_thumbnails(figures, pictures, stage)
    social.write_cards(source, runs, figures, pictures, stage)
    pictures.finish()
    reference = write_pages(source, runs, stage, thumbnails)
    for opening in source.openings:
        text = lambda text: fill(text, source, runs, thumbnails)
        run = runs.get(opening.name, {})
        chapter_page(source, opening, openings[opening.docname], run, stage, text)
    stage.write("_toc.yml", contents_file(source, reference))
    stage.finish()
    return stage, [*dict.fromkeys([*source.toc_files, *reference]), "search"]


def write_thumbnails(
    figures: dict[str, Figure], pictures: Pictures, stage: Stage
) -> dict[str, Thumbnail]:
    """The small picture of each chapter, for both themes."""
    made = {}
    for name, figure in figures.items():
        files, width, height = {}, 0, 0
        for mode in ("light", "dark"):
            data, width, height = pictures.thumbnail(figure, mode)
            files[mode] = f"thumbnails/{name}-{mode}.webp"
            stage.write(f"static/{files[mode]}", data)
        made[name] = Thumbnail(files["light"], files["dark"], width, height, figure.title)
    return made


def write_pages(
    source: Source, runs: Report, stage: Stage, thumbnails: dict[str, Thumbnail]
) -> list[str]:
    """Front matter, part openings and reference; returns the names of the reference's pages."""
    reference: list[str] = []
    for name in source.toc_files:
        if any(name == chapter.docname for chapter in [*source.chapters, *source.openings]):
            continue
        folder = "" if name.startswith("chapters/") else "book/pages/"
        path = source.root / f"{folder}{name}.md"
        if not path.is_file():
            raise SourceError(f"_toc.yml names {name}, but there is no {folder}{name}.md")
        try:
            text = fill(path.read_text("utf-8"), source, runs, thumbnails)
            if folder == "":  # a part's opening may speak of chapters to come
                text = linked(source, name, text)
        except SourceError as error:
            raise SourceError(f"{path.relative_to(source.root)}: {error}") from None
        if name == REFERENCE:
            reference = write_reference(source, stage, text)
        else:
            stage.write(f"{name}.md", text)
    return reference


def contents_file(source: Source, reference: list[str]) -> str:
    """`_toc.yml` with the reference's pages below its index."""

    def extend(node: Any) -> Any:
        if isinstance(node, list):
            return [extend(item) for item in node]
        if isinstance(node, dict):
            node = {key: extend(value) for key, value in node.items()}
            if node.get("file") == REFERENCE and reference:
                node["sections"] = [{"file": name} for name in reference]
        return node

    return yaml.safe_dump(extend(source.toc), sort_keys=False)


# ------------------------------------------------------------------------------

TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^\S*(Error|Exception)\b|[Ee]rror:")


def refresh(static: Path, served: Path) -> None:
    """Copy style sheets, scripts and pictures; Sphinx skips them when no page is out of date."""
    for path in static.rglob("*"):
        copy = served / path.relative_to(static)
        if path.is_file() and (not copy.is_file() or copy.read_bytes() != path.read_bytes()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def forget(html: Path, pages: list[str]) -> None:
    """Remove pages that an earlier build left and this one does not have."""
    kept = {f"{page}.html" for page in [*pages, *MADE]}
    for path in html.rglob("*.html"):
        name = path.relative_to(html).as_posix()
        if name not in kept and not name.startswith("_"):
            path.unlink()


MADE = ("search", "genindex", "py-modindex", "404")
"""Pages that Sphinx and our extension make without a source."""
COLOR = re.compile(r"\x1b\[[\d;]*m")
STEP = re.compile(r"(?P<what>[\w ]+)\.\.\. ?\[ *(?P<percent>\d+)%\]")


def jupyter_book(target: Path) -> int:
    """Run `jupyter-book build`; warnings are errors and are printed, all goes to `site.log`."""
    run = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", run, "build", str(target / "stage")]
    command += ["--path-output", str(target.parent), "-n", "-W", "--keep-going"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}
    show = sys.stdout.isatty()
    with (
        open(target / "site.log", "w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=target / "stage",  # what the configuration names is looked for here
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            line = COLOR.sub("", line)
            log.write(line)
            step = STEP.search(line)
            if step and show:
                print(f"\r\033[K{step['what'].strip()} {step['percent']} %", end="", flush=True)
            elif TROUBLE.search(line):
                print(("\r\033[K" if show else "") + line.rstrip(), file=sys.stderr, flush=True)
    if show:
        print("\r\033[K", end="", flush=True)
    return process.returncode
