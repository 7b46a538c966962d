"""The fast checkpoints on one node: the parts of its own ranks, and copies of its neighbour's.

FOLDER/vit-fast-NAME-ID/00000002-0000-step-00000040/   attempt, rollbacks, step: later ones are newer
  slices/rank-00003.safetensors   one rank's slices, and the model's running statistics if it has any
  slices/rank-00003.json          written last: size and hash of that file, and all that a restart needs to know

There is no marker for the whole: a checkpoint exists if the parts of all ranks are intact on any nodes. ``describe``
adds the files that make the folder readable like any other checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain import disk, records
from pretrain.engine.checkpoint_folder import MARKER_SHAPE, PLAIN_WEIGHTS, STATE, STATE_SHAPE, seal
from pretrain.engine.loading import squares_by_state
from pretrain.engine.slices import rank_file, write_slices
from pretrain.errors import CheckpointError
from pretrain.files import TEMPORARY_SUFFIX, file_digest, make_folders, remove_tree, write_atomic

PREFIX = "vit-fast-"
CONFIG = "config.resolved.yaml"
LEFTOVER_S = 86_400.0  # the checkpoints of a run without a save for this long belong to a run that was killed
_STATISTIC = "statistics:"
_NAME = re.compile(r"(\d{8})-(\d{4})-step-(\d{8})")
_RECORD = re.compile(r"rank-(\d{5})\.json")


class Key(NamedTuple):
    """Identifies a checkpoint and orders checkpoints: of two, the greater one is on the newer course of the run."""

    attempt: int
    rollbacks: int
    step: int

    @classmethod
    def of(cls, marker: Mapping[str, Any], state: Mapping[str, Any]) -> Key:
        """Of a checkpoint in any place, from its marker and its position."""
        return cls(marker.get("attempt", 0), len(state.get("skipped_windows", ())), marker["step"])


def _fits(shape: records.Shape) -> Any:
    return lambda value: isinstance(value, dict) and records.misfit(value, shape) is None


RECORD_SHAPE: records.Shape = {
    "rank": records.whole,
    "file": _fits({"bytes": records.whole, "blake2b": records.text}),
    "squares": MARKER_SHAPE["norms?"],
    "marker": _fits(
        {**{key: fits for key, fits in MARKER_SHAPE.items() if key != "files"}, "world_size": records.whole}
    ),
    "state": _fits(STATE_SHAPE),
    "config": records.text,
}


@dataclass(frozen=True)
class Part:
    """One rank's part of a checkpoint, in host memory.

    Attributes:
        tensors, header: its slices, as ``write_slices`` takes them.
        statistics: running statistics of the model, equal on all ranks.
        marker: the entries of COMPLETE.json without files and norms.
        state: the position of the run.
        config: the resolved config as YAML.
    """

    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    statistics: Mapping[str, Tensor]
    marker: Mapping[str, Any]
    state: Mapping[str, Any]
    config: str

    @property
    def key(self) -> Key:
        """Of the checkpoint."""
        return Key.of(self.marker, self.state)

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.nbytes for tensor in (*self.tensors.values(), *self.statistics.values()))


class NodeFolder:
    """The fast checkpoints of one run on this node.

    Args:
        path: FOLDER/vit-fast-NAME-ID.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save_path(self, key: Key) -> Path:
        """The folder of a checkpoint."""
        return self.path / f"{key.attempt:08d}-{key.rollbacks:04d}-step-{key.step:08d}"

    def write(self, rank: int, part: Part) -> None:
        """Writes one rank's part. Raises: OSError, SafetensorError."""
        path = self.part_file(part.key, rank)
        make_folders(path.parent)
        statistics = {f"{_STATISTIC}{name}": tensor for name, tensor in part.statistics.items()}
        write_slices(path, {**part.tensors, **statistics}, part.header)
        record = {"rank": rank, "file": seal(path), "squares": squares_by_state(part.tensors)}
        records.write(
            path.with_suffix(".json"),
            {**record, "marker": dict(part.marker), "state": dict(part.state), "config": part.config},
        )

    def sealed(self, key: Key, rank: int) -> tuple[bytes, int, Iterator[bytes]]:
        """A part to send: its record, the size of its file, and the content. Raises: OSError."""
        path = self.part_file(key, rank)
        status = disk.current.status(path)
        record = disk.current.read(path.with_suffix(".json"))
        return record, 0 if status is None else status.st_size, disk.current.blocks(path)

    def keys(self) -> list[Key]:
        """Checkpoints of which there are parts here, the newest first."""
        names = disk.current.entries(self.path) if disk.current.is_folder(self.path) else []
        found = filter(None, map(_NAME.fullmatch, names))
        return sorted((Key(*map(int, match.groups())) for match in found), reverse=True)

    def ranks(self, key: Key) -> list[int]:
        """The ranks whose parts are here, by their records alone."""
        slices = self.save_path(key) / "slices"
        names = disk.current.entries(slices) if disk.current.is_folder(slices) else []
        return sorted(int(match[1]) for match in map(_RECORD.fullmatch, names) if match)

    def read(self, key: Key, rank: int) -> dict[str, Any]:
        """The record of a part, once its file has the size and hash in it.

        Raises:
            CheckpointError: record or file is damaged.
        """
        path = self.part_file(key, rank)
        record = records.read(path.with_suffix(".json"), RECORD_SHAPE, without_hash=lambda value: False)
        if record.value is None:
            raise CheckpointError(record.problem or "its record is missing")
        value = record.value
        try:
            status = disk.current.status(path)
            if value["rank"] != rank or Key.of(value["marker"], value["state"]) != key:
                raise CheckpointError("its record is that of another part")
            if status is None or status.st_size != value["file"]["bytes"]:
                size = "no file" if status is None else f"{status.st_size} bytes"
                raise CheckpointError(f"{path.name}: {size} instead of {value['file']['bytes']} bytes")
            if file_digest(path) != value["file"]["blake2b"]:
                raise CheckpointError(f"{path.name} does not have the hash that it was saved with")
        except OSError as error:
            raise CheckpointError(f"{path.name} {records.UNREADABLE} ({error})") from error
        return value

    def describe(self, key: Key, record: Mapping[str, Any]) -> None:
        """Adds position and config to a checkpoint, so that it is read like one on the shared disk. Raises: OSError."""
        folder = self.save_path(key)
        make_folders(folder / "slices")
        write_atomic(folder / STATE, json.dumps(record["state"], indent=1))
        write_atomic(folder / CONFIG, record["config"])

    def unpack_statistics(self, key: Key, rank: int) -> None:
        """Writes the running statistics in a part to where a load expects them. Raises: OSError, SafetensorError."""
        opened = disk.current.read_with(self.part_file(key, rank), lambda path: safe_open(path, framework="pt"))
        names = [name for name in opened.keys() if name.startswith(_STATISTIC)]  # noqa: SIM118
        tensors = {name.removeprefix(_STATISTIC): opened.get_tensor(name) for name in names}
        disk.current.write_with(self.save_path(key) / PLAIN_WEIGHTS, lambda path: save_file(tensors, path))

    def num_bytes(self, key: Key) -> int:
        """Bytes of the parts of a checkpoint that are here or being written."""
        slices = self.save_path(key) / "slices"
        names = disk.current.entries(slices) if disk.current.is_folder(slices) else []
        found = (disk.current.status(slices / name) for name in names)
        return sum(status.st_size for status in found if status is not None)

    def prune(self, keep: Iterable[Key]) -> None:
        """Removes all other checkpoints; the folder itself if none is kept. Raises: OSError."""
        kept = set(keep)
        for key in self.keys():
            if key not in kept:
                remove_tree(self.save_path(key))
        if not kept:
            remove_tree(self.path)

    def part_file(self, key: Key, rank: int) -> Path:
        """The slices of a rank."""
        return self.save_path(key) / rank_file(rank)


def remove_leftovers(node: NodeFolder) -> list[str]:
    """Removes what runs that were killed left on this node; returns their names."""
    folder, removed = node.path.parent, []
    with contextlib.suppress(OSError):
        for name in disk.current.entries(folder):
            path = folder / name
            status = disk.current.status(path) if name.startswith(PREFIX) and path != node.path else None
            if status is not None and time.time() - status.st_mtime > LEFTOVER_S:
                remove_tree(path)
                removed += [] if disk.current.exists(path) else [name]
    return removed


@dataclass
class Arrival:
    """A part that another rank sends, with its record; it counts once ``finish`` has returned.

    A block that cannot be written must not stop the sender, so the first error is kept for ``finish``.
    """

    path: Path
    record: bytes
    _error: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._temporary = self.path.with_name(self.path.name + TEMPORARY_SUFFIX)
        self._try(lambda: make_folders(self.path.parent))
        self._try(lambda: disk.current.write(self._temporary, b""))

    def take(self, block: bytes) -> None:
        """The next block."""
        self._try(lambda: disk.current.extend(self._temporary, block))

    def finish(self) -> None:
        """Verifies the file and gives it its name.

        Raises:
            CheckpointError: it could not be written, or is not what the sender hashed.
        """
        self._try(self._finish)
        if self._error is not None:
            raise CheckpointError(f"the copy {self.path} could not be written: {self._error}") from self._error

    def _finish(self) -> None:
        if seal(self._temporary) != json.loads(self.record)["file"]:
            raise CheckpointError("it does not have the hash that its sender computed")
        disk.current.rename(self._temporary, self.path)
        write_atomic(self.path.with_suffix(".json"), self.record)

    def _try(self, work: Any) -> None:
        if self._error is None:
            try:
                work()
            except (OSError, ValueError, KeyError, CheckpointError) as error:
                self._error = error
