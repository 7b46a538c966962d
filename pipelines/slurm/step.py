"""One job step under supervision: srun's messages, silent ranks, and an end of the survivors in bounded time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipelines.slurm.diagnosis import Silence, TaskEnd, gives_up, read_task_end
from pretrain import threads
from pretrain.distributed.heartbeats import Beat, read_beats
from pretrain.distributed.watchdog import ANSWER_S, within

POLL_S = 0.2
BEATS_EVERY_S = 2.0
PROBE_LIMIT_S = 20.0
ABANDON_S = 15.0  # for srun to end after it was told to kill the ranks; a dead node does not answer it


class Step:
    """A running srun. What it writes to standard error goes on to ours, and is read.

    Args:
        words: the command.
        environment: variables besides this process's.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.ends: list[TaskEnd] = []
        self.gave_up = False  # srun has left although some ranks had not ended
        self.process = subprocess.Popen(words, env={**os.environ, **environment}, stderr=subprocess.PIPE)
        self._reader = threads.start("srun", self._read)

    def signal(self, number: int) -> None:
        """Sends srun a signal. It hands USR1 to the ranks; at TERM it kills them."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def finish(self) -> int:
        """The exit code, when everything that srun said is read; a signal's number + 128 as in a shell."""
        code = self.process.wait()
        self._reader.join(ANSWER_S)
        return 128 - code if code < 0 else code

    def _read(self) -> None:
        assert self.process.stderr is not None
        line = b""
        with self.process.stderr as stream:
            while content := os.read(stream.fileno(), 1 << 16):
                with contextlib.suppress(OSError):  # the log's disk may be full; srun must not block
                    sys.stderr.buffer.write(content)
                    sys.stderr.buffer.flush()
                *lines, line = (line + content).split(b"\n")
                texts = [each.decode(errors="replace") for each in lines]
                self.gave_up = self.gave_up or any(map(gives_up, texts))
                ends = [read_task_end(text, time.time()) for text in texts]
                self.ends += [end for end in ends if end is not None]


class Watch:
    """Looks after a step until it has ended, and ends it when a rank has failed.

    Args:
        step: the step.
        heartbeats: the folder of the run's heartbeats.
        silent_s: seconds without a heartbeat after which a rank counts as dead.
        stop_s: seconds that the survivors get to end after a failure, before they are killed.
        look: called at each poll, until it returns False.
    """

    def __init__(
        self, step: Step, heartbeats: Path, *, silent_s: float, stop_s: float, look: Callable[[], bool]
    ) -> None:
        self.step, self._heartbeats, self._stop_s, self._look = step, heartbeats, stop_s, look
        self.beats: list[Beat] = []
        self.silent: list[tuple[Beat, float]] = []
        self.detected_at: float | None = None
        self.was_abandoned = False
        self._silence = Silence(silent_s, self._read())

    def until_the_end(self) -> None:
        """Returns when srun has ended."""
        looks, next_beats, killed_at = True, 0.0, None
        while self.step.process.poll() is None:
            time.sleep(POLL_S)
            looks = looks and self._look()
            now = time.monotonic()
            if now >= next_beats and killed_at is None:
                next_beats = now + BEATS_EVERY_S
                self._look_for_silence(now)
            if self.detected_at is None and (self.step.ends or self.silent):
                self.detected_at, detected = time.time(), now
            if self.detected_at is None:
                continue
            if killed_at is None and (self.silent or now - detected > self._stop_s):
                killed_at = now
                self.step.signal(signal.SIGTERM)
            if killed_at is not None and now - killed_at > ABANDON_S:
                self.was_abandoned = True
                self.step.process.kill()

    def _look_for_silence(self, now: float) -> None:
        self.beats = self._read() or self.beats
        self.silent = self._silence.look(self.beats, now)

    def _read(self) -> list[Beat]:
        """The newest beats; none if the file system does not answer."""
        found: list[Beat] = []
        within(ANSWER_S, lambda: found.extend(read_beats(self._heartbeats)))
        return list(found)


def unreachable(nodes: Sequence[str]) -> set[str]:
    """Those of the nodes that start no task within ``PROBE_LIMIT_S``, all asked at the same time."""
    asked = ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--gres=none", "--immediate=10"]
    # The job's GPUs per node contradict --gres=none, and Slurm would then refuse the step on every node.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_GPUS")}
    probes = {
        node: subprocess.Popen(
            [*asked, f"--nodelist={node}", "true"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for node in nodes
    }
    deadline, dead = time.monotonic() + PROBE_LIMIT_S, set()
    for node, probe in probes.items():
        try:
            code = probe.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            probe.kill()
            probe.wait()
            code = 1
        if code:
            dead.add(node)
    return dead
