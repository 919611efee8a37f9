"""nbgrader and Otter take what `assign` makes, and give the points that `grade` gives.

Their requirements exclude each other, so each has an environment of its own under `_build/envs`,
which sees the packages of this one. It is made when it is first needed. Where that is not possible
(no network) the tests are skipped; in CI they fail.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from book import assign
from book.classroom.grader import Grader, Limits
from book.source import ROOT, Source, text_of
from tests.book.fixtures import homework

pytestmark = pytest.mark.slow

ENVS = ROOT / "_build" / "envs"
WRONG = "def double(x):\n    return 2 * x\n"
EXERCISES = ["small-ex1", "small-ex2", "small-ex3"]


def environment(name: str) -> Path:
    """The programs of an environment, made if it does not exist."""
    wanted = ROOT / "tests" / "envs" / f"{name}.txt"
    paths = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    digest = hashlib.sha256(
        "\n".join([wanted.read_text("utf-8"), sys.version, *paths]).encode()
    ).hexdigest()
    folder = ENVS / f"{name}-{digest[:12]}"
    ENVS.mkdir(parents=True, exist_ok=True)
    with open(ENVS / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            python = folder / "bin" / "python"
            run(sys.executable, "-m", "venv", "--without-pip", folder)
            ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
            site = subprocess.check_output([python, "-c", ask], text=True).strip()
            Path(site, "book.pth").write_text("\n".join(paths) + "\n")
            install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
            made = run(sys.executable, *install, "-r", wanted, check=False)
            if made.returncode:
                reason = f"no environment for {name}: {made.stderr.strip().splitlines()[-1:]}"
                pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
            (folder / "complete").touch()
    return folder / "bin"


def run(*command, check=True, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, **options
    )
    said = done.stdout[-2000:] + done.stderr[-2000:]
    assert not check or not done.returncode, f"{command}: {said}"
    return done


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Homework of a small book, three submissions, and the points that `grade` gives them."""
    top = tmp_path_factory.mktemp("course")
    tree = homework.small_book(top / "book")
    source = Source(tree.root)
    copy = assign.one(source, homework.chapter(tree), 3)
    assign.prepare(top / "out")
    assign.deliver(source, [copy], top / "out", 3)
    submissions = {
        "right": copy.teacher,
        "partly": homework.answered(copy.teacher, small_ex1=WRONG, small_ex1_check="pass"),
        "stub": copy.student,
    }
    with Grader(tree.root, Limits(), [copy.teacher]) as grader:
        points = {
            name: {v.exercise: v.points for v in grader.grade(copy.teacher, made)}
            for name, made in submissions.items()
        }
    home = top / "home"
    home.mkdir()
    quiet = {"PYTHONPATH": str(tree.root), "HOME": str(home), "OMP_NUM_THREADS": "1"}
    return {
        "out": top / "out",
        "submissions": submissions,
        "points": points,
        "env": {**os.environ, **quiet, "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
    }


def test_points_of_this_press(course):
    assert course["points"] == {
        "right": dict(zip(EXERCISES, [2, 1, 1.5])),
        "partly": dict(zip(EXERCISES, [0, 1, 1.5])),
        "stub": dict(zip(EXERCISES, [0, 0, 0])),
    }


ASK_GRADEBOOK = """
import json
from nbgrader.api import Gradebook
found = {}
with Gradebook("sqlite:///gradebook.db") as book:
    for s in book.assignment_submissions("small"):
        grades = [g for n in s.notebooks for g in n.grades]
        found[s.student.id] = {g.name.removesuffix("-check"): g.score for g in grades}
print(json.dumps(found))
"""


def test_nbgrader(course):
    programs = environment("nbgrader")
    path = os.pathsep.join([str(programs), os.environ.get("PATH", "")])  # it calls alembic
    where = {"cwd": course["out"] / "nbgrader", "env": {**course["env"], "PATH": path}}
    ours = json.loads((where["cwd"] / "release/small/small.ipynb").read_text())

    def nbgrader(*arguments, **options):
        return run(programs / "python", "-m", "nbgrader", *arguments, **where, **options)

    said = nbgrader("validate", "source/small/small.ipynb").stdout
    assert "Success! Your notebook passes all the tests." in said
    said = nbgrader("validate", "release/small/small.ipynb").stdout
    assert "VALIDATION FAILED ON 3 CELL(S)" in said

    nbgrader("generate_assignment", "small", "--force")
    theirs = json.loads((where["cwd"] / "release/small/small.ipynb").read_text())
    for mine, other in zip(ours["cells"], theirs["cells"], strict=True):
        other = text_of(other).replace("  # = double(3.0)", "").rstrip()
        assert text_of(mine).rstrip() == other, "its release is ours"

    for name, notebook in course["submissions"].items():
        folder = where["cwd"] / "submitted" / name / "small"
        folder.mkdir(parents=True)
        (folder / "small.ipynb").write_text(json.dumps(notebook))
    nbgrader("autograde", "small")
    found = json.loads(run(programs / "python", "-c", ASK_GRADEBOOK, **where).stdout)
    assert found == course["points"]


def test_otter(course, tmp_path):
    programs = environment("otter")
    bundle = course["out"] / "otter" / "small.zip"
    for name, notebook in course["submissions"].items():
        path = tmp_path / name / "small.ipynb"
        path.parent.mkdir()
        path.write_text(json.dumps(notebook))
        run(
            programs / "python",
            *("-m", "otter", "run", "-a", bundle, "-o", path.parent, "--no-logo", path),
            cwd=path.parent,
            env=course["env"],
        )
        tests = json.loads((path.parent / "results.json").read_text())["tests"]
        points = {t["name"]: t["score"] for t in tests if t["name"] in EXERCISES}
        assert points == course["points"][name], tests
