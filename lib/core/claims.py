"""Claims: what the paper says, what it predicts, what this run measured, whether it holds."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from lib.core.plots.bundle import loader

MATH = re.compile(r"(?<![\\\w$])\$(?! )(?P<tex>[^$]+?)(?<! )\$(?![\w$])")
"""Inline mathematics in a claim: ``$...$``, no space inside the dollars, no letter right outside.
"It costs $5 or $6" therefore holds none."""
MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml.js"

_WORDS = {True: ("yes", "✓"), False: ("no", "✗"), None: ("reported", "–")}


class Claims:
    """A chapter's claims, in the order in which they were added; displays itself as a table.

    Texts may hold inline mathematics, ``$\\Theta$``; it is set in the table and on the scoreboard.
    ``rows`` holds them as plain dictionaries; the output's metadata carries the same under
    ``"claims"``, where the book's scoreboard finds them.
    """

    def __init__(self):
        self.rows: list[dict] = []

    def add(
        self,
        text: str,
        *,
        paper: Any,
        measured: Any,
        holds: Any,
        exact: bool = False,
        note: str | None = None,
    ) -> None:
        """Add one claim.

        Args:
            text: what the paper says, in one sentence; ``$...$`` in it is mathematics.
            paper: the predicted value or law, with units.
            measured: what this run gave, with its spread.
            holds: a comparison made in this run (bool, or a zero-dimensional NumPy or torch
                bool); ``None`` where a number is reported and nothing is asserted.
            exact: an identity that must hold to rounding, not a statistical statement.
            note: why a claim fails at this scale, or what to keep in mind.

        Raises:
            ValueError: a text is empty or a claim is there already.
            TypeError: ``holds`` is no bool.
        """
        row = {"text": _text("text", text)}
        if any(old["text"] == row["text"] for old in self.rows):
            raise ValueError(f"text: the claim {row['text']!r} is there already")
        row["paper"] = _text("paper", paper)
        row["measured"] = _text("measured", measured)
        row["holds"] = _bool(holds)
        row["exact"] = bool(exact)
        row["note"] = None if note is None else _text("note", note)
        self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def _repr_mimebundle_(self, include=None, exclude=None):
        if not self.rows:
            raise ValueError("no claim was added: call claims.add(...) before showing the table")
        rows = [dict(row) for row in self.rows]
        return {"text/html": self._html(), "text/plain": str(self)}, {"claims": rows}

    def __str__(self) -> str:
        lines = []
        for row in self.rows:
            lines.append(
                f"{row['text']}\n  predicted: {row['paper']}\n  measured here: {row['measured']}\n"
                f"  holds: {_WORDS[row['holds']][0]}"
                + (f"\n  note: {row['note']}" if row["note"] else "")
            )
        return "\n".join(lines)

    def _html(self) -> str:
        body = []
        for row in self.rows:
            word, sign = _WORDS[row["holds"]]
            kind = {True: "yes", False: "no", None: "open"}[row["holds"]]
            note, exact = row["note"] or "", "an exact identity" if row["exact"] else ""
            cells = (
                ("predicted", "", _set(row["paper"])),
                ("measured here", "", _set(row["measured"]) + _remark(note)),
                ("holds", f"itr-{kind}", f'<span aria-hidden="true">{sign}</span> {word}'),
            )
            body.append(
                '<tr role="row"><th scope="row" role="rowheader">'
                f"{_set(row['text'])}{_remark(exact)}</th>"
                + "".join(
                    f'<td role="cell" data-label="{label}" class="{css}">{content}</td>'
                    for label, css, content in cells
                )
                + "</tr>"
            )
        asserted = [row["holds"] for row in self.rows if row["holds"] is not None]
        caption = f"{sum(asserted)} of {len(asserted)} claims hold in this run."
        # Roles are spelled out because the stylesheet stacks the cells on a phone, which would
        # otherwise take the table's meaning away.
        heads = ("The paper says", "Predicted", "Measured here", "Holds")
        head = "".join(f'<th scope="col" role="columnheader">{text}</th>' for text in heads)
        rows = "".join(body)
        return (
            f'<div class="itr-scroll"><table class="itr-claims" role="table">'
            f"<caption>{caption}</caption>"
            f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
            f'<tbody role="rowgroup">{rows}</tbody></table></div>'
            + loader(script=False)
            + (_TYPESET if 'class="math' in rows else "")
        )


def _remark(text: str) -> str:
    return f'<span class="itr-note">{_set(text)}</span>' if text else ""


def _set(text: str) -> str:
    """Text as HTML; mathematics in the element that MathJax looks for on a page of the book."""
    pieces, end = [], 0
    for match in MATH.finditer(text):
        tex = html.escape(match["tex"])
        pieces.append(html.escape(text[end : match.start()]))
        pieces.append(f'<span class="math notranslate nohighlight">\\({tex}\\)</span>')
        end = match.end()
    return "".join([*pieces, html.escape(text[end:])])


# JupyterLab sets mathematics in an output by itself. Colab and VS Code do not: there MathJax is
# fetched, and looks at these elements only. The press takes the script out like every loader.
_CONFIG = {
    "options": {"ignoreHtmlClass": ".*", "processHtmlClass": "math"},
    "tex": {"inlineMath": [["\\(", "\\)"]]},
}
_TYPESET = (
    '<script data-itr="loader">'
    'if(!window.MathJax&&!("jpThemeLight" in document.body.dataset)){'
    f"window.MathJax={json.dumps(_CONFIG)};"
    'const s=document.createElement("script");'
    f's.src="{MATHJAX}";document.head.append(s)}}else if(window.MathJax&&MathJax.typesetPromise)'
    'MathJax.typesetPromise(document.querySelectorAll(".itr-claims .math"))</script>'
)


def _text(name: str, value: Any) -> str:
    text = " ".join(str(value).split())
    if not text or value is None:
        raise ValueError(f"{name} is empty")
    return text


def _bool(holds: Any) -> bool | None:
    if holds is None or isinstance(holds, bool):
        return holds
    # Zero-dimensional bools of NumPy and torch; a float would hide a forgotten comparison.
    if getattr(holds, "shape", None) == () and "bool" in str(getattr(holds, "dtype", "")):
        return bool(holds)
    raise TypeError(
        f"holds must be True, False or None, computed by comparing numbers; got {holds!r}"
    )
