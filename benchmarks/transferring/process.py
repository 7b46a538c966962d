"""Inside the process of one run. Importing this file imports all that a training needs, so that a fork has it."""

from __future__ import annotations

import os
import time
import traceback
import warnings
from pathlib import Path

import accelerate  # noqa: F401
import timm  # noqa: F401
import torch

import pipelines.finetune
import pretrain.assembly
import pretrain.engine.accelerate_backend
import pretrain.run
from benchmarks.transferring.positions import NewPositions
from pretrain.files import write_atomic

MAINS = {"pretrain/run.py": pretrain.run.main, "pipelines/finetune.py": pipelines.finetune.main}


def execute(entry: str, arguments: list[str], folder: str, positions: NewPositions | None) -> None:
    """A run as from the command line, with its output in a file; leaves with its exit code.

    Args:
        entry: the script.
        arguments: the words after its name.
        folder: of the run.
        positions: weights to be written first.
    """
    os.setsid()
    output = os.open(Path(folder) / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    code, before = 1, time.process_time()
    try:
        if positions is not None:
            positions.write()
        code = MAINS[entry](arguments)
        write_atomic(Path(folder) / "cpu_seconds", f"{time.process_time() - before:.2f}")
    except BaseException:
        traceback.print_exc()
    pretrain.run.leave(code)
