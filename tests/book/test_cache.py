"""What a chapter's key covers, and what runs again after which change."""

import json

import pytest

from book import cache
from tests.book.fixtures.tree import Tree


@pytest.fixture
def library(tmp_path):
    tree = Tree(tmp_path)
    tree.write("lib/core/__init__.py", "")
    tree.write("lib/core/plots/__init__.py", "from lib.core.plots.theme import COLOR\n")
    tree.write("lib/core/plots/theme.py", "COLOR = 1\n")
    tree.write("lib/core/plots/static/vega.js", "1")
    tree.write("lib/core/stats.py", "import numpy as np\n")
    tree.write("lib/core/data.csv", "1,2\n")
    tree.write("lib/width/__init__.py", "")
    tree.write("lib/width/ntk.py", "def f():\n    from ..core import stats\n    return stats\n")
    tree.write("lib/width/big/__init__.py", "from .inner import g\n")
    tree.write("lib/width/big/inner.py", "import scipy.linalg as sl, os.path\ng = 1\n")
    return cache.Library(tree.root)


def needs(library, *codes):
    return library.needs({"cells": [{"cell_type": "code", "source": c} for c in codes]})


def modules(found):
    return {name for name in found.files if name.endswith(".py")} - {"lib/__init__.py"}


@pytest.mark.parametrize(
    "code, expected",
    [
        ("import os", set()),
        ("from lib.core import stats", {"lib/core/__init__.py", "lib/core/stats.py"}),
        ("from lib.core.stats import mean as m", {"lib/core/__init__.py", "lib/core/stats.py"}),
        ("import lib.core.stats as s", {"lib/core/__init__.py", "lib/core/stats.py"}),
        (
            "def later():\n    import lib.width.ntk",
            {"lib/width/__init__.py", "lib/width/ntk.py"}
            | {"lib/core/__init__.py", "lib/core/stats.py"},
        ),
        (
            "from lib.width.big import g",
            {"lib/width/__init__.py", "lib/width/big/__init__.py", "lib/width/big/inner.py"},
        ),
        ("show('lib.core.stats:mean')", {"lib/core/__init__.py", "lib/core/stats.py"}),
        (
            "if x:\n    %pip install y\nfrom lib.core import stats",
            {"lib/core/__init__.py", "lib/core/stats.py"},
        ),
        (
            "%%time\nfrom lib.core import stats",
            {"lib/core/__init__.py", "lib/core/stats.py"},
        ),
        ("import lib.core.stats\nnot python", {"lib/core/__init__.py", "lib/core/stats.py"}),
    ],
)
def test_modules_that_a_cell_imports(library, code, expected):
    assert modules(needs(library, code)) == expected


def test_package_data_and_foreign_packages(library):
    found = needs(library, "from lib.core import plots")
    assert "lib/core/plots/static/vega.js" in found.files
    assert "lib/core/plots/theme.py" in found.files
    assert "lib/core/data.csv" in found.files, "data beside lib/core/__init__.py"
    assert found.packages == set()
    assert needs(library, "import lib.width.big, lib.width.ntk").packages == {"numpy", "scipy"}
    assert needs(library, "import torch.nn as nn\nimport json").packages == {"torch"}


def test_key_ignores_layout_and_outputs_but_no_content():
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "x = 1\ny = 2"}
    base = {
        "cells": [cell],
        "metadata": {"kernelspec": {"name": "python3"}, "book": {"title": "T"}},
    }

    def key(notebook=base, sources=None, parameters=None, versions=None):
        return cache.key(notebook, sources or {}, parameters or {}, versions or {})

    def with_cell(**changes):
        return {**base, "cells": [{**cell, **changes}]}

    same = [
        with_cell(source=["x = 1\n", "y = 2"]),
        with_cell(outputs=[{"output_type": "stream"}], execution_count=4),
        with_cell(metadata={"execution": {"iopub.status.busy": "2026"}, "collapsed": True}),
        {**base, "metadata": {**base["metadata"], "kernelspec": {"name": "other"}}},
    ]
    assert {key(notebook) for notebook in same} == {key()}
    different = [
        with_cell(source="x = 1\ny = 3"),
        with_cell(metadata={"tags": ["thumbnail"]}),
        with_cell(cell_type="markdown"),
        {**base, "metadata": {**base["metadata"], "book": {"title": "U"}}},
    ]
    keys = [key(notebook) for notebook in different]
    keys += [key(sources={"a": "1"}), key(sources={"b": "1"}), key(sources={"a": "2"})]
    keys += [key(parameters={"seed": 0}), key(parameters={"seed": 1})]
    keys += [key(versions={"torch": "2.4"}), key(versions={"torch": None})]
    assert len({key(), *keys}) == len(keys) + 1


def test_versions_follow_requirements(tmp_path):
    installed = {"papermill": "2", "nbclient": "1", "altair": "6", "python": "3", "gpu": "no"}
    found = cache.relevant(installed, {"papermill", "nowhere"}, tmp_path)
    assert found["papermill"] == "2" and found["python"] == "3"
    assert found["nbclient"] == "1", "papermill requires it"
    assert found["nowhere"] is None, "a package that is missing may come later"
    assert "altair" not in found, "nothing here needs it"
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["altair>=5 ; x"]\n')
    assert cache.relevant(installed, set(), tmp_path)["altair"] == "6"


def test_store_keeps_the_newest_and_never_half_a_result(tmp_path):
    store = cache.Store(tmp_path)
    for i in range(cache.KEPT + 2):
        store.put("width/ntk", f"k{i}", {"scale": "small", "seconds": i}, f"notebook {i}")
    assert store.get("width/ntk", "k0") is None
    row, notebook = store.get("width/ntk", f"k{cache.KEPT + 1}")
    assert row["seconds"] == cache.KEPT + 1 and notebook == f"notebook {cache.KEPT + 1}"
    assert len(list((tmp_path / "width/ntk").iterdir())) == 2 * cache.KEPT
    assert store.seconds("width/ntk", "full") is None
    (tmp_path / "width/ntk" / f"k{cache.KEPT}.json").unlink()
    assert store.get("width/ntk", f"k{cache.KEPT}") is None


def test_write_is_atomic_and_leaves_equal_files_alone(tmp_path):
    path = tmp_path / "a" / "b.txt"
    cache.write(path, "one")
    before = path.stat().st_mtime_ns
    cache.write(path, "one")
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UnicodeEncodeError):
        cache.write(path, "\ud800")
    assert path.read_text() == "one" and [p.name for p in path.parent.iterdir()] == ["b.txt"]


def package(tree, version):
    """A distribution `toy`, as pip would leave it, in a folder that is put on the path."""
    tree.write("site/toy.py", f"version = {version!r}\n")
    for old in (tree.root / "site").glob("toy-*/*"):
        old.unlink()
    info = f"site/toy-{version}.dist-info"
    tree.write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy\nVersion: {version}\n")
    tree.write(f"{info}/RECORD", f"toy.py,,\n{info}/METADATA,,\n")
    tree.write(f"{info}/top_level.txt", "toy\n")


def test_each_change_runs_exactly_the_chapters_it_concerns(tmp_path):
    tree = Tree(tmp_path)
    tree.write("lib/core/__init__.py", "")
    tree.write("lib/core/plots/__init__.py", "")
    tree.write("lib/core/plots/static/theme.txt", "light")
    tree.write("lib/width/__init__.py", "")
    tree.write("lib/width/deep.py", "Y = 1\n")
    tree.write("lib/width/ntk.py", "from lib.width.deep import Y\n")
    tree.chapter("width/math", "from lib.width import ntk", "print(ntk.Y)")
    tree.chapter("width/plot", "import lib.core.plots")
    tree.chapter("width/peer", "import toy; print(toy.version)")
    package(tree, "1.0")

    def run(*arguments):
        done = tree.press("run", *arguments, path=str(tree.root / "site"))
        assert done.returncode == 0, done.stdout + done.stderr
        return tree.ran()

    everything = ["width/math", "width/peer", "width/plot"]
    assert run() == everything
    assert run() == []
    first = tree.report()["math"]
    assert first["status"] == "cached" and first["seconds"] > 0 and first["peak_mb"] > 0

    tree.write("lib/width/deep.py", "Y = 2\n")
    assert run() == ["width/math"], "a module that a module imports"
    assert "2\n" in json.dumps(tree.executed("width/math")).replace("\\n", "\n")

    tree.write("lib/core/plots/static/theme.txt", "dark")
    assert run() == ["width/plot"], "data beside a module"

    package(tree, "2.0")
    assert run() == ["width/peer"], "a version"

    path = tree.root / "chapters/width/plot.ipynb"
    notebook = json.loads(path.read_text())
    path.write_text(json.dumps(notebook, indent=4))
    tree.write("lib/width/unused.py", "")
    assert run() == [], "neither layout nor a module that nobody imports"

    notebook["cells"][-1]["source"] += "\n1"
    path.write_text(json.dumps(notebook))
    assert run() == ["width/plot"], "the notebook"

    assert run("math", "--seed", "1") == ["width/math"], "a parameter"
    assert run("math", "-p", "more", "1") == ["width/math"], "a parameter"
    assert run("math") == [], "and back"
    assert tree.report()["math"]["seed"] == 0
    assert set(tree.report()) == {"math", "plot", "peer"}, "the report still has every chapter"
    assert run("math", "--fresh") == ["width/math"]
