"""``python -m benchmarks``: which there are, what is kept of each, and what a failure costs."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import __main__ as runner
from benchmarks import plan
from benchmarks.loaders.photos import KINDS, described, made
from benchmarks.page import SECTIONS, page

ROOT = Path(__file__).resolve().parents[2]
ROW = {"seconds": 1.5, "kept_mib_per_image": 1234.5, "analytic_mib_per_image": 1234.0, "recomputed_share": 0.0}
MAKES_DATA = {"figure_ground"}  # measures nothing: it makes the images and masks that docs/dense.md trains on
MEMORY = {"policies": {"none": ROW}}


def test_every_benchmark_is_in_the_table_and_on_the_page() -> None:
    programs = {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py") if "def main(" in path.read_text()}
    assert programs - MAKES_DATA <= set(runner.BENCHMARKS) == set(SECTIONS)
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        named = set(re.findall(r"python (?:-m )?benchmarks[./](\w+)", document.read_text()))
        assert named - MAKES_DATA <= set(runner.BENCHMARKS), document


def test_the_page_is_that_of_the_results() -> None:
    results = json.loads(runner.RESULTS.read_text())
    assert runner.PAGE.read_text() == page({name: results[name] for name in runner.BENCHMARKS if name in results})


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page and its results in a folder of the test; ``commands`` are the programs of the benchmarks."""
    monkeypatch.setattr(runner, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results.json")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], **more: Any) -> int:
    """Runs Python programs instead of the benchmarks."""
    monkeypatch.setattr(runner, "command_of", lambda name, benchmark, options: ["python", "-c", programs[name]])
    return runner.run_all(argparse.Namespace(only=list(programs), quick=False, photos=None, **more))


def test_a_failure_is_named_and_costs_no_other(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    good = f"print('some line'); print({json.dumps(json.dumps(MEMORY))})"
    assert run(monkeypatch, {"memory": good}) == 0
    before = json.loads((kept / "results.json").read_text())["memory"]
    assert before["result"] == MEMORY and before["versions"]["torch"] and "GiB" in before["machine"]
    bad = {"engine": "import sys; print('half'); sys.exit(3)", "memory": "raise SystemExit('no memory')"}
    assert run(monkeypatch, {**bad, "transfer": "print('tables')"}) == 1
    assert "engine, memory failed" in capfd.readouterr().err
    after = json.loads((kept / "results.json").read_text())
    assert after["memory"] == before and set(after) == {"memory", "transfer"}, "what failed keeps what it had"
    text = (kept / "benchmarks.md").read_text()
    assert "| none | 1,234.5 | 1,234.0 | 1.50 | 0% |" in text and "## transfer" in text and "## engine" not in text


def test_what_was_skipped_has_failed(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, {"dedup": """print('{"skipped": "no images"}')"""}) == 1
    assert not (kept / "benchmarks.md").exists()


def test_a_quick_result_takes_no_place_of_a_full_one(kept: Path) -> None:
    found = {"command": "x", "date": "", "seconds": 1, "load_average": 0, "machine": "", "versions": {}}
    for quick, rows, expected in ((True, 1, 1), (False, 2, 2), (True, 3, 2), (False, 4, 4)):
        runner.keep("transfer", {**found, "result": {"rows": rows}}, quick=quick)
        assert json.loads((kept / "results.json").read_text())["transfer"]["result"]["rows"] == expected
        assert ("only that it runs" in (kept / "benchmarks.md").read_text()) == (expected == 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "nope"], "no such benchmark; there are engine"), (["--photos", "/nowhere"], "no such folder")],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert runner.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_photos_go_to_those_that_take_them() -> None:
    options = argparse.Namespace(quick=True, photos=Path("p"))
    commands = {name: runner.command_of(name, entry, options) for name, entry in runner.BENCHMARKS.items()}
    assert commands["loader"][-2:] == ["--photos", "p"] and commands["dedup"][-2:] == ["--images", "p"]
    assert "p" not in commands["engine"]


def test_made_photos_have_the_statistics_of_imagenets() -> None:
    """ILSVRC-2012's training photos have 107 KiB on average, most of them 500×375 pixels and 4:2:0."""
    photos = list(made(KINDS["imagenet"], 20))
    assert photos == list(made(KINDS["imagenet"], 20)), "the same ones in every run"
    assert 95 < sum(map(len, photos)) / len(photos) / 1024 < 120
    text = described(photos)
    assert text.startswith("20 photos, 500×375 pixels (median), ") and text.endswith("90% 4:2:0, 10% 4:4:4")


def test_the_plan_agrees_with_published_trainings_and_its_page_says_so() -> None:
    published = yaml.safe_load(plan.RUNS.read_text())
    found = {name: [compare(row) for row in published[name]] for name, compare in plan.COMPARISONS.items()}
    for row, ours in zip(published["flops"], found["flops"], strict=True):
        assert ours["plan"] == pytest.approx(row["exaflops"], rel=0.005 if row["exaflops"] > 60 else 0.05), row["run"]
    nemo = next(row for row in found["time"] if row["source"] == "nemo")
    # Scaling ViT (2106.04560), Table 2: 533.1 GFLOPs for a forward pass of g/14 at 224 pixels.
    expected = 693 * 3 * 533.1e9 / (8 * 312e12)
    assert float(nemo["implied MFU"].removesuffix(" %")) / 100 == pytest.approx(expected, abs=0.01)
    assert all(row["fits"] == "yes" for row in found["memory"])
    page = (ROOT / "docs" / "plan.md").read_text()
    for name, rows in found.items():
        assert plan.table(rows, published["sources"]) in page, f"python -m benchmarks.plan --page docs/plan.md: {name}"
