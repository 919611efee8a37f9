"""The copies for Colab: what stands in them, and that they run where Colab's versions are.

The last tests need an environment with Colab-like versions (`tests/envs/colab.txt`), made under
`_build/envs` when it is first needed. PyTorch is seen from this environment. Where it
cannot be made (no network) they are skipped; in CI they fail. BOOK_SITE_ALL=1 runs every copy.
"""

from __future__ import annotations

import ast
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from book import cache, colab, colab_pass
from book.__main__ import main
from book.plain import Plain
from book.source import ROOT, Source, SourceError, text_of
from tests.book import sampling
from tests.book.fixtures import homework
from tests.book.fixtures.tree import Tree, notebook

CONFIG = """\
title: A book
repository:
  url: https://github.com/owner/name
  branch: main
html:
  baseurl: https://owner.github.io/name/
"""
BIB = """\
@article{one2018, author = {Kl{\\'e}ment, Ada}, title = {A {Kernel}}, year = 2018,
  eprint = {1806.07572}, archiveprefix = {arXiv}}
@article{two2019, author = {Aa, A. and Bb, B.}, title = {Two}, year = 2019, doi = {10.1/x}}
@article{three2020, author = {von Aa, A. and Bb, B. and Cc, C.}, title = {Three}, year = 2020}
"""
SITE = "https://owner.github.io/name/"


def markdown(text, name="m"):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


@pytest.fixture
def tree(tmp_path):
    tree = homework.small_book(tmp_path / "book")
    tree.write("_config.yml", CONFIG)
    return tree


def press(tree, *arguments):
    try:
        return main(["colab", *map(str, arguments), "--root", str(tree.root)])
    except SystemExit as end:
        return end.code


# ---------------------------------------------------------------- Markdown


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    tree = Tree(tmp_path_factory.mktemp("plain"))
    tree.write("_config.yml", CONFIG)
    tree.write("book/references.bib", BIB)
    tree.write("book/pages/notation.md", "(symbols)=\n# Notation\n")
    tree.write("book/papers.csv", "part,slug,title\nwidth,planned,A plan\n")
    tree.write("lib/width/ntk.py", "")
    tree.write("chapters/width/index.md", "# Width\n")
    tree.write("chapters/width/dot.png", "")
    tree.chapter("width/other", title="The other chapter")
    tree.chapters.append("width/ntk")
    tree.toc()
    cells = [
        markdown("# A title\n\n$$a = b$$ (first)\n\n(here)=\n## Some words!\n\n[x](#some-words)")
    ]
    path = tree.write("chapters/width/ntk.ipynb", notebook(cells, title="Kernels"))
    source = Source(tree.root)
    return Plain(source, next(c for c in source.all_chapters if c.path == path))


@pytest.mark.parametrize(
    ("myst", "expected"),
    [
        ("Plain *text* with `code` and $x_{i}$.", "Plain *text* with `code` and $x_{i}$."),
        ("```{note}\nOne.\n\nTwo.\n```", "> **Note**\n>\n> One.\n>\n> Two."),
        (":::{tip} At once\nmore\n:::", "> **Tip**\n>\n> At once\n> more"),
        (":::{admonition} Why `x`?\n:class: tip\nSo.\n:::", "> **Why `x`?**\n>\n> So."),
        (
            "::::{warning}\n:::{note}\nInner.\n:::\n::::",
            "> **Warning**\n>\n> > **Note**\n> >\n> > Inner.",
        ),
        (
            ":::{dropdown} Proof\nBy $x$.\n:::",
            "<details><summary>Proof</summary>\n\nBy $x$.\n\n</details>",
        ),
        ("- a\n\n  ```{note}\n  b\n  ```", "- a\n\n  > **Note**\n  >\n  > b"),
        ("```{math}\n:label: first\nx = 1\n```", "$$\nx = 1 \\tag{1}\n$$"),
        ("$$a = b$$ (first)", "$$a = b \\tag{1}$$"),
        ("By {eq}`first`.", "By (1)."),
        ("{math}`x^2`", "$x^2$"),
        (
            "\\begin{align}\na &= b\n\\end{align}",
            "$$\n\\begin{aligned}\na &= b\n\\end{aligned}\n$$",
        ),
        ("```{code-block} python\n:caption: x\n{note}\n```", "```python\n{note}\n```"),
        ("```python\n{cite}`not-one`\n```", "```python\n{cite}`not-one`\n```"),
        ("A brace `{x}` and `{cite}`", "A brace `{x}` and `{cite}`"),
        ("It is $\\frac{{a}}{{b}}$.", "It is $\\frac{{a}}{{b}}$."),
        ("{cite}`one2018`", "([Klément, 2018](https://arxiv.org/abs/1806.07572))"),
        ("{cite:t}`two2019` say", "[Aa and Bb (2019)](https://doi.org/10.1/x) say"),
        (
            "{cite:p}`one2018, three2020`",
            "([Klément, 2018](https://arxiv.org/abs/1806.07572); von Aa et al., 2020)",
        ),
        ("[the other](other.ipynb)", f"[the other]({SITE}chapters/width/other.html)"),
        ("[](other.ipynb)", f"[The other chapter]({SITE}chapters/width/other.html)"),
        ("{doc}`other`", f"[The other chapter]({SITE}chapters/width/other.html)"),
        ("{ref}`symbols`", f"[Notation]({SITE}notation.html#symbols)"),
        ("{ref}`the symbols <symbols>`", f"[the symbols]({SITE}notation.html#symbols)"),
        ("[notation](../../notation.md)", f"[notation]({SITE}notation.html)"),
        ("[its part](index.md)", f"[its part]({SITE}chapters/width/index.html)"),
        ("[a plan](planned.ipynb)", "a plan"),
        (
            "[code](../../lib/width/ntk.py#L3)",
            "[code](https://github.com/owner/name/blob/main/lib/width/ntk.py#L3)",
        ),
        (
            "![dot](dot.png)",
            "![dot](https://raw.githubusercontent.com/owner/name/main/chapters/width/dot.png)",
        ),
        ("[there](https://example.org/a_b)", "[there](https://example.org/a_b)"),
        ("[below](#here)", "[below](#here)"),
        (
            "(here)=\n## Some words!",
            '<a name="here"></a>\n\n<a name="some-words"></a>\n\n## Some words!',
        ),
        (
            "[text]{.small} and [link](other.ipynb){.button}",
            f"text and [link]({SITE}chapters/width/other.html)",
        ),
        ("Term\n: What it is\n  and more", "**Term**  \nWhat it is\nand more"),
        ("Said[^a].\n\n[^a]: Where.", "Said<sup>1</sup>.\n\n<sup>1</sup>  Where."),
        ("% a comment\nText\n\n+++\n\nMore", "Text\n\nMore"),
        (
            "{sub}`2` {kbd}`Ctrl` {abbr}`NTK (kernel)`",
            '<sub>2</sub> <kbd>Ctrl</kbd> <abbr title="kernel">NTK</abbr>',
        ),
        (
            "```{list-table} Sizes\n:header-rows: 1\n* - a\n  - b\n* - 1\n  - 2\n```",
            "**Sizes**\n\n| a | b |\n| --- | --- |\n| 1 | 2 |",
        ),
        ("- [ ] a task", "- [ ] a task"),
        ("| a | b |\n|---|---|\n| $x$ | `y` |", "| a | b |\n|---|---|\n| $x$ | `y` |"),
    ],
)
def test_myst_becomes_plain(plain, myst, expected):
    assert plain.text(myst) == expected


@pytest.mark.parametrize(
    ("myst", "says"),
    [
        ("```{mermaid}\na --> b\n```", "the directive {mermaid}"),
        ("> ```{note}\n> quoted\n> ```", "cannot translate '> ```{note}'"),
        ("{strange}`x`", "the role {strange}`x`"),
        ("{cite}`nobody1999`", "'nobody1999', which is not in book/references.bib"),
        ("{eq}`missing`", "no equation has that label"),
        ("{ref}`missing`", "no page has that label"),
        ("[x](#missing)", "no page has that label"),
        ("[x](missing.ipynb)", "no such file in the book"),
        ("![x](missing.png)", "no such file in the book"),
        ("Hello {{ name }}", "no such substitution"),
        ("<doc:other>", "write [text](target)"),
        (":::{note}\nnever ends", "is never closed"),
    ],
)
def test_what_has_no_translation_is_an_error(plain, myst, says):
    with pytest.raises(SourceError, match=re.escape(says)):
        plain.text(myst)


# ---------------------------------------------------------------- the copies


def test_a_copy(tree, tmp_path):
    out = tmp_path / "out"
    assert press(tree, "--out", out, "--ref", "v1.2") == 0
    made = json.loads((out / "chapters/width/small.ipynb").read_text())
    codes = [c for c in made["cells"] if c["cell_type"] == "code"]
    install = text_of(codes[0])
    assert '%pip install -q "git+https://github.com/owner/name@v1.2"' in install
    assert 'if "google.colab" in sys.modules:' in install
    assert codes[0]["metadata"]["cellView"] == "form"
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in codes)
    assert made["metadata"]["kernelspec"]["name"] == "python3"
    assert "accelerator" not in made["metadata"]
    assert made["metadata"]["colab"]["name"] == "small.ipynb"
    whole = "\n".join(map(text_of, made["cells"]))
    for secret in ("SOLUTION", "2 * x + step", "k * x", '("one", 1)}', "HIDDEN", "secret_place"):
        assert secret not in whole
    assert "# = double" not in whole and "your code here" in whole
    assert 'scale = "small"  #@param ["small", "full"]' in whole
    assert f"({SITE}chapters/width/small.html)" in text_of(made["cells"][0])
    assert "the chapter itself" in whole, "all of the chapter"
    assert len({c["id"] for c in made["cells"]}) == len(made["cells"])
    assert json.loads((out / "colab.json").read_text())["ref"] == "v1.2"


def test_folded_and_hidden_code_stays_runnable(tree):
    cells = [
        markdown("# T"),
        {**homework.cell("code", "a", "Markdown(f'{1} [o](../width/small.ipynb)')")},
        homework.cell("code", "b", "x = 1\nfigure(x)"),
        homework.cell("code", "c", "%%time\nfigure(x)"),
    ]
    for cell, tag in zip(cells[1:], ("remove-input", "hide-input", "hide-input")):
        cell["metadata"]["tags"] = [tag]
    tree.write("chapters/width/small.ipynb", notebook(cells, title="T", gpu=True))
    made = colab.copy_of(Source(tree.root), homework.chapter(tree), "main")
    codes = {c["id"]: c for c in made["cells"] if c["cell_type"] == "code"}
    assert [codes[n]["metadata"].get("cellView") for n in "abc"] == ["form", "form", None]
    assert text_of(codes["a"]) == f"Markdown(f'{{1}} [o]({SITE}chapters/width/small.html)')"
    assert text_of(codes["b"]).startswith("#@title The code of this figure\nx = 1")
    assert text_of(codes["c"]).startswith("%%time")
    assert made["metadata"]["accelerator"] == "GPU"


def test_what_cannot_be_translated_names_file_and_cell(tree, tmp_path, capsys):
    tree.chapter("width/fine")
    cells = [markdown("# T"), markdown("```{mermaid}\nx\n```", "n")]
    tree.write("chapters/width/small.ipynb", notebook(cells))
    assert press(tree, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "FAILED chapters/width/small.ipynb: cell 1: cannot translate" in said.err
    assert (tmp_path / "out/chapters/width/fine.ipynb").is_file(), "the others are made"
    cells = [markdown("# T"), homework.cell("code", "a", "Markdown('{cite}`one`')")]
    tree.write("chapters/width/small.ipynb", notebook(cells))
    assert press(tree, "small", "--out", tmp_path / "out") == 1
    assert "cell 1: computes Markdown with '{cite}`'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "role"),
    [
        ('Markdown("{cite}`one`")', "{cite}`"),
        ('x = 1\nMarkdown(f"{x} {{cite}}`one`")', "{cite}`"),
        ('Markdown(f"""\n```{{note}}\n{x}\n```""")', "```{note}"),
        ('Markdown(f"the slope `{slope}`, and `{{x}}` in braces")', None),
        ('print("{cite}`one`")', None),
    ],
)
def test_roles_in_computed_markdown_are_found(code, role):
    assert colab.computed_role(code) == role


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["smal"], "unknown chapter 'smal'; did you mean 'width/small'?"),
        (["--ref", "a b"], "'a b' is not the name of a branch, tag or commit"),
        (["--ref", "../up"], "'../up' is not the name"),
        (["--out", "{file}"], "is a file; name a folder"),
        (["--out", "{full}"], "holds other files; name a new folder or an earlier one"),
    ],
)
def test_bad_requests_are_one_line(tree, tmp_path, capsys, arguments, says):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    places = {name: tmp_path / name for name in ("file", "full")}
    assert press(tree, *(a.format(**places) for a in arguments)) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_site_without_address(tree, tmp_path, capsys):
    tree.write("_config.yml", "repository:\n  url: https://github.com/owner/name\n")
    assert press(tree, "--out", tmp_path / "out") == 2
    assert "html.baseurl is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_writing_again_touches_what_changed_and_removes_what_is_gone(tree, tmp_path):
    out = tmp_path / "out"
    tree.chapter("width/fine")
    press(tree, "--out", out)
    kept = out / "chapters/width/small.ipynb"
    before = kept.stat().st_mtime_ns
    (out / ".git").mkdir()
    (tree.root / "chapters/width/fine.ipynb").unlink()
    tree.chapters.remove("width/fine")
    tree.toc()
    assert press(tree, "--out", out) == 0
    assert kept.stat().st_mtime_ns == before
    assert not (out / "chapters/width/fine.ipynb").exists() and (out / ".git").is_dir()


def ran(check, name="checked", **namespace):
    """What a check cell prints, run with these names."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        exec(compile(colab.soft(check), name, "exec"), namespace)
    return said.getvalue()


def test_a_check_says_what_it_finds_and_goes_on():
    check = 'for i in range(2):\n    assert x > 0, "make it positive"\n\n'
    check += 'assert x < 9, """too\n  large"""'
    assert ran(check, x=1) == "Passed.\n"
    assert ran(check, x=-1) == "Not yet: make it positive\n"
    assert ran(check, x=10) == "Not yet: too\n  large\n", "strings keep their indentation"
    assert "TypeError" in ran(check, x=None)
    with pytest.raises(SourceError, match="line 1"):
        colab.soft("assert (")


def test_every_chapter_of_the_book_has_a_copy(tmp_path):
    source = Source()
    assert main(["colab", "--out", str(tmp_path / "out"), "--ref", "main"]) == 0
    found = colab_pass.copies(tmp_path / "out")
    assert list(found) == sorted(c.name for c in source.chapters)
    for name, path in found.items():
        text = path.read_text("utf-8")
        nbformat.validate(json.loads(text))
        assert "SOLUTION" not in text and "HIDDEN TESTS" not in text, name
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code" and cell["id"] != "install":
                ast.parse(text_of(cell)), name


# ---------------------------------------------------------------- the record of passes


def test_passes_are_written_down_and_read(tmp_path):
    path = tmp_path / "book" / "results" / "colab_passes.json"
    assert colab_pass.last_pass(tmp_path, "width/ntk") is None
    colab_pass.record(path, "width/ntk", 31.5, "abc")
    colab_pass.record(path, "width/other", 2.0)
    assert list(colab_pass.read(path)) == ["width/ntk", "width/other"]
    row = colab_pass.read(path)["width/ntk"]
    assert (row["ref"], row["seconds"]) == ("abc", 31.5) and row["torch"]
    day = colab_pass.last_pass(tmp_path, "width/ntk")
    assert abs((datetime.datetime.now(datetime.UTC).date() - day).days) <= 1
    for broken in (
        "",
        "[]",
        '{"format": 2, "chapters": {}}',
        '{"format": 1}',
        '{"format": 1, "chapters": {"a": 1}}',
    ):
        path.write_text(broken)
        assert colab_pass.read(path) == {}


def test_nothing_to_run_is_no_pass(tmp_path, capsys):
    assert colab_pass.main([str(tmp_path)]) == 2
    assert "no copies in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ci", "publish", "weekly"])
def test_scripts_of_the_workflows_parse(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))
    scripts = [s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s]
    assert scripts
    for script in scripts:
        run("bash", "-n", "-c", script)
        for python in re.findall(r"<<'END'\n(.*?)\nEND$", script, re.S | re.M):
            ast.parse(python)


# ---------------------------------------------------------------- where Colab's versions are

ENVS = ROOT / "_build" / "envs"
WANTED = ROOT / "tests" / "envs" / "colab.txt"
APART = ("numpy", "pandas", "altair", "ipywidgets", "ipython", "scikit-learn")


def run(*command, check=True, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=900, **options
    )
    assert not check or not done.returncode, f"{command}: {(done.stdout + done.stderr)[-3000:]}"
    return done


def pip(python, *arguments, **options):
    return run(sys.executable, "-m", "pip", "--python", python, *arguments, **options)


def installed(python):
    rows = json.loads(pip(python, "list", "--format", "json").stdout)
    return {cache.canonical(row["name"]): row["version"] for row in rows}


def quiet(home):
    """An environment in which a kernel sees nothing of this checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    env.pop("PYTHONPATH", None)
    return env | {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def link_torch(site, python):
    """Let another environment see this one's PyTorch, and what only PyTorch brings."""
    there, wanted, seen = installed(python), ["torch", "triton"], set()
    while wanted:
        name = cache.canonical(wanted.pop())
        if name in there or name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted += cache._requires(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            origin = Path(distribution.locate_file(top))
            if not (site / top).exists():
                (site / top).symlink_to(origin.resolve())


@pytest.fixture(scope="module")
def base():
    """The folder of an environment like Colab's, without the book; made if it does not exist."""
    where = sysconfig.get_path("purelib")
    text = "\n".join([WANTED.read_text("utf-8"), sys.version, where])
    folder = ENVS / f"colab-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    ENVS.mkdir(parents=True, exist_ok=True)
    with open(ENVS / ".colab.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "before.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            run(sys.executable, "-m", "venv", "--without-pip", folder)
            python = folder / "bin" / "python"
            made = pip(python, "install", "--quiet", "-r", WANTED, check=False)
            if made.returncode:
                reason = f"no environment like Colab's: {made.stderr.strip().splitlines()[-1:]}"
                pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
            ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
            link_torch(Path(run(python, "-c", ask).stdout.strip()), python)
            (folder / "before.json").write_text(json.dumps(installed(python), indent=1))
        yield folder


@pytest.fixture(scope="module")
def reader(base, tmp_path_factory):
    """The Python of that environment after `pip install` of this checkout's wheel."""
    python, stamp = base / "bin" / "python", base / "installed.json"
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    (wheel,) = out.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if stamp.exists() and json.loads(stamp.read_text())["wheel"] == digest:
        return python
    stamp.unlink(missing_ok=True)
    before = json.loads((base / "before.json").read_text())
    if more := sorted(set(installed(python)) - set(before)):
        pip(python, "uninstall", "--quiet", "--yes", *more)
    began = time.monotonic()
    pip(python, "install", "--quiet", wheel)
    row = {"wheel": digest, "seconds": time.monotonic() - began, "after": installed(python)}
    stamp.write_text(json.dumps(row, indent=1))
    return python


@pytest.mark.slow
def test_nothing_that_was_there_is_replaced(base, reader):
    before = json.loads((base / "before.json").read_text())
    row = json.loads((base / "installed.json").read_text())
    for name in APART:
        assert before[name] != importlib.metadata.version(name), f"{name} is the lock's"
    assert {name: row["after"].get(name) for name in before} == before
    new = set(row["after"]) - set(before)
    assert "ideas-that-run" in new
    assert not {n for n in new if n.startswith(("torch", "nvidia", "jupyter", "notebook"))}, new
    assert len(new) <= 8, f"much to install for one chapter: {sorted(new)}"
    assert "No broken requirements" in pip(reader, "check").stdout
    assert row["seconds"] < 120


SMALL = """\
import lib, pandas as pd, altair as alt
from lib.core.plots import figure
from lib.core.explore import explore
from lib.core.show import show

assert "site-packages" in lib.__file__
chart = lambda f: alt.Chart(f, title="A line").mark_line().encode(x="x", y="y")
data = pd.DataFrame({"x": [0, 1], "y": [0, 1]})
figure(chart(data), description="A straight line that rises from zero to one.")
"""
EXPLORE = """\
explore(
    lambda k: pd.DataFrame({"x": [0, 1], "y": [0, k]}),
    chart,
    description="A straight line; the larger k is, the steeper it rises.",
    k=[1, 2],
)
"""


@pytest.mark.slow
def test_a_small_copy_first(tree, reader, tmp_path):
    data = notebook(
        [
            markdown("# T"),
            homework.cell("code", "a", SMALL),
            homework.cell("code", "b", EXPLORE),
            homework.cell("code", "c", "show(figure)"),
            *homework.exercise("small", 1, homework.SCALE, homework.CHECK_SCALE),
        ]
    )
    tree.write("chapters/width/small.ipynb", data)
    out = tmp_path / "out"
    assert press(tree, "--out", out) == 0
    script = "import json, sys; sys.path.insert(0, sys.argv[1]); import colab_pass; "
    script += "r = colab_pass.run(colab_pass.Path(sys.argv[2])); print(json.dumps(r))"
    path = out / "chapters/width/small.ipynb"
    row = json.loads(run(reader, "-c", script, ROOT / "book", path, env=quiet(tmp_path)).stdout)
    assert row["error"] is None
    outputs = {c["id"]: c.get("outputs", []) for c in row["notebook"]["cells"]}
    (figure,), (explorer,) = (
        [o["data"] for o in outputs[n] if "data" in o and "text/html" in o["data"]] for n in "ab"
    )
    assert "image/svg+xml" in figure
    assert "application/vnd.jupyter.widget-view+json" in explorer
    said = "".join(o.get("text", "") for o in outputs["small-ex1-check"])
    assert "Not yet:" in said and "No module named 'lib.small'" in said


@pytest.mark.slow
def test_a_copy_that_fails_says_where(tree, reader, tmp_path):
    data = notebook([markdown("# T"), homework.cell("code", "a", "1 / 0")])
    tree.write("chapters/width/small.ipynb", data)
    alone = homework.cell("code", "a", "import os\nassert os.listdir() == []")
    tree.chapter("width/fine")
    tree.write("chapters/width/fine.ipynb", notebook([markdown("# T"), alone]))
    out, passes = tmp_path / "out", tmp_path / "passes.json"
    press(tree, "--out", out)
    command = [reader, ROOT / "book" / "colab_pass.py", out, "--passes", passes]
    done = run(*command, check=False, env=quiet(tmp_path))
    assert done.returncode == 1
    assert "width/small: " in done.stdout and "cell 2: ZeroDivisionError" in done.stdout
    assert list(colab_pass.read(passes)) == ["width/fine"]


@pytest.mark.slow
def test_the_install_cell_installs_lib_of_that_commit(base, reader, tmp_path):
    """The cell as it stands, with `google.colab` there and the repository on this machine."""
    repository = tmp_path / "repository"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lib", repository / "lib", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository / name)

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        return run("git", *identity, *arguments, cwd=repository).stdout.strip()

    git("init", "-q")
    git("add", "--all", "--force")
    git("commit", "-q", "-m", "m")
    commit = git("rev-parse", "HEAD")
    source = Source()
    ask = "from importlib.metadata import distribution as d\n"
    ask += "print(d('ideas-that-run').read_text('direct_url.json'))"
    cells = [
        homework.cell("code", "before", "import sys, types; sys.modules['google.colab'] = types"),
        colab.install_cell(source, commit),
        homework.cell("code", "after", ask),
    ]
    path = tmp_path / "install.ipynb"
    path.write_text(notebook(cells))
    env = quiet(tmp_path) | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
        "GIT_CONFIG_VALUE_0": source.address,
    }
    stamp = base / "installed.json"
    row = stamp.read_text()
    stamp.unlink()
    pip(reader, "uninstall", "--quiet", "--yes", "ideas-that-run")
    script = "import json, sys; sys.path.insert(0, sys.argv[1]); import colab_pass; "
    script += "r = colab_pass.run(colab_pass.Path(sys.argv[2])); print(json.dumps(r))"
    result = json.loads(run(reader, "-c", script, ROOT / "book", path, env=env).stdout)
    assert result["error"] is None
    said = "".join(o.get("text", "") for o in result["notebook"]["cells"][-1]["outputs"])
    assert json.loads(said)["vcs_info"]["commit_id"] == commit
    assert installed(reader) == json.loads(row)["after"]
    stamp.write_text(row)


def chosen(source):
    """Copies to run today: of what changed, of a user of each changed shared module, an eighth."""
    changed = sampling.changes(ROOT)
    pages = [f"{chapter.docname}.html" for chapter in source.chapters]
    names = sampling.sample(pages, changed, sampling.turn(ROOT), few=0)
    names = [name.removeprefix("chapters/").removesuffix(".html") for name in names]
    modules = [path for path in changed if path.startswith("lib/")]
    library = cache.Library(ROOT)
    needs = {c.name: library.needs(c.notebook).files for c in source.chapters} if modules else {}
    for file in modules:
        users = [name for name in needs if file in needs[name]]
        if users and not set(users) & set(names):
            names.append(users[0])
    return names


def test_a_changed_module_is_run_by_one_copy_at_least(monkeypatch):
    monkeypatch.delenv("BOOK_SITE_ALL", raising=False)
    source, changed = Source(), []
    monkeypatch.setattr(sampling, "changes", lambda root: changed)
    share = chosen(source)
    assert len(share) == len(set(share)) < len(source.chapters)
    first = source.chapters[0].name
    for file in ("lib/core/seeds.py", f"chapters/{first}.ipynb"):
        changed[:] = [file]
        made = chosen(source)
        assert set(share) <= set(made) and len(made) <= len(share) + 1
        assert made and (file == "lib/core/seeds.py" or first in made)


@pytest.mark.slow
def test_copies_run_to_their_end(base, reader, tmp_path):
    source, out = Source(), tmp_path / "out"
    assert main(["colab", "--out", str(out), "--ref", "main"]) == 0
    copies, library, failed = colab_pass.copies(out), cache.Library(ROOT), []
    (base / "passed").mkdir(exist_ok=True)
    by_name = {chapter.name: chapter for chapter in source.chapters}
    for name in chosen(source):
        files = library.needs(by_name[name].notebook).files
        key = json.dumps([copies[name].read_text("utf-8"), sorted(files.items())])
        passed = base / "passed" / hashlib.sha256(key.encode()).hexdigest()[:32]
        if passed.exists():
            continue
        command = [reader, ROOT / "book" / "colab_pass.py", out, name]
        done = run(*command, check=False, env=quiet(tmp_path))
        if done.returncode:
            failed.append((done.stdout + done.stderr)[-3000:])
        else:
            passed.write_text(f"{name}\n{done.stdout}")
    assert not failed, "\n\n".join(failed)
