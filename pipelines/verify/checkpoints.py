"""The checkpoints of a run: on its disk, and their copies in ``checkpoint.mirror``, each read to its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.runs.run_record import RunRecord
from pipelines.terminal.output import counted
from pretrain.engine.checkpoint_folder import MARKER, complete_checkpoints, examine, step_of
from pretrain.engine.mirror_folder import MirrorFolder
from pretrain.engine.run_folder import RunFolder
from pretrain.errors import CheckpointError, ConfigError, DataError


@dataclass
class Place:
    """The checkpoints in one place.

    Attributes:
        where: the folder.
        intact: steps whose files all have the hashes of their marker.
        damaged: step → what is wrong.
        incomplete: steps of copies without a marker: uploads in flight or interrupted.
        problem: why the place cannot be read.
    """

    where: str
    intact: list[int] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    incomplete: list[int] = field(default_factory=list)
    problem: str | None = None

    def note(self, step: int, problem: str | None) -> None:
        """Records the finding about a checkpoint."""
        if problem is None:
            self.intact.append(step)
        else:
            self.damaged[step] = problem

    def lines(self) -> Iterator[str]:
        """The findings in words."""
        if self.problem is not None:
            yield f"{self.where}: {self.problem}"
            return
        steps = f", steps {', '.join(map(str, sorted(self.intact)))}" if self.intact else ""
        yield f"{self.where}: {counted(len(self.intact), 'intact checkpoint')}{steps}"
        yield from (f"  error: step {step}: {problem}" for step, problem in sorted(self.damaged.items()))
        yield from (
            f"  warning: step {step}: incomplete, an upload in flight or interrupted" for step in self.incomplete
        )


@dataclass
class Checkpoints:
    """The checkpoints of a run in all places."""

    run: str
    places: list[Place]

    @property
    def errors(self) -> list[str]:
        """Everything that is damaged or cannot be read; and that no place has an intact checkpoint."""
        found = [line.strip() for place in self.places for line in place.lines() if place.problem or "  error:" in line]
        return found if any(place.intact for place in self.places) else [*found, "no intact checkpoint anywhere"]

    def lines(self) -> list[str]:
        """The findings in words."""
        state = "WRONG" if self.errors else "ok"
        return [f"{self.run}: {state}", *(f"  {line}" for place in self.places for line in place.lines())]

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {"run": self.run, "places": [asdict(place) for place in self.places], "errors": self.errors}


def check_checkpoints(run: Path) -> Checkpoints:
    """Reads every checkpoint of a run and of its mirror.

    Raises:
        ConfigError: its config cannot be used, so it is not known whether there is a mirror.
    """
    record = RunRecord.read(run)
    if record.resolved is None:
        raise ConfigError(record.config_problem or f"{run} has no config.resolved.yaml: the run has not begun")
    places = [_on_disk(RunFolder(run).checkpoints)]
    if (mirror := MirrorFolder.of(record.resolved.experiment)) is not None:
        places.append(_in_store(mirror))
    return Checkpoints(str(run), places)


def _on_disk(folder: Path) -> Place:
    place = Place(str(folder))
    try:
        for path in complete_checkpoints(folder):
            place.note(step_of(path), examine(path)[1])
    except CheckpointError as error:
        place.problem = str(error)
    return place


def _in_store(mirror: MirrorFolder) -> Place:
    place = Place(mirror.address)
    try:
        for step, files in sorted(mirror.copies().items()):
            if MARKER in files:
                place.note(step, mirror.problem(step))
            else:
                place.incomplete.append(step)
    except DataError as error:
        place.problem = str(error)
    return place
