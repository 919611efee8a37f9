"""`python -m book check`: is every chapter whole? Reads the files, runs nothing.

One line for each finding: file, cell, what is wrong, how to mend it. Silent when all is well.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from book import prerequisites, readers, report
from book.errors import BookError, nearest
from book.prerequisites import Prerequisites
from book.source import OPENING, PARTS, Chapter, Source, SourceError, python_of, tags_of, text_of
from book.stage import stub

SECONDS, MEGABYTES = 45, 2000
"""What a chapter may take at small scale: processor seconds on one thread, peak memory."""
SECTIONS = ["Claims", "Where it breaks", "Exercises", "At full scale", "Further reading"]
PARAMETERS = {"scale": "small", "seed": 0, "device": "auto"}
CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
LINK = re.compile(r"(?<!!)\[[^\[\]]*\]\(([^()\s]+)\)")
MEASURED = re.compile(r"(?<![\w.,])(?!0\.0*[1-9](?!\d))\d+\.\d{2,}(?!\w|\.\d)")
"""A number with two decimals or more: in prose it is nearly always one that a run gave. Round ones
like 0.05 are settings."""
QUOTED = re.compile(r"\b(paper|authors?|published|reported|reports?|records?)\b", re.I)
"""Paragraphs with these words may quote a number from elsewhere."""


@dataclass(frozen=True)
class Finding:
    file: str
    cell: int | None
    what: str
    mend: str

    def __str__(self) -> str:
        where = f"{self.file}: " + (f"cell {self.cell}: " if self.cell is not None else "")
        return f"{where}{self.what}; {self.mend}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help="part/slug or slug; all if none is named"
    )


def main(args: argparse.Namespace) -> int:
    source = Source(args.root)
    findings = check(source, named(source, args.chapters))
    for finding in findings:
        print(finding)
    return 1 if findings else 0


def named(source: Source, names: list[str]) -> list[Chapter] | None:
    """The chapters that were asked for; None stands for the whole book."""
    if not names:
        return None
    known = {key: c for c in source.all_chapters for key in (c.slug, c.name)}
    known |= {opening.name: opening for opening in source.all_openings}
    wanted = [name.removeprefix("chapters/").removesuffix(".ipynb") for name in names]
    for name in wanted:
        if name not in known:
            raise BookError(f"unknown chapter {name!r}{nearest(name, known)}")
    return [known[name] for name in wanted]


def check(source: Source, chapters: list[Chapter] | None = None) -> list[Finding]:
    """Every finding in these chapters; in the whole book, if None."""
    runs = report.read(source.root / "_build" / "report.json")
    keys = citation_keys(source)
    needs = Prerequisites(source, [c for c in source.all_chapters if _is_read(c)])
    findings = [] if chapters is not None else list(_book(source, keys, needs))
    every = [*source.all_chapters, *source.all_openings]
    for chapter in every if chapters is None else chapters:
        kind = _Opening if chapter.is_opening else _Chapter
        try:
            findings += kind(source, chapter, keys).findings(runs.get(chapter.name))
            file = chapter.path.relative_to(source.root).as_posix()
            mine = [unmet for unmet in needs.unmet if unmet.chapter == chapter.name]
            findings += [Finding(file, None, unmet.what, unmet.mend) for unmet in mine]
        except SourceError as error:
            file = chapter.path.relative_to(source.root).as_posix()
            findings.append(Finding(file, None, str(error), "save it from Jupyter again"))
    return findings


def citation_keys(source: Source) -> list[str]:
    """The keys in `book/references.bib`, as often as they stand there."""
    path = source.root / "book" / "references.bib"
    text = path.read_text("utf-8") if path.is_file() else ""
    return re.findall(
        r"^\s*@(?!comment|string|preamble)\w+\s*\{\s*([^,\s]+)\s*,", text, re.M | re.I
    )


# ------------------------------------------------------------------------------
# The book as a whole


def _is_read(chapter: Chapter) -> bool:
    """Whether the notebook is one; if not, that is a finding of its own."""
    try:
        return isinstance(chapter.book, dict)
    except SourceError:
        return False


def _book(source: Source, keys: list[str], needs: Prerequisites) -> Iterator[Finding]:
    for name in source.toc_files:
        folder = "" if name.startswith("chapters/") else "book/pages/"
        if not any((source.root / f"{folder}{name}{end}").is_file() for end in (".md", ".ipynb")):
            mend = f"write {folder}{name} or take it out"
            yield Finding("_toc.yml", None, f"lists {name}, which does not exist", mend)
    for name, count in Counter(source.toc_files).items():
        if count > 1:
            yield Finding("_toc.yml", None, f"lists {name} {count} times", "list it once")
    for chapter in source.chapters:
        opening = f"chapters/{chapter.part}/index"
        if opening not in source.toc_files:
            mend = f"list {opening} above the part's chapters"
            yield Finding("_toc.yml", None, f"part {chapter.part} has no opening", mend)
    for key, count in Counter(keys).items():
        if count > 1:
            yield Finding(
                "book/references.bib", None, f"key {key} stands {count} times", "keep one"
            )
    for concept in prerequisites.twice(needs.background):
        yield Finding(prerequisites.FILE, None, f"{concept!r} stands there twice", "keep one")
    for what, mend in readers.faults(readers.readers(source.root), source, needs):
        yield Finding(readers.FILE, None, what, mend)
    chapters = {chapter.name for chapter in source.all_chapters}
    openings = {opening.name for opening in source.all_openings}
    known = {f"{paper.part}/{paper.slug}" for paper in source.papers}
    for part in PARTS:
        for path in sorted((source.root / "lib" / part).glob("*")):
            if path.stem.startswith(("_", ".")) or (path.suffix != ".py" and not path.is_dir()):
                continue
            name, file = f"{part}/{path.stem}", path.relative_to(source.root).as_posix()
            if path.name == "opening.py" and f"{part}/{OPENING}" in openings:
                continue  # what the part's first page computes
            if name not in known:
                mend = "move what is shared down to lib/models or lib/core"
                yield Finding(file, None, "no paper of that name in book/papers.csv", mend)
            elif name not in chapters:
                mend = f"write chapters/{name}.ipynb"
                yield Finding(file, None, "has no chapter", mend)


# ------------------------------------------------------------------------------
# One chapter


class _Chapter:
    def __init__(self, source: Source, chapter: Chapter, keys: list[str]) -> None:
        self.source, self.chapter, self.keys = source, chapter, keys
        self.file = chapter.path.relative_to(source.root).as_posix()
        self.cells: list[dict[str, Any]] = chapter.notebook.get("cells", [])
        self.code = [(i, cell) for i, cell in enumerate(self.cells) if cell["cell_type"] == "code"]
        self.prose = [
            (i, text_of(cell))
            for i, cell in enumerate(self.cells)
            if cell["cell_type"] == "markdown"
        ]
        self.trees: dict[int, ast.Module] = {}

    def findings(self, run: dict[str, Any] | None) -> Iterator[Finding]:
        yield from self.parse()
        yield from self.rooms()
        yield from self.record()
        yield from self.stored()
        yield from self.opening()
        yield from self.sections()
        yield from self.calls()
        yield from self.exercises()
        yield from self.text()
        yield from self.budget(run or {})

    def find(self, cell: int | None, what: str, mend: str) -> Finding:
        return Finding(self.file, cell, what, mend)

    def parse(self) -> Iterator[Finding]:
        for index, cell in self.code:
            try:
                self.trees[index] = ast.parse(python_of(text_of(cell)))
            except SyntaxError as error:
                yield self.find(index, f"not Python (line {error.lineno}: {error.msg})", "mend it")

    def rooms(self) -> Iterator[Finding]:
        part, slug, root = self.chapter.part, self.chapter.slug, self.source.root
        if not any((paper.part, paper.slug) == (part, slug) for paper in self.source.papers):
            mend = "use a part and slug from book/papers.csv"
            yield self.find(None, f"no paper {part}/{slug}", mend)
        module = root / "lib" / part / slug
        if not module.with_suffix(".py").is_file() and not (module / "__init__.py").is_file():
            yield self.find(None, "has no module", f"write lib/{part}/{slug}.py")
        if not (root / "tests" / part / f"test_{slug}.py").is_file():
            yield self.find(None, "has no tests", f"write tests/{part}/test_{slug}.py")
        opening = root / "chapters" / part / OPENING
        if not any(opening.with_suffix(end).is_file() for end in (".md", ".ipynb")):
            yield self.find(None, "its part has no opening", f"write chapters/{part}/index.md")

    def record(self) -> Iterator[Finding]:
        """`nb.metadata["book"]`."""
        book = self.chapter.book
        if not book:
            yield self.find(None, "metadata has no record 'book'", "see the page Contributing")
            return
        for key, value in (("part", self.chapter.part), ("slug", self.chapter.slug)):
            if book.get(key) != value:
                yield self.find(None, f"book.{key} is {book.get(key)!r}", f"set it to {value!r}")
        paper = book.get("paper") if isinstance(book.get("paper"), dict) else {}
        minutes = book.get("minutes")
        rules = [
            ("title", _is_text(book.get("title")), "a non-empty string"),
            ("minutes", isinstance(minutes, int) and 5 <= minutes <= 90, "an integer from 5 to 90"),
            ("needs", _is_texts(book.get("needs")), "a list of strings"),
            ("gives", _is_texts(book.get("gives")), "a list of strings"),
            ("paper.title", _is_text(paper.get("title")), "a non-empty string"),
            ("paper.authors", _is_text(paper.get("authors")), "e.g. 'A. Jacot and F. Gabriel'"),
            ("paper.year", isinstance(paper.get("year"), int), "an integer"),
            ("paper.venue", _is_text(paper.get("venue")), "e.g. 'NeurIPS' or 'arXiv'"),
        ]
        for key, good, mend in rules:
            if not good:
                yield self.find(None, f"book.{key} is missing or malformed", f"give {mend}")
        number = paper.get("arxiv")
        if number is not None and not re.fullmatch(
            r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}", str(number)
        ):
            mend = "give the number alone, e.g. '1806.07572'"
            yield self.find(None, f"book.paper.arxiv is {number!r}", mend)
        if paper.get("key") not in self.keys:
            mend = "add the paper to book/references.bib under that key"
            yield self.find(None, f"book.paper.key {paper.get('key')!r} is unknown", mend)

    def stored(self) -> Iterator[Finding]:
        """No results in the repository; cells that can be told apart."""
        notebook = self.chapter.notebook
        if (notebook.get("nbformat"), notebook.get("nbformat_minor", 0) >= 5) != (4, True):
            yield self.find(None, "is older than nbformat 4.5", "save it from a current Jupyter")
        if "widgets" in notebook.get("metadata", {}):
            yield self.find(None, "stores widget state", "clear all outputs")
        for index, cell in self.code:
            if cell.get("outputs"):
                yield self.find(index, "stores outputs", "clear all outputs")
            elif cell.get("execution_count") is not None:
                yield self.find(index, "stores an execution count", "clear all outputs")
        ids = Counter(cell.get("id") for cell in self.cells)
        for index, cell in enumerate(self.cells):
            if not cell.get("id"):
                yield self.find(index, "has no id", "save it from a current Jupyter")
            elif ids[cell["id"]] > 1:
                yield self.find(index, f"id {cell['id']!r} is not unique", "give it another")

    def opening(self) -> Iterator[Finding]:
        """Title, set-up, parameters, settings: the same in every chapter."""
        first = text_of(self.cells[0]) if self.cells else ""
        title = re.match(r"# (.+)", first)
        if not self.cells or self.cells[0]["cell_type"] != "markdown" or not title:
            yield self.find(0, "does not open with a title", "begin with '# The idea's name'")
        elif title[1].strip() != self.chapter.book.get("title"):
            yield self.find(0, f"the title is not book.title ({title[1]!r})", "make them agree")
        number = (self.chapter.book.get("paper") or {}).get("arxiv")
        if number and f"arxiv.org/abs/{number}" not in first:
            mend = f"link https://arxiv.org/abs/{number}"
            yield self.find(0, "the opening does not link the paper", mend)
        if len(self.code) < 3:
            yield self.find(None, "has fewer than three code cells", "set-up, parameters, SETTINGS")
            return
        (i, setup), (j, parameters), (k, _) = self.code[:3]
        if tags_of(setup) != ["setup"]:
            yield self.find(i, "the first code cell is not tagged 'setup' alone", "tag it so")
        if text_of(setup).strip() != self.source.setup_cell.strip():
            mend = f"copy it from the page Contributing ({self.source.address})"
            yield self.find(i, "the set-up cell is not the book's", mend)
        if tags_of(parameters) != ["parameters"]:
            yield self.find(j, "the second code cell is not tagged 'parameters'", "tag it so")
        if _literals(self.trees.get(j)) != PARAMETERS:
            mend = "; ".join(f"{key} = {value!r}" for key, value in PARAMETERS.items())
            yield self.find(j, "the parameters are not the book's", f"write {mend}")
        settings = self._assigned(self.trees.get(k), "SETTINGS")
        if settings is None or _keys(settings) != {"small", "full"}:
            mend = "write SETTINGS = {'small': dict(...), 'full': dict(...)}"
            yield self.find(k, "the third code cell has no SETTINGS for both scales", mend)

    def sections(self) -> Iterator[Finding]:
        found = [
            (index, match.strip())
            for index, text in self.prose
            for match in re.findall(r"^## (.+)$", _without_code(text), re.M)
        ]
        names = [name for _, name in found]
        for name in SECTIONS:
            if name not in names:
                yield self.find(None, f"has no section '{name}'", f"add '## {name}'")
        order = [name for name in names if name in SECTIONS]
        if set(order) == set(SECTIONS) and order != SECTIONS:
            yield self.find(
                None, "its last sections are out of order", f"use {', '.join(SECTIONS)}"
            )

    def calls(self) -> Iterator[Finding]:
        """Figures that say what they show, claims that were measured, source that is shown."""
        calls = self._calls()
        names = Counter(_name(call) for _, call in calls)
        yield from self.descriptions(calls)
        if not names["explore"]:
            yield self.find(None, "has no explorable", "add one figure with explore(...)")
        if not names["show"]:
            yield self.find(None, "shows no source", "add show(...) of the module's main function")
        thumbnails = [index for index, cell in self.code if "thumbnail" in tags_of(cell)]
        if len(thumbnails) != 1:
            what = f"{len(thumbnails)} cells are tagged 'thumbnail'"
            yield self.find(None, what, "tag the one whose figure stands for the chapter")
        yield from self.claims([(i, call) for i, call in calls if _is_claim(call)])

    def descriptions(self, calls: list[tuple[int, ast.Call]]) -> Iterator[Finding]:
        for index, call in calls:
            if _name(call) in ("figure", "explore"):
                given = _argument(call, "description", 1 if _name(call) == "figure" else 99)
                starred = any(keyword.arg is None for keyword in call.keywords)
                if given is None and not starred:
                    what = f"{_name(call)}() has no description"
                    yield self.find(index, what, "say in a sentence what the picture shows")

    def claims(self, calls: list[tuple[int, ast.Call]]) -> Iterator[Finding]:
        if len(calls) < 3:
            yield self.find(None, f"adds {len(calls)} claims", "measure at least three")
        if not any(_is_true(_argument(call, "exact", 99)) for _, call in calls):
            yield self.find(None, "has no exact claim", "add an identity with exact=True")
        for index, call in calls:
            holds = _argument(call, "holds", 99)
            if isinstance(holds, ast.Constant) and holds.value is not None:
                yield self.find(index, "a claim's verdict is typed", "compare numbers of the run")
            if isinstance(_argument(call, "measured", 99), ast.Constant):
                yield self.find(
                    index, "a claim's measured value is typed", "format it from the run"
                )

    def exercises(self) -> Iterator[Finding]:
        answers = 0
        ids: Counter[str] = Counter()
        shared = {"scale", "seed", "device", "sys"}
        for position, (index, cell) in enumerate(self.code):
            record = cell.get("metadata", {}).get("nbgrader")
            marked = re.search(r"#+ *(BEGIN|END) SOLUTION", text_of(cell))
            if record is None:
                if marked:
                    yield self.find(
                        index, "a solution outside an answer cell", "mark it for nbgrader"
                    )
                continue
            yield from self.nbgrader(index, record)
            ids[record.get("grade_id", "")] += 1
            if not record.get("solution"):
                continue
            answers += 1
            yield from self.answer(index, text_of(cell))
            if "### Exercise" not in self._prompt(index):
                mend = "write '### Exercise n: ...' above it"
                yield self.find(index, "an answer cell without a prompt", mend)
            following = self.code[position + 1 : position + 2]
            graded = following and following[0][1].get("metadata", {}).get("nbgrader", {}).get(
                "grade"
            )
            if not graded:
                yield self.find(index, "no check cell follows the answer", "add one with asserts")
                continue
            yield from self.check_cell(following[0][0])
            missing = _free_names([self.trees.get(index), self.trees.get(following[0][0])]) - shared
            if missing:
                mend = "import or define them in the answer or the check cell"
                what = f"the exercise uses {', '.join(sorted(missing))} of the chapter"
                yield self.find(index, what, mend)
        for name, count in ids.items():
            if count > 1:
                yield self.find(None, f"grade_id {name!r} stands {count} times", "make it unique")
        if answers < 3:
            yield self.find(None, f"has {answers} exercises", "write at least three")

    def nbgrader(self, index: int, record: dict[str, Any]) -> Iterator[Finding]:
        solution = bool(record.get("solution"))
        expected = {
            "schema_version": 3,
            "task": False,
            "solution": solution,
            "grade": not solution,
            "locked": not solution,
        }
        wrong = [key for key, value in expected.items() if record.get(key) != value]
        if wrong:
            mend = ", ".join(f"{key}: {expected[key]}" for key in wrong)
            yield self.find(index, "nbgrader's metadata is malformed", f"set {mend}")
        name = str(record.get("grade_id", ""))
        if not name.startswith(f"{self.chapter.slug}-ex"):
            mend = f"call it {self.chapter.slug}-ex1 or {self.chapter.slug}-ex1-check"
            yield self.find(index, f"grade_id is {name!r}", mend)
        points = record.get("points")
        if not solution and not (isinstance(points, int | float) and points > 0):
            yield self.find(index, "a check cell without points", "set points above 0")

    def answer(self, index: int, code: str) -> Iterator[Finding]:
        marks = re.findall(r"#+ *(BEGIN|END) SOLUTION", code)
        if not marks or marks != ["BEGIN", "END"] * (len(marks) // 2):
            mend = "write # BEGIN SOLUTION ... # END SOLUTION"
            yield self.find(index, "solution markers do not pair up", mend)
            return
        try:
            ast.parse(stub(code))
        except (SyntaxError, SourceError):
            mend = "keep the signature outside the markers"
            yield self.find(index, "without its solution it is not Python", mend)

    def check_cell(self, index: int) -> Iterator[Finding]:
        tree = self.trees.get(index)
        asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)] if tree else []
        if not asserts:
            yield self.find(
                index, "a check cell without an assert", "assert what a right answer does"
            )
        for node in asserts:
            if node.msg is None:
                mend = "say what to look at: assert test, 'message'"
                yield self.find(index, f"an assert without a message (line {node.lineno})", mend)

    def text(self) -> Iterator[Finding]:
        folder = posixpath.dirname(self.chapter.docname)
        for index, text in self.prose:
            for keys in CITATION.findall(text):
                for key in keys.split(","):
                    if key.strip() not in self.keys:
                        mend = "add it to book/references.bib"
                        yield self.find(index, f"cites {key.strip()!r}, which is unknown", mend)
            plain = _without_code(text)
            for target in LINK.findall(plain):
                path = target.partition("#")[0]
                if not path or re.match(r"[a-z]+:", target):
                    continue
                rooted = path.startswith(("lib/", "tests/", "book/", "chapters/"))
                inner = path if rooted else posixpath.normpath(posixpath.join(folder, path))
                planned = {
                    f"chapters/{paper.part}/{paper.slug}.ipynb" for paper in self.source.papers
                }
                if not (self.source.root / inner).exists() and inner not in planned:
                    yield self.find(
                        index, f"links to {target}, which does not exist", "mend the path"
                    )
            for alt, _ in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", plain):
                if len(alt.split()) < 3:
                    yield self.find(index, "a picture without a description", "say what it shows")
            own = [block for block in plain.split("\n\n") if not QUOTED.search(block)]
            numbers = MEASURED.findall(_without_links(_without_math("\n\n".join(own))))
            if numbers:
                mend = "compute it in a cell tagged remove-input, or set a given constant as $...$"
                yield self.find(index, f"{', '.join(numbers)} typed into the prose", mend)

    def budget(self, run: dict[str, Any]) -> Iterator[Finding]:
        if run.get("scale", "small") != "small" or run.get("status") not in ("ok", "cached"):
            return
        seconds = run.get("cpu_seconds") or run.get("seconds") or 0
        if seconds > SECONDS:
            mend = f"{SECONDS} s on one thread is the most; use smaller settings"
            yield self.find(None, f"takes {seconds:.0f} s at small scale", mend)
        if (run.get("peak_mb") or 0) > MEGABYTES:
            mend = f"{MEGABYTES} MB is the most; use smaller settings"
            yield self.find(None, f"takes {run['peak_mb']:.0f} MB at small scale", mend)

    def _prompt(self, index: int) -> str:
        """The Markdown right above a cell."""
        texts = []
        for cell in reversed(self.cells[:index]):
            if cell["cell_type"] != "markdown":
                break
            texts.append(text_of(cell))
        return "\n".join(texts)

    def _calls(self) -> list[tuple[int, ast.Call]]:
        return [
            (index, call)
            for index, tree in self.trees.items()
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
        ]

    @staticmethod
    def _assigned(tree: ast.Module | None, name: str) -> ast.expr | None:
        for node in tree.body if tree else []:
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == name for target in node.targets
            ):
                return node.value
        return None


class _Opening(_Chapter):
    """A part's first page as a notebook: no paper, no exercises, but figures and a budget."""

    def findings(self, run: dict[str, Any] | None) -> Iterator[Finding]:
        yield from self.parse()
        if (self.chapter.path.parent / f"{OPENING}.md").is_file():
            yield self.find(None, "its part has two openings", f"delete {OPENING}.md")
        title = re.match(r"# (.+)", text_of(self.cells[0]) if self.cells else "")
        if not title or title[1].strip() != self.chapter.book.get("title"):
            yield self.find(0, "the title is not book.title", "make them agree")
        if not any(_literals(tree) == PARAMETERS for tree in self.trees.values()):
            mend = "; ".join(f"{key} = {value!r}" for key, value in PARAMETERS.items())
            yield self.find(None, "the parameters are not the book's", f"write {mend}")
        yield from self.stored()
        yield from self.descriptions(self._calls())
        yield from self.text()
        yield from self.budget(run or {})


# ------------------------------------------------------------------------------
# Small readers


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _name(call: ast.Call) -> str:
    """`f` for both `f(...)` and `module.f(...)`."""
    function = call.func
    return getattr(function, "id", None) or getattr(function, "attr", "")


def _argument(call: ast.Call, name: str, position: int) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if position < len(call.args) else None


def _is_claim(call: ast.Call) -> bool:
    keywords = {keyword.arg for keyword in call.keywords}
    return _name(call) == "add" and {"paper", "measured", "holds"} <= keywords


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _literals(tree: ast.Module | None) -> dict[str, Any]:
    """Names and the constants assigned to them."""
    found = {}
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found |= {t.id: node.value.value for t in node.targets if isinstance(t, ast.Name)}
    return found


def _keys(node: ast.expr) -> set[Any]:
    if isinstance(node, ast.Dict):
        return {key.value for key in node.keys if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and _name(node) == "dict":
        return {keyword.arg for keyword in node.keywords}
    return set()


def _free_names(trees: list[ast.Module | None]) -> set[str]:
    """Names that these cells read and never define."""
    read: set[str] = set()
    defined = set(dir(builtins))
    for tree in trees:
        for node in ast.walk(tree) if tree else []:
            if isinstance(node, ast.Name):
                (read if isinstance(node.ctx, ast.Load) else defined).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {(a.asname or a.name).split(".")[0] for a in node.names}
            elif isinstance(node, ast.ExceptHandler) and node.name:
                defined.add(node.name)
    return read - defined


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(```+|~~~+).*?^\1", "", text, flags=re.M | re.S))


def _without_math(text: str) -> str:
    return re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.S)


def _without_links(text: str) -> str:
    return re.sub(r"https?://\S+|\]\([^)]*\)|[Aa]r[Xx]iv:? ?\d+\.\d+", "", text)
