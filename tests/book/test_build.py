"""The build: pages that are computed, the reference, and one whole site of a small project."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

from book import build, generated, reference, social
from book.source import PARTS, ROOT, Source, SourceError, text_of
from tests.book import sample


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Source:
    return sample.project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def runs(project) -> dict:
    rows = json.loads((project.root / "_build/report.json").read_text("utf-8"))["chapters"]
    return {f"{row['part']}/{row['slug']}": row for row in rows}


# ------------------------------------------------------------------------------ the whole site


@pytest.fixture(scope="module")
def site(project):
    status = build.build(project.root)
    assert status == 0, (project.root / "_build/site.log").read_text("utf-8")[-3000:]
    return project.root / "_build" / "html"


def test_every_page_is_there_and_holds_what_it_should(site, project):
    chapter = (site / "chapters/width/ntk.html").read_text("utf-8")
    assert "Very wide networks" in chapter and "itr-card" in chapter
    assert sample.SOLUTION not in chapter
    assert 'id="claims"' in chapter and "charts.js" in chapter
    board = (site / "scoreboard.html").read_text("utf-8")
    assert "The frozen kernel wins on every task" in board and "✗ no" in board
    half = r'<span class="math notranslate nohighlight">\(-\tfrac{1}{2}\)</span>'
    assert half in board and half in chapter
    assert "23.4 s" in (site / "run_times.html").read_text("utf-8")
    assert "Hongler" in (site / "bibliography.html").read_text("utf-8")
    assert "lib.width.ntk.kernel" in (site / "reference/lib.width.ntk.html").read_text("utf-8")
    assert "charts.js" not in (site / "preface.html").read_text("utf-8")


def test_no_page_names_a_script_of_another_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        foreign = re.findall(
            r'<(?:script|img|link|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*', text
        )
        foreign = [tag for tag in foreign if 'rel="canonical"' not in tag]  # names, fetches nothing
        assert not foreign, (page.name, foreign)
        assert not re.search(r"unpkg|jsdelivr|cdnjs|thebe|require\.js", text), page.name


def test_no_solution_is_anywhere_in_the_site(site):
    for path in site.rglob("*"):
        if (
            path.suffix in {".html", ".js", ".txt", ".ipynb", ".json"}
            and "mathjax" not in path.parts
        ):
            assert sample.SOLUTION not in path.read_text("utf-8", errors="ignore"), path


def test_the_front_page_shows_where_to_begin(site, project, runs):
    front = (site / "index.html").read_text("utf-8")
    assert "Begin with one of these" in front and "chapters/width/ntk.html" in front
    assert "_static/thumbnails/width/ntk-dark.webp" in front


def test_the_gallery_is_a_whole_list_without_scripts(site):
    page = (site / "gallery.html").read_text("utf-8")
    (card,) = re.findall(r'<li class="itr-chapter".*?</li>', page, re.S)
    for part in ("learn like kernels</a>", "(2018)", "25 min to read", "23 s to run"):
        assert part in card
    assert "2 of 3 claims hold" in card and "itr-badge-part" in card
    assert 'alt="Wider networks move less"' in card and card.count('loading="lazy"') == 2
    for mode in ("light", "dark"):
        assert (site / f"_static/thumbnails/width/ntk-{mode}.webp").read_bytes()[8:12] == b"WEBP"
    assert '<form class="itr-filter" role="search"' in page and "hidden>" in page
    assert "chapters.js" in page and "chapters.js" not in (site / "preface.html").read_text("utf-8")


def test_the_map_and_the_paths_are_printed(site):
    page = (site / "map.html").read_text("utf-8")
    assert '<option value="width/ntk">' in page and '<svg viewBox="0 0 ' in page
    assert "you bring linear algebra, gradient descent" in page and "singular value" in page
    paths = (site / "paths.html").read_text("utf-8")
    assert "Together 25 minutes to read." in paths and "are being written" in paths


def test_other_sites_learn_what_a_page_is(site, project):
    home = project.site
    assert home.startswith("https://") and home.endswith("/")
    chapter = (site / "chapters/width/ntk.html").read_text("utf-8")
    head = dict(re.findall(r'<meta (?:property|name)="([\w:]+)" content="([^"]*)"', chapter))
    assert head["og:title"] == "Very wide networks learn like kernels"
    assert head["og:description"].startswith("Training moves a million weights")
    assert len(head["og:description"]) <= 200 and head["description"] == head["og:description"]
    assert head["og:url"] == f"{home}chapters/width/ntk.html"
    assert head["og:image"] == f"{home}_static/social/width/ntk.png"
    assert f'<link rel="canonical" href="{home}chapters/width/ntk.html"' in chapter
    preface = (site / "preface.html").read_text("utf-8")
    assert f'content="{home}_static/social/index.png"' in preface
    for name in ("index", "width/ntk"):
        with Image.open(site / f"_static/social/{name}.png") as picture:
            assert picture.size == (1200, 630) and picture.format == "PNG"
    assert "canonical" not in (site / "404.html").read_text("utf-8")


def test_the_map_of_the_site_lists_every_page(site, project):
    root = ElementTree.parse(site / "sitemap.xml").getroot()
    listed = {element.text for element in root.iter() if element.tag.endswith("loc")}
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    pages -= {f"{name}.html" for name in social.UNLISTED} | {"index.html"}
    pages = {page for page in pages if not page.startswith("_")}
    assert listed == {project.site, *(project.site + page for page in pages)}


def test_buttons_of_the_menu_say_what_they_open(site):
    page = (site / "index.html").read_text("utf-8")
    assert 'aria-label="Width: its pages"' in page and "<summary>" not in page


def test_a_name_that_two_modules_use_links_to_neither(site):
    """Sphinx would warn, and the book would not build."""
    page = (site / "reference/lib.width.ntk.html").read_text("utf-8")
    assert "Twice" in page and not re.search(r"<a [^>]*><span class=.pre.>Twice", page)
    assert re.search(r'<a [^>]*lib.width.ntk.Kernel"[^>]*><span class="pre">Kernel', page)


def test_search_leaves_out_what_every_chapter_has(site):
    text = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    page = index["docnames"].index("chapters/width/ntk")

    def pages(word: str) -> list[int]:
        found = index["terms"].get(word, [])
        return found if isinstance(found, list) else [found]

    assert page in pages("landscap")  # the text
    assert page not in pages("colab") and page not in pages("github")
    assert page not in pages("10_000")  # the settings
    assert "search.js" in (site / "search.html").read_text("utf-8")
    assert "search.js" not in (site / "index.html").read_text("utf-8")


def test_a_second_build_reads_nothing_again(site, project):
    before = (site / "chapters/width/ntk.html").stat().st_mtime_ns
    assert build.build(project.root) == 0
    assert (site / "chapters/width/ntk.html").stat().st_mtime_ns == before


def test_a_warning_fails_the_build_until_it_is_mended(site, project, capfd):
    page = project.root / "book/pages/preface.md"
    text = page.read_text("utf-8")
    page.write_text(text + "\n[a link](nowhere.md)\n")
    assert build.build(project.root) == 1
    assert "nowhere" in capfd.readouterr().err
    page.write_text(text)
    (site / "old.html").write_text("left by an earlier build")
    assert build.build(project.root) == 0
    assert not (site / "old.html").exists() and (site / "search.html").exists()


# --------------------------------------------------------------------------------- no full site


def test_the_book_builds_without_a_chapter(tmp_path):
    source = sample.project(tmp_path)
    shutil.rmtree(tmp_path / "chapters")
    toc = yaml.safe_load((tmp_path / "_toc.yml").read_text())
    toc["parts"] = [part for part in toc["parts"] if part["caption"] != "Chapters"]
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    source = Source(tmp_path)
    stage, pages = build.stage_all(source, tmp_path / "_build")
    assert "index" in pages and not source.chapters
    assert "No chapter is finished yet" in (stage.folder / "index.md").read_text("utf-8")
    assert "No chapter has been run" in (stage.folder / "scoreboard.md").read_text("utf-8")


def test_a_chapter_that_has_not_run_is_named(tmp_path, capsys):
    sample.project(tmp_path)
    (tmp_path / "_build/executed/width/ntk.ipynb").unlink()
    assert build.build(tmp_path) == 1
    assert "width/ntk has not run; python -m book run width/ntk" in capsys.readouterr().err


def test_a_chapter_that_failed_is_named(tmp_path, capsys):
    sample.project(tmp_path)
    path = tmp_path / "_build/report.json"
    content = json.loads(path.read_text())
    error = {"cell": 7, "name": "ValueError", "message": "n is\nnegative"}
    content["chapters"][0] |= {"status": "failed", "error": error}
    path.write_text(json.dumps(content))
    assert build.build(tmp_path) == 1
    assert "width/ntk: failed in cell 7: ValueError: n is negative" in capsys.readouterr().err


def test_a_page_that_is_listed_and_missing_is_named(tmp_path, capsys):
    sample.project(tmp_path)
    (tmp_path / "book/pages/notation.md").unlink()
    assert build.build(tmp_path) == 1
    assert "_toc.yml names notation" in capsys.readouterr().err


def test_an_unknown_mark_is_named(project, runs):
    with pytest.raises(SourceError, match="asks for generated 'wishes'"):
        generated.fill("<!-- generated: wishes -->", project, runs, {})


def test_claims_are_counted_as_they_are(project, runs):
    runs["width/ntk"]["claims"].append(
        {"text": "a number", "paper": "-", "measured": "3", "holds": None}
    )
    assert generated.tally(runs["width/ntk"]["claims"]) == (3, 2, 1)
    board = generated.scoreboard(project, runs)
    assert "[3]{.itr-number} claims measured again" in board
    assert "[1]{.itr-number} does not" in board and "[reported]{.itr-open}" in board
    failing = board.split("## What does not hold here")[1].split("## Width")[0]
    assert "frozen kernel" in failing and "one quantity" not in failing
    assert "at this width the kernel still moves" in failing


def test_claims_are_shown_literally(project, runs):
    runs["width/ntk"]["claims"][0] |= {"text": "n_1 * n_2 <b> $ x $ `y` | z", "paper": "[a](b)"}
    board = generated.scoreboard(project, runs)
    assert r"n\_1 \* n\_2 &lt;b&gt; \$ x \$ \`y\` \| z" in board and r"\[a\](b)" in board


def test_mathematics_in_claims_is_set(project, runs):
    claim = {"text": r"At $n_l < \infty$ it costs $5 or $6", "paper": r"$a_1$–$a_2$", "holds": True}
    claim |= {"measured": "3_4", "note": r"where $x*y$"}
    runs["width/ntk"]["claims"][0] = claim
    board = generated.scoreboard(project, runs)
    assert r"At {math}`n_l < \infty` it costs \$5 or \$6" in board
    assert "{math}`a_1`–{math}`a_2`" in board
    assert r"3\_4<br>[where {math}`x*y`]{.itr-note}" in board


def test_part_openings_list_every_paper_and_link_the_finished(project):
    text = generated.papers(project, "width")
    assert text.count("not written yet") == 8
    assert "](ntk.ipynb)" in text and "](feature_learning.ipynb)" not in text


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_an_opening(part):
    path = ROOT / "chapters" / part / "index.md"
    if path.is_file():
        text = path.read_text("utf-8")
    else:
        cells = json.loads(path.with_suffix(".ipynb").read_text("utf-8"))["cells"]
        text = "\n\n".join(text_of(c) for c in cells if c["cell_type"] == "markdown")
    assert text.startswith("# ") and f"<!-- generated: papers {part} -->" in text
    assert 40 < len(text.split()) < 1200


# -------------------------------------------------------------------------------- the reference


def test_the_reference_reads_without_importing(project):
    assert "a_package_that_does_not_exist" not in sys.modules
    (module,) = [m for m in reference.modules(project) if m.name == "lib.width.ntk"]
    page = reference.page(project, module)
    assert "{py:function} kernel(x: Float[Tensor, 'n d'], *, scale: float=0.5)" in page
    assert "{py:class} Kernel(number: float=1.0)" in page
    assert "{py:property} half\n:type: float" in page
    assert "Not for readers" not in page and "_hidden" not in page
    assert project.link("lib/width/ntk.py#L") in page
    assert "**Arguments**\n\n- `scale`: what to multiply by, on two lines." in page
    assert "**Raises**\n\n- `ValueError`: `x` is negative." in page
    assert r"with \$n\$ samples" in page and r"*number*_" not in page
    assert "```text\n    n   d\n    1   2\n```" in page


@pytest.mark.parametrize(
    ("code", "signature"),
    [
        ("def f(a, b=1, *c, d: int = 2, **e) -> int: ...", "(a, b=1, *c, d: int=2, **e) -> int"),
        ("def f(a, /, b): ...", "(a, /, b)"),
        ("def f(a=(*B, 1), *, c=[*D]): ...", "(a=..., *, c=...)"),
    ],
)
def test_signature(code, signature):
    assert reference._signature(ast.parse(code).body[0]) == signature


def test_numpy_sections_are_read_too():
    text = "Sum.\n\nParameters\n----------\na : int\n    First.\nb\n    Second.\n\n"
    text += "Returns\n-------\nint"
    assert reference.prose_blocks(text) == (
        "Sum.\n\n**Parameters**\n\n- `a : int`: First.\n- `b`: Second.\n\n**Returns**\n\n- `int`"
    )


# ---------------------------------------------------------------------- the repository's address


def test_the_address_stands_in_one_place():
    """Files of the book derive it from `_config.yml`; chapters repeat it in their set-up cell."""
    source = Source(ROOT)
    assert source.setup_cell.count(source.address) == 1
    owners = [
        *(ROOT / "book").rglob("*.py"),
        *(ROOT / "book/pages").rglob("*.md"),
        ROOT / "_toc.yml",
    ]
    for path in owners:
        assert source.github_name not in path.read_text("utf-8"), path
