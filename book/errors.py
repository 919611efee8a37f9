"""What the press says when it cannot start: one line, exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BookError(Exception):
    """A request that cannot be carried out; the message is one line and says what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'ntk'?` for the known name closest to `name`, or nothing.

    A chapter is found by its slug as well: `wdth/ntk` and `nkt` both lead to `width/ntk`.
    """
    known = list(known)
    slug = name.rsplit("/", 1)[-1]
    by_slug = {k.rsplit("/", 1)[-1]: k for k in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        close = [by_slug[s] for s in difflib.get_close_matches(slug, by_slug, n=1, cutoff=0.5)]
    return f"; did you mean {close[0]!r}?" if close else ""
