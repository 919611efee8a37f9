"""The process that runs a check cell. No line of a student's code ever runs in it."""

from __future__ import annotations

import ast
import json
import linecache
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

from book.classroom import jail
from book.classroom.wire import CHECK, Gone, Peer

MEMORY = 4096  # MB for one check
LEARNED = ("torch", "numpy", "scipy", "sklearn", "pandas", "lib")


def serve(line: socket.socket, report: socket.socket, order: dict[str, Any]) -> int:
    """Let the student's cells run, then check what they define, and report.

    The job comes over the report's line: `cells` ([index, source] each, in order), `given` (the
    stubs of the answer cells, which hold what the check may use), `wants` (names the student
    supplies), `check` (source) and `own` (index of the cell that answers).
    """
    jail.die_with_parent()
    jail.unreadable()
    jail.limit(MEMORY, order["seconds"], 1, None)
    os.chdir(Path(order["scratch"]))
    job = json.loads(_all(report))
    known = set(sys.modules)
    try:
        verdict = examine(Peer(line, trusts=False), job, report)
    except Gone:
        verdict = {"passed": False, "gone": True, "message": "the answer's process ended"}
    except BaseException as error:
        verdict = {"passed": False, "message": f"{type(error).__name__}: {error}"[:2000]}
    # What this check had to import, the next ones find imported: only trusted code ran here.
    new = [m for m in sys.modules if m not in known and m.split(".")[0] in LEARNED]
    tell(report, {**verdict, "imported": new})
    return 0


def _all(report: socket.socket) -> bytes:
    parts = []
    while part := report.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def tell(report: socket.socket, event: dict[str, Any]) -> None:
    report.sendall(json.dumps(event).encode() + b"\n")


def examine(peer: Peer, job: dict[str, Any], report: socket.socket) -> dict[str, Any]:
    """The verdict on one exercise."""
    broken = []
    for index, source in job["cells"]:
        tell(report, {"cell": index})
        try:
            peer.ask("cell", cell=index, source=source)
        except Exception as error:
            broken.append(said(error))
    tell(report, {"cell": None})
    module = types.ModuleType(CHECK)
    sys.modules[CHECK] = module
    namespace = module.__dict__
    for source in job["given"]:
        exec(compile(source, "<given>", "exec", dont_inherit=True), namespace)
    given = {n: v for n, v in namespace.items() if not n.startswith("__")}

    def renew() -> None:
        for name in given:
            if namespace.get(name) is not given[name]:
                given[name] = namespace.get(name)
                peer.ask("set", name=name, value=given[name])

    read = loaded(job["check"])
    for name in job["wants"]:
        namespace.pop(name, None)
        given.pop(name, None)
        if name in read and peer.ask("has", name=name):
            namespace[name] = peer.ask("name", name=name)
    peer.before = renew
    linecache.cache["<check>"] = (0, None, job["check"].splitlines(True), "<check>")
    try:
        exec(compile(job["check"], "<check>", "exec", dont_inherit=True), namespace)
    except Exception as error:
        message = said(error)
        return {"passed": False, "message": "; ".join([message, *broken])}
    return {"passed": True, "message": ""}


def loaded(code: str) -> set[str]:
    return {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)}


def said(error: Exception) -> str:
    """An exception in a line, with the student's cell if it happened there."""
    where = getattr(error, "where", "")
    name = type(error).__name__
    text = " ".join(str(error).split())[:1000]
    if name == "AssertionError" and not where:
        return text or "the check failed"
    if name == "AnswerError":
        return f"{where}: {text}" if where else text
    return f"{where}: {name}: {text}" if where else f"{name}: {text}"
