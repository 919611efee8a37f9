"""Thumbnails and cards for links: of the right size, small, in both themes, kept."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from book import pictures, social
from book.pictures import Figure, Pictures
from lib.core.plots import figure
from tests.book import sample


@pytest.fixture(scope="module")
def drawn() -> Figure:
    shown = figure(sample.chart(), sample.DESCRIPTION)
    return Figure(shown.title, shown.svg(mode=None))


@pytest.fixture
def store(tmp_path) -> Pictures:
    return Pictures(tmp_path / "pictures")


def test_the_title_goes_and_the_picture_stays(drawn):
    inner, width, height = pictures.untitled(drawn.content)
    assert "Wider networks move less" in drawn.content and "Wider networks" not in inner
    assert "hidden layers" in inner
    whole = re.search(r'width="(\d+)" height="(\d+)"', drawn.content)
    assert width == float(whole[1]) and height < float(whole[2]) - 20


def test_thumbnails_fit_their_room_in_both_themes(drawn, store):
    grounds = {}
    for mode in ("light", "dark"):
        data, width, height = store.thumbnail(drawn, mode)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (width, height) and image.format == "WEBP"
            grounds[mode] = image.convert("L").getpixel((1, 1))
        assert max(width / pictures.WIDTH, height / pictures.HEIGHT) == pytest.approx(1, abs=0.01)
        assert len(data) < 15_000
    assert grounds["light"] > 245 and grounds["dark"] < 35


def test_half_transparent_marks_keep_their_color(store):
    red = '<rect width="160" height="100" fill="#ff0000" opacity="0.5"/>'
    svg = f'<svg width="160" height="100">{red}</svg>'
    data, _, _ = store.thumbnail(Figure("", svg), "light")
    with Image.open(io.BytesIO(data)) as image:
        red, green, blue = image.getpixel((240, 150))
    assert red > 240 and 110 < green < 145 and 110 < blue < 145


def test_a_picture_that_is_no_drawing_works_too(store):
    png = Figure("gray", base64.b64decode(sample.PNG))
    assert store.thumbnail(png, "dark")[1:] == (10, 10)
    with Image.open(io.BytesIO(store.share(png, "A title", ["a line"]))) as image:
        assert image.size == (1200, 630)


def test_pictures_are_drawn_once_and_forgotten_when_unused(drawn, store, monkeypatch):
    first = store.thumbnail(drawn, "light")
    store.share(None, "The book", [])
    monkeypatch.setattr(pictures, "_thumbnail", None)
    again = Pictures(store.cache)
    assert again.thumbnail(drawn, "light") == first
    again.finish()
    assert len(list(store.cache.iterdir())) == 1


def test_a_long_title_stays_on_the_card(store, drawn):
    title = "On the surprisingly many consequences of a very long title for a chapter of a book"
    with Image.open(io.BytesIO(store.share(drawn, title, [title, "3 of 4 claims hold"]))) as image:
        gray = image.convert("L")
    # Between the text and the figure, and at the right edge, nothing is written.
    assert gray.crop((545, 20, 560, 610)).getextrema()[0] > 245
    assert gray.crop((1180, 20, 1200, 630)).getextrema()[0] > 245


def test_descriptions_end_at_a_sentence_or_a_word():
    short = "One sentence."
    assert social.shorten(f"  {short}\n") == short
    two = (
        "A sentence that is long enough to stand alone, with sixty letters or more. " + "word " * 60
    )
    assert social.shorten(two).endswith("or more.")
    cut = social.shorten("word, " * 60)
    assert len(cut) <= 200 and cut.endswith("word…")


def test_addresses_on_cards_are_absolute_and_escaped():
    head = social.tags("https://a.b/c/", "index", 'A "title" & more', "text", "social/index.png")
    assert 'content="https://a.b/c/"' in head and 'content="https://a.b/c/_static/social/' in head
    assert "A &quot;title&quot; &amp; more" in head and 'content="website"' in head
