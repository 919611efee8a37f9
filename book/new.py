"""Start a chapter: a notebook, a module and a test that run as they are.

The skeleton measures something small (how the mean of n numbers settles) so that every piece stands
where it belongs and can be replaced one at a time. Lines that begin with TODO say with what.
Nothing that exists is overwritten.

example:
  python -m book new width/ntk      makes chapters/width/ntk.ipynb, lib/width/ntk.py and
                                    tests/width/test_ntk.py
"""

from __future__ import annotations

import argparse
import json
import keyword
import re
from typing import Any

from book.cache import write
from book.errors import BookError, nearest
from book.source import PARTS, Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapter", metavar="PART/SLUG", help=f"PART is one of {', '.join(PARTS)}")


def main(args: argparse.Namespace) -> int:
    part, slug = parse(args.chapter)
    source = Source(args.root)
    titles = {(paper.part, paper.slug): paper.title for paper in source.papers}
    files = skeleton(part, slug, titles.get((part, slug)), source.setup_cell)
    for name in files:
        if (args.root / name).exists():
            raise BookError(f"{name} exists; nothing was written")
    for folder in (f"lib/{part}", f"tests/{part}"):
        if not (args.root / folder / "__init__.py").exists():
            files[f"{folder}/__init__.py"] = package(folder, part)
    for name, text in files.items():
        try:
            write(args.root / name, text)
        except OSError as error:
            raise BookError(f"cannot write {name}: {error.strerror or error}") from None
        print(f"wrote {name}")
    if (part, slug) not in titles:
        print(f"note: {part}/{slug} is not among the papers of book/papers.csv")
    print(
        f"\npython -m book lab           to write it\n"
        f"python -m book run {slug:<9} to execute it\n"
        f"When it is finished, list chapters/{part}/{slug} in _toc.yml and put its paper into "
        "book/references.bib."
    )
    return 0


def parse(name: str) -> tuple[str, str]:
    """Part and slug of `part/slug`, or the reason why not."""
    part, _, slug = name.removeprefix("chapters/").removesuffix(".ipynb").partition("/")
    if not slug:
        raise BookError(f"{name!r}: give part and slug, as in width/ntk")
    if part not in PARTS:
        near = nearest(part, PARTS) or f"; there are {', '.join(PARTS)}"
        raise BookError(f"unknown part {part!r}{near}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug) or keyword.iskeyword(slug) or slug == "index":
        raise BookError(f"{slug!r} cannot name a module: lower-case letters, digits, underscores")
    return part, slug


def package(folder: str, part: str) -> str:
    return f'"""Papers of the part {PARTS[part]}."""\n' if folder.startswith("lib/") else ""


def skeleton(part: str, slug: str, title: str | None, setup: str) -> dict[str, str]:
    """Text of the three files by path."""
    paper = title or "TODO: title of the paper"
    return {
        f"lib/{part}/{slug}.py": MODULE.replace("PAPER", paper),
        f"tests/{part}/test_{slug}.py": TEST.replace("PART", part).replace("SLUG", slug),
        f"chapters/{part}/{slug}.ipynb": notebook(part, slug, paper, setup),
    }


MODULE = '''\
"""PAPER

TODO: authors, year, arXiv number. What of the paper is implemented here, and what is not.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sample_means(n: int, repeats: int, gen: torch.Generator) -> Float[Tensor, " repeats"]:
    """Means of ``n`` standard normal numbers, one for each repeat; TODO: the paper's algorithm.

    Raises:
        ValueError: ``n`` or ``repeats`` is below 1.
    """
    for name, value in (("n", n), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return torch.randn(repeats, n, generator=gen).mean(dim=1)


def deviation(n: int) -> float:
    """Standard deviation of such a mean, ``1 / sqrt(n)`` (TODO: the equation's number)."""
    return n**-0.5
'''

TEST = """\
import pytest

from lib.PART.SLUG import deviation, sample_means


def test_spread_of_means_follows_the_closed_form(gen):
    # 4,000 repeats: the standard deviation is known to about 1 %; five seeds stay within 3 %.
    for n in (1, 7, 50):
        measured = sample_means(n, 4000, gen).std().item()
        assert measured == pytest.approx(deviation(n), rel=0.05)


def test_an_empty_mean_is_refused(gen):
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        sample_means(0, 3, gen)
"""

PARAMETERS = 'scale = "small"\nseed = 0\ndevice = "auto"'

IMPORTS = """\
import altair as alt
import pandas as pd
from IPython.display import Markdown

from lib.PART import SLUG
from lib.core.claims import Claims
from lib.core.explore import explore
from lib.core.fitting import progress
from lib.core.plots import figure
from lib.core.seeds import child, seed_everything
from lib.core.show import show
from lib.core.stats import loglog_slope

SETTINGS = {
    "small": {"sizes": [4, 16, 64, 256], "repeats": 500},
    "full": {"sizes": [4, 16, 64, 256, 1024, 4096], "repeats": 20_000},
}
s = SETTINGS[scale]
gen = seed_everything(seed)"""

BASELINE = """\
pd.DataFrame(
    {"one run": [SLUG.sample_means(n, 1, gen).item() for n in s["sizes"]]},
    index=pd.Index(s["sizes"], name="numbers averaged"),
)"""

TRAIN = """\
rows = []
for n in progress(s["sizes"], "sizes"):
    means = SLUG.sample_means(n, s["repeats"], child(seed, "means", n))
    rows.append({"n": n, "measured": means.std().item(), "predicted": SLUG.deviation(n)})
spreads = pd.DataFrame(rows)
spreads"""

PICTURE = """\
base = alt.Chart(spreads).encode(alt.X("n", title="numbers averaged").scale(type="log"))
points = base.mark_point(size=80, filled=True).encode(
    alt.Y("measured", title="standard deviation of the mean").scale(type="log")
)
line = base.mark_line().encode(alt.Y("predicted"))
figure(
    (line + points).properties(title="The spread of a mean falls as one over the square root"),
    description="Standard deviation of a mean against how many numbers it averages, on two "
    "logarithmic axes. The measured points lie on the predicted straight line of slope -1/2.",
)"""

EXPLORABLE = """\
def compute(n):
    means = SLUG.sample_means(n, 200, child(seed, "explore", n))
    return pd.DataFrame({"mean": means.numpy()})


def chart(frame):
    bars = alt.Chart(frame).mark_bar()
    x = alt.X("mean", title="mean").bin(step=0.1).scale(domain=[-2, 2])
    return bars.encode(x, alt.Y("count()", title="repeats")).properties(
        title=f"Two hundred means stay within {frame['mean'].abs().max():.2f} of zero"
    )


explore(
    compute,
    chart,
    description="Histogram of two hundred means: the more numbers each averages, the narrower.",
    n=s["sizes"],
)"""

QUOTED = """\
slope = loglog_slope(spreads["n"], spreads["measured"])
Markdown(f"Over {len(spreads)} sizes the slope is {slope.slope:.2f}; predicted is -0.50.")"""

CLAIMS = """\
claims = Claims()
claims.add(
    "The spread of a mean falls as the inverse square root of how many numbers it averages.",
    paper="slope -1/2",
    measured=f"{slope.slope:.2f}",
    holds=abs(slope.slope + 0.5) < 0.1,
)
worst = (spreads["measured"] / spreads["predicted"] - 1).abs().max()
claims.add(
    "The closed form holds at each size.",
    paper="ratio 1",
    measured=f"within {worst:.0%}",
    holds=bool(worst < 0.15),
)
claims.add(
    "The mean of one number spreads as the number does.",
    paper="1",
    measured=f"{SLUG.deviation(1):g}",
    holds=SLUG.deviation(1) == 1,
    exact=True,
)
claims"""

EXERCISES = (
    (
        "Write the prediction",
        "Return the standard deviation of a mean of `n` independent numbers whose own standard\n"
        "deviation is `sigma`.",
        "def spread_of_mean(n, sigma):\n"
        "    # BEGIN SOLUTION\n"
        "    return sigma / n**0.5\n"
        "    # END SOLUTION",
        "assert abs(spread_of_mean(1, 2.0) - 2.0) < 1e-9, (\n"
        '    "The mean of one number is that number: its spread is sigma."\n'
        ")\n"
        "assert abs(spread_of_mean(100, 3.0) - 0.3) < 1e-9, (\n"
        '    "Variances add; the spread is the root of the variance."\n'
        ")",
    ),
    (
        "Turn it round",
        "How many numbers must be averaged so that the spread is at most `target`?\n"
        "Return the smallest whole number.",
        "import math\n\n\n"
        "def numbers_needed(sigma, target):\n"
        "    # BEGIN SOLUTION\n"
        "    return math.ceil((sigma / target) ** 2)\n"
        "    # END SOLUTION",
        'assert numbers_needed(1.0, 0.5) == 4, "Half the spread takes four times the numbers."\n'
        'assert numbers_needed(3.0, 2.0) == 3, "2.25 numbers are not enough: round up."',
    ),
    (
        "Measure it",
        "Estimate the spread of a mean of `n` numbers from 0 to 1, drawn uniformly with `gen`.",
        "import torch\n\n\n"
        "def uniform_spread(n, gen):\n"
        "    # BEGIN SOLUTION\n"
        "    return torch.rand(20_000, n, generator=gen).mean(dim=1).std().item()\n"
        "    # END SOLUTION",
        "measured = uniform_spread(12, torch.Generator().manual_seed(1))\n"
        "assert abs(measured - 1 / 12) < 0.004, (\n"
        '    f"Twelve numbers of variance 1/12 average to a spread of 1/12; got {measured}."\n'
        ")",
    ),
)


def notebook(part: str, slug: str, paper: str, setup: str) -> str:
    """The chapter's first form, with every section in its place."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, text: str, *tags: str, **metadata: Any) -> None:
        text = text.replace("PART", part).replace("SLUG", slug)
        metadata = ({"tags": list(tags)} if tags else {}) | metadata
        cell = {"cell_type": kind, "id": f"{slug[:40]}-{len(cells):02d}", "metadata": metadata}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)

    name = slug.replace("_", " ").capitalize()
    add(
        "markdown",
        f"# {name}\n\nTODO: one paragraph that a newcomer understands: what is puzzling, what the "
        f"idea is, what it buys.\n\nTODO: authors, *{paper}*, year, "
        "[arXiv:0000.00000](https://arxiv.org/abs/0000.00000). Know before: TODO.",
    )
    add("code", setup, "setup")
    add("code", PARAMETERS, "parameters")
    add("code", IMPORTS)
    add("markdown", "## The question\n\nTODO: the baseline that fails or puzzles, run live.")
    add("code", BASELINE)
    add(
        "markdown",
        "## The idea\n\nTODO: the mathematics, every symbol defined. The mean "
        "$\\bar x = \\frac1n \\sum_i x_i$ of $n$ independent numbers of variance 1 has variance "
        "$1/n$.",
    )
    add("code", "show(SLUG.sample_means)")
    add("markdown", "## Training\n\nTODO: the experiment, and a table of numbers with units.")
    add("code", TRAIN)
    add("code", QUOTED, "remove-input")
    add("code", PICTURE, "thumbnail")
    add("markdown", "Move the slider. TODO: what to look for.")
    add("code", EXPLORABLE)
    add("markdown", "## Claims\n\nWhat the paper says, and what this run measured.")
    add("code", CLAIMS)
    add("markdown", "## Where it breaks\n\nTODO: the limits, shown by running them.")
    add(
        "markdown",
        "## Exercises\n\nThey need the set-up cell and `lib`, nothing else of this page.",
    )
    for i, (title, prompt, answer, check) in enumerate(EXERCISES, start=1):
        grade = {"grade": False, "solution": True, "locked": False, "task": False}
        grade |= {"grade_id": f"{slug}-ex{i}", "schema_version": 3}
        add("markdown", f"### Exercise {i}: {title}\n\n{prompt}")
        add("code", answer, nbgrader=grade)
        grade = grade | {"grade": True, "solution": False, "locked": True, "points": 2}
        add("code", check, nbgrader=grade | {"grade_id": f"{slug}-ex{i}-check"})
    add("markdown", "## At full scale\n\nTODO: what changes and what it costs.")
    add("markdown", "## Further reading\n\n- TODO: three items, one line each on why.")
    metadata = {
        "book": {
            "title": name,
            "part": part,
            "slug": slug,
            "paper": {
                "title": paper,
                "authors": "TODO",
                "year": 0,
                "venue": "TODO",
                "arxiv": "0000.00000",
                "key": "TODO",
            },
            "needs": ["TODO: what to know before"],
            "gives": ["TODO: what a reader takes away"],
            "minutes": 25,
        },
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
