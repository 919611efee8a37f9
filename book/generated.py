"""Parts of pages that are computed: the lists of chapters, the scoreboard, the run times.

A page of prose holds a line `<!-- generated: NAME -->`; `fill` replaces it by what the function of
that name returns. Every measured number comes from the run's report.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from typing import Any

from book import gallery, map_page
from book.pictures import Thumbnail
from book.readers import readers
from book.source import PARTS, Chapter, Paper, Source, SourceError
from book.stage import duration, part_name

Report = dict[str, dict[str, Any]]
"""The rows of `_build/report.json` by `part/slug`."""

MARK = re.compile(r"^<!-- generated: (?P<name>[\w-]+)(?: (?P<argument>\w+))? -->$", re.M)


def fill(text: str, source: Source, report: Report, thumbnails: dict[str, Thumbnail]) -> str:
    """Replace every mark in a page."""

    def one(match: re.Match[str]) -> str:
        makers: dict[str, Callable[[], str]] = {
            "summary": lambda: summary(source, report),
            "first-chapters": lambda: gallery.first_chapters(source, report, thumbnails),
            "gallery": lambda: gallery.gallery(source, report, thumbnails),
            "waiting": lambda: waiting(source),
            "paths": lambda: "\n\n".join(
                gallery.path(reader, source) for reader in readers(source.root)
            ),
            "route": lambda: map_page.route(source),
            "map": lambda: map_page.drawing(source, match["argument"] or ""),
            "outline": lambda: map_page.outline(source),
            "background": lambda: map_page.brought(source),
            "papers": lambda: papers(source, match["argument"] or ""),
            "scoreboard": lambda: scoreboard(source, report),
            "run-times": lambda: run_times(source, report),
            "versions": lambda: versions(source, report),
            "setup-cell": lambda: f"```python\n{source.setup_cell}\n```",
            "clone": lambda: (
                f"```bash\ngit clone {source.address}\ncd {source.github_name.split('/')[1]}\n"
                "make book\n```"
            ),
            "repository": lambda: f"[{source.github_name}]({source.address})",
        }
        if match["name"] not in makers:
            raise SourceError(
                f"a page asks for generated {match['name']!r}; known: {', '.join(makers)}"
            )
        return makers[match["name"]]()

    return MARK.sub(one, text)


def all_claims(source: Source, report: Report) -> list[tuple[Chapter, dict[str, Any]]]:
    """Every claim of a printed chapter, in the order of the book."""
    return [
        (chapter, claim)
        for chapter in source.chapters
        for claim in report.get(chapter.name, {}).get("claims") or []
    ]


def tally(claims: Iterable[dict[str, Any]]) -> tuple[int, int, int]:
    """How many claims are asserted, how many of these hold, and how many are exact identities."""
    asserted = [claim for claim in claims if claim["holds"] is not None]
    hold = sum(claim["holds"] for claim in asserted)
    return len(asserted), hold, sum(bool(claim.get("exact")) for claim in asserted)


def summary(source: Source, report: Report) -> str:
    """One paragraph: how many chapters there are, how many claims hold."""
    claims = all_claims(source, report)
    asserted, hold, _ = tally(claim for _, claim in claims)
    chapters = len(source.chapters)
    if not chapters:
        return f"No chapter is finished yet. {len(source.papers)} papers are planned."
    one = chapters == 1
    text = f"**{chapters}** of {len(source.papers)} chapters {'is' if one else 'are'} finished."
    if claims:
        fail = asserted - hold
        text += (
            f" {'It measures' if one else 'They measure'} **{asserted}** claims again:"
            f" **{hold}** hold here, **{fail}** {'does' if fail == 1 else 'do'} not."
            " The [scoreboard](scoreboard.md) lists them all."
        )
    return text


def waiting(source: Source) -> str:
    """The papers that have no chapter yet, part by part."""
    count = len(source.papers) - len(source.chapters)
    if count <= 0:
        return ""
    blocks = ["## Still to be written", "", f"{count} papers wait for their chapter.", ""]
    for part in PARTS:
        open_papers = [paper for paper in _papers(source, part) if not _chapter(source, paper)]
        if open_papers:
            blocks += [f":::{{dropdown}} {part_name(part)} ({len(open_papers)})"]
            blocks += [f"- {escape(paper.title)}" for paper in open_papers]
            blocks += [":::", ""]
    return "\n".join(blocks)


def papers(source: Source, part: str) -> str:
    """The papers of one part in reading order; those with a chapter are linked."""
    rows = []
    for paper in _papers(source, part):
        chapter = _chapter(source, paper)
        if chapter:
            rows.append(f"- [{chapter.book.get('title', paper.title)}]({paper.slug}.ipynb)<br>")
            rows.append(f"  {escape(paper.title)}")
        else:
            rows.append(f"- {escape(paper.title)} [not written yet]{{.itr-waiting}}")
    return "\n".join(rows)


def _papers(source: Source, part: str) -> list[Paper]:
    return [paper for paper in source.papers if paper.part == part]


def _chapter(source: Source, paper: Paper) -> Chapter | None:
    names = {chapter.name: chapter for chapter in source.chapters}
    return names.get(f"{paper.part}/{paper.slug}")


def scoreboard(source: Source, report: Report) -> str:
    """All claims: first the count, then those that do not hold, then every chapter's table."""
    claims = all_claims(source, report)
    if not claims:
        return "No chapter has been run yet."
    asserted, hold, exact = tally(claim for _, claim in claims)
    lines = [
        "::::{div} itr-counts",
        f"[{asserted}]{{.itr-number}} claims measured again",
        "",
        f"[{hold}]{{.itr-number}} hold here",
        "",
        f"[{asserted - hold}]{{.itr-number}} {'does' if asserted - hold == 1 else 'do'} not",
        "",
        f"[{exact}]{{.itr-number}} exact identities",
        "::::",
        "",
        "## What does not hold here",
        "",
    ]
    failing = [(chapter, claim) for chapter, claim in claims if claim["holds"] is False]
    if failing:
        rows = [_claim(claim, chapter) for chapter, claim in failing]
        lines += table(CLAIM_COLUMNS, rows, "itr-claims", CLAIM_WIDTHS)
    else:
        lines += ["Every claim that was measured holds."]
    for part in PARTS:
        chapters = [chapter for chapter in source.chapters if chapter.part == part]
        if not chapters:
            continue
        lines += ["", f"## {part_name(part)}", ""]
        for chapter in chapters:
            rows = [_claim(claim) for other, claim in claims if other.name == chapter.name]
            lines += [f"### {_reference(chapter)}", ""]
            board = table(CLAIM_COLUMNS, rows, "itr-claims", CLAIM_WIDTHS)
            lines += board if rows else ["Not measured yet."]
            lines += [""]
    return "\n".join(lines)


CLAIM_COLUMNS = ["The paper says", "Predicted", "Measured", "Holds"]
CLAIM_WIDTHS = "34 22 32 12"


def _claim(claim: dict[str, Any], chapter: Chapter | None = None) -> list[str]:
    """The cells of a claim's row; with a chapter, its link stands above the claim."""
    where = f"{_reference(chapter)}<br>" if chapter else ""
    note = f"<br>[{with_math(claim['note'])}]{{.itr-note}}" if claim.get("note") else ""
    return [
        where
        + with_math(claim["text"])
        + ("<br>[an exact identity]{.itr-note}" if claim.get("exact") else ""),
        with_math(claim.get("paper") or ""),
        with_math(claim.get("measured") or "") + note,
        VERDICTS[claim["holds"]],
    ]


VERDICTS = {
    True: "[✓ yes]{.itr-yes}",
    False: "[✗ no]{.itr-no}",
    None: "[reported]{.itr-open}",
}


def _reference(chapter: Chapter) -> str:
    return f"[{chapter.book.get('title', chapter.slug)}]({chapter.docname}.ipynb)"


def run_times(source: Source, report: Report) -> str:
    """Seconds and memory of every chapter's last run."""
    rows = []
    total = 0.0
    for chapter in [*source.chapters, *source.openings]:
        run = report.get(chapter.name)
        if not run or run.get("seconds") is None:
            rows.append([_reference(chapter), "not run", "", "", ""])
            continue
        total += run["seconds"]
        peak = f"{run['peak_mb']:,.0f} MB" if run.get("peak_mb") is not None else ""
        rows.append(
            [
                _reference(chapter),
                part_name(chapter.part),
                str(run.get("scale", "small")),
                f"{run['seconds']:.1f} s",
                peak,
            ]
        )
    if not rows:
        return "No chapter has been run yet."
    lines = table(["Chapter", "Part", "Scale", "Wall time", "Peak memory"], rows, "itr-times")
    return "\n".join([*lines, "", f"Together: {duration(total)}."])


def versions(source: Source, report: Report) -> str:
    """What ran the chapters; every value that occurred, when they differ."""
    seen: dict[str, list[str]] = {}
    for chapter in [*source.chapters, *source.openings]:
        for name, version in (report.get(chapter.name, {}).get("versions") or {}).items():
            if str(version) not in seen.setdefault(name, []):
                seen[name].append(str(version))
    if not seen:
        return "Nothing has been run yet."
    rows = [[f"`{name}`", ", ".join(found)] for name, found in sorted(seen.items())]
    return "\n".join(table(["Package", "Version"], rows, "itr-versions"))


def table(
    header: list[str], rows: Iterable[list[str]], style: str, widths: str = "auto"
) -> list[str]:
    """A MyST list-table; cells are Markdown. `widths` are the columns' shares."""
    lines = ["::::{list-table}", ":header-rows: 1", f":class: {style}", f":widths: {widths}", ""]
    for row in [header, *rows]:
        for column, value in enumerate(row):
            flat = re.sub(r"\s+", " ", value).strip()
            lines.append(("* - " if column == 0 else "  - ") + flat)
    return [*lines, "::::"]


def escape(text: str) -> str:
    """Plain text as Markdown that shows it literally."""
    return re.sub(r"([\\`*_\[\]{}$#|])", r"\\\1", html.escape(str(text), quote=False))


def with_math(text: str) -> str:
    """Like `escape`, but what a claim marks as mathematics, `$...$`, stays mathematics."""
    from lib.core.claims import MATH

    text, pieces, end = str(text), [], 0
    for match in MATH.finditer(text):
        pieces += [escape(text[end : match.start()]), "{math}`", match["tex"], "`"]
        end = match.end()
    return "".join([*pieces, escape(text[end:])])
