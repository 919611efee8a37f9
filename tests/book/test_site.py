"""The built site in a real browser that reaches no other host.

Every page is opened once, as on a phone. The chapters, and the pages of the library, are looked at
closely where they changed and in turns (`tests.book.sampling`); BOOK_SITE_ALL=1 looks at all.
Looks at `_build/html` (or the folder named by BOOK_SITE) as `python -m book build` left it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from book.source import ROOT
from tests.book.browser import Visit, axe, browser, missing, served
from tests.book.sampling import changes, sample, turn

pytestmark = pytest.mark.site

SITE = Path(os.environ.get("BOOK_SITE") or ROOT / "_build" / "html").resolve()
LIMIT = 1_500_000
"""Bytes of a chapter's first load, compressed."""
FAULTS = (Path(__file__).parent / "faults.js").read_text("utf-8")
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}


def pages() -> list[str]:
    found = (path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    return sorted(name for name in found if not name.startswith(("_", "genindex", "py-modindex")))


PAGES = pages()
CHAPTERS = [p for p in PAGES if p.startswith("chapters/") and not p.endswith("/index.html")]
CHARTED = {page for page in PAGES if 'class="itr-chart"' in (SITE / page).read_text("utf-8")}
LIBRARY = [page for page in PAGES if page.startswith("reference/") and page.count(".") > 1]
CHANGED_FILES, TURN = changes(ROOT), turn(ROOT)
CLOSELY = [
    *sample(CHAPTERS, CHANGED_FILES, TURN),
    *sample(LIBRARY, CHANGED_FILES, TURN),
    *(page for page in PAGES if page not in {*CHAPTERS, *LIBRARY}),
]


@pytest.fixture(scope="module")
def site():
    """The browser and the address under which it finds the site."""
    if not (SITE / "index.html").is_file():
        missing(f"no site in {SITE}: python -m book run, then python -m book build")
    with served(SITE) as address, browser() as chromium:
        yield chromium, address


@contextmanager
def visit(site, **options) -> Iterator[Visit]:
    made = Visit(*site, **options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def desk(site):
    with visit(site, **DESKTOP) as made:
        yield made


@pytest.fixture(scope="module")
def phone(site):
    with visit(site, **PHONE) as made:
        yield made


def look(visit: Visit, *names: str) -> list[str]:
    """Ask the page for its faults of these kinds."""
    visit.page.evaluate(FAULTS)
    return [fault for name in names for fault in visit.page.evaluate(f"faults.{name}()")]


def theme(visit: Visit, mode: str) -> list[str]:
    """Change the system's theme; a page that does not follow is at fault."""
    visit.page.emulate_media(color_scheme=mode)
    followed = "mode => document.documentElement.dataset.theme === mode"
    try:
        visit.page.wait_for_function(followed, arg=mode, timeout=3_000)
    except Exception:
        shown = visit.page.evaluate("document.documentElement.dataset.theme")
        return [f"the system is {mode}, the page is {shown}"]
    return []


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, phone: Visit):
    """No error, no other host, mathematics set, charts drawn, described, not too wide."""
    phone.open(name)
    phone.settle()
    faults = look(phone, "unset", "charts", "undescribed", "sideways")
    assert not (faults := faults + noise(phone)), f"{name}:\n" + "\n".join(faults)


@pytest.mark.parametrize("name", CLOSELY)
def test_closely(name: str, site):
    """On a desk: light to load, legible in both themes, listings in view, controls that work."""
    with visit(site, **DESKTOP) as desk:
        answers = []
        desk.page.on("response", lambda answer: answers.append(answer))
        desk.open(name)
        desk.settle()
        faults = weight(answers) if name in CHAPTERS else []
        faults += look(desk, "charts", "sideways", "narrow")
        desk.page.evaluate(axe())
        for mode in ("light", "dark"):
            faults += theme(desk, mode)
            faults += [f"{mode}: {fault}" for fault in look(desk, "illegible")]
            faults += [f"{mode}: {fault}" for fault in barriers(desk, contrast=True)]
        faults += barriers(desk, contrast=False)  # the same in both themes
        faults += still_controls(desk) + noise(desk)
    if name in CHARTED:
        with visit(site, **DESKTOP, java_script_enabled=False) as desk:
            desk.open(name)
            faults += missing_pictures(desk, name) + noise(desk)
    assert not faults, f"{name}:\n" + "\n".join(faults)


def barriers(visit: Visit, contrast: bool) -> list[str]:
    """What axe calls serious or critical: either contrast, or all the rest.

    Charts and listings are thousands of elements; `illegible` has measured their text, and inside
    a chart nothing is read out (`faults.charts`).
    """
    rule = "color-contrast"
    rules = {"runOnly": [rule]} if contrast else {"rules": {rule: {"enabled": False}}}
    # Without `preload` axe would fetch style sheets again, some from the wrong place.
    options = {"resultTypes": ["violations"], "preload": False, **rules}
    left_out = [[".itr-chart svg"], *([["pre"]] if contrast else [])]
    return visit.page.evaluate(BARRIERS, [{"exclude": left_out}, options])


BARRIERS = """async ([where, options]) => (await axe.run(where, options)).violations
  .filter((found) => ["serious", "critical"].includes(found.impact))
  .flatMap((found) => found.nodes.slice(0, 3).map((node) =>
    `${found.id} (${found.impact}, ${found.nodes.length} times): ${node.html.slice(0, 160)}`))"""


def noise(visit: Visit) -> list[str]:
    """What the page said on the console and whom else it asked."""
    return [f"console: {error}" for error in visit.errors] + [
        f"asks another host: {url}" for url in visit.foreign
    ]


def weight(answers: list) -> list[str]:
    """All that the browser fetched until every chart was drawn, compressed."""
    sizes: dict[str, int] = {}
    for answer in answers:
        body = answer.body()
        packed = urlsplit(answer.url).path.endswith((".woff2", ".woff", ".png", ".jpg"))
        sizes[urlsplit(answer.url).path] = len(body) if packed else len(gzip.compress(body, 6))
    total = sum(sizes.values())
    if total < LIMIT:
        return []
    heaviest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    return [f"{total:,} bytes: " + ", ".join(f"{path} {size:,}" for path, size in heaviest)]


def still_controls(visit: Visit) -> list[str]:
    """Sliders and menus that cannot be seen, or that change no picture."""
    faults = []
    controls = visit.page.locator(".itr-explore .itr-controls :is(input, select)")
    for number in range(controls.count()):
        control = controls.nth(number)
        if not control.is_visible():
            faults.append(f"control {number + 1} cannot be seen")
            continue
        before = control.evaluate(PICTURE)
        for value in control.evaluate(OTHERS):
            control.evaluate(MOVE, value)
            try:
                visit.page.wait_for_function(CHANGED, arg=[number, before], timeout=5_000)
                break
            except Exception:  # two neighboring settings may look alike; not all of them
                continue
        else:
            faults.append(f"control {number + 1} changes nothing")
    return faults


def missing_pictures(visit: Visit, name: str) -> list[str]:
    """Without scripts: charts that leave no described picture."""
    charts = (SITE / name).read_text("utf-8").count('class="itr-chart"')
    pictures = visit.page.locator("img.itr-picture")
    shown = [pictures.nth(i) for i in range(pictures.count())]
    faults = [] if len(shown) >= charts else [f"{len(shown)} pictures for {charts} charts"]
    for number, picture in enumerate(shown):
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        if not box or not picture.evaluate("image => image.decode().then(() => true, () => false)"):
            faults.append(f"picture {number + 1} is missing")
        if len((picture.get_attribute("alt") or "").split()) < 5:
            faults.append(f"picture {number + 1} is not described")
    return faults


PICTURE = "c => c.closest('.itr-explore').querySelector('.itr-chart svg').outerHTML"
OTHERS = """c => (c.localName === 'select' ? [...c.options].map(o => o.value)
  : Array.from({length: +c.max - +c.min + 1}, (_, i) => String(+c.min + i)))
  .filter(v => v !== c.value).reverse()"""
MOVE = "(c, v) => { c.value = v; c.dispatchEvent(new Event('input', {bubbles: true})); }"
CHANGED = """([n, before]) => {
  const c = document.querySelectorAll('.itr-explore .itr-controls :is(input, select)')[n];
  const svg = c.closest('.itr-explore').querySelector('.itr-chart svg');
  return svg && svg.outerHTML !== before;
}"""


def test_search_finds(desk: Visit):
    desk.open("search.html?q=notation")
    desk.page.wait_for_selector("#search-results li a", timeout=10_000)
    assert not desk.errors and not desk.foreign


@pytest.mark.skipif(not CHAPTERS, reason="no chapter is printed")
def test_search_finds_chapters_first(desk: Visit):
    chapter = (SITE / CHAPTERS[0]).read_text("utf-8")
    title = re.search(r"<h1>([^<]+)", chapter)[1].strip()
    desk.open(f"search.html?q={title}")
    found = "document.querySelector('.search-summary')?.textContent.includes('finished')"
    desk.page.wait_for_function(found, timeout=10_000)
    first = desk.page.locator("#search-results li a").first
    assert "chapters/" in first.get_attribute("href")


@pytest.mark.skipif(not CHAPTERS, reason="no chapter is printed")
def test_search_quotes_the_prose(desk: Visit):
    desk.open("search.html?q=the+paper")
    found = "document.querySelector('.search-summary')?.textContent.includes('finished')"
    desk.page.wait_for_function(found, timeout=10_000)
    desk.page.wait_for_selector("#search-results p.context")
    quotes = desk.page.locator("#search-results p.context").all_text_contents()
    furniture = re.compile(r"Open in Colab|Source on GitHub|Show the |Contents$|import |\\[a-z(]")
    assert quotes and not [quote for quote in quotes if furniture.search(quote)]
    assert not desk.errors and not desk.foreign


CARDS = ".itr-chapter"
SHOWN = ".itr-chapter:not([hidden])"


@pytest.mark.skipif(not CHAPTERS, reason="no chapter is printed")
def test_the_gallery_filters_without_a_server_and_by_keyboard(site):
    """From a file, with the keys alone; the address remembers what was asked for."""
    chromium, _ = site
    with visit((chromium, SITE.as_uri()), **DESKTOP) as desk:
        desk.open("gallery.html")
        page = desk.page
        count = page.locator(CARDS).count()
        assert count == len(CHAPTERS) == page.locator(SHOWN).count()
        assert page.locator(".itr-found").inner_text() == f"{count} chapters"
        title = page.locator(f"{CARDS} a").last.inner_text()
        page.locator("#itr-words").focus()
        page.keyboard.type(title.upper())
        assert page.locator(SHOWN).count() >= 1
        assert title in page.locator(SHOWN).first.inner_text()
        page.keyboard.press("Escape")
        assert page.locator(SHOWN).count() == count
        page.keyboard.type("no chapter has these words")
        assert page.locator(SHOWN).count() == 0 and page.locator("main h1").last.is_visible()
        assert "No chapter fits" in page.locator(".itr-found").inner_text()
        page.keyboard.press("Escape")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        part = page.locator("#itr-part").input_value()
        assert part and {part} == set(page.locator(SHOWN).evaluate_all(PARTS_SHOWN))
        page.reload()
        assert page.locator("#itr-part").input_value() == part
        assert page.locator(SHOWN).count() <= count
        assert not desk.errors


PARTS_SHOWN = "cards => cards.map(card => card.dataset.part)"


@pytest.mark.skipif(not CHAPTERS, reason="no chapter is printed")
def test_without_scripts_every_chapter_is_there(site):
    with visit(site, **DESKTOP, java_script_enabled=False) as desk:
        desk.open("gallery.html")
        assert desk.page.locator(CARDS).count() == len(CHAPTERS)
        assert desk.page.locator(f"{CARDS} h2 a, {CARDS} h3 a").last.is_visible()
        assert not desk.page.locator(".itr-filter").is_visible()
        desk.open("map.html")
        assert desk.page.locator(".itr-map li a").count() == len(CHAPTERS)


@pytest.mark.skipif(not CHAPTERS, reason="no chapter is printed")
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_gallery_fetches_only_pictures_that_are_seen(site, mode):
    other = {"light": "dark", "dark": "light"}[mode]
    with visit(site, **DESKTOP, color_scheme=mode) as desk:
        answers = []
        desk.page.on("response", lambda answer: answers.append(answer))
        desk.open("gallery.html")
        desk.page.locator(f".itr-thumbnail img.only-{mode}").first.scroll_into_view_if_needed()
        desk.page.wait_for_load_state("networkidle")
        pictures = [answer for answer in answers if "/thumbnails/" in answer.url]
        assert pictures and not [answer.url for answer in pictures if f"-{other}." in answer.url]
        assert not weight(answers)
        sizes = [len(answer.body()) for answer in pictures]
        assert max(sizes) < 30_000 and sum(sizes) / len(sizes) < 15_000, sizes


@pytest.mark.skipif(not CHAPTERS, reason="no chapter is printed")
def test_the_map_shows_the_way_to_a_chapter(site):
    chromium, _ = site
    with visit((chromium, SITE.as_uri()), **PHONE) as phone:
        phone.open("map.html")
        needs = json.loads(phone.page.locator("#itr-needs").text_content())
        name = max(needs, key=lambda name: len(needs[name]["before"]))
        phone.page.locator("#itr-goal").select_option(name)
        links = phone.page.locator("#itr-route a").evaluate_all("all => all.map(a => a.href)")
        wanted = [*needs[name]["before"], name]
        assert [link.removeprefix(f"{SITE.as_uri()}/") for link in links] == [
            needs[other]["page"] for other in wanted
        ]
        on = phone.page.locator(".itr-map li.itr-on").evaluate_all(
            "all => all.map(e => e.dataset.name)"
        )
        assert on == wanted
        minutes = phone.page.locator("#itr-route p").inner_text()
        total = sum(needs[other]["minutes"] for other in wanted)
        assert (f"{total} minutes" if total < 100 else f"{total // 60} h") in minutes
        phone.page.reload()
        assert phone.page.locator("#itr-goal").input_value() == name
        assert not phone.errors


def test_a_page_that_is_not_there_says_so_at_any_depth(site):
    text = (SITE / "404.html").read_text("utf-8")
    with visit(site, **DESKTOP) as desk:
        desk.context.route("**/none.html", lambda route: route.fulfill(status=200, body=text))
        for place in ("none.html", "chapters/width/none.html", "reference/none.html"):
            desk.open(place)
            desk.settle()
            # What the browser fetches ahead of the page's own base is in vain, and harmless.
            assert not desk.foreign and desk.page.get_by_text("no such page").is_visible()
            assert desk.page.evaluate(STYLED) == ["charts.css", "icons.css", "book.css"]
            desk.page.locator("#no-such-page").get_by_role("link", name="All chapters").click()
            desk.page.wait_for_url("**/gallery.html")
            assert desk.page.url.count("/") == 3


STYLED = """[...document.styleSheets].filter((sheet) => sheet.href && sheet.cssRules.length)
  .map((sheet) => sheet.href.split("/").pop().split("?")[0])
  .filter((name) => ["charts.css", "icons.css", "book.css"].includes(name))"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_question_comes_first(name: str):
    """After the card there is one closed line of set-up, then the chapter's first section."""
    text = (SITE / name).read_text("utf-8")
    head = text[text.index('class="itr-card') :]
    head = head[: head.index("<h2")]
    assert head.count("<details") == 1 and "<details open" not in head
    assert "<table" not in head[: head.index("<details")] + head[head.index("</details>") :]


def test_the_search_field_leads_there(desk: Visit):
    desk.open("index.html")
    desk.page.locator(".bd-sidebar-primary .search-button__button").click()
    desk.page.keyboard.type("notation")
    desk.page.keyboard.press("Enter")
    desk.page.wait_for_url("**/search.html?q=notation*", timeout=10_000)
    assert not desk.errors and not desk.foreign


def test_links_lead_somewhere():
    """Every link and file that a page names inside the site exists."""
    if not (SITE / "index.html").is_file():
        missing(f"no site in {SITE}: python -m book run, then python -m book build")
    anchors: dict[Path, set[str]] = {}
    broken = []

    def ids(path: Path) -> set[str]:
        if path not in anchors:
            anchors[path] = set(re.findall(r'\bid="([^"]+)"', path.read_text("utf-8")))
        return anchors[path]

    for page in PAGES:
        text = (SITE / page).read_text("utf-8")
        for target in set(re.findall(r'\b(?:href|src)="([^"]*)"', text)):
            parts = urlsplit(target.replace("&amp;", "&"))
            if parts.scheme or parts.netloc:
                continue
            path = (SITE / page).parent / unquote(parts.path) if parts.path else SITE / page
            path = path / "index.html" if path.is_dir() else path
            if not path.is_file():
                broken.append(f"{page}: {target}")
            elif parts.fragment and path.suffix == ".html" and parts.fragment not in ids(path):
                broken.append(f"{page}: {target} (no such anchor)")
    assert not broken, "\n".join(sorted(broken))


SOLUTION = re.compile(r"BEGIN SOLUTION[^\n]*\n(.*?)\n[^\n]*END SOLUTION", re.S)


def test_no_page_holds_a_solution():
    """What stands between the solution markers of a chapter is nowhere in the site."""
    from book.source import Source, text_of

    lines = set()
    for chapter in Source(ROOT).chapters:
        for cell in chapter.notebook["cells"]:
            for region in re.findall(
                r"BEGIN SOLUTION[^\n]*\n(.*?)\n[^\n]*END SOLUTION", text_of(cell), re.S
            ):
                lines |= {line.strip() for line in region.splitlines() if len(line.strip()) > 40}
    assert not any(
        line in re.sub(r"<[^>]+>", "", (SITE / page).read_text("utf-8"))
        for page in CHAPTERS
        for line in lines
    )
