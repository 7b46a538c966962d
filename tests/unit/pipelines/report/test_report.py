"""``python -m pipelines report``: the file's contents, comparisons, and damaged folders."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.pages.charts import Chart, Curve
from pipelines.report import cli as report
from pipelines.report import series
from pipelines.report.events import outcomes
from pipelines.runs.cost import device_hours
from pipelines.weights.transfer import published_for
from pretrain.engine.run_folder import COMPLETE, Verdict
from pretrain.errors import ConfigError, UserError
from tests.unit.pipelines.run_folders import write_run

DONE = Verdict(COMPLETE, "all steps done", 100)
VOID = frozenset({"meta", "link", "img", "br", "input"})


class Checker(HTMLParser):
    """Every element is closed in its order, and nothing is fetched from anywhere."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value and value[:5] != "data:"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def written(tmp_path: Path, *arguments: Path | str) -> str:
    out = tmp_path / "report.html"
    assert report.main([*map(str, arguments), "--out", str(out)]) == 0
    text = out.read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.open and not checker.fetched
    return text


def charts_of(text: str) -> dict[str, dict[str, Any]]:
    """Title → what the script of a chart reads."""
    found = re.findall(
        r'aria-label="([^"]*) over the steps"></div>\n<script type="application/json">(.*?)</script>', text, re.S
    )
    return {html.unescape(title): json.loads(data) for title, data in found}


CHANGE = {"settings": [{"key": "optim.lr", "old": 0.001, "new": 0.0005}], "lr": [0.001, 0.0005]}
ROLLBACK = {"back_to": 50, "checkpoint": "checkpoints/step-00000050", "skipped_window": [3200, 5120]}


def test_one_run(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "runs" / "first",
        "optim.lr=5e-4",
        resumed_at=40,
        verdict=DONE,
        happened=[("change", 40, CHANGE), ("rollback", 80, ROLLBACK)],
    )
    text = written(tmp_path, run, "--price", "2")
    charts = charts_of(text)
    for metric in ("loss", "learning rate", "norm of the gradient", "throughput", "waiting for data", "val/top1"):
        assert metric in charts
    for part in (
        "resumed from checkpoints/step-00000040, written by 2 ranks",
        "updates skipped",
        "optim.lr: 0.001 → 0.0005; learning rate 0.001 → 0.0005",
        "rolled back to step 50; samples 3200 to 5120",
        "complete",
    ):
        assert part in text
    assert text.count('class="chart"') == len(charts) > 5
    marks = re.search(r'<script type="application/json" id="marks">(.*?)</script>', text)
    assert marks is not None and {"rollback", "change"} <= {mark["kind"] for mark in json.loads(marks[1])}
    assert "bad samples" not in charts, "nothing happened, so there is nothing to draw"
    assert "<code>optim.lr</code>" in text and "command line" in text
    assert "&lt;cpu &amp; co&gt;" in text and "<cpu" not in text
    assert "prefers-color-scheme: dark" in text


def test_every_start_is_listed_with_its_command_and_machine(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", resumed_at=40, verdict=DONE)
    with open(run / "history.jsonl", "a") as file:
        file.write('{"kind": "launch", "step": 100, "ti')  # cut short by a kill
    text = written(tmp_path, run)
    commands = text.split("<h2>Commands</h2>")[1].split("</table>")[0]
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.split("<tr[^>]*>", commands)[2:]]
    assert len(rows) == 2
    assert "from the beginning" in rows[0] and "2, deepspeed" in rows[0]
    assert "resume of step-00000040" in rows[1] and "4, deepspeed" in rows[1]
    assert all("pretrain/run.py --config configs/pretrain/demo_digits.yaml" in row for row in rows)
    machines = text.split("<h2>Environment</h2>")[1].split("<h2>")[0]
    assert "run, start 2: what was different" in machines and machines.count("world_size") == 2
    assert machines.count("packages.torch") == 1, "what stayed is not said again"


def test_what_came_of_a_start_is_told_by_the_order_of_the_lines() -> None:
    resumed = {"kind": "resume", "time": 5.0, "checkpoint": "checkpoints/step-00000040"}
    change = {"kind": "change", "time": 1.0, "settings": [{"key": "optim.lr"}, {"key": "seed"}]}
    start, launch = {"kind": "start", "time": 5.0}, {"kind": "launch", "time": 5.0}
    stepped = {"kind": "first_step", "time": 6.0, "began": {"process": 4.0}}
    events = [launch, start, stepped, launch, launch, resumed, change]  # one millisecond, and a clock that is behind
    told = ["from the beginning", "did not come to training", "resume of step-00000040; change optim.lr, seed"]
    assert outcomes(events, 3) == told
    assert outcomes([start], 1) == told[:1], "a run that has no record of its launches"
    assert outcomes([start], 0) == []


def test_device_hours_count_the_ranks_of_each_start() -> None:
    lines = [{"step": step, "time": 100.0 * step, "step_s": 3600.0} for step in (1, 2, 3, 4)]
    launches = [{"time": 0.0, "world_size": 2}, {"time": 250.0, "world_size": 8}]
    assert device_hours(lines, launches) == 2 + 2 + 8 + 8
    assert device_hours(lines, []) is None


def test_a_run_without_a_record_of_its_starts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old", resumed_at=40, verdict=DONE)
    (run / "history.jsonl").unlink()
    text = written(tmp_path, run, "--price", "2")
    assert "resumed at step 40" in text and "only the last start is known" in text
    assert "0.0278 on 2 ranks" in text and "0.06 at 2 per device-hour" in text  # 100 steps × 0.5 s × 2 ranks


def test_the_curve_has_the_numbers(tmp_path: Path) -> None:
    curve = charts_of(written(tmp_path, write_run(tmp_path / "run", verdict=DONE)))["loss"]["curves"][0]
    assert curve["name"] == "run" and curve["steps"] == list(range(1, 101))
    assert curve["values"][39] == pytest.approx(2 / 2.718281828, rel=1e-5)


def test_a_comparison(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "a", verdict=DONE)
    write_run(runs / "b", "optim.lr=1e-4", "seed=7", verdict=DONE)
    text = written(tmp_path, runs)  # a folder of runs
    table = text.split("Settings that differ")[1].split("</table>")[0]
    assert "optim.lr" in table and "seed" in table and "global_batch_size" not in table
    charts = charts_of(text)
    assert len(charts) > 5
    for chart in charts.values():
        assert [curve["name"] for curve in chart["curves"]] == ["a", "b"]
    assert 'id="filter"' in text and text.count('<tr data-run="a">') == text.count('<tr data-run="b">') >= 2


def test_many_long_runs_fit_on_a_page(tmp_path: Path) -> None:
    """A spike is kept, however few points a curve has left."""
    for number in range(40):
        run = write_run(tmp_path / f"runs/r{number:02d}", steps=(), verdict=DONE)
        lines = [
            {"kind": "train", "step": step, "loss": 1 + (step == 777), **dict.fromkeys(OTHER_METRICS, step / 7)}
            for step in range(1, 2001)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = written(tmp_path, tmp_path / "runs")
    assert len(text.encode()) < 3_000_000
    charts = charts_of(text)
    assert len(charts) == 1 + len(OTHER_METRICS)
    assert all(len(curve["steps"]) <= 100 and 777 in curve["steps"] for curve in charts["loss"]["curves"])


OTHER_METRICS = ("lr", "grad_norm", "weight_norm", "images_per_s", "mfu", "data_wait", "memory_gib", "step_s")


def test_transfers_are_summed_up_beside_the_papers(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"t{seed}", f"seed={seed}", "init.from=runs/vit_l16_i21k_90ep", verdict=DONE)
        for seed in (0, 1, 2)
    ]
    section = written(tmp_path, *runs).split("<h2>Transfer</h2>")[1]
    assert "t0, t1, t2" in section and "50.00 ± 0.00" in section and "runs/vit_l16_i21k_90ep" in section


@pytest.mark.parametrize(
    ("settings", "source", "expected"),
    [
        ({"model.variant": "H/14", "data.shards": "data/cifar10/train"}, "runs/h14_jft300m", "99.50 ± 0.06 (Table 2)"),
        ({"model.variant": "L/16", "data.shards": "data/cifar100/train"}, "runs/l16_i21k", "93.25 ± 0.05 (Table 2)"),
        (
            {"model.variant": "B/16", "data.shards": "data/imagenet/train", "model.img_size": 384},
            "runs/vit_b16_i21k_90ep",
            "83.97 (Table 5)",
        ),
        ({"model.variant": "B/16", "data.shards": "data/cifar10/train"}, "runs/vit_b16_i21k_90ep", None),
        ({"model.variant": "H/14", "data.shards": "data/digits"}, "runs/vit_h14_jft300m", None),
        ({"model.variant": "H/14", "data.shards": "data/cifar10/train"}, "runs/mine", None),
    ],
)  # fmt: skip
def test_published(settings: dict[str, object], source: str, expected: str | None) -> None:
    assert published_for(settings, source) == expected


def test_pictures_are_put_into_the_file(tmp_path: Path) -> None:
    pictures = tmp_path / "figures"
    pictures.mkdir()
    Image.new("RGB", (4, 4), "red").save(pictures / "attention_distance.png")
    text = written(tmp_path, write_run(tmp_path / "run", verdict=DONE), "--figures", pictures)
    assert 'alt="attention distance" src="data:image/webp;base64,' in text


def test_half_written_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "killed", steps=range(1, 5))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 5, "lo')  # cut short by a kill
    (run / "config.resolved.yaml").write_text("name: [")
    text = written(tmp_path, run)
    assert "loss" in charts_of(text) and "not valid YAML" in text
    run = write_run(tmp_path / "young", steps=())
    assert "There is no line of training yet" in written(tmp_path, run)
    assert "no line of training yet" in capsys.readouterr().err


@pytest.mark.parametrize("content", [{}, {"metrics.jsonl": ""}, {"metrics.jsonl": "{nonsense", "exit.json": "["}])
def test_nothing_to_report(tmp_path: Path, content: dict[str, str]) -> None:
    run = tmp_path / "empty"
    run.mkdir()
    for name, text in content.items():
        (run / name).write_text(text)
    with pytest.raises(ConfigError, match="empty"):
        report.main([str(run), "--out", str(tmp_path / "report.html")])
    assert not (tmp_path / "report.html").exists()


def test_refusals(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "nowhere does not exist"),
        ([str(run), "--price", "0"], "--price 0"),
        ([str(run), "--figures", str(tmp_path)], "no pictures there"),
        ([str(run), "--results", str(tmp_path)], "not a folder of results"),
        ([str(run), "--duplicates", str(tmp_path)], "not a result of dedup"),
        ([str(run), "--export", str(tmp_path)], "not an exported folder"),
    ):
        with pytest.raises(UserError, match=message):
            report.main([*arguments, "--out", str(tmp_path / "report.html")])


def test_long_curves_keep_their_spikes() -> None:
    points = [(step, 0.0) for step in range(100_000)]
    points[54_321] = (54_321, 9.0)
    kept = series.thinned(points)
    assert len(kept) <= series.MAX_POINTS and (54_321, 9.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]


@pytest.mark.parametrize(
    ("values", "unit", "notes"),
    [([0.0, 1.0], "", ""), ([1.0, 100.0], "GiB", "GiB"), ([1e-3, 1.0], "", "logarithmic"), ([-1.0, 1e6], "s", "s")],
)
def test_a_wide_range_gets_a_logarithmic_axis(values: list[float], unit: str, notes: str) -> None:
    assert Chart("x", {"run": Curve([1, 2], values), "other": Curve([], [])}, unit=unit).notes == notes
