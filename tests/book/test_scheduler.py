"""The same run on a Dask cluster of other processes, which know nothing of this checkout."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.book.fixtures.tree import LOG, Tree


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, each a process group of its own, in an empty folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = {**os.environ, LOG: str(tmp_path / "tree" / "log")}
    environment.pop("PYTHONPATH", None)
    started = []

    def start(*arguments):
        log = open(folder / f"{len(started)}.log", "w+")
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stderr=log, stdout=log, start_new_session=True
        )
        started.append((process, log))
        return process, log

    _, log = start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    deadline = time.monotonic() + 30
    while not (match := re.search(r"Scheduler at:\s+(tcp://\S+)", read(log))):
        assert time.monotonic() < deadline, read(log)
        time.sleep(0.1)
    address = match.group(1)
    options = ["--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
    workers = [start("worker", address, *options)[0] for _ in range(2)]
    yield address, workers
    for process, log in started:
        stop(process)
        log.close()


def read(log):
    log.seek(0)
    return log.read()


def stop(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass
    process.wait()


def test_chapters_finish_although_workers_die(tmp_path, cluster):
    address, workers = cluster
    tree = Tree(tmp_path / "tree")
    tree.write("lib/width/__init__.py", "")
    tree.write("lib/width/idea.py", "from pathlib import Path\nHERE = Path(__file__)\nX = 41\n")
    tree.write("lib/width/data.txt", "1")
    names = [f"width/c{i}" for i in range(4)]
    for name in names:
        tree.chapter(
            name,
            "from lib.width import idea\nimport time; time.sleep(2)",
            "print(idea.X + int((idea.HERE.parent / 'data.txt').read_text()), idea.HERE)",
        )
    run = tree.start("run", "--scheduler", address)
    deadline = time.monotonic() + 40
    while not tree.log.exists() or len(tree.log.read_text().split()) < 2:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    stop(workers[0])
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0, out
    assert {row["status"] for row in tree.report().values()} == {"ok"}
    ran = tree.ran()
    assert set(ran) == set(names) and len(ran) == 5, "one of them started a second time"
    text = tree.executed("width/c3")["cells"][-1]["outputs"][0]["text"]
    assert "".join(text) == "42 lib/width/idea.py\n", "the modules travelled, their paths did not"

    # A chapter that kills every worker it gets is found out; what waited beside it finishes.
    tree.chapter(
        "width/assassin",
        "import os, psutil, signal\n"
        "executor = psutil.Process(os.getppid())\n"
        "os.kill(executor.ppid(), signal.SIGKILL)\n"
        "import time; time.sleep(60)",
    )
    tree.chapter("width/new", "print(1)")
    done = tree.press("run", "--scheduler", address)
    report = tree.report()
    assert done.returncode == 1, done.stdout + done.stderr
    assert report["assassin"]["error"]["name"] == "KilledWorker"
    assert report["new"]["status"] == "ok" and report["c0"]["status"] == "cached"
