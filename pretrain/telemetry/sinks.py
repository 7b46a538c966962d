"""Where measurements go: a JSON line each in metrics.jsonl, TensorBoard, Weights & Biases. Only rank 0 has sinks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

from pretrain.config.schema.telemetry import WandbConfig
from pretrain.errors import SetupError


class Sink(Protocol):
    """Takes one event: a kind (train, eval, save, resume, …), the step and its numbers."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """Appends lines to metrics.jsonl; a resumed run goes on in the same file, the later line of a step counts."""

    def __init__(self, path: Path) -> None:
        _end_last_line(path)
        self._file = open(path, "a", buffering=1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **values}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Event files; what a killed run wrote after the step it resumes from is purged from the display."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases, online or in files that ``wandb sync`` sends later.

    A run that is resumed goes on under the same id; of the steps that it repeats the service keeps the first lines.

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


def read_metrics(path: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """Step → the last line of this kind for it; a line cut short by a kill is passed over."""
    lines: dict[int, dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["kind"] == kind:
            lines[line["step"]] = line
    return lines


def _end_last_line(path: Path) -> None:
    """A kill may have cut the last line: ends it, so that the next line stands alone."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with open(path, "a") as file:
            file.write("\n")
