"""The graders are tested: reference 100 %, stub 0 %, wrong answers below 100 %.

Wrong answers stand in `tests/graders/<part>/<slug>.py`, at least three for each exercise of a
chapter that `_toc.yml` lists. To these come answers that are wrong for every exercise: nothing, not
a number, an error.
"""

from __future__ import annotations

import copy
import re

import pytest

from book import assign
from book.classroom import exercises
from book.classroom.grader import Grader, Limits
from book.source import ROOT, Source
from lib.core.stats import relative_error
from tests.book.sampling import changes, sample, turn

SOURCE = Source()
LISTED = {chapter.name for chapter in SOURCE.chapters}
CHAPTERS = {
    chapter.name: chapter
    for chapter in SOURCE.all_chapters
    if chapter.name in LISTED or (ROOT / "tests" / "graders" / f"{chapter.name}.py").exists()
}
TRIED = [
    page.removeprefix("chapters/")
    for page in sample([f"chapters/{name}" for name in CHAPTERS], changes(ROOT), turn(ROOT))
]
"""Whose answers are graded in this run: all of a small book, a share of a large one."""
ENOUGH = 3
ANOTHER = 7
"""A class seed."""
BLOCK = re.compile(r"^# %% (?P<exercise>[\w-]+): (?P<what>.+)\n", re.M)


def wrong_answers(name):
    """[exercise, what is wrong with it, code] of a chapter."""
    path = ROOT / "tests" / "graders" / f"{name}.py"
    if not path.is_file():
        return []
    parts = BLOCK.split(path.read_text("utf-8"))[1:]
    return [parts[i : i + 3] for i in range(0, len(parts), 3)]


def every_way(exercise):
    """Wrong answers to whatever is asked."""
    names = sorted(exercise.wants)
    for what, body in {"NaN": "return float('nan')", "an error": "raise ValueError('no')"}.items():
        yield what, "".join(f"def {n}(*args, **kwargs):\n    {body}\n\n\n" for n in names)
    yield "nothing", "del " + ", ".join(names)


def only(teacher, exercise):
    """The teacher's copy with this exercise alone."""
    keep = {exercise.check, *exercise.answers.values()}
    cells = teacher["cells"]
    others = {i for i, c in enumerate(cells) if exercises.is_answer(c) or exercises.is_check(c)}
    return {**teacher, "cells": [c for i, c in enumerate(cells) if i in keep or i not in others]}


def with_answer(student, exercise, code):
    """The student's copy with code below the stub of one exercise."""
    made = copy.deepcopy(student)
    for cell in made["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == exercise.name:
            cell["source"] += "\n\n\n" + code
    return made


@pytest.fixture(scope="module", params=TRIED)
def chapter(request):
    """A chapter's copies and a grader that is warm for it."""
    made = assign.one(SOURCE, CHAPTERS[request.param], 0)
    with Grader(SOURCE.root, Limits(), [made.teacher]) as grader:
        yield made, grader


def test_reference_scores_in_full_and_the_stub_nothing(chapter):
    made, grader = chapter
    for verdict in grader.grade(made.teacher, made.teacher):
        assert verdict.points == verdict.of, f"{verdict.exercise}: {verdict.message}"
    for verdict in grader.grade(made.teacher, made.student):
        assert verdict.points == 0, f"{verdict.exercise}: the untouched stub passes"


def test_reference_scores_in_full_in_another_class(chapter):
    made, grader = chapter
    other = assign.one(SOURCE, made.chapter, ANOTHER)
    for exercise in other.found:
        if exercise.name not in other.still:
            teacher = only(other.teacher, exercise)
            (verdict,) = grader.grade(teacher, teacher)
            assert verdict.points == verdict.of, f"{verdict.exercise}: {verdict.message}"


def test_wrong_answers_lose_points(chapter):
    made, grader = chapter
    survivors = []
    answers = wrong_answers(made.chapter.name)
    for exercise in made.found:
        teacher, student = only(made.teacher, exercise), only(made.student, exercise)
        mine = [(what, code) for name, what, code in answers if name == exercise.name]
        for what, code in [*mine, *every_way(exercise)]:
            compile(code, what, "exec")
            (verdict,) = grader.grade(teacher, with_answer(student, exercise, code))
            if verdict.points >= verdict.of:
                survivors.append(f"{exercise.name}: {what}")
    assert not survivors, f"{len(survivors)} wrong answers score in full: {survivors}"


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_exercise_has_three_wrong_answers(name):
    found = assign.one(SOURCE, CHAPTERS[name], 0).found
    answers = wrong_answers(name)
    for exercise in found:
        count = len({what for one, what, _ in answers if one == exercise.name})
        assert count >= ENOUGH, (
            f"{exercise.name} has {count} wrong answers; write {ENOUGH} into "
            f"tests/graders/{name}.py"
        )
    assert {one for one, _, _ in answers} <= {e.name for e in found}, "an answer to no exercise"


@pytest.mark.parametrize("name", CHAPTERS)
def test_expected_values_are_those_of_the_reference(name):
    """What stands in the book's own check cells is what the reference solution gives."""
    teacher = assign.one(SOURCE, CHAPTERS[name], 0).teacher
    for exercise in exercises.read(teacher):
        check = teacher["cells"][exercise.check]["source"]
        lines = list(exercises.EXPECTED.finditer(check))
        if lines:
            answers = [teacher["cells"][i]["source"] for i in exercise.answers.values()]
            for line, value in zip(lines, exercises.expected(answers, check), strict=True):
                typed = eval(line["value"], {})
                if isinstance(value, float | int) and not isinstance(value, bool):
                    assert relative_error(typed, value) < 1e-6, f"{exercise.check_id}: {line[0]}"
                else:
                    assert typed == value, f"{exercise.check_id}: {line[0]}"
