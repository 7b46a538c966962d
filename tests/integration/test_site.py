"""The documentation as a site: it builds without network, looks as in the repository, and works in a browser."""

from __future__ import annotations

import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.browser import Browser
from tests.command import ROOT, Commands

COUNTED = ("table", "tr", "ul", "ol", "li", "pre")
BUTTONS = "form[data-md-component=palette] label"
# Attributes by which a browser fetches something on its own.
FETCHING = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """Files that a page fetches, and how many elements of each kind its article has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.counts = dict.fromkeys(COUNTED, 0)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in FETCHING and values.get("rel") != "canonical":
            self.fetched.append(values.get(FETCHING[tag]) or "")
        if tag in self.counts:
            self.counts[tag] += 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does."""
    folder, commands = tmp_path_factory.mktemp("site"), Commands()
    arguments = ["-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = commands.run("python", *arguments, env={"NO_MKDOCS_2_WARNING": "1"}, check=True)
    commands.close()
    assert "WARNING" not in done.stdout + done.stderr
    return folder


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        outside = [name for name in Page(page.read_text()).fetched if re.match(r"(https?:)?//", name)]
        assert not outside, f"{page.name}: {outside}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\"?(https?:)?//|@import", sheet.read_text()), sheet


def test_every_page_has_the_lists_and_tables_that_the_repository_shows(site: Path) -> None:
    """The site's Markdown wants blank lines and indents where the repository's does without; the text has both."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    wrong = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        expected = Page(reader.render(page.read_text())).counts
        article = re.search(r"<article.*?</article>", _page_of(site, page).read_text(), re.S)
        assert article is not None
        found = Page(article[0]).counts
        wrong += [
            f"{page.name}: {found[tag]} <{tag}>, not {expected[tag]}" for tag in COUNTED if found[tag] != expected[tag]
        ]
    assert not wrong, "\n".join(wrong)


def test_every_page_is_in_the_navigation(site: Path) -> None:
    text = (site / "index.html").read_text()
    links = set(re.findall(r'href="([^"#]+)" class="md-nav__link', text)) | {"./index.html"}
    links |= set(re.findall(r'href="([^"#]+)"', text))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = _page_of(site, page).relative_to(site).as_posix()
        assert name in links, f"{name} cannot be reached; see nav in mkdocs.yml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gone](nowhere.md)", "nowhere.md"),
        ("[gone](plan.md#nowhere)", "nowhere"),
        ("[up](../nowhere.yaml)", "nowhere"),
    ],
)
def test_a_dead_link_or_anchor_fails(tmp_path: Path, command: Commands, text: str, message: str) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("site_hooks.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs" / name)
    (tmp_path / "docs" / "plan.md").write_text("# Plan\n\n## Devices\n\n[devices](../configs/devices.yaml)\n")
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        (tmp_path / name).write_text("# x\n")
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "devices.yaml", tmp_path / "configs")
    settings = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(
        settings[: settings.index("\nnav:")] + "\nnav: [index.md, changelog.md, contributing.md]\n"
    )
    for content, good in (("[plan](plan.md#devices)", True), (text, False)):
        (tmp_path / "docs" / "index.md").write_text(f"# Start\n\n{content}\n")
        arguments = ["-m", "mkdocs", "build", "--strict"]
        done = command.run("python", *arguments, env={"NO_MKDOCS_2_WARNING": "1"}, cwd=tmp_path)
        assert (done.returncode == 0) == good, done.stdout + done.stderr
        assert good or message in done.stdout + done.stderr


def _page_of(site: Path, page: Path) -> Path:
    return site / page.relative_to(ROOT / "docs").with_suffix(".html")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site behind a web server on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_in_a_real_browser(address: str, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    try:
        browser.open(f"{address}/index.html")
        assert browser.until("document.querySelector('h1')?.innerText").startswith("Start here")
        colours = set()
        for _ in range(2):  # the button changes between light and dark
            colours.add(browser.until("getComputedStyle(document.body).backgroundColor"))
            browser.until(f"[...document.querySelectorAll('{BUTTONS}')].some(l => l.offsetParent && !l.click())")
        assert len(colours) == 2
        browser.open(f"{address}/plan.html")
        browser.until("document.querySelector('h1')?.innerText.startsWith('Plan')")
        assert browser.until("document.querySelectorAll('article table').length") >= 2
        browser.open(f"{address}/recipes.html")
        browser.open(browser.until("document.querySelector('article a[href*=\"files/configs\"]')?.href"))
        browser.until("document.querySelector('h1')?.innerText.startsWith('configs/')")
        browser.open(f"{address}/index.html?q=rollback")
        found = browser.until("[...document.querySelectorAll('.md-search-result__link')].map(a => a.href).join(' ')")
        assert "faults.html" in found
    finally:
        browser.close()
    assert browser.console == []
