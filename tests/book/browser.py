"""A real browser that can reach this machine and nothing else."""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

HINT = (
    "install Chromium (Debian, Ubuntu: apt-get install chromium) or set BOOK_CHROMIUM to its path"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    # The network ends at this machine. Rules, not intercepted requests: with those the browser
    # keeps no cache, and every page would read MathJax and Vega anew.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


def missing(what: str) -> None:
    """Skip, or fail where BOOK_REQUIRE_BROWSER=1 says that a skip would hide something."""
    if os.environ.get("BOOK_REQUIRE_BROWSER") == "1":
        pytest.fail(what)
    pytest.skip(what)


def program() -> str | None:
    """The browser's program, if there is one."""
    named = os.environ.get("BOOK_CHROMIUM")
    if named:
        return shutil.which(named)
    return next(filter(None, map(shutil.which, NAMES)), None)


STILL = """addEventListener("DOMContentLoaded", () => {
  const style = document.createElement("style");
  style.textContent = "*, ::before, ::after { transition: none !important }";
  document.head.append(style);
});"""
"""Colors are measured where they end, not on their way."""


@contextmanager
def browser() -> Iterator:
    """Headless Chromium, driven by Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed: pip install playwright")
    path = program()
    if path is None:
        missing(f"no browser found: {HINT}")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield chromium
        finally:
            chromium.close()


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for many files

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def axe() -> str:
    """Deque's checker of accessibility as a script; the Python package carries it."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        missing("axe is not installed: pip install axe-playwright-python")
    return (Path(spec.origin).parent / "axe.min.js").read_text("utf-8")


class Visit:
    """One tab. Requests to other hosts fail and are noted, like errors on the console."""

    def __init__(self, browser, address: str, **options) -> None:
        self.address = address
        self.host = urlsplit(address).netloc
        self.context = browser.new_context(**options)
        self.context.add_init_script(STILL)
        self.page = self.context.new_page()
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._request)
        self.page.on("response", self._response)

    def _request(self, request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob") and url.netloc != self.host:
            self.foreign.append(request.url)

    def _console(self, message) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _response(self, answer) -> None:
        if answer.status >= 400:
            self.errors.append(f"{answer.status} {answer.url}")

    def open(self, path: str) -> None:
        """Go to a page of the site and forget what earlier pages did."""
        self.foreign.clear()
        self.errors.clear()
        self.page.goto(f"{self.address}/{path}", wait_until="load")

    def settle(self) -> None:
        """Wait until mathematics is set and every chart is drawn."""
        self.page.evaluate("window.MathJax?.startup?.promise")
        self.page.wait_for_function(
            """() => [...document.querySelectorAll('.itr-chart')].every(
                chart => chart.dataset.itr === 'drawn' || chart.querySelector('.itr-error'))""",
            timeout=20_000,
        )

    def close(self) -> None:
        self.context.close()
