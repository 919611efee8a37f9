"""Make homework of the book's exercises: copies for students, teachers, nbgrader and Otter.

Everything comes from the chapters, so nothing is written twice:

  OUT/student/<part>/<slug>.ipynb   to hand out: stubs, no solutions, no hidden tests
  OUT/teacher/<part>/<slug>.ipynb   solutions and all tests: what `grade` takes its checks from
  OUT/nbgrader/                     a course for nbgrader: its configuration, source/ and release/
  OUT/otter/<slug>.zip              an autograder for `otter run` and for Gradescope
  OUT/assignment.json               which exercises and points, and the class

With a class seed the data, sizes and expected answers of the exercises change, so that solutions
to the public book are none to the homework. The reference solution is then tried with it.

examples:
  python -m book assign homework                       every chapter of _toc.yml
  python -m book assign homework ntk width --class 2027

Only OUT/student is for students. Exit status: 0 all made, 1 some chapter could not be.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from book.cache import write
from book.classroom import exercises
from book.errors import BookError
from book.run import select
from book.source import Chapter, Source, SourceError

MANIFEST = "assignment.json"
OTTER = "7.0.0"
PRIVATE = ("teacher", "nbgrader", "otter")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to write to; made if it does not exist")
    add(
        "chapters",
        nargs="*",
        metavar="CHAPTER",
        help="part/slug, slug, or a part; default: every chapter of _toc.yml",
    )
    add(
        "--class",
        dest="seed",
        type=class_seed,
        default=0,
        metavar="SEED",
        help="a whole number above 0 that only your class has (default: the book's own exercises)",
    )
    add(
        "--untried",
        action="store_true",
        help="do not try the reference solution with the class seed",
    )


def class_seed(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {2**31 - 1}")
    return int(text)


@dataclass
class Copy:
    """One chapter's exercises, made for a class."""

    chapter: Chapter
    teacher: dict[str, Any]
    student: dict[str, Any]
    found: list[exercises.Exercise]
    still: list[str] = field(default_factory=list)
    """Exercises that the class seed does not change."""


def main(args: argparse.Namespace) -> int:
    source = Source(args.root)
    chapters = select(source, args.chapters)
    prepare(args.out)
    copies, failures = make(source, chapters, args.seed)
    if args.seed and not args.untried:
        copies, wrong = tried(source, copies)
        failures += wrong
    if copies:
        deliver(source, copies, args.out, args.seed)
    for copy in copies:
        points = sum(e.points for e in copy.found)
        line = f"{copy.chapter.name}: {len(copy.found)} exercises, {points:g} points"
        if args.seed and copy.still:
            line += f"; the same in every class: {', '.join(copy.still)}"
        print(line)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(
        f"{len(copies)} of {len(chapters)} chapters in {args.out}; hand out {args.out / 'student'}"
    )
    return 1 if failures else 0


def prepare(out: Path) -> None:
    """Make OUT, or refuse a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise BookError(f"OUT {out} is a file; name a folder")
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
            raise BookError(f"OUT {out} holds other files; name a new folder or an earlier OUT")
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise BookError(f"cannot write in {out}: {error.strerror or error}") from None


def make(source: Source, chapters: list[Chapter], seed: int) -> tuple[list[Copy], list[str]]:
    """The copies, and one line for each chapter that has none."""
    copies, failures = [], []
    if seed and str(source.root) not in sys.path:
        sys.path.insert(0, str(source.root))  # the references need `lib`
    for chapter in chapters:
        try:
            copies.append(one(source, chapter, seed))
        except SourceError as error:
            failures.append(f"chapters/{chapter.name}.ipynb: {error}")
    return copies, failures


def one(source: Source, chapter: Chapter, seed: int) -> Copy:
    """A chapter's copies.

    Raises
    ------
    SourceError
        The chapter cannot be made into homework; the message names the cell.
    """
    exercises.read(chapter.notebook)  # a wrong cell is named by its place in the chapter
    address = source.link(f"{chapter.docname}.ipynb")
    book = exercises.assignment(chapter, address, source.setup_cell)
    teacher, still = exercises.for_class(book, seed)
    found = exercises.read(teacher)
    if not found:
        raise SourceError("has no exercises")
    return Copy(chapter, teacher, exercises.student(teacher), found, still)


def tried(source: Source, copies: list[Copy]) -> tuple[list[Copy], list[str]]:
    """Those copies whose reference solution scores in full, and a line for each that does not."""
    from book.classroom.grader import Grader, Limits

    good, failures = [], []
    if not copies:
        return good, failures
    with Grader(source.root, Limits(), [c.teacher for c in copies]) as grader:
        for copy in copies:
            lost = [v for v in grader.grade(copy.teacher, copy.teacher) if v.points < v.of]
            for verdict in lost:
                failures.append(
                    f"chapters/{copy.chapter.name}.ipynb: {verdict.exercise}: with this class seed "
                    f"the reference solution fails: {verdict.message}"
                )
            if not lost:
                good.append(copy)
    return good, failures


# ------------------------------------------------------------------------------
# What is written


def deliver(source: Source, copies: list[Copy], out: Path, seed: int) -> None:
    for name in PRIVATE:
        (out / name).mkdir(exist_ok=True)
        (out / name).chmod(0o700)
    manifest: dict[str, Any] = {"class": seed, "chapters": {}}
    slugs = [c.chapter.slug for c in copies]
    library = lib_files(source.root)
    for copy in copies:
        chapter = copy.chapter
        name = chapter.slug if slugs.count(chapter.slug) == 1 else f"{chapter.part}-{chapter.slug}"
        given, kept = text(copy.student), text(copy.teacher)
        write(out / "student" / chapter.part / f"{chapter.slug}.ipynb", given)
        write(out / "teacher" / chapter.part / f"{chapter.slug}.ipynb", kept)
        write(out / "nbgrader" / "source" / name / f"{chapter.slug}.ipynb", kept)
        write(out / "nbgrader" / "release" / name / f"{chapter.slug}.ipynb", given)
        bundle = out / "otter" / f"{name}.zip"
        bundle.with_suffix(".part").write_bytes(autograder(source, copy, library))
        bundle.with_suffix(".part").replace(bundle)
        manifest["chapters"][chapter.name] = {
            "assignment": name,
            "exercises": {e.name: e.points for e in copy.found},
        }
    write(out / "nbgrader" / "nbgrader_config.py", NBGRADER)
    write(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def text(notebook: dict[str, Any]) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


NBGRADER = '''\
"""A course for nbgrader, with the exercises of the book.

    nbgrader generate_assignment NAME      enters it into the gradebook
    nbgrader autograde NAME                grades what lies in submitted/STUDENT/NAME/
    nbgrader export                        writes grades.csv
"""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "ideas-that-run"
c.ClearSolutions.code_stub = {"python": "...  # your code here"}
c.ExecutePreprocessor.timeout = 120
c.ExecutePreprocessor.interrupt_on_timeout = True
'''


def lib_files(root: Path) -> dict[str, bytes]:
    """The library by its path in the repository: an autograder carries it along."""
    paths = sorted((root / "lib").rglob("*"))
    kinds = (".py", ".csv", ".json", ".npz")
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts
    }


def autograder(source: Source, copy: Copy, library: dict[str, bytes]) -> bytes:
    """Otter's bundle: `otter run -a` takes it, and Gradescope as the autograder to upload."""
    files: dict[str, str | bytes] = {
        "setup.sh": SETUP.format(otter=OTTER),
        "run_autograder": RUN,
        "requirements.txt": "\n".join(dependencies(source.root)) + "\n",
        "otter_config.json": json.dumps({"lang": "python", "show_stdout": False}, indent=1) + "\n",
    }
    for exercise in copy.found:
        files[f"tests/{exercise.name}.py"] = otter_test(copy, exercise)
    files |= {f"files/{name}": content for name, content in library.items()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            # A fixed date: the same exercises give the same bytes.
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.external_attr = (0o755 if name in ("setup.sh", "run_autograder") else 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return stream.getvalue()


def otter_test(copy: Copy, exercise: exercises.Exercise) -> str:
    """The check cell in Otter's exception-based format, run on the submission's names."""
    check = copy.teacher["cells"][exercise.check]["source"]
    hidden = bool(exercises.HIDDEN.search(check))
    return (
        "from otter.test_files import test_case\n\n"
        "OK_FORMAT = False\n"
        f"name = {exercise.name!r}\n"
        f"points = {exercise.points!r}\n"
        f"CHECK = {check!r}\n\n\n"
        f"@test_case(points={exercise.points!r}, hidden={hidden})\n"
        "def check(env):\n"
        "    exec(compile(CHECK, name, 'exec'), env)\n"
    )


def dependencies(root: Path) -> list[str]:
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
        return project["dependencies"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return ["torch"]


SETUP = """\
#!/usr/bin/env bash
# Gradescope runs this once, when it builds the image: Otter, the library's packages, no GPU.
set -e
apt-get update
apt-get install -y python3 python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
/autograder/venv/bin/pip install "otter-grader[grading]=={otter}" ipykernel
/autograder/venv/bin/pip install -r /autograder/source/requirements.txt
"""

RUN = """\
#!/usr/bin/env bash
cd /autograder
export OMP_NUM_THREADS=1
/autograder/venv/bin/python -c "from otter.run.run_autograder import main; main('/autograder')"
"""
