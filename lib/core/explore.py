"""Explorables: one chart over a grid of settings, moved by a slider, with or without a kernel.

``explore(compute, chart, description=..., width=[16, 64, 256])`` evaluates ``compute`` at every
setting once and shows a control for each name of the grid. On a page the pictures are already
there and the control chooses among them. In a running notebook the same output is an ipywidgets
control that calls ``compute`` again.
"""

from __future__ import annotations

import html
import itertools
import json
import warnings
from collections.abc import Callable
from numbers import Number
from typing import Any

import pandas as pd

from lib.core.plots.bundle import Figure, chart_html, check_description, figure, loader

MANY = 60


class Explorable:
    """What :func:`explore` returns; displays itself.

    Attributes:
        names: the grid's names in order; ``grid``: their values; ``start``: the index shown first.
        pages: one :class:`lib.core.plots.Figure` per setting, the last name varying fastest.
    """

    def __init__(self, compute, chart, description, labels, grid, start, pages):
        self.compute, self.chart, self.description = compute, chart, description
        self.names, self.grid, self.labels = list(grid), grid, labels
        self.start, self.pages = start, pages

    def settings(self) -> list[dict]:
        """Every setting of the grid, the last name varying fastest."""
        return [
            dict(zip(self.names, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]

    def _repr_mimebundle_(self, include=None, exclude=None):
        page = self.pages[self.start]
        data = {
            "text/html": self.html(),
            "image/svg+xml": page.svg(),
            "text/plain": f"{page.title}\n{self.description}",
        }
        if _has_kernel():
            data["application/vnd.jupyter.widget-view+json"] = self._widget()
        figure = {"title": page.title, "description": self.description}
        grid = {name: [_show(v) for v in values] for name, values in self.grid.items()}
        return data, {"figure": figure, "explore": grid}

    # ------------------------------------------------------------------------- without a kernel

    def html(self) -> str:
        """Controls and all pictures: the first one whole, of the others only what differs."""
        tables: dict[str, Any] = {}
        documents = []
        for page in self.pages:
            spec = dict(page.spec)
            tables.update(spec.pop("datasets", {}))
            documents.append({"title": page.title, "subtitle": page.subtitle, "spec": spec})
        first = documents[0]
        payload = {
            **first,
            "grid": [[_show(v) for v in values] for values in self.grid.values()],
            "start": self.start,
            "states": [_difference(first, other, ["page"]) for other in documents],
            "datasets": tables,
        }
        controls = "".join(
            self._control(name, index)
            for name, index in zip(self.names, self._start_indices(), strict=True)
        )
        return (
            f'<div class="itr-explore"><div class="itr-controls" hidden>{controls}</div>'
            + chart_html(payload, self.pages[self.start])
            + "</div>"
            + loader()
        )

    def _control(self, name: str, index: int) -> str:
        values, label = self.grid[name], html.escape(self.labels[name])
        shown = [html.escape(_show(v)) for v in values]
        if _numeric(values):
            return (
                f'<label><span>{label}</span><input type="range" min="0" max="{len(values) - 1}" '
                f'step="1" value="{index}" autocomplete="off" aria-valuetext="{shown[index]}">'
                f"<output>{shown[index]}</output></label>"
            )
        options = "".join(
            f'<option value="{i}"{" selected" if i == index else ""}>{text}</option>'
            for i, text in enumerate(shown)
        )
        return f'<label><span>{label}</span><select autocomplete="off">{options}</select></label>'

    def _start_indices(self) -> list[int]:
        indices, rest = [], self.start
        for values in reversed(list(self.grid.values())):
            rest, index = divmod(rest, len(values))
            indices.append(index)
        return indices[::-1]

    # ---------------------------------------------------------------------------- with a kernel

    def _widget(self) -> dict:
        """An ipywidgets view that calls ``compute`` again for the chosen setting."""
        import ipywidgets as widgets

        controls = []
        for name, index in zip(self.names, self._start_indices(), strict=True):
            values = self.grid[name]
            options = [(_show(v), v) for v in values]
            common = {"description": self.labels[name], "options": options, "value": values[index]}
            style = {"description_width": "initial"}
            if _numeric(values):
                control = widgets.SelectionSlider(**common, style=style, continuous_update=False)
            else:
                control = widgets.Dropdown(**common, style=style)
            controls.append(control)
        style = loader(script=False)
        picture = widgets.HTML(style + self.pages[self.start].svg(mode=None))

        def update(_):
            setting = {n: c.value for n, c in zip(self.names, controls, strict=True)}
            try:
                page = _page(self.compute, self.chart, self.description, setting)
                picture.value = style + page.svg(mode=None)
            except Exception as error:  # shown where the reader looks; a callback has no cell
                text = html.escape(f"{type(error).__name__}: {error}")
                picture.value = f"{style}<pre class='itr-error'>{text}</pre>"

        for control in controls:
            control.observe(update, names="value")
        self._live = widgets.VBox([*controls, picture])
        return {"version_major": 2, "version_minor": 0, "model_id": self._live.model_id}


def explore(
    compute: Callable[..., pd.DataFrame],
    chart: Callable[[pd.DataFrame], Any],
    *,
    description: str,
    labels: dict[str, str] | None = None,
    default: dict[str, Any] | None = None,
    **grid: Any,
) -> Explorable:
    """A chart with a control for each name in ``grid``.

    Args:
        compute: ``compute(**setting)`` returns the data frame of one setting.
        chart: ``chart(frame)`` returns an Altair chart with a title, which may depend on the
            frame. Fix the axes' domains if pictures are to be compared.
        description: as for :func:`lib.core.plots.figure`; say what moves when the control moves.
        labels: what the reader sees instead of a grid's name, e.g. ``{"lr": "step size"}``.
        default: the setting shown first, e.g. ``{"width": 256}``; otherwise each first value.
        grid: name to list of values. Numbers get a slider, anything else a list to choose from.

    Raises:
        ValueError: no grid, fewer than two values under a name, the same value twice, a label or
            default that names nothing, or what :func:`lib.core.plots.figure` refuses.
        TypeError: values are not a list, or ``compute`` returns no data frame.

    Warns:
        UserWarning: more than 60 settings: the page grows heavy.
    """
    description = check_description(description)
    if not grid:
        raise ValueError("grid is empty: give at least one name=[value, value, ...]")
    grid = {name: _values(name, values) for name, values in grid.items()}
    for what, given in (("labels", labels), ("default", default)):
        unknown = set(given or {}) - set(grid)
        if unknown:
            raise ValueError(f"{what} names {sorted(unknown)}; the grid has {list(grid)}")
    labels = {name: (labels or {}).get(name, name.replace("_", " ")) for name in grid}
    start = 0
    for name, values in grid.items():
        first = (default or {}).get(name, values[0])
        if first not in values:
            raise ValueError(f"default {name}={first!r} is not in the grid {values}")
        start = start * len(values) + values.index(first)
    settings = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
    if len(settings) > MANY:
        warnings.warn(
            f"grid has {len(settings)} settings; above {MANY} the page grows heavy", stacklevel=2
        )
    pages = [_page(compute, chart, description, setting) for setting in settings]
    return Explorable(compute, chart, description, labels, grid, start, pages)


def _page(compute, chart, description: str, setting: dict) -> Figure:
    frame = compute(**setting)
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"compute must return a pandas DataFrame, got {type(frame).__name__} at {setting}"
        )
    return figure(chart(frame), description)


def _values(name: str, values: Any) -> list:
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a list of values, got {type(values).__name__}")
    # NumPy and torch scalars become Python's, so that labels read well.
    values = [v.item() if hasattr(v, "item") else v for v in values]
    if len(values) < 2:
        raise ValueError(f"{name} needs at least two values to choose from, got {values}")
    if len({_show(v) for v in values}) < len(values):
        raise ValueError(f"{name} has two values that read the same: {[_show(v) for v in values]}")
    return values


def _numeric(values: list) -> bool:
    return all(isinstance(v, Number) and not isinstance(v, bool) for v in values)


def _show(value: Any) -> str:
    """A setting's value as the reader sees it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def _difference(a: Any, b: Any, path: list) -> list:
    """Assignments ``[path, value]`` that turn ``a`` into ``b``."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in _difference(a[key], b[key], [*path, key])]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            d
            for i, pair in enumerate(zip(a, b, strict=True))
            for d in _difference(*pair, [*path, i])
        ]
    return [] if json.dumps(a) == json.dumps(b) else [[path, b]]


def _has_kernel() -> bool:
    """Whether this runs in a notebook's kernel and ipywidgets is installed."""
    try:
        import ipywidgets  # noqa: F401
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None
