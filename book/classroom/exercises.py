"""Exercises as they stand in a chapter, and the copies of them that a class gets.

An exercise is one or more answer cells and the check cell after them, marked with nbgrader's cell
metadata. Three kinds of lines are rewritten in the copies:

* `# BEGIN SOLUTION` ... `# END SOLUTION` becomes a stub in the student's copy;
* `### BEGIN HIDDEN TESTS` ... `### END HIDDEN TESTS` is left out of it;
* `class_seed = 0` becomes `class_seed = SEED` in every copy, and a line of a check cell

      expected = 4.0  # = best(3)

  gets the value that the expression after `# =` has with the reference solution and that seed.
"""

from __future__ import annotations

import ast
import copy
import re
from dataclasses import dataclass, field
from typing import Any

from book.source import Chapter, SourceError, tags_of, text_of
from book.stage import stub

Cell = dict[str, Any]

CLASS_SEED = re.compile(
    r"^(?P<head>[ \t]*class_seed[ \t]*=[ \t]*)\d+(?P<tail>[ \t]*(?:#.*)?)$", re.M
)
EXPECTED = re.compile(
    r"^(?P<head>[ \t]*\w+[ \t]*=[ \t]*)(?P<value>\S.*?)[ \t]*# = (?P<expr>.+)$", re.M
)
HIDDEN = re.compile(
    r"^[ \t]*#+ *BEGIN HIDDEN TESTS.*?^[ \t]*#+ *END HIDDEN TESTS[^\n]*(?:\n|\Z)", re.M | re.S
)
REGION = re.compile(r"#+ *(BEGIN|END) SOLUTION")


@dataclass(frozen=True)
class Exercise:
    """Answer cells and the check that scores them, in a teacher's notebook."""

    name: str
    """The grade_id of the last answer cell, e.g. `ntk-ex1`."""
    check_id: str
    points: float
    answers: dict[str, int]
    """grade_id of each answer cell, and its index."""
    check: int
    """Index of the check cell."""
    wants: frozenset[str] = field(default=frozenset())
    """Top-level names that the solution defines: what a submission must supply."""


def nbgrader(cell: Cell) -> dict[str, Any]:
    """A cell's record, or an empty one; whatever else stands there is ignored."""
    metadata = cell.get("metadata")
    record = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    return record if isinstance(record, dict) else {}


def is_answer(cell: Cell) -> bool:
    return cell.get("cell_type") == "code" and bool(nbgrader(cell).get("solution"))


def is_check(cell: Cell) -> bool:
    record = nbgrader(cell)
    return bool(record.get("grade")) and not record.get("solution")


def read(notebook: dict[str, Any]) -> list[Exercise]:
    """The exercises of a chapter or of a teacher's copy.

    Raises
    ------
    SourceError
        A cell is malformed; the message names the cell.
    """
    found: list[Exercise] = []
    answers: dict[str, int] = {}
    seen: set[str] = set()
    for index, cell in enumerate(notebook.get("cells", [])):
        if not (is_answer(cell) or is_check(cell)):
            if cell.get("cell_type") == "code" and REGION.search(text_of(cell)):
                raise SourceError(f"cell {index}: a solution outside an answer cell")
            continue
        name = str(nbgrader(cell).get("grade_id", ""))
        if not re.fullmatch(r"[\w-]+", name):
            raise SourceError(f"cell {index}: grade_id is {name!r}; letters, digits, _ and - only")
        if name in seen:
            raise SourceError(f"cell {index}: grade_id {name!r} stands twice")
        seen.add(name)
        if is_answer(cell):
            answers[name] = index
            continue
        if not answers:
            raise SourceError(f"cell {index}: the check {name} has no answer cell above it")
        points = nbgrader(cell).get("points")
        if not isinstance(points, int | float) or not points > 0:
            raise SourceError(f"cell {index}: the check {name} has no points")
        wants: set[str] = set()
        for i in answers.values():
            with at(i):
                wants |= solved_names(text_of(notebook["cells"][i]))
        with at(index):
            parse(text_of(cell))
        found.append(
            Exercise(list(answers)[-1], name, float(points), dict(answers), index, frozenset(wants))
        )
        answers = {}
    if answers:
        raise SourceError(
            f"cell {max(answers.values())}: no check cell follows {list(answers)[-1]}"
        )
    return found


class at:
    """Names the cell in what goes wrong inside."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SourceError):
            raise SourceError(f"cell {self.index}: {error}") from None


def parse(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except SyntaxError as error:
        raise SourceError(f"line {error.lineno}: {error.msg}") from None


def solved_names(code: str) -> set[str]:
    """Top-level names that an answer cell binds with code between its solution marks."""
    lines = code.splitlines()
    open_, regions = None, []
    for number, line in enumerate(lines, 1):
        mark = REGION.search(line)
        if mark and mark[1] == "BEGIN" and open_ is None:
            open_ = number
        elif mark and mark[1] == "END" and open_ is not None:
            regions.append((open_, number))
            open_ = None
        elif mark:
            raise SourceError("BEGIN SOLUTION and END SOLUTION do not pair up")
    if open_ is not None:
        raise SourceError("BEGIN SOLUTION and END SOLUTION do not pair up")
    if not regions:
        raise SourceError("an answer cell without # BEGIN SOLUTION ... # END SOLUTION")
    parse(stub(code))
    names: set[str] = set()
    body = parse(code).body
    for i, node in enumerate(body):
        # A comment below the last line of a function belongs to it, as far as the next statement.
        end = body[i + 1].lineno if i + 1 < len(body) else len(lines) + 1
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            inside = any(a >= node.lineno and b <= max(end, node.end_lineno) for a, b in regions)
        else:
            inside = False
        if inside or any(a <= node.lineno <= b for a, b in regions):
            names |= bound(node)
    return names


def bound(node: ast.stmt) -> set[str]:
    """Names that a statement binds in the namespace it stands in."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    names: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id)
    return names


# ------------------------------------------------------------------------------
# Copies


def assignment(chapter: Chapter, address: str, setup: str) -> dict[str, Any]:
    """The chapter's exercises as a notebook of their own: title, set-up, parameters, exercises.

    It still holds the solutions: this is what the other copies are made of.
    """
    notebook = chapter.notebook
    cells = notebook.get("cells", [])
    title = chapter.book.get("title") or chapter.slug
    opening = (
        f"# {title}: exercises\n\nThey belong to the chapter [{title}]({address}). Write your code "
        "where it says `your code here` and run the check below it; when something is wrong, its "
        "message says what to look at. Hand in this notebook."
    )
    made: list[Cell] = [markdown("title", opening)]
    made += [c for c in cells if "setup" in tags_of(c)] or [code("setup", setup, tags=["setup"])]
    made += [c for c in cells if "parameters" in tags_of(c)]
    inside = False
    for cell in cells:
        text = text_of(cell)
        if cell.get("cell_type") == "markdown":
            begin = re.search(r"^## Exercises[ \t]*$", text, re.M)
            if begin:
                inside = True
                cell = {**cell, "source": text[begin.start() :]}
            elif inside and re.search(r"^## ", text, re.M):
                break
        if inside:
            made.append(cell)
    if not inside:
        raise SourceError("has no section '## Exercises'")
    cells = []
    for index, cell in enumerate(copy.deepcopy(made)):
        cell = {**cell, "source": text_of(cell), "id": cell.get("id") or f"cell-{index}"}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        cells.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "book": {"title": title, "part": chapter.part, "slug": chapter.slug, "class": 0},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def for_class(notebook: dict[str, Any], seed: int) -> tuple[dict[str, Any], list[str]]:
    """The notebook with the seed of a class; also the exercises that do not depend on it."""
    notebook = copy.deepcopy(notebook)
    notebook["metadata"]["book"]["class"] = seed
    changed: set[int] = set()
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            cell["source"], count = CLASS_SEED.subn(rf"\g<head>{seed}\g<tail>", cell["source"])
            if count:
                changed.add(index)
    still = []
    for exercise in read(notebook):
        if seed:
            with at(exercise.check):
                compute_expected(notebook, exercise)
        if not changed & {*exercise.answers.values(), exercise.check}:
            still.append(exercise.name)
    return notebook, still


def compute_expected(notebook: dict[str, Any], exercise: Exercise) -> None:
    """Write the reference solution's values into the lines `name = value  # = expression`."""
    check = notebook["cells"][exercise.check]
    if EXPECTED.search(check["source"]):
        answers = [notebook["cells"][i]["source"] for i in exercise.answers.values()]
        values = iter(expected(answers, check["source"]))
        check["source"] = EXPECTED.sub(
            lambda m: f"{m['head']}{next(values)!r}  # = {m['expr']}", check["source"]
        )


def expected(answers: list[str], check: str) -> list[Any]:
    """The values of a check's `# =` expressions, in order.

    Runs the answers, then of the check every statement above such a line except the asserts.
    """
    namespace: dict[str, Any] = {"__name__": "reference"}
    try:
        for source in answers:
            exec(compile(source, "<answer>", "exec"), namespace)
        at_line = {
            check.count("\n", 0, m.start("head")) + 1: m["expr"] for m in EXPECTED.finditer(check)
        }
        values = []
        for node in parse(check).body:
            lines = [n for n in at_line if node.lineno <= n <= (node.end_lineno or node.lineno)]
            if not isinstance(node, ast.Assert):
                exec(compile(ast.Module([node], []), "<check>", "exec"), namespace)
            for line in lines:
                value = eval(at_line[line], namespace)
                try:
                    ast.literal_eval(repr(value))
                except (ValueError, SyntaxError):
                    raise SourceError(
                        f"line {line}: {at_line[line]} is a {type(value).__name__}, which cannot "
                        "be written down; make it a number, a string or a list of them"
                    ) from None
                for target in bound(node):
                    namespace[target] = value
                values.append(value)
        return values
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"the reference raises {type(error).__name__}: {error}") from None


def student(notebook: dict[str, Any]) -> dict[str, Any]:
    """The copy that is handed out: stubs, no hidden tests, no sign of where values come from."""
    notebook = copy.deepcopy(notebook)
    for index, cell in enumerate(notebook["cells"]):
        if is_answer(cell):
            with at(index):
                cell["source"] = stub(cell["source"])
        elif is_check(cell):
            with at(index):
                cell["source"] = visible(cell["source"])
    return notebook


def visible(check: str) -> str:
    """A check cell as students see it."""
    text = EXPECTED.sub(r"\g<head>\g<value>", HIDDEN.sub("", check)).rstrip()
    if re.search(r"(BEGIN|END) HIDDEN TESTS", text):
        raise SourceError("BEGIN HIDDEN TESTS and END HIDDEN TESTS do not pair up")
    return text


def imports(sources: list[str]) -> list[str]:
    """Modules that trusted cells import, for the nursery to import before it forks."""
    found: dict[str, None] = {}
    for source in sources:
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= dict.fromkeys(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module] = None
                if node.module.startswith("lib"):
                    found |= dict.fromkeys(f"{node.module}.{alias.name}" for alias in node.names)
    return list(found)


def markdown(name: str, text: str) -> Cell:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def code(name: str, text: str, **metadata: Any) -> Cell:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": metadata,
        "outputs": [],
        "source": text,
    }
