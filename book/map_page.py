"""The map of prerequisites: who needs whom, as a drawing, as a list, and as a way to one chapter.

The drawing has one line for each chapter, in the order of the book, and an arc from each chapter
to every one that builds on it; arcs only lead down. Its text is the page's own text, so that it has
the same size on a phone. Everything is computed when the site is built.
"""

from __future__ import annotations

import json
import math

from book.gallery import hours, minutes, raw
from book.gallery import link as linked
from book.gallery import plain_text as text
from book.source import PARTS, Chapter, Source
from book.stage import part_name

ROW, WIDEST = 28, 72
"""Height of a line and the furthest that an arc reaches, in pixels at a text size of 16."""


def route(source: Source) -> str:
    """A menu of chapters; the script of the page answers with what to read before."""
    if not source.chapters:
        return ""
    groups = []
    for part, chapters in by_part(source).items():
        options = "".join(
            f'<option value="{chapter.name}">{text(title(chapter))}</option>'
            for chapter in chapters
        )
        groups.append(f'<optgroup label="{text(part_name(part))}">{options}</optgroup>')
    needs = source.prerequisites
    data = {
        chapter.name: {
            "title": title(chapter),
            "page": f"{chapter.docname}.html",
            "minutes": minutes(chapter),
            "before": [other.name for other in needs.path[chapter.name]],
        }
        for chapter in source.chapters
    }
    embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    embedded = embedded.replace("<", "\\u003c")  # it stands inside a script element
    return raw(
        '<form class="itr-filter itr-route" hidden><p><label for="itr-goal">I want to read</label>'
        f'<select id="itr-goal"><option value="">choose a chapter</option>{"".join(groups)}'
        '</select></p><div id="itr-route" role="status"></div></form>\n'
        '<script type="application/json" id="itr-needs">'
        f"{embedded}</script>"
    )


def drawing(source: Source, only: str = "") -> str:
    """Arcs on the left, chapters on the right, a line for each.

    Of the book, for a page beside its front page; or of one part, for the part's opening.
    """
    drawn = {part: found for part, found in by_part(source).items() if only in ("", part)}
    inside = [chapter for chapters in drawn.values() for chapter in chapters]
    if not inside:
        return "No chapter is finished yet."
    lines: list[str] = []
    row: dict[str, int] = {}
    for part, chapters in drawn.items():
        if not only:
            lines.append(f'<li class="itr-map-part">{text(part_name(part))}</li>')
        for chapter in chapters:
            row[chapter.name] = len(lines)
            facts = f' <span class="itr-note">{minutes(chapter)} min</span>'
            lines.append(f'<li data-name="{chapter.name}">{linked(chapter, only)}{facts}</li>')
    before = {
        chapter.name: [o for o in source.prerequisites.before[chapter.name] if o.name in row]
        for chapter in inside
    }
    spans = [row[name] - row[other.name] for name, others in before.items() for other in others]
    gutter = math.ceil(16 + max(map(reach, spans), default=0))
    arcs, dots = [], []
    for chapter in inside:
        end = row[chapter.name]
        for other in before[chapter.name]:
            arcs.append(
                f'<path data-from="{other.name}" data-to="{chapter.name}" '
                f'd="{arc(row[other.name], end, gutter)}"/>'
            )
        y = end * ROW + ROW / 2
        dots.append(f'<circle data-name="{chapter.name}" cx="{gutter - 6}" cy="{y:g}" r="4"/>')
    height = len(lines) * ROW
    svg = (
        f'<svg viewBox="0 0 {gutter} {height}" style="width:{gutter / 16:g}rem;'
        f'height:{height / 16:g}rem" aria-hidden="true" focusable="false">'
        f"{''.join(arcs)}{''.join(dots)}</svg>"
    )
    return raw(f'<div class="itr-map">{svg}<ul>{"".join(lines)}</ul></div>')


def reach(span: int) -> float:
    """How far to the left an arc over so many lines goes, in pixels."""
    return min(WIDEST, 6 + 7 * span**0.6)


def arc(start: int, end: int, gutter: int) -> str:
    """The path of an arc between two lines."""
    x, top, bottom = gutter - 10, start * ROW + ROW / 2, end * ROW + ROW / 2
    out = x - reach(end - start) / 0.75  # the curve goes three quarters of the way to there
    return f"M{x} {top:g}C{out:.1f} {top:g} {out:.1f} {bottom:g} {x} {bottom:g}"


def outline(source: Source) -> str:
    """The same as a nested list: part, chapter, what it builds on and what it gives."""
    needs = source.prerequisites
    lines = []
    for part, chapters in by_part(source).items():
        lines.append(f"- {part_name(part)}")
        for chapter in chapters:
            lines.append(f"  - {reference(chapter)}, {minutes(chapter)} min")
            before = needs.before[chapter.name]
            if before:
                lines.append(f"    - builds on {', '.join(map(reference, before))}")
                names = ", ".join(title(other) for other in needs.path[chapter.name])
                total = hours(needs.minutes(chapter.name))
                lines.append(f"    - before this: {names} ({total})")
            brought = [
                need
                for need in chapter.book.get("needs") or []
                if isinstance(need, str) and needs.giver(chapter, need) is None
            ]
            if brought:
                lines.append(f"    - you bring {', '.join(brought)}")
            gives = [give for give in chapter.book.get("gives") or [] if isinstance(give, str)]
            if gives:
                lines.append(f"    - you get {', '.join(gives)}")
    if not lines:
        return ""
    return "\n".join([":::{dropdown} The map as a list", "", *lines, ":::"])


def brought(source: Source) -> str:
    """What the book takes for granted, by field."""
    groups = source.prerequisites.background
    return "\n".join(f"{name}\n: {', '.join(concepts)}\n" for name, concepts in groups.items())


def by_part(source: Source) -> dict[str, list[Chapter]]:
    parts = {part: [c for c in source.chapters if c.part == part] for part in PARTS}
    return {part: chapters for part, chapters in parts.items() if chapters}


def title(chapter: Chapter) -> str:
    return str(chapter.book.get("title", chapter.slug))


def reference(chapter: Chapter) -> str:
    return f"[{title(chapter)}]({chapter.docname}.ipynb)"
