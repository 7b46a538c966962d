"""Checkpoints that are there whole or not at all, and a resume that proves itself.

``step-00000100.tmp/`` → every rank writes → fsync → ``COMPLETE.json`` (files, sizes, hashes) → rename. A folder without
the suffix is complete by construction; its hashes are checked again before it is trusted.

At the boundary of a step the slices are only copied to host memory; a thread writes them (``saving.py``). When all
ranks have said at a later boundary that theirs are on the disk, rank 0's thread completes the checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain import disk
from pretrain.distributed.collectives import all_reduce_sum, broadcast_object, gather_objects, raise_together
from pretrain.distributed.rank import Rank
from pretrain.engine import saving
from pretrain.engine.backend import EMA, MASTER, Backend, HeldSlice
from pretrain.engine.checkpoint_folder import (
    FORMAT_VERSION,
    LOADED,
    MARKER,
    PLAIN_WEIGHTS,
    STATE,
    WEIGHTS,
    final_path,
    has_marker,
    publish,
    read_marker,
    read_state,
    seal,
    temporary_path,
    write_marker,
)
from pretrain.engine.retention import Keeper, Retention
from pretrain.engine.saving import Save
from pretrain.engine.self_check import Reading, judge, marker_entries
from pretrain.engine.slices import HostCopy, SliceReader, load_into, rank_file, write_slices
from pretrain.engine.state import TrainState
from pretrain.engine.statistics import RunningStatistics
from pretrain.errors import CheckpointError, ConfigError, UserError
from pretrain.files import make_folders, remove_tree, write_atomic


@dataclass
class Checkpointer:
    """Saves and loads the state of one run.

    Attributes:
        folder: ``runs/NAME/checkpoints``.
        write_weights: (path, parameter name → fp32 tensor) → writes the plain weights file with its metadata.
        probe: the loss of a fixed batch in evaluation mode, compared after a load; None where there is none.
        config_yaml, config_digest: saved with every checkpoint.
        schedule: learning rate that the state's next update would have.
        retention: which complete checkpoints stay.
        asynchronous: the training goes on while the files are written.
        stop_on_error: a save that fails ends the run; otherwise it is said and the run goes on.
        say: where a line for the user goes.
        failure: why the newest save failed; None where it did not.
    """

    folder: Path
    rank: Rank
    backend: Backend
    write_weights: Callable[[Path, dict[str, Tensor]], None]
    probe: Callable[[], Reading | None]
    config_yaml: str
    config_digest: str
    data_digest: str
    precision: str
    schedule: Callable[[TrainState], float]
    retention: Retention
    asynchronous: bool
    stop_on_error: bool
    say: Callable[[str], None]
    failure: str | None = field(default=None, init=False)
    _save: Save | None = field(default=None, init=False)
    _copy: HostCopy = field(default_factory=HostCopy, init=False)
    _metrics: tuple[int, Mapping[str, float]] = field(default=(-1, {}), init=False)
    _keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        self._keeper = Keeper(self.folder, self.retention, self.say)

    def start(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Begins to save this step; where saves are not asynchronous it also ends. Collective: yes.

        Args:
            state: where the run stands.
            metrics: what was measured at it; None: what ``evaluated`` was told.

        Raises:
            CheckpointError: a rank could not write and ``stop_on_error``; the older checkpoints are as they were.
        """
        self.wait()
        began = time.monotonic()
        if metrics is None:
            metrics = self._metrics[1] if self._metrics[0] == state.step else {}
        self.backend.statistics.unify()
        reading = self.probe()
        tensors, header = self._copy.take(self.backend.slices())
        step = state.step
        marker = {
            "format": FORMAT_VERSION,
            "step": step,
            "world_size": self.rank.world,
            "config_digest": self.config_digest,
            "data_digest": self.data_digest,
            "precision": self.precision,
            **marker_entries(reading),
            "lr": self.schedule(state),
            "metrics": dict(metrics),
        }
        paths = temporary_path(self.folder, step), final_path(self.folder, step)
        statistics = {name: tensor.cpu() for name, tensor in self.backend.statistics.read().items()}
        save = self._save = Save(step, *paths, state.to_dict(), marker, statistics, began)
        if not self._prepared(save.temporary, tensors):
            return
        save.start(partial(self._write_slices, save.temporary, tensors, header), saving.WRITING)
        if not self.asynchronous:
            self.wait()

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> Path:
        """As ``start``, but the checkpoint is complete when it returns. Collective: yes."""
        self.start(state, metrics)
        self.wait()
        return final_path(self.folder, state.step)

    @property
    def progress(self) -> int:
        """How far this rank is with the save in flight: what it says at the boundary of a step."""
        return saving.IDLE if self._save is None else self._save.progress

    def advance(self, progress: list[float]) -> None:
        """Goes on with the save in flight once every rank has done its part. Collective: where one is in flight.

        Args:
            progress: what every rank said at this boundary.
        """
        stage = saving.all_ranks_are(progress)
        if self._save is None or stage in (saving.WRITING, saving.COMPLETING):
            return
        save, error = self._save, self._save.error
        if stage == saving.FAILED:
            self._succeeds(None if error is None else CheckpointError(str(error)), "writing a checkpoint")
        elif stage == saving.WRITTEN:
            records = gather_objects(save.result)
            save.start(partial(self._complete, save, records) if self.rank.is_main else None, saving.COMPLETING)
        elif stage == saving.COMPLETE:
            self._save, self.failure = None, None
            self.say(f"step {save.step}: saved {save.final} in {time.monotonic() - save.began:.2f} s")

    def wait(self) -> None:
        """Waits until no save is in flight. Collective: where one is. Raises: as ``start``."""
        while self._save is not None:
            self._save.join()
            self.advance(gather_objects(self._save.progress))

    def _prepared(self, temporary: Path, tensors: Mapping[str, Tensor]) -> bool:
        """Makes the folder and looks whether there is space; False: the save was given up."""
        needed = sum(gather_objects(sum(tensor.nbytes * _copies(key) for key, tensor in tensors.items())))
        error: CheckpointError | None = None
        if self.rank.is_main:
            try:
                remove_tree(temporary)
                make_folders(temporary / "slices")
                error = no_space(self.folder, needed, disk.current.free_bytes(temporary))
            except OSError as failure:
                error = CheckpointError(f"checkpoint folder {temporary} cannot be made: {failure}")
        return self._succeeds(error, "preparing a checkpoint")

    def _succeeds(self, error: CheckpointError | None, doing: str) -> bool:
        """Whether no rank has an error; otherwise gives the save up. Collective: yes."""
        assert self._save is not None
        save = self._save
        try:
            raise_together(error, doing=doing)
            return True
        except UserError as failure:
            self._save, self.failure = None, str(failure)
            if self.rank.is_main:  # what was written takes the space that the next try needs
                remove_tree(save.temporary)
            if self.stop_on_error:
                raise
            self.say(
                f"step {save.step}: no checkpoint: {failure}; older ones are as they were, and the training goes on "
                "(checkpoint.on_error: continue)"
            )
            return False

    def _write_slices(self, temporary: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> dict[str, Any]:
        """This rank's part, in the thread: its file; returns its record."""
        name = rank_file(self.rank.rank)
        try:
            write_slices(temporary / name, tensors, header)
            return {"files": {name: seal(temporary / name)}, "squares": squares_by_state(tensors)}
        except Exception as failure:  # any failure must reach the other ranks at the next boundary
            raise CheckpointError(
                f"rank {self.rank.rank} on {self.rank.host} could not write {temporary / name}: {failure}"
            ) from failure

    def _complete(self, save: Save, records: list[dict[str, Any]]) -> None:
        """Rank 0's part, in the thread: plain weights, position, config, marker, name; then what need not stay goes."""
        try:
            files = {name: entry for record in records for name, entry in record["files"].items()}
            files |= self._write_shared_files(save)
            states = sorted({state for record in records for state in record["squares"]})
            norms = {state: math.sqrt(sum(r["squares"].get(state, 0.0) for r in records)) for state in states}
            write_marker(save.temporary, {**save.marker, "norms": norms, "files": files})
            publish(save.temporary, save.final)
        except Exception as failure:
            raise CheckpointError(f"checkpoint {save.final} could not be completed: {failure}") from failure
        self._prune(save.final)

    def _prune(self, written: Path) -> None:
        """Makes room after a checkpoint was written; that this fails makes no checkpoint worse."""
        self._keeper.trust(written)
        try:
            self._keeper.prune()
        except (OSError, CheckpointError) as failure:
            self.say(f"warning: older checkpoints could not be removed: {failure}")

    def _write_shared_files(self, save: Save) -> dict[str, Any]:
        """Plain weights, position and config; the weights are put together from the slices, with no collective."""
        folder = save.temporary
        write_atomic(folder / STATE, json.dumps(save.state, indent=1))
        write_atomic(folder / "config.resolved.yaml", self.config_yaml)
        reader = SliceReader(folder, self.rank.world)
        written = [STATE, "config.resolved.yaml"]
        for file, state_name in WEIGHTS.items():
            if state_name in reader.states():
                names = reader.parameter_names()
                tensors = {name: reader.full(state_name, name) for name in names}
                self._write_plain(folder / file, tensors | save.statistics)
                written.append(file)
        return {name: seal(folder / name) for name in written}

    def _write_plain(self, path: Path, tensors: dict[str, Tensor]) -> None:
        disk.current.write_with(path, lambda path: self.write_weights(path, tensors))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Notes what was measured at a step, for ``keep_best``. Collective: yes, where that is set.

        Returns:
            True where a checkpoint of this step would be the best, and so should be saved.

        Raises:
            ConfigError: ``keep_best`` is none of the metrics.
        """
        best = self.retention.keep_best
        if best is None:
            return False
        if best not in metrics:
            raise ConfigError(f"checkpoint.keep_best: {best} was not measured; possible: {', '.join(sorted(metrics))}")
        self._metrics = (step, metrics)
        self.wait()
        path = final_path(self.folder, step)
        improves = False
        if self.rank.is_main:
            try:
                if has_marker(path):  # the last step is saved before it is measured
                    write_marker(path, read_marker(path) | {"metrics": dict(metrics)})
                    self._prune(path)
                improves = self._keeper.improves(metrics)
            except (OSError, CheckpointError) as failure:
                self.say(f"warning: {path} could not be noted with its metrics: {failure}")
        return broadcast_object(improves)

    def load(self, path: Path, marker: dict[str, Any]) -> TrainState:
        """Fills weights and optimiser from a checkpoint of any layout and proves that it worked. Collective: yes.

        Raises:
            CheckpointError: a tensor is missing or differs in shape, or what was loaded is not what was saved.
        """
        error: Exception | None = None
        state = TrainState()
        if lacking := [key for key in LOADED if key not in marker]:
            raise CheckpointError(f"{path}: {MARKER} is damaged: {', '.join(lacking)} is missing")
        if marker["data_digest"] != self.data_digest:
            raise CheckpointError(
                f"{path} was written while training on other data: the index of data.shards has digest "
                f"{self.data_digest}, it had {marker['data_digest']}; the order of the samples would differ"
            )
        held = self.backend.slices()
        try:
            state = TrainState.of(read_state(path))
            load_into(held, SliceReader(path, marker["world_size"]))
            load_statistics(self.backend.statistics, path / PLAIN_WEIGHTS)
        except (CheckpointError, OSError, SafetensorError, TypeError, ValueError) as failure:
            error = failure if isinstance(failure, CheckpointError) else CheckpointError(f"{path}: {failure}")
        raise_together(error, doing=f"loading {path}")
        self.backend.finish_load(state.num_updates)
        self._verify(path, marker)
        return state

    def _verify(self, path: Path, marker: dict[str, Any]) -> None:
        norms, reading = state_norms(self.backend.slices()), self.probe()
        for key, saved in marker["norms"].items():
            if key in norms and not math.isclose(norms[key], saved, rel_tol=1e-6, abs_tol=1e-12):
                raise CheckpointError(
                    f"{path}: the norm of {key} is {norms[key]:.8g} after loading, {saved:.8g} were saved"
                )
        found = judge(marker, reading, precision=self.precision, config_digest=self.config_digest)
        if found.error is not None:
            raise CheckpointError(f"{path}: {found.error}")
        if found.warning is not None:
            self.say(f"warning: {path}: {found.warning}; norms and hashes agree")


def _copies(key: str) -> int:
    """How often a slice's bytes are written: the weights also go into the plain files."""
    return 2 if key.split(":", 1)[0] in (MASTER, EMA) else 1


def no_space(folder: Path, needed_bytes: int, free_bytes: int) -> CheckpointError | None:
    """The error of a disk that a checkpoint would fill, or None."""
    if needed_bytes <= free_bytes:
        return None
    return CheckpointError(
        f"no space for a checkpoint in {folder}: {needed_bytes / 2**30:.3f} GiB are needed, "
        f"{free_bytes / 2**30:.3f} GiB are free; free some, or keep fewer (checkpoint.keep_last, checkpoint.keep_every)"
    )


def squares_by_state(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """State → sum of the squares of this rank's slices, in fp64."""
    sums: dict[str, float] = {}
    for key, tensor in tensors.items():
        state = key.split(":", 1)[0]
        sums[state] = sums.get(state, 0.0) + float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
    return sums


def load_statistics(statistics: RunningStatistics, weights: Path) -> None:
    """Reads a model's running statistics, which only the plain weights hold.

    Raises:
        CheckpointError: one is missing.
    """
    if statistics.names:
        opened = disk.current.read_with(weights, lambda path: safe_open(path, framework="pt", device="cpu"))
        with opened as file:
            statistics.write({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def state_norms(held: list[HeldSlice]) -> dict[str, float]:
    """Global 2-norm of every state (weights, moments), in fp64 over all ranks. Collective: yes."""
    squares: dict[str, Tensor] = {}
    for piece in held:
        for key, view in piece.owned_states().items():
            square = view.detach().double().square().sum().cpu()
            squares[key] = squares.get(key, torch.zeros((), dtype=torch.float64)) + square
    keys = sorted({key for keys in gather_objects(sorted(squares)) for key in keys})
    device = held[0].states[MASTER].device if held else torch.device("cpu")
    local = torch.stack([squares.get(key, torch.zeros((), dtype=torch.float64)) for key in keys]).to(device)
    return dict(zip(keys, all_reduce_sum(local).sqrt().tolist(), strict=True))
