"""Saves: in the background and at once alike, on a full disk, and which of them stay."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.engine.saving import COMPLETING, WRITING, no_space
from pretrain.engine.slices import rank_file
from tests.command import Commands
from tests.faults.job import NONE, Faults, checkpoint_steps, job
from tests.integration.small_run import curve, pretrain
from tests.pool import Pool


def run(pool: Pool, folder: Path, *settings: str, faults: Faults = NONE) -> dict:
    return pool.run(job, str(folder), list(settings), faults)[0]


def files_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "COMPLETE.json").read_text())["files"]


def test_a_save_in_the_background_writes_what_one_at_once_writes(digits: None, pool2: Pool, tmp_path: Path) -> None:
    """The training continues over several steps while it is written, and neither notices the other."""
    fast = run(pool2, tmp_path / "sync", "checkpoint.asynchronous=false", "checkpoint.keep_last=9")
    slow = run(pool2, tmp_path / "async", "checkpoint.keep_last=9", faults=Faults(slow_weights_s=0.3))
    assert not any(map(any, fast["saving"])), "nothing is in flight at a boundary"
    assert any(COMPLETING in ranks or WRITING in ranks for ranks in slow["saving"])
    assert curve(tmp_path / "sync/run") == curve(tmp_path / "async/run")
    for step in (4, 8, 12):
        left, right = (tmp_path / way / f"run/checkpoints/step-{step:08d}" for way in ("sync", "async"))
        ours, theirs = files_of(left), files_of(right)
        for name in ("config.resolved.yaml", "weights.safetensors"):  # another folder; a header in no fixed order
            del ours[name], theirs[name]
        assert ours == theirs and len(ours) == 3
        plain, same = (load_file(path / "weights.safetensors") for path in (left, right))
        assert all(torch.equal(same[name], tensor) for name, tensor in plain.items())


def test_one_save_is_in_flight_and_a_stop_waits_for_it(digits: None, pool2: Pool, tmp_path: Path) -> None:
    faults = Faults(slow_weights_s=0.3, stop_at=(6, 0))
    stopped = run(pool2, tmp_path, "checkpoint.every=1 steps", "checkpoint.keep_last=9", faults=faults)
    assert (stopped["outcome"], stopped["step"]) == ("requeue", 6)
    assert checkpoint_steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_time_alone_or_beside_steps_makes_a_checkpoint_due(digits: None, pool2: Pool, tmp_path: Path) -> None:
    """Rank 0's clock decides for all, and what saves when does not change a loss."""
    keep = "checkpoint.keep_last=99"
    run(pool2, tmp_path / "steps", "checkpoint.every=4 steps", keep)
    early = Faults(hours={0: [2, 7], 1: [3, 4, 5, 6]})
    run(pool2, tmp_path / "both", "checkpoint.every=4 steps or 30 minutes", keep, faults=early)
    run(pool2, tmp_path / "time", "checkpoint.every=30 minutes", keep, faults=early)
    assert checkpoint_steps(tmp_path / "steps/run") == [4, 8, 12]
    assert checkpoint_steps(tmp_path / "both/run") == [2, 4, 7, 8, 12]
    assert checkpoint_steps(tmp_path / "time/run") == [2, 7, 12]
    assert curve(tmp_path / "steps/run") == curve(tmp_path / "both/run") == curve(tmp_path / "time/run")


def test_a_run_continues_from_a_checkpoint_that_time_made(digits: None, pool2: Pool, tmp_path: Path) -> None:
    every, complete = "checkpoint.every=30 minutes", run(pool2, tmp_path / "a", "checkpoint.every=30 minutes")
    run(pool2, tmp_path / "b", every, faults=Faults(hours={0: [5]}, stop_at=(7, 0)))
    shutil.rmtree(tmp_path / "b/run/checkpoints/step-00000007")  # as if it had been killed there
    resumed = run(pool2, tmp_path / "b", every)
    assert any("step-00000005" in line for line in resumed["said"])
    assert complete["outcome"] == resumed["outcome"] == "complete"
    assert curve(tmp_path / "a/run") == curve(tmp_path / "b/run")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_a_file_that_cannot_be_written(digits: None, pool2: Pool, tmp_path: Path, on_error: str, rank: int) -> None:
    """The kernel refuses what goes beyond RLIMIT_FSIZE, as it refuses what goes beyond a full disk."""
    folder = tmp_path / "run"
    settings = [f"checkpoint.on_error={on_error}", "duration=11 steps"]
    done = run(pool2, tmp_path, *settings, faults=Faults(file_limit=(rank, 5, 20_000)))
    assert checkpoint_steps(folder) == [4], "the older one is intact"
    assert not list(folder.glob("checkpoints/*.tmp")), "what was written is given back"
    if on_error == "stop":
        assert done["outcome"] in ("CheckpointError", "PeerError") and f"rank {rank}" in done["reason"]
        assert max(curve(folder)) in (8, 9, 10), "the failure is seen at a boundary after the save of step 8"
    else:
        failed = [line for line in done["said"] if "no checkpoint:" in line]
        assert failed and "the training continues" in failed[0] and rank_file(rank) in failed[0]
        assert max(curve(folder)) == 11, "all steps were done"
        assert done["outcome"] == "fatal" and "not saved" in done["reason"], "but an end without a result is no success"
    assert run(pool2, tmp_path, *settings)["outcome"] == "complete"


def test_a_disk_with_too_little_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    assert no_space(tmp_path, 100, 100) is None
    error = no_space(tmp_path, 2**31, 2**30)
    assert error is not None and "2.000 GiB are needed, 1.000 GiB are free" in str(error)


def test_what_stays(digits: None, pool1: Pool, tmp_path: Path) -> None:
    """The last two, every sixth and the best; and after a resume as if there had been none."""
    rule = ["checkpoint.every=2 steps", "checkpoint.keep_last=1", "checkpoint.keep_every=6 steps"]
    rule += ["checkpoint.keep_best=val/top1", "evaluation.every=2 steps", "evaluation.micro_batch_size=187"]
    run(pool1, tmp_path / "a", *rule)
    run(pool1, tmp_path / "b", *rule, faults=Faults(stop_at=(7, 0)))
    assert run(pool1, tmp_path / "b", *rule)["outcome"] == "complete"
    measured = {step: values["val/top1"] for step, values in read_eval(tmp_path / "a/run").items()}
    best = max(sorted(measured), key=measured.__getitem__)
    assert checkpoint_steps(tmp_path / "a/run") == sorted({6, 12, best})
    assert checkpoint_steps(tmp_path / "b/run") == sorted({6, 12, best})


def read_eval(folder: Path) -> dict:
    from pretrain.telemetry.metrics import read_metrics

    return read_metrics(folder / "metrics.jsonl", "eval")


@pytest.mark.slow
def test_a_full_disk(command: Commands, digits: None, tmp_path: Path) -> None:
    """A file system of 1 MiB, mounted for one job only: a third checkpoint does not fit beside the two that stay."""
    if command.run("unshare", "-rm", "true").returncode:
        pytest.skip("this kernel lets no user mount")
    folder = tmp_path / "small"
    words = pretrain("alone", folder, "checkpoint.on_error=continue", "duration=16 steps", "evaluation.sets={}")
    mount = f"mkdir {folder} && mount -t tmpfs -o size=1m tmpfs {folder}"
    job = command.run("unshare", "-rm", "sh", "-c", f"{mount} && {shlex.join(words)}; ls {folder}/run/checkpoints")
    assert "no space for a checkpoint" in job.stdout and "the training continues" in job.stdout, job.stdout + job.stderr
    assert job.stdout.splitlines()[-2:] == ["step-00000004", "step-00000008"]
