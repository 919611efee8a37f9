"""A small project with one chapter that looks like a real one, and what its run would have left.

The outputs are made by calling the library's own display objects, so that no kernel has to start.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from book.source import ROOT, Source
from lib.core.claims import Claims
from lib.core.explore import explore
from lib.core.plots import figure
from lib.core.show import show

PART, SLUG = "width", "ntk"
DESCRIPTION = "Movement falls with width for one, two and three hidden layers."
SOLUTION = "the_answer_is_forty_two"
PNG = (  # ten by ten pixels of one gray
    "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAYAAACNMs+9AAAAFUlEQVR42mNk"
    "+M9Qz0AEYBxVSF+FAAhKDveksOjmAAAAAElFTkSuQmCC"
)
MODULE = '''\
"""A kernel (nobody, 2018). Half of it."""

from __future__ import annotations

import a_package_that_does_not_exist


class Kernel:
    """Holds a *number*_ and ``half`` of it."""

    def __init__(self, number: float = 1.0) -> None:
        self.number = number

    @property
    def half(self) -> float:
        """Half of it."""
        return self.number / 2

    def _hidden(self) -> None:
        """Not for readers."""


def kernel(x: Float[Tensor, "n d"], *, scale: float = 0.5) -> Float[Tensor, "n"]:
    """Half of ``x``, eq. (3) with $n$ samples.

    A table:

        n   d
        1   2

    Args:
        scale: what to multiply by,
            on two lines.

    Raises:
        ValueError: ``x`` is negative.
    """
    return x / 2


def twice(x: Twice) -> Kernel:
    """A type of which there are two."""


def _private() -> None:
    """Not for readers."""
'''
TWICE = '"""Another module."""\n\n\nclass Twice:\n    """One of two classes of this name."""\n'
BOOK = {
    "title": "Very wide networks learn like kernels",
    "part": PART,
    "slug": SLUG,
    "paper": {
        "title": "Neural Tangent Kernel: Convergence and Generalization in Neural Networks",
        "authors": "A. Jacot, F. Gabriel and C. Hongler",
        "year": 2018,
        "venue": "NeurIPS",
        "arxiv": "1806.07572",
        "key": "jacot2018ntk",
    },
    "needs": ["linear algebra", "gradient descent"],
    "gives": ["kernel regime", "feature_learning"],
    "minutes": 25,
}


def project(root: Path) -> Source:
    """Copy the book's frame to `root`, with the sample as its only chapter, already run."""
    shutil.copytree(ROOT / "book" / "pages", root / "book" / "pages")
    for name in ("static", "templates"):
        shutil.copytree(ROOT / "book" / name, root / "book" / name)
    for name in ("papers.csv", "references.bib", "background.yml", "readers.yml"):
        shutil.copy(ROOT / "book" / name, root / "book" / name)
    shutil.copy(ROOT / "_config.yml", root / "_config.yml")
    module = root / "lib" / PART / f"{SLUG}.py"
    module.parent.mkdir(parents=True)
    module.write_text(MODULE)
    for name in ("one", "two"):
        (root / "lib" / "models").mkdir(exist_ok=True)
        (root / "lib" / "models" / f"{name}.py").write_text(TWICE)
    test = root / "tests" / PART / f"test_{SLUG}.py"
    test.parent.mkdir(parents=True)
    test.write_text("def test_nothing():\n    pass\n")
    folder = root / "chapters" / PART
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "chapters" / PART / "index.md", folder / "index.md")
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    root.joinpath("_toc.yml").write_text(with_chapter(toc))
    source = Source(root)
    (folder / f"{SLUG}.ipynb").write_text(json.dumps(notebook(source), indent=1))
    leave_run(root, executed(source))
    return Source(root)


def with_chapter(toc: str) -> str:
    """The book's contents with every chapter taken out and the sample put in."""
    import yaml

    content = yaml.safe_load(toc)
    content["parts"] = [
        part
        for part in content["parts"]
        if not any(str(page.get("file", "")).startswith("chapters/") for page in part["chapters"])
    ]
    opening = {"file": f"chapters/{PART}/index", "sections": [{"file": f"chapters/{PART}/{SLUG}"}]}
    content["parts"].insert(1, {"caption": "Chapters", "chapters": [opening]})
    return yaml.safe_dump(content, sort_keys=False)


def leave_run(root: Path, result: dict[str, Any]) -> None:
    """What `python -m book run` leaves: the executed notebook and the report."""
    path = root / "_build" / "executed" / PART / f"{SLUG}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    row = {
        "part": PART,
        "slug": SLUG,
        "scale": "small",
        "seed": 0,
        "status": "ok",
        "seconds": 23.4,
        "peak_mb": 612.0,
        "claims": claims().rows,
        "error": None,
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
    }
    (root / "_build" / "report.json").write_text(json.dumps({"chapters": [row]}))


def chart(title: str = "Wider networks move less") -> alt.Chart:
    frame = pd.DataFrame(
        {
            "width": [16, 64, 256, 1024] * 3,
            "movement": [0.4, 0.2, 0.1, 0.05, 0.5, 0.25, 0.12, 0.06, 0.3, 0.16, 0.08, 0.04],
            "depth": ["one"] * 4 + ["two"] * 4 + ["three"] * 4,
        }
    )
    return (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            alt.X("width", scale=alt.Scale(type="log"), title="width (units)"),
            alt.Y("movement", title="relative movement"),
            alt.Color("depth", sort=None, title="hidden layers"),
        )
        .properties(title=title)
    )


def explorable():
    def compute(width: int) -> pd.DataFrame:
        return pd.DataFrame(
            {"step": range(20), "loss": [1 / (1 + width * t / 64) for t in range(20)]}
        )

    def draw(frame: pd.DataFrame) -> alt.Chart:
        return (
            alt.Chart(frame)
            .mark_line()
            .encode(
                alt.X("step", title="step"),
                alt.Y("loss", title="loss", scale=alt.Scale(domain=[0, 1])),
            )
            .properties(title="The wider the network, the faster it learns")
        )

    return explore(
        compute,
        draw,
        description="The loss falls over twenty steps; a larger width makes it fall sooner.",
        width=[16, 64, 256],
    )


def claims() -> Claims:
    table = Claims()
    table.add(
        "Three routes to the kernel are one quantity",
        paper="difference 0",
        measured="3.1e-14",
        holds=True,
        exact=True,
    )
    table.add(
        "Movement falls as one over the root of the width",
        paper="slope $-\\tfrac{1}{2}$",
        measured="-0.52 (-0.55 to -0.49), 8 seeds",
        holds=True,
    )
    table.add(
        "The frozen kernel wins on every task",
        paper="error below 0.1",
        measured="0.31 (0.28–0.35)",
        holds=False,
        note="at this width the kernel still moves",
    )
    return table


def bundle(thing: Any) -> dict[str, Any]:
    """The output that a cell ending in `thing` leaves."""
    data, metadata = thing._repr_mimebundle_()
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def notebook(source: Source) -> dict[str, Any]:
    """The chapter as it is stored: no outputs."""
    grade = {"schema_version": 3, "task": False}
    answer = {"nbgrader": {**grade, "grade": False, "solution": True, "locked": False}}
    check = {"nbgrader": {**grade, "grade": True, "solution": False, "locked": True, "points": 2}}
    cells: list[dict[str, Any]] = []

    def markdown(text: str) -> None:
        cells.append({"cell_type": "markdown", "metadata": {}, "source": text})

    def code(text: str, *tags: str, **metadata: Any) -> None:
        metadata = {**({"tags": list(tags)} if tags else {}), **metadata}
        cells.append(
            {
                "cell_type": "code",
                "execution_count": None,
                "metadata": metadata,
                "outputs": [],
                "source": text,
            }
        )

    markdown(
        "# Very wide networks learn like kernels\n\nTraining moves a million weights through a "
        "landscape nobody can draw. Make the network wider and something odd happens: the weights "
        "move less and less, yet the function learns just as well.\n\nThis chapter follows "
        "[Jacot, Gabriel and Hongler](https://arxiv.org/abs/1806.07572)."
    )
    code(source.setup_cell, "setup")
    code('scale = "small"\nseed = 0\ndevice = "auto"', "parameters")
    code(
        'SETTINGS = {\n    "small": dict(widths=[16, 64, 256], steps=100),\n'
        '    "full": dict(widths=[1024, 4096], steps=10_000),\n}\ns = SETTINGS[scale]'
    )
    markdown(
        "## The question\n\nThe kernel is $\\Theta(x, x') = \\sum_p \\partial_p f(x)\\,"
        "\\partial_p f(x')$.\n\n$$\n\\dot f(x) = -\\sum_i \\Theta(x, x_i)\\,(f(x_i) - y_i)\n$$\n\n"
        "See [the next chapter](feature_learning.ipynb) and [the module](../../lib/width/ntk.py)."
    )
    code(
        f'figure(chart(), description="{DESCRIPTION}")',
        "thumbnail",
    )
    code('Markdown(f"The largest movement is {m:.2f}.")', "remove-input")
    code(
        'explore(compute, draw, description="The loss falls over twenty steps.", '
        "width=[16, 64, 256])"
    )
    code("show(fitting.History)")
    code("frame")
    code("picture", mystnb={"image": {"alt": "A small square that is gray all over."}})
    markdown("## Claims")
    row = "claims.add(text, paper='0', measured=format(m), holds=m < 1, exact=%s)\n"
    code(row % True + 2 * (row % False) + "claims")
    markdown("## Where it breaks\n\nWhen features are needed.")
    markdown("## Exercises")
    for number, name in enumerate(("half", "double", "square"), start=1):
        markdown(f"### Exercise {number}: {name}\n\nWrite `{name}`.")
        answer["nbgrader"]["grade_id"] = f"{SLUG}-ex{number}"
        check["nbgrader"]["grade_id"] = f"{SLUG}-ex{number}-check"
        code(
            f"def {name}(x: float) -> float:\n    # BEGIN SOLUTION\n    {SOLUTION} = x\n"
            f"    return {SOLUTION}\n    # END SOLUTION",
            **copy.deepcopy(answer),
        )
        code(f'assert {name}(1) is not None, "return a number"', **copy.deepcopy(check))
    markdown("## At full scale\n\nOne GPU, minutes.")
    markdown("## Further reading\n\nThe paper.")
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return {
        "cells": cells,
        "metadata": {
            "book": copy.deepcopy(BOOK),
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def executed(source: Source) -> dict[str, Any]:
    """The chapter after its run, with everything that a page must not show."""
    result = copy.deepcopy(notebook(source))
    result["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    result["metadata"]["papermill"] = {"start_time": "2026-01-01T00:00:00"}
    for cell in result["cells"]:
        if cell["cell_type"] == "code":
            for start, found in outputs().items():
                if cell["source"].startswith(start):
                    cell["outputs"] = copy.deepcopy(found)
    injected = {
        "cell_type": "code",
        "id": "injected",
        "execution_count": 1,
        "metadata": {"tags": ["injected-parameters"]},
        "outputs": [],
        "source": "# Parameters\nseed = 0",
    }
    result["cells"].insert(3, injected)
    return result


@functools.cache
def outputs() -> dict[str, list[dict[str, Any]]]:
    """What the cells that begin so leave behind."""
    frame = pd.DataFrame({f"a long name for column {i}": [i / 3, i / 7] for i in range(14)})
    live = bundle(explorable())
    live["data"]["application/vnd.jupyter.widget-view+json"] = {"model_id": "x"}
    plain = {"text/plain": "<object>"}
    return {
        "figure(": [bundle(figure(chart(), DESCRIPTION))],
        "Markdown(": [_display({"text/markdown": "It is **0.50**, or $2^{-1}$.", **plain})],
        "explore(": [
            {"output_type": "stream", "name": "stderr", "text": "a warning from elsewhere"},
            live,
        ],
        "show(": [_display(bundle(show("lib.core.stats:Spread"))["data"])],
        "frame": [_display({"text/html": frame.to_html(), **plain})],
        "picture": [_display({"image/png": PNG, **plain})],
        "claims.add": [bundle(claims())],
        "assert": [{"output_type": "stream", "name": "stdout", "text": "check passed, secretly"}],
    }


def _display(data: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": {}}
