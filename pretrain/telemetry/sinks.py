"""Sinks of measurements: a JSON line each in metrics.jsonl, TensorBoard, Weights & Biases. Only rank 0 has sinks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

from pretrain import disk, records
from pretrain.config.schema.telemetry import WandbConfig
from pretrain.errors import SetupError
from pretrain.files import Journal

# A line of metrics.jsonl; figures that others compute with must be numbers.
LINE: records.Shape = {
    "kind": records.text,
    "step": records.whole,
    "time?": records.moment,
    **dict.fromkeys(("skipped_updates?", "bad_samples?"), records.whole),
    **dict.fromkeys(
        ("loss?", "lr?", "images_per_s?", "step_s?", "data_wait?", "mfu?", "seconds?", "samples?"), records.number
    ),
}


class Sink(Protocol):
    """Takes one event: a kind (train, eval, save, resume, …), the step and its numbers."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Delayed(Exception):
    """Lines that could not be written wait, and are written when that is possible again. Nothing is lost yet."""


class JsonlSink:
    """Appends lines to metrics.jsonl; a resumed run continues in the same file, and the later line of a step counts."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Raises: Delayed."""
        line = json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
        self._report(self._journal.add(line))

    def close(self) -> None:
        """Raises: Delayed: lines still wait, and are lost."""
        self._report(self._journal.flush())

    def _report(self, failure: OSError | None) -> None:
        if failure is not None:
            raise Delayed(f"{self._journal.path} cannot be written: {failure}")


class TensorBoardSink:
    """Event files; what a killed run wrote after the step it resumes from is purged from the display."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        disk.current.may_change(folder)
        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        disk.current.may_change(self._folder)
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases, online or in files that ``wandb sync`` sends later.

    A resumed run continues under the same id; of the steps that it repeats the service keeps the first lines.

    Args:
        folder: where wandb keeps its files (in a folder ``wandb`` below).
        config: project, entity, mode, tags.
        name: of the run.
        settings: the resolved experiment, shown beside the curves.
        run_id: equal for every start of one run.

    Raises:
        SetupError: the package is not installed, or refuses to start.
    """

    def __init__(self, folder: Path, config: WandbConfig, *, name: str, settings: dict[str, Any], run_id: str) -> None:
        try:
            import wandb
            from wandb.errors import Error as WandbError
        except ImportError as error:
            raise SetupError(
                "telemetry.wandb: the package wandb is not installed; pip install 'vit-pretrain[wandb]', or remove the "
                "setting"
            ) from error
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,
                tags=list(config.tags),
                name=name,
                id=run_id,
                resume="allow" if config.mode == "online" else None,
                dir=str(folder),
                config=settings,
                settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            )
        except (WandbError, OSError) as error:
            raise SetupError(
                f"telemetry.wandb: {error}; log in with `wandb login`, or use telemetry.wandb.mode: offline"
            ) from error

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


def _figure(value: Any) -> bool:
    return value is None or isinstance(value, (bool, str)) or records.number(value)


def is_line(line: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is one that a sink wrote: figures by name."""
    return records.misfit(line, LINE) is None and all(map(_figure, line.values()))


def read_metrics(path: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """Step → the last line of this kind for it; one that is damaged or was truncated by a kill is skipped."""
    return {line["step"]: line for line in records.read_lines(path, LINE).values if line["kind"] == kind}
