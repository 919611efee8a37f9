"""The claims table: computed verdicts only, the same rows for readers and for the scoreboard."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from lib.core.claims import Claims


def some():
    claims = Claims()
    claims.add("Routes agree.", paper="0", measured="3e-14", holds=np.bool_(True), exact=True)
    claims.add(
        "Slope is <-1/2>.", paper=-0.5, measured="-0.2", holds=torch.tensor(False), note="too small"
    )
    claims.add("It takes a while.", paper="1 h", measured="12 s", holds=None)
    return claims


def test_metadata_carries_the_rows_as_plain_json():
    _, metadata = some()._repr_mimebundle_()
    rows = json.loads(json.dumps(metadata["claims"]))
    assert rows == metadata["claims"]
    assert [row["holds"] for row in rows] == [True, False, None]
    assert rows[0] == {
        "text": "Routes agree.",
        "paper": "0",
        "measured": "3e-14",
        "holds": True,
        "exact": True,
        "note": None,
    }
    assert rows[1]["paper"] == "-0.5" and rows[1]["note"] == "too small"


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.heads, self.rows, self.skip = [], [], False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.skip = tag in ("style", "script")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            if tag == "th":
                self.heads.append(attrs.get("scope"))

    def handle_data(self, data):
        if self.rows and self.rows[-1] and not self.skip:
            self.rows[-1][-1] += data


def test_the_table_is_told_in_words_and_scoped():
    html = some()._repr_mimebundle_()[0]["text/html"]
    cells = Cells()
    cells.feed(html.split("<style")[0])
    assert cells.heads == ["col"] * 4 + ["row"] * 3
    assert cells.rows[0] == ["The paper says", "Predicted", "Measured here", "Holds"]
    assert cells.rows[1] == ["Routes agree.an exact identity", "0", "3e-14", "✓ yes"]
    assert cells.rows[2] == ["Slope is <-1/2>.", "-0.5", "-0.2too small", "✗ no"]
    assert cells.rows[3][-1] == "– reported"
    assert "1 of 2 claims hold in this run." in html


def test_mathematics_is_marked_for_the_page_and_the_notebook():
    claims = Claims()
    claims.add(
        r"$\Theta$ costs $5 or $6.", paper="$a<b$", measured="3", holds=True, note="$x_1$–$x_2$"
    )
    html = claims._repr_mimebundle_()[0]["text/html"]
    assert r'<span class="math notranslate nohighlight">\(\Theta\)</span> costs $5 or $6.' in html
    assert r"\(a&lt;b\)" in html and r"\(x_1\)</span>–<span" in html
    script = html.index("<script")
    assert html[script:].startswith('<script data-itr="loader">'), "the press takes it out"
    assert "<script" not in some()._repr_mimebundle_()[0]["text/html"]
    assert r"$\Theta$ costs $5 or $6." in str(claims)


def test_text_alternative():
    text = some()._repr_mimebundle_()[0]["text/plain"]
    assert "Slope is <-1/2>.\n  predicted: -0.5\n  measured here: -0.2\n  holds: no" in text
    assert "note: too small" in text


@pytest.mark.parametrize(
    "holds", [1, 0.5, "yes", np.array([True]), torch.tensor(1.0), np.float64(1)]
)
def test_a_verdict_that_is_no_comparison_is_refused(holds):
    with pytest.raises(TypeError, match="holds must be True, False or None"):
        Claims().add("x", paper="1", measured="1", holds=holds)


def test_empty_and_double_entries():
    claims = Claims()
    with pytest.raises(ValueError, match="no claim was added"):
        claims._repr_mimebundle_()
    with pytest.raises(ValueError, match="measured is empty"):
        claims.add("x", paper="1", measured=" ", holds=True)
    with pytest.raises(ValueError, match="paper is empty"):
        claims.add("x", paper=None, measured="1", holds=True)
    claims.add("x", paper="1", measured="1", holds=True)
    with pytest.raises(ValueError, match="is there already"):
        claims.add("x ", paper="1", measured="1", holds=True)
    assert len(claims) == 1
