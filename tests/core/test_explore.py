"""Explorables: every setting is on the page once, and what differs is all that is repeated."""

import json
import re

import altair as alt
import numpy as np
import pandas as pd
import pytest

from lib.core.explore import explore
from lib.core.plots.bundle import to_spec

WORDS = "A wave whose amplitude shrinks as the width grows."


def compute(width, kind="sine"):
    t = np.arange(20)
    wave = {"sine": np.sin, "cosine": np.cos}[kind](t / 5) / np.sqrt(width)
    return pd.DataFrame({"t": t, "y": wave, "width": width})


def chart(frame):
    base = alt.Chart(frame).mark_line().encode(x="t", y="y")
    return base.properties(title=f"At width {frame.width[0]} the wave is {frame.y.max():.2f} high")


def payload(explorable):
    return json.loads(re.search(r'class="itr-spec">(.*?)</script>', explorable.html(), re.S)[1])


def rebuilt(document, index):
    """What charts.js does: the first page with the differences of one setting put in."""
    box = json.loads(
        json.dumps({"page": {key: document[key] for key in ("title", "subtitle", "spec")}})
    )
    for path, value in document["states"][index]:
        node = box
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    page = box["page"]
    text = json.dumps(page["spec"])
    page["spec"]["datasets"] = {k: v for k, v in document["datasets"].items() if f'"{k}"' in text}
    return page


def test_every_setting_is_rebuilt_exactly():
    shown = explore(compute, chart, description=WORDS, width=[4, 16, 64], kind=["sine", "cosine"])
    document = payload(shown)
    assert len(document["states"]) == 6
    for index, setting in enumerate(shown.settings()):
        title, subtitle, spec = to_spec(chart(compute(**setting)))
        page = rebuilt(document, index)
        assert (page["title"], page["subtitle"]) == (title, subtitle)
        assert page["spec"] == json.loads(json.dumps(spec))


def test_the_last_name_varies_fastest_and_the_default_is_shown_first():
    shown = explore(
        compute,
        chart,
        description=WORDS,
        default={"width": 16, "kind": "cosine"},
        width=[4, 16],
        kind=["sine", "cosine"],
    )
    assert shown.settings()[1] == {"width": 4, "kind": "cosine"}
    assert shown.start == 3
    data, metadata = shown._repr_mimebundle_()
    assert "At width 16" in data["text/plain"] and "At width 16" in data["image/svg+xml"]
    assert metadata["figure"]["description"] == WORDS
    assert metadata["explore"] == {"width": ["4", "16"], "kind": ["sine", "cosine"]}
    assert "application/vnd.jupyter.widget-view+json" not in data, "there is no kernel here"


def test_a_table_that_settings_share_is_on_the_page_once():
    background = pd.DataFrame({"t": range(200), "y": np.linspace(-1, 1, 200)})

    def layered(frame):
        below = alt.Chart(background).mark_line().encode(x="t", y="y")
        return (below + alt.Chart(frame).mark_line().encode(x="t", y="y")).properties(title="Two")

    document = payload(explore(compute, layered, description=WORDS, width=[1, 2, 3, 4]))
    assert len(document["datasets"]) == 5
    assert all(len(state) <= 2 for state in document["states"])


def test_controls_are_labeled_and_fit_their_values():
    shown = explore(
        compute,
        chart,
        description=WORDS,
        labels={"width": "width <neurons>"},
        default={"width": 1024},
        width=[np.int64(16), 1024],
        kind=["sine", "cosine"],
    )
    html = shown.html()
    assert '<label><span>width &lt;neurons&gt;</span><input type="range" min="0" max="1"' in html
    assert 'aria-valuetext="1,024"' in html and "<output>1,024</output>" in html
    assert '<label><span>kind</span><select autocomplete="off"><option value="0" selected>' in html
    assert '<div class="itr-controls" hidden>' in html, "without scripts controls do nothing"


def test_a_chart_of_another_shape_is_swapped_whole():
    def either(frame):
        base = alt.Chart(frame).encode(x="t", y="y").properties(title="One")
        mark = base.mark_line() if frame.width[0] == 1 else base.mark_point(color="red")
        return mark if frame.width[0] == 1 else (mark | mark).properties(title="Both")

    document = payload(explore(compute, either, description=WORDS, width=[1, 2]))
    page = rebuilt(document, 1)
    assert page["title"] == "Both" and "hconcat" in page["spec"]


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({}, ValueError, "grid is empty"),
        ({"width": [4]}, ValueError, "width needs at least two values"),
        ({"width": 4}, TypeError, "width must be a list of values, got int"),
        ({"width": "abc"}, TypeError, "width must be a list of values, got str"),
        ({"width": [0.1, 0.10000001]}, ValueError, "two values that read the same"),
        ({"width": [1, 2], "default": {"depth": 1}}, ValueError, r"default names \['depth'\]"),
        ({"width": [1, 2], "default": {"width": 3}}, ValueError, "width=3 is not in the grid"),
        ({"width": [1, 2], "labels": {"lr": "x"}}, ValueError, r"labels names \['lr'\]"),
    ],
)
def test_bad_grids_say_what_is_wrong(grid, error, message):
    with pytest.raises(error, match=message):
        explore(compute, chart, description=WORDS, **grid)


def test_compute_must_return_a_frame():
    with pytest.raises(TypeError, match=r"DataFrame, got list at \{'width': 1\}"):
        explore(lambda width: [1], chart, description=WORDS, width=[1, 2])


def test_a_title_is_demanded_at_every_setting():
    def nameless(frame):
        return alt.Chart(frame).mark_line().encode(x="t", y="y")

    with pytest.raises(ValueError, match="chart has no title"):
        explore(compute, nameless, description=WORDS, width=[1, 2])


def test_too_many_settings_warn():
    with pytest.warns(UserWarning, match="grid has 61 settings"):
        explore(compute, chart, description=WORDS, width=list(range(1, 62)))


def test_one_output_survives_papermill(tmp_path):
    """Widget, page, picture and words in one valid output, as a chapter stores it."""
    nbformat = pytest.importorskip("nbformat")
    papermill = pytest.importorskip("papermill")
    pytest.importorskip("ipykernel")
    code = (
        "import altair as alt, pandas as pd\n"
        "from lib.core.explore import explore\n"
        "compute = lambda width: pd.DataFrame({'t': [1, 2], 'y': [width, 2 * width]})\n"
        "chart = lambda f: alt.Chart(f, title=f'Up to {f.y.max()}').mark_line()"
        ".encode(x='t', y='y')\n"
        f"shown = explore(compute, chart, description={WORDS!r}, width=[1, 5])\n"
        "shown"
    )
    live = (
        "slider, picture = shown._live.children\n"
        "slider.value = 5\n"
        "assert 'Up to 10' in picture.value\n"
        "slider.value"
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell(live)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    source, target = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    nbformat.write(notebook, source)
    papermill.execute_notebook(str(source), str(target), progress_bar=False)
    done = nbformat.read(target, as_version=4)
    nbformat.validate(done)
    (output,) = done.cells[0].outputs
    assert set(output.data) == {
        "application/vnd.jupyter.widget-view+json",
        "text/html",
        "image/svg+xml",
        "text/plain",
    }
    assert output.metadata["figure"]["title"] == "Up to 2"
    assert done.cells[1].outputs[0].data["text/plain"] == "5"
