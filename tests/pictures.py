"""``python -m tests.pictures``: makes docs/pictures, screenshots of the pages of the demo's runs.

Needs the demo's runs (``make demo``) and a Chromium.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import Browser

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs/pictures"
MOST_BYTES = 300_000
TRAIN, VAL = "data/demo/upstream/train", "data/demo/upstream/val"


def main(arguments: list[str]) -> int:
    """Makes the pages, then a picture of each view."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="folder of the demo (runs/demo)")
    runs: Path = parser.parse_args(arguments).runs
    if not (runs / "demo_digits/exit.json").is_file():
        parser.error(f"--runs {runs}: no finished demo there; make it with make demo")
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, several = _pages(runs, folder)
        (folder / "profile").mkdir()
        browser = Browser(folder / "profile")
        try:
            for scheme in ("light", "dark"):
                _picture(browser, one, f"report-{scheme}", scheme, (1200, 820))
            _picture(browser, one, "report-curves", "light", (1200, 820), heading="Training")
            _picture(browser, several, "report-compared", "light", (1200, 820))
            _picture(browser, one, "report-phone", "light", (400, 820))
        finally:
            browser.close()
        assert browser.console == [], browser.console
    return 0


def _pages(runs: Path, folder: Path) -> tuple[Path, Path]:
    """The page of the demo's pretraining with everything that can be on it, and that of all its runs."""
    run = runs / "demo_digits"
    _stage("evaluate", VAL, "--from", run, "--out", folder / "results")
    _stage("dedup", TRAIN, "--against", VAL, "--out", folder / "duplicates")
    options = ("--results", folder / "results")
    _stage("export", run, "--format", "timm", "--out", folder / "demo_digits_timm", *options)
    more = ("--duplicates", folder / "duplicates", "--export", folder / "demo_digits_timm", "--price", "2.5")
    _stage("report", run, *options, *more, "--out", folder / "one.html")
    _stage("report", runs, "--out", folder / "several.html")
    return folder / "one.html", folder / "several.html"


def _stage(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "pipelines", *map(str, words)], cwd=ROOT, check=True)


# many: what differs between the pictures
def _picture(
    browser: Browser, page: Path, name: str, scheme: str, size: tuple[int, int], heading: str | None = None
) -> None:
    browser.prefer(scheme)
    browser.resize(*size)
    browser.open(f"file://{page}")
    browser.until(f"location.pathname === '{page}' && document.querySelectorAll('figure.chart canvas').length > 4")
    if heading is not None:
        browser.ask(f"[...document.querySelectorAll('h2')].find(e => e.textContent === '{heading}').scrollIntoView()")
    browser.until("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true)))) && true")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(browser.picture())).convert("RGB").save(buffer, "PNG", optimize=True)
    content = buffer.getvalue()
    assert len(content) < MOST_BYTES, f"{name}: {len(content):,} bytes"
    (OUT / f"{name}.png").write_bytes(content)
    print(f"docs/pictures/{name}.png: {len(content) / 1e3:,.0f} kB")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
