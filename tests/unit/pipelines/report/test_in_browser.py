"""A report in a real browser: charts, hover, zoom, legend, filter, both colour schemes, narrow and wide windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.unit.pipelines.report.test_report import CHANGE, DONE, written
from tests.unit.pipelines.run_folders import write_run

pytestmark = pytest.mark.slow
PLOT = "document.querySelectorAll('figure.chart')[0].uplot"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser with the page of two runs."""
    for name in ("first", "second"):
        write_run(tmp_path / "runs" / name, resumed_at=30, verdict=DONE, happened=[("change", 60, CHANGE)])
    written(tmp_path, tmp_path / "runs")
    (tmp_path / "profile").mkdir()
    browser = Browser(tmp_path / "profile")
    try:
        browser.resize(1400, 900)
        browser.prefer("light")
        browser.open(f"file://{tmp_path}/report.html")
        browser.until("document.querySelectorAll('figure.chart canvas').length > 8")
        yield browser
        assert browser.console == []
    finally:
        browser.close()


def place(browser: Browser, element: str, across: float = 0.5) -> tuple[float, float]:
    """Scrolls to an element, and gives a point in its middle row."""
    x, y = browser.ask(
        f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect(); "
        f"return [b.left + {across} * b.width, b.top + b.height / 2]; }})()"
    )
    return x, y


def test_the_pointer_reads_the_values_of_both_runs(browser: Browser) -> None:
    browser.mouse("mouseMoved", *place(browser, f"{PLOT}.over", 0.5))
    values = browser.until(
        "(() => { const v = [...document.querySelectorAll('figure.chart')[0].querySelectorAll('.u-legend .u-value')]"
        ".map(e => e.textContent); return v.every(t => /\\d/.test(t)) && v; })()"
    )
    step = int(values[0])
    assert 45 <= step <= 55 and float(values[1]) == float(values[2]) == pytest.approx(
        2 * 2.718281828 ** (-step / 40), 1e-3
    )
    other = browser.ask("document.querySelectorAll('figure.chart')[1].querySelector('.u-legend .u-value').textContent")
    assert other == values[0], "all charts follow the pointer"
    browser.mouse("mouseMoved", *place(browser, f"{PLOT}.over", 0.6))
    said = browser.until("document.querySelectorAll('figure.chart output')[0].textContent")
    assert sorted(said.split("; ")) == [  # both happened at step 60, in an order that the clock decides
        "first, step 60: 1 update skipped",
        "first, step 60: optim.lr: 0.001 → 0.0005",
        "learning rate 0.001 → 0.0005",
    ]


def test_a_drag_zooms_in_and_a_double_click_out(browser: Browser) -> None:
    (left, y), (right, _) = place(browser, f"{PLOT}.over", 0.2), place(browser, f"{PLOT}.over", 0.4)
    browser.mouse("mouseMoved", left, y)
    browser.mouse("mousePressed", left, y, 1)
    browser.mouse("mouseMoved", right, y, 1)
    browser.mouse("mouseReleased", right, y, 1)
    low, high = browser.until(f"{PLOT}.scales.x.max < 50 && [{PLOT}.scales.x.min, {PLOT}.scales.x.max]")
    assert low == pytest.approx(20, abs=3) and high == pytest.approx(40, abs=3)
    browser.click(right, y, 2)
    assert browser.until(f"{PLOT}.scales.x.max >= 100")


def test_a_legend_hides_a_curve_in_every_chart(browser: Browser) -> None:
    shown = "[...document.querySelectorAll('figure.chart')].map(f => f.uplot.series[2].show)"
    assert set(browser.ask(shown)) == {True}
    name = f"{PLOT}.root.querySelectorAll('.u-legend .u-series')[2].querySelector('th')"
    browser.click(*place(browser, name, 0.3))
    browser.until(f"!{PLOT}.series[2].show")
    assert set(browser.ask(shown)) == {False}
    browser.ask(f"{name}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true}}))")
    assert set(browser.ask(shown)) == {True}


def test_the_filter_hides_rows_and_curves(browser: Browser) -> None:
    browser.ask(
        "(() => { const f = document.querySelector('#filter'); f.value = 'FIR'; "
        "f.dispatchEvent(new Event('input')); })()"
    )
    rows = "[...document.querySelectorAll('[data-run]')].map(e => [e.dataset.run, e.offsetParent !== null])"
    found = browser.ask(rows)
    assert {name for name, visible in found if visible} == {"first"} and ["second", False] in found
    shown = browser.ask("[...document.querySelectorAll('figure.chart')].map(f => f.uplot.series.map(s => s.show))")
    assert all(one == [True, True, False] for one in shown)


def test_light_and_dark(browser: Browser) -> None:
    """The page and its charts change when the reader's scheme does."""
    back = "getComputedStyle(document.body).backgroundColor"
    browser.ask("window.chart = () => document.querySelector('figure.chart canvas').toDataURL()")
    light = browser.ask(back)
    browser.until("chart().length > 2000 && (window.before = chart())")
    browser.prefer("dark")
    browser.until(f"{back} !== '{light}'")
    browser.until("chart().length > 2000 && chart() !== before")
    assert browser.ask("document.querySelectorAll('figure.chart').length") == browser.ask(
        "document.querySelectorAll('figure.chart canvas').length"
    )


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_its_window(browser: Browser, width: int) -> None:
    browser.resize(width, 800)
    browser.until(f"document.documentElement.clientWidth <= {width} && {PLOT}.width < {width}")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    wide = browser.ask("Math.max(...[...document.querySelectorAll('figure.chart')].map(f => f.scrollWidth))")
    assert wide <= width
