"""Who failed first: read from srun's words, heartbeats and crash reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.slurm.diagnosis import Evidence, Silence, TaskEnd, diagnose, read_task_end
from pretrain.distributed.heartbeats import Beat
from pretrain.engine.crashes import Crash

KILLED = TaskEnd("node2", (1,), "Killed", 100.0)
EXITED = TaskEnd("node1", (0,), "Exited with exit code 1", 100.2)
HUNG = replace(EXITED, text="Exited with exit code 70")
CRASHES = [
    Crash("crash", 1, "node2", 23, "step", "ZeroDivisionError: division by zero", 99_000, 99.0),
    Crash("crash", 0, "node1", 23, "step", "RuntimeError: Connection closed by peer", 99_100, 99.1),
]
HANG = Crash("hang", 0, "node1", 23, "step", "phase step for 900 s: the others wait for rank 1", 98_900, 98.9)
BEATS = [Beat(0, "node1", 10, 23, "step", 1.0, 50), Beat(1, "node2", 11, 22, "data", 9.0, 50)]
NOTHING = Evidence(
    code=1,
    ends=(),
    silent=(),
    silent_since=0.0,
    lost=(),
    crashes=(),
    beats=(),
    step=20,
    has_trained=True,
    detected_at=101.0,
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [  # as srun 22.05 printed them
        ("srun: error: node2: task 1: Killed", ("node2", (1,), None)),
        ("srun: error: node1: tasks 0-2,5: Exited with exit code 70", ("node1", (0, 1, 2, 5), 70)),
        ("srun: error: Node failure on node4", ("node4", (), None)),
        ("srun: error: Task launch for StepId=7.1 failed on node node3: Communication", ("node3", (), None)),
        ("srun: Force Terminated StepId=1.0", None),
        ("[rank1]: RuntimeError: srun: error: node2: task 1: Killed", None),
    ],
)  # fmt: skip
def test_the_words_of_srun(line: str, expected: tuple[str, tuple[int, ...], int | None] | None) -> None:
    found = read_task_end(line, 5.0)
    assert (None if found is None else (found.node, found.ranks, found.exit_code)) == expected


@pytest.mark.parametrize(
    ("seen", "node", "rank", "step", "error"),
    [
        (replace(NOTHING, ends=(KILLED, EXITED), crashes=CRASHES[1:]), "node2", 1, 23, "Killed"),
        (replace(NOTHING, ends=(EXITED, KILLED), crashes=CRASHES), "node2", 1, 23, CRASHES[0].error),
        (replace(NOTHING, ends=(EXITED,), crashes=CRASHES[1:], lost={"node2"}), "node2", None, 23, "does not answer"),
        (replace(NOTHING, silent=BEATS[1:], silent_since=40.0), "node2", 1, 20, "no heartbeat"),
        (replace(NOTHING, ends=(HUNG,), beats=BEATS), "node2", 1, 20, "hung"),
        (replace(NOTHING, ends=(EXITED,), beats=BEATS, crashes=[HANG, *CRASHES[1:]]), "node2", 1, 23, "hung"),
        (replace(NOTHING, ends=(HUNG,)), "", None, 20, "the ranks hung"),
        (replace(NOTHING, ends=(EXITED,)), "node1", 0, 20, "Exited with exit code 1"),
        (NOTHING, "", None, 20, "the step left with 1"),
    ],
)  # fmt: skip
def test_the_first_failure(seen: Evidence, node: str, rank: int | None, step: int, error: str) -> None:
    found = diagnose(seen)
    assert (found.node, found.rank, found.step) == (node, rank, step) and error in found.error
    assert found.failed_at <= found.detected_at == 101.0


def test_only_a_rank_among_beating_ones_is_silent() -> None:
    first, second = BEATS
    silence = Silence(60.0, stale=[])
    assert silence.look(BEATS, 0.0) == []
    assert silence.look([replace(first, count=51), second], 30.0) == []
    assert silence.look([replace(first, count=52), second], 61.0) == [(second, 0.0)]
    assert silence.look([replace(first, count=52), second], 200.0) == [], "all are silent: nobody is accused"
    assert silence.look([replace(first, count=53), replace(second, count=51)], 201.0) == []


def test_beats_of_an_earlier_step_do_not_count() -> None:
    old = replace(BEATS[1], pid=9)
    silence = Silence(60.0, stale=[old])
    assert silence.look([BEATS[0], old], 0.0) == []
    assert silence.look([replace(BEATS[0], count=99), old], 100.0) == []


def test_a_rank_that_has_ended_its_work_is_not_silent() -> None:
    done = replace(BEATS[1], phase="end")
    silence = Silence(60.0, stale=[])
    silence.look([BEATS[0], done], 0.0)
    assert silence.look([replace(BEATS[0], count=99), done], 100.0) == []
