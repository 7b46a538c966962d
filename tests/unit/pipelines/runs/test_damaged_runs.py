"""Every byte of every file of a run folder is damaged: status, watch, report and Slurm tell what is readable."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from pipelines.chain.stages import is_complete
from pipelines.report import series
from pipelines.report.events import incidents
from pipelines.report.page import Extras, page
from pipelines.runs.run_record import RunRecord, describe
from pipelines.slurm import starts
from pipelines.slurm.end import read_outcome
from pipelines.status.cli import render
from pipelines.watch.cli import look, table
from pretrain import records
from pretrain.distributed.heartbeats import Beat
from pretrain.distributed.rank import Rank
from pretrain.engine.run_folder import COMPLETE, ENVIRONMENT_SHAPE, RunFolder, Verdict, read_verdict
from pretrain.telemetry.metrics import read_metrics
from tests.unit.pipelines.run_folders import write_run

FILES = (
    "exit.json",
    "lock.json",
    "metrics.jsonl",
    "history.jsonl",
    "environment.json",
    "starts.jsonl",
    "heartbeats/node-00000.json",
)
HAPPENED = [
    ("change", 10, {"settings": [{"key": "optim.lr", "old": 1, "new": 2}], "lr": [1e-3, 2e-3]}),
    ("rollback", 20, {"back_to": 10, "checkpoint": "c", "skipped_window": [640, 1280]}),
]
VALUES = (b"\x00", b"\xff", b'"', b"9", b"-", b"{", b"]", b"e", b"null", b"1e999", b"[" * 3000, b'"\\ud800"')


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    write_run(path, steps=(10, 20, 50), resumed_at=20, happened=HAPPENED)
    folder = RunFolder(path)
    folder.open(Rank(0, 0, 1, 1, "here", "alone"), ("7", 0))
    lock = (path / "lock.json").read_bytes()
    folder.close(Verdict(COMPLETE, "all steps done", 50), ("7", 0), writes=True)
    (path / "lock.json").write_bytes(lock)
    starts.append(path, starts.Start("7", 0, ("node1",), 2, 2, 0, "log", 1e9))
    starts.append(path, starts.End("7", 0, 50, 0, "complete", "leave", "done", 1e9))
    folder.config.unlink()  # reading it takes most of the time; what it may hold is tried elsewhere
    folder.heartbeats.mkdir()
    beat = Beat(rank=0, host="here", pid=1, step=3, phase="step", phase_s=1.0, count=1)
    (folder.heartbeats / "node-00000.json").write_text(json.dumps({"beats": [asdict(beat)]}))
    return path


def read_all(run: Path) -> RunRecord:
    """As the commands do."""
    record = RunRecord.read(run)
    render(describe(record))
    incidents(record)
    read_outcome(run, "7", 0, 0)
    is_complete(run)
    read_metrics(run / "metrics.jsonl")
    return record


@pytest.mark.parametrize("name", FILES)
def test_every_byte(run: Path, name: str) -> None:
    path = run / name
    content = path.read_bytes()
    draw = random.Random(name)
    verdict = read_verdict(run).value
    every = max(1, len(content) // 150)
    try:
        for index in range(draw.randrange(every), len(content), every):
            for value in (bytes([content[index] ^ 1]), draw.choice(VALUES)):
                path.write_bytes(content[:index] + value + content[index + 1 :])
                record = read_all(run)
                assert record.verdict in (verdict, None), "it has a hash"
                assert record.verdict is not None or any("exit.json is damaged" in each for each in record.damaged)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "1e308", "-1", "9e15"])
def test_a_rate_that_gives_no_time_left(tmp_path: Path, value: str) -> None:
    path = write_run(tmp_path / "run", steps=(10,))
    line = f'{{"kind": "train", "step": 20, "time": 1e9, "loss": {value}, "images_per_s": {value}, "step_s": {value}}}'
    (path / "metrics.jsonl").write_text(line + "\n")
    assert "loss" in render(describe(RunRecord.read(path)))
    table(look([path]))


@pytest.mark.parametrize("name", FILES)
def test_reports_and_tables_of_damaged_files(run: Path, name: str) -> None:
    path = run / name
    content = path.read_bytes()
    draw = random.Random(name)
    try:
        for _ in range(15):
            index = draw.randrange(len(content))
            path.write_bytes(content[:index] + draw.choice(VALUES) + content[index + 1 :])
            environment = records.read(run / "environment.json", ENVIRONMENT_SHAPE).value or {}
            page([series.view(RunRecord.read(run), "run", environment)], Extras(), command=[])
            table(look([run]))
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read(run: Path, name: str) -> None:
    """A folder in its place stands for any error of the disk."""
    path = run / name
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    try:
        record = read_all(run)
        if name in ("exit.json", "lock.json", "metrics.jsonl", "history.jsonl"):
            assert any(f"{Path(name).name} cannot be read" in each for each in record.damaged)
    finally:
        path.rmdir()
        path.write_bytes(content)
