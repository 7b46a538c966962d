"""No file of a run folder makes status, watch or report crash: damage is passed over, and the rest is shown."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain.engine.run_folder import COMPLETE, Verdict
from tests.unit.fuzz.bounded import WEIRD, damaged, outcome, replaced
from tests.unit.pipelines.run_folders import write_run

BEAT = {"rank": 0, "host": "a", "pid": 1, "step": 8, "phase": "step", "phase_s": 1.0, "count": 4}
LEASE = {"host": "a", "pid": 1, "job_id": "local", "restart_count": 0, "heartbeat": 1e9}
START = {"event": "start", "job_id": "7", "ranks": 2, "step": 0, "time": 1e9}
NAMES = (
    *("exit.json", "lock.json", "environment.json", "metrics.jsonl", "history.jsonl", "config.resolved.yaml"),
    *("heartbeats/node-00000.json", "slurm/history.jsonl", "checkpoints/step-00000008/COMPLETE.json"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps with every file that the readers look into."""
    run = write_run(
        tmp_path_factory.mktemp("runs") / "run",
        steps=range(1, 9),
        verdict=Verdict(COMPLETE, "all steps done", 8),
        happened=[("rollback", 6, {"to": 4, "skipped": [256, 384]}), ("change", 4, {"settings": [], "lr": [1, 2]})],
    )
    more = {
        NAMES[1]: LEASE,
        NAMES[6]: BEAT,
        NAMES[7]: START,
        NAMES[8]: {"step": 8, "files": {}, "metrics": {"val/top1": 0.5}},
    }
    for name, content in more.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps(content) + "\n")
    return run


def look(run: Path) -> None:
    for words in (
        ["status", run],
        ["status", run, "--json"],
        ["watch", run, "--once"],
        ["report", run, "--out", run / "r.html"],
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main([str(word) for word in words])


def tried(original: Path, run: Path, name: str, content: bytes) -> None:
    shutil.copytree(original, run, dirs_exist_ok=True)
    (run / name).write_bytes(content)
    outcome(lambda: look(run), (name, content[-300:]))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes(original: Path, tmp_path: Path, name: str) -> None:
    rng = random.Random(f"bytes of {name}")
    data = (original / name).read_bytes()
    for _ in range(8):
        tried(original, tmp_path / "run", name, damaged(data, rng))


@pytest.mark.parametrize("name", [name for name in NAMES if "json" in name])
def test_other_values(original: Path, tmp_path: Path, name: str) -> None:
    rng = random.Random(f"values of {name}")
    lines = (
        [json.loads(line) for line in (original / name).read_text().splitlines()] if name.endswith("jsonl") else None
    )
    for _ in range(14):
        if lines is None:
            content = json.dumps(replaced(json.loads((original / name).read_text()), rng))
        else:
            place = rng.randrange(len(lines))
            changed = [*lines[:place], replaced(lines[place], rng), *lines[place + 1 :]]
            content = "".join(json.dumps(line) + "\n" for line in changed)
        tried(original, tmp_path / "run", name, content.encode())


@pytest.mark.parametrize("name", [name for name in NAMES if "json" in name])
def test_what_is_no_such_file(original: Path, tmp_path: Path, name: str) -> None:
    contents = [
        b"",
        b"\0" * 9,
        b"[" * 100_000,
        b"\xff\xfe{}",
        b"1" * 10_000,
        *(json.dumps(value).encode() for value in WEIRD[:12]),
    ]
    for content in contents:
        tried(original, tmp_path / "run", name, content)
