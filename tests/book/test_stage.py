"""Staging: what of an executed notebook reaches the page, and in which form."""

from __future__ import annotations

import copy
import json

import pytest

from book import colab_pass
from book.source import Chapter, Source, SourceError
from book.stage import Stage, card, chapter_page, duration, stub
from tests.book import sample

RUN = {"status": "ok", "seconds": 23.4, "scale": "small"}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Source:
    return sample.project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def result(project) -> dict:
    return sample.executed(project)


def staged(project: Source, result: dict, folder, run=RUN) -> tuple[dict, Stage]:
    stage = Stage(folder)
    chapter_page(project, project.chapters[0], result, run, stage)
    return json.loads((folder / "chapters/width/ntk.ipynb").read_text("utf-8")), stage


@pytest.fixture(scope="module")
def page(project, result, tmp_path_factory) -> dict:
    return staged(project, result, tmp_path_factory.mktemp("stage"))[0]


def text(page: dict) -> str:
    return json.dumps(page, ensure_ascii=False)


def cells(page: dict, start: str) -> list[dict]:
    return [cell for cell in page["cells"] if cell["source"].startswith(start)]


def test_plumbing_is_not_on_the_page(page):
    whole = text(page)
    assert "google.colab" not in whole and "injected" not in whole.replace("injected-par", "")
    assert "widget-state" not in whole and "widget-view" not in whole
    assert "papermill" not in whole and "start_time" not in whole
    assert "a warning from elsewhere" not in whole


def test_the_set_up_is_one_folded_cell_before_the_question(page):
    (setup,) = cells(page, 'scale = "small"')
    assert setup["metadata"]["tags"] == ["hide-cell"]  # code and table
    assert "SETTINGS = {" in setup["source"]
    assert setup["metadata"]["mystnb"]["code_prompt_show"] == (
        "Show the set-up: parameters, imports and settings"
    )
    place = page["cells"].index(setup)
    assert [cell["cell_type"] for cell in page["cells"][:place]] == ["markdown"] * place
    assert page["cells"][place + 1]["source"].startswith("## ")


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("To know before: the chain rule, *spectra*.", "the chain rule, *spectra*"),
        (
            "You need linear regression, and what\nqueries are.",
            "linear regression, and what queries are",
        ),
        ("Nothing at all is promised.", "linear algebra · gradient descent"),
    ],
)
def test_the_card_says_what_to_know(project, result, tmp_path, sentence, shown):
    chapter = copy.deepcopy(project.chapters[0].notebook)
    opening = chapter["cells"][0]
    lead = "\n\n".join(opening["source"].split("\n\n")[:2])
    cite = "The paper: J., *T*, [arXiv 1806.07572](https://arxiv.org/abs/1806.07572)."
    opening["source"] = f"{lead}\n\n{cite} {sentence}"
    path = tmp_path / "ntk.ipynb"
    path.write_text(json.dumps(chapter))
    chapter_page(project, Chapter("width", "ntk", path), result, RUN, Stage(tmp_path / "s"))
    page = json.loads((tmp_path / "s/chapters/width/ntk.ipynb").read_text("utf-8"))
    (card,) = cells(page, ":::{div} itr-card")
    assert f"[You need]{{.itr-card-name}} {shown}\n" in card["source"]
    assert ("Nothing at all" in text(page)) == ("Nothing" in sentence)
    assert "The paper: J." not in text(page)


def test_no_solution_and_no_output_of_an_exercise(page):
    whole = text(page)
    assert sample.SOLUTION not in whole and "SOLUTION" not in whole
    assert "check passed, secretly" not in whole
    (answer,) = cells(page, "def half")
    assert answer["source"] == "def half(x: float) -> float:\n    ...  # your code here"
    assert all("hide-input" in cell["metadata"]["tags"] for cell in cells(page, "assert"))


@pytest.mark.parametrize(
    ("code", "page"),
    [
        ("a\n# BEGIN SOLUTION\nb\n# END SOLUTION\nc", "a\n...  # your code here\nc"),
        (
            "if x:\n    # BEGIN SOLUTION\n    b\n    # END SOLUTION",
            "if x:\n    ...  # your code here",
        ),
        ("### BEGIN SOLUTION\nb\n### END SOLUTION", "...  # your code here"),
        (
            "# BEGIN SOLUTION\na\n# END SOLUTION\nb\n# BEGIN SOLUTION\nc\n# END SOLUTION",
            "...  # your code here\nb\n...  # your code here",
        ),
        ("no solution", "no solution"),
    ],
)
def test_stub(code, page):
    assert stub(code) == page


@pytest.mark.parametrize("code", ["# BEGIN SOLUTION\na", "a\n# END SOLUTION"])
def test_unpaired_solution_markers_are_refused(code):
    with pytest.raises(SourceError, match="pair up"):
        stub(code)


def test_charts_bring_a_picture_and_no_loader(page, project):
    (figure,) = cells(page, "figure(")
    (output,) = figure["outputs"]
    html = output["data"]["text/html"]
    assert list(output["data"]) == ["text/html"]
    assert 'class="itr-chart"' in html and "cdn." not in html and "loader" not in html
    assert f'alt="{sample.DESCRIPTION}"' in html and "<noscript>" in html
    assert 'src="../../_static/figures/width/ntk/1.svg"' in html
    (live,) = cells(page, "explore(")
    assert [list(output["data"]) for output in live["outputs"]] == [["text/html"]]


def test_pictures_become_files_with_a_description(project, result, tmp_path):
    page, stage = staged(project, result, tmp_path)
    (picture,) = cells(page, "picture")
    html = picture["outputs"][0]["data"]["text/html"]
    assert 'alt="A small square that is gray all over."' in html
    assert (tmp_path / "static/figures/width/ntk/3.png").read_bytes()[1:4] == b"PNG"


def test_the_figure_that_stands_for_the_chapter_keeps_its_colors(project, result, tmp_path):
    figure = chapter_page(project, project.chapters[0], result, RUN, Stage(tmp_path))
    assert figure.title == "Wider networks move less"
    assert figure.content.startswith("<svg") and "var(--itr-c1" in figure.content


def test_a_picture_without_description_is_refused(project, result, tmp_path):
    bare = copy.deepcopy(result)
    chapter = copy.deepcopy(project.chapters[0].notebook)
    for notebook in (bare, chapter):
        for cell in notebook["cells"]:
            cell["metadata"].pop("mystnb", None)
    path = tmp_path / "ntk.ipynb"
    path.write_text(json.dumps(chapter))
    with pytest.raises(SourceError, match="picture without a description"):
        chapter_page(project, Chapter("width", "ntk", path), bare, RUN, Stage(tmp_path / "s"))


def test_links_lead_to_the_repository_or_nowhere(page, project):
    (question,) = cells(page, "## The question")
    assert f"[the module]({project.link('lib/width/ntk.py')})" in question["source"]
    assert "See the next chapter and" in question["source"]  # not printed yet: no link
    (listing,) = cells(page, "show(")
    shown = listing["outputs"][0]["data"]["text/markdown"]
    assert f"]({project.link('lib/core/stats.py#L')}" in shown


def test_the_card_says_what_a_reader_wants_to_know(page, project):
    (card,) = cells(page, ":::{div} itr-card")
    for piece in (
        "https://arxiv.org/abs/1806.07572",
        "{cite}`jacot2018ntk`",
        "linear algebra · gradient descent",
        "25 minutes to read · 23 s to run (measured)",
        project.colab(project.chapters[0]),
        project.link("chapters/width/ntk.ipynb"),
        project.link("lib/width/ntk.py"),
    ):
        assert piece in card["source"]
    assert page["cells"].index(card) == 1


def test_code_edited_after_the_run_is_refused(project, result, tmp_path):
    stale = copy.deepcopy(result)
    next(cell for cell in stale["cells"] if cell["source"] == "frame")["source"] = "other"
    with pytest.raises(SourceError, match="was edited after the last run; python -m book run"):
        staged(project, stale, tmp_path)


def test_text_edited_after_the_run_is_printed(project, result, tmp_path):
    stale = copy.deepcopy(result)
    stale["cells"][0]["source"] = "# An old title"
    page, _ = staged(project, stale, tmp_path)
    assert page["cells"][0]["source"].startswith("# Very wide networks")


def test_a_failed_cell_is_refused(project, result, tmp_path):
    failed = copy.deepcopy(result)
    cell = next(cell for cell in failed["cells"] if cell["source"] == "frame")
    cell["outputs"] = [
        {"output_type": "error", "ename": "KeyError", "evalue": "'a'", "traceback": []}
    ]
    with pytest.raises(SourceError, match="ended in KeyError"):
        staged(project, failed, tmp_path)


def test_the_stage_touches_only_what_changed(project, result, tmp_path):
    _, first = staged(project, result, tmp_path)
    assert first.changed
    (tmp_path / "old.md").write_text("left by an earlier build")
    _, second = staged(project, result, tmp_path)
    assert second.changed == []
    second.finish()
    assert second.changed == ["old.md"] and not (tmp_path / "old.md").exists()
    _, third = staged(project, result, tmp_path, {**RUN, "seconds": 40.0})
    assert third.changed == ["chapters/width/ntk.ipynb"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (23.4, "23 s"), (99, "99 s"), (120, "2 min"), (200.4, "3 min 20 s")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_card_says_when_the_copy_last_passed(project):
    path = project.root / "book" / "results" / "colab_passes.json"
    colab_pass.record(path, project.chapters[0].name, 20.0)
    said = card(project, project.chapters[0], {})
    assert "[Colab]{.itr-card-name} last ran there without an error on " in said
    path.unlink()
    assert "[Colab]{.itr-card-name}" not in card(project, project.chapters[0], {})
