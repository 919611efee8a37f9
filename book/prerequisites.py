"""Which chapter to read before which: from what chapters declare in `needs` and `gives`.

A chapter needs other chapters, by name, or concepts. A concept is given by an earlier chapter, or
it is background, which readers bring (`book/background.yml`). Chapters look back only, so the map
has no cycle: the order of the book is a reading order.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from book.errors import nearest

if TYPE_CHECKING:
    from book.source import Chapter, Source

FILE = "book/background.yml"


@dataclass(frozen=True)
class Unmet:
    """A need that nobody meets: what is wrong, and how to mend it."""

    chapter: str
    what: str
    mend: str


def plain(concept: str) -> str:
    """A concept as it is compared: capitals, hyphens, underscores and spaces do not matter."""
    return re.sub(r"[\s_-]+", " ", concept).strip().casefold()


def background(root: Path) -> dict[str, list[str]]:
    """The groups of concepts that readers bring.

    Raises
    ------
    SourceError
        if the file is missing or no mapping of names to lists of names.
    """
    from book.source import SourceError, read_yaml

    groups = read_yaml(root / FILE)
    for name, concepts in groups.items():
        if not isinstance(concepts, list) or not all(isinstance(c, str) for c in concepts):
            raise SourceError(f"{FILE}: {name!r} is not a list of names")
    return groups


def twice(groups: dict[str, list[str]]) -> list[str]:
    """Concepts that stand more than once in the background."""
    count = Counter(plain(concept) for concepts in groups.values() for concept in concepts)
    return [concept for concept, times in count.items() if times > 1]


class Prerequisites:
    """What these chapters, in the order of the book, build on.

    Attributes
    ----------
    before
        by `part/slug`: the chapters to read right before this one.
    path
        by `part/slug`: all chapters to read before it, first to last; the fewest minutes.
    unmet
        needs that no earlier chapter and no background meets.
    """

    def __init__(self, source: Source, chapters: Sequence[Chapter]) -> None:
        self.chapters = list(chapters)
        self.background = background(source.root)
        self.unmet: list[Unmet] = []
        self._number = {chapter.name: i for i, chapter in enumerate(self.chapters)}
        self._slugs: dict[str, list[int]] = {}
        self._givers: dict[str, list[int]] = {}
        for i, chapter in enumerate(self.chapters):
            self._slugs.setdefault(plain(chapter.slug), []).append(i)
            self._slugs.setdefault(plain(chapter.name), []).append(i)
            for concept in _texts(chapter.book.get("gives")):
                self._givers.setdefault(plain(concept), []).append(i)
        papers = [f"{paper.part}/{paper.slug}" for paper in source.papers]
        self._planned: dict[str, list[int]] = {}
        for rank, name in enumerate(papers):
            for key in (name, name.partition("/")[2]):
                self._planned.setdefault(plain(key), []).append(rank)
        self._rank = {name: rank for rank, name in enumerate(papers)}
        known = [c for group in self.background.values() for c in group]
        self._brought = set(map(plain, known))
        given = [c for chapter in self.chapters for c in _texts(chapter.book.get("gives"))]
        self._known = [*dict.fromkeys([*known, *given])]

        self._ways: list[list[list[int]]] = [
            [ways for need in _texts(chapter.book.get("needs")) if (ways := self._meet(i, need))]
            for i, chapter in enumerate(self.chapters)
        ]
        minutes = [_minutes(chapter) for chapter in self.chapters]
        self.path: dict[str, list[Chapter]] = {}
        self.before: dict[str, list[Chapter]] = {}
        for i, chapter in enumerate(self.chapters):
            read = shortest(self._ways, minutes, i)
            direct = {j for ways in self._ways[i] for j in ways if j in read}
            self.path[chapter.name] = [self.chapters[j] for j in read]
            self.before[chapter.name] = [self.chapters[j] for j in sorted(direct)]

    def minutes(self, name: str) -> int:
        """How long the chapters before this one take to read."""
        return sum(map(_minutes, self.path[name]))

    def giver(self, chapter: Chapter, need: str) -> Chapter | None:
        """The chapter that meets this need on the way to `chapter`; None for background."""
        if chapter.name not in self._number:
            return None
        ways = self._meet(self._number[chapter.name], need, report=False)
        read = {other.name for other in self.path[chapter.name]}
        found = [self.chapters[j] for j in ways if self.chapters[j].name in read]
        return found[0] if found else None

    def _meet(self, i: int, need: str, report: bool = True) -> list[int]:
        """The chapters of which one must come first; none where readers bring it, or nobody can."""
        name, chapter = plain(need), self.chapters[i]
        if name in self._slugs:
            ways = self._slugs[name]
        elif name in self._planned:
            own = self._rank.get(chapter.name, len(self._rank))
            if report and all(rank >= own for rank in self._planned[name]):
                self._fail(i, f"needs {need!r}, which comes later in the book", MEND_LATER)
            return []  # not written yet
        elif name in self._brought:
            return []
        else:
            ways = self._givers.get(name, [])
        earlier = [j for j in ways if j < i]
        if earlier or not report:
            return earlier
        others = [self.chapters[j].name for j in ways if j > i]
        if others:
            who = "" if name in self._slugs else f" only {others[0]} gives, and that"
            self._fail(i, f"needs {need!r}, which{who} comes later in the book", MEND_LATER)
        elif ways:
            self._fail(i, f"needs {need!r}, which it gives itself", "take it out of needs or gives")
        else:
            hint = nearest(name, [c for c in self._known if plain(c) != name])
            mend = f"name a chapter or what one gives, or add it to {FILE}{hint}"
            self._fail(i, f"needs {need!r}, which no earlier chapter gives", mend)
        return []

    def _fail(self, i: int, what: str, mend: str) -> None:
        self.unmet.append(Unmet(self.chapters[i].name, what, mend))


MEND_LATER = f"need something earlier, or add the concept to {FILE} if readers bring it"


def shortest(ways: Sequence[Sequence[Sequence[int]]], minutes: Sequence[int], i: int) -> list[int]:
    """The chapters to read before chapter `i` that take the fewest minutes together, in order.

    `ways[j]` are the needs of chapter j; each is a list of earlier chapters, of which one is
    enough. Sets of chapters are tried, the quickest first, until one leaves nothing open.
    """
    waiting: list[tuple[int, list[int]]] = [(0, [])]
    seen: set[frozenset[int]] = set()
    while True:
        cost, read = heapq.heappop(waiting)
        have = frozenset(read)
        if have in seen:
            continue
        seen.add(have)
        needs = (need for j in [i, *reversed(read)] for need in ways[j])
        unmet = next((need for need in needs if have.isdisjoint(need)), None)
        if unmet is None:
            return read
        for j in dict.fromkeys(unmet):
            heapq.heappush(waiting, (cost + minutes[j], sorted([*read, j])))


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _minutes(chapter: Chapter) -> int:
    minutes = chapter.book.get("minutes")
    return minutes if isinstance(minutes, int) else 0
