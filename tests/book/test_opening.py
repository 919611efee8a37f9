"""A part's first page that computes something: a notebook instead of prose."""

from __future__ import annotations

import copy
import json

import pytest

from book import assign, build, check, colab, generated, report
from book.errors import BookError
from book.run import notebooks, select
from book.source import Source
from tests.book import sample
from tests.book.fixtures.tree import PARAMETERS, Tree

TEXT = "# Width\n\nWhat happens when a layer is wide."


def opening() -> dict:
    def cell(kind: str, text: str, *tags: str) -> dict:
        extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
        found = {"cell_type": kind, "source": text, "metadata": {"tags": list(tags)}, **extra}
        return found | {"id": f"o{len(cells)}"}

    cells: list[dict] = []
    for kind, text, *tags in [
        ("markdown", TEXT),
        ("code", PARAMETERS, "parameters"),
        ("code", "figure(chart(), description='Movement falls.')", "hide-input"),
        ("markdown", "See [a chapter](ntk.ipynb).\n\n<!-- generated: papers width -->"),
    ]:
        cells.append(cell(kind, text, *tags))
    book = {"title": "Width", "part": "width"}
    return {"cells": cells, "metadata": {"book": book}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def project(tmp_path) -> Source:
    sample.project(tmp_path)
    folder = tmp_path / "chapters/width"
    (folder / "index.md").unlink()
    (folder / "index.ipynb").write_text(json.dumps(opening()))
    ran = copy.deepcopy(opening())
    ran["cells"][2]["outputs"] = [
        sample.bundle(sample.figure(sample.chart(), description=sample.DESCRIPTION))
    ]
    (tmp_path / "_build/executed/width/index.ipynb").write_text(json.dumps(ran))
    path = tmp_path / "_build/report.json"
    rows = json.loads(path.read_text())["chapters"]
    rows.append(rows[0] | {"slug": "index", "claims": [], "seconds": 7.5})
    path.write_text(json.dumps({"chapters": rows}))
    return Source(tmp_path)


def test_it_is_run_but_is_no_chapter(project):
    assert [c.name for c in project.chapters] == ["width/ntk"]
    assert [c.name for c in notebooks(project, [])] == ["width/ntk", "width/index"]
    assert [c.name for c in notebooks(project, ["width"])] == ["width/ntk", "width/index"]
    assert [c.name for c in notebooks(project, ["width/index"])] == ["width/index"]
    # A class gets exercises and Colab gets chapters: there is nothing of either in an opening.
    assert [c.name for c in select(project, ["width"])] == ["width/ntk"]
    assert select is assign.select and select is colab.select
    with pytest.raises(BookError, match="unknown chapter"):
        notebooks(project, ["index"])


def test_its_page_is_the_text_filled_and_the_figures_of_its_run(project):
    stage, pages = build.stage_all(project, project.root / "_build")
    assert "chapters/width/index" in pages
    page = json.loads((stage.folder / "chapters/width/index.ipynb").read_text())
    texts = "\n".join(cell["source"] for cell in page["cells"] if cell["cell_type"] == "markdown")
    assert TEXT in texts and "generated:" not in texts and "itr-card" not in texts
    assert "[Very wide networks learn like kernels](ntk.ipynb)" in texts
    outputs = [output for cell in page["cells"] for output in cell.get("outputs", [])]
    assert len(outputs) == 1 and "Wider networks move less" in json.dumps(outputs)
    rows = report.read(project.root / "_build/report.json")
    assert "7.5 s" in generated.run_times(project, rows)
    assert "**1** of" in generated.summary(project, rows)
    assert not (stage.folder / "static/social/width/index.png").exists()


def test_the_whole_site_builds_with_it(project):
    log = project.root / "_build/site.log"
    assert build.build(project.root) == 0, log.read_text("utf-8")[-3000:]
    page = (project.root / "_build/html/chapters/width/index.html").read_text("utf-8")
    assert "charts.js" in page and "Wider networks move less" in page and "itr-chart" in page


def test_an_opening_that_has_not_run_is_named(project, capsys):
    (project.root / "_build/executed/width/index.ipynb").unlink()
    assert build.build(project.root) == 1
    assert "width/index has not run; python -m book run width/index" in capsys.readouterr().err


def test_what_is_wrong_with_it_is_found(project):
    assert check.check(project) == []
    path = project.root / "chapters/width/index.ipynb"
    wrong = opening()
    wrong["cells"][0]["source"] = "# Wide\n\nIt reached 0.9731."
    wrong["cells"][1]["source"] = "seed = 0"
    wrong["cells"][2]["source"] = "figure(chart())"
    path.write_text(json.dumps(wrong))
    (path.parent / "index.md").write_text("# Width\n")
    findings = "\n".join(map(str, check.check(Source(project.root))))
    for line in (
        "index.ipynb: its part has two openings; delete index.md",
        "the title is not book.title",
        "the parameters are not the book's",
        "figure() has no description",
        "0.9731 typed into the prose",
    ):
        assert line in findings, findings
    (path.parent / "index.md").unlink()
    path.write_text(json.dumps(opening()))
    assert [c.name for c in check.named(Source(project.root), ["width/index"])] == ["width/index"]


def test_it_may_have_a_module_of_its_own(project):
    (project.root / "lib/width/opening.py").write_text("")
    assert check.check(project) == []
    (project.root / "chapters/width/index.ipynb").unlink()
    (project.root / "chapters/width/index.md").write_text("# Width\n")
    findings = "\n".join(map(str, check.check(Source(project.root))))
    assert "lib/width/opening.py: no paper of that name" in findings


def test_a_run_takes_it_along(tmp_path):
    tree = Tree(tmp_path)
    tree.chapter("width/ntk", "1")
    tree.chapter("width/index", "2")
    done = tree.press("run")
    assert done.returncode == 0, done.stderr
    assert tree.ran() == ["width/index", "width/ntk"]
    assert set(tree.report()) == {"ntk", "index"}
