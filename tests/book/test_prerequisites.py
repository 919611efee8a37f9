"""The map: no cycle, nothing needed that nobody gives, the shortest way, paths in order."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass

import pytest

from book import gallery, map_page, readers
from book.prerequisites import Prerequisites, background, plain, shortest, twice
from book.readers import Reader
from book.source import ROOT, Source, SourceError


@dataclass
class Book:
    """A book of chapters that hold nothing but their record."""

    source: Source

    def chapter(self, name: str, needs=(), gives=(), minutes=10, title=None) -> Book:
        record = {"title": title or name, "needs": [*needs], "gives": [*gives], "minutes": minutes}
        path = self.source.root / f"chapters/{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cells": [], "metadata": {"book": record}}))
        return self

    @property
    def needs(self) -> Prerequisites:
        source = Source(self.source.root)
        return Prerequisites(source, source.all_chapters)

    def printed(self) -> Source:
        files = [{"file": chapter.docname} for chapter in Source(self.source.root).all_chapters]
        toc = {"format": "jb-book", "root": "index", "chapters": files}
        (self.source.root / "_toc.yml").write_text(json.dumps(toc))
        return Source(self.source.root)


@pytest.fixture
def book(tmp_path) -> Book:
    (tmp_path / "book").mkdir()
    names = [f"{part},{slug},T\n" for part in ("width", "graphs") for slug in "abcdef"]
    (tmp_path / "book/papers.csv").write_text("part,slug,title\n" + "".join(names))
    (tmp_path / "book/background.yml").write_text("Mathematics: [linear algebra]\n")
    return Book(Source(tmp_path))


def names(chapters) -> list[str]:
    return [chapter.name for chapter in chapters]


# ------------------------------------------------------------------------------ the map


def test_the_book_needs_nothing_that_nobody_gives():
    source = Source(ROOT)
    needs = Prerequisites(source, source.all_chapters)
    assert not needs.unmet, "\n".join(f"{u.chapter} {u.what}; {u.mend}" for u in needs.unmet)
    order = {chapter.name: i for i, chapter in enumerate(source.all_chapters)}
    for name, before in needs.before.items():
        assert all(order[other.name] < order[name] for other in before), "the map has no cycle"
    assert not twice(background(ROOT))


def test_the_reading_paths_of_the_book_are_in_order():
    source = Source(ROOT)
    paths = readers.readers(ROOT)
    assert len(paths) >= 3
    assert not list(readers.faults(paths, source, Prerequisites(source, source.all_chapters)))


def test_chapters_and_concepts_lead_back(book):
    book.chapter("width/a", gives=["Kernel regime"], minutes=20)
    book.chapter("width/b", needs=["a", "linear algebra"], gives=["x"], minutes=30)
    book.chapter("graphs/a", needs=["kernel-regime"])
    book.chapter("graphs/c", needs=["width/b", "graphs/a", "Linear_Algebra"])
    needs = book.needs
    assert not needs.unmet
    # A slug that two parts share leads to the earlier one, and `part/slug` to exactly one.
    assert names(needs.before["width/b"]) == ["width/a"]
    assert names(needs.before["graphs/a"]) == ["width/a"]
    assert names(needs.path["graphs/c"]) == ["width/a", "width/b", "graphs/a"]
    assert needs.minutes("graphs/c") == 60 and needs.minutes("width/a") == 0
    chapter = needs.chapters[-1]
    assert needs.giver(chapter, "width/b").name == "width/b"
    assert needs.giver(chapter, "linear algebra") is None


def test_the_shorter_of_two_ways(book):
    book.chapter("width/a", gives=["idea"], minutes=40)
    book.chapter("width/b", gives=["idea"], minutes=15)
    book.chapter("width/c", needs=["idea"])
    book.chapter("width/d", needs=["a", "idea"])
    needs = book.needs
    assert names(needs.path["width/c"]) == ["width/b"]
    assert names(needs.path["width/d"]) == ["width/a"], "what is read anyway counts"


def test_what_is_needed_and_not_given_earlier(book):
    book.chapter(
        "width/a", needs=["later", "nothing", "graphs/b", "graphs/f", "own"], gives=["own"]
    )
    book.chapter("graphs/b", needs=["width/f"], gives=["later"])
    found = [unmet.what for unmet in book.needs.unmet]
    assert found == [
        "needs 'later', which only graphs/b gives, and that comes later in the book",
        "needs 'nothing', which no earlier chapter gives",
        "needs 'graphs/b', which comes later in the book",
        "needs 'graphs/f', which comes later in the book",
        "needs 'own', which it gives itself",
    ], "a planned chapter earlier in the book, width/f, may be named"


def brute(ways, minutes, i):
    """The least time over all sets of earlier chapters that leave nothing open."""
    best = None
    for size in range(i + 1):
        for chosen in itertools.combinations(range(i), size):
            have = set(chosen)
            if all(have & set(need) for j in (*chosen, i) for need in ways[j]):
                cost = sum(minutes[j] for j in chosen)
                best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_no_set_of_chapters_is_shorter(seed):
    rng = random.Random(seed)
    n = 9
    minutes = [rng.choice([10, 20, 35]) for _ in range(n)]
    ways = [
        [rng.sample(range(i), rng.randint(1, min(3, i))) for _ in range(rng.randint(0, 3))]
        if i
        else []
        for i in range(n)
    ]
    for i in range(n):
        read = shortest(ways, minutes, i)
        assert read == sorted(set(read))
        assert all(set(read) & set(need) for j in (*read, i) for need in ways[j])
        assert sum(minutes[j] for j in read) == brute(ways, minutes, i)


def test_a_long_chain_is_found_at_once():
    n = 118
    ways = [[[i - 1]] * 3 + [[max(0, i - 7)]] if i else [] for i in range(n)]
    assert shortest(ways, [30] * n, n - 1) == list(range(n - 1))


def test_names_are_compared_without_their_dress():
    assert plain("  Kernel_regime ") == plain("kernel-regime") == "kernel regime"


@pytest.mark.parametrize("text", ["- a\n", "Mathematics: algebra\n", "Mathematics: [1]\n"])
def test_a_malformed_background_is_named(book, text):
    (book.source.root / "book/background.yml").write_text(text)
    with pytest.raises(SourceError, match="background.yml"):
        background(book.source.root)


# ------------------------------------------------------------------------------ the pages


def test_the_drawing_has_a_line_a_chapter_and_an_arc_a_step(book):
    book.chapter("width/a", title="First & <foremost>").chapter("width/b", needs=["a"])
    book.chapter("graphs/c", needs=["b", "a"], minutes=25)
    source = book.printed()
    page = map_page.drawing(source)
    assert page.count("<path ") == 3 and page.count("<circle ") == 3
    assert page.count("<li data-name=") == 3 and page.count("itr-map-part") == 2
    assert "First &amp; &lt;foremost&gt;" in page and "<foremost>" not in page
    height = 5 * map_page.ROW
    assert 'viewBox="0 0 ' in page and f' {height}" style=' in page
    part = map_page.drawing(source, "width")
    assert part.count("<path ") == 1 and part.count("<circle ") == 2
    assert "itr-map-part" not in part and "graphs/c" not in part
    # The one stands beside the front page, the other on the part's own.
    assert 'href="chapters/width/a.html"' in page and 'href="a.html"' in part
    assert map_page.drawing(source, "science") == "No chapter is finished yet."
    listed = map_page.outline(source)
    assert "    - builds on [First & <foremost>](chapters/width/a.ipynb), [width/b]" in listed
    assert "before this: First & <foremost>, width/b (20 minutes)" in listed
    data = map_page.route(source)
    text = data.split('id="itr-needs">')[1].split("</script>")[0]
    assert "<" not in text
    assert json.loads(text)["graphs/c"]["before"] == ["width/a", "width/b"]


@pytest.mark.parametrize("span", [1, 2, 10, 130])
def test_arcs_stay_in_their_room(span):
    gutter = 16 + map_page.reach(span)
    start, control = map_page.arc(0, span, gutter)[1:].split("C")
    x, out = float(start.split()[0]), float(control.split()[0])
    leftmost = x - 0.75 * (x - out)
    assert 0 < leftmost < x < gutter and map_page.reach(span) <= map_page.WIDEST


def test_a_card_says_what_to_read_before(book):
    for slug in "abcde":
        book.chapter(f"width/{slug}", minutes=30)
    book.chapter("graphs/a", needs=[f"width/{slug}" for slug in "ab"], title="Two")
    book.chapter("graphs/b", needs=[f"width/{slug}" for slug in "abcde"], title="Five")
    source = book.printed()
    cards = gallery.cards(source, source.chapters, {}, {})
    links = [f'<a href="chapters/width/{slug}.html">width/{slug}</a>' for slug in "abcd"]
    assert f"Before this: {links[0]}, {links[1]} (60 min)" in cards
    more = '<a href="map.html#to=graphs%2Fb">1 more</a> (2 h 30 min)'
    assert f"Before this: {', '.join(links)} and {more}" in cards


def test_parts_get_headings_once_they_have_chapters(book):
    for slug in "ab":
        book.chapter(f"width/{slug}")
    book.chapter("graphs/a")
    assert "## Width" not in gallery.gallery(book.printed(), {}, {})
    for slug in "cdef":
        book.chapter(f"width/{slug}")
    page = gallery.gallery(book.printed(), {}, {})
    assert "## Width" in page and '<option value="graphs">Graphs (1)</option>' in page


def test_a_path_shows_what_is_finished(book):
    book.chapter("width/b", minutes=25, title="B").chapter("graphs/a", minutes=90, title="A")
    reader = Reader("Someone", "A text.", {"graphs/a": "why a", "width/a": "-", "width/b": "why b"})
    page = gallery.path(reader, book.printed())
    assert "1. [A](chapters/graphs/a.ipynb) [90\u00a0min]{.itr-note}<br>why a\n2. [B]" in page
    assert page.endswith("Together 1 h 55 min to read. 1 more is being written.")
    empty = gallery.path(Reader("Nobody", "A text.", {"width/c": "-"}), book.printed())
    assert "still being written" in empty


def test_paths_keep_the_order_of_the_map(book):
    book.chapter("width/a").chapter("width/b", needs=["a"])
    paths = [Reader("R", "-", {"width/b": "-", "width/a": "-", "width/z": "-"})]
    found = list(readers.faults(paths, book.source, book.needs))
    assert found[0] == (
        "'R' lists width/b without width/a, which it needs",
        "list width/a above it",
    )
    assert "'width/z', which is no paper" in found[1][0] and len(found) == 2


@pytest.mark.parametrize("text", ["[1]", "- title: a\n", "- {title: a, text: b, chapters: [c]}\n"])
def test_malformed_paths_are_named(book, text):
    (book.source.root / "book/readers.yml").write_text(text)
    with pytest.raises(SourceError, match="readers.yml: a path has a title"):
        readers.readers(book.source.root)
