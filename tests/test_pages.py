"""The committed book, built and opened in a browser: complete, quiet, searchable, and in need of no network."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from sphinx_external_toc.parsing import parse_toc_yaml

from book import build, pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = pytest.mark.slow


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed book, built as ``make html`` does, warnings being errors."""
    folder = tmp_path_factory.mktemp("book")
    return build.build_html(build.stage(folder / "stage", committed=True), folder).parent


@pytest.fixture(scope="module")
def site(html: Path) -> Iterator[str]:
    """The book's address on this machine."""
    handler = functools.partial(Quiet, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@functools.cache
def places(path: Path) -> set[str]:
    """What a link into a page may lead to."""
    return set(re.findall(r'\bid="([^"]+)"', path.read_text(encoding="utf-8")))


def addresses(site: str) -> list[str]:
    return [f"{site}/{name}.html" for name in parse_toc_yaml(pages.ROOT / "_toc.yml")]


def visit(browser: Any, address: str) -> Any:
    """Open a page that complains of nothing and asks nobody outside this machine."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []

    def route(handle: Any) -> None:
        if urlsplit(handle.request.url).hostname in ("127.0.0.1", None):
            handle.continue_()
        else:
            errors.append(handle.request.url)
            handle.abort()

    page.route("**/*", route)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(address, wait_until="load")
    page.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
    assert not errors, f"{address}: {errors}"
    return page


def test_every_page_is_complete_and_quiet(site: str, html: Path, browser: Any) -> None:
    formulas = 0
    for address in addresses(site):
        page = visit(browser, address)
        assert page.locator("h1").count() >= 1, f"{address} has no heading"
        broken = page.evaluate(
            """async () => {
                const images = [...document.images];
                images.forEach(i => i.loading = "eager");
                await Promise.all(images.map(i => i.decode().catch(() => 0)));
                return images.filter(i => !i.naturalWidth).map(i => i.src);
            }"""
        )
        assert not broken, f"{address}: {broken}"
        assert page.locator("mjx-merror").count() == 0, f"{address} has a formula that MathJax cannot read"
        formulas += page.locator("mjx-container").count()
        for link in page.eval_on_selector_all("a[href]", "links => links.map(a => a.getAttribute('href'))"):
            target, fragment = urldefrag(urljoin(page.url, link))
            if target.startswith(site):
                path = html / unquote(urlsplit(target).path).lstrip("/")
                path = path / "index.html" if path.is_dir() else path
                assert path.is_file(), f"{address} links to {link}, which is not there"
                found = path.suffix != ".html" or not fragment or unquote(fragment) in places(path)
                assert found, f"{address} links to {link}: no such place"
        page.close()
    assert formulas, "no page has a formula: is MathJax in place?"


def test_search_the_front_page_and_the_gallery_lead_on(site: str, browser: Any) -> None:
    page = visit(browser, f"{site}/search.html?q=tableau")
    page.wait_for_selector("#search-results li a")
    links = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert any("tableau" in link for link in links)
    page.goto(f"{site}/index.html")  # leads to the first page of the book
    page.wait_for_url(addresses(site)[0])
    page.goto(f"{site}/book/gallery.html")
    assert page.locator(".sd-card img").count() == len(pages.pages()) - 1
    page.locator(".sd-card").nth(1).click()
    page.wait_for_url(f"{site}/book/{pages.pages()[2]}.html")
    page.close()
