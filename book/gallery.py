"""Cards of chapters: all of them with a filter, a few on the front page, reading paths."""

from __future__ import annotations

import html
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from book.pictures import Thumbnail
from book.readers import Reader
from book.source import PARTS, Chapter, Source
from book.stage import duration, part_name

Report = Mapping[str, Mapping[str, Any]]
"""The rows of `_build/report.json` by `part/slug`."""

SHOWN = 4
"""How many chapters to read before a card names; the map has them all."""
FEW = 3
"""Parts get headings from this many chapters a part on."""
FILTER = """\
<form class="itr-filter" role="search" aria-label="Chapters" hidden>
<p><label for="itr-words">Find</label>
<input id="itr-words" type="search" autocomplete="off" spellcheck="false"
 placeholder="title, paper, author, idea"></p>
<p><label for="itr-part">Part</label>
<select id="itr-part"><option value="">All parts</option>{parts}</select></p>
<p class="itr-found" role="status"></p>
</form>"""


def gallery(source: Source, report: Report, thumbnails: Mapping[str, Thumbnail]) -> str:
    """A card for each finished chapter, part by part, below a filter."""
    parts = {part: [c for c in source.chapters if c.part == part] for part in PARTS}
    parts = {part: chapters for part, chapters in parts.items() if chapters}
    options = [
        f'<option value="{part}">{part_name(part)} ({len(chapters)})</option>'
        for part, chapters in parts.items()
    ]
    blocks = [raw(FILTER.format(parts="".join(options)))] if parts else []
    if len(source.chapters) < FEW * len(parts):  # a heading over every other card would be noise
        everything = cards(source, source.chapters, report, thumbnails, level=2)
        return "\n\n".join([*blocks, raw(everything)])
    for part, chapters in parts.items():
        blocks += [f"## {part_name(part)}", raw(cards(source, chapters, report, thumbnails))]
    return "\n\n".join(blocks)


def first_chapters(source: Source, report: Report, thumbnails: Mapping[str, Thumbnail]) -> str:
    """The first chapter of each of the first three parts that have one."""
    first: dict[str, Chapter] = {}
    for chapter in source.chapters:
        first.setdefault(chapter.part, chapter)
    if not first:
        return ""
    chosen = list(first.values())[:3]
    shown = cards(source, chosen, report, thumbnails, style="itr-chapters itr-first")
    return f"## Begin with one of these\n\n{raw(shown)}"


def path(reader: Reader, source: Source) -> str:
    """A reader's chapters in order, with the minutes of each and of all."""
    chapters = reader.finished(source)
    waiting = len(reader.chapters) - len(chapters)
    lines = [f"## {reader.title}", "", " ".join(reader.text.split()), ""]
    if not chapters:
        return "\n".join([*lines, "*Its chapters are still being written.*"])
    for number, chapter in enumerate(chapters, start=1):
        title = chapter.book.get("title", chapter.slug)
        reason = reader.chapters[chapter.name]
        time = f"[{minutes(chapter)}\u00a0min]{{.itr-note}}"
        lines.append(f"{number}. [{title}]({chapter.docname}.ipynb) {time}<br>{reason}")
    total = f"Together {hours(sum(map(minutes, chapters)))} to read."
    if waiting:
        total += f" {waiting} more {'is' if waiting == 1 else 'are'} being written."
    return "\n".join([*lines, "", total])


# ------------------------------------------------------------------------------ one card


def cards(
    source: Source,
    chapters: Iterable[Chapter],
    report: Report,
    thumbnails: Mapping[str, Thumbnail],
    style: str = "itr-chapters",
    level: int = 3,
) -> str:
    """A list of cards, as HTML for a page at the root of the site; titles are headings."""
    items = [
        card(source, chapter, report.get(chapter.name, {}), thumbnails.get(chapter.name), level)
        for chapter in chapters
    ]
    return f'<ul class="{style}">\n' + "\n".join(items) + "\n</ul>"


def card(
    source: Source,
    chapter: Chapter,
    run: Mapping[str, Any],
    thumbnail: Thumbnail | None,
    level: int = 3,
) -> str:
    """One chapter: picture, title, paper, time, claims, and what to read before."""
    book = chapter.book
    paper = book.get("paper", {})
    words = [paper.get("authors", ""), *(book.get("gives") or []), *(book.get("needs") or [])]
    found_by = plain_text(" ".join(words))
    facts = [part_name(chapter.part)]
    if minutes(chapter):
        facts.append(f"{minutes(chapter)} min to read")
    if run.get("seconds") is not None:
        facts.append(f"{duration(run['seconds'])} to run")
    year = f" ({paper['year']})" if paper.get("year") else ""
    lines = [
        f'<li class="itr-chapter" data-part="{chapter.part}" data-words="{found_by}">',
        picture(thumbnail) if thumbnail else '<div class="itr-thumbnail"></div>',
        f'<h{level} class="itr-chapter-title">{link(chapter)}</h{level}>',
        f'<p class="itr-chapter-paper">{plain_text(paper.get("title", ""))}{year}</p>',
        f'<p class="itr-chapter-facts">{plain_text(" · ".join(facts))}</p>',
        badge(run.get("claims") or []),
    ]
    first = source.prerequisites.path.get(chapter.name, [])
    if first:
        names = ", ".join(map(link, first[:SHOWN]))
        if len(first) > SHOWN:
            names += f' and <a href="map.html#to={quote(chapter.name, safe="")}">'
            names += f"{len(first) - SHOWN} more</a>"
        total = source.prerequisites.minutes(chapter.name)
        total_time = f"{total} min" if total < 100 else hours(total)
        lines.append(f'<p class="itr-chapter-before">Before this: {names} ({total_time})</p>')
    return "\n".join(filter(None, [*lines, "</li>"]))


def picture(thumbnail: Thumbnail) -> str:
    """The figure in both themes; the one that is not shown is not fetched."""
    size = f'width="{thumbnail.width}" height="{thumbnail.height}"'
    images = [
        f'<img class="only-{mode}" src="_static/{name}" alt="{plain_text(thumbnail.title)}" {size} '
        'loading="lazy" decoding="async">'
        for mode, name in (("light", thumbnail.light), ("dark", thumbnail.dark))
    ]
    return f'<div class="itr-thumbnail">{"".join(images)}</div>'


def badge(claims: Iterable[Mapping[str, Any]]) -> str:
    """How many of the claims that were measured hold."""
    asserted = [claim for claim in claims if claim["holds"] is not None]
    if not asserted:
        return ""
    hold = sum(bool(claim["holds"]) for claim in asserted)
    style = "itr-badge" if hold == len(asserted) else "itr-badge itr-badge-part"
    return f'<p><span class="{style}">{hold} of {len(asserted)} claims hold</span></p>'


def minutes(chapter: Chapter) -> int:
    found = chapter.book.get("minutes")
    return found if isinstance(found, int) else 0


def hours(total: int) -> str:
    """Minutes as a reader says them: `55 minutes`, `2 h 5 min`."""
    if total < 100:
        return f"{total} minutes"
    return f"{total // 60} h {total % 60} min" if total % 60 else f"{total // 60} h"


def raw(markup: str) -> str:
    """HTML that stands in a page as it is."""
    return f"```{{raw}} html\n{markup}\n```"


def link(chapter: Chapter, part: str = "") -> str:
    """The chapter's title as a link, for a page at the root of the site or of this part."""
    title = plain_text(chapter.book.get("title", chapter.slug))
    page = posixpath.relpath(chapter.docname, f"chapters/{part}" if part else ".")
    return f'<a href="{page}.html">{title}</a>'


def plain_text(text: object) -> str:
    """Text as HTML that shows it literally."""
    return html.escape(str(text))
