"""Forks the processes that grade, out of one that has imported torch and the library.

`python -m book.classroom.nursery MODULE...` reads orders from its standard input, a Unix socket:
one JSON message an order, with the lines of the new process as file descriptors. It knows nothing
that a student may not know, since what it knows its children know.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import warnings
from typing import Any

from book.classroom import answer, checker, jail


def main(modules: list[str]) -> None:
    import torch

    orders = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    jail.die_with_parent()
    jail.unreadable()
    jail.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the press decides
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    learn(["IPython.core.inputtransformer2", "cloudpickle", *modules])
    orders.sendall(b"ready")
    while True:
        try:
            message, lines, _, _ = socket.recv_fds(orders, 2**16, 2)
        except OSError:
            break
        if not message:
            break
        order = json.loads(message)
        if order["do"] == "end":
            reply = reap(order["pid"])
        elif order["do"] == "import":
            reply = learn(order["modules"])
        else:
            reply = fork(order, [socket.socket(fileno=fd) for fd in lines], orders, null)
        orders.sendall(json.dumps(reply).encode())


def learn(modules: list[str]) -> None:
    """Import what the next processes will want."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def fork(order: dict[str, Any], lines: list[socket.socket], orders: Any, null: int) -> int:
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            orders.close()
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.close(null)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            serve = answer.serve if order["do"] == "answer" else checker.serve
            status = serve(*lines, order)
        finally:
            os._exit(status & 255)
    for line in lines:
        line.close()
    return pid


def reap(pid: int) -> int | None:
    """The exit status of a process that was ended; None if it was not ours."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except OSError:
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
