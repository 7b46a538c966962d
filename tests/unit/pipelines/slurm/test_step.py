"""A step under supervision, with programs that say what srun says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipelines.slurm import step
from pipelines.slurm.step import Step, Watch

HANGS = """
import signal, sys, time
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("a rank's traceback", file=sys.stderr)
print("srun: error: node2: task 1: Killed", file=sys.stderr, flush=True)
time.sleep(600)
"""


def watched(tmp_path: Path, *words: str, looks: list[int]) -> Watch:
    """Watches a program to its end; ``looks`` counts the calls of the look, which wants two."""

    def look() -> bool:
        looks.append(1)
        return len(looks) < 2

    watch = Watch(Step(words, {}), tmp_path, silent_s=60, stop_s=0.3, look=look)
    watch.until_the_end()
    return watch


@pytest.mark.parametrize(("ear", "code", "was_abandoned"), [("listening", 128 + 15, False), ("deaf", 128 + 9, True)])
def test_survivors_are_stopped_in_bounded_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ear: str,
    code: int,
    was_abandoned: bool,
) -> None:
    monkeypatch.setattr(step, "ABANDON_S", 0.3)
    looks: list[int] = []
    watch = watched(tmp_path, sys.executable, "-c", HANGS, ear, looks=looks)
    assert (watch.step.finish(), watch.was_abandoned) == (code, was_abandoned)
    (end,) = watch.step.ends
    assert (end.node, end.ranks, end.text) == ("node2", (1,), "Killed") and watch.detected_at is not None
    assert end.time <= watch.detected_at
    assert "a rank's traceback\nsrun: error: node2: task 1: Killed\n" in capfd.readouterr().err
    assert len(looks) == 2


def test_a_step_that_ends_is_left_alone(tmp_path: Path) -> None:
    watch = watched(tmp_path, sys.executable, "-c", "import sys; sys.exit(75)", looks=[])
    assert (watch.step.finish(), watch.step.ends, watch.detected_at) == (75, [], None)


GIVES_UP = """
import sys
print("srun: error: node1: task 0: Exited with exit code 1", file=sys.stderr)
print("srun: error: Timed out waiting for job step to complete", file=sys.stderr)
sys.exit(1)
"""


def test_srun_leaves_ranks_that_have_not_ended(tmp_path: Path) -> None:
    watch = watched(tmp_path, sys.executable, "-c", GIVES_UP, looks=[])
    assert (watch.step.finish(), watch.step.gave_up, watch.was_abandoned) == (1, True, False)
    assert [end.node for end in watch.step.ends] == ["node1"]
