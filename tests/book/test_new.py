"""A new chapter runs as it is, and nothing is ever overwritten."""

import json
import shutil

import nbformat
import pytest

from book.__main__ import main
from tests.book.fixtures.tree import ROOT, Tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    tree = Tree(tmp_path_factory.mktemp("book"))
    tree.write("book/papers.csv", "part,slug,title\ndynamics,my_idea,A Title of a Paper\n")
    shutil.copytree(ROOT / "lib" / "core", tree.root / "lib" / "core")
    shutil.copytree(ROOT / "lib" / "kernels", tree.root / "lib" / "kernels")
    assert main(["new", "dynamics/my_idea", "--root", str(tree.root)]) == 0
    return tree


def test_three_rooms(tree):
    for name in ("lib/dynamics/my_idea.py", "tests/dynamics/test_my_idea.py"):
        compile((tree.root / name).read_text(), name, "exec")
    assert "A Title of a Paper" in (tree.root / "lib/dynamics/my_idea.py").read_text()
    assert (tree.root / "lib/dynamics/__init__.py").exists()
    notebook = nbformat.read(tree.root / "chapters/dynamics/my_idea.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.book.slug == "my_idea" and notebook.metadata.book.part == "dynamics"
    assert notebook.metadata.book.paper.title == "A Title of a Paper"
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags == ["setup", "parameters", "remove-input", "thumbnail"]
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "PART" not in text and "SLUG" not in text and "https://example.org/owner/name" in text
    for heading in ("Claims", "Where it breaks", "Exercises", "At full scale", "Further reading"):
        assert f"\n## {heading}\n" in text
    graded = [c.metadata.nbgrader for c in notebook.cells if "nbgrader" in c.metadata]
    assert [g.grade for g in graded] == [False, True] * 3
    assert len({g.grade_id for g in graded}) == 6


def test_it_runs_as_it_is(tree):
    done = tree.press("run", "dynamics/my_idea")
    assert done.returncode == 0, done.stdout + done.stderr
    row = tree.report()["my_idea"]
    assert [claim["holds"] for claim in row["claims"]] == [True, True, True]


@pytest.mark.parametrize(
    "name, says",
    [
        ("dynamics/my_idea", "lib/dynamics/my_idea.py exists; nothing was written"),
        ("dynmics/other", "unknown part 'dynmics'; did you mean 'dynamics'?"),
        ("zzz/other", "unknown part 'zzz'; there are width, dynamics"),
        ("dynamics/My-Idea", "'My-Idea' cannot name a module"),
        ("dynamics/class", "'class' cannot name a module"),
        ("dynamics/../x", "cannot name a module"),
        ("dynamics", "give part and slug"),
    ],
)
def test_what_it_refuses(tree, capsys, name, says):
    before = json.dumps(sorted(map(str, tree.root.rglob("*"))))
    assert main(["new", name, "--root", str(tree.root)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert json.dumps(sorted(map(str, tree.root.rglob("*")))) == before
