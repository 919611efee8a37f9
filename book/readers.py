"""Reading paths: for each kind of reader, chapters in an order (`book/readers.yml`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from book.errors import nearest
from book.prerequisites import Prerequisites
from book.source import Chapter, Source, SourceError

FILE = "book/readers.yml"


@dataclass(frozen=True)
class Reader:
    """Who reads, and what: `part/slug` to the line that says why, in reading order."""

    title: str
    text: str
    chapters: dict[str, str]

    def finished(self, source: Source) -> list[Chapter]:
        """The printed ones, in this reader's order."""
        printed = {chapter.name: chapter for chapter in source.chapters}
        return [printed[name] for name in self.chapters if name in printed]


def readers(root: Path) -> list[Reader]:
    """All reading paths.

    Raises
    ------
    SourceError
        if the file is missing or an entry is no title, text and mapping of chapters to reasons.
    """
    try:
        content = yaml.safe_load((root / FILE).read_text("utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{FILE} is missing") from None
    except yaml.YAMLError as error:
        raise SourceError(f"{FILE}: {error}") from None
    found = []
    for entry in content if isinstance(content, list) else [content]:
        if (
            not isinstance(entry, dict)
            or set(entry) != {"title", "text", "chapters"}
            or not isinstance(entry["chapters"], dict)
            or not all(isinstance(text, str) for text in _strings(entry))
        ):
            raise SourceError(f"{FILE}: a path has a title, a text, and chapters with reasons")
        found.append(Reader(**entry))
    return found


def _strings(entry: dict) -> Iterator[object]:
    yield from (entry["title"], entry["text"])
    for name, reason in entry["chapters"].items():
        yield from (name, reason)


def faults(
    paths: Sequence[Reader], source: Source, prerequisites: Prerequisites
) -> Iterator[tuple[str, str]]:
    """What is wrong with the paths and how to mend it: unknown chapters, a wrong order."""
    known = {f"{paper.part}/{paper.slug}" for paper in source.papers}
    for reader in paths:
        read: list[str] = []
        for name in reader.chapters:
            if name not in known:
                what = f"{reader.title!r} lists {name!r}, which is no paper of book/papers.csv"
                yield what, f"mend the name{nearest(name, known)}"
            for other in prerequisites.before.get(name, []):
                if other.name not in read:
                    what = f"{reader.title!r} lists {name} without {other.name}, which it needs"
                    yield what, f"list {other.name} above it"
            read.append(name)
