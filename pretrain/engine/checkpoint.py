"""Atomic checkpoints; ``loading.py`` reads them.

``step-00000100.tmp/`` → every rank writes → fsync → ``COMPLETE.json`` (files, sizes, hashes) → rename. A folder without
the suffix is complete by construction; its hashes are checked again before it is trusted.

``begin_save`` only copies the slices to host memory; a thread writes them (``saving.py``). ``advance``, called at every
boundary, continues the save: once all ranks have reported that their slices are on disk, rank 0's thread completes the
checkpoint. ``finish_save`` waits for that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain import disk
from pretrain.distributed.collectives import broadcast_object, gather_objects, raise_together
from pretrain.engine import loading, saving
from pretrain.engine.backend import MASTER, Backend
from pretrain.engine.checkpoint_folder import (
    FORMAT_VERSION,
    STATE,
    WEIGHTS,
    final_path,
    has_marker,
    publish,
    read_marker,
    seal,
    temporary_path,
    write_marker,
)
from pretrain.engine.fast_folder import Part
from pretrain.engine.fast_saving import FastTier
from pretrain.engine.loading import Reading, marker_entries
from pretrain.engine.mirror import Mirror
from pretrain.engine.retention import Keeper
from pretrain.engine.saving import Origin, Save, SavePolicy, bytes_to_write, no_space
from pretrain.engine.session import Session
from pretrain.engine.slices import HostCopy, SliceReader, rank_file, write_slices
from pretrain.engine.state import TrainState
from pretrain.errors import CheckpointError, ConfigError, UserError
from pretrain.files import make_folders, remove_tree, write_atomic
from pretrain.optim.schedule_free import Z


@dataclass
class Checkpointer:
    """Saves and loads the state of one run.

    Attributes:
        session: this process; checkpoints are in ``session.folder.checkpoints``.
        backend: the model whose state is saved.
        write_weights: (path, parameter name → fp32 tensor) → writes the plain weights file with its metadata.
        probe: the loss of a fixed batch in evaluation mode, compared after a load; None if there is none.
        schedule: state → learning rate of its next update.
        origin: the training that the checkpoint comes from.
        policy: how checkpoints are written and which are kept.
        own_average: the optimiser's (``OptimConfig.own_average``); plain weights files have it in place of the weights.
        mirror: copies complete checkpoints to an object store; None: they are not copied.
        fast: the fast checkpoints on the nodes; None: there are none.
        failure: why the newest save failed; None if it did not.
        attempt_before: of the checkpoint that this start continues from; after the loss of the run folder, starts are
            counted from 1 again, and checkpoints must not seem older than those before.
    """

    session: Session
    backend: Backend
    write_weights: Callable[[Path, dict[str, Tensor]], None]
    probe: Callable[[], Reading | None]
    schedule: Callable[[TrainState], float]
    origin: Origin
    policy: SavePolicy
    own_average: float | None
    mirror: Mirror | None = None
    fast: FastTier | None = None
    failure: str | None = field(default=None, init=False)
    attempt_before: int = field(default=0, init=False)
    _save: Save | None = field(default=None, init=False)
    _saved: float = field(default_factory=time.monotonic, init=False)
    _copy: HostCopy = field(default_factory=HostCopy, init=False)
    _metrics: tuple[int, Mapping[str, float]] = field(default=(-1, {}), init=False)
    _keeper: Keeper = field(init=False)

    @property
    def folder(self) -> Path:
        """``runs/NAME/checkpoints``."""
        return self.session.folder.checkpoints

    @property
    def seconds_since_save(self) -> float:
        """Since the last save began, or since this start of the run."""
        return time.monotonic() - self._saved

    def __post_init__(self) -> None:
        mirror = self.mirror
        in_use: Callable[[], set[int]] = set if mirror is None else lambda: mirror.steps
        self._keeper = Keeper(self.folder, self.policy.retention, self.session.say, in_use)

    def begin_save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Begins to save this step, and finishes it unless saves are asynchronous. Collective: yes.

        Args:
            state: the position of the run.
            metrics: metrics measured at this step; None: those given to ``evaluated``.

        Raises:
            CheckpointError: a rank could not write and ``stop_on_error`` is set; older checkpoints are unchanged.
        """
        self.finish_save()
        began, step = time.monotonic(), state.step
        self._saved = began
        if metrics is None:
            metrics = self._metrics[1] if self._metrics[0] == step else {}
        marker, statistics = self._read(state, metrics)
        tensors, header = self._copy.take(self.backend.slices())
        paths = temporary_path(self.folder, step), final_path(self.folder, step)
        save = self._save = Save(step, *paths, state.to_dict(), marker, statistics, began)
        if not self._prepared(save.temporary, tensors):
            return
        save.start(partial(self._write_slices, save.temporary, tensors, header), saving.WRITING)
        if not self.policy.asynchronous:
            self.finish_save()

    def begin_fast_save(self, state: TrainState) -> None:
        """Begins to save this step on the nodes; none is in flight there. Collective: yes."""
        assert self.fast is not None
        marker, statistics = self._read(state, {})
        tensors, header = self.fast.copy.take(self.backend.slices())
        self.fast.begin(Part(tensors, header, statistics, marker, state.to_dict(), self.origin.config_yaml))

    def _read(self, state: TrainState, metrics: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Running statistics, and the content of COMPLETE.json known before files are written. Collective: yes."""
        self.backend.statistics.unify()
        reading = self.probe()
        marker = {
            "format": FORMAT_VERSION,
            "step": state.step,
            "world_size": self.session.rank.world,
            "attempt": max(self.session.folder.attempt, self.attempt_before + 1),
            "config_digest": self.origin.config_digest,
            "data_digest": self.origin.data_digest,
            "precision": self.origin.precision,
            **marker_entries(reading),
            "lr": self.schedule(state),
            "metrics": dict(metrics),
        }
        return marker, {name: tensor.cpu() for name, tensor in self.backend.statistics.read().items()}

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> Path:
        """``begin_save`` and ``finish_save``: the checkpoint is complete when it returns. Collective: yes."""
        self.begin_save(state, metrics)
        self.finish_save()
        return final_path(self.folder, state.step)

    @property
    def progress(self) -> int:
        """This rank's progress with the save in flight, to be reported at the boundary of a step."""
        return saving.IDLE if self._save is None else self._save.progress

    @property
    def copying(self) -> int:
        """This rank's progress with the copy in flight, likewise."""
        return saving.IDLE if self.mirror is None else self.mirror.progress

    @property
    def copy_failure(self) -> str | None:
        """Why the newest copy failed; None if it did not."""
        return None if self.mirror is None else self.mirror.failure

    def advance(self, progress: list[float], copying: list[float]) -> None:
        """Continues what is in flight once every rank has done its part. Collective: if something is in flight.

        Args:
            progress: of every rank with its save, as reported at this boundary.
            copying: of every rank with its copy.
        """
        if self.mirror is not None:
            self.mirror.advance(copying)
        self._advance_save(progress)

    def _advance_save(self, progress: list[float]) -> None:
        """Continues the save in flight once every rank has done its part. Collective: if one is in flight.

        Args:
            progress: of every rank, as reported at this boundary.
        """
        stage = saving.all_ranks_are(progress)
        if self._save is None or stage in (saving.WRITING, saving.COMPLETING):
            return
        save, error = self._save, self._save.error
        if stage == saving.FAILED:
            self._succeeds(None if error is None else CheckpointError(str(error)), "writing a checkpoint")
        elif stage == saving.WRITTEN:
            records = gather_objects(save.result)
            save.files = {name: entry for record in records for name, entry in record["files"].items()}
            save.start(partial(self._complete, save, records) if self.session.rank.is_main else None, saving.COMPLETING)
        elif stage == saving.COMPLETE:
            self._save, self.failure = None, None
            self.session.say(f"step {save.step}: saved {save.final} in {time.monotonic() - save.began:.2f} s")
            if self.mirror is not None:
                shared = save.result if self.session.rank.is_main else {}
                self.mirror.add(save.step, save.final, save.files | shared)

    def finish_save(self) -> None:
        """Waits until no save is in flight. Collective: if one is. Raises: as ``begin_save``."""
        while self._save is not None:
            self._save.join()
            self._advance_save(gather_objects(self._save.progress))

    def finish(self) -> None:
        """Waits until no save and no copy is in flight. Collective: if one is. Raises: as ``begin_save``."""
        self.finish_save()
        if self.mirror is not None:
            self.mirror.finish()
            if self.session.rank.is_main:
                self._prune()  # those that were kept to be copied

    def _prepared(self, temporary: Path, tensors: Mapping[str, Tensor]) -> bool:
        """Creates the folder and checks for free space; False: the save was abandoned."""
        needed = sum(gather_objects(bytes_to_write(tensors)))
        error: CheckpointError | None = None
        if self.session.rank.is_main:
            try:
                remove_tree(temporary)
                make_folders(temporary / "slices")
                error = no_space(self.folder, needed, disk.current.free_bytes(temporary))
            except OSError as failure:
                error = CheckpointError(f"checkpoint folder {temporary} cannot be made: {failure}")
        return self._succeeds(error, "preparing a checkpoint")

    def _succeeds(self, error: CheckpointError | None, doing: str) -> bool:
        """True if no rank has an error; otherwise abandons the save. Collective: yes."""
        assert self._save is not None
        save = self._save
        try:
            raise_together(error, doing=doing)
            return True
        except UserError as failure:
            self._save, self.failure = None, str(failure)
            if self.session.rank.is_main:  # the partial files take space that the next attempt needs
                remove_tree(save.temporary)
            if self.policy.stop_on_error:
                raise
            self.session.say(
                f"step {save.step}: no checkpoint: {failure}; older ones are as they were, and the training continues "
                "(checkpoint.on_error: continue)"
            )
            return False

    def _write_slices(self, temporary: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> dict[str, Any]:
        """This rank's part, run in the thread: writes its file and returns its record."""
        rank = self.session.rank
        name = rank_file(rank.rank)
        try:
            write_slices(temporary / name, tensors, header)
            return {"files": {name: seal(temporary / name)}, "squares": loading.squares_by_state(tensors)}
        except Exception as failure:  # any failure must reach the other ranks at the next boundary
            raise CheckpointError(
                f"rank {rank.rank} on {rank.host} could not write {temporary / name}: {failure}"
            ) from failure

    def _complete(self, save: Save, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Rank 0's part, run in the thread: completes the checkpoint, then removes old ones.

        Returns:
            name → size and hash of the files that it wrote.
        """
        try:
            shared = self._write_shared_files(save)
            norms = loading.norms_of([record["squares"] for record in records])
            write_marker(save.temporary, {**save.marker, "norms": norms, "files": save.files | shared})
            publish(save.temporary, save.final)
        except Exception as failure:
            raise CheckpointError(f"checkpoint {save.final} could not be completed: {failure}") from failure
        self._keeper.trust(save.final)
        self._prune()
        return shared

    def _prune(self) -> None:
        """Removes older checkpoints; a failure here does not affect those that are kept."""
        try:
            self._keeper.prune()
        except (OSError, CheckpointError) as failure:
            self.session.say(f"warning: older checkpoints could not be removed: {failure}")

    def _write_shared_files(self, save: Save) -> dict[str, Any]:
        """Writes plain weights, position and config. The weights are assembled from slices, without a collective."""
        folder = save.temporary
        write_atomic(folder / STATE, json.dumps(save.state, indent=1))
        write_atomic(folder / "config.resolved.yaml", self.origin.config_yaml)
        reader = SliceReader(folder, range(self.session.rank.world))
        written = [STATE, "config.resolved.yaml"]
        for file, state_name in WEIGHTS.items():
            if state_name in reader.states():
                names = reader.parameter_names()
                tensors = {name: self._as_evaluated(reader, state_name, name) for name in names}
                self._write_plain(folder / file, tensors | save.statistics)
                written.append(file)
        return {name: seal(folder / name) for name in written}

    def _as_evaluated(self, reader: SliceReader, state: str, name: str) -> Tensor:
        """One complete tensor of a plain weights file: of the weights, the optimiser's own average if it keeps one."""
        tensor = reader.full(state, name)
        if self.own_average is None or state != MASTER or f"{Z}:{name}" not in reader.shapes:  # the last: it is frozen
            return tensor
        return tensor.lerp_(reader.full(Z, name), self.own_average)

    def _write_plain(self, path: Path, tensors: dict[str, Tensor]) -> None:
        disk.current.write_with(path, lambda path: self.write_weights(path, tensors))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Records the metrics of a step, for ``keep_best``. Collective: if that is set.

        Returns:
            True if a checkpoint of this step would be the best and so should be saved.

        Raises:
            ConfigError: ``keep_best`` is not one of the metrics.
        """
        best = self.policy.retention.keep_best
        if best is None:
            return False
        if best not in metrics:
            raise ConfigError(f"checkpoint.keep_best: {best} was not measured; possible: {', '.join(sorted(metrics))}")
        self._metrics = (step, metrics)
        self.finish_save()
        path = final_path(self.folder, step)
        improves = False
        if self.session.rank.is_main:
            try:
                if has_marker(path):  # the last step is saved before it is evaluated
                    write_marker(path, read_marker(path) | {"metrics": dict(metrics)})
                    if self.mirror is not None:
                        self.mirror.remark(step, path)
                    self._keeper.trust(path)
                    self._prune()
                improves = self._keeper.improves(metrics)
            except (OSError, CheckpointError) as failure:
                self.session.say(f"warning: {path} could not be marked with its metrics: {failure}")
        return broadcast_object(improves)

    def load(self, path: Path, marker: dict[str, Any]) -> TrainState:
        """Fills weights and optimiser from a checkpoint of any layout and verifies them. Collective: yes.

        Raises:
            CheckpointError: a tensor is missing or differs in shape, or what was loaded is not what was saved.
        """
        return loading.load(path, marker, self.backend, self.origin, self.probe, self.session.say)
