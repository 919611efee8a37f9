"""Sphinx extension of the book: scripts only where they are needed, search that reads the prose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from book import social

CHART = "itr-chart"
FINDER = "itr-filter"
MATH = 'class="math'
BUTTON, SET_UP = "itr-button", "tag_hide-cell"
"""Marks of what is no text of the book: the card's buttons, and a folded cell of imports."""


def add_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Charts, mathematics in outputs, and the search page each bring their script."""
    if pagename in social.UNLISTED:
        context["pageurl"] = None  # no address that search engines should keep
    if pagename == "404":
        context["metatags"] = BASE + context.get("metatags", "")
    if pagename == "search":
        # Deferred: after Sphinx's own script, before that one begins to search.
        app.add_js_file("search.js", loading_method="defer")
    if doctree is None:
        return
    context["metatags"] = context.get("metatags", "") + head_of(app, pagename, context, doctree)
    raw = [node.astext() for node in doctree.findall(nodes.raw)]
    if any(FINDER in text for text in raw):
        app.add_js_file("chapters.js", loading_method="defer")
    if any(CHART in text for text in raw):
        # charts.js fetches Vega when the first chart comes near the window.
        vega = context["pathto"]("_static/vega.js", resource=True)
        app.add_js_file("charts.js", loading_method="defer", **{"data-vega": vega})
    if any(MATH in text for text in raw):
        # Sphinx looks for mathematics in the text only, not in what a cell left.
        app.env.get_domain("math").data["has_equations"][pagename] = True


def head_of(app: Sphinx, page: str, context: dict[str, Any], doctree: nodes.document) -> str:
    """The card that other sites show for a link to this page."""
    site = app.config.html_baseurl
    if not site:
        return ""
    picture = f"social/{page.removeprefix('chapters/')}.png"
    if not (Path(app.srcdir) / "static" / picture).is_file():
        picture = social.BOOK
    title = app.env.titles[page].astext() if page in app.env.titles else context.get("title", "")
    return social.tags(site.rstrip("/") + "/", page, title, lead(doctree), picture)


def lead(doctree: nodes.document) -> str:
    """The page's first paragraph as plain text, cut to what a card shows."""
    for section in doctree.findall(nodes.section):
        for node in section.children:
            if isinstance(node, nodes.paragraph):
                copy = node.deepcopy()
                for math in list(copy.findall(nodes.math)):
                    math.replace_self(nodes.Text(math.astext().strip("\\").replace("\\", "")))
                return social.shorten(copy.astext())
    return ""


SUMMARY = re.compile(
    r"<a [^>]*>(?P<text>(?:(?!</a>).)*)</a>\s*<details[^>]*>\s*<summary(?=>)", re.S
)
"""Where the sidebar's menu opens a part: a button that shows a mark and no word."""


def name_the_buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Name the sidebar's buttons; give bibliographies and signatures the roles they may have."""
    menu = context.get("generate_toctree_html")
    if callable(menu):

        def named(*arguments: Any, **options: Any) -> Any:
            made = menu(*arguments, **options)
            return SUMMARY.sub(_named, str(made)) if made else made

        context["generate_toctree_html"] = named
    body = context.get("body")
    if not isinstance(body, str):
        return
    if 'role="doc-biblioentry"' in body:
        body = body.replace(' role="doc-biblioentry"', "")
        body = body.replace('<div role="list" class="citation-list">', CITATIONS)
    context["body"] = PARAMETERS.sub(_as_list, body)


CITATIONS = '<div class="citation-list">'
PARAMETERS = re.compile(r"<dl>\n(?:<dd>[^\n]*</dd>\n)+</dl>")
"""A signature over several lines: descriptions without terms, which axe does not take."""


def _as_list(match: re.Match[str]) -> str:
    return match[0].replace("<dl>", '<dl role="list">').replace("<dd>", '<dd role="listitem">')


def _named(match: re.Match[str]) -> str:
    text = " ".join(re.sub(r"<[^>]*>", "", match["text"]).split()).replace('"', "&quot;")
    return f'{match[0]} aria-label="{text}: its pages"'


def index_the_text(app: Sphinx) -> None:
    """Keep buttons and set-up cells out of the search index."""
    index_page = getattr(app.builder, "index_page", None)
    if index_page is None:
        return

    def index(pagename: str, doctree: nodes.document, title: str) -> None:
        index_page(pagename, without_furniture(doctree), title)

    app.builder.index_page = index


def without_furniture(doctree: nodes.document) -> nodes.document:
    """A copy of the page with nothing in it that every chapter has alike."""

    def furniture(node: nodes.Node) -> bool:
        classes = node.get("classes", []) if isinstance(node, nodes.Element) else []
        return BUTTON in classes or SET_UP in classes

    if not any(map(furniture, doctree.findall())):
        return doctree
    copy = doctree.deepcopy()
    for node in list(copy.findall(furniture)):
        if node.parent is not None:
            node.parent.remove(node)
    return copy


class UnlinkAmbiguous(SphinxPostTransform):
    """A type in a signature links to the class of that name, unless several modules have one."""

    default_priority = 5  # before Sphinx resolves references, which would warn and guess

    def run(self, **options: Any) -> None:
        python = self.env.get_domain("py")
        for node in list(self.document.findall(pending_xref)):
            if node.get("refdomain") != "py" or not node.hasattr("refspecific"):
                continue
            place = (node.get("py:module"), node.get("py:class"), node["reftarget"])
            if len(python.find_obj(self.env, *place, node["reftype"], 1)) > 1:
                node.replace_self(node.children)


NOT_FOUND = """\
<section id="no-such-page">
<h1>There is no such page</h1>
<p>It may have moved, or the address has a slip in it.</p>
<p><a class="itr-button" href="index.html">The start page</a>
<a class="itr-button" href="gallery.html">All chapters</a>
<a class="itr-button" href="search.html">Search</a></p>
</section>
"""
# A server shows this page under the address that was not found, at any depth.
BASE = """
<script>
const base = document.createElement("base");
base.href = location.pathname.replace(
  /(?:(?:chapters|reference|_static|_images)\\/.*|[^/]*)$/, "");
document.head.append(base);
</script>
"""


def not_found(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """`404.html`, which static hosts show for what is not there."""
    yield "404", {"title": "There is no such page", "body": NOT_FOUND}, "page.html"


def setup(app: Sphinx) -> dict[str, Any]:
    # Jupyter Book sets the option of an extension that we leave out; unknown ones are warnings.
    app.add_config_value("comments_config", {}, "")
    app.add_post_transform(UnlinkAmbiguous)
    app.connect("builder-inited", index_the_text)
    app.connect("html-collect-pages", not_found)
    app.connect("html-page-context", add_scripts, priority=400)  # before MathJax looks
    app.connect("html-page-context", name_the_buttons, priority=900)  # after the theme
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
