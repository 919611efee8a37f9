"""`check`: silent on a whole chapter, one telling line for each thing that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from book import check
from book.errors import BookError
from book.source import ROOT, Source
from tests.book import sample


@pytest.fixture
def project(tmp_path) -> Source:
    return sample.project(tmp_path)


def edit(project: Source, change) -> list[str]:
    """What `check` says after `change(notebook)`."""
    path = project.chapters[0].path
    notebook = json.loads(path.read_text())
    change(notebook)
    path.write_text(json.dumps(notebook))
    return [str(finding) for finding in check.check(Source(project.root))]


def find(notebook: dict, start: str) -> dict:
    return next(cell for cell in notebook["cells"] if cell["source"].startswith(start))


def test_a_whole_chapter_has_no_findings(project):
    assert check.check(project) == []


def test_a_line_that_goes_on_with_an_operator_is_not_taken_for_a_magic(project):
    def continued(notebook):
        cell = find(notebook, "import sys")
        later = notebook["cells"][notebook["cells"].index(cell) + 1]
        later["source"] += "\nodd = [\n    n\n    for n in range(9)\n    if n\n    % 2\n    != 0\n]"

    assert edit(project, continued) == []


# What is done to the notebook, and what the one line says about it.
WRONG = {
    "no title": (lambda n: n["cells"][0].update(source="Hello"), "does not open with a title"),
    "another title": (
        lambda n: n["metadata"]["book"].update(title="Other"),
        "cell 0: the title is not book.title",
    ),
    "paper not linked": (
        lambda n: n["metadata"]["book"]["paper"].update(arxiv="1806.07573"),
        "cell 0: the opening does not link the paper; link https://arxiv.org/abs/1806.07573",
    ),
    "another set-up": (
        lambda n: find(n, "import sys").update(source="%pip install lib"),
        "cell 1: the set-up cell is not the book's",
    ),
    "set-up not tagged": (
        lambda n: find(n, "import sys")["metadata"].pop("tags"),
        "cell 1: the first code cell is not tagged 'setup'",
    ),
    "another seed": (
        lambda n: find(n, "scale").update(source='scale = "small"\nseed = 1\ndevice = "auto"'),
        "cell 2: the parameters are not the book's; write scale = 'small'; seed = 0",
    ),
    "one scale": (
        lambda n: find(n, "SETTINGS").update(
            source="SETTINGS = {'small': {}}\ns = SETTINGS[scale]"
        ),
        "cell 3: the third code cell has no SETTINGS for both scales",
    ),
    "outputs": (
        lambda n: find(n, "frame").update(outputs=[{"output_type": "stream"}]),
        "stores outputs; clear all outputs",
    ),
    "execution count": (
        lambda n: find(n, "frame").update(execution_count=3),
        "stores an execution count",
    ),
    "same id": (lambda n: n["cells"][5].update(id="cell-6"), "id 'cell-6' is not unique"),
    "no id": (lambda n: n["cells"][5].pop("id"), "cell 5: has no id"),
    "no record": (lambda n: n["metadata"].pop("book"), "metadata has no record 'book'"),
    "wrong part": (
        lambda n: n["metadata"]["book"].update(part="dynamics"),
        "book.part is 'dynamics'; set it to 'width'",
    ),
    "no minutes": (
        lambda n: n["metadata"]["book"].pop("minutes"),
        "book.minutes is missing or malformed; give an integer from 5 to 90",
    ),
    "no authors": (
        lambda n: n["metadata"]["book"]["paper"].update(authors=""),
        "book.paper.authors is missing",
    ),
    "unknown key": (
        lambda n: n["metadata"]["book"]["paper"].update(key="nobody2020"),
        "book.paper.key 'nobody2020' is unknown; add the paper to book/references.bib",
    ),
    "no section": (
        lambda n: find(n, "## Where")["source"] and find(n, "## Where").update(source="Nothing."),
        "has no section 'Where it breaks'; add '## Where it breaks'",
    ),
    "sections out of order": (
        lambda n: n["cells"].append(n["cells"].pop(n["cells"].index(find(n, "## Claims")))),
        "its last sections are out of order",
    ),
    "figure without description": (
        lambda n: find(n, "figure(").update(source="figure(chart())"),
        "cell 5: figure() has no description; say in a sentence",
    ),
    "no explorable": (lambda n: find(n, "explore(").update(source="1"), "has no explorable"),
    "no source shown": (lambda n: find(n, "show(").update(source="1"), "shows no source"),
    "no thumbnail": (
        lambda n: find(n, "figure(")["metadata"].pop("tags"),
        "0 cells are tagged 'thumbnail'",
    ),
    "two claims": (
        lambda n: find(n, "claims.add").update(
            source=find(n, "claims.add")["source"].split("\n", 1)[1]
        ),
        "adds 2 claims; measure at least three",
    ),
    "typed verdict": (
        lambda n: find(n, "claims.add").update(
            source=find(n, "claims.add")["source"].replace("holds=m < 1", "holds=True", 1)
        ),
        "a claim's verdict is typed; compare numbers of the run",
    ),
    "typed measurement": (
        lambda n: find(n, "claims.add").update(
            source=find(n, "claims.add")["source"].replace("format(m)", "'0.5'", 1)
        ),
        "a claim's measured value is typed",
    ),
    "syntax error": (
        lambda n: find(n, "frame").update(source="frame ="),
        "not Python (line 1",
    ),
    "unpaired markers": (
        lambda n: find(n, "def half").update(
            source=find(n, "def half")["source"].replace("# END SOLUTION", "")
        ),
        "solution markers do not pair up",
    ),
    "stub is not Python": (
        lambda n: find(n, "def half").update(
            source="# BEGIN SOLUTION\ndef half(x):\n    # END SOLUTION\n    return x"
        ),
        "without its solution it is not Python; keep the signature outside",
    ),
    "assert without message": (
        lambda n: find(n, "assert half").update(source="assert half(1) == 0.5"),
        "an assert without a message (line 1)",
    ),
    "no check": (
        lambda n: n["cells"].remove(find(n, "assert half")),
        "no check cell follows the answer",
    ),
    "chapter's variables": (
        lambda n: find(n, "assert half").update(source="assert half(1) == trained, 'no'"),
        "the exercise uses trained of the chapter; import or define them",
    ),
    "grade_id twice": (
        lambda n: find(n, "def half")["metadata"]["nbgrader"].update(grade_id="ntk-ex2"),
        "grade_id 'ntk-ex2' stands 2 times",
    ),
    "malformed nbgrader": (
        lambda n: find(n, "def half")["metadata"]["nbgrader"].update(locked=True),
        "nbgrader's metadata is malformed; set locked: False",
    ),
    "no points": (
        lambda n: find(n, "assert half")["metadata"]["nbgrader"].pop("points"),
        "a check cell without points",
    ),
    "two exercises": (
        lambda n: [n["cells"].remove(find(n, s)) for s in ("def half", "assert half")],
        "has 2 exercises; write at least three",
    ),
    "solution elsewhere": (
        lambda n: find(n, "frame").update(source="# BEGIN SOLUTION\n1\n# END SOLUTION"),
        "a solution outside an answer cell",
    ),
    "unknown citation": (
        lambda n: find(n, "## Where").update(source="## Where it breaks\n\n{cite}`nobody2020`"),
        "cites 'nobody2020', which is unknown",
    ),
    "dead link": (
        lambda n: find(n, "## Where").update(source="## Where it breaks\n\n[x](../../lib/no.py)"),
        "links to ../../lib/no.py, which does not exist",
    ),
    "typed number": (
        lambda n: find(n, "## Where").update(source="## Where it breaks\n\nIt reaches 0.973."),
        "0.973 typed into the prose; compute it",
    ),
}


WRONG |= {
    "nobody gives it": (
        lambda n: n["metadata"]["book"].update(needs=["gradient decent"]),
        "needs 'gradient decent', which no earlier chapter gives; name a chapter or what one "
        "gives, or add it to book/background.yml; did you mean 'gradient descent'?",
    ),
    "given by itself": (
        lambda n: n["metadata"]["book"].update(needs=["kernel regime"]),
        "needs 'kernel regime', which it gives itself; take it out of needs or gives",
    ),
    "a later chapter": (
        lambda n: n["metadata"]["book"].update(needs=["pointer_networks"]),
        "needs 'pointer_networks', which comes later in the book; need something earlier",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_in_one_line(project, name):
    change, line = WRONG[name]
    findings = edit(project, change)
    assert any(line in finding for finding in findings), findings
    assert all("\n" not in finding for finding in findings)
    assert all(finding.startswith("chapters/width/ntk.ipynb: ") for finding in findings)


@pytest.mark.parametrize(
    "text",
    [
        "$0.2825$ is given",
        "`x = 0.125`",
        "version 2.13.0",
        "3.5 times",
        "arXiv 1806.07572",
        "a step of 0.05 or 0.001",
        "The paper reports 0.8342.",
    ],
)
def test_numbers_that_no_run_gave_are_left_alone(project, text):
    def change(notebook):
        find(notebook, "## Where")["source"] = f"## Where it breaks\n\n{text}"

    assert edit(project, change) == []


def test_the_three_rooms(project):
    (project.root / "lib/width/ntk.py").unlink()
    (project.root / "tests/width/test_ntk.py").unlink()
    (project.root / "lib/width/deep_kernel_machine.py").write_text("")
    (project.root / "lib/width/shared.py").write_text("")
    findings = "\n".join(map(str, check.check(project)))
    assert "ntk.ipynb: has no module; write lib/width/ntk.py" in findings
    assert "ntk.ipynb: has no tests; write tests/width/test_ntk.py" in findings
    assert "lib/width/deep_kernel_machine.py: has no chapter" in findings
    assert "lib/width/shared.py: no paper of that name" in findings


def test_a_package_is_a_module_too(project):
    (project.root / "lib/width/ntk.py").unlink()
    (project.root / "lib/width/ntk").mkdir()
    (project.root / "lib/width/ntk/__init__.py").write_text("")
    assert not any("has no module" in str(finding) for finding in check.check(project))


def test_contents_and_bibliography(project):
    toc = project.root / "_toc.yml"
    toc.write_text(toc.read_text().replace("file: preface", "file: prefaces"))
    bibliography = project.root / "book/references.bib"
    bibliography.write_text(2 * bibliography.read_text())
    findings = "\n".join(map(str, check.check(Source(project.root))))
    assert "_toc.yml: lists prefaces, which does not exist" in findings
    assert "references.bib: key jacot2018ntk stands 2 times; keep one" in findings


def test_background_and_paths(project):
    background = project.root / "book/background.yml"
    background.write_text(background.read_text() + "More: [Linear_Algebra]\n")
    paths = project.root / "book/readers.yml"
    paths.write_text(paths.read_text().replace("width/ntk", "width/nkt"))
    findings = "\n".join(map(str, check.check(Source(project.root))))
    assert "book/background.yml: 'linear algebra' stands there twice; keep one" in findings
    assert "lists 'width/nkt', which is no paper of book/papers.csv" in findings
    assert "did you mean 'width/ntk'?" in findings


def test_the_budget(project):
    path = project.root / "_build/report.json"
    content = json.loads(path.read_text())
    content["chapters"][0] |= {"cpu_seconds": 61.2, "peak_mb": 2500.0}
    path.write_text(json.dumps(content))
    lines = [str(finding) for finding in check.check(project)]
    assert len(lines) == 2
    assert "takes 61 s at small scale; 45 s on one thread is the most" in lines[0]
    assert "takes 2500 MB at small scale" in lines[1]


def test_a_broken_notebook_is_a_finding(project):
    project.chapters[0].path.write_text("{")
    (finding,) = check.check(Source(project.root))
    assert "not a notebook" in str(finding)


def test_chapters_can_be_named(project):
    assert [c.name for c in check.named(project, ["ntk"])] == ["width/ntk"]
    assert check.named(project, []) is None
    with pytest.raises(BookError, match="unknown chapter 'nkt'; did you mean"):
        check.named(project, ["nkt"])


def test_it_imports_neither_torch_nor_lib():
    code = (
        "import sys; from book.__main__ import main; status = main(['check']);"
        "bad = [m for m in sys.modules if m == 'torch' or m == 'lib' or m.startswith('lib.')];"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
