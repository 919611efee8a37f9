"""Grade a folder of submissions.

DIR holds a folder for each student with notebooks in it, at any depth, or notebooks named after
their students. Checks come from the teacher's copy only: what a submission says there is ignored.
Each exercise runs in processes of its own, with limits on time, memory, processes and files and, on
Linux, without network and other files. See the page "Teaching with the book" for what this does not
protect from.

Writes RESULTS/results/<student>/... as each submission is done, and from them RESULTS/grades.csv.
Stop it whenever you like: the next call goes on where it was, and grades again only what changed.

examples:
  python -m book grade submissions --teacher homework/teacher
  python -m book grade submissions --class 2027        checks made from the chapters, on the fly
  python -m book grade submission --gradescope results.json

Exit status: 0 all graded, 1 some submission could not be (it has 0 points and the reason stands in
grades.csv), 2 nothing could start, 130 interrupted.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from book import assign
from book.cache import write
from book.classroom import exercises
from book.classroom.grader import Grader, Limits
from book.errors import BookError
from book.run import select
from book.source import Source, SourceError

FORMAT = 1
NOTEBOOK_MB = 20
COLUMNS = "student chapter points of status reason file exercises".split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the submissions")
    add(
        "--teacher",
        type=Path,
        metavar="DIR",
        help="the teacher's copies that `assign` made (default: DIR/../teacher, else the chapters)",
    )
    add(
        "--class",
        dest="seed",
        type=assign.class_seed,
        metavar="SEED",
        help="make the teacher's copies from the chapters with this class seed",
    )
    add("--out", type=Path, metavar="RESULTS", help="where to write (default: DIR-grades)")
    add(
        "--gradescope",
        type=Path,
        metavar="FILE",
        help="also write Gradescope's results.json for the one submission that DIR holds",
    )
    add("--fresh", action="store_true", help="grade again what has not changed")
    add("--jobs", type=positive(int), default=1, metavar="N", help="submissions at a time (1)")
    limits = Limits()
    add(
        "--timeout",
        type=positive(float),
        default=limits.seconds,
        metavar="S",
        help=f"seconds for an exercise ({limits.seconds:g})",
    )
    add(
        "--memory",
        type=positive(float),
        default=limits.memory_mb,
        metavar="MB",
        help=f"memory of an exercise ({limits.memory_mb:g})",
    )
    add(
        "--processes",
        type=positive(int),
        default=limits.processes,
        metavar="N",
        help=f"processes and threads of an exercise ({limits.processes})",
    )
    add(
        "--files",
        type=positive(float),
        default=limits.file_mb,
        metavar="MB",
        help=f"size of a file that it writes ({limits.file_mb:g})",
    )


def positive(kind: type) -> Any:
    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if 0 < value < float("inf"):
                return value
        whole = " from 1 up" if kind is int else " above 0"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number{whole}")

    return read


@dataclass(frozen=True)
class Teacher:
    """A teacher's copy."""

    chapter: str
    """`part/slug`."""
    notebook: dict[str, Any]
    digest: str

    @property
    def slug(self) -> str:
        return self.chapter.rsplit("/", 1)[-1]

    @property
    def names(self) -> set[str]:
        found = exercises.read(self.notebook)
        return {name for e in found for name in (e.check_id, *e.answers)}


@dataclass(frozen=True)
class Submission:
    """A file that somebody handed in."""

    student: str
    file: str
    """Its path in DIR."""
    path: Path


def main(args: argparse.Namespace) -> int:
    folder = args.folder
    if not folder.is_dir():
        raise BookError(f"{folder}: no such folder")
    teachers, failures = copies(args)
    out = args.out or folder.resolve().with_name(folder.resolve().name + "-grades")
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise BookError(f"--out {out} lies in the folder of submissions; name another")
    found = list(submissions(folder))
    if not found:
        raise BookError(f"{folder} holds no submission")
    if (
        args.gradescope
        and len({s.student for s in found}) > 1
        and any("/" in s.file for s in found)
    ):
        raise BookError("--gradescope takes a folder with the submission of one student")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    limits = Limits(args.timeout, args.memory, args.processes, args.files)
    with locked(out), interruptible():
        batch = Batch(args.root, out, teachers, limits, args.fresh, args.jobs)
        try:
            batch.run(found)
        finally:
            # Also after an interruption: what is done is in the table.
            rows = batch.table(found)
    if args.gradescope:
        write(args.gradescope, json.dumps(batch.gradescope(), indent=1) + "\n")
    bad = sum(row["status"] == "not graded" for row in rows)
    students = len({row["student"] for row in rows})
    print(f"{len(rows)} rows for {students} students in {out / 'grades.csv'}; {bad} not graded")
    return 1 if bad or failures else 0


# ------------------------------------------------------------------------------
# The teacher's copies


def copies(args: argparse.Namespace) -> tuple[list[Teacher], list[str]]:
    """From a folder that `assign` made, or from the chapters."""
    folder = args.teacher
    if folder is not None and args.seed:
        raise BookError("--teacher and --class exclude each other: the copies have their class")
    beside = args.folder.resolve().parent / "teacher"
    if folder is None and not args.seed and beside.is_dir():
        folder = beside
    if folder is None:
        source = Source(args.root)
        made, failures = assign.make(source, select(source, []), args.seed or 0)
        found = [(c.chapter.name, c.teacher) for c in made]
    else:
        if not folder.is_dir():
            raise BookError(f"--teacher {folder}: no such folder")
        found, failures = [], []
        for path in sorted(folder.glob("**/*.ipynb")):
            try:
                notebook = json.loads(path.read_text("utf-8"))
                if not exercises.read(notebook):
                    raise SourceError("has no exercises")
                book = notebook["metadata"]["book"]
                found.append((f"{book['part']}/{book['slug']}", notebook))
            except (ValueError, KeyError, TypeError, AttributeError):
                failures.append(f"{path}: not a teacher's copy")
            except SourceError as error:
                failures.append(f"{path}: {error}")
        if not found and not failures:
            raise BookError(f"--teacher {folder} holds no notebook")
    if not found:
        raise BookError(f"no teacher's copy to grade with: {failures[0]}")
    texts = [json.dumps(nb, sort_keys=True).encode() for _, nb in found]
    return [Teacher(c, nb, digest(t)) for (c, nb), t in zip(found, texts)], failures


def digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


# ------------------------------------------------------------------------------
# The submissions


def submissions(folder: Path) -> Iterator[Submission]:
    """Every file that may be a submission, in order; nothing outside of the folder is followed."""
    for top in sorted(os.scandir(folder), key=lambda e: e.name):
        name = shown(top.name)
        if top.name.startswith((".", "__MACOSX")):
            continue
        if top.is_symlink() or not top.is_dir(follow_symlinks=False):
            if top.name.endswith(".ipynb") or top.is_symlink():
                yield Submission(name.removesuffix(".ipynb"), name, Path(top.path))
            continue
        none = True
        for path in sorted(files(Path(top.path))):
            if path.name.endswith(".ipynb") or path.is_symlink():
                none = False
                inner = shown(str(path.relative_to(folder)))
                yield Submission(name, inner, path)
        if none:
            yield Submission(name, name + "/", Path(top.path))


def files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder, followlinks=False):
        links = [f for f in folders if os.path.islink(os.path.join(here, f))]
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")) and f not in links)
        for name in [*names, *links]:
            if not name.startswith("."):
                yield Path(here, name)


def shown(name: str) -> str:
    """A file's name as text; two names stay two, whatever bytes they are made of."""
    text = printable(name)
    return text if text == name else f"{text}~{digest(os.fsencode(name))[:6]}"


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class Unreadable(Exception):
    """Why a file is not a notebook that can be graded."""


def content(path: Path) -> bytes:
    """The bytes of a file that somebody else named: a plain file, of bounded size, no link."""
    if path.is_symlink():
        raise Unreadable("a symbolic link; hand in the file itself")
    if path.is_dir():
        raise Unreadable("no notebook was handed in")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not a plain file")
        if status.st_size > NOTEBOOK_MB * 2**20:
            size = status.st_size / 2**20
            raise Unreadable(f"{size:.0f} MB; more than {NOTEBOOK_MB} MB are not read")
        return file.read(NOTEBOOK_MB * 2**20 + 1)


def notebook(data: bytes) -> dict[str, Any]:
    if not data.strip():
        raise Unreadable("an empty file")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise Unreadable("not a notebook: it is not JSON") from None
    if isinstance(found, dict) and "worksheets" in found:
        raise Unreadable("a notebook of format 3; open it in Jupyter and save it")
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list):
        raise Unreadable("not a notebook: it has no cells")
    return found


def chapter_of(submission: Submission, found: dict[str, Any], teachers: list[Teacher]) -> Teacher:
    """Which chapter a notebook answers: by its exercises, then by its record, then by its name."""
    ids = {
        str(exercises.nbgrader(cell).get("grade_id"))
        for cell in found["cells"]
        if isinstance(cell, dict)
    }
    best = max(teachers, key=lambda t: len(t.names & ids))
    if best.names & ids:
        return best
    metadata = found.get("metadata")
    book = metadata.get("book") if isinstance(metadata, dict) else None
    if isinstance(book, dict):
        for teacher in teachers:
            if teacher.chapter == f"{book.get('part')}/{book.get('slug')}":
                return teacher
    named = [t for t in teachers if t.slug in submission.path.name]
    if named:
        return max(named, key=lambda t: len(t.slug))
    raise Unreadable("no exercise of this assignment is in it")


# ------------------------------------------------------------------------------
# The batch


class Batch:
    """Grades what has no result yet, and makes the table of all results."""

    def __init__(
        self,
        root: Path,
        out: Path,
        teachers: list[Teacher],
        limits: Limits,
        fresh: bool = False,
        jobs: int = 1,
    ):
        self.root, self.out, self.teachers = root, out, teachers
        self.limits, self.fresh, self.jobs = limits, fresh, jobs
        files = assign.lib_files(root)
        self.library = digest(*(p for name in files for p in (name.encode(), files[name])))
        self.results: dict[str, dict[str, Any]] = {}

    def path(self, submission: Submission) -> Path:
        """Where a submission's result is kept: readable, and different for different files."""
        safe = re.sub(r"[^\w.-]+", "_", submission.file).strip("._")[:80] or "submission"
        mark = digest(submission.file.encode("utf-8", "surrogatepass"))[:10]
        return self.out / "results" / f"{safe}-{mark}.json"

    def run(self, found: list[Submission]) -> None:
        todo = []
        for submission in found:
            known, key, ready = self.look(submission)
            if known is not None:
                self.results[submission.file] = known
            elif ready is None:
                self.keep(submission, key, None, [], self.reason)
            else:
                todo.append((submission, key, *ready))
        if not todo:
            return
        if self.results:
            print(f"{len(self.results)} known, {len(todo)} to grade", flush=True)
        with Grader(self.root, self.limits, [t.notebook for t in self.teachers]) as grader:
            print(f"held by: {', '.join(grader.layers)}", flush=True)
            pool = concurrent.futures.ThreadPoolExecutor(self.jobs)
            try:
                tasks = [pool.submit(self.one, grader, *task) for task in todo]
                for number, task in enumerate(concurrent.futures.as_completed(tasks), 1):
                    print(f"[{number}/{len(todo)}] {task.result()}", flush=True)
            finally:
                grader.stopped = True
                pool.shutdown(cancel_futures=True)

    def look(self, submission: Submission) -> tuple[Any, str, Any]:
        """A result that still holds, else what is needed to make one."""
        self.reason = ""
        try:
            data = content(submission.path)
            found = notebook(data)
            teacher = chapter_of(submission, found, self.teachers)
        except Unreadable as error:
            self.reason = str(error)
            return None, "", None
        key = digest(
            str(FORMAT).encode(),
            data,
            teacher.digest.encode(),
            self.library.encode(),
            json.dumps(asdict(self.limits)).encode(),
        )
        if not self.fresh:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads(self.path(submission).read_text("utf-8"))
                if known["key"] == key and known["file"] == submission.file:
                    return known, key, None
        return None, key, (teacher, found)

    def one(
        self,
        grader: Grader,
        submission: Submission,
        key: str,
        teacher: Teacher,
        found: dict[str, Any],
    ) -> str:
        try:
            verdicts = [v.record() for v in grader.grade(teacher.notebook, found)]
            reason = ""
        except Exception as error:  # a fault of ours must not stop the batch
            verdicts, reason = [], f"the grader failed: {type(error).__name__}: {error}"
        if grader.stopped:  # cut short: no verdict is better than a wrong one
            return f"{submission.file}: interrupted"
        # A fault of ours has no key: the next call tries again.
        result = self.keep(submission, "" if reason else key, teacher, verdicts, reason)
        if reason:
            return f"{submission.file}: {reason}"
        return f"{submission.student} {teacher.chapter}: {result['points']:g}/{result['of']:g}"

    def keep(
        self,
        submission: Submission,
        key: str,
        teacher: Teacher | None,
        verdicts: list[dict[str, Any]],
        reason: str,
    ) -> dict[str, Any]:
        """Store a result at once and whole."""
        of = sum(e.points for e in exercises.read(teacher.notebook)) if teacher else 0.0
        result = {
            "key": key,
            "student": submission.student,
            "file": submission.file,
            "chapter": teacher.chapter if teacher else "",
            "points": sum(v["points"] for v in verdicts),
            "of": of,
            "reason": reason,
            "exercises": verdicts,
        }
        write(self.path(submission), json.dumps(result, indent=1) + "\n")
        self.results[submission.file] = result
        return result

    def table(self, found: list[Submission]) -> list[dict[str, Any]]:
        """Write grades.csv: a row for each student and chapter that anybody handed in."""
        done = [self.results[s.file] for s in found if s.file in self.results]
        chapters = {t.chapter: t for t in self.teachers}
        handed = [c for c in chapters if any(r["chapter"] == c for r in done)]
        rows = []
        for student in dict.fromkeys(s.student for s in found):
            mine = [r for r in done if r["student"] == student]
            waiting = sum(s.student == student for s in found) > len(mine)
            for chapter in handed:
                tries = [r for r in mine if r["chapter"] == chapter]
                if tries:
                    best = max(tries, key=lambda r: (r["points"], not r["reason"]))
                    rows.append(row(best, "graded" if not best["reason"] else "not graded", tries))
                elif not waiting and not any(not r["chapter"] for r in mine):
                    of = sum(e.points for e in exercises.read(chapters[chapter].notebook))
                    rows.append(blank(student, chapter, of, "not handed in"))
            rows += [row(r, "not graded", [r]) for r in mine if not r["chapter"]]
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        for line in rows:
            table.writerow({k: harmless(v) for k, v in line.items()})
        write(self.out / "grades.csv", text.getvalue())
        return rows

    def gradescope(self) -> dict[str, Any]:
        """Gradescope's results.json: one test an exercise."""
        tests = []
        for result in self.results.values():
            if not result["exercises"]:
                tests.append(
                    {"name": result["file"], "score": 0, "max_score": 0, "output": result["reason"]}
                )
            for v in result["exercises"]:
                name, said = v["exercise"], v["message"] or "passed"
                test = {"name": name, "score": v["points"], "max_score": v["of"], "output": said}
                tests.append(test | {"visibility": "visible"})
        score = sum(test["score"] for test in tests)
        return {"score": score, "tests": tests, "stdout_visibility": "hidden"}


def row(result: dict[str, Any], status: str, tries: list[dict[str, Any]]) -> dict[str, Any]:
    reason = result["reason"]
    if len(tries) > 1:
        reason = f"the best of {len(tries)} files" + (f"; {reason}" if reason else "")
    said = [
        f"{v['exercise']} {v['points']:g}/{v['of']:g}"
        + (f" ({v['message']})" if v["message"] else "")
        for v in result["exercises"]
    ]
    return {
        "student": result["student"],
        "chapter": result["chapter"],
        "points": f"{result['points']:g}",
        "of": f"{result['of']:g}",
        "status": status,
        "reason": reason,
        "file": result["file"],
        "exercises": "; ".join(said),
    }


def blank(student: str, chapter: str, of: float, status: str) -> dict[str, Any]:
    record = dict.fromkeys(COLUMNS, "")
    return record | {
        "student": student,
        "chapter": chapter,
        "points": "0",
        "of": f"{of:g}",
        "status": status,
    }


def harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    text = printable(text)
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """One grader at a time in a folder of results."""
    import fcntl

    try:
        (out / "results").mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "w")
    except OSError as error:
        raise BookError(f"cannot write in {out}: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BookError(f"another grade is writing in {out}; wait for it to end") from None
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A polite end (SIGTERM) is an interruption, too."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
