"""A chart as one MIME bundle: a picture for every page, alive where Vega is, and words."""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any

import altair as alt
import vl_convert as vlc

from lib.core.plots.theme import MUTED, STATIC, color, paint, stylesheet

MAX_ROWS = 20_000
DIGITS = 5
PRINT_FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"


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

    def picture(self) -> tuple[str, float, float]:
        """SVG without its title, its width and its height in CSS pixels; drawn once."""
        if self._picture is None:
            self._picture = draw(self.spec)
        return self._picture

    def svg(self, mode: str | None = "light") -> str:
        """The static picture with its title, in the colors of one page theme.

        ``mode=None`` keeps the color properties, for SVG that stands inside a page.
        """
        markup, width, height = self.picture()
        markup = _with_title(markup, width, height, self.title, self.subtitle, self.description)
        return paint(markup, mode) if mode else markup

    def html(self) -> str:
        """The interactive picture; what is marked ``data-itr="loader"`` is for outside the book."""
        payload = {"title": self.title, "subtitle": self.subtitle, "spec": self.spec}
        return chart_html(payload, self) + loader()

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
    _tend_legends(spec)
    _round_data(spec)
    try:
        json.dumps(spec, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"chart holds a number that JSON cannot carry: {error}") from None
    return title, subtitle, spec


def _tend_legends(node: Any) -> None:
    """One legend for a field that sets color and shape; no black symbols, which dark pages hide."""
    if isinstance(node, list):
        for part in node:
            _tend_legends(part)
        return
    if not isinstance(node, dict):
        return
    encoding = node.get("encoding") or {}
    hue = encoding.get("color") or {}
    for channel in ("shape", "strokeDash", "size"):
        other = encoding.get(channel) or {}
        if "field" not in hue or "field" not in other or other.get("legend", "") is None:
            continue
        if other["field"] != hue["field"]:
            gray = {"symbolFillColor": MUTED, "symbolStrokeColor": MUTED}
            other["legend"] = gray | other.get("legend", {})
            continue
        # Vega-Lite draws one legend where field, title and domain agree.
        other |= {key: hue[key] for key in ("title", "sort") if key in hue and key not in other}
        domain = (hue.get("scale") or {}).get("domain")
        if domain is not None:
            other["scale"] = {"domain": domain} | (other.get("scale") or {})
    for key, value in node.items():
        if key not in ("datasets", "data", "config"):
            _tend_legends(value)


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
    """Round floats in place to 5 significant digits, and finer where a column's range is narrow.

    NaN becomes null: Altair does so in columns of numbers, but not in columns of text, where a
    missing value is NaN before pandas 3.
    """
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
            if isinstance(value, float) and math.isnan(value):
                row[key] = None
            if not isinstance(value, float) or not math.isfinite(value) or value == 0:
                continue
            if value.is_integer() and abs(value) < 1e15:
                row[key] = int(value)
                continue
            digits = DIGITS
            if step[key] is not None:
                digits = max(digits, math.floor(math.log10(abs(value))) - step[key] + 1)
            row[key] = float(f"{value:.{min(digits, 15)}g}")


_SIZE = re.compile(r'<svg[^>]*?width="([\d.]+)"[^>]*?height="([\d.]+)"')


def draw(spec: dict) -> tuple[str, float, float]:
    """SVG of a Vega-Lite specification, with its width and height in CSS pixels."""
    version = "v" + ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    # The converter measures text with the fonts it knows; the page's font is not among them.
    config = {**spec.get("config", {}), "font": PRINT_FONT}
    markup = vlc.vegalite_to_svg({**spec, "config": config}, vl_version=version)
    size = _SIZE.search(markup)
    return markup, float(size[1]), float(size[2])


def _with_title(
    markup: str, width: float, height: float, title: str, subtitle: str, description: str
) -> str:
    """Put a wrapped title above the picture. Vega would cut or widen it instead."""
    width = max(width, 320.0)
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
        f'<g font-family="{html.escape(PRINT_FONT)}">{"".join(texts)}</g>'
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


def chart_html(payload: dict, shown: Figure) -> str:
    """The element that ``static/charts.js`` fills with a picture; ``shown`` is what it shows first.

    The still picture beside the specification is for a notebook without internet, where Vega
    cannot be had; the press takes it out like the rest of the loader.
    """
    _, _, height = shown.picture()
    return (
        f'<div class="itr-chart" role="img" aria-label="{html.escape(shown.description)}" '
        f'style="min-height:{math.ceil(height)}px">'
        f'<script type="application/json" class="itr-spec">{to_json(payload)}</script>'
        f'<script data-itr="loader" type="image/svg+xml">{shown.svg(mode=None)}</script></div>'
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
    code = re.sub(r"/\*.*?\*/|^\s*//[^\n]*$|^\s+", "", code, flags=re.S | re.M)
    return (
        markup + f'<script data-itr="loader">window.itrVega={json.dumps(addresses)};\n'
        f"{code}</script>"
    )
