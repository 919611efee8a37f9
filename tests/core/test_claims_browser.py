"""The claims table outside the book: legible and with its mathematics set in every notebook."""

from pathlib import Path

import pytest

from lib.core.claims import MATHJAX, Claims
from tests.book.browser import Visit, browser, served

FAULTS = (Path(__file__).parents[1] / "book" / "faults.js").read_text("utf-8")
NOTEBOOKS = {
    "colab light": ("<html>", "<body style='background:#fff;color:#212121'>"),
    "colab dark": ("<html theme=dark>", "<body style='background:#383838;color:#d5d5d5'>"),
    "jupyter light": ("<html>", "<body data-jp-theme-light=true style='background:#fff'>"),
    "jupyter dark": (
        "<html>",
        "<body data-jp-theme-light=false style='background:#111;color:#fff'>",
    ),
    "code dark": ("<html>", "<body class=vscode-dark style='background:#1e1e1e;color:#ccc'>"),
}


def table() -> str:
    claims = Claims()
    claims.add(
        r"$\Theta$ holds.", paper="1", measured="1", holds=True, exact=True, note="as it must"
    )
    claims.add("It fails.", paper="1", measured="2", holds=False, note="too $n$arrow")
    claims.add("It takes a while.", paper="1 h", measured="12 s", holds=None)
    return claims._repr_mimebundle_()[0]["text/html"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    for name, (page, body) in NOTEBOOKS.items():
        head = "<meta charset=utf-8><title>t</title><link rel=icon href='data:,'>"
        text = f"<!doctype html>{page}{head}{body}{table()}"
        (folder / f"{name.replace(' ', '-')}.html").write_text(text, "utf-8")
    with browser() as chromium, served(folder) as address:
        yield chromium, address


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_legible_and_set(site, name):
    tab = Visit(*site)
    try:
        asked = []
        script = "MathJax.startup = {promise: Promise.resolve()}; window.fetched = MathJax;"

        def answer(route):
            asked.append(route.request.url)
            route.fulfill(status=200, content_type="text/javascript", body=script)

        tab.context.route("https://cdn.jsdelivr.net/**", answer)
        tab.open(f"{name.replace(' ', '-')}.html")
        tab.page.evaluate(FAULTS)
        assert tab.page.evaluate("faults.illegible()") == []
        assert tab.page.locator(".math").text_content() == r"\(\Theta\)"
        # JupyterLab sets mathematics by itself; elsewhere MathJax comes, and looks at these only.
        assert asked == ([] if "jupyter" in name else [MATHJAX])
        assert tab.errors == []
    finally:
        tab.close()
