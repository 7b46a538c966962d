"""The first process of a pod, with small processes as ranks: variables, signals, and the code that it ends with."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import pytest

from pipelines.k8s import node
from tests.command import Commands

SLEEP = "import time; time.sleep(60); raise SystemExit(99)"
# The two ranks, and the exit code of the pod.
ENDS = {
    "both are done": ("", "", 0),
    "a config error": ("raise SystemExit(2)", SLEEP, 2),
    "stopped": ("raise SystemExit(75)", "import time; time.sleep(0.3); raise SystemExit(75)", 75),
    "a crash": (SLEEP, "raise SystemExit(1)", 1),
    "a hang": (SLEEP, "raise SystemExit(70)", 70),
    "killed": ("import os; os.kill(os.getpid(), 9)", SLEEP, 137),
}


def words(command: str, *, stop_s: float = 0.2) -> list[str]:
    return ["--nodes", "2", "--ranks", "2", "--start-s", "60", "--stop-s", str(stop_s), "--", "-c", command]


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the second pod. (Its signal handlers would be those of the test.)"""
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)


@pytest.mark.parametrize("case", ENDS)
def test_the_exit_code_is_that_of_the_first_rank_that_failed(pod: None, case: str) -> None:
    first, second, expected = ENDS[case]
    command = f"import os\nif os.environ['RANK'] == '2':\n    {first or 'pass'}\nelse:\n    {second or 'pass'}"
    assert node.main(words(command)) == expected


def test_each_rank_knows_its_place(pod: None, tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    command = f"import os; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(' '.join(map(os.environ.get, {names})))"
    assert node.main(words(command)) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"2": "2 0 4 2", "3": "3 1 4 2"}


def test_a_signal_to_the_pod_reaches_the_ranks(command: Commands) -> None:
    ready = "print('ready\\n', end='', flush=True)"  # one write: those of two ranks must not mix
    rank = f"import signal, time; signal.signal(15, lambda *_: exit(75)); {ready}; time.sleep(1000)"
    env = {"JOB_COMPLETION_INDEX": "0", "MASTER_ADDR": "localhost"}
    process = command.start(sys.executable, "-m", "pipelines.k8s.node", *words(rank, stop_s=600), env=env)
    assert process.stdout is not None
    assert "node 0 of 2" in process.stdout.readline()
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "ready\n"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert process.returncode == 75


def test_a_first_pod_that_never_comes(
    pod: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*arguments: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert node.main(["--nodes", "2", "--ranks", "1", "--start-s", "0", "--", "-c", ""]) == 70
    assert "localhost, has no address after 0 s" in capsys.readouterr().err
