"""Every call to the disk fails once, with every errno; it fails from there on; the power is cut before it.

A small but complete run is driven each time (``tiny_run``), and then started again on a disk that works. Whatever
failed and wherever: a checkpoint that was reported as saved is there, a run that is called complete is, and the next
start ends as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pretrain import disk
from pretrain.distributed.processes import Identity
from pretrain.engine import ownership, run_folder, saving
from pretrain.engine.checkpoint_folder import complete_checkpoints, step_of
from pretrain.engine.run_folder import COMPLETE, REQUEUE, read_verdict
from pretrain.telemetry.metrics import read_metrics
from tests.faulty_disk import ERRNOS, FaultyDisk, ForgetfulDisk, PowerCut, QuickDisk, using
from tests.unit.engine.tiny_run import Told, dead_process, newest, start

STEPS = 4
LOST_SERVER = ("EIO", "ESTALE")  # fails reads too; a full disk can still be read
SAMPLE = 29  # every so many calls in the fast rows, every one in the slow ones
EVERY = [
    pytest.param(SAMPLE, id="sampled"),
    pytest.param(1, id="all", marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
]


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start is a process of its own and all others are dead; no thread adds calls of its own."""
    numbers = itertools.count()
    monkeypatch.setattr(disk, "current", QuickDisk())
    monkeypatch.setattr(Identity, "own", lambda: dead_process(next(numbers)))
    monkeypatch.setattr(ownership, "HEARTBEAT_S", 1000.0)
    monkeypatch.setattr(ownership, "LEASE_S", 0.02)  # a claim that cannot be read is watched
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(run_folder, "VERDICT_PAUSE_S", 0.0)
    monkeypatch.setattr(run_folder, "TOKEN_PAUSE_S", 0.0)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop after two steps."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    told = start(run, STEPS, Told(), stop_at=2)
    assert told.verdict is not None and told.verdict.outcome == REQUEUE and told.saved == [1, 2]
    return run


def check_after(run: Path, told: Told, before: int, *, where: str) -> None:
    """Checks the laws after a start with a fault, and that the next start without one ends as it should."""
    assert (told.verdict is None) != (told.error is None), where
    saved = max([before, *told.saved])
    assert newest(run) >= saved, where
    if told.verdict is not None and told.verdict.outcome == COMPLETE:
        assert newest(run) == STEPS and (read_verdict(run).value or {}).get("outcome") == COMPLETE, where
    again = start(run, STEPS, Told())
    assert again.verdict is not None and again.verdict.outcome == COMPLETE, (where, again)
    assert newest(run) == STEPS, where
    assert {step_of(path) for path in complete_checkpoints(run / "checkpoints")} <= {2, STEPS}, where
    assert sorted(path.suffix for path in (run / "checkpoints").iterdir()) in ([""], ["", ""]), where
    assert max(read_metrics(run / "metrics.jsonl")) == STEPS or not again.saved, where


def test_a_run_on_a_disk_that_works(tmp_path: Path) -> None:
    told = start(tmp_path / "run", STEPS, Told())
    assert told.saved == [1, 2, 3, 4] and told.verdict is not None and told.verdict.outcome == COMPLETE
    kept = [step_of(path) for path in complete_checkpoints(tmp_path / "run/checkpoints")]
    assert kept == [4, 2], "the last and the best"
    assert list(read_metrics(tmp_path / "run/metrics.jsonl")) == [1, 2, 3, 4]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("error", ERRNOS)
def test_every_call_fails(tmp_path: Path, stopped: Path, error: str, lasting: bool, every: int) -> None:
    """Of a start that resumes."""
    on_error = "stop" if error in ("EDQUOT", "EIO") else "continue"
    for at in itertools.count(3 * ERRNOS.index(error) % every, every):
        run = tmp_path / "run"
        shutil.copytree(stopped, run)
        failing = FaultyDisk(error, at, lasting=lasting, changes_only=lasting and error not in LOST_SERVER)
        told = Told()
        with using(failing):
            start(run, STEPS, told, on_error=on_error)
        if not failing.has_fired:
            assert told.verdict is not None and told.verdict.outcome == COMPLETE
            return
        check_after(run, told, 2, where=f"{error} at call {at}: {failing.calls[at]}; {told}")
        shutil.rmtree(run)


@pytest.mark.parametrize("every", EVERY)
def test_the_power_is_cut_before_every_call(tmp_path: Path, every: int) -> None:
    """Writes that were not made durable are there or not, in any order."""
    for at in itertools.count(0, every):
        root = tmp_path / f"disk-{at}"
        root.mkdir()
        forgetful = ForgetfulDisk(root, at)
        told = Told()
        with using(forgetful), contextlib.suppress(PowerCut):
            start(root / "run", STEPS, told)
        if not forgetful.was_cut:
            return
        for seed, chance in enumerate((0.0, 0.5, 0.9, 1.0)):
            left = tmp_path / "left"
            forgetful.leave(left, chance, seed)
            where = f"cut before call {at}, chance {chance}; {told}"
            assert newest(left / "run") >= max([0, *told.saved]), where
            again = start(left / "run", STEPS, Told())
            assert again.verdict is not None and again.verdict.outcome == COMPLETE, (where, again)
            assert newest(left / "run") == STEPS, where
            shutil.rmtree(left)
        shutil.rmtree(root)


class Paused(QuickDisk):
    """Before a call another start is made, which ends as it should."""

    def __init__(self, at: int, run: Path) -> None:
        super().__init__()
        self._left, self._run = at, run
        self.left_by_the_other: dict[str, bytes] | None = None

    def about_to(self, call: str, path: Path) -> None:
        self._left -= 1
        if self._left == -1:
            with using(QuickDisk()):
                other = start(self._run, STEPS, Told())
            assert other.verdict is not None and other.verdict.outcome == COMPLETE
            self.left_by_the_other = _contents(self._run)


@pytest.mark.parametrize("every", EVERY)
def test_another_owner_comes_before_every_call(
    tmp_path: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """One that was paused there, and was taken for dead: what the other has written meanwhile stays as it is."""
    monkeypatch.setattr(saving, "_thread", ThreadPoolExecutor(2))  # two processes would have one each
    for at in itertools.count(0, every):
        run = tmp_path / "run"
        shutil.copytree(stopped, run)
        paused, told = Paused(at, run), Told()
        with using(paused):
            start(run, STEPS + 2, told)
        if paused.left_by_the_other is None:
            return
        where = f"paused before call {at}; {told}"
        now, before = _contents(run), paused.left_by_the_other
        touched = {_unit(path) for path in now.keys() | before.keys() if now.get(path) != before.get(path)}
        was_owner_before = told.verdict is None or told.verdict.outcome != COMPLETE
        assert len(touched) <= 2 or not was_owner_before, f"more than the call under way: {touched}; {where}"
        again = start(run, STEPS + 2, Told())
        assert again.verdict is not None and again.verdict.outcome == COMPLETE, (where, again)
        assert newest(run) == STEPS + 2, where
        shutil.rmtree(run)


def _contents(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def _unit(path: str) -> str:
    """The object that one call changes: a file, or a checkpoint by its name (a rename has two)."""
    return "/".join(path.split("/")[:2])
