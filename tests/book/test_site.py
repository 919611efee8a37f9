"""The built site in a real browser that reaches no other host.

Looks at `_build/html` (or the folder named by BOOK_SITE) as `python -m book build` left it.
"""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from book.source import ROOT
from tests.book.browser import Visit, browser, missing, served

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
CHARTED = [page for page in PAGES if 'class="itr-chart"' in (SITE / page).read_text("utf-8")]


@pytest.fixture(scope="module")
def site():
    """The browser and the address under which it finds the site."""
    if not (SITE / "index.html").is_file():
        missing(f"no site in {SITE}: python -m book run, then python -m book build")
    with served(SITE) as address, browser() as chromium:
        yield chromium, address


@pytest.fixture(scope="module")
def desk(site):
    visit = Visit(*site, **DESKTOP)
    yield visit
    visit.close()


@pytest.fixture(scope="module")
def phone(site):
    visit = Visit(*site, **PHONE)
    yield visit
    visit.close()


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
def test_page(name: str, desk: Visit, phone: Visit):
    """No error, no other host, mathematics set, charts drawn, legible, described, narrow."""
    desk.page.emulate_media(color_scheme="light")
    desk.open(name)
    desk.settle()
    faults = look(desk, "unset", "charts", "undescribed")
    for mode in ("light", "dark"):
        faults += theme(desk, mode)
        faults += [f"{mode}: {fault}" for fault in look(desk, "illegible")]
    faults += [f"console: {error}" for error in desk.errors]
    faults += [f"asks another host: {url}" for url in desk.foreign]
    phone.open(name)
    phone.settle()
    faults += [f"phone: {fault}" for fault in look(phone, "sideways", "charts")]
    faults += [f"phone console: {error}" for error in phone.errors]
    assert not faults, f"{name}:\n" + "\n".join(faults)


@pytest.mark.parametrize("name", CHARTED)
def test_controls_change_the_picture(name: str, desk: Visit):
    desk.open(name)
    desk.settle()
    controls = desk.page.locator(".itr-explore .itr-controls :is(input, select)")
    for number in range(controls.count()):
        control = controls.nth(number)
        assert control.is_visible(), f"{name}: control {number + 1} cannot be seen"
        before = control.evaluate(PICTURE)
        for value in control.evaluate(OTHERS):
            control.evaluate(MOVE, value)
            try:
                desk.page.wait_for_function(CHANGED, arg=[number, before], timeout=5_000)
                break
            except Exception:  # two neighboring settings may look alike; not all of them
                continue
        else:
            pytest.fail(f"{name}: control {number + 1} changes nothing")


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


@pytest.mark.parametrize("name", CHARTED)
def test_pictures_without_scripts(name: str, site):
    visit = Visit(*site, **DESKTOP, java_script_enabled=False)
    try:
        visit.open(name)
        charts = len(re.findall(r'class="itr-chart"', (SITE / name).read_text("utf-8")))
        pictures = visit.page.locator("img.itr-picture")
        shown = [pictures.nth(i) for i in range(pictures.count())]
        assert len(shown) >= charts, f"{name}: {len(shown)} pictures for {charts} charts"
        for picture in shown:
            picture.scroll_into_view_if_needed()
            box = picture.bounding_box()
            loaded = box and picture.evaluate("image => image.naturalWidth > 0")
            assert loaded, f"{name}: a picture is missing"
            assert len((picture.get_attribute("alt") or "").split()) >= 5
        assert not visit.foreign and not visit.errors
    finally:
        visit.close()


@pytest.mark.parametrize("name", CHAPTERS)
def test_first_load_is_light(name: str, site):
    """All that the browser fetches for a chapter until every chart is drawn, compressed."""
    visit = Visit(*site, **DESKTOP)
    sizes: dict[str, int] = {}
    try:
        fetched = []
        visit.page.on("response", lambda answer: fetched.append(answer))
        visit.open(name)
        visit.settle()
        for answer in fetched:
            body = answer.body()
            packed = urlsplit(answer.url).path.endswith((".woff2", ".woff", ".png", ".jpg"))
            sizes[answer.url] = len(body) if packed else len(gzip.compress(body, 6))
    finally:
        visit.close()
    total = sum(sizes.values())
    heaviest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    print(f"{name}: {total / 1e6:.2f} MB")
    assert total < LIMIT, f"{name}: {total:,} bytes; " + ", ".join(
        f"{urlsplit(url).path} {size:,}" for url, size in heaviest
    )


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
