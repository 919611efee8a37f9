"""The process that runs a student's cells and, when asked, the functions they define."""

from __future__ import annotations

import ast
import builtins
import contextlib
import linecache
import os
import random
import socket
import sys
import types
from pathlib import Path
from typing import Any

from book.classroom import jail
from book.classroom.wire import Gone, Peer


def serve(line: socket.socket, order: dict[str, Any]) -> int:
    """Lock this process in, then answer until the line closes. Returns an exit status."""
    scratch = Path(order["scratch"])
    os.setsid()
    jail.die_with_parent()
    jail.adopt_orphans()
    user = order["user"]
    jail.unreadable(False)  # or it could not say who it is in a namespace of its own
    alone = jail.separate(user is not None)
    pid = os.fork()
    if pid:  # stays behind to hold together what the answer starts
        line.close()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    jail.die_with_parent()
    os.chdir(scratch)
    os.environ.update(HOME=str(scratch), TMPDIR=str(scratch), USER="student", LOGNAME="student")
    jail.become(user)
    jail.die_with_parent()  # a change of user had undone it
    counted = order["processes"] if alone or user is not None else None
    jail.limit(order["memory_mb"], order["seconds"], order["file_mb"], counted)
    jail.wall(jail.needed(Path(order["root"])), [scratch, "/dev/null"])
    with contextlib.suppress(Gone, KeyboardInterrupt):
        Student(line).run()
    os._exit(0)


class Student(Peer):
    """Runs cells and lends what they define to the checker, which it trusts."""

    def __init__(self, line: socket.socket):
        super().__init__(line, trusts=True)
        module = types.ModuleType("__main__")
        module.__dict__.update(display=_nothing, get_ipython=_Shell)  # what a kernel offers
        sys.modules["__main__"] = module
        self.names = module.__dict__
        builtins.input = _nothing
        random.seed(0)

    def run(self) -> None:
        while True:
            got, data = self.receive()
            self.serve(got, data)

    def more(self, do: str, got: dict[str, Any]) -> Any:
        if do == "cell":
            return self.cell(got["source"], got["cell"])
        if do == "name":
            return self.names[got["name"]]
        if do == "has":
            return got["name"] in self.names
        return super().more(do, got)

    def cell(self, source: str, index: int) -> None:
        """Run one cell as a notebook would."""
        name = f"<cell {index}>"
        code = plain(source)
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        exec(compile(code, name, "exec", dont_inherit=True), self.names)


def plain(source: str) -> str:
    """A notebook cell as Python: magics and shell lines become calls that do nothing."""
    try:
        ast.parse(source)
        return source
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        lines = source.splitlines()
        if lines and lines[0].startswith("%%"):
            timing = lines[0].split()[0] in ("%%time", "%%timeit", "%%capture")
            lines = lines[1:] if timing else []
        return TransformerManager().transform_cell("\n".join(lines))


class _Shell:
    """Stands where IPython would."""

    def __getattr__(self, name: str) -> Any:
        return _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
