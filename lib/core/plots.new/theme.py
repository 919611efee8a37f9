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


