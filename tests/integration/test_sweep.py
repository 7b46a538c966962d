"""A real sweep: a grid of fine-tunings, its best on the test set, stopped and continued."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands
from tests.integration.small_run import FINETUNE, SMALL, pretrain

TRIALS = ("dev_lr1e-7", "dev_lr0.003")


@pytest.fixture(scope="module")
def source(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    commands = Commands()
    commands.run(*pretrain("alone", folder), check=True)
    commands.close()
    return folder / "run"


def write_config(path: Path, **sweep: object) -> Path:
    """The demo's fine-tuning with a sweep; its test images serve as the dev split here."""
    sets = {"dev": {"shards": "data/demo/downstream/val", "num_samples": 466}}
    section = {"grid": {"optim.lr": ["1e-7", 0.003]}, "dev": {"evaluation.sets": sets}, "num_seeds": 2, **sweep}
    path.write_text(json.dumps({"extends": str(Path(FINETUNE).resolve()), "sweep": section}))
    return path


def sweep_command(config: Path, source: Path, out: Path, *more: str) -> list[str]:
    settings = [*SMALL, "model.img_size=16", "seed=5"]
    return [
        "python", "-m", "pipelines", "sweep", *settings, "--config", str(config), "--from", str(source),
        "--out", str(out), *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_is_stopped_and_goes_on(command: Commands, source: Path, tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "digits.yaml"), tmp_path / "out"
    process = command.start(*sweep_command(config, source, out))
    first = out / "dev_lr1e-7"
    while process.poll() is None and not (first / "exit.json").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(240) == 130
    before = (first / "metrics.jsonl").read_bytes()
    done = command.run(*sweep_command(config, source, out, "--parallel", "2"), check=True)
    assert (first / "metrics.jsonl").read_bytes() == before, "a finished trial is not run again"
    result = json.loads((out / "sweep.json").read_text())
    on_dev = {name: read_metrics(out / name / "metrics.jsonl", "eval")[12]["dev/top1"] for name in TRIALS}
    assert {trial["name"]: trial["value"] for trial in result["trials"]} == on_dev
    assert result["best"] == max(TRIALS, key=lambda name: on_dev[name]) and f"{result['best']} (best)" in done.stdout
    values = []
    for name in ("seed5", "seed6"):
        evaluations = read_metrics(out / name / "metrics.jsonl", "eval")
        assert set(evaluations[12]) >= {"val/top1"} and not any(key.startswith("dev/") for key in evaluations[12])
        values.append(evaluations[12]["val/top1"])
    assert result["test"]["val/top1"]["values"] == values
    assert result["test"]["val/top1"]["mean"] == pytest.approx(sum(values) / 2)
    refused = command.run(*sweep_command(config, source, out, "optim.weight_decay=0.5"))
    assert refused.returncode == 2 and "is a run with other settings" in refused.stderr


def test_a_dry_run_prints_commands_that_pass_their_check(
    digits: None, command: Commands, source: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "digits.yaml")
    done = command.run(*sweep_command(config, source, tmp_path / "out", "--dry-run"), check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and not (tmp_path / "out").exists()
    assert [line.rpartition("name=")[2] for line in lines] == ["dev_lr1e-7", "dev_lr0.003", "seed5", "seed6"]
    trial = command.run(*sweep_command(config, source, tmp_path / "out", "--trial", "1"), check=True)
    assert shlex.split(lines[1])[2:] == trial.stdout.splitlines()
    refused = command.run(*sweep_command(config, source, tmp_path / "out", "--trial", "2"))
    assert refused.returncode == 2 and "--trial 2: the sweep's trials are 0 to 1" in refused.stderr


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"grid": {"optim.lrr": [1]}}, "optim.lrr: unknown key; did you mean optim.lr?"),
        ({"grid": {"optim.lr": []}}, "grid.optim.lr: has no values"),
        ({"metric": "text/top1"}, "sweep.metric: text/top1 does not match any evaluation set of the trials (dev)"),
        ({"grid": {"seed": [1]}, "dev": {"seed": 2}}, "dev.seed: is also in the grid"),
    ],
)
def test_bad_sweeps_are_refused(command: Commands, tmp_path: Path, sweep: dict, message: str) -> None:
    config = write_config(tmp_path / "digits.yaml", **sweep)
    done = command.run(*sweep_command(config, tmp_path, tmp_path / "out", "--dry-run"))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
