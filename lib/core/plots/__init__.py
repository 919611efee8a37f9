"""Figures that answer back without a kernel: one chart, three representations, both page themes.

``figure(chart, description)`` turns an Altair chart into an object whose MIME bundle holds

- ``text/html``: the chart's specification, drawn by Vega in the reader's browser;
- ``image/svg+xml``: the same picture, drawn once here, for pages without scripts and for print;
- ``text/plain``: title and description, for readers who hear the page.

``theme`` has the colors, ``bundle`` the figure, ``charts`` the pictures that many chapters draw.
Importing the package enables its Altair theme.
"""

from lib.core.plots.bundle import Figure, figure
from lib.core.plots.charts import (
    heatmap,
    image_grid,
    loglog_fit,
    predicted_and_measured,
    seed_band,
)
from lib.core.plots.theme import (
    CATEGORY,
    DIVERGING,
    INK,
    MUTED,
    RAMP,
    SEQUENTIAL,
    STATIC,
    color,
    ordered,
    paint,
    stylesheet,
)

__all__ = [
    "CATEGORY",
    "DIVERGING",
    "INK",
    "MUTED",
    "RAMP",
    "SEQUENTIAL",
    "STATIC",
    "Figure",
    "color",
    "figure",
    "heatmap",
    "image_grid",
    "loglog_fit",
    "ordered",
    "paint",
    "predicted_and_measured",
    "seed_band",
    "stylesheet",
]
