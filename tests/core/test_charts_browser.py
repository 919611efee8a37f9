"""Charts in a real browser: both page themes, a phone, controls, no other host, no eval."""

import re

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert

from lib.core import plots
from lib.core.explore import explore
from tests.book.browser import Visit, browser, served

WORDS = "Loss against step for three widths; the widest falls fastest."
# As strict as a page can be while it still styles itself: no eval, nothing from elsewhere.
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
HEAD = (
    "<!doctype html><html lang=en {attributes}><meta charset=utf-8><title>t</title>"
    '<meta name=viewport content="width=device-width"><link rel=icon href="data:,">'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    '<link rel=stylesheet href="charts.css">'
    '<script defer src="charts.js" data-vega="vega.js"></script>'
    "<style>body{{max-width:720px;margin:0 auto;padding:0 16px}}</style>"
)


def wave(width, kind):
    t = np.arange(30)
    return pd.DataFrame({"t": t, "y": np.sin(t / 5) / width, "width": width, "kind": kind})


def line(frame):
    title = f"Width {frame.width[0]}, {frame.kind[0]}"
    return alt.Chart(frame, title=title).mark_line().encode(x="t", y="y")


def figures():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.random(60), "y": rng.random(60), "k": list("abcdef") * 10})
    dots = alt.Chart(frame).mark_point().encode(x="x", y="y", color="k")
    small = dots.properties(width=180)
    words = frame.assign(k="a rather long name for group " + frame.k)
    named = alt.Chart(words).mark_point().encode(x="x", y="y", color="k")
    bars = alt.Chart(frame).mark_bar().encode(x="k", y="mean(y)")
    charts = {
        "dots": dots,
        "beside": small | small | small,
        "facets": dots.properties(width=160).facet("k:N", columns=4),
        "column": dots.properties(width=120).encode(column="k:N"),
        "legend": named,
        "bars": bars.properties(width=900),
        "matrix": plots.heatmap(rng.random((12, 40))),
        "images": plots.image_grid(rng.random((16, 8, 8)), columns=16),
    }
    return {k: plots.figure(c.properties(title=f"The {k}"), WORDS) for k, c in charts.items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("charts")
    (folder / "vega.js").write_text(vl_convert.javascript_bundle())
    (folder / "charts.js").write_text((plots.STATIC / "charts.js").read_text())
    (folder / "charts.css").write_text(plots.stylesheet())
    shown = explore(
        wave,
        line,
        description=WORDS,
        default={"width": 4},
        width=[1, 2, 4],
        kind=["sine", "wave"],
    )
    whole = {"explore": shown.html()} | {k: f.html() for k, f in figures().items()}
    bare = {
        k: re.sub(r'<(style|script) data-itr="loader"[^>]*>.*?</\1>', "", html, flags=re.S)
        for k, html in whole.items()
    }
    body = "<p>before</p>" + "".join(f"<section id={k}>{v}</section>" for k, v in bare.items())
    for theme in ("light", "dark"):
        page = HEAD.format(attributes=f"data-theme={theme}") + body
        (folder / f"{theme}.html").write_text(page)
    (folder / "empty.html").write_text(HEAD.format(attributes="") + "<main></main>")
    (folder / "outside.html").write_text(
        "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>"
        "<script>window.define = (() => 0); window.define.amd = {}</script>" + whole["dots"]
    )
    (folder / "dots.txt").write_text(bare["dots"])
    with browser() as chromium, served(folder) as address:
        yield chromium, address


@pytest.fixture
def visit(site):
    made = []

    def go(page, width=900, **options):
        tab = Visit(site[0], site[1], viewport={"width": width, "height": 800}, **options)
        made.append(tab)
        tab.open(page)
        return tab

    yield go
    for tab in made:
        tab.close()


def calm(tab):
    assert tab.errors == [] and tab.foreign == []
    assert tab.page.locator(".itr-error").count() == 0


@pytest.mark.parametrize(("theme", "mode"), [("light", 0), ("dark", 1)])
def test_charts_follow_the_page_theme(visit, theme, mode):
    tab = visit(f"{theme}.html")
    tab.settle()
    fill = "e => '#' + getComputedStyle(e).fill.match(/\\d+/g).slice(0, 3)"
    fill += ".map(c => (+c).toString(16).padStart(2, '0')).join('')"
    label = tab.page.locator("#dots .role-axis-label text").first
    assert label.evaluate(fill) == plots.theme.TOKENS["ink"][mode]
    dot = tab.page.locator("#dots .mark-symbol.role-mark path").first
    assert dot.evaluate(fill) == plots.theme.TOKENS["c1"][mode]
    calm(tab)


def test_the_theme_switch_needs_no_redraw(visit):
    tab = visit("light.html")
    tab.settle()
    dot = tab.page.locator("#dots .mark-symbol.role-mark path").first
    before = dot.evaluate("e => getComputedStyle(e).fill")
    tab.page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert dot.evaluate("e => getComputedStyle(e).fill") != before


@pytest.mark.parametrize("width", [900, 360])
def test_nothing_is_wider_than_its_room(visit, width):
    tab = visit("light.html", width)
    tab.settle()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    for name in figures():
        host = tab.page.locator(f"#{name} .itr-chart")
        room, needed = host.evaluate("e => [e.clientWidth, e.scrollWidth]")
        assert needed <= room, f"{name} scrolls sideways at {width}"
    calm(tab)


def test_charts_fit_again_when_the_window_narrows(visit):
    tab = visit("light.html")
    tab.settle()
    host = tab.page.locator("#beside .itr-chart")
    tall = host.bounding_box()["height"]
    tab.page.set_viewport_size({"width": 360, "height": 800})
    tab.page.wait_for_function(
        "() => { const e = document.querySelector('#beside .itr-chart');"
        "return e.scrollWidth <= e.clientWidth }"
    )
    assert host.bounding_box()["height"] > 1.5 * tall, "side by side became one below the other"
    calm(tab)


def test_the_keyboard_moves_an_explorable(visit):
    tab = visit("light.html")
    tab.settle()
    page = tab.page
    slider = page.get_by_role("slider", name="width")
    assert page.locator("#explore .itr-title").text_content() == "Width 4, sine"
    assert slider.get_attribute("aria-valuetext") == "4"
    path = page.locator("#explore .mark-line path")
    place = page.locator("#dots").bounding_box()["y"]
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('#explore .itr-title').textContent[6] === '2'")
    assert slider.get_attribute("aria-valuetext") == "2"
    assert page.locator("#explore output").text_content() == "2"
    page.get_by_role("combobox", name="kind").select_option("wave")
    page.wait_for_function(
        "document.querySelector('#explore .itr-title').textContent === 'Width 2, wave'"
    )
    assert path.count() == 1
    ticks = page.locator("#explore .role-axis-label text").all_text_contents()
    assert "0.4" in ticks and "0.25" not in ticks, "the drawing itself has changed"
    assert page.locator("#dots").bounding_box()["y"] == place, "the page does not jump"
    calm(tab)


def test_the_last_of_many_quick_moves_wins(visit):
    tab = visit("light.html")
    tab.settle()
    tab.page.evaluate(
        """() => { const slider = document.querySelector('#explore input');
        for (const value of [0, 1, 2, 0, 1, 2, 0]) {
            slider.value = value;
            slider.dispatchEvent(new Event('input', { bubbles: true })); } }"""
    )
    tab.page.wait_for_function(
        "document.querySelector('#explore .itr-title').textContent === 'Width 1, sine'"
        " && document.querySelectorAll('#explore .itr-view').length === 1"
    )
    calm(tab)


def test_the_tooltip_is_legible(visit):
    tab = visit("dark.html")
    tab.settle()
    tab.page.locator("#bars .mark-rect.role-mark path").first.hover()
    tip = tab.page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "Mean of y" in tip.text_content()
    colors = tip.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
    assert colors == ["rgb(20, 24, 30)", "rgb(227, 230, 234)"]


def test_a_chart_that_arrives_later_is_drawn_once(visit):
    tab = visit("empty.html")
    tab.page.evaluate(
        """async () => { document.querySelector('main').innerHTML =
            await (await fetch('dots.txt')).text(); }"""
    )
    tab.page.locator(".itr-chart[data-itr=drawn]").wait_for()
    tab.page.evaluate("window.itrCharts.init()")
    assert tab.page.locator(".itr-chart svg").count() == 1
    assert tab.page.locator(".itr-title").count() == 1
    calm(tab)


def test_outside_the_book_the_libraries_come_from_their_public_address(visit, site):
    """Also where require.js is on the page, which hides a library from who looks for it."""
    asked = []

    def answer(route):
        asked.append(route.request.url)
        last = "vega-embed" in route.request.url
        body = vl_convert.javascript_bundle() if last else ""
        route.fulfill(status=200, content_type="text/javascript", body=body)

    tab = Visit(site[0], site[1])
    try:
        tab.context.route("https://cdn.jsdelivr.net/**", answer)
        tab.open("outside.html")
        tab.page.locator(".itr-chart[data-itr=drawn] svg").wait_for()
        assert [re.search(r"npm/([a-z-]+)@\d", url)[1] for url in asked] == [
            "vega",
            "vega-lite",
            "vega-embed",
        ]
        assert tab.page.evaluate("typeof window.define") == "function"
        assert tab.errors == []
    finally:
        tab.close()


def test_without_the_libraries_the_still_picture_stands(visit):
    tab = visit("outside.html")
    still = tab.page.locator(".itr-chart .itr-still svg")
    still.wait_for()
    assert still.bounding_box()["height"] > 200
    assert tab.page.locator(".itr-title").is_hidden(), "the title stands in the picture"


def test_a_chart_that_cannot_be_drawn_says_so(visit, site):
    tab = Visit(site[0], site[1])
    try:
        tab.context.route("**/vega.js", lambda route: route.abort())
        tab.open("light.html")
        tab.page.locator("#explore .itr-error").wait_for()
        assert "could not be drawn" in tab.page.locator("#explore .itr-error").text_content()
        assert tab.page.locator("#explore .itr-controls").is_hidden()
    finally:
        tab.close()


def test_a_chart_that_leaves_and_returns_stays_one(visit):
    """JupyterLab takes outputs out of the page while they are scrolled away."""
    tab = visit("light.html")
    tab.settle()
    tab.page.evaluate(
        """async () => { const section = document.querySelector('#dots'), home = section.parentNode;
        const wait = () => new Promise((done) => setTimeout(done, 50));
        section.remove(); window.itrCharts.init(); await wait();
        home.append(section); await wait(); window.itrCharts.init(); await wait(); }"""
    )
    assert tab.page.locator("#dots .itr-title").count() == 1
    assert tab.page.locator("#dots svg").count() == 1
    calm(tab)
