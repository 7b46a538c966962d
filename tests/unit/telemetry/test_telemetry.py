"""The contents of a line, from times and counts that are known; a sink that fails; the views."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.registry import training_flops
from pretrain.telemetry import console, telemetry
from pretrain.telemetry.console import Reporter
from pretrain.telemetry.metrics import EVENTS, TRAIN, find_metric, markdown
from pretrain.telemetry.telemetry import OwnTimes, Telemetry, Work
from tests.command import ROOT

VALUES = {"loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "skipped_updates": 0, "bad_samples": 0, "batch_digest": 1}


class Lines:
    """A sink that remembers; it can be told to fail."""

    def __init__(self, fails: bool = False) -> None:
        self.lines: list[tuple[str, int, dict[str, Any]]] = []
        self.fails, self.closed = fails, False

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self.fails:
            raise OSError(28, "No space left on device")
        self.lines.append((kind, step, values))

    def close(self) -> None:
        self.closed = True


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the monotonic clock, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    return now


def make(*sinks: Lines, file: io.StringIO | None = None, **work: float) -> Telemetry:
    reporter = Reporter(True, file=file or io.StringIO())
    reporter.start("run", 100, 0)
    given: Any = {"batch_size": 64, "world": 4, "num_samples": 640, **work}
    return Telemetry(sinks, reporter, log_every=2, work=Work(**given))


def test_rates_shares_and_the_slowest_rank(clock: list[float]) -> None:
    sink = Lines()
    watched = make(sink, flops_per_image=1e9, peak_flops=1e12)
    for step, waited in ((1, [0.0, 0.1, 0.5, 0.0]), (2, [0.3, 0.0, 0.0, 0.0])):
        clock[0] += 1.0
        watched.step(step, step * 64, dict(VALUES), OwnTimes(waited, [0.2, 0.2, 0.6, 0.2]))
    (kind, step, line), *more = sink.lines
    assert (kind, step, more) == ("train", 2, [])
    assert line["images_per_s"] == 64 and line["images_per_s_per_device"] == 16 and line["step_s"] == 1.0
    assert line["mfu"] == pytest.approx(64 * 1e9 / 4e12)
    assert line["data_wait"] == pytest.approx((0.5 + 0.3) / 2)
    assert line["slowest_rank"] == 2  # 1.7 s of its own; the others 0.7, 0.5 and 0.4, median 0.6
    assert line["slowest_rank_ratio"] == pytest.approx(1.7 / 0.6)
    assert line["epoch"] == pytest.approx(0.2) and line["samples"] == 128
    assert set(line) <= set(TRAIN)


def test_time_of_an_evaluation_is_no_time_of_training(clock: list[float]) -> None:
    sink = Lines()
    watched = make(sink)
    clock[0] += 50.0
    watched.event("eval", 0, {"val/top1": 0.5, "seconds": 50.0})
    for step in (1, 2):
        clock[0] += 1.0
        watched.step(step, step * 64, dict(VALUES), OwnTimes([0.0] * 4, [0.1] * 4))
    line = sink.lines[-1][2]
    assert line["step_s"] == 1.0 and line["slowest_rank_ratio"] == 1.0
    assert "mfu" not in line, "no peak, no MFU"


def test_mfu_is_of_the_model_without_recomputation() -> None:
    model = ModelConfig(variant="H/14")
    flops = training_flops(model, 1000, 1)
    assert flops == pytest.approx(6 * 167.4e9, rel=0.005)  # DeiT III's 167.4 GMAC, three passes, two per multiply-add
    work = Work(4096, 8, 1_281_167, flops_per_image=flops, peak_flops=312e12)
    assert work.mfu(8 * 124) == pytest.approx(0.40, abs=0.002)  # 124 images/s per A100 at 40 %


def test_mfu_counts_the_images_that_were_trained(clock: list[float]) -> None:
    """One step of small images and one of large ones, each of 64 images in a second on 4 devices."""
    sink = Lines()
    by_tiling = {
        frozenset({"image_size": side, "patch_size": 8}.items()): flops for side, flops in ((96, 1e9), (224, 5e9))
    }
    watched = make(sink, peak_flops=1e12, flops_per_image=7e9, flops_by_tiling=by_tiling)  # type: ignore[arg-type]
    for step, side in ((1, 96), (2, 224)):
        clock[0] += 1.0
        watched.step(step, step * 64, {**VALUES, "image_size": side, "patch_size": 8}, OwnTimes([0.0] * 4, [0.1] * 4))
    line = sink.lines[-1][2]
    assert line["mfu"] == pytest.approx(64 * (1e9 + 5e9) / 2 / 4e12) and line["image_size"] == 224
    assert line["flops"] == 64 * 5e9, "of the step, not the mean"
    with pytest.raises(KeyError):
        watched.step(3, 192, {**VALUES, "image_size": 100, "patch_size": 8}, OwnTimes([0.0] * 4, [0.1] * 4))


def test_rates_count_the_images_of_each_step(clock: list[float]) -> None:
    """A step of 64 images and one of 256 smaller ones."""
    sink = Lines()
    by_tiling = {frozenset({("image_size", side)}): flops for side, flops in ((96, 1e9), (192, 5e9))}
    watched = make(sink, peak_flops=1e12, flops_per_image=7e9, flops_by_tiling=by_tiling)  # type: ignore[arg-type]
    for step, side, images in ((1, 192, 64), (2, 96, 256)):
        clock[0] += 1.0
        values = {**VALUES, "image_size": side, "batch_size": images}
        watched.step(step, step * 64, values, OwnTimes([0.0] * 4, [0.1] * 4))
    line = sink.lines[-1][2]
    assert line["images_per_s"] == 160 and line["flops"] == 256 * 1e9
    assert line["mfu"] == pytest.approx((64 * 5e9 + 256 * 1e9) / 2 / 4e12)


def test_flops_are_those_of_the_images_of_the_step(clock: list[float]) -> None:
    sink = Lines()
    watched = make(sink, flops_per_image=1e9)
    for step, images in ((1, 64), (2, 32)):
        clock[0] += 1.0
        watched.step(step, step * 64, {**VALUES, "batch_size": images}, OwnTimes([0.0] * 4, [0.1] * 4))
    assert sink.lines[-1][2]["flops"] == 32e9


def test_a_sink_that_fails_ends_no_run_and_is_said_once(clock: list[float]) -> None:
    good, full, shown = Lines(), Lines(fails=True), io.StringIO()
    watched = make(full, good, file=shown)
    for step in range(1, 7):
        clock[0] += 1.0
        watched.step(step, step * 64, dict(VALUES), OwnTimes([0.0] * 4, [0.1] * 4))
    watched.close()
    assert [step for _, step, _ in good.lines] == [2, 4, 6] and good.closed
    assert shown.getvalue().count("No space left on device") == 1


@pytest.mark.parametrize(
    ("name", "known"),
    [("loss", True), ("val/top1", True), ("pets_ema/top5", True), ("val/lossy", False), ("5_top1", False)],
)
def test_names(name: str, known: bool) -> None:
    assert (find_metric(name) is not None) == known


def test_every_metric_says_unit_reduction_and_meaning() -> None:
    assert all(all(metric) for metric in {**TRAIN, **EVENTS}.values())
    assert not TRAIN.keys() & EVENTS.keys()
    assert console._FIGURES.keys() <= TRAIN.keys()


def test_plain_lines_with_what_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    shown = io.StringIO()
    reporter = Reporter(True, tmp_path / "log.txt", file=shown)
    reporter.start("run", 100, 40)
    for step in range(41, 61):
        now[0] += 0.5
        reporter.advance(step, {"loss": 1.5, "images_per_s": 1234.0, "data_wait": 0.25, "mfu": 0.4})
    reporter.close()
    lines = shown.getvalue().splitlines()
    assert lines[0] == "run 50/100  loss 1.5000  images/s 1,234  MFU 40.0%  data wait 25.0%  0:00:25 left"
    assert len(lines) == 2, "one line each five seconds"
    assert "run 60/100" in (tmp_path / "log.txt").read_text()


def test_the_live_view_of_a_terminal() -> None:
    screen = Terminal()
    reporter = Reporter(True, file=screen)
    reporter.start("run", 100, 0)
    reporter.advance(1, {"loss": 1.5, "images_per_s": 1234.0, "memory_gib": 3.25})
    reporter.advance(2, {"loss": 1.25, "images_per_s": 1234.0})
    reporter.say("step 2: saved")
    reporter.stop()
    shown = screen.getvalue()
    assert "2/100" in shown and "1.2500" in shown and " left" in shown and "step 2: saved" in shown
    assert "memory GiB" in shown.split("2/100")[-1], "a figure that is measured now and then stays"


def test_other_ranks_say_nothing() -> None:
    screen = Terminal()
    reporter = Reporter(False, file=screen)
    reporter.start("run", 2, 0)
    reporter.advance(1, {"loss": 1.0})
    reporter.say("anything")
    reporter.stop()
    assert screen.getvalue() == ""


def test_the_docs_show_the_registry() -> None:
    page = (ROOT / "docs/telemetry.md").read_text()
    assert markdown(TRAIN) in page and markdown(EVENTS) in page, (
        "python -m pretrain.telemetry.metrics prints the tables"
    )


def test_a_slow_rank_is_named_once(clock: list[float]) -> None:
    """And again only when it is another one, or after it had recovered."""
    text = io.StringIO()
    watched = make(Lines(), file=text)
    fast, slow = [0.1] * 4, [0.1, 0.1, 0.1, 0.4]
    for step, own in enumerate([fast, fast, slow, slow, slow, slow, fast, fast, slow, slow], start=1):
        clock[0] += max(own)
        watched.step(step, 64 * step, VALUES, OwnTimes([0.0] * 4, own))
    said = [line for line in text.getvalue().splitlines() if "is slow" in line]
    assert [line.split(":")[0] for line in said] == ["step 4", "step 10"]
    assert "rank 3 is slow: 0.400 s of its own" in said[0] and "heartbeats/" in said[0]
