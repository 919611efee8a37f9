"""Homework out of chapters: what the copies hold, and what they must not."""

import ast
import json
import stat
import zipfile

import pytest

from book import assign
from book.__main__ import main
from book.classroom import exercises
from book.source import Source, SourceError, text_of
from tests.book.fixtures import homework


@pytest.fixture
def tree(tmp_path):
    return homework.small_book(tmp_path / "book")


def press(tree, *arguments):
    try:
        return main([*map(str, arguments), "--root", str(tree.root)])
    except SystemExit as end:
        return end.code


def code(path):
    notebook = json.loads(path.read_text())
    return "\n\n".join(text_of(c) for c in notebook["cells"] if c["cell_type"] == "code")


def test_student_copy_has_neither_solutions_nor_hidden_tests(tree, tmp_path):
    out = tmp_path / "homework"
    assert press(tree, "assign", out) == 0
    for path in (out / "student/width/small.ipynb", out / "nbgrader/release/small/small.ipynb"):
        text = code(path)
        for secret in (
            "SOLUTION",
            "2 * x + step",
            "k * x",
            '("one", 1)}',
            "HIDDEN",
            "secret_place",
        ):
            assert secret not in text
        assert "# = double" not in text, "nor where the expected values come from"
        assert "the chapter itself" not in text, "the exercises only"
        assert "your code here" in text and "double(3.0) is not what it should be" in text
        assert 'scale = "small"' in text
        ast.parse(text)
    kept = code(out / "teacher/width/small.ipynb")
    assert "2 * x + step" in kept and "secret_place" in kept
    assert kept == code(out / "nbgrader/source/small/small.ipynb")
    for name in ("teacher", "nbgrader", "otter"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o700, "for nobody else on this machine"
    manifest = json.loads((out / "assignment.json").read_text())
    points = {"small-ex1": 2, "small-ex2": 1, "small-ex3": 1.5}
    assert manifest["chapters"]["width/small"]["exercises"] == points


def test_otter_bundle(tree, tmp_path):
    assert press(tree, "assign", tmp_path / "homework") == 0
    with zipfile.ZipFile(tmp_path / "homework/otter/small.zip") as bundle:
        names = set(bundle.namelist())
        assert {"setup.sh", "run_autograder", "otter_config.json", "requirements.txt"} <= names
        assert {f"tests/small-ex{n}.py" for n in (1, 2, 3)} <= names
        assert "files/lib/small.py" in names
        assert bundle.getinfo("run_autograder").external_attr >> 16 & 0o111
        test = bundle.read("tests/small-ex1.py").decode()
    ast.parse(test)
    assert "secret_place" in test and "hidden=True" in test and "2 * x + step" not in test


def test_the_same_chapters_give_the_same_bytes(tree, tmp_path):
    press(tree, "assign", tmp_path / "one")
    press(tree, "assign", tmp_path / "two")
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert path.read_bytes() == other.read_bytes()
    assert press(tree, "assign", tmp_path / "one") == 0, "an earlier OUT may be made again"


def test_class_seed_changes_data_and_expected_values(tree, tmp_path, capsys):
    made = tmp_path / "homework"
    assert press(tree, "assign", made, "--class", 3, "--untried") == 0
    assert "the same in every class: small-ex2, small-ex3" in capsys.readouterr().out
    text = code(made / "student/width/small.ipynb")
    assert text.count("class_seed = 3") == 2 and "class_seed = 0" not in text
    assert "expected = 11.0\n" in text, "2 * 3 + (2 + 3 % 5)"
    assert "expected = 11.0  # = double(3.0)" in code(made / "teacher/width/small.ipynb")


def test_class_seed_tries_the_reference(tmp_path, capsys):
    wrong = "class_seed = 0\nassert double(1.0) == 4.0, 'typed instead of computed'"
    tree = homework.small_book(
        tmp_path / "book",
        bad=homework.notebook("bad", (homework.DOUBLE, wrong, 1)),
        good=homework.notebook("good", (homework.DOUBLE, homework.CHECK_DOUBLE, 1)),
    )
    assert press(tree, "assign", tmp_path / "out", "--class", 4) == 1
    out, error = capsys.readouterr()
    assert "chapters/width/bad.ipynb: bad-ex1: with this class seed" in error
    assert "typed instead of computed" in error
    assert "1 of 2 chapters" in out
    assert (tmp_path / "out/student/width/good.ipynb").exists()
    assert not (tmp_path / "out/student/width/bad.ipynb").exists()


def test_an_expected_value_that_cannot_be_written_down(tree):
    check = "value = 0  # = object()\nassert True, 'x'"
    with pytest.raises(SourceError, match="line 1: object.. is a object, which cannot be written"):
        exercises.expected([], check)
    with pytest.raises(SourceError, match="the reference raises ZeroDivisionError"):
        exercises.expected(["a = 1"], "value = 0  # = a / 0")


def test_expected_values_may_build_on_one_another():
    check = "import math\nn = 1  # = size + 1\nassert False, 'not run'\nm = 0  # = math.sqrt(n)"
    assert exercises.expected(["size = 8"], check) == [9, 3.0]


def break_cell(notebook, name, change):
    for cell in notebook["cells"]:
        record = cell["metadata"].get("nbgrader", {})
        if record.get("grade_id") == name:
            change(cell, record)


BROKEN = {
    "marks": (
        "bad-ex1",
        lambda c, r: c.update(source=c["source"].replace("# END SOLUTION", "")),
        "cell 6: BEGIN SOLUTION and END SOLUTION do not pair up",
    ),
    "no marks": (
        "bad-ex1",
        lambda c, r: c.update(source="x = 1"),
        "cell 6: an answer cell without # BEGIN SOLUTION",
    ),
    "check syntax": (
        "bad-ex1-check",
        lambda c, r: c.update(source="assert ("),
        "cell 7: line 1: '(' was never closed",
    ),
    "no points": ("bad-ex1-check", lambda c, r: r.pop("points"), "cell 7: the check bad-ex1-check"),
    "no check": (
        "bad-ex1-check",
        lambda c, r: c["metadata"].clear(),
        "cell 6: no check cell follows bad-ex1",
    ),
    "no answer": (
        "bad-ex1",
        lambda c, r: c.update(metadata={}, source="x = 1"),
        "cell 7: the check bad-ex1-check has no answer cell above it",
    ),
    "twice": (
        "bad-ex1-check",
        lambda c, r: r.update(grade_id="bad-ex1"),
        "cell 7: grade_id 'bad-ex1' stands twice",
    ),
    "stub": (
        "bad-ex1",
        lambda c, r: c.update(source="# BEGIN SOLUTION\nif 1:\n# END SOLUTION\n    x = 1"),
        "cell 6: line 2: unexpected indent",
    ),
    "leak": (
        "leak",
        lambda c, r: None,
        "a solution outside an answer cell",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_chapter_is_named_with_its_cell_and_stops_no_other(tmp_path, capsys, name):
    grade_id, change, says = BROKEN[name]
    bad = homework.notebook("bad", (homework.DOUBLE, homework.CHECK_DOUBLE, 1))
    if name == "leak":
        bad["cells"].insert(-1, homework.cell("code", "leak", "# BEGIN SOLUTION\n# END SOLUTION"))
    break_cell(bad, grade_id, change)
    good = homework.notebook("good", (homework.DOUBLE, homework.CHECK_DOUBLE, 1))
    tree = homework.small_book(tmp_path / "book", bad=bad, good=good)
    assert press(tree, "assign", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("FAILED chapters/width/bad.ipynb: cell") and says in error
    assert (tmp_path / "out/student/width/good.ipynb").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "the following arguments are required: OUT"),
        (["out", "smll"], "unknown chapter 'smll'; did you mean"),
        (["out", "--class", "0"], "--class: '0' is not a whole number from 1"),
        (["out", "--class", "spring"], "--class: 'spring' is not a whole number"),
        (["full"], "holds other files; name a new folder or an earlier OUT"),
        (["full/file"], "is a file; name a folder"),
        (["full/file/inside"], "cannot write in"),
    ],
)
def test_bad_requests_are_one_line(tree, tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    assert press(tree, "assign", *arguments) == 2
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and says in error


def test_every_chapter_of_the_book_makes_homework():
    source = Source()
    copies, failures = assign.make(source, source.chapters, 0)
    assert not failures
    for copy in copies:
        for exercise in copy.found:
            assert exercise.wants, f"{exercise.name}: the solution defines no name"
        text = json.dumps(copy.student)
        assert "SOLUTION" not in text and "HIDDEN" not in text
