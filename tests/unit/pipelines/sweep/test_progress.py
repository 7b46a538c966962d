"""The progress of a sweep, which is counted in steps: a trial may take hours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.sweep import trials
from pipelines.sweep.trials import Sweep, Trial
from pretrain.config.loader import load_experiment
from pretrain.config.schema.jobs import SweepConfig

CONFIG = "configs/finetune/demo_digits.yaml"
# A job that writes the lines of ten steps, and ends once somebody has seen them.
JOB = """
import json, pathlib, shutil, sys, time
run, config, seen = map(pathlib.Path, sys.argv[1:])
lines = [{"kind": "train", "step": step, "time": 0.0, "loss": 1.0} for step in range(1, 11)]
lines.append({"kind": "eval", "step": 30, "time": 1.0, "val/top1": 0.5})
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
while not seen.exists():
    time.sleep(0.01)
shutil.copy(config, run / "config.resolved.yaml")
(run / "exit.json").write_text(json.dumps({"outcome": "complete", "reason": "", "step": 30}))
"""


class Recorded(Sweep):
    """A sweep whose job is the script above."""

    def command(self, trial: Trial) -> list[str]:
        resolved = load_experiment(self.config, overrides=[*self.overrides, *trial.overrides])
        saved = self.folder / f"{trial.name}.yaml"
        saved.write_text(resolved.to_yaml())
        return [sys.executable, "-c", JOB, str(self.folder / trial.name), str(saved), str(self.folder / "seen")]


def test_a_sweep_shows_the_steps_of_finished_and_of_running_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    made: list[tuple[Any, ...]] = []

    class Bar(trials.LazyBar):
        def __init__(self, *about: Any) -> None:
            made.append(about)
            super().__init__(*about)

        def show(self, done: int) -> None:
            shown.append(done)
            if done == 10:
                (tmp_path / "seen").touch()

    monkeypatch.setattr(trials, "LazyBar", Bar)
    settings = SweepConfig(grid={"optim.lr": [0.1, 0.2]})
    overrides = ("duration=30 steps", "init.from=null", "optim.schedule.warmup=1 steps")
    sweep = Recorded(CONFIG, None, tmp_path, settings, overrides, seed=0, ranks=1, parallel=1)
    outcomes = trials.run(sweep, sweep.dev_trials(), "val/top1", "trials")
    assert [outcome.value for outcome in outcomes] == [0.5, 0.5]
    assert made == [("2 trials", 60, "steps")]
    assert {0, 10, 60} <= set(shown) <= {0, 10, 30, 40, 60} and shown == sorted(shown)
