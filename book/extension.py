"""Sphinx extension of the book: the scripts for charts, on the pages that hold a chart and no other."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

CHART = "itr-chart"
SCRIPTS = ("vega.js", "charts.js")


def add_chart_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    if doctree is None:
        return
    if any(CHART in node.astext() for node in doctree.findall(nodes.raw)):
        for script in SCRIPTS:
            app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", add_chart_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
