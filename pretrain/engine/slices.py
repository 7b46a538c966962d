"""One checkpoint format for every world size, ZeRO stage and backend: slices of named tensors.

Each rank writes the slices that it owns into one safetensors file. A tensor's key is ``state:parameter`` and the
header has its offset in the flattened parameter and the shape of that parameter. A reader gets any range of any tensor
from the files that contain it, so a checkpoint never needs conversion, and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain import disk
from pretrain.engine.backend import EMA, MASTER, HeldSlice
from pretrain.errors import CheckpointError

_RANK_FILE = re.compile(r"slices/rank-(\d{5,})\.safetensors")


def rank_file(rank: int) -> str:
    """Name of the file with one rank's slices, inside the checkpoint folder."""
    return f"slices/rank-{rank:05d}.safetensors"


def rank_of_file(name: str) -> int:
    """The rank that wrote a file of a checkpoint: 0 for those without slices."""
    found = _RANK_FILE.fullmatch(name)
    return int(found[1]) if found else 0


class HostCopy:
    """Host buffers for one rank's slices, allocated at the first save and reused.

    They are pinned if the state is on a GPU, so that copies run at full bus speed with a single synchronisation.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, held: Iterable[HeldSlice]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Copies this rank's owned slices; overwrites the tensors that an earlier call returned.

        Returns:
            (key → 1-D tensor of the state's own type, header) as ``write_slices`` takes them.
        """
        tensors: dict[str, Tensor] = {}
        places: dict[str, dict] = {}
        on_gpu = False
        for piece in held:
            if piece.owned[1] <= piece.owned[0]:
                continue
            for state, view in piece.owned_states().items():
                key = f"{state}:{piece.name}"
                tensors[key] = self._buffer(key, view).copy_(view.detach(), non_blocking=True)
                places[key] = {"offset": piece.owned[0], "shape": piece.shape}
                on_gpu |= view.is_cuda
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return tensors, {"slices": json.dumps(places)}

    def _buffer(self, key: str, view: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (view.shape, view.dtype):
            buffer = torch.empty(view.shape, dtype=view.dtype, pin_memory=view.is_cuda)
            self._buffers[key] = buffer
        return buffer


def ranks_of(files: Iterable[str]) -> list[int]:
    """The ranks whose slices are among the files of a checkpoint."""
    return sorted(int(match[1]) for match in map(_RANK_FILE.fullmatch, files) if match)


def write_slices(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Writes one rank's file; the caller makes it durable."""
    disk.current.write_with(path, lambda path: save_file(dict(tensors), path, metadata=dict(header)))


def load_into(held: Iterable[HeldSlice], reader: SliceReader) -> None:
    """Fills every held state from a checkpoint.

    Raises:
        CheckpointError: the checkpoint lacks a tensor or a part of it, or a shape differs.
    """
    for piece in held:
        for state, view in piece.states.items():
            stored = reader.dtypes.get(f"{state}:{piece.name}")
            if view.dtype == torch.bfloat16 and stored == "F32" and state not in (MASTER, EMA):
                raise CheckpointError(
                    f"{reader.folder} has {state} in fp32, this run keeps it in bf16, where it would be rounded: set "
                    "optim.momentum_dtype: fp32, or start a new run from the weights (init.from)"
                )
            with torch.no_grad():
                view.copy_(reader.read(state, piece.name, piece.offset, view.numel(), piece.shape))


def _opened(path: Path) -> safe_open:
    return safe_open(path, framework="pt")


@dataclass(frozen=True)
class _Part:
    file: Path
    offset: int
    numel: int


class SliceReader:
    """Random access to the tensors of a checkpoint folder, written by any number of ranks.

    Args:
        folder: the checkpoint.
        ranks: those whose slices are read.
    """

    def __init__(self, folder: Path, ranks: Iterable[int]) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}  # as safetensors names them: F32, BF16
        self._parts: dict[str, list[_Part]] = {}
        self._open_files: dict[Path, safe_open] = {}
        for rank in ranks:
            self._index(folder / rank_file(rank))
        for parts in self._parts.values():
            parts.sort(key=lambda part: part.offset)

    def _index(self, path: Path) -> None:
        try:
            file = self._open_files[path] = disk.current.read_with(path, _opened)
            places = json.loads(file.metadata()["slices"])
            for key, place in places.items():
                numel, self.dtypes[key] = file.get_slice(key).get_shape()[0], file.get_slice(key).get_dtype()
                self.shapes[key] = tuple(place["shape"])
                self._parts.setdefault(key, []).append(_Part(path, place["offset"], numel))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): remove its checkpoint and resume again") from None

    def parameter_names(self) -> list[str]:
        """Names of all parameters, in the order in which they were written."""
        return [key.split(":", 1)[1] for key in self._parts if key.startswith(f"{MASTER}:")]

    def states(self) -> set[str]:
        """Names of the states, such as ``master`` and ``exp_avg``."""
        return {key.split(":", 1)[0] for key in self._parts}

    def read(self, state: str, name: str, offset: int, numel: int, shape: tuple[int, ...]) -> Tensor:
        """Elements [offset, offset + numel) of the flattened tensor, as 1-D fp32.

        Raises:
            CheckpointError: no such tensor, another shape, or a range that is in no file.
        """
        key = f"{state}:{name}"
        if key not in self._parts:
            raise CheckpointError(
                f"{self.folder} has no {state} of {name} (it has {', '.join(sorted(self.states()))} of "
                f"{len(self.parameter_names())} parameters): was it written with another model or optimiser?"
            )
        if self.shapes[key] != tuple(shape):
            raise CheckpointError(
                f"{self.folder}: {name} has shape {self.shapes[key]}, the model has {tuple(shape)}: "
                "resume needs the same architecture (to start from these weights use init.from)"
            )
        out = torch.empty(numel, dtype=torch.float32)
        filled = 0
        for part in self._parts[key]:
            start, stop = max(offset, part.offset), min(offset + numel, part.offset + part.numel)
            if start < stop:
                values = self._open_files[part.file].get_slice(key)[start - part.offset : stop - part.offset]
                out[start - offset : stop - offset] = values
                filled += stop - start
        if filled != numel:
            raise CheckpointError(f"{self.folder}: {filled} of {numel} elements of {key} from {offset} on exist")
        return out

    def covers(self, piece: HeldSlice) -> bool:
        """Whether all elements of a held piece are here, in every state."""
        return all(
            self._num_present(f"{state}:{piece.name}", piece.offset, view.numel()) == view.numel()
            for state, view in piece.states.items()
        )

    def _num_present(self, key: str, offset: int, numel: int) -> int:
        ends = ((part, min(offset + numel, part.offset + part.numel)) for part in self._parts.get(key, ()))
        return sum(max(0, end - max(offset, part.offset)) for part, end in ends)

    def full(self, state: str, name: str) -> Tensor:
        """One complete tensor, in its original shape."""
        shape = self.shapes[f"{state}:{name}"]
        return self.read(state, name, 0, math.prod(shape), shape).view(shape)
