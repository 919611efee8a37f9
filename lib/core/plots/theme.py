"""The book's Altair theme: colors that follow the page between light and dark.

A color is a CSS custom property with its light value as fallback (``var(--itr-ink, #1f2328)``).
Vega writes it into the SVG as it stands, and the reader's browser resolves it: one picture serves
both page themes. ``stylesheet`` gives the definitions that a page needs, ``paint`` puts plain
colors in their place where nothing would resolve them. Importing this module enables the theme.
"""

from __future__ import annotations

import re
from pathlib import Path

import altair as alt

STATIC = Path(__file__).resolve().parents[1] / "static"

# name: (light, dark). Text at least 4.5:1, marks at least 3:1 against #ffffff and #14181e.
TOKENS = {
    "ink": ("#1f2328", "#e3e6ea"),
    "muted": ("#59636e", "#a3adb8"),
    "axis": ("#8a939d", "#7d8792"),
    "grid": ("#e4e7eb", "#2b323b"),
    # Verdicts: text, also on the grays of Colab's and JupyterLab's cells, down to #383838.
    "yes": ("#00734a", "#3ddc84"),
    "no": ("#b03e00", "#f5a15e"),
    # Six categories. Under normal vision and each form of color blindness, any two are at least
    # 15 apart in CIE Lab (tests/core/test_plots.py measures this).
    "c1": ("#0072b2", "#56b4e9"),
    "c2": ("#e8590c", "#f28e3c"),
    "c3": ("#009e60", "#3ddc84"),
    "c4": ("#c2659b", "#d99ab5"),
    "c5": ("#8b4600", "#f7ec5c"),
    "c6": ("#5f19a9", "#a67cff"),
    # Seven steps of one ordered quantity: the further, the stronger against the page.
    "s1": ("#3d9a9e", "#6470e6"),
    "s2": ("#378ba4", "#5983e2"),
    "s3": ("#317daa", "#4f96df"),
    "s4": ("#2b6fb0", "#45aadb"),
    "s5": ("#2e539e", "#6ec2d8"),
    "s6": ("#30398c", "#9adbd6"),
    "s7": ("#33207a", "#c9f5d3"),
}


def color(name: str) -> str:
    """The CSS color of a token, e.g. ``color("ink")``; ``TOKENS`` lists the names."""
    if name not in TOKENS:
        raise ValueError(f"name {name!r} is not a color; allowed: {', '.join(TOKENS)}")
    return f"var(--itr-{name}, {TOKENS[name][0]})"


INK, MUTED, AXIS, GRID = color("ink"), color("muted"), color("axis"), color("grid")
CATEGORY = [color(f"c{i}") for i in range(1, 7)]
# Vega's "viridis" and "blueorange": real colors, since Vega interpolates between them.
# fmt: off
SEQUENTIAL = [
    "#440154", "#482576", "#414487", "#35608d", "#2a788e", "#21918c",
    "#22a884", "#43bf71", "#7ad151", "#bbdf27", "#fde725",
]
DIVERGING = [
    "#134b85", "#2f78b3", "#5da2cb", "#9dcae1", "#d2e5ef", "#f2f0eb",
    "#fce0ba", "#fbbf74", "#e8932f", "#c5690d", "#994a07",
]
# fmt: on
# Lines and dots colored by a number: every color at least 3:1 on both pages.
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
            # The description stands for the whole picture; a label on every dot would be noise.
            "aria": False,
            "background": "transparent",
            "font": FONT,
            "padding": 4,
            "view": {
                "continuousWidth": 480,
                "continuousHeight": 280,
                "discreteWidth": {"step": 32},
                "stroke": None,
            },
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
                "columnPadding": 16,
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
                "heatmap": {"scheme": "viridis"},
                "ramp": RAMP,
                "diverging": {"scheme": "blueorange"},
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
