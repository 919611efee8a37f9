"""Figures that answer back without a kernel: one chart, three representations, both page themes.

``figure(chart, description)`` turns an Altair chart into an object whose MIME bundle holds

- ``text/html``: the chart's specification, drawn by Vega in the reader's browser;
- ``image/svg+xml``: the same picture, drawn once here, for pages without scripts and for print;
- ``text/plain``: title and description, for readers who hear the page.

Importing this module enables its Altair theme. Colors are CSS custom properties with the light
value as fallback (``var(--itr-ink, #1f2328)``), so that one chart follows the page between light
and dark; ``stylesheet()`` gives the definitions that a page needs.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert as vlc

STATIC = Path(__file__).parent / "static"
MAX_ROWS = 20_000
DIGITS = 5

# name: (light, dark). Text at least 4.5:1, marks at least 3:1 against #ffffff and #14181e.
TOKENS = {
    "ink": ("#1f2328", "#e3e6ea"),
    "muted": ("#59636e", "#a3adb8"),
    "axis": ("#8a939d", "#7d8792"),
    "grid": ("#e4e7eb", "#2b323b"),
    "c1": ("#0072b2", "#56b4e9"),
    "c2": ("#d55e00", "#ff8533"),
    "c3": ("#00875f", "#2fcf9f"),
    "c4": ("#b5559b", "#e79ac8"),
    "c5": ("#8a6a00", "#f0e442"),
    "c6": ("#5a3fa0", "#a78bfa"),
    # Seven steps of one ordered quantity, weakest first.
    "s1": ("#5b95d6", "#2f6fb5"),
    "s2": ("#4a86cb", "#3f82c6"),
    "s3": ("#3b76bf", "#5295d5"),
    "s4": ("#2d66b0", "#68a8e2"),
    "s5": ("#20569e", "#81bbec"),
    "s6": ("#144587", "#9ecdf4"),
    "s7": ("#0a356d", "#bfe0fa"),
}


def color(name: str) -> str:
    """The CSS color of a token, e.g. ``color("ink")``; ``TOKENS`` lists the names."""
    if name not in TOKENS:
        raise ValueError(f"name {name!r} is not a color; allowed: {', '.join(TOKENS)}")
    return f"var(--itr-{name}, {TOKENS[name][0]})"


INK, MUTED, AXIS, GRID = color("ink"), color("muted"), color("axis"), color("grid")
CATEGORY = [color(f"c{i}") for i in range(1, 7)]
# Real colors, because Vega interpolates between them; they read on both page themes.
SEQUENTIAL = ["#46307c", "#3a528b", "#2a788e", "#22a884", "#7ad151", "#e4e419"]
DIVERGING = ["#0b4f94", "#4f93c8", "#b7d3e6", "#f3f2ee", "#f2c3a2", "#d9783f", "#93390c"]
RAMP = ["#3f7fd0", "#8a68c8", "#c0569f", "#d8553f"]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def ordered(n: int) -> list[str]:
    """``n`` colors, weak to strong, for groups with an order: ``alt.Scale(range=ordered(4))``."""
    if not 2 <= n <= 7:
        raise ValueError(f"n must be between 2 and 7, got {n}")
    return [color(f"s{1 + round(i * 6 / (n - 1))}") for i in range(n)]


def theme() -> dict:
    """The Altair theme ``itr``; enabled when this module is imported."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12.5}
    return {
        "config": {
            "background": "transparent",
            "font": FONT,
            "padding": 4,
            "view": {"continuousWidth": 480, "continuousHeight": 280, "stroke": None},
            "title": {
                "anchor": "start",
                "color": INK,
                "fontSize": 14.5,
                "fontWeight": 600,
                "offset": 10,
                "subtitleColor": MUTED,
                "subtitleFontSize": 12.5,
            },
            "axis": {
                **text,
                "titleFontWeight": 500,
                "titlePadding": 8,
                "labelPadding": 4,
                "labelLimit": 240,
                "labelOverlap": True,
                "domainColor": AXIS,
                "tickColor": AXIS,
                "tickSize": 4,
                "gridColor": GRID,
            },
            "axisBand": {"grid": False, "labelOverlap": False},
            "legend": {
                **text,
                "orient": "top",
                "titleFontWeight": 500,
                "titleAnchor": "start",
                "labelLimit": 260,
                "symbolStrokeWidth": 2.5,
                "symbolSize": 90,
                "gradientLength": 200,
            },
            "header": {**text, "titleFontWeight": 500, "labelFontWeight": 500},
            "mark": {"color": CATEGORY[0]},
            "line": {"strokeWidth": 2.2, "strokeJoin": "round"},
            "point": {"size": 50, "filled": True, "opacity": 0.9, "tooltip": True},
            "circle": {"size": 50, "opacity": 0.9, "tooltip": True},
            "bar": {"tooltip": True},
            "rect": {"tooltip": True},
            "area": {"opacity": 0.22},
            "errorband": {"opacity": 0.22},
            "rule": {"color": MUTED, "strokeWidth": 1.5},
            "text": {"color": INK, "fontSize": 12},
            "tick": {"color": CATEGORY[0]},
            "image": {"smooth": False},
            "selection": {"interval": {"mark": {"fill": INK, "fillOpacity": 0.1, "stroke": MUTED}}},
            "range": {
                "category": CATEGORY,
                "ordinal": CATEGORY,
                "heatmap": SEQUENTIAL,
                "ramp": RAMP,
                "diverging": DIVERGING,
            },
        }
    }


alt.theme.register("itr", enable=True)(theme)
alt.data_transformers.disable_max_rows()


def stylesheet() -> str:
    """The CSS a page needs: each color in light and dark, and the layout in ``static/charts.css``.

    Dark is chosen by ``html[data-theme=dark]`` (the book), Colab's ``html[theme=dark]``,
    JupyterLab's ``body[data-jp-theme-light=false]`` or VS Code's ``body.vscode-dark``.
    """
    light, dark = (
        "".join(f"--itr-{name}:{pair[i]};" for name, pair in TOKENS.items()) for i in (0, 1)
    )
    return (
        f":root{{{light}}}\n"
        "html[data-theme=dark],html[theme=dark],"
        f'body[data-jp-theme-light="false"],body.vscode-dark{{{dark}}}\n'
        "@media print{html[data-theme],html[theme],html body[data-jp-theme-light],"
        f"html body{{{light}}}}}\n" + (STATIC / "charts.css").read_text(encoding="utf-8")
    )


_VAR = re.compile(r"var\(--itr-([\w-]+),\s*(#[0-9a-fA-F]+)\)")


def paint(markup: str, mode: str = "light") -> str:
    """Replace the color properties in SVG or JSON text by plain colors of one page theme."""
    if mode not in ("light", "dark"):
        raise ValueError(f"mode must be 'light' or 'dark', got {mode!r}")
    return _VAR.sub(lambda m: TOKENS[m[1]][mode == "dark"], markup)


# --------------------------------------------------------------------------------------- figure


class Figure:
    """A finished chart; displays itself. Made by :func:`figure`.

    Attributes:
        title, subtitle, description: plain text.
        spec: the Vega-Lite specification without its title, floats rounded.
    """

    def __init__(self, title: str, subtitle: str, description: str, spec: dict):
        self.title, self.subtitle, self.description = title, subtitle, description
        self.spec = spec
        self._picture: tuple[str, float, float] | None = None

    def _drawn(self) -> tuple[str, float, float]:
        if self._picture is None:
            self._picture = draw(self.spec)
        return self._picture

    def svg(self, mode: str | None = "light") -> str:
        """The static picture with its title, in the colors of one page theme.

        ``mode=None`` keeps the color properties, for SVG that stands inside a page.
        """
        markup, width, height = self._drawn()
        markup = _with_title(markup, width, height, self.title, self.subtitle, self.description)
        return paint(markup, mode) if mode else markup

    def html(self) -> str:
        """The interactive picture; what is marked ``data-itr="loader"`` is for outside the book."""
        _, _, height = self._drawn()
        payload = {"title": self.title, "subtitle": self.subtitle, "spec": self.spec}
        return chart_html(payload, self.description, height) + loader()

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {
            "text/html": self.html(),
            "image/svg+xml": self.svg(),
            "text/plain": f"{self.title}\n{self.description}",
        }
        return data, {"figure": {"title": self.title, "description": self.description}}


def figure(chart: Any, description: str) -> Figure:
    """Finish a chart: check what readers need, and make it display everywhere.

    Args:
        chart: any Altair chart, simple or composed, whose ``title`` states the finding.
        description: what a reader who cannot see the picture must know: what is drawn, and what
            is to be seen in it. A sentence or two.

    Raises:
        TypeError: ``chart`` is not an Altair chart.
        ValueError: title or description is missing, the description is no description, or the
            chart holds more than 20,000 rows.
    """
    description = check_description(description)
    title, subtitle, spec = to_spec(chart)
    if description == title:
        raise ValueError("description repeats the title; say what the picture shows")
    return Figure(title, subtitle, description, spec)


def check_description(description: str) -> str:
    """The description with single spaces, or the error that says what is wrong with it."""
    if not isinstance(description, str):
        raise TypeError(f"description must be a string, got {type(description).__name__}")
    text = " ".join(description.split())
    if not text:
        raise ValueError("description is empty: say in a sentence what the picture shows")
    if re.fullmatch(r"\S+\.\w{2,5}", text):
        raise ValueError(f"description {text!r} looks like a file name; write a sentence")
    if len(text) < 25 or len(text.split()) < 5:
        raise ValueError(
            f"description {text!r} is too short to stand for the picture; write a sentence "
            "of at least 5 words and 25 characters"
        )
    return text


def to_spec(chart: Any) -> tuple[str, str, dict]:
    """Title, subtitle and the title-free, rounded specification of an Altair chart."""
    if not isinstance(chart, alt.TopLevelMixin):
        raise TypeError(f"chart must be an Altair chart, got {type(chart).__name__}")
    spec = chart.to_dict()
    title, subtitle = _title(spec.pop("title", None))
    if not title:
        raise ValueError(
            "chart has no title: set .properties(title=...) to the finding it shows "
            "(for a composed chart, on the whole)"
        )
    _round_data(spec)
    try:
        json.dumps(spec, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"chart holds a number that JSON cannot carry: {error}") from None
    return title, subtitle, spec


def _title(title: Any) -> tuple[str, str]:
    def text(value):
        return " ".join(value) if isinstance(value, list) else (value or "")

    if isinstance(title, dict):
        return text(title.get("text")).strip(), text(title.get("subtitle")).strip()
    return text(title).strip(), ""


def _round_data(node: Any) -> None:
    """Round the floats of every embedded table in place; refuse tables too long for a page."""
    tables = list(node.get("datasets", {}).values())

    def walk(part):
        if isinstance(part, dict):
            data = part.get("data")
            if isinstance(data, dict) and isinstance(data.get("values"), list):
                tables.append(data["values"])
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)

    walk({key: value for key, value in node.items() if key != "datasets"})
    rows = sum(len(table) for table in tables)
    if rows > MAX_ROWS:
        raise ValueError(
            f"chart holds {rows:,} rows; a page carries at most {MAX_ROWS:,}. "
            "Thin or aggregate the frame before drawing it"
        )
    for table in tables:
        round_table(table)


def round_table(rows: list) -> None:
    """Round floats in place to 5 significant digits, and finer where a column's range is narrow."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(row, dict):
            for key, value in row.items():
                if isinstance(value, float) and math.isfinite(value):
                    columns.setdefault(key, []).append(value)
    step = {}
    for key, values in columns.items():
        span = max(values) - min(values)
        step[key] = math.floor(math.log10(span)) - DIGITS + 1 if span > 0 else None
    for row in rows:
        if not isinstance(row, dict):
            continue
        for key, value in row.items():
            if not isinstance(value, float) or not math.isfinite(value) or value == 0:
                continue
            if value.is_integer() and abs(value) < 1e15:
                row[key] = int(value)
                continue
            digits = DIGITS
            if step[key] is not None:
                digits = max(digits, math.floor(math.log10(abs(value))) - step[key] + 1)
            row[key] = float(f"{value:.{min(digits, 15)}g}")


# ------------------------------------------------------------------------------------ rendering

_SIZE = re.compile(r'<svg[^>]*?width="([\d.]+)"[^>]*?height="([\d.]+)"')


def draw(spec: dict) -> tuple[str, float, float]:
    """SVG of a Vega-Lite specification, with its width and height in CSS pixels."""
    version = "v" + ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    markup = vlc.vegalite_to_svg(spec, vl_version=version)
    size = _SIZE.search(markup)
    return markup, float(size[1]), float(size[2])


def _with_title(
    markup: str, width: float, height: float, title: str, subtitle: str, description: str
) -> str:
    """Put a wrapped title above the picture. Vega would cut or widen it instead."""
    width = max(width, 320)
    rows = [(line, 15, 600, "ink") for line in _wrap(title, width, 8.2)]
    rows += [(line, 12.5, 400, "muted") for line in _wrap(subtitle, width, 6.6)]
    texts, y = [], 2.0
    for line, size, weight, token in rows:
        y += size * 1.35
        texts.append(
            f'<text x="4" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
            f'fill="{color(token)}">{html.escape(line)}</text>'
        )
    top = math.ceil(y + 12)
    inner = re.sub(r"^<svg[^>]*>|</svg>\s*$", "", markup.strip())
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width:g}" height="{height + top:g}" viewBox="0 0 {width:g} {height + top:g}" '
        f'role="img"><title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>'
        f'<g font-family="{html.escape(FONT)}">{"".join(texts)}</g>'
        f'<g transform="translate(0,{top})">{inner}</g></svg>'
    )


def _wrap(text: str, width: float, advance: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and (len(lines[-1]) + 1 + len(word)) * advance <= width - 8:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def to_json(value: Any) -> str:
    """JSON that may stand inside a ``<script>`` element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def chart_html(payload: dict, description: str, height: float, kind: str = "itr-chart") -> str:
    """The element that ``static/charts.js`` fills with a picture."""
    return (
        f'<div class="{kind}" role="img" aria-label="{html.escape(description)}" '
        f'style="min-height:{math.ceil(height)}px">'
        f'<script type="application/json" class="itr-spec">{to_json(payload)}</script></div>'
    )


def loader(script: bool = True) -> str:
    """Style and script for a page that is not the book's; the press takes these elements out."""
    markup = f'<style data-itr="loader">{stylesheet()}</style>'
    if not script:
        return markup
    major = {"5": ("5", "6"), "6": ("6", "7")}[alt.SCHEMA_VERSION.lstrip("v")[0]]
    lite = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    addresses = [
        f"https://cdn.jsdelivr.net/npm/{name}"
        for name in (f"vega@{major[0]}", f"vega-lite@{lite}", f"vega-embed@{major[1]}")
    ]
    code = (STATIC / "charts.js").read_text(encoding="utf-8")
    return (
        markup + f'<script data-itr="loader">window.itrVega={json.dumps(addresses)};\n'
        f"{code}</script>"
    )


# --------------------------------------------------------------------------------------- charts


def seed_band(
    frame: pd.DataFrame,
    x: str,
    y: str,
    color: str | None = None,
    *,
    log: str = "",
    x_title: str | None = None,
    y_title: str | None = None,
    color_title: str | None = None,
    sort: Sequence | None = None,
    width: int = 480,
    height: int = 280,
) -> alt.LayerChart:
    """Mean over seeds as a line, smallest to largest as a band.

    Args:
        frame: one row for every measurement; several rows share one ``x`` (and ``color``).
        x, y, color: column names; ``color`` names the groups.
        log: which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        sort: the groups in the order in which they get their colors.
    """
    _columns(frame, x, y, color)
    keys = [x] + ([color] if color else [])
    table = frame.groupby(keys, sort=False, observed=True)[y].agg(["mean", "min", "max"])
    table = table.reset_index()
    base = alt.Chart(table).encode(
        x=_axis(alt.X, x, x_title, "x" in _log(log)), **_color(frame, color, color_title, sort)
    )
    scale = _scale("y" in log)
    title = y_title or y
    tips = [alt.Tooltip(field=k, type=_type(frame[k])) for k in keys] + [
        alt.Tooltip(field=k, type="quantitative", format=".4~g") for k in ("mean", "min", "max")
    ]
    band = base.mark_area().encode(y=alt.Y("min:Q", scale=scale, title=title), y2=alt.Y2("max:Q"))
    line = base.mark_line(point={"size": 22}).encode(
        y=alt.Y("mean:Q", scale=scale, title=title), tooltip=tips
    )
    return alt.layer(band, line).properties(width=width, height=height)


def predicted_and_measured(
    predicted: pd.DataFrame,
    measured: pd.DataFrame,
    x: str,
    y: str,
    color: str | None = None,
    *,
    log: str = "",
    x_title: str | None = None,
    y_title: str | None = None,
    color_title: str | None = None,
    sort: Sequence | None = None,
    width: int = 480,
    height: int = 280,
) -> alt.LayerChart:
    """Theory as lines, measurements as dots on top; a legend says which is which.

    Both frames have the columns ``x``, ``y`` and, for groups, ``color``.
    """
    _columns(predicted, x, y, color)
    _columns(measured, x, y, color)
    both = pd.concat([measured, predicted]) if color else measured
    encoding = dict(
        x=_axis(alt.X, x, x_title, "x" in _log(log)),
        y=_axis(alt.Y, y, y_title, "y" in log),
        **_color(both, color, color_title, sort),
    )
    legend = alt.Legend(title=None, symbolFillColor=MUTED, symbolStrokeColor=MUTED)
    line = (
        alt.Chart(predicted.assign(_kind="predicted"))
        .mark_line()
        .encode(**encoding, strokeDash=alt.StrokeDash("_kind:N", legend=legend))
    )
    dots = (
        alt.Chart(measured.assign(_kind="measured"))
        .mark_point()
        .encode(**encoding, shape=alt.Shape("_kind:N", legend=legend))
    )
    return (
        alt.layer(line, dots)
        .resolve_scale(shape="independent", strokeDash="independent")
        .properties(width=width, height=height)
    )


def loglog_fit(
    frame: pd.DataFrame,
    x: str,
    y: str,
    color: str | None = None,
    *,
    x_title: str | None = None,
    y_title: str | None = None,
    color_title: str | None = None,
    sort: Sequence | None = None,
    width: int = 480,
    height: int = 280,
) -> alt.LayerChart:
    """Points on two logarithmic axes, a least-squares power law per group, its slope written on.

    Raises:
        ValueError: a number that is not positive, or a group with a single ``x``.
    """
    from lib.core.stats import loglog_slope

    _columns(frame, x, y, color)
    groups = frame.groupby(color, sort=False, observed=True) if color else [(None, frame)]
    lines, labels = [], []
    for name, part in groups:
        fit = loglog_slope(part[x].to_numpy(float), part[y].to_numpy(float))
        ends = np.array([part[x].min(), part[x].max()], dtype=float)
        key = {color: name} if color else {}
        lines += [{x: a, y: float(fit(a)), **key} for a in ends]
        sign = "−" if fit.slope < 0 else ""
        label = f"slope {sign}{abs(fit.slope):.2f}"
        labels.append({x: ends[1], y: float(fit(ends[1])), "label": label, **key})
    encoding = dict(
        x=_axis(alt.X, x, x_title, True),
        y=_axis(alt.Y, y, y_title, True),
        **_color(frame, color, color_title, sort),
    )
    # Points carry no legend of their own: the group's color is enough.
    dots = alt.Chart(frame[[c for c in (x, y, color) if c]]).mark_point().encode(**encoding)
    line = alt.Chart(pd.DataFrame(lines)).mark_line(strokeDash=[6, 4]).encode(**encoding)
    text = (
        alt.Chart(pd.DataFrame(labels))
        .mark_text(align="right", dy=-12, fontWeight=600)
        .encode(**encoding, text="label:N")
    )
    return alt.layer(line, dots, text).properties(width=width, height=height)


def heatmap(
    matrix: Any,
    rows: Sequence | None = None,
    columns: Sequence | None = None,
    *,
    row_title: str | None = None,
    column_title: str | None = None,
    value_title: str = "value",
    scheme: str = "sequential",
    domain: tuple[float, float] | None = None,
    cell: int | None = None,
    text: str | None = None,
) -> alt.Chart | alt.LayerChart:
    """A matrix as colored cells, first row on top.

    Args:
        matrix: numbers of shape ``(rows, columns)``; NaN leaves its cell empty.
        rows, columns: labels, each once; counted from 0 where absent.
        scheme: ``"sequential"``, or ``"diverging"`` around zero.
        domain: the values at the ends of the color scale.
        cell: side of a cell in pixels; chosen by the matrix's size where absent.
        text: a format such as ``".2f"`` writes each number into its cell.
    """
    if scheme not in ("sequential", "diverging"):
        raise ValueError(f"scheme must be 'sequential' or 'diverging', got {scheme!r}")
    m = _numbers(matrix)
    if m.ndim != 2 or m.size == 0:
        raise ValueError(f"matrix must have two non-empty dimensions, got shape {m.shape}")
    names = []
    for what, given, n in (("rows", rows, m.shape[0]), ("columns", columns, m.shape[1])):
        labels = [str(v) for v in (range(n) if given is None else given)]
        if len(labels) != n or len(set(labels)) != n:
            raise ValueError(f"{what} must be {n} different labels, got {labels}")
        names.append(labels)
    finite = m[np.isfinite(m)]
    if domain is None and finite.size:
        top = float(np.abs(finite).max()) or 1.0
        low, high = float(finite.min()), float(finite.max())
        domain = (-top, top) if scheme == "diverging" else (low, high if high > low else low + 1)
    cell = cell or max(4, min(44, 440 // max(m.shape)))
    palette = DIVERGING if scheme == "diverging" else SEQUENTIAL
    low, high = domain or (0.0, 1.0)
    table = pd.DataFrame(
        [
            {
                "row": r,
                "column": c,
                "value": float(m[i, j]),
                "bright": _is_bright(m[i, j], low, high, palette),
            }
            for i, r in enumerate(names[0])
            for j, c in enumerate(names[1])
        ]
    )
    many = [max(1, len(labels) * 14 // max(1, len(labels) * cell)) for labels in names]
    axes = [
        alt.Axis(
            title=title,
            labelAngle=0,
            domain=False,
            ticks=False,
            values=labels[:: step if step > 1 else 1] if len(labels) > 1 else alt.Undefined,
        )
        for labels, title, step in zip(names, (row_title, column_title), many, strict=True)
    ]
    base = alt.Chart(table).encode(
        x=alt.X("column:N", sort=names[1], axis=axes[1]),
        y=alt.Y("row:N", sort=names[0], axis=axes[0]),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            title=value_title,
            scale=alt.Scale(range=palette, domain=[low, high], clamp=True),
        ),
        tooltip=[
            alt.Tooltip("row:N", title=row_title or "row"),
            alt.Tooltip("column:N", title=column_title or "column"),
            alt.Tooltip("value:Q", title=value_title, format=".4~g"),
        ],
    )
    size = {"width": cell * m.shape[1], "height": cell * m.shape[0]}
    if text is None:
        return cells.properties(**size)
    numbers = base.mark_text(fontSize=max(9, min(12, cell // 3))).encode(
        text=alt.Text("value:Q", format=text),
        color=alt.condition("datum.bright", alt.value("#000000"), alt.value("#ffffff")),
    )
    return alt.layer(cells, numbers).properties(**size)


def image_grid(
    images: Any,
    labels: Sequence | None = None,
    *,
    columns: int = 8,
    size: int = 60,
    domain: tuple[float, float] | None = None,
    scheme: str = "gray",
) -> alt.LayerChart:
    """Small images side by side, each with a label below it.

    Args:
        images: ``(n, height, width)``, ``(n, 1, height, width)``, or three color channels first
            or last, in ``[0, 1]``.
        labels: ``n`` short texts.
        columns: images in a row.
        size: side of an image in CSS pixels; pixels stay sharp.
        domain: the values shown as black and white (or as the scheme's ends). The smallest and
            largest of all images where absent; colors keep ``(0, 1)``.
        scheme: ``"gray"``, ``"sequential"`` or ``"diverging"``.
    """
    schemes = {"gray": ["#000000", "#ffffff"], "sequential": SEQUENTIAL, "diverging": DIVERGING}
    if scheme not in schemes:
        raise ValueError(f"scheme must be one of {list(schemes)}, got {scheme!r}")
    a = _numbers(images)
    if a.ndim == 4 and a.shape[1] == 1:
        a = a[:, 0]
    if a.ndim == 4 and a.shape[1] == 3:
        a = a.transpose(0, 2, 3, 1)
    if a.ndim not in (3, 4) or (a.ndim == 4 and a.shape[-1] != 3) or len(a) == 0:
        raise ValueError(f"images must have shape (n, h, w) or (n, 3, h, w), got {a.shape}")
    labels = [""] * len(a) if labels is None else [str(v) for v in labels]
    if len(labels) != len(a):
        raise ValueError(f"labels has {len(labels)} entries for {len(a)} images")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if a.ndim == 3:
        if domain is None:
            top = float(np.nanmax(np.abs(a))) or 1.0
            domain = (-top, top) if scheme == "diverging" else (float(a.min()), float(a.max()))
        low, high = domain
        a = _colors((a - low) / ((high - low) or 1.0), schemes[scheme])
    else:
        low, high = domain or (0.0, 1.0)
        a = (a - low) / ((high - low) or 1.0)
    pixels = (np.clip(np.nan_to_num(a), 0, 1) * 255).round().astype(np.uint8)
    columns = min(columns, len(pixels))
    caption = 18 if any(labels) else 0
    gap, step = 6, size + 6
    rows = math.ceil(len(pixels) / columns)
    table = pd.DataFrame(
        [
            {
                "x": (i % columns) * step + size / 2,
                "y": (i // columns) * (step + caption) + size / 2,
                "image": _png(image),
                "label": label,
            }
            for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
        ]
    )
    width, height = columns * step - gap, rows * (step + caption) - gap
    base = alt.Chart(table).encode(
        x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, width], nice=False, zero=False)),
        y=alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[height, 0], nice=False, zero=False)),
    )
    pictures = base.mark_image(width=size, height=size, smooth=False).encode(url="image:N")
    texts = base.mark_text(dy=size / 2 + 11, fontSize=11).encode(text="label:N")
    # usermeta tells charts.js to scale the picture as a whole on a narrow page.
    return alt.layer(pictures, texts).properties(
        width=width, height=height, usermeta={"itr": "scale"}
    )


# -------------------------------------------------------------------------------------- helpers


def _columns(frame: pd.DataFrame, *names: str | None) -> None:
    for name in names:
        if name is not None and name not in frame.columns:
            raise ValueError(f"frame has no column {name!r}; it has {list(frame.columns)}")
    if frame.empty:
        raise ValueError("frame is empty: nothing to draw")


def _log(log: str) -> str:
    if log not in ("", "x", "y", "xy"):
        raise ValueError(f"log must be '', 'x', 'y' or 'xy', got {log!r}")
    return log


def _type(column: pd.Series) -> str:
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return "quantitative" if numeric else "nominal"


def _scale(log: bool) -> alt.Scale:
    return alt.Scale(type="log") if log else alt.Scale(zero=False)


def _field(name: str) -> str:
    """A column name as Vega reads it: dots and brackets would mean nested fields."""
    return re.sub(r"([.\[\]])", r"\\\1", name)


def _axis(channel: Any, name: str, title: str | None, log: bool) -> Any:
    return channel(field=_field(name), type="quantitative", title=title or name, scale=_scale(log))


def _color(frame: pd.DataFrame, name: str | None, title: str | None, sort: Any) -> dict:
    if name is None:
        return {}
    groups = list(dict.fromkeys(frame[name])) if sort is None else list(sort)
    numeric = _type(frame[name]) == "quantitative"
    if numeric and sort is None:
        groups = sorted(groups)
    if numeric and 2 <= len(groups) <= 7:
        palette = ordered(len(groups))
    elif len(groups) <= len(CATEGORY):
        palette = CATEGORY[: len(groups)]
    else:
        raise ValueError(f"color {name!r} has {len(groups)} groups; at most 7 can be told apart")
    groups = [g.item() if hasattr(g, "item") else g for g in groups]
    return {
        "color": alt.Color(
            field=_field(name),
            type="nominal",
            title=title or name,
            sort=groups,
            scale=alt.Scale(domain=groups, range=palette),
        )
    }


def _numbers(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array, dtype=float)


def _colors(values: np.ndarray, stops: Sequence[str]) -> np.ndarray:
    """Values in [0, 1] to RGB in [0, 1] by linear interpolation between stops."""
    table = np.array([[int(s[i : i + 2], 16) / 255 for i in (1, 3, 5)] for s in stops])
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, at, table[:, c]) for c in range(3)], axis=-1)


def _is_bright(value: float, low: float, high: float, stops: Sequence[str]) -> bool:
    if not math.isfinite(value):
        return True
    rgb = _colors(np.array((value - low) / ((high - low) or 1.0)), stops)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return luminance > 0.179  # where black and white text contrast alike


def _png(rgb: np.ndarray) -> str:
    """A data address with an RGB image, 8 bits a channel."""
    height, width, _ = rgb.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    lines = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(rgb))
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()
