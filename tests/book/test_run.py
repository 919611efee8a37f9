"""Chapters that end well and badly, and what is written about them."""

import io
import json
import os
import re
import signal
import sys
import time

import psutil
import pytest

from book import run as run_module
from tests.book.fixtures.tree import Tree

CLAIMS = """
class Table:
    def _repr_mimebundle_(self, include=None, exclude=None):
        row = {"text": "t", "paper": "1", "measured": "1.0", "holds": True, "exact": True}
        return {"text/plain": "claims"}, {"claims": [row, row | {"holds": False}]}
Table()
"""


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """One run over chapters of every kind; the tests look at what it left."""
    root = tmp_path_factory.mktemp("book")
    tree = Tree(root)
    tree.write("lib/part/__init__.py", "")
    tree.write("lib/part/idea.py", "def f():\n    return 1 / 0\n")
    # A kernel specification that does not work: the press must not look at it.
    spec = {"argv": ["/bin/false"], "display_name": "broken", "language": "python"}
    tree.write("jupyter/kernels/python3/kernel.json", json.dumps(spec))
    chapters = {
        "good": [
            "import os, sys, warnings\n"
            "print(seed, extra, os.listdir('.'), os.environ['OMP_NUM_THREADS'])\n"
            "print(os.getcwd(), sys.executable, lib.__file__ if 'lib' in globals() else '')\n"
            "warnings.warn('careful')",
            "import lib.part.idea; lib.part.idea",
            "memory = bytearray(150 * 2**20); memory[::4096] = b'x' * len(memory[::4096])",
            CLAIMS,
        ],
        "raises": ["from lib.part.idea import f", "f()", "print('not reached')"],
        "dies": ["import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
        "prints": ["for i in range(10**6):\n    print('x' * 1000)"],
        "shows": [
            "from IPython.display import HTML, display\n"
            "for i in range(1000):\n    display(HTML('x' * 10**6))"
        ],
        "eats": ["x = bytearray(10**10)"],
        "breeds": [
            "import os, time\nfor i in range(4):\n    if os.fork() == 0:\n"
            "        x = bytearray(2 * 10**8)\n        time.sleep(60)\ntime.sleep(60)"
        ],
        "hangs": [
            "import subprocess, time\n"
            "subprocess.Popen(['setsid', sys.executable, '-c', 'import time; time.sleep(4321)'])\n"
            "time.sleep(4321)"
        ],
        "stops": ["import sys; sys.exit(0)", "print('not reached')"],
        "expected": ["1 / 0"],
    }
    for name, codes in chapters.items():
        tree.chapter(f"width/{name}", "import sys", *codes)
    path = root / "chapters/width/expected.ipynb"
    path.write_text(path.read_text().replace('"id": "c3", "metadata": {}', RAISES))
    done = tree.press(
        *["run", "--timeout", "8", "--memory", "600", "--seed", "3", "-p", "extra", "[1, 2]"],
        JUPYTER_PATH=str(root / "jupyter"),
    )
    tree.done = done
    return tree


RAISES = '"id": "c3", "metadata": {"tags": ["raises-exception"]}'


def test_one_report_says_how_each_chapter_went(book):
    report = book.report()
    assert {slug: row["status"] for slug, row in report.items()} == {
        "good": "ok",
        "expected": "ok",
        "hangs": "timeout",
        **dict.fromkeys(["raises", "dies", "prints", "shows", "eats", "breeds", "stops"], "failed"),
    }
    assert book.done.returncode == 1
    errors = {slug: row["error"]["name"] for slug, row in report.items() if row["error"]}
    assert errors == {
        "raises": "ZeroDivisionError",
        "dies": "KernelDied",
        "prints": "OutputLimit",
        "shows": "OutputLimit",
        "eats": "MemoryError",
        "breeds": "MemoryLimit",
        "hangs": "Timeout",
        "stops": "SystemExit",
    }
    for slug in errors:
        assert report[slug]["error"]["cell"] == (5 if slug == "raises" else 4), slug
        assert report[slug]["claims"] == []
    assert "SIGKILL" in report["dies"]["error"]["message"]
    assert "lib/part/idea.py" in report["raises"]["error"]["traceback"]


def test_row_of_a_good_chapter(book):
    row = book.report()["good"]
    assert (row["part"], row["scale"], row["seed"], row["device"]) == ("width", "small", 3, "auto")
    assert row["parameters"]["extra"] == [1, 2]
    assert [c["holds"] for c in row["claims"]] == [True, False]
    assert 150 < row["peak_mb"] < 400
    assert 0.2 < row["seconds"] < 60 and 0 < row["cpu_seconds"] < 30
    assert row["versions"]["python"] == sys.version.split()[0]
    assert {"papermill", "ipykernel", "lib"} <= set(row["versions"])
    assert row["error"] is None and row["key"] and row["hardware"]


def test_executed_notebook_is_whole_and_clean(book):
    notebook = book.executed("width/good")
    text = json.dumps(notebook)
    assert "papermill" not in text and '"execution"' not in text
    assert not re.search(r"20\d\d-\d\d-\d\dT", text), "no time stamps"
    injected = [c for c in notebook["cells"] if c["id"] == "injected-parameters"]
    assert len(injected) == 1
    assert injected[0]["metadata"]["tags"] == ["injected-parameters", "remove-cell"]
    assert "".join(injected[0]["source"]).splitlines()[-1] == "extra = [1, 2]"
    printed = "".join(notebook["cells"][5]["outputs"][0]["text"])
    assert printed.startswith("3 [1, 2] [] 1\n. "), "own empty folder, one thread"
    warned = "".join(notebook["cells"][5]["outputs"][1]["text"])
    assert warned.startswith("cell:4: UserWarning: careful")
    assert "lib/part/idea.py" in "".join(notebook["cells"][6]["outputs"][0]["data"]["text/plain"])


def test_nothing_names_this_machine(book):
    for path in (book.root / "_build").rglob("*"):
        if path.is_file():
            text = path.read_text()
            for folder in (str(book.root), sys.prefix, os.path.expanduser("~") + "/", "/tmp/"):
                assert folder not in text, f"{folder} in {path}"


def test_failed_chapters_leave_their_notebook_apart(book):
    executed = {p.stem for p in (book.root / "_build/executed/width").iterdir()}
    failed = {p.stem for p in (book.root / "_build/failed/width").iterdir()}
    assert executed == {"good", "expected"}
    assert {"raises", "dies", "prints"} <= failed
    assert (book.root / "_build/failed/width/prints.ipynb").stat().st_size < 50e6


def test_table_at_the_end(book):
    out = book.done.stdout
    assert "10 to run" in out
    assert re.search(r"width/good +ok +[\d.]+ +\d+ +1/2", out)
    assert "width/raises, cell 5: ZeroDivisionError: division by zero" in out
    assert "return 1 / 0" in out
    assert "width/hangs, cell 4: Timeout: still running after 8 s" in out
    assert not book.done.stderr


def test_display_says_what_runs_and_how_long_is_left(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    display = run_module.Display({"width/a": 60.0, "width/b": 300.0}, 2, stream)
    assert stream.getvalue() == "2 to run, 2 at a time; about 5 min left\n"
    for name in ("width/a", "width/b"):
        display.heard({"name": name, "event": "start"})
    display.heard({"name": "width/b", "event": "cell", "cell": 4, "of": 20})
    clock[0] += 62
    row = {"part": "width", "slug": "a", "status": "ok", "seconds": 61.5, "peak_mb": 812.4}
    display.finished(row | {"error": None})
    last = "[1/2] ok      width/a  61.5 s, 812 MB; running width/b 5/20; about 4 min left"
    assert stream.getvalue().splitlines()[-1] == last
    clock[0] += 31
    display.tick()
    assert stream.getvalue().splitlines()[-1].startswith("[1/2] ...; running width/b")


def test_no_process_and_no_folder_is_left(book):
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert not [c for c in commands if "time.sleep(4321)" in c]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def kernels(tree):
    """Processes that run chapters of this tree: they carry its log in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(tree.log) in process.environ().values() and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def slow(tmp_path):
    tree = Tree(tmp_path)
    tree.chapter("width/quick", "print(1)")
    tree.chapter("width/slow", "import time; time.sleep(float(wait))")
    return tree


def test_killed_run_goes_on_where_it_was(slow):
    run = slow.start("run", "--jobs", "2", "-p", "wait", "3")
    report = slow.root / "_build/report.json"
    wait_for(lambda: report.exists() and "quick" in slow.report() and kernels(slow))
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    wait_for(lambda: not kernels(slow), 10)
    assert sorted(slow.ran()) == ["width/quick", "width/slow"]
    assert list(slow.report()) == ["quick"]

    again = slow.press("run", "-p", "wait", "3")
    assert again.returncode == 0, again.stderr
    assert slow.ran() == ["width/slow"]
    assert {s: r["status"] for s, r in slow.report().items()} == {"quick": "cached", "slow": "ok"}


def test_interrupt_says_what_finished(slow):
    run = slow.start("run", "--jobs", "2", "-p", "wait", "60")
    report = slow.root / "_build/report.json"
    wait_for(lambda: report.exists() and "quick" in slow.report())
    os.kill(run.pid, signal.SIGINT)
    out, _ = run.communicate(timeout=20)
    assert run.returncode == 130
    assert re.search(r"width/quick +ok", out)
    assert "Interrupted; 1 not finished" in out and "Traceback" not in out
    wait_for(lambda: not kernels(slow), 10)


def test_gpu_chapter_without_a_gpu(tmp_path):
    from book import worker

    if worker.gpus():
        pytest.skip("this machine has a GPU")
    tree = Tree(tmp_path)
    tree.chapter("width/heavy", "1", gpu=True)
    done = tree.press("run", "--scale", "full")
    assert done.returncode == 1 and tree.ran() == []
    assert tree.report()["heavy"]["error"]["name"] == "NoGPU"
    assert tree.press("run").returncode == 0, "at small scale it needs none"
