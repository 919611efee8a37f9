"""Charts that many chapters draw; each returns an Altair chart for ``figure`` to finish."""

from __future__ import annotations

import base64
import math
import re
import struct
import textwrap
import zlib
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from lib.core.plots.theme import CATEGORY, DIVERGING, INK, MUTED, SEQUENTIAL, ordered
from lib.core.stats import loglog_slope


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
    _columns(frame, x, y, color, log=_logged(log, x, y))
    keys = [x] + ([color] if color else [])
    groups = frame.groupby(keys, sort=False, observed=True)[y]
    table = groups.agg(["mean", "min", "max"])
    # A run that diverged is not averaged away: the line breaks where any seed has no number.
    table[groups.agg(lambda v: v.isna().any()).astype(bool)] = np.nan
    table = table.reset_index()
    base = alt.Chart(table).encode(
        x=_axis(alt.X, x, x_title, "x" in log), **_color(frame, color, color_title, sort)
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
    for frame in (predicted, measured):
        _columns(frame, x, y, color, log=_logged(log, x, y))
    both = pd.concat([measured, predicted]) if color else measured
    encoding = dict(
        x=_axis(alt.X, x, x_title, "x" in log),
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
    _columns(frame, x, y, color, log=[x, y])
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
    heights = [math.log(row[y]) for row in [*lines, *frame[[y]].to_dict("records")]]
    pixel = max(max(heights) - min(heights), 1e-9) / height
    for end in {row[x] for row in labels}:
        beside = [row for row in labels if row[x] == end]
        for row, place in zip(beside, apart([math.log(row[y]) for row in beside], 15 * pixel)):
            row[y] = math.exp(place)
    encoding = dict(
        x=_axis(alt.X, x, x_title, True),
        y=_axis(alt.Y, y, y_title, True),
        **_color(frame, color, color_title, sort),
    )
    # Points carry no legend of their own: the group's color is enough.
    dots = alt.Chart(frame[[c for c in (x, y, color) if c]]).mark_point().encode(**encoding)
    line = alt.Chart(pd.DataFrame(lines)).mark_line(strokeDash=[6, 4]).encode(**encoding)
    # In ink: letters need more contrast than lines, and not every color of the theme has it.
    text = (
        alt.Chart(pd.DataFrame(labels))
        .mark_text(align="left", dx=8, fontWeight=600, color=INK)
        .encode(x=encoding["x"], y=encoding["y"], text="label:N")
    )
    return alt.layer(line, dots, text).properties(width=width, height=height)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places on a line, moved no more than needed so that no two are nearer than ``gap``.

    The order stays, and what is moved is moved around its own mean (least squares).
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    # With its rank's share of gaps taken out, "at least a gap apart" is "not falling": pool means.
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([places[i] - rank * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = [float(np.mean(pool)) for pool in pools for _ in pool]
    moved = [0.0] * len(places)
    for rank, i in enumerate(order):
        moved[i] = flat[rank] + rank * gap
    return moved


def heatmap(
    matrix: Any,
    rows: Sequence | None = None,
    columns: Sequence | None = None,
    *,
    row_title: str | None = None,
    column_title: str | None = None,
    value_title: str = "value",
    scheme: str = "sequential",
    domain: tuple | None = None,
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
            {"row": r, "column": c, "value": float(m[i, j])}
            for i, r in enumerate(names[0])
            for j, c in enumerate(names[1])
        ]
    )
    if text is not None:
        table["bright"] = [_is_bright(v, low, high, palette) for v in table["value"]]
    # Thin the labels where cells are smaller than text, and turn long ones below their column.
    across = max(map(len, names[1])) * 7 + 6
    turned = across > cell and columns is not None
    every = [math.ceil(14 / cell), math.ceil((14 if turned else across) / cell)]
    axes = [
        alt.Axis(
            title=title,
            values=labels[::step],
            labelAngle=angle,
            labelOverlap=True,
            domain=False,
            ticks=False,
        )
        for labels, title, step, angle in zip(
            names, (row_title, column_title), every, (0, -90 if turned else 0), strict=True
        )
    ]
    base = alt.Chart(table).encode(
        x=alt.X("column:N", sort=names[1], axis=axes[1]),
        y=alt.Y("row:N", sort=names[0], axis=axes[0]),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            title=value_title,
            scale=alt.Scale(range=palette, domain=[low, high], clamp=True, interpolate="rgb"),
        ),
        tooltip=[
            alt.Tooltip("row:N", title=row_title or "row"),
            alt.Tooltip("column:N", title=column_title or "column"),
            alt.Tooltip("value:Q", title=value_title, format=".4~g"),
        ],
    )
    size = {"width": alt.Step(cell), "height": alt.Step(cell)}
    if text is None:
        return cells.properties(**size)
    numbers = (
        base.mark_text(fontSize=max(9, min(12, cell // 3)))
        .encode(
            text=alt.Text("value:Q", format=text),
            color=alt.condition("datum.bright", alt.value("#000000"), alt.value("#ffffff")),
        )
        .transform_filter("isValid(datum.value)")  # an empty cell would say "null" on the page
    )
    return alt.layer(cells, numbers).properties(**size)


def image_grid(
    images: Any,
    labels: Sequence | None = None,
    *,
    columns: int = 8,
    size: int = 60,
    domain: tuple | None = None,
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
    gap = 6
    step = size + gap
    labels = ["\n".join(textwrap.wrap(label, max(4, int(step / 5.8)))) for label in labels]
    lines = max(label.count("\n") + 1 for label in labels)
    caption = 4 + 13 * lines if any(labels) else 0
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
    layers = [pictures]
    if caption:
        layers.append(
            base.mark_text(dy=size / 2 + 11, fontSize=11, lineBreak="\n").encode(text="label:N")
        )
    # usermeta tells charts.js to scale the picture as a whole on a narrow page.
    return alt.layer(*layers).properties(width=width, height=height, usermeta={"itr": "scale"})


def _columns(frame: pd.DataFrame, *names: str | None, log: Sequence[str] = ()) -> None:
    for name in names:
        if name is not None and name not in frame.columns:
            raise ValueError(f"frame has no column {name!r}; it has {list(frame.columns)}")
    if frame.empty:
        raise ValueError("frame is empty: nothing to draw")
    for name in log:
        worst = frame[name].min()
        if not worst > 0:
            raise ValueError(f"{name} goes down to {worst}: a log axis needs positive numbers")


def _logged(log: str, x: str, y: str) -> list[str]:
    """The columns on logarithmic axes."""
    if log not in ("", "x", "y", "xy"):
        raise ValueError(f"log must be '', 'x', 'y' or 'xy', got {log!r}")
    return [name for axis, name in (("x", x), ("y", y)) if axis in log]


def _type(column: pd.Series) -> str:
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return "quantitative" if numeric else "nominal"


def _scale(log: bool) -> alt.Scale:
    return alt.Scale(type="log", nice=False, padding=10) if log else alt.Scale(zero=False)


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
