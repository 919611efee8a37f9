"""Sphinx extension of the book: the scripts for charts, on the pages that hold a chart and no other."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

CHART = "itr-chart"


def add_chart_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    if doctree is None:
        return
    if any(CHART in node.astext() for node in doctree.findall(nodes.raw)):
        # Vega is fetched when the first chart comes near the window; charts.js is told where it lies.
        vega = context["pathto"]("_static/vega.js", resource=True)
        app.add_js_file("charts.js", loading_method="defer", **{"data-vega": vega})


def setup(app: Sphinx) -> dict[str, Any]:
    # Jupyter Book sets the options of an extension that we leave out; an unknown option is a warning.
    app.add_config_value("comments_config", {}, "")
    app.connect("html-page-context", add_chart_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
