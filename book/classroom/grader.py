"""Grades notebooks: starts the processes that do it, measures them, ends them.

    with Grader(root, Limits(), teacher_notebooks) as grader:
        verdicts = grader.grade(teacher, submission)

A verdict is reached for every exercise, whatever a submission does; nothing of it is raised.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from book.classroom import exercises, jail
from book.classroom.exercises import Exercise
from book.errors import BookError
from book.source import ROOT, text_of
from book.worker import THREADS, kill_tree

TICK = 0.1  # seconds between two looks at an answer
RETRIES = 3  # times that a submission is started again without a cell that ended it
CELLS, TEXT = 500, 2**22  # cells and characters of a submission
PASSED_ON = ("PATH", "LANG", "LC_ALL", "BOOK_DATA", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Limits:
    """What one exercise of one submission may use."""

    seconds: float = 60.0
    memory_mb: float = 2048.0
    processes: int = 32
    file_mb: float = 16.0
    """The largest file; all of them together may take four times as much."""


@dataclass
class Verdict:
    """What came of one exercise."""

    exercise: str
    points: float
    of: float
    message: str = ""
    cell: int | None = None
    """Index of the answer cell in the submission."""
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Grader:
    """Holds the nursery, out of which the grading processes are forked."""

    def __init__(self, root: Path, limits: Limits, teachers: Iterable[dict[str, Any]]):
        if not hasattr(os, "fork"):
            raise BookError("grading needs Linux or macOS; on Windows use WSL, nbgrader or Otter")
        self.root, self.limits = root, limits
        cells = [c for nb in teachers for c in nb["cells"] if c["cell_type"] == "code"]
        checks = [text_of(c) for c in cells if exercises.is_check(c) or exercises.is_answer(c)]
        self.modules = exercises.imports(checks)
        self.lock = threading.Lock()
        self.nursery: subprocess.Popen | None = None
        self.users = iter(jail.USERS)
        self.change_user = jail.changes_user(root)
        self.layers = jail.layers(root)
        self.learned: set[str] = set()
        self.stopped = False

    def __enter__(self) -> Grader:
        kind = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= dict.fromkeys(THREADS, "1")
        environment.update(
            PYTHONPATH=os.pathsep.join(dict.fromkeys([str(self.root), str(ROOT)])),
            PYTHONHASHSEED="0",
            PYTHONDONTWRITEBYTECODE="1",
            HOME=tempfile.gettempdir(),
            CUDA_VISIBLE_DEVICES="",
            BOOK_PRESS="1",
            MPLBACKEND="Agg",
            OBJC_DISABLE_INITIALIZE_FORK_SAFETY="YES",
        )
        self.nursery = subprocess.Popen(
            [sys.executable, "-P", "-m", "book.classroom.nursery", *self.modules],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self.orders = ours
        if ours.recv(16) != b"ready":
            error = self.nursery.stderr.read().decode(errors="replace").strip().splitlines()
            self.__exit__()
            raise BookError(f"cannot start: {error[-1] if error else 'the nursery died'}")
        threading.Thread(target=self.nursery.stderr.read, daemon=True).start()
        self.base_mb = _resident_mb(self.nursery.pid)
        return self

    def __exit__(self, *reason: Any) -> None:
        self.stopped = True
        kill_tree(self.nursery.pid)
        self.nursery.wait()
        self.orders.close()

    def order(self, message: dict[str, Any], lines: Iterable[socket.socket] = ()) -> Any:
        with self.lock:
            data = json.dumps(message).encode()
            socket.send_fds(self.orders, [data], [line.fileno() for line in lines])
            reply = self.orders.recv(2**16)
            if not reply:
                raise RuntimeError("the nursery has ended; call grade again")
            return json.loads(reply)

    def learn(self, modules: list[str]) -> None:
        """Have the nursery import what a check imported late."""
        new = [m for m in modules if m not in self.learned]
        self.learned.update(new)
        for i in range(0, len(new), 500):
            self.order({"do": "import", "modules": new[i : i + 500]})
        if new:
            self.base_mb = _resident_mb(self.nursery.pid)

    # ---- a submission

    def grade(self, teacher: dict[str, Any], submission: dict[str, Any]) -> list[Verdict]:
        """The verdict on every exercise of the teacher's copy."""
        cells, where = read_cells(submission)
        skipped: set[int] = set()
        verdicts = []
        for exercise in exercises.read(teacher):
            verdicts.append(self._exercise(teacher, exercise, cells, where, skipped))
        return verdicts

    def _exercise(
        self,
        teacher: dict[str, Any],
        exercise: Exercise,
        cells: list[tuple[int, str]],
        where: dict[str, int],
        skipped: set[int],
    ) -> Verdict:
        own = [where[name] for name in exercise.answers if name in where]
        last = max(own) if own else None
        verdict = Verdict(exercise.name, 0.0, exercise.points, cell=last)
        started = time.monotonic()
        while not self.stopped:
            todo = [[i, s] for i, s in cells if i not in skipped and (last is None or i <= last)]
            result = self._attempt(teacher, exercise, todo)
            if result["passed"]:
                verdict.points = exercise.points
                break
            verdict.message = result["message"]
            fatal = result.get("cell")
            if fatal is None or fatal in skipped:
                break
            # A cell that ends the process, or never ends, is left out from now on.
            skipped.add(fatal)
            if fatal in own or len(skipped) > RETRIES:
                break
        if not own and not verdict.points:
            verdict.message = f"no answer cell {exercise.name}; {verdict.message}"
        verdict.seconds = round(time.monotonic() - started, 2)
        return verdict

    def _attempt(self, teacher: dict, exercise: Exercise, cells: list) -> dict[str, Any]:
        scratch = Path(tempfile.mkdtemp(prefix="book-")).resolve()
        try:
            return Attempt(self, scratch).run(job_of(teacher, exercise, cells))
        finally:
            remove(scratch)

    def user(self) -> int | None:
        """A user that nothing else runs as."""
        if not self.change_user:
            return None
        with self.lock:
            user = next(self.users, None)
            if user is None:
                self.users = iter(jail.USERS)
                user = next(self.users)
        return user


def job_of(teacher: dict, exercise: Exercise, cells: list) -> dict[str, Any]:
    given = [text_of(teacher["cells"][i]) for i in exercise.answers.values()]
    return {
        "cells": cells,
        "given": [exercises.stub(source) for source in given],
        "wants": sorted(exercise.wants),
        "check": text_of(teacher["cells"][exercise.check]),
    }


def read_cells(submission: dict[str, Any]) -> tuple[list[tuple[int, str]], dict[str, int]]:
    """A submission's code cells but for its checks, and where each answer stands (the last)."""
    cells, where, size = [], {}, 0
    for index, cell in enumerate(submission["cells"][: 4 * CELLS]):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        record = exercises.nbgrader(cell)
        if record.get("grade") and not record.get("solution"):
            continue
        source = cell.get("source", "")
        if isinstance(source, list):
            source = "".join(part for part in source if isinstance(part, str))
        if not isinstance(source, str) or not source.strip():
            continue
        size += len(source)
        if len(cells) >= CELLS or size > TEXT:
            break
        if record.get("solution"):
            where[str(record.get("grade_id"))] = index
        cells.append((index, source))
    return cells, where


class Attempt:
    """One run of one exercise: an answer and a checker, watched from here."""

    def __init__(self, grader: Grader, scratch: Path):
        self.grader, self.limits, self.scratch = grader, grader.limits, scratch
        self.answer = self.checker = None
        self.ended: str | None = None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        limits, grader = self.limits, self.grader
        user = grader.user()
        room, desk = self.scratch / "answer", self.scratch / "check"
        self.scratch.chmod(0o711)
        room.mkdir(mode=0o700)
        desk.mkdir(mode=0o700)
        if user is not None:
            os.chown(room, user, user)
        order = {
            "root": str(grader.root),
            "user": user,
            "memory_mb": limits.memory_mb,
            "seconds": limits.seconds + 1,
            "file_mb": limits.file_mb,
            "processes": limits.processes,
        }
        line, other = socket.socketpair()
        report, theirs = socket.socketpair()
        with line, other, report, theirs:
            try:
                answer = {**order, "do": "answer", "scratch": str(room)}
                self.answer = grader.order(answer, [line])
                checker = {**order, "do": "check", "scratch": str(desk)}
                self.checker = grader.order(checker, [other, theirs])
                for end in (line, other, theirs):
                    end.close()
                with contextlib.suppress(OSError):
                    report.sendall(json.dumps(job).encode())
                    report.shutdown(socket.SHUT_WR)
                return self.watch(report, room)
            finally:
                self.stop()

    def watch(self, report: socket.socket, room: Path) -> dict[str, Any]:
        """Wait for the verdict, or for a limit."""
        deadline = time.monotonic() + self.limits.seconds
        text, cell, reason, patience = b"", None, None, None
        while True:
            ready, _, _ = select.select([report], [], [], TICK)
            if ready:
                data = report.recv(2**16)
                text += data
                *lines, text = text.split(b"\n")
                for event in map(json.loads, lines):
                    if "passed" in event:
                        self.grader.learn(event.get("imported", []))
                        return self.final(event, reason, cell)
                    cell = event["cell"]
                if not data:
                    return self.final({"passed": False, "message": "the check ended"}, reason, cell)
                continue
            if self.grader.stopped:
                return {"passed": False, "message": "interrupted"}
            if patience is not None:
                if time.monotonic() > patience:
                    kill(self.checker)
                continue
            reason = self.exceeded(room) or (
                f"ran longer than {self.limits.seconds:g} s"
                if time.monotonic() > deadline
                else None
            )
            if reason or self.over():
                # The checker hears that the line is dead and says so; if not, it goes, too.
                kill_tree(self.answer)
                kill(self.answer)
                patience = time.monotonic() + (0.2 if reason else 2.0)

    def final(self, event: dict, reason: str | None, cell: int | None) -> dict[str, Any]:
        if event["passed"] and reason is None:
            return {"passed": True}
        if reason is None and not event.get("gone"):
            return {"passed": False, "message": event["message"]}
        where = "the check" if cell is None else f"cell {cell}"
        if reason is None:
            kill_tree(self.answer)
            kill(self.answer)
            status = self.grader.order({"do": "end", "pid": self.answer})
            self.answer = None
            reason = f"ended its process{_meaning(status)}"
        return {"passed": False, "message": f"{where}: {reason}", "cell": cell}

    def exceeded(self, room: Path) -> str | None:
        """Which ceiling the answer is above, if any."""
        import psutil

        try:
            keeper = psutil.Process(self.answer)
            below = keeper.children(recursive=True)
        except psutil.Error:
            return None
        if len(below) > self.limits.processes + 1:
            return f"has more than {self.limits.processes} processes"
        used = 0.0
        for process in below:
            with contextlib.suppress(psutil.Error):
                used += max(0.0, process.memory_info().rss / 2**20 - self.grader.base_mb)
        if used > self.limits.memory_mb:
            return f"uses more than {self.limits.memory_mb:g} MB of memory"
        if _size_mb(room) > 4 * self.limits.file_mb:
            return f"writes more than {4 * self.limits.file_mb:g} MB"
        return None

    def over(self) -> bool:
        """Whether the answer's process has ended."""
        import psutil

        try:
            return psutil.Process(self.answer).status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True

    def stop(self) -> None:
        for pid in (self.answer, self.checker):
            if pid:
                if pid == self.answer:
                    kill_tree(pid)
                kill(pid)
                with contextlib.suppress(OSError, RuntimeError):
                    self.grader.order({"do": "end", "pid": pid})


def kill(pid: int | None) -> None:
    if pid:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _meaning(status: int | None) -> str:
    if status is None:
        return ""
    if status in (-signal.SIGXCPU & 255, -signal.SIGKILL & 255, -signal.SIGXCPU, -signal.SIGKILL):
        return " (a limit on time or memory)"
    return f" (exit status {status})"


def _resident_mb(pid: int) -> float:
    import psutil

    return psutil.Process(pid).memory_info().rss / 2**20


def _size_mb(folder: Path) -> float:
    """What a folder holds; counts no more than ten thousand entries."""
    total, todo, seen = 0, [folder], 0
    while todo:
        try:
            for entry in os.scandir(todo.pop()):
                seen += 1
                if seen > 10_000:
                    return float("inf")
                if entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return total / 2**20


def remove(folder: Path) -> None:
    """Remove a folder, also one whose owner took away its rights."""

    def insist(function: Any, path: str, error: Any) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            os.chmod(path, 0o700, follow_symlinks=False) if not os.path.islink(path) else None
            function(path)

    shutil.rmtree(folder, onerror=insist)
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
