"""``python -m pipelines report``: the file's contents, comparisons, damaged folders, and a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from pipelines.report import cli as report
from pipelines.report import series
from pipelines.report.chart import Axis, Chart
from pipelines.report.events import outcomes
from pipelines.weights.published import published_for
from pretrain.engine.run_folder import COMPLETE, Verdict
from pretrain.errors import ConfigError
from tests.unit.pipelines.run_folders import write_run

DONE = Verdict(COMPLETE, "all steps done", 100)
VOID = frozenset({"meta", "link", "img", "line", "circle", "polyline", "br"})


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
    for metric in ("loss", "learning rate", "norm of the gradient", "throughput", "waiting for data", "val/top1"):
        assert f'aria-label="{metric} over the steps"' in text
    for part in (
        "resumed from checkpoints/step-00000040, written by 2 ranks",
        "updates skipped",
        "optim.lr: 0.001 → 0.0005; learning rate 0.001 → 0.0005",
        "rolled back to step 50; samples 3200 to 5120",
        "complete",
    ):
        assert part in text
    assert text.count('class="mark rollback"') == text.count('class="mark change"') == text.count('class="chart"') > 5
    assert 'aria-label="bad samples' not in text, "nothing happened, so there is nothing to draw"
    assert "<code>optim.lr</code>" in text and "command line" in text
    assert "&lt;cpu &amp; co&gt;" in text and "<cpu" not in text
    assert "prefers-color-scheme: dark" in text


def test_every_start_is_listed_with_its_command_and_machine(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", resumed_at=40, verdict=DONE)
    with open(run / "history.jsonl", "a") as file:
        file.write('{"kind": "launch", "step": 100, "ti')  # cut short by a kill
    text = written(tmp_path, run)
    commands = text.split("<h2>Commands</h2>")[1].split("</table>")[0]
    rows = [re.sub(r"<[^>]+>", " ", row) for row in commands.split("<tr>")[2:]]
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
    events = [launch, start, launch, launch, resumed, change]  # one millisecond, and a clock that is behind
    told = ["from the beginning", "did not come to training", "resume of step-00000040; change optim.lr, seed"]
    assert outcomes(events, 3) == told
    assert outcomes([start], 1) == told[:1], "a run that has no record of its launches"
    assert outcomes([start], 0) == []


def test_device_hours_count_the_ranks_of_each_start() -> None:
    lines = [{"step": step, "time": 100.0 * step, "step_s": 3600.0} for step in (1, 2, 3, 4)]
    launches = [{"time": 0.0, "world_size": 2}, {"time": 250.0, "world_size": 8}]
    assert series.device_hours(lines, launches) == 2 + 2 + 8 + 8
    assert series.device_hours(lines, []) is None


def test_a_run_without_a_record_of_its_starts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old", resumed_at=40, verdict=DONE)
    (run / "history.jsonl").unlink()
    text = written(tmp_path, run, "--price", "2")
    assert "resumed at step 40" in text and "only the last start is known" in text
    assert "0.0278 on 2 ranks" in text and "0.06 at 2 per device-hour" in text  # 100 steps × 0.5 s × 2 ranks


def test_the_curve_has_the_numbers(tmp_path: Path) -> None:
    text = written(tmp_path, write_run(tmp_path / "run", verdict=DONE))
    found = re.search(r'data-chart="([^"]*)"><figcaption[^>]*>loss', text)
    assert found is not None
    data = json.loads(found[1].replace("&quot;", '"'))
    assert data["curves"][0]["steps"] == list(range(1, 101))
    assert data["curves"][0]["values"][39] == pytest.approx(2 / 2.718281828, rel=1e-5)


def test_a_comparison(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "a", verdict=DONE)
    write_run(runs / "b", "optim.lr=1e-4", "seed=7", verdict=DONE)
    text = written(tmp_path, runs)  # a folder of runs
    table = text.split("Settings that differ")[1].split("</table>")[0]
    assert "optim.lr" in table and "seed" in table and "global_batch_size" not in table
    assert text.count('class="c0" points') == text.count('class="c1" points') > 5


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
    assert 'alt="attention distance" src="data:image/png;base64,' in text


def test_half_written_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "killed", steps=range(1, 5))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 5, "lo')  # cut short by a kill
    (run / "config.resolved.yaml").write_text("name: [")
    text = written(tmp_path, run)
    assert 'aria-label="loss over the steps"' in text and "not valid YAML" in text
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
    ):
        with pytest.raises(ConfigError, match=message):
            report.main([*arguments, "--out", str(tmp_path / "report.html")])


def test_long_curves_keep_their_spikes() -> None:
    points = [(step, 0.0) for step in range(100_000)]
    points[54_321] = (54_321, 9.0)
    kept = series.thinned(points)
    assert len(kept) <= series.MAX_POINTS and (54_321, 9.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.0, 3.0), (0.0, 0.0), (-5.0, 2.0), (1e-9, 1e9), (99.5, 100.5)])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_axes(low: float, high: float, logarithmic: bool) -> None:
    if logarithmic and low <= 0:
        return
    axis = Axis.around([low, high], 200.0, 10.0, logarithmic=logarithmic)
    assert 10 <= axis(high) <= axis(low) <= 200
    assert 1 <= len(axis.ticks()) <= 20 and all(9.9 <= axis(tick) <= 200.1 for tick in axis.ticks())


def test_a_curve_of_one_point_is_a_dot() -> None:
    text = Chart("x", {"run": series.Curve([3], [1.0])}).to_html()
    assert "<circle" in text and "<polyline" not in text


@pytest.mark.slow
def test_in_a_real_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser: apt-get install chromium")
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, resumed_at=30, verdict=DONE)
    written(tmp_path, tmp_path / "runs")
    page = tmp_path / "report.html"
    probe = """<script>
      const seen = [...document.querySelectorAll('.chart')].map(figure => {
        const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
        svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width / 2, clientY: box.top + 20}));
        const lines = [...figure.querySelectorAll('polyline, circle')].map(line => line.getBBox().width + 1);
        return {lines: lines.length, drawn: lines.filter(width => width > 0).length, box: box.width * box.height,
          said: figure.querySelector('output').textContent};
      });
      const colour = getComputedStyle(document.body).backgroundColor;
      document.body.innerHTML = '<pre id="seen">' + JSON.stringify({seen, colour}) + '</pre>';
    </script>"""
    page.write_text(page.read_text().replace("</body>", probe + "</body>"))
    found = {}
    for scheme in ("light", "dark"):
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
            f"--user-data-dir={tmp_path / scheme}", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            f"file://{page}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        assert "CONSOLE" not in done.stderr, done.stderr
        match = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
        assert match is not None, done.stdout[-2000:]
        found[scheme] = json.loads(match[1])
    charts = found["light"]["seen"]
    assert len(charts) >= 8
    for entry in charts:
        assert entry["lines"] == entry["drawn"] >= 2 and entry["box"] > 1000
        assert entry["said"].startswith("step ") and "a " in entry["said"] and "b " in entry["said"]
    assert found["light"]["colour"] != found["dark"]["colour"]
