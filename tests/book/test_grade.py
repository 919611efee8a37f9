"""Grading: fair to honest submissions, unmoved by hostile ones, whole after an interruption."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from book import assign, grade
from book.__main__ import main
from book.classroom import jail
from book.classroom.grader import Grader, Limits
from book.source import Source
from tests.book.fixtures import homework

RIGHT = homework.DOUBLE.replace("# BEGIN SOLUTION", "").replace("# END SOLUTION", "")
WRONG = "def double(x):\n    return 0.0\n"
QUICK = Limits(seconds=2.5, memory_mb=400, processes=8, file_mb=1)

# What a class can find out about a machine, tried from inside an answer. `teacher` is put in.
OUTSIDE = """
import os


def double(x):
    try:
        text = open({path!r}).read()
    except OSError:
        return 0.0
    return 2 * x + 2 if "2 * x + step" in text else 0.0
"""

HOSTILE = {
    "loop": "while True:\n    pass",
    "loop_in_function": "def double(x):\n    while True:\n        pass",
    "memory": "x = []\nwhile True:\n    x.append(bytearray(10**8))",
    "memory_at_once": "import torch\nx = torch.ones(10**11)",
    "memory_returned": "def double(x):\n    return 'x' * (2 * 10**9)",
    "sys_exit": "import sys\nsys.exit(0)",
    "os_exit": "import os\nos._exit(0)",
    "os_exit_in_function": "import os\ndef double(x):\n    os._exit(0)",
    "kill_all": "import os\nfor n in range(1, 32):\n"
    "    for who in (-1, os.getppid(), 1):\n"
    "        try:\n            os.kill(who, n)\n        except OSError:\n            pass",
    "flood": "while True:\n    print('x' * 10**6)",
    "fork_bomb": "import os\nwhile True:\n    try:\n        os.fork()\n"
    "    except OSError:\n        pass",
    "fork_and_stay": "import os, time\nif not os.fork():\n    os.setsid()\n"
    "    if not os.fork():\n        time.sleep(600)\n" + WRONG,
    "disk": "for i in range(10**6):\n    open(f'f{i}', 'w').write('x' * 10**5)",
    "big_file": "with open('f', 'wb') as f:\n    while True:\n        f.write(b'x' * 10**7)",
    "no_rights": "import os\nos.chmod('.', 0)\n" + WRONG,
    "builtins": "import builtins\nbuiltins.abs = lambda x: 0\n"
    "builtins.isinstance = lambda *a: True\n"
    "builtins.AssertionError = Exception\n"
    "builtins.compile = builtins.exec = lambda *a, **k: None\n" + WRONG,
    "library": "import sys, torch, lib.small\nlib.small.close = lambda *a: True\n"
    "torch.equal = torch.allclose = lambda *a: True\n"
    "torch.Tensor.__eq__ = torch.Tensor.__sub__ = lambda *a: True\n" + WRONG,
    "modules": "import sys\nsys.modules['check'] = sys.modules['__main__']\nsys.modules.clear()\n"
    + WRONG,
    "no_asserts": "import ast\nast.Assert = ast.Pass\nast.parse = lambda *a: ast.Module([], [])\n"
    + WRONG,
    "always_equal": "class Yes:\n"
    "    def _yes(self, *a):\n        return True\n"
    "    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _yes\n"
    "    def _self(self, *a):\n        return self\n"
    "    __sub__ = __rsub__ = __abs__ = __add__ = __getitem__ = _self\n"
    "    __class__ = float\n"
    "def double(x):\n    return Yes()",
    "always_equal_float": "class Yes(float):\n"
    "    def _yes(self, *a):\n        return True\n    __lt__ = __eq__ = _yes\n"
    "    __sub__ = __abs__ = __rsub__ = lambda self, *a: self\n"
    "def double(x):\n    return Yes('nan')",
    "not_a_number": "def double(x):\n    return float('nan')",
    "frames": "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        frame.f_globals.update(abs=lambda x: 0, told=lambda e: None)\n"
    "        frame = frame.f_back\n    return 0.0",
    "verdict_on_every_line": "import os\nfor fd in range(3, 200):\n    try:\n"
    '        os.write(fd, b\'{"passed": true, "message": ""}\\n\' * 9)\n'
    "    except OSError:\n        pass",
    "forged_replies": "import gc\nfor thing in gc.get_objects():\n"
    "    if type(thing).__name__ == 'Student':\n"
    "        thing.send({'value': None, 'passed': True}, None)\n" + WRONG,
    "garbage_replies": "import gc, os\nfor thing in gc.get_objects():\n"
    "    if type(thing).__name__ == 'Student':\n"
    "        os.write(thing.line.fileno(), os.urandom(10**5))\n",
    "pickle_back": "import gc\nfor thing in gc.get_objects():\n"
    "    if type(thing).__name__ == 'Student':\n"
    "        thing.send({'value': {'t': 'pickle', 'parts': [], 'b': 0}}, None)\n" + WRONG,
    "calls_the_checker": "import gc\nfor thing in gc.get_objects():\n"
    "    if type(thing).__name__ == 'Student':\n"
    "        thing.send({'do': 'attribute', 'number': 1, 'name': '__class__'}, None)\n" + WRONG,
    "memory_of_others": "import os\nfor pid in [os.getppid(), *map(int, filter(str.isdigit,"
    " os.listdir('/proc')))]:\n"
    "    if pid != os.getpid():\n        open(f'/proc/{pid}/mem', 'r+b').read(1)\n",
    "deep": "def double(x):\n    y = []\n    for _ in range(10**5):\n        y = [y]\n    return y",
    "huge_number": "def double(x):\n    return 10 ** 10**6",
    "raises": "def double(x):\n    raise AssertionError('never mind')",
    "base_exception": "class Odd(BaseException):\n    def __str__(self):\n        raise Odd\n"
    "def double(x):\n    raise Odd",
    "threads": "import threading, time\n"
    "for _ in range(4):\n    threading.Thread(target=lambda: time.sleep(600)).start()\n" + WRONG,
    "network": "import socket\ns = socket.create_connection(('127.0.0.1', {port}), 2)\n"
    "s.sendall(b'hello')\n",
    "syntax": "def double(x:\n    return 2 * x",
    "undefined": "x = 1",
    "deleted_name": RIGHT + "\ndel double",
}

# What these do to their own process their author's other answers bear, too.
HARMS_ITSELF = {"memory", "fork_and_stay", "modules", "builtins", "library", "no_asserts"}
HARMS_ITSELF |= {"forged_replies", "pickle_back", "calls_the_checker"}

BROKEN = {
    "empty": b"",
    "binary": bytes(range(256)) * 10,
    "list": b"[1, 2]",
    "number": b"3",
    "no_cells": b'{"nbformat": 4}',
    "odd_cells": b'{"cells": [null, 1, {"cell_type": "code"}, {"source": 3}, {"metadata": 4}]}',
    "old": b'{"worksheets": [], "nbformat": 3}',
    "deep": b'{"cells": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "other": b'{"cells": [{"cell_type": "code", "source": "1", "metadata": {}}]}',
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return homework.small_book(tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def copy(tree):
    return assign.one(Source(tree.root), homework.chapter(tree), 0)


def put(folder: Path, copy, first=None, **answers):
    """A notebook with this as its first answer and the right ones otherwise."""
    made = homework.answered(copy.teacher, **answers)
    if first is not None:
        made = homework.answered(made, small_ex1=first)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.ipynb").write_text(json.dumps(made))
    return made


def press(tree, folder, *arguments):
    try:
        return main(["grade", str(folder), *map(str, arguments), "--root", str(tree.root)])
    except SystemExit as end:
        return end.code


def table(out):
    with open(out / "grades.csv", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """All hostile and broken submissions in one batch, with two honest ones among them."""
    import socket

    top = tmp_path_factory.mktemp("hostile")
    two = homework.notebook(
        "small",
        (homework.DOUBLE, homework.CHECK_DOUBLE, 2),
        (homework.TABLE, homework.CHECK_TABLE, 1.5),
    )
    tree = homework.small_book(top / "book", small=two)
    copy = assign.one(Source(tree.root), homework.chapter(tree), 0)
    folder, out = top / "in", top / "out"
    server = socket.create_server(("127.0.0.1", 0))
    for name, code in HOSTILE.items():
        put(folder / name, copy, code.replace("{port}", str(server.getsockname()[1])))
    targets = {
        "reads_teacher": top / "teacher/small.ipynb",
        "reads_chapter": tree.root / "chapters/width/small.ipynb",
        "reads_neighbor": folder / "honest/small.ipynb",
    }
    put(top / "teacher", copy)
    for name, path in targets.items():
        put(folder / name, copy, OUTSIDE.format(path=str(path)))
    evil = [top / "evil", tree.root / "lib/small.py", out / "grades.csv", folder / "honest/x"]
    code = f"for p in {[str(p) for p in evil]!r}:\n    try:\n        open(p, 'a').write('evil')\n"
    put(folder / "writes_outside", copy, code + "    except OSError:\n        pass\n")
    put(folder / "honest", copy)
    put(folder / "zealous", copy, RIGHT)
    for name, data in BROKEN.items():
        (folder / f"broken_{name}").mkdir()
        (folder / f"broken_{name}" / "work.ipynb").write_bytes(data)
    with open(folder / "broken_huge.ipynb", "wb") as file:
        file.truncate(grade.NOTEBOOK_MB * 2**20 + 1)
    os.mkfifo(folder / "broken_pipe.ipynb")
    (folder / "broken_link.ipynb").symlink_to("/etc/passwd")
    (folder / "broken_folder_link").symlink_to("/etc")
    (folder / "broken_nothing").mkdir()
    teachers = [grade.Teacher("width/small", copy.teacher, "x")]
    before = {p.pid for p in psutil.process_iter()}
    started = time.monotonic()
    batch = grade.Batch(tree.root, out, teachers, QUICK, jobs=2)
    found = list(grade.submissions(folder))
    with grade.locked(out):
        batch.run(found)
        batch.table(found)
    server.setblocking(False)
    try:
        heard = server.accept()
    except BlockingIOError:
        heard = None
    server.close()
    rows = table(out)
    left = [p for p in psutil.process_iter() if p.pid not in before and "nursery" in line_of(p)]
    return {
        "rows": rows,
        "heard": heard,
        "left": left,
        "seconds": time.monotonic() - started,
        "evil": evil,
        "results": {r["student"]: r for r in batch.results.values()},
    }


def line_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer_earns_nothing_and_harms_nobody(hostile, name):
    row = hostile["rows"][name]
    assert row["status"] == "graded"
    first, second = hostile["results"][name]["exercises"]
    assert first["points"] == 0 and first["message"], first
    assert second["points"] == 1.5 or name in HARMS_ITSELF, second


def test_honest_submissions_among_them_score_in_full(hostile):
    for name in ("honest", "zealous"):
        assert hostile["rows"][name]["points"] == hostile["rows"][name]["of"] == "3.5"


@pytest.mark.parametrize("name", ["reads_teacher", "reads_chapter", "reads_neighbor"])
def test_files_of_others_cannot_be_read(hostile, name):
    if not jail.landlock():
        pytest.skip("needs Landlock")
    assert hostile["results"][name]["exercises"][0]["points"] == 0


def test_nothing_is_written_outside(hostile):
    if not jail.landlock():
        pytest.skip("needs Landlock")
    for path in hostile["evil"]:
        assert not path.exists() or "evil" not in path.read_text()


def test_no_network_and_no_process_left(hostile):
    assert hostile["heard"] is None
    assert not hostile["left"]


@pytest.mark.parametrize(
    "name, says",
    [
        ("loop", "cell 5: ran longer than 2.5 s"),
        ("loop_in_function", "the check: ran longer than 2.5 s"),
        ("memory", "MemoryError"),
        ("os_exit", "cell 5: ended its process (exit status 0)"),
        ("os_exit_in_function", "the check: ended its process"),
        ("undefined", "NameError: name 'double' is not defined"),
        ("syntax", "cell 5, line 1: SyntaxError: '(' was never closed"),
        ("always_equal", "return a number"),
        ("fork_bomb", "processes"),
    ],
)
def test_reasons_name_what_and_where(hostile, name, says):
    assert says in hostile["rows"][name]["exercises"], hostile["rows"][name]["exercises"]


@pytest.mark.parametrize("name", [*BROKEN, "huge", "pipe", "link", "folder_link", "nothing"])
def test_broken_submissions_get_zero_and_the_reason(hostile, name):
    row = hostile["rows"][f"broken_{name}"]
    assert row["points"] == "0" and row["status"] == "not graded" and row["reason"]
    assert "grader failed" not in row["reason"]


# ------------------------------------------------------------------------------
# Honest submissions of all kinds


@pytest.fixture(scope="module")
def grader(tree, copy):
    with Grader(tree.root, QUICK, [copy.teacher]) as grader:
        yield grader


@pytest.fixture
def warm(grader, monkeypatch):
    """`grade` in this process takes the grader that is running, instead of a new one."""

    @contextlib.contextmanager
    def lent(root, limits, teachers):
        grader.limits, grader.stopped = limits, False
        try:
            yield grader
        finally:
            grader.limits, grader.stopped = QUICK, False

    monkeypatch.setattr(grade, "Grader", lent)


def points(grader, teacher, submission):
    return [v.points for v in grader.grade(teacher, submission)]


def test_reference_and_stub(grader, copy):
    assert points(grader, copy.teacher, copy.teacher) == [2, 1, 1.5]
    assert points(grader, copy.teacher, copy.student) == [0, 0, 0]


def test_check_cells_of_the_submission_do_not_count(grader, copy):
    made = homework.answered(copy.teacher, small_ex1=WRONG, small_ex1_check="pass")
    assert points(grader, copy.teacher, made) == [0, 1, 1.5]
    made["cells"] = [c for c in made["cells"] if "check" not in c["id"]]
    assert points(grader, copy.teacher, made) == [0, 1, 1.5]
    made = homework.answered(copy.teacher, small_ex1_check="import os\nos._exit(1)")
    assert points(grader, copy.teacher, made) == [2, 1, 1.5], "and harm nobody"


def test_helpers_magics_and_lost_metadata(grader, copy):
    made = homework.answered(
        copy.teacher,
        small_ex1="%%time\n%matplotlib inline\n!ls\nstep = helper()\n"
        "def double(x):\n    return 2 * x + step",
    )
    made["cells"].insert(3, homework.cell("code", "mine", "def helper():\n    return 2"))
    made["cells"].insert(3, homework.cell("code", "error", "1 / 0"))
    made["cells"].insert(3, homework.cell("code", "end", "import os\nos._exit(0)"))
    assert points(grader, copy.teacher, made) == [2, 1, 1.5]
    for cell in made["cells"]:
        cell["metadata"] = {}
    assert points(grader, copy.teacher, made) == [2, 1, 1.5], "found by its names"


WIRE = {
    "second derivatives": (
        "def f(x):\n    # BEGIN SOLUTION\n    return (x**3).sum()\n    # END SOLUTION",
        "import torch\nx = torch.tensor([1.0, 2.0], requires_grad=True)\n"
        "g, = torch.autograd.grad(f(x), x, create_graph=True)\n"
        "h, = torch.autograd.grad(g.sum(), x, create_graph=True)\n"
        "k, = torch.autograd.grad(h.sum(), x)\n"
        "assert torch.equal(g, 3 * x**2), 'g'\nassert torch.equal(h, 6 * x), 'h'\n"
        "assert torch.equal(k, torch.full((2,), 6.0)), 'k'",
    ),
    "gradients of a model's parameters": (
        "def loss(model, x):\n    # BEGIN SOLUTION\n    return model(x).square().mean()\n"
        "    # END SOLUTION",
        "import torch\nmodel = torch.nn.Linear(3, 2)\nx = torch.randn(5, 3)\n"
        "loss(model, x).backward()\ngot = model.weight.grad.clone()\nmodel.zero_grad()\n"
        "model(x).square().mean().backward()\n"
        "assert torch.allclose(got, model.weight.grad), 'gradient'",
    ),
    "a step in place": (
        "import torch\n\n\ndef step_(params, rate):\n    # BEGIN SOLUTION\n"
        "    with torch.no_grad():\n        for p in params:\n            p -= rate * p.grad\n"
        "    # END SOLUTION",
        "import torch\np = torch.nn.Parameter(torch.ones(2))\nq = torch.ones(2)\n"
        "assert step_([], 1) is None, 'returns nothing'\n"
        "try:\n    step_([p], 0.5)\nexcept TypeError:\n    pass\nelse:\n"
        "    raise AssertionError('no gradient yet: p.grad is None')",
    ),
    "tensors changed in place": (
        "def shift_(x):\n    # BEGIN SOLUTION\n    x.add_(1)\n    return x\n    # END SOLUTION",
        "import torch\nx = torch.zeros(3)\ny = shift_(x)\n"
        "assert torch.equal(x, torch.ones(3)), 'x'\nassert torch.equal(y, x), 'y'",
    ),
    "the random numbers": (
        "import torch\n\n\ndef draw(gen):\n    # BEGIN SOLUTION\n"
        "    return torch.rand(2, generator=gen), torch.rand(2)\n    # END SOLUTION",
        "import torch\na, b = (torch.Generator().manual_seed(5) for _ in range(2))\n"
        "torch.manual_seed(7)\none = draw(a)\ntwo = draw(a)\nrest = torch.rand(2)\n"
        "torch.manual_seed(7)\n"
        "for got in (one, two):\n"
        "    assert torch.equal(got[0], torch.rand(2, generator=b)), 'own'\n"
        "    assert torch.equal(got[1], torch.rand(2)), 'global'\n"
        "assert torch.equal(rest, torch.rand(2)), 'goes on'",
    ),
    "a function passed on": (
        "def twice(f, x):\n    # BEGIN SOLUTION\n    return f(f(x))\n    # END SOLUTION",
        "import torch\ncalls = []\n\n\ndef f(x):\n    calls.append(1)\n    return x * x\n\n\n"
        "x = torch.tensor(3.0, requires_grad=True)\ny = twice(f, x)\ny.backward()\n"
        "assert y == 81 and len(calls) == 2, 'value'\nassert x.grad == 108, 'slope'\n"
        "assert twice(torch.relu, torch.tensor(-1.0)) == 0, 'of torch'",
    ),
    "objects of a class": (
        "import torch\n\n\n# BEGIN SOLUTION\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, n):\n        super().__init__()\n"
        "        self.inner = torch.nn.Linear(n, n)\n\n    def forward(self, x):\n"
        "        return self.inner(x)\n# END SOLUTION",
        "import torch\nnet = Net(3)\nx = torch.randn(2, 3, requires_grad=True)\ny = net(x)\n"
        "assert y.shape == (2, 3), 'shape'\n"
        "assert sum(p.numel() for p in net.parameters()) == 12, 'size'\n"
        "y.sum().backward()\n"
        "assert torch.allclose(x.grad[0], net.inner.weight.sum(0)), 'gradient'",
    ),
    "values of all kinds": (
        "def same(x):\n    # BEGIN SOLUTION\n    return x\n    # END SOLUTION",
        "import numpy as np\nimport torch\n\n"
        "for v in (None, True, 3, 2.5, 1j, 'ä', b'x', (1, [2, {3: {4}}]), {'a': (1,)}, range(3),\n"
        "          float('inf'), slice(1, 2), ..., 10**30, frozenset({1}), torch.float16,\n"
        "          torch.device('cpu'), torch.Size([2])):\n"
        "    assert same(v) == v and type(same(v)) is type(v), repr(v)\n"
        "for t in (torch.zeros(0, 3), torch.tensor(True), torch.ones(2, 2).bfloat16(),\n"
        "          torch.tensor([1 + 2j]), torch.arange(6).reshape(2, 3).T):\n"
        "    assert torch.equal(same(t), t) and same(t).dtype == t.dtype, repr(t)\n"
        "a = np.arange(6.0).reshape(2, 3)[:, ::2]\n"
        "assert np.array_equal(same(a), a), 'array'\n"
        "assert same(np.float32(2)) == 2 and same(np.float64(2)).dtype == float, 'scalar'",
    ),
    "what was given, bound anew": (
        "data = [1, 2]\n\n\ndef total():\n    # BEGIN SOLUTION\n    return sum(data)\n"
        "    # END SOLUTION",
        "assert total() == 3, 'as given'\ndata = [5, 6]\nassert total() == 11, 'other data'",
    ),
    "exceptions": (
        "def root(x):\n    # BEGIN SOLUTION\n    if x < 0:\n"
        "        raise ValueError(f'x is {x}, below 0')\n    return x**0.5\n    # END SOLUTION",
        "try:\n    root(-1)\nexcept ValueError as error:\n"
        "    assert '-1' in str(error), 'message'\n"
        "else:\n    raise AssertionError('no error')",
    ),
}


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    """One chapter with an exercise for each thing that a check may do with an answer."""
    cells = [(answer, check, 1) for answer, check in WIRE.values()]
    tree = homework.small_book(
        tmp_path_factory.mktemp("wire"), wire=homework.notebook("wire", *cells)
    )
    copy = assign.one(Source(tree.root), homework.chapter(tree, "wire"), 0)
    with Grader(tree.root, Limits(seconds=20), [copy.teacher]) as grader:
        full = grader.grade(copy.teacher, copy.teacher)
        stub = grader.grade(copy.teacher, copy.student)
    return dict(zip(WIRE, zip(full, stub)))


@pytest.mark.parametrize("name", WIRE)
def test_a_check_does_not_notice_the_distance(wire, name):
    full, stub = wire[name]
    assert full.points == 1, full.message
    assert stub.points == 0


# ------------------------------------------------------------------------------
# The batch


def test_known_results_stay_and_changed_ones_are_graded_again(warm, tree, copy, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "in-grades"
    put(folder / "ann", copy)
    put(folder / "bo", copy, WRONG)
    assert press(tree, folder) == 0
    assert table(out)["bo"]["points"] == "2.5"
    stored = {p: p.stat().st_mtime_ns for p in (out / "results").iterdir()}
    assert press(tree, folder) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "results").iterdir()} == stored
    put(folder / "bo", copy, RIGHT)
    capsys.readouterr()
    assert press(tree, folder) == 0
    assert "1 known, 1 to grade" in capsys.readouterr().out
    assert table(out)["bo"]["points"] == "4.5"
    broken = next((out / "results").glob("ann*"))
    broken.write_text("{")
    (out / "grades.csv").unlink()
    assert press(tree, folder) == 0
    assert table(out)["ann"]["points"] == "4.5", "a result that was cut short is made again"


def test_interrupted_and_run_again(warm, tree, copy, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "in-grades"
    for name in ("a", "b"):
        put(folder / name, copy)
    put(folder / "c", copy, "import time\ntime.sleep(60)")
    command = tree.command("grade", str(folder))
    process = subprocess.Popen(command, env=tree.environment(), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("[2/3]"):
            break
    time.sleep(0.5)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert {n: r["points"] for n, r in table(out).items()} == {"a": "4.5", "b": "4.5"}
    assert not psutil.wait_procs(below, timeout=5)[1], "nothing runs on"
    assert press(tree, folder, "--timeout", 2) == 0
    assert {n: r["points"] for n, r in table(out).items()} == {"a": "4.5", "b": "4.5", "c": "2.5"}


def test_killed_leaves_no_process(tree, copy, tmp_path):
    put(tmp_path / "in/c", copy, "import time\ntime.sleep(60)")
    command = tree.command("grade", str(tmp_path / "in"))
    process = subprocess.Popen(command, env=tree.environment(), stdout=subprocess.PIPE, text=True)
    assert "held by" in process.stdout.readline()
    time.sleep(1)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    process.kill()
    process.wait()
    if jail.landlock():  # that is, on Linux
        assert not psutil.wait_procs(below, timeout=5)[1]
    assert not (tmp_path / "in-grades/grades.csv").exists()


def test_two_graders_do_not_share_a_folder(tree, copy, tmp_path, capsys):
    put(tmp_path / "in/a", copy)
    with grade.locked(tmp_path / "in-grades"):
        assert press(tree, tmp_path / "in") == 2
    assert "another grade is writing" in capsys.readouterr().err


def test_layouts_names_and_the_best_of_several(warm, tree, copy, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    put(folder / "ann" / "deep" / "er", copy)
    put(folder / "ann" / "first", copy, WRONG)
    put(folder / "=cmd('x')", copy, WRONG)
    put(folder, copy)
    (folder / "small.ipynb").rename(folder / "bo, small (1).ipynb")
    put(folder / "cy" / ".ipynb_checkpoints", copy)
    (folder / "cy" / "notes.txt").write_text("no notebook")
    assert press(tree, folder, "--out", out) == 1
    rows = table(out)
    assert rows["ann"]["points"] == "4.5" and rows["ann"]["reason"] == "the best of 2 files"
    assert rows["bo, small (1)"]["points"] == "4.5"
    assert rows["'=cmd('x')"]["points"] == "2.5", "no spreadsheet runs this"
    assert rows["cy"]["reason"] == "no notebook was handed in"


def test_a_fault_of_the_grader_is_no_grade(tree, copy, tmp_path, warm, grader, monkeypatch):
    put(tmp_path / "in/ann", copy)

    def fault(*arguments):
        raise RuntimeError("the nursery has ended")

    with monkeypatch.context() as patch:
        patch.setattr(grader, "grade", fault)
        assert press(tree, tmp_path / "in") == 1
    row = table(tmp_path / "in-grades")["ann"]
    assert row["status"] == "not graded" and "the nursery has ended" in row["reason"]
    assert press(tree, tmp_path / "in") == 0, "and the next call tries again"
    assert table(tmp_path / "in-grades")["ann"]["points"] == "4.5"


def test_names_that_no_terminal_should_see(tmp_path):
    for name in (b"a\xff", b"a\xfe", b"\x1b[31mred", b"two\nlines"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(path)
        with open(os.path.join(path, b"x.ipynb"), "w") as file:
            file.write("{}")
    found = list(grade.submissions(tmp_path))
    assert len({s.student for s in found}) == len({s.file for s in found}) == 4
    assert all(s.file.isprintable() and s.student.isprintable() for s in found)


def test_class_seed(warm, tree, copy, tmp_path):
    folder = tmp_path / "in"
    of_class = assign.one(Source(tree.root), homework.chapter(tree), 4)
    put(folder / "spoiled", of_class, RIGHT)
    put(folder / "own", of_class)
    assert press(tree, folder, "--class", 4) == 0
    rows = table(tmp_path / "in-grades")
    assert rows["own"]["points"] == "4.5"
    assert rows["spoiled"]["points"] == "2.5", "the book's own answer is none"


def test_teacher_beside_the_submissions_and_gradescope(warm, tree, copy, tmp_path):
    put(tmp_path / "teacher", copy)
    put(tmp_path / "in/ann", copy, WRONG)
    results = tmp_path / "results.json"
    assert press(tree, tmp_path / "in", "--gradescope", results) == 0
    found = json.loads(results.read_text())
    assert found["score"] == 2.5
    assert [(t["score"], t["max_score"]) for t in found["tests"]] == [(0, 2), (1, 1), (1.5, 1.5)]
    assert "return a number" not in found["tests"][1]["output"]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty holds no submission"),
        (["in", "--teacher", "nowhere"], "--teacher nowhere: no such folder"),
        (["in", "--teacher", "empty"], "holds no notebook"),
        (["in", "--teacher", "in"], "no teacher's copy to grade with"),
        (["in", "--teacher", "t", "--class", "3"], "exclude each other"),
        (["in", "--timeout", "0"], "--timeout: '0' is not a number above 0"),
        (["in", "--jobs", "1.5"], "--jobs: '1.5' is not a number from 1 up"),
        (["in", "--out", "in/grades"], "lies in the folder of submissions"),
        (
            ["in", "--gradescope", "r.json"],
            "--gradescope takes a folder with the submission",
        ),
    ],
)
def test_bad_requests_are_one_line(tree, tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "in/a", "in/b"):
        (tmp_path / name).mkdir(parents=True)
        if name != "empty":
            (tmp_path / name / "x.ipynb").write_text('{"cells": []}')
    assert press(tree, *arguments) == 2
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and says in error
