"""Results for a page: those that ``evaluate`` has written, and those that the page asks it for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.report.series import RunView
from pipelines.weights.results import Result
from pretrain.errors import SetupError


def results(views: Sequence[RunView], folders: Sequence[Path], split: str | None, out: Path) -> list[Result]:
    """The results in ``folders``; with ``split`` also those of every run on that split.

    Args:
        views: the runs.
        folders: of ``evaluate``.
        split: a packed split to evaluate the runs on; None: none.
        out: the page, beside which the new results go.

    Raises:
        DataError: a folder cannot be used. SetupError: an evaluation failed.
    """
    found = [Result.read(folder) for folder in folders]
    if split is not None:
        beside = out.with_name(f"{out.stem}_results")
        found += [_evaluated(view.record.path, split, beside / view.name) for view in views]
    return found


def _evaluated(run: Path, split: str, folder: Path) -> Result:
    """Runs ``evaluate`` in a process of its own, as a user would."""
    command = [sys.executable, "-m", "pipelines", "evaluate", split, "--from", str(run), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("error: ") if said else f"it left with {done.returncode}"
        raise SetupError(f"--evaluate {split}: {run} cannot be evaluated: {reason}")
    return Result.read(folder)
