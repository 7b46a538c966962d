"""A wish to stop, on one rank only: every rank checkpoints at the same step and the verdict says requeue."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands
from tests.integration.small_run import curve, pretrain, verdict


def ranks_of(script: str, folder: Path) -> list[int]:
    """Process ids of the Python processes that run the script into this folder, launchers left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"output_dir={folder}" in words and any(word.endswith(script) for word in words[1:3]):
            found.append(int(entry.name))
    return sorted(found)


@pytest.mark.parametrize("way", ["SIGTERM", "SIGUSR1", "STOP"])
def test_stop_and_go_on(command: Commands, digits: None, tmp_path: Path, way: str) -> None:
    run = tmp_path / "run"
    words = pretrain("torchrun", tmp_path, "duration=2000 steps", "checkpoint.every=1000 steps")
    process = command.start(*words)
    deadline = time.monotonic() + 240
    while max(read_metrics(run / "metrics.jsonl"), default=0) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if way == "STOP":
        (run / "STOP").touch()
    else:
        os.kill(ranks_of("pretrain/run.py", tmp_path)[-1], getattr(signal, way))  # one rank is told
    output, errors = process.communicate(timeout=240)
    end = verdict(run)
    assert (end["outcome"], end["exit_code"]) == ("requeue", 75), output + errors
    last = [line for line in output.splitlines() if line.strip()][-1]
    assert "not an error: the same command continues from here" in last, output
    step = end["step"]
    assert step == max(curve(run)) and (run / f"checkpoints/step-{step:08d}/COMPLETE.json").exists()
    command.run(
        *pretrain("torchrun", tmp_path, f"duration={step + 3} steps", "resume.allow_changes=[duration]"), check=True
    )
    assert sorted(curve(run)) == list(range(1, step + 4)), "no step is missing and none was done twice"
    assert min(read_metrics(run / "metrics.jsonl", "resume")) == step


def test_a_changed_setting_is_refused_by_name(command: Commands, digits: None, tmp_path: Path) -> None:
    command.run(*pretrain("alone", tmp_path), check=True)
    refused = command.run(*pretrain("alone", tmp_path, "optim.lr=5e-4"))
    assert refused.returncode == 2
    assert "optim.lr: 0.001 → 0.0005" in refused.stderr and "resume.allow_changes=[optim.lr]" in refused.stderr
    assert verdict(tmp_path / "run")["outcome"] == "fatal"
    stream = command.run(
        *pretrain("alone", tmp_path, "global_batch_size=32", "resume.allow_changes=[global_batch_size]")
    )
    assert stream.returncode == 2 and "data.lanes: 8 → 4" in stream.stderr and "data.lanes=8" in stream.stderr
    changed = ["duration=14 steps", "optim.lr=5e-4", "resume.allow_changes=[optim.lr, duration]"]
    allowed = command.run(*pretrain("alone", tmp_path, *changed), check=True)
    assert "changed from step 12 on: optim.lr: 0.001 → 0.0005" in allowed.stdout
    assert max(curve(tmp_path / "run")) == 14


def test_a_fork_goes_on_in_a_folder_of_its_own(command: Commands, digits: None, tmp_path: Path) -> None:
    """resume.from: weights, optimiser and stream of another run; the first steps after it are that run's own."""
    command.run(*pretrain("alone", tmp_path), check=True)
    parent = tmp_path / "run"
    step8 = parent / "checkpoints/step-00000008"
    fork = pretrain("alone", tmp_path, "name=fork", f"resume.from={step8}")
    done = command.run(*fork, check=True)
    assert f"forking from {step8}" in done.stdout
    ours, theirs = curve(tmp_path / "fork"), curve(parent)
    assert ours == {step: theirs[step] for step in range(9, 13)}
    nowhere = command.run(*pretrain("alone", tmp_path, "name=lost", f"resume.from={tmp_path / 'nowhere'}"))
    assert nowhere.returncode == 2 and "resume.from" in nowhere.stderr
