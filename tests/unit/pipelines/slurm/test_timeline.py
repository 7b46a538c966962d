"""The parts of a restart add up to the time from the failure to the next step."""

from __future__ import annotations

import pytest

from pipelines.slurm.starts import End, Failure, Start
from pipelines.slurm.timeline import in_words, parts

FAILURE = Failure("node2", 1, 23, "Killed", has_trained=True, failed_at=100.0, detected_at=100.25)
END = End("7", 0, 16, 137, "crash", "restart", "Killed", 102.0, FAILURE)
START = Start("7", 1, ("node1", "node3"), 2, 2, 16, "", 102.5)
BEGAN = {
    "process": 103.0,
    "import": 104.0,
    "join": 106.0,
    "choose": 107.0,
    "start": 107.5,
    "load": 110.0,
    "data": 111.0,
}


def test_the_parts_add_up() -> None:
    found = parts(END, START, {"began": {**BEGAN, "step": 111.1}, "time": 111.5})
    assert list(found.items()) == [
        ("detected", 0.25),
        ("survivors stopped", 1.75),
        ("decided", 0.5),
        ("step started", 0.5),
        ("Python and config", 1.0),
        ("imports", 2.0),
        ("process group", 1.0),
        ("checkpoint chosen", 0.5),
        ("model built", 2.5),
        ("load", 1.0),
        ("first step", 0.5),
    ]
    assert in_words(found).startswith("11.5 s from the failure to the next step: detected 0.2, survivors stopped 1.8")


def test_a_restart_without_a_checkpoint_loads_nothing() -> None:
    """From the seed there is no phase ``load``, and the model is built until the first batch."""
    began = {phase: at for phase, at in BEGAN.items() if phase != "load"}
    found = parts(END, START, {"began": began, "time": 111.5})
    assert sum(found.values()) == pytest.approx(11.5) and found["model built"] == 3.5
