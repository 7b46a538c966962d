"""kill -9 of every rank at any moment, then the same command: from there on nothing differs from a run without it."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from pretrain.engine.checkpoint_folder import newest_valid
from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands, kill_tree
from tests.faults.test_stop import ranks_of
from tests.integration.small_run import curve, pretrain, verdict

STEPS = 12


@pytest.fixture(scope="module")
def straight(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("straight")
    commands = Commands()
    commands.run(*pretrain("deepspeed", folder), check=True)
    commands.close()
    assert sorted(curve(folder / "run")) == list(range(1, STEPS + 1))
    return folder / "run"


def kill_when(command: Commands, words: list[str], happened: object) -> None:
    """Starts a job and kills all its processes as soon as ``happened()`` is true."""
    process = command.start(*words)
    deadline = time.monotonic() + 240
    while not happened():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    kill_tree(process)
    process.wait()


def assert_equal_from_the_resume_on(run: Path, straight: Path, *, resumes: int) -> None:
    """Every logged step, those of the resumed part above all, is bit-identical to the straight run's."""
    assert verdict(run)["outcome"] == "complete"
    assert len(read_metrics(run / "metrics.jsonl", "resume")) >= min(resumes, 1)
    assert curve(run) == curve(straight)


def test_killed_at_a_random_step(command: Commands, straight: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", pretrain("deepspeed", tmp_path)
    step = random.Random(str(tmp_path)).randrange(5, STEPS)
    saved = run / "checkpoints" / "step-00000004"
    kill_when(command, words, lambda: max(read_metrics(run / "metrics.jsonl"), default=0) >= step and saved.exists())
    assert not (run / "exit.json").exists()
    command.run(*words, check=True)
    assert_equal_from_the_resume_on(run, straight, resumes=1)


def test_killed_during_a_save(command: Commands, straight: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", pretrain("deepspeed", tmp_path, "checkpoint.every=1 steps")
    seen: list[Path] = []

    def saving() -> bool:
        seen[:] = [path for path in run.glob("checkpoints/*.tmp") if path.name > "step-00000005"]
        return bool(seen)

    kill_when(command, words, saving)
    assert any(path.exists() for path in seen), "the kill must leave a half-written checkpoint"
    command.run(*words, check=True)
    assert not list(run.glob("checkpoints/*.tmp"))
    assert_equal_from_the_resume_on(run, straight, resumes=1)


def test_resumed_by_another_number_of_ranks_and_stage(command: Commands, straight: Path, tmp_path: Path) -> None:
    """The same samples in every step, and the loss within 1e-5: 2 ranks at ZeRO-1 → 1 rank → 2 ranks at ZeRO-3."""
    run = tmp_path / "run"
    sharded = "cluster.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
    kill_when(command, pretrain("deepspeed", tmp_path), lambda: (run / "checkpoints/step-00000004").exists())
    words = pretrain("alone", tmp_path, "cluster.micro_batch_size=16", "cluster.zero_stage=2")
    kill_when(command, words, lambda: (run / "checkpoints/step-00000008").exists())
    command.run(*pretrain("torchrun", tmp_path, "cluster.zero_stage=3", sharded), check=True)
    ours, theirs = curve(run), curve(straight)
    assert sorted(ours) == sorted(theirs)
    for step, (loss, grad_norm, lr, digest) in ours.items():
        wanted = theirs[step]
        assert (lr, digest) == wanted[2:], step
        assert loss == pytest.approx(wanted[0], rel=1e-5) and grad_norm == pytest.approx(wanted[1], rel=1e-3), step
    assert len(read_metrics(run / "metrics.jsonl", "resume")) == 2


def test_a_damaged_checkpoint_is_passed_over(command: Commands, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = pretrain("alone", tmp_path)
    kill_when(command, words, lambda: (run / "checkpoints/step-00000008").exists())
    newest = run / "checkpoints/step-00000008/slices/rank-00000.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0x10
    newest.write_bytes(data)
    done = command.run(*words, check=True)
    assert "step-00000008 is passed over: slices/rank-00000.safetensors does not have the hash" in done.stdout
    assert min(read_metrics(run / "metrics.jsonl", "resume")) == 4
    assert [row[3] for row in curve(run).values()] == [row[3] for row in curve(straight).values()]
    for path in run.glob("checkpoints/*/COMPLETE.json"):
        path.write_text("{}")
    refused = command.run(*words)
    assert refused.returncode == 2 and "is intact: restore one from a copy" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_killed_on_one_rank(command: Commands, digits: None, tmp_path: Path) -> None:
    """The launcher ends the others at once; no verdict is left, so a job script starts it again."""
    run = tmp_path / "run"
    process = command.start(*pretrain("torchrun", tmp_path, "duration=5000 steps", "checkpoint.every=4 steps"))
    deadline = time.monotonic() + 240
    while not (run / "checkpoints/step-00000004").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(ranks_of("pretrain/run.py", tmp_path)[-1], signal.SIGKILL)
    process.communicate(timeout=240)
    assert process.returncode != 0 and not (run / "exit.json").exists()
    assert ranks_of("pretrain/run.py", tmp_path) == []
    assert newest_valid(run, print) is not None
