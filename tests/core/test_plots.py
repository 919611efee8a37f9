"""Figures: what a reader needs is demanded, colors can be told apart, data stay small and exact."""

import base64
import itertools
import json
import re
import zlib
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pandas as pd
import pytest

from lib.core import plots
from lib.core.plots import bundle, charts
from tests.helpers import assert_close

WORDS = "Loss against step for three widths; the widest falls fastest."


def points(title="A finding"):
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.1, 1 / 3, 2.0], "k": list("aba")})
    chart = alt.Chart(frame).mark_point().encode(x="x", y="y", color="k")
    return chart.properties(title=title) if title else chart


# ------------------------------------------------------------------------------- the bundle


def test_bundle_has_picture_page_and_words():
    data, metadata = plots.figure(points(), WORDS)._repr_mimebundle_()
    assert set(data) == {"text/html", "image/svg+xml", "text/plain"}
    assert metadata == {"figure": {"title": "A finding", "description": WORDS}}
    assert data["text/plain"] == f"A finding\n{WORDS}"
    root = ElementTree.fromstring(data["image/svg+xml"])
    assert root.tag.endswith("svg")
    assert "var(" not in data["image/svg+xml"], "a renderer without CSS would draw black"
    assert "var(--itr-c1" in data["text/html"]


def test_page_without_loader_asks_nobody_for_anything():
    html = plots.figure(points(), WORDS).html()
    inner = re.sub(r'<(style|script) data-itr="loader"[^>]*>.*?</\1>', "", html, flags=re.S)
    assert "loader" not in inner and "https://cdn" not in inner
    assert inner.count("<script") == 1 and 'type="application/json"' in inner
    assert 'role="img"' in inner and f'aria-label="{WORDS}"' in inner


def test_the_same_chart_gives_the_same_output():
    first, second = (plots.figure(points(), WORDS)._repr_mimebundle_() for _ in range(2))
    assert first == second


def test_script_end_in_the_data_does_not_end_the_script():
    frame = pd.DataFrame({"x": [1], "k": ["</script><b>&\u2028"]})
    chart = alt.Chart(frame, title="</script>").mark_point().encode(x="x", color="k")
    html = plots.figure(chart, WORDS).html()
    body = re.search(r'class="itr-spec">(.*?)</script>', html, flags=re.S)[1]
    payload = json.loads(body)
    assert payload["title"] == "</script>"
    (rows,) = payload["spec"]["datasets"].values()
    assert rows[0]["k"] == "</script><b>&\u2028"


def test_quotes_in_the_description_stay_in_the_attribute():
    html = plots.figure(points(), 'A picture of "quoted" <words> & more words.').html()
    assert 'aria-label="A picture of &quot;quoted&quot; &lt;words&gt; &amp; more words."' in html


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("", "description is empty"),
        ("loss curve", "too short"),
        ("figures/loss.png", "looks like a file name"),
        ("averyveryverylongwordwithoutspaces", "too short"),
    ],
)
def test_descriptions_that_describe_nothing(description, message):
    with pytest.raises(ValueError, match=message):
        plots.figure(points(), description)


def test_a_title_is_demanded():
    with pytest.raises(ValueError, match="chart has no title"):
        plots.figure(points(None), WORDS)
    with pytest.raises(ValueError, match="on the whole"):
        plots.figure(points() | points(), WORDS)
    with pytest.raises(ValueError, match="repeats the title"):
        plots.figure(points(WORDS), WORDS)
    with pytest.raises(TypeError, match="Altair chart, got dict"):
        plots.figure({}, WORDS)


def test_title_and_subtitle_leave_the_specification():
    title = alt.TitleParams(["Two", "lines"], subtitle="and a remark")
    figure = plots.figure(points(title), WORDS)
    assert (figure.title, figure.subtitle) == ("Two lines", "and a remark")
    assert "title" not in figure.spec
    texts = [e.text for e in ElementTree.fromstring(figure.svg()).iter() if e.text]
    assert "Two lines" in texts and "and a remark" in texts


def test_a_long_title_is_wrapped_not_cut():
    title = "A finding that takes many more words than the picture is wide to be told in full"
    root = ElementTree.fromstring(plots.figure(points(title), WORDS).svg())
    lines = [e.text for e in root.iter() if e.get("font-weight") == "600" and e.text]
    assert len(lines) >= 2 and " ".join(lines) == title


def test_color_and_shape_of_one_field_share_a_legend():
    hue = alt.Color("k", title="group", scale=alt.Scale(domain=["b", "a"]))
    same = points().encode(color=hue, shape="k")
    assert plots.figure(same, WORDS).svg().count('role-legend"') == 1
    other = plots.figure(points().encode(color=hue, shape="x:O"), WORDS)
    assert other.svg().count('role-legend"') == 2
    assert 'fill="black"' not in other.svg() and 'stroke="black"' not in other.svg()


# --------------------------------------------------------------------------------- the data


def test_floats_are_rounded_to_five_digits_and_no_coarser_than_the_column_needs():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=200) * 10.0 ** rng.integers(-6, 6, 200)
    near = 1000 + 1e-4 * rng.normal(size=200)
    rows = [{"wide": float(a), "near": float(b)} for a, b in zip(wide, near)]
    bundle.round_table(rows)
    for row, a in zip(rows, wide):
        assert_close([row["wide"]], [a], 5e-5)
    shown = np.array([row["near"] for row in rows])
    assert abs(shown - near).max() <= 1e-4 * np.ptp(near), "differences survive an offset"


def test_rounding_leaves_integers_text_and_holes_alone():
    rows = [{"n": 123456789.0, "s": "1.23456789", "z": 0.0, "i": 7, "hole": None, "b": True}]
    bundle.round_table(rows)
    assert rows == [{"n": 123456789, "s": "1.23456789", "z": 0.0, "i": 7, "hole": None, "b": True}]


def test_missing_values_in_a_column_of_text_become_null():
    rows = [{"x": 1.0, "says": "yes"}, {"x": float("nan"), "says": float("nan")}]
    spec = {"data": {"values": rows}}
    bundle._round_data(spec)
    assert rows == [{"x": 1, "says": "yes"}, {"x": None, "says": None}]


def test_too_many_rows_is_an_error_and_six_thousand_are_not():
    def cloud(n):
        frame = pd.DataFrame({"x": np.arange(n)})
        return alt.Chart(frame, title="A cloud").mark_point().encode(x="x")

    plots.figure(cloud(6000), WORDS)
    with pytest.raises(ValueError, match="20,001 rows; a page carries at most 20,000"):
        plots.figure(cloud(20_001), WORDS)


def test_inline_values_count_and_are_rounded():
    data = alt.Data(values=[{"x": 0.123456789}])
    chart = alt.Chart(data, title="Inline").mark_point().encode(x="x:Q")
    assert plots.figure(chart, WORDS).spec["data"]["values"] == [{"x": 0.12346}]


# -------------------------------------------------------------------------------- the colors


def channels(color):
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def linear(color):
    c = channels(color)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    high, low = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (a, b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(rgb):
    xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ) @ np.clip(rgb, 0, 1)
    t = xyz / [0.95047, 1, 1.08883]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


PAGES = [(0, "#ffffff"), (1, "#121212"), (1, "#14181e")]


TEXT = ("ink", "muted", "yes", "no")


# Cells of Colab, JupyterLab and VS Code: their grounds, and rows of tables where the pointer is.
@pytest.mark.parametrize(
    ("mode", "page"),
    [
        (0, "#f5f5f5"),
        (0, "#eeeeee"),
        (0, "#e1f5fe"),
        (1, "#111111"),
        (1, "#1e1e1e"),
        (1, "#383838"),
    ],
)
def test_words_are_legible_in_every_notebook(mode, page):
    for name in TEXT:
        color = plots.theme.TOKENS[name][mode]
        assert contrast(color, page) >= 4.5, f"{name} {color} on {page}"


@pytest.mark.parametrize(("mode", "page"), PAGES)
def test_marks_stand_out_from_the_page(mode, page):
    for name, pair in plots.theme.TOKENS.items():
        if name == "grid":
            continue
        least = 4.5 if name in TEXT else 3.0
        assert contrast(pair[mode], page) >= least, f"{name} {pair[mode]} on {page}"
    for color in plots.RAMP:
        assert contrast(color, page) >= 3.0, f"{color} on {page}"


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("vision", VISION)
def test_categories_can_be_told_apart(mode, vision):
    seen = {
        name: lab(np.array(VISION[vision]) @ linear(plots.theme.TOKENS[name][mode]))
        for name in ("c1", "c2", "c3", "c4", "c5", "c6")
    }
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) >= 15, f"{a} and {b} under {vision}"


@pytest.mark.parametrize("mode", [0, 1])
def test_ordered_colors_grow_stronger_against_the_page(mode):
    page = ("#ffffff", "#14181e")[mode]
    steps = [contrast(plots.theme.TOKENS[f"s{i}"][mode], page) for i in range(1, 8)]
    assert steps == sorted(steps)
    assert plots.ordered(2) == [plots.color("s1"), plots.color("s7")]
    with pytest.raises(ValueError, match="between 2 and 7, got 8"):
        plots.ordered(8)


def test_every_color_of_a_picture_can_be_painted_for_dark():
    figure = plots.figure(points(), WORDS)
    dark = figure.svg("dark")
    assert "var(" not in dark and plots.theme.TOKENS["ink"][1] in dark
    assert figure.svg(None).count("var(--itr-") > 3
    with pytest.raises(ValueError, match="'light' or 'dark', got 'blue'"):
        plots.paint("", "blue")
    with pytest.raises(ValueError, match="'pink' is not a color"):
        plots.color("pink")


def test_stylesheet_defines_every_color_in_both_modes():
    css = plots.stylesheet()
    for name, (light, dark) in plots.theme.TOKENS.items():
        assert css.count(f"--itr-{name}:{light};") == 2  # screen and print
        assert css.count(f"--itr-{name}:{dark};") == 1
    used = set(re.findall(r"var\(--itr-([\w-]+)", css))
    assert used <= set(plots.theme.TOKENS), "the layout uses a color that nobody defines"
    assert css.count("{") == css.count("}")


# -------------------------------------------------------------------------------- the charts


def tables(chart):
    return list(chart.to_dict()["datasets"].values())


def test_seed_band_holds_mean_and_range():
    frame = pd.DataFrame({"step": [0, 0, 1, 1], "loss": [1.0, 3.0, 2.0, 2.0]})
    (rows,) = tables(charts.seed_band(frame, "step", "loss"))
    assert rows == [
        {"step": 0, "mean": 2.0, "min": 1.0, "max": 3.0},
        {"step": 1, "mean": 2.0, "min": 2.0, "max": 2.0},
    ]


def test_seed_band_does_not_average_a_diverged_run_away():
    frame = pd.DataFrame({"step": [0, 0, 1, 1], "loss": [1.0, 3.0, 2.0, np.nan]})
    (rows,) = tables(charts.seed_band(frame, "step", "loss"))
    assert rows[1] == {"step": 1, "mean": None, "min": None, "max": None}


def test_loglog_fit_writes_the_slope_of_an_exact_power_law():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    frame = pd.DataFrame({"n": x, "e": 3 * x**-0.5})
    rows = [r for table in tables(charts.loglog_fit(frame, "n", "e")) for r in table]
    (label,) = [r["label"] for r in rows if "label" in r]
    assert label == "slope −0.50"
    ends = [r["e"] for r in rows if "label" not in r and r["n"] == 8.0]
    assert_close(ends, [3 * 8**-0.5] * len(ends), 1e-12)


def test_predicted_and_measured_fall_apart_by_name():
    frame = pd.DataFrame({"t": [0.0, 1.0], "f": [1.0, 0.5], "mode": ["a", "a"]})
    drawn = tables(charts.predicted_and_measured(frame, frame, "t", "f", "mode"))
    assert {r["_kind"] for table in drawn for r in table} == {"predicted", "measured"}


def test_heatmap_keeps_the_order_of_rows_and_writes_legible_numbers():
    chart = charts.heatmap(
        [[0.0, 1.0], [2.0, 3.0]], rows=["z", "a"], columns=["q", "p"], text=".1f"
    )
    (rows,) = tables(chart)
    assert [(r["row"], r["column"], r["value"]) for r in rows] == [
        ("z", "q", 0.0),
        ("z", "p", 1.0),
        ("a", "q", 2.0),
        ("a", "p", 3.0),
    ]
    assert [r["bright"] for r in rows] == [False, False, True, True]  # dark purple to yellow
    assert chart.to_dict()["layer"][0]["encoding"]["y"]["sort"] == ["z", "a"]


@pytest.mark.parametrize("scheme", ["sequential", "diverging"])
def test_numbers_in_cells_are_legible_over_the_whole_scale(scheme):
    """Measured in the drawn picture; the colors of cells and numbers are those of both themes."""
    values = np.linspace(-1, 1, 400).reshape(20, 20)
    chart = charts.heatmap(values, scheme=scheme, domain=(-1, 1), text=".2f")
    svg = bundle.draw(chart.to_dict())[0]
    cells = re.findall(r'<path d="M[^"]*" fill="rgb\((\d+), (\d+), (\d+)\)"', svg)
    numbers = re.findall(r'fill="(#[0-9a-f]{6})"[^>]*>[-−]?\d\.\d\d</text>', svg)
    assert len(cells) == len(numbers) == 400 and set(numbers) == {"#000000", "#ffffff"}
    grounds = ["#" + "".join(f"{int(channel):02x}" for channel in cell) for cell in cells]
    assert min(map(contrast, numbers, grounds)) >= 4.5


def test_an_empty_cell_says_nothing():
    chart = charts.heatmap([[1.0, np.nan], [2.0, 3.0]], text=".1f")
    svg = bundle.draw(chart.to_dict())[0]
    assert "null" not in svg and "NaN" not in svg and ">3.0<" in svg


def test_a_diverging_heatmap_is_centered_at_zero():
    chart = charts.heatmap([[-1.0, 4.0]], scheme="diverging")
    assert chart.to_dict()["encoding"]["color"]["scale"]["domain"] == [-4.0, 4.0]


def png(address):
    """Decode the plain PNGs this library writes."""
    raw = base64.b64decode(address.split(",")[1])
    width, height = (int.from_bytes(raw[i : i + 4], "big") for i in (16, 20))
    at = raw.index(b"IDAT")
    length = int.from_bytes(raw[at - 4 : at], "big")
    lines = np.frombuffer(zlib.decompress(raw[at + 4 : at + 4 + length]), np.uint8)
    return lines.reshape(height, 1 + 3 * width)[:, 1:].reshape(height, width, 3)


def test_image_grid_carries_the_pixels():
    gray = np.arange(12.0).reshape(1, 3, 4)
    (rows,) = tables(charts.image_grid(gray, ["a"]))
    expected = np.round(gray[0] / 11 * 255)
    assert (png(rows[0]["image"]) == expected[..., None]).all()
    color = np.random.default_rng(0).random((2, 3, 5, 6))
    (rows,) = tables(charts.image_grid(color))
    assert (png(rows[1]["image"]) == np.round(color[1].transpose(1, 2, 0) * 255)).all()


def test_every_helper_finishes_as_a_figure():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a.b": [1.0, 2.0, 4.0] * 2, "y": rng.random(6) + 1, "w": [1] * 3 + [2] * 3}
    )
    for chart in (
        charts.seed_band(frame, "a.b", "y", "w", log="xy"),
        charts.predicted_and_measured(frame, frame, "a.b", "y", "w"),
        charts.loglog_fit(frame, "a.b", "y", "w"),
        charts.heatmap(rng.random((30, 40))),
        charts.heatmap(rng.random((3, 4)), scheme="diverging", text=".2f"),
        charts.image_grid(rng.random((9, 8, 8)), list("abcdefghi"), columns=4),
    ):
        svg = plots.figure(chart.properties(title="A finding"), WORDS).svg()
        assert len(svg) > 1500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: charts.seed_band(f, "q", "y"), r"no column 'q'; it has \['x', 'y'\]"),
        (lambda f: charts.seed_band(f, "x", "y", log="z"), "log must be"),
        (lambda f: charts.seed_band(f, "x", "y", log="x"), "x goes down to 0: a log axis needs"),
        (lambda f: charts.seed_band(f.iloc[:0], "x", "y"), "frame is empty"),
        (lambda f: charts.loglog_fit(f, "x", "y"), "a log axis needs positive numbers"),
        (lambda f: charts.heatmap([1.0]), r"two non-empty dimensions, got shape \(1,\)"),
        (lambda f: charts.heatmap([[1.0, 2.0]], columns=["a", "a"]), "columns must be 2 different"),
        (lambda f: charts.heatmap([[1.0]], scheme="jet"), "scheme must be"),
        (lambda f: charts.image_grid(np.zeros((2, 2))), r"got \(2, 2\)"),
        (lambda f: charts.image_grid(np.zeros((2, 3, 3)), ["a"]), "1 entries for 2 images"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(pd.DataFrame({"x": [0, 1], "y": [1.0, 2.0]}))


def test_more_groups_than_colors_is_an_error():
    frame = pd.DataFrame({"x": range(9), "y": range(9), "k": list("abcdefghi")})
    with pytest.raises(ValueError, match="'k' has 9 groups; at most 7"):
        charts.seed_band(frame, "x", "y", "k")


def test_labels_of_slopes_stand_apart():
    assert charts.apart([1.0, 5.0, 3.0], 1.0) == [1.0, 5.0, 3.0]
    assert charts.apart([2.0, 2.0, 9.0, 2.0], 1.0) == [1.0, 2.0, 9.0, 3.0]
    moved = charts.apart([0.0, 0.2, 0.3, 4.0, 4.1], 1.0)
    assert min(b - a for a, b in zip(moved, moved[1:])) > 1 - 1e-9
    assert abs(sum(moved) - 8.6) < 1e-9 and charts.apart([], 1.0) == []
    frame = pd.DataFrame(
        {"n": [1, 10, 1, 10], "e": [1.0, 0.1, 1.02, 0.101], "who": ["a", "a", "b", "b"]}
    )
    chart = charts.loglog_fit(frame, "n", "e", "who", height=280).to_dict()
    named = chart["layer"][2]["data"]["name"]
    low, high = sorted(row["e"] for row in chart["datasets"][named])
    # 280 pixels for a factor of 10.2: 15 pixels are a factor of 1.13.
    assert 1.12 < high / low < 1.15
