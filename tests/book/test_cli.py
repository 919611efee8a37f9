"""What the press says to a request that makes no sense: one line, exit status 2, no traceback."""

import json
import sys
import urllib.error
import urllib.request

import pytest
import torch

from book import run, serve
from book.__main__ import main
from tests.benchmarks._timing import compare, resident_bytes
from tests.book.fixtures.tree import Tree


@pytest.fixture
def tree(tmp_path):
    tree = Tree(tmp_path)
    tree.chapter("width/ntk", "1")
    tree.chapter("graphs/deep", "1")
    tree.chapter("width/deep", "1", listed=False)
    return tree


def refused(capsys, tree, *arguments):
    """The one line on stderr of a request that is refused."""
    try:
        status = main([*arguments, "--root", str(tree.root)])
    except SystemExit as end:
        status = end.code
    out, error = capsys.readouterr()
    assert status == 2
    assert error.count("\n") == 1 and "Traceback" not in error
    assert not out
    return error.strip()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["run", "nkt"], "unknown chapter 'nkt'; did you mean 'width/ntk'?"),
        (["run", "wdth/ntk"], "did you mean 'width/ntk'?"),
        (["run", "graph"], "did you mean 'graphs'?"),
        (["run", "zzzz"], "unknown chapter 'zzzz'"),
        (["run", "deep"], "'deep' is in several parts; say width/deep or graphs/deep"),
        (["run", "--scale", "smal"], "invalid choice: 'smal'"),
        (["run", "--seed", "one"], "--seed: invalid int value: 'one'"),
        (["run", "--jobs", "0"], "--jobs: '0' is not a number from 1 up"),
        (["run", "--timeout", "-1"], "--timeout: '-1' is not a number above 0"),
        (["run", "--memory", "much"], "--memory: 'much' is not a number above 0"),
        (["run", "-p", "a b", "1"], "-p a b: not a name"),
        (["run", "-p", "seed", "1"], "-p seed: use --seed"),
        (["run", "--sca", "small"], "unrecognized arguments: --sca"),
        (["rnu"], "unknown verb 'rnu'; did you mean 'run'?"),
        (["frobnicate"], "unknown verb 'frobnicate'; there are run, "),
        (["serve"], "there is no site yet; python -m book run, then python -m book build"),
        (["bench"], "there is no script in tests/benchmarks"),
        (["new", "ntk"], "give part and slug, as in width/ntk"),
    ],
)
def test_bad_requests_are_one_line(capsys, tree, arguments, says):
    assert says in refused(capsys, tree, *arguments)


def test_unreachable_scheduler(capsys, tree, monkeypatch):
    monkeypatch.setattr(run, "PATIENCE", 0.5)
    says = refused(capsys, tree, "run", "--scheduler", "tcp://127.0.0.1:1")
    assert "no scheduler answers at 'tcp://127.0.0.1:1'" in says
    assert "no scheduler answers at 'nonsense'" in refused(
        capsys, tree, "run", "--scheduler", "nonsense"
    )


def test_unwritable_folder(capsys, tree):
    (tree.root / "_build").write_text("a file where the folder should be")
    assert "cannot write in" in refused(capsys, tree, "run")


def test_missing_optional_package(capsys, tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "needs the package 'distributed': pip install distributed" in refused(
        capsys, tree, "run"
    )


def test_a_folder_that_is_no_book(capsys, tree, tmp_path):
    (tree.root / "book" / "papers.csv").unlink()
    assert "is not a checkout of the book" in refused(capsys, tree, "run")


def test_listed_chapter_that_does_not_exist(capsys, tree):
    tree.chapters.append("width/ghost")
    tree.toc()
    assert "_toc.yml lists chapters/width/ghost" in refused(capsys, tree, "run")


def test_broken_notebook(capsys, tree):
    tree.write("chapters/width/ntk.ipynb", "{")
    assert "ntk.ipynb: not a notebook" in refused(capsys, tree, "run", "ntk")


def test_help_teaches_and_imports_little(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for verb in ("run", "new", "serve", "lab", "bench"):
        assert f"\n  {verb} " in text
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0
    assert "CHAPTER" in capsys.readouterr().out


def test_selection_by_part_slug_and_path(tree):
    source = run.Source(tree.root)

    def names(*given):
        return [chapter.name for chapter in run.select(source, given)]

    assert names() == ["width/ntk", "graphs/deep"]
    assert names("ntk") == names("width/ntk") == ["width/ntk"]
    assert names("./chapters/width/ntk.ipynb") == ["width/ntk"]
    assert names("width") == ["width/ntk"], "a part means its chapters in _toc.yml"
    assert names("width/deep") == ["width/deep"], "a chapter may be named although it is not listed"
    assert names("graphs/deep", "ntk", "ntk") == ["width/ntk", "graphs/deep"]


def test_serve_answers_on_localhost_and_names_a_taken_port(tree, capsys):
    import functools
    import threading

    tree.write("_build/html/index.html", "<p>the book</p>")
    handler = functools.partial(serve.Handler, directory=str(tree.root / "_build/html"))
    server = serve.listen(0, handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/"
        with urllib.request.urlopen(address, timeout=5) as answer:
            assert b"the book" in answer.read()
        with pytest.raises(urllib.error.HTTPError) as plain:
            urllib.request.urlopen(f"{address}no/where.html", timeout=5)
        assert plain.value.code == 404 and b"our own page" not in plain.value.read()
        tree.write("_build/html/404.html", "<p>our own page</p>")
        with pytest.raises(urllib.error.HTTPError) as own:
            urllib.request.urlopen(f"{address}no/where.html", timeout=5)
        assert own.value.code == 404 and own.value.read() == b"<p>our own page</p>"
        says = refused(capsys, tree, "serve", "--port", str(server.server_port))
        assert f"port {server.server_port} is taken" in says
    finally:
        server.shutdown()
        server.server_close()


def test_bench_prints_ratios_and_reports_what_fails(tree, capfd):
    row = {"name": "scan", "peer": "snntorch", "ratio": 2.5, "ms": 4.0, "peer_ms": 10.0}
    tree.write("tests/benchmarks/good.py", f"def main():\n    return [{row!r}]\n")
    tree.write("tests/benchmarks/bad.py", "def main():\n    return [{'name': 'x'}]\n")
    assert main(["bench", "--root", str(tree.root)]) == 1
    out, error = capfd.readouterr()
    assert "name  peer      ratio  ms  peer_ms" in out and "2.50x" in out
    assert "FAILED bad: a row lacks peer, ratio" in error
    stored = json.loads((tree.root / "_build/bench.json").read_text())
    assert stored == {"good": [row]}
    assert "did you mean 'good'?" in refused(capfd, tree, "bench", "goo")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts resident memory")
def test_benchmarks_weigh_what_a_run_makes_resident():
    mib = 2**18  # floats
    assert resident_bytes(lambda: None) < 2**20
    assert 15 < resident_bytes(lambda: torch.ones(16 * mib)) / 2**20 < 18
    # What is freed on the way does not add up.
    worst = resident_bytes(lambda: [float(torch.ones(16 * mib).sum()) for _ in range(4)])
    assert 15 < worst / 2**20 < 18
    row = compare(
        "exp",
        "two copies",
        lambda: torch.ones(8 * mib).exp_(),
        lambda: torch.ones(8 * mib).exp(),
        repeats=1,
    )
    assert 1.8 < row["memory_ratio"] < 2.2 and 7 < row["mib"] < 10
