"""The command that a person typed, found among the processes above this one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pretrain.distributed.invocation import from_launcher, without_rank
from tests.command import ROOT, Commands


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
        "from pretrain.distributed.invocation import invocation\nprint(json.dumps(invocation()))\n"
    )
    alone = command.run("python", script, "optim.lr=1", check=True).stdout
    assert json.loads(alone) == ["python", str(script), "optim.lr=1"]
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    typed = ["--standalone", "--nproc_per_node", "1", str(script), "optim.lr=1"]
    launched = command.run("python", torchrun, *typed, check=True).stdout
    assert json.loads(launched) == ["torchrun", *typed]
