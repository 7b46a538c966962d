"""How a rank was started: the processes above it, their end, and the command that was typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.distributed.processes import (
    STARTED_BY,
    Launcher,
    from_launcher,
    launcher_name,
    launchers,
    start_of,
    without_rank,
)
from tests.command import ROOT, Commands


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/venv/bin/python", "/venv/bin/deepspeed", "--num_gpus", "2", "run.py"], "deepspeed"),
        (["python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x"], "deepspeed.launcher.launch"),
        (["python", "-m", "torch.distributed.run", "run.py"], "torch.distributed.run"),
        (["/venv/bin/torchrun", "run.py"], "torchrun"),
        (["accelerate", "launch", "run.py"], "accelerate"),
        (["bash", "-c", "deepspeed run.py"], None),
        (["python", "pretrain/run.py", "name=torchrun"], None),
        (["sshd"], None),
        ([], None),
    ],
)
def test_what_is_a_launcher(words: list[str], name: str | None) -> None:
    assert launcher_name(words) == name


LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
RANK = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pretrain.distributed.processes import launchers
from pretrain.engine.session import StopRequest
request = StopRequest()
request.watch_launchers(launchers())
print(request.check(), flush=True)
deadline = time.monotonic() + 60
while request.check() is None and time.monotonic() < deadline:
    time.sleep(0.05)
print(request.reason, flush=True)
"""


def test_a_killed_launcher_is_noticed(command: Commands, tmp_path: Path) -> None:
    (tmp_path / "torchrun").write_text(LAUNCHER)
    (tmp_path / "rank.py").write_text(RANK)
    process = command.start("python", tmp_path / "torchrun", tmp_path / "rank.py")
    assert process.stdout is not None and process.stdout.readline() == "None\n"
    os.kill(process.pid, signal.SIGKILL)  # and not waited for: a zombie is not a process
    assert process.stdout.readline() == f"its launcher is gone: torchrun (process {process.pid})\n"


def test_a_stage_that_starts_runs_is_one_too() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stage:
        (found,) = launchers({STARTED_BY: str(stage.pid)})
        assert not found.is_gone and found.pid == stage.pid
        stage.kill()
        deadline = time.monotonic() + 30
        while not found.is_gone:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert launchers({STARTED_BY: str(stage.pid)})[0].is_gone, "also where it ended before the run began"


def test_another_process_with_the_same_id_is_another() -> None:
    assert not Launcher("me", os.getpid(), start_of(os.getpid())).is_gone
    assert Launcher("me", os.getpid(), "1").is_gone
    assert launchers({}) == [] or all(one.started is not None for one in launchers({}))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["python", "/venv/bin/deepspeed", "--num_gpus", "2", "run.py"], ["deepspeed", "--num_gpus", "2", "run.py"]),
        (["/venv/bin/torchrun", "run.py"], ["torchrun", "run.py"]),
        (["timeout", "9", "/usr/bin/srun", "run.py"], ["srun", "run.py"]),
        (["python", "run.py", "--note", "deepspeed"], []),
        ([], []),
    ],
)
def test_from_the_launcher_on(words: list[str], expected: list[str]) -> None:
    assert from_launcher(words) == expected


def test_what_launchers_add_is_left_out() -> None:
    assert without_rank(["run.py", "--local_rank=1", "--config", "x"]) == ["run.py", "--config", "x"]


def test_under_torchrun_and_alone(command: Commands, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import json, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from pretrain.distributed.processes import invocation\nprint(json.dumps(invocation()))\n"
    )
    alone = command.run("python", script, "optim.lr=1", check=True).stdout
    assert json.loads(alone) == ["python", str(script), "optim.lr=1"]
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    typed = ["--standalone", "--nproc_per_node", "1", str(script), "optim.lr=1"]
    launched = command.run("python", torchrun, *typed, check=True).stdout
    assert json.loads(launched) == ["torchrun", *typed]


def test_the_start_of_a_process_is_known_to_a_tick(command: Commands) -> None:
    before = time.time()
    script = "import time; from pretrain.distributed.processes import started_at; print(started_at(), time.time())"
    started, told = map(float, command.run("python", "-c", script, check=True).stdout.split())
    assert before - 0.02 <= started <= told
