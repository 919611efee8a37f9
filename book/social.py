"""What other sites learn of the book: cards for links to it, and the map of the site."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape

from book.pictures import Figure, Pictures
from book.source import Source
from book.stage import Stage

BOOK = "social/index.png"
"""The picture of the book itself, below `_static`; pages without one of their own show it."""
UNLISTED = ("search", "404", "genindex", "py-modindex")
"""Pages that are not for search engines."""
LENGTH = 200
"""Characters of a page's description."""


def write_cards(
    source: Source,
    report: Mapping[str, Mapping[str, Any]],
    figures: Mapping[str, Figure],
    pictures: Pictures,
    stage: Stage,
) -> None:
    """A picture of 1200 by 630 pixels for each chapter, and one for the book."""
    for chapter in source.chapters:
        book = chapter.book
        paper = book.get("paper", {})
        year = f" ({paper['year']})" if paper.get("year") else ""
        lines = [f"{paper.get('title', '')}{year}"]
        claims = report.get(chapter.name, {}).get("claims") or []
        asserted = [c for c in claims if c["holds"] is not None]
        if asserted:
            hold = sum(bool(c["holds"]) for c in asserted)
            lines.append(f"{hold} of {len(asserted)} claims hold")
        title = str(book.get("title", chapter.slug))
        picture = pictures.share(figures.get(chapter.name), title, lines)
        stage.write(f"static/social/{chapter.name}.png", picture)
    about = "Deep-learning papers, one runnable chapter each, every claim measured again"
    stage.write(f"static/{BOOK}", pictures.share(None, "Ideas That Run", [about]))


def tags(site: str, page: str, title: str, description: str, picture: str) -> str:
    """What a page's head tells other sites; every address is absolute."""
    address = "" if page == "index" else f"{page}.html"
    kind = "article" if page.startswith("chapters/") else "website"
    properties = {
        "og:type": kind,
        "og:site_name": "Ideas That Run",
        "og:title": title,
        "og:description": description,
        "og:url": f"{site}{address}",
        "og:image": f"{site}_static/{picture}",
        "og:image:width": "1200",
        "og:image:height": "630",
    }
    names = {"description": description, "twitter:card": "summary_large_image"}
    lines = [
        f'<meta property="{key}" content="{html.escape(value)}">'
        for key, value in properties.items()
        if value
    ]
    lines += [
        f'<meta name="{key}" content="{html.escape(value)}">'
        for key, value in names.items()
        if value
    ]
    return "\n".join(["", *lines, ""])


def shorten(text: str, length: int = LENGTH) -> str:
    """The first words of a text, as plain text of at most `length` characters."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    sentence = re.match(rf".{{60,{length - 1}}}[.!?](?= )", text)
    if sentence:
        return sentence[0]
    return text[: text.rindex(" ", 0, length - 1)].rstrip(",;:") + "…"


def sitemap(source: Source, pages: Iterable[str]) -> str:
    """`sitemap.xml` with the absolute address of every page."""
    addresses = [
        source.site + ("" if page == "index" else f"{page}.html")
        for page in pages
        if page not in UNLISTED
    ]
    lines = [f"<url><loc>{escape(address)}</loc></url>" for address in addresses]
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return "\n".join([head, f'<urlset xmlns="{space}">', *lines, "</urlset>", ""])
