"""Sphinx extension of the book: the script for charts, on pages that hold a chart."""

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
        # charts.js fetches Vega when the first chart comes near the window.
        vega = context["pathto"]("_static/vega.js", resource=True)
        app.add_js_file("charts.js", loading_method="defer", **{"data-vega": vega})


def setup(app: Sphinx) -> dict[str, Any]:
    # Jupyter Book sets the option of an extension that we leave out; unknown ones are warnings.
    app.add_config_value("comments_config", {}, "")
    app.connect("html-page-context", add_chart_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
