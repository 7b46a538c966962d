"""A run that hangs is told from one that is slow, however busy the machine is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.conformance.loaders.progress import Effort, Progress, effort_of

START = Effort(at=100.0, cpu_s=5.0, queued_s=2.0, drawn=10)


@pytest.mark.parametrize(
    ("later", "hung"),
    [
        (Effort(159.0, 5.0, 2.0, 10), False),  # idle, for less than its patience
        (Effort(161.0, 5.0, 2.0, 10), True),
        (Effort(161.0, 7.0, 2.0, 10), True),  # a loop that looks after a dead process every few milliseconds
        (Effort(161.0, 5.0, 2.0, 11), False),  # a batch has come
        (Effort(161.0, 20.0, 2.0, 10), False),  # it works
        (Effort(161.0, 7.0, 50.0, 10), False),  # it waits for a core: the machine is busy
        (Effort(701.0, 7.0, 500.0, 10), True),  # the loop, on a busy machine
        (Effort(701.0, 60.0, 500.0, 10), False),  # it works, on a busy machine
        (Effort(300.0, 126.0, 9.0, 10), True),  # more work than any batch needs
    ],
)
def test_a_run_is_hung_if_it_neither_draws_nor_works(later: Effort, hung: bool) -> None:
    progress = Progress()
    assert not progress.is_hung(START)
    assert progress.is_hung(later) == hung


def test_patience_begins_anew_with_each_batch() -> None:
    progress = Progress(patience_s=300)
    for at, drawn in ((0.0, 0), (250.0, 1), (500.0, 2)):
        assert not progress.is_hung(Effort(at, 0.0, 0.0, drawn))
    assert not progress.is_hung(Effort(799.0, 0.0, 0.0, 2))
    assert progress.is_hung(Effort(801.0, 0.0, 0.0, 2))


def test_effort_is_that_of_the_process_and_its_children(tmp_path: Path) -> None:
    outcome = tmp_path / "out.jsonl"
    outcome.write_text("batch\n")
    work = "import time\nwhile time.process_time() < 0.2: pass\nprint('worked', flush=True)\ninput()"
    command = ["sh", "-c", f'"{sys.executable}" -S -c "{work}"; true']  # the shell stays, and Python is below it
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"worked\n"
        effort = effort_of([process.pid], [outcome])
        process.communicate(b"\n")
    assert effort.cpu_s >= 0.19 and effort.queued_s >= 0 and effort.drawn == 6
    assert effort_of([process.pid], [outcome]).cpu_s == 0, "a process that has ended is none"
