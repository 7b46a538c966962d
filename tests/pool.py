"""Pools of ranks that are started once and run many cases: a multi-rank test costs milliseconds, not ten seconds.

One nursery process (pool_worker.py) imports torch and deepspeed once and forks ranks on request; they join one gloo
group over loopback and then wait for functions. This side imports no torch.

A case that hangs, or that fails on any rank, gets its pool killed; the next case starts a fresh one (below a second).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 300.0  # the first import of torch and deepspeed on a cold disk
CASE_LIMIT_S = 240.0
GRACE_S = 2.0  # after the first rank failed, the others may compute on, but not wait for longer than this
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "GLOO_SOCKET_IFNAME": "lo",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
}


class Failure(NamedTuple):
    """How a case ended on one rank that did not return."""

    kind: str  # the exception's class name, or "hang"
    text: str  # traceback, or the stacks of a rank that hangs


class RankFailureError(AssertionError):
    """A case failed on at least one rank. ``failures`` maps rank → Failure."""

    def __init__(self, case: str, failures: dict[int, Failure], log: str) -> None:
        parts = [f"--- rank {rank}: {failure.kind}\n{failure.text}" for rank, failure in sorted(failures.items())]
        super().__init__(f"{case} failed on rank {sorted(failures)}\n" + "\n".join(parts) + f"\n--- output\n{log}")
        self.failures = failures


class Nursery:
    """The process that has torch and deepspeed imported and forks ranks. It ends, with its ranks, when we do."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pool-")
        self.folder = Path(self._folder.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def fork(self, size: int, address: str, prefix: str) -> None:
        """Asks for ``size`` ranks that connect to ``address``."""
        if self._process is None or self._process.poll() is not None:
            self._log = (self.folder / "nursery.log").open("ab")
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(ROOT / "tests" / "pool_worker.py")],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        order = {"size": size, "address": address, "prefix": prefix, "port": _free_port()}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._log is not None:
            self._log.close()
        self._folder.cleanup()


class Pool:
    """``size`` ranks that run functions together."""

    def __init__(self, size: int, nursery: Nursery) -> None:
        self.size = size
        self._nursery = nursery
        self._ranks: dict[int, tuple[Connection, int]] = {}  # rank → connection, process id
        self._starts = 0

    def run(
        self, function: Callable[..., Any], *args: Any, timeout_s: float = CASE_LIMIT_S, env: Mapping[str, str] = {}
    ) -> list[Any]:
        """Calls ``function(*args)`` on every rank, inside the process group, and returns what each rank returned.

        Args:
            function: a module-level function of a test module or of the source; it finds its rank by
                ``torch.distributed.get_rank()`` or in ``RANK``.
            *args: the same for every rank; arguments and results travel by pickle.
            timeout_s: after this the pool is killed and the case fails with the stacks of the ranks that hang.
            env: environment variables during the call.

        Raises:
            RankFailureError: a rank raised, died or hung.
        """
        payload = _describe(function, args, env)
        try:
            self._start()
            for connection, _ in self._ranks.values():
                connection.send_bytes(payload)
            results, failures = self._collect(timeout_s)
        except BaseException:  # such as pytest's time limit: the ranks' answers would be taken for the next case's
            self.close()
            raise
        if failures:
            log = self._output()
            self.close()
            raise RankFailureError(function.__qualname__, failures, log)
        return [results[rank] for rank in range(self.size)]

    def close(self) -> None:
        """Kills the ranks; the next ``run`` starts fresh ones."""
        for connection, process_id in self._ranks.values():
            connection.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        self._ranks = {}

    def _start(self) -> None:
        if self._ranks:
            return
        self._starts += 1
        self._prefix = str(self._nursery.folder / f"pool{self.size}-{self._starts}")
        with Listener(f"{self._prefix}.socket", "AF_UNIX", backlog=self.size) as listener:
            self._nursery.fork(self.size, str(listener.address), self._prefix)
            deadline = time.monotonic() + START_LIMIT_S
            while len(self._ranks) < self.size:
                if not wait([_socket_of(listener)], timeout=0.5):
                    if time.monotonic() > deadline or not self._nursery.alive:
                        log = (self._nursery.folder / "nursery.log").read_text(errors="replace")
                        raise RuntimeError(f"the pool of {self.size} ranks did not start:\n{log}{self._output()}")
                    continue
                connection = listener.accept()
                rank, process_id = pickle.loads(connection.recv_bytes())
                self._ranks[rank] = (connection, process_id)

    def _collect(self, timeout_s: float) -> tuple[dict[int, Any], dict[int, Failure]]:
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        pending = {connection: rank for rank, (connection, _) in self._ranks.items()}
        deadline = last = time.monotonic() + timeout_s
        while pending:
            before = {rank: self._seconds_of_processor(rank) for rank in pending.values()}
            ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            computing = any(self._seconds_of_processor(rank) > before[rank] + 0.05 for rank in pending.values())
            if not ready and failures and computing and time.monotonic() < last:
                deadline = time.monotonic() + GRACE_S  # a busy machine, not a rank that waits for one that failed
                continue
            if not ready:
                failures |= {rank: Failure("hang", self._stacks(rank)) for rank in pending.values()}
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = pending.pop(connection)
                try:
                    outcome, *value = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    outcome, value = "failed", ["died", "the process ended"]
                if outcome == "returned":
                    results[rank] = value[0]
                else:
                    failures[rank] = Failure(*value)
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        return results, failures

    def _seconds_of_processor(self, rank: int) -> float:
        """Processor seconds of a rank so far; 0 when it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return sum(psutil.Process(self._ranks[rank][1]).cpu_times()[:2])
        return 0.0

    def _stacks(self, rank: int) -> str:
        """Makes a rank print the stacks of its threads (faulthandler on SIGUSR2) and returns them."""
        path = Path(f"{self._prefix}.rank{rank}.stacks")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._ranks[rank][1], signal.SIGUSR2)
            end, size = time.monotonic() + 20, 0
            while time.monotonic() < end and (size == 0 or path.stat().st_size > size):
                size = path.stat().st_size if path.exists() else 0
                time.sleep(0.3)
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def _output(self) -> str:
        logs = [Path(f"{self._prefix}.rank{rank}.log") for rank in range(self.size)]
        return "".join(f"[rank {i}]\n{p.read_text(errors='replace')[-4000:]}" for i, p in enumerate(logs) if p.exists())


def _socket_of(listener: Listener) -> Any:
    return listener._listener._socket  # type: ignore[attr-defined]  # the public class cannot be waited for


def _describe(function: Callable[..., Any], args: tuple[Any, ...], env: Mapping[str, str]) -> bytes:
    if "<" in function.__qualname__:
        raise TypeError(f"{function.__qualname__} cannot be sent to ranks: define it at the top of its module")
    module = sys.modules[function.__module__]
    order = (function.__module__, getattr(module, "__file__", None), function.__qualname__, dict(env))
    return pickle.dumps((order, pickle.dumps(args)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
