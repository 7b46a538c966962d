"""The record of a step whose loss or gradient was not finite, so that ``replay`` can run that step again.

RUN/nonfinite/step-00000009-at-000000000512/     the step, and its position in the stream
    capture.json           position, every rank's loss and sample ids; written last, so it marks a complete folder
    config.resolved.yaml   the settings, from whose seed crops, masks and mixing follow
    slices/                the fp32 weights, as in a checkpoint

A skipped update changes no weight, so the skipped steps of a row share the weights of the first. The numbers of
captures and of copies of the weights are limited. A disk that fails costs the capture, never the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain import disk, records
from pretrain.distributed.collectives import broadcast_object, gather_objects
from pretrain.engine.backend import MASTER, Backend, HeldSlice
from pretrain.engine.session import Session
from pretrain.engine.slices import HostCopy, rank_file, write_slices
from pretrain.engine.state import TrainState
from pretrain.files import make_folders, remove_tree, write_atomic

FOLDER, FILE, CONFIG = "nonfinite", "capture.json", "config.resolved.yaml"
MOST_STEPS, MOST_WEIGHTS = 32, 3  # captures of a run, and those with weights
_NAME = re.compile(r"step-(\d{8})-at-(\d{12})")
SHAPE: records.Shape = {
    **dict.fromkeys(("step", "world_size", "accumulation_steps", "batch_digest"), records.whole),
    **dict.fromkeys(("loss", "grad_norm", "lr"), records.number),
    **dict.fromkeys(("backend", "weights"), records.text),
    "state": records.fields,
    "ranks": records.each(records.fields),
}


def capture_name(step: int, position: int) -> str:
    """The folder of a step that began so many samples into the stream."""
    return f"step-{step:08d}-at-{position:012d}"


def captures_of(run: Path) -> list[Path]:
    """The complete captures of a run, in the order of their positions in the stream."""
    try:
        names = [name for name in disk.current.entries(run / FOLDER) if _NAME.fullmatch(name)]
    except OSError:
        return []
    folders = [run / FOLDER / name for name in names]
    return sorted((path for path in folders if disk.current.exists(path / FILE)), key=lambda path: path.name[-12:])


def step_of_capture(path: Path) -> int:
    """The step of a capture's folder."""
    return int(path.name[5:13])


def weights_only(held: list[HeldSlice]) -> list[HeldSlice]:
    """The slices without optimiser states and averages."""
    return [replace(piece, states={MASTER: piece.states[MASTER]}) for piece in held if MASTER in piece.states]


@dataclass
class Captures:
    """Keeps the skipped steps of a run.

    Attributes:
        session: this process.
        backend: the model.
        config_yaml: the resolved config.
        sample_ids: of each micro-batch that this rank has drawn for the present step.
    """

    session: Session
    backend: Backend
    config_yaml: str
    sample_ids: list[Tensor] = field(default_factory=list)

    def keep(self, before: TrainState, skipped_from: int, own_loss: float, about: Mapping[str, Any]) -> None:
        """Keeps the step that was just skipped. Collective: yes.

        Args:
            before: the state before the step.
            skipped_from: position of the first step of those that were skipped in a row.
            own_loss: of this rank.
            about: loss, gradient norm and other numbers of the step, equal on all ranks.
        """
        session, skipped = self.session, before.skipped_in_a_row
        name = capture_name(before.step + 1, before.position)
        first = capture_name(before.step + 1 - skipped, skipped_from)
        folder = session.folder.path / FOLDER / name
        wanted, problem = broadcast_object(self._prepare(folder, with_weights=not skipped))
        ids = [sample_ids.tolist() for sample_ids in self.sample_ids]
        failure = self._write_weights(folder) if wanted and not skipped and problem is None else None
        found = gather_objects(({"loss": own_loss, "sample_ids": ids}, failure))
        if not wanted or not session.rank.is_main:
            return
        problem = problem or next((failure for _, failure in found if failure is not None), None)
        try:
            if problem is None:
                write_atomic(folder / CONFIG, self.config_yaml)
                step = {"step": before.step + 1, "state": before.to_dict(), "weights": first, **about}
                step |= {"world_size": session.rank.world, "backend": self.backend.name}
                records.write(folder / FILE, {**step, "ranks": [rank for rank, _ in found]})
        except OSError as error:
            problem = str(error)
        if problem is not None:
            remove_tree(folder)
            session.say(f"warning: step {before.step + 1} may not be kept for a replay: {problem}")
        else:
            session.say(f"step {before.step + 1}: kept for python -m pipelines replay in {folder}")

    def _prepare(self, folder: Path, *, with_weights: bool) -> tuple[bool, str | None]:
        """On rank 0: whether the step is to be kept, and why it cannot be."""
        if not self.session.rank.is_main:
            return False, None
        try:
            kept = captures_of(self.session.folder.path)
            if folder in kept:  # by a start that was killed since
                return False, None
            if len(kept) >= MOST_STEPS or (with_weights and sum(map(_has_weights, kept)) >= MOST_WEIGHTS):
                return True, f"{folder.parent} is full ({len(kept)} steps); remove it to keep more"
            remove_tree(folder)
            make_folders(folder / "slices" if with_weights else folder)
        except OSError as error:
            return True, str(error)
        return True, None

    def _write_weights(self, folder: Path) -> str | None:
        """Writes this rank's weights; returns why it failed."""
        rank = self.session.rank
        try:
            write_slices(folder / rank_file(rank.rank), *HostCopy().take(weights_only(self.backend.slices())))
        except Exception as error:  # of the disk or of safetensors: every rank must come to the next collective
            return f"rank {rank.rank} on {rank.host}: {error}"
        return None


def _has_weights(capture: Path) -> bool:
    return disk.current.exists(capture / "slices")
