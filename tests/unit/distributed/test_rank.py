"""Who am I, for each launcher's variables."""

from __future__ import annotations

import pytest

from pretrain.distributed.rank import JOB_ID, LAUNCHER, RESTART_COUNT, detect, environment, job
from pretrain.errors import SetupError

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"}


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, (0, 0, 1, 1, "alone")),
        (TORCHRUN, (3, 1, 4, 2, "torchrun")),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, (1, 1, 2, 2, "deepspeed")),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", LAUNCHER: "jobset"}, (1, 1, 2, 2, "jobset")),
        (SRUN, (9, 1, 16, 8, "srun")),
        (SRUN | {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, (9, 1, 16, 8, "srun")),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, (0, 0, 1, 1, "alone")),  # in a job's shell, outside of srun
    ],
)
def test_detect(env: dict[str, str], wanted: tuple) -> None:
    rank = detect(env)
    assert (rank.rank, rank.local_rank, rank.world, rank.local_world, rank.launcher) == wanted
    assert rank.is_main == (wanted[0] == 0)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one' is not an integer"),
    ],
)
def test_half_set_variables_are_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        detect(env)


def test_only_known_variables_are_put_on_record() -> None:
    secrets = [
        "SLURM_JWT",
        "NCCL_PLUGIN_KEY",
        "DS_TOKEN",
        "TORCH_HUB_AUTH",
        "PYTORCH_X",
        "CUDA_Y",
        "AWS_SECRET_ACCESS_KEY",
    ]
    env = dict.fromkeys(secrets, "hunter2") | {"SLURM_JOB_ID": "7", "NCCL_DEBUG": "INFO", "HOME": "/root"}
    found = environment(env)
    assert found["variables"] == {"NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "7"}
    assert found["unrecorded_variables"] == sorted(secrets[:-1])
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, ("local", 0)),
        ({"SLURM_JOB_ID": "7"}, ("7", 0)),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, ("7", 2)),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", RESTART_COUNT: "5"}, ("7", 5)),
    ],
)
def test_restarts_inside_an_allocation_count(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], wanted: tuple[str, int]
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", RESTART_COUNT):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert job() == wanted


def test_a_pod_has_the_name_of_its_job_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(JOB_ID, "vit-l16")
    monkeypatch.setenv(RESTART_COUNT, "3")
    assert job() == ("vit-l16", 3)
