"""Checkpoints that are there whole or not at all, and a resume that proves itself.

``step-00000100.tmp/`` → every rank writes → fsync → ``COMPLETE.json`` (files, sizes, hashes) → rename. A folder without
the suffix is complete by construction; its hashes are checked again before it is trusted.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from pretrain.distributed.collectives import (
    all_reduce_sum,
    gather_objects,
    raise_together,
)
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import EMA, MASTER, Backend, HeldSlice
from pretrain.engine.slices import SliceReader, load_into, rank_file, snapshot, write_slices
from pretrain.engine.state import TrainState
from pretrain.engine.statistics import RunningStatistics
from pretrain.errors import CheckpointError, SetupError
from pretrain.files import file_digest, sync, write_atomic

FORMAT_VERSION = 1
MARKER = "COMPLETE.json"
PLAIN_WEIGHTS = "weights.safetensors"
WEIGHTS = {PLAIN_WEIGHTS: MASTER, "weights_ema.safetensors": EMA}  # plain weights file → state
PROBE_RTOL = {"fp32": 1e-4, "autocast": 2e-2, "bf16": 2e-2}


@dataclass
class Checkpointer:
    """Saves and loads the state of one run.

    Attributes:
        folder: ``runs/NAME/checkpoints``.
        write_weights: (path, parameter name → fp32 tensor) → writes the plain weights file with its metadata.
        probe: the loss of a fixed batch in evaluation mode; compared after a load.
        config_yaml, config_digest: saved with every checkpoint.
        keep_last: complete checkpoints that stay.
        say: where a line for the user goes.
    """

    folder: Path
    rank: Rank
    backend: Backend
    write_weights: Callable[[Path, dict[str, Tensor]], None]
    probe: Callable[[], float]
    config_yaml: str
    config_digest: str
    data_digest: str
    precision: str
    schedule: Callable[[int], float]
    keep_last: int
    say: Callable[[str], None]

    def save(self, state: TrainState) -> Path:
        """Writes a complete checkpoint of this step. Collective: yes.

        Raises:
            CheckpointError: a rank could not write; the older checkpoints are as they were.
        """
        final = self.folder / f"step-{state.step:08d}"
        temporary = final.with_name(final.name + ".tmp")
        self.backend.statistics.unify()
        probe_loss = self.probe()
        held = self.backend.slices()
        norms = state_norms(held)
        tensors, header = snapshot(held)
        own_bytes = sum(tensor.nbytes for tensor in tensors.values())
        self._prepare(temporary, sum(gather_objects(own_bytes)))
        files = self._write_rank_file(temporary, tensors, header)
        error: CheckpointError | None = None
        if self.rank.is_main:
            try:
                files |= self._write_shared_files(temporary, state)
                marker = {
                    "format": FORMAT_VERSION,
                    "step": state.step,
                    "world_size": self.rank.world,
                    "config_digest": self.config_digest,
                    "data_digest": self.data_digest,
                    "precision": self.precision,
                    "norms": norms,
                    "probe_loss": probe_loss,
                    "lr": self.schedule(state.step),
                    "files": files,
                }
                write_atomic(temporary / MARKER, json.dumps(marker, indent=1))
                self._publish(temporary, final)
            except Exception as failure:  # whatever it is, the other ranks wait for the answer
                error = CheckpointError(f"checkpoint {final} could not be completed: {failure}")
        raise_together(error, doing="completing a checkpoint")
        return final

    def _prepare(self, temporary: Path, state_bytes: int) -> None:
        error: CheckpointError | None = None
        if self.rank.is_main:
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                (temporary / "slices").mkdir(parents=True)
                free, needed = shutil.disk_usage(temporary).free, int(state_bytes * 1.5)
                if free < needed:
                    error = CheckpointError(
                        f"no space for a checkpoint in {self.folder}: {needed / 2**30:.2f} GiB are needed, "
                        f"{free / 2**30:.2f} GiB are free; free some, or lower checkpoint.keep_last"
                    )
            except OSError as failure:
                error = CheckpointError(f"checkpoint folder {temporary} cannot be made: {failure}")
        raise_together(error, doing="preparing a checkpoint")

    def _write_rank_file(self, temporary: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> dict[str, Any]:
        """Writes this rank's slices; returns every rank's file → size and hash. Collective: yes."""
        name, error, record = rank_file(self.rank.rank), None, {}
        try:
            write_slices(temporary / name, tensors, header)
            record = {name: seal(temporary / name)}
        except Exception as failure:  # any failure must reach the other ranks, which wait
            error = CheckpointError(f"rank {self.rank.rank} could not write {temporary / name}: {failure}")
        raise_together(error, doing="writing a checkpoint")
        return {name: entry for record in gather_objects(record) for name, entry in record.items()}

    def _write_shared_files(self, temporary: Path, state: TrainState) -> dict[str, Any]:
        """Plain weights, position and config; the weights are put together from the slices, with no collective."""
        write_atomic(temporary / "state.json", json.dumps(state.to_dict(), indent=1))
        write_atomic(temporary / "config.resolved.yaml", self.config_yaml)
        reader = SliceReader(temporary, self.rank.world)
        written = ["state.json", "config.resolved.yaml"]
        for file, state_name in WEIGHTS.items():
            if state_name in reader.states():
                names = reader.parameter_names()
                tensors = {name: reader.full(state_name, name) for name in names}
                self.write_weights(temporary / file, tensors | self.backend.statistics.read())
                written.append(file)
        return {name: seal(temporary / name) for name in written}

    def _publish(self, temporary: Path, final: Path) -> None:
        sync(temporary / "slices")
        sync(temporary)
        if final.exists():  # the same step again, after a resume that went over it: the new one replaces it
            _remove(final)
        temporary.rename(final)
        sync(self.folder)
        for old in complete_checkpoints(self.folder)[self.keep_last :]:
            _remove(old)

    def load(self, path: Path, marker: dict[str, Any]) -> TrainState:
        """Fills weights and optimiser from a checkpoint of any layout and proves that it worked. Collective: yes.

        Raises:
            CheckpointError: a tensor is missing or differs in shape, or what was loaded is not what was saved.
        """
        error: Exception | None = None
        state = TrainState()
        if marker["data_digest"] != self.data_digest:
            raise CheckpointError(
                f"{path} was written while training on other data: the index of data.shards has digest "
                f"{self.data_digest}, it had {marker['data_digest']}; the order of the samples would differ"
            )
        held = self.backend.slices()
        try:
            state = TrainState(**json.loads((path / "state.json").read_text()))
            load_into(held, SliceReader(path, marker["world_size"]))
            load_statistics(self.backend.statistics, path / PLAIN_WEIGHTS)
        except (CheckpointError, OSError, TypeError, ValueError) as failure:
            error = failure if isinstance(failure, CheckpointError) else CheckpointError(f"{path}: {failure}")
        raise_together(error, doing=f"loading {path}")
        self.backend.finish_load(state.num_updates)
        self._verify(path, marker)
        return state

    def _verify(self, path: Path, marker: dict[str, Any]) -> None:
        norms, loss = state_norms(self.backend.slices()), self.probe()
        for key, saved in marker["norms"].items():
            if not math.isclose(norms[key], saved, rel_tol=1e-6, abs_tol=1e-12):
                raise CheckpointError(
                    f"{path}: the norm of {key} is {norms[key]:.8g} after loading, {saved:.8g} were saved"
                )
        tolerance = max(PROBE_RTOL[self.precision], PROBE_RTOL[marker["precision"]])
        if not math.isclose(loss, marker["probe_loss"], rel_tol=tolerance, abs_tol=1e-5):
            raise CheckpointError(
                f"{path}: the probe batch has loss {loss:.6f} after loading, {marker['probe_loss']:.6f} when saved"
            )


def load_statistics(statistics: RunningStatistics, weights: Path) -> None:
    """Reads a model's running statistics, which only the plain weights hold.

    Raises:
        CheckpointError: one is missing.
    """
    if statistics.names:
        with safe_open(weights, framework="pt", device="cpu") as file:
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


def seal(path: Path) -> dict[str, Any]:
    """Makes a file durable and returns its size and hash."""
    sync(path)
    return {"bytes": path.stat().st_size, "blake2b": file_digest(path)}


def _remove(path: Path) -> None:
    """Removes a checkpoint so that a kill in between leaves nothing that looks complete."""
    doomed = path.with_name(path.name + ".removing")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clean(folder: Path) -> None:
    """Removes what an interrupted save or removal left. Only the lock's owner calls it."""
    for leftover in [*folder.glob("*.tmp"), *folder.glob("*.removing")]:
        shutil.rmtree(leftover, ignore_errors=True)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, the newest first."""
    return sorted((path for path in folder.glob("step-" + "[0-9]" * 8) if (path / MARKER).exists()), reverse=True)


def newest_valid(source: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files have the sizes and hashes of its marker; says which it passed over and why.

    Args:
        source: a folder of checkpoints, a run folder, or one checkpoint.
    """
    if (source / MARKER).exists():
        candidates = [source]
    else:
        candidates = complete_checkpoints(source / "checkpoints" if (source / "checkpoints").is_dir() else source)
    for path in candidates:
        try:
            marker = json.loads((path / MARKER).read_text())
            if (problem := damage(path, marker)) is None:
                return path, marker
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"its {MARKER} cannot be read ({error})"
        say(f"checkpoint {path} is passed over: {problem}")
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {source} is whole: restore one from a copy, "
            "or start again in a run folder with another name"
        )
    return None


def damage(path: Path, marker: dict[str, Any]) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    if marker["format"] != FORMAT_VERSION:
        raise CheckpointError(f"{path} has checkpoint format {marker['format']}; this version reads {FORMAT_VERSION}")
    for name, entry in marker["files"].items():
        file = path / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        if file_digest(file) != entry["blake2b"]:
            return f"{name} does not have the hash that it was saved with"
    return None


def weights_file(source: Path, kind: Literal["raw", "ema"], say: Callable[[str], None] = print) -> Path:
    """The plain weights that ``init.from`` or ``--from`` names.

    Args:
        source: a safetensors file, a checkpoint or a run folder.
        kind: of a checkpoint or run, the trained weights or their Polyak average.
        say: where a line for the user goes.

    Raises:
        CheckpointError: nothing of that kind is there.
    """
    if source.is_file():
        return source
    if not source.exists():
        raise SetupError(f"{source} does not exist: give a run folder, a checkpoint or a safetensors file")
    choice = newest_valid(source, say)
    if choice is None:
        raise CheckpointError(f"{source} holds no complete checkpoint: give a run folder, a checkpoint or a file")
    wanted = {"raw": MASTER, "ema": EMA}[kind]
    path = choice[0] / next(file for file, state in WEIGHTS.items() if state == wanted)
    if not path.exists():
        raise CheckpointError(
            f"{choice[0]} has no Polyak average (its run had no optim.ema_decay): set init.weights: raw"
        )
    return path
