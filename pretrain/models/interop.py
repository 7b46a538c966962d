"""Plain weights files: safetensors with timm's tensor names, and the metadata needed to use them in the header.

Nothing is unpickled. The grid, the prefix tokens and the normalisation are read from the file, never guessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.files import sync
from pretrain.models.families.registry import tensor_shapes
from pretrain.models.metadata import FORMAT_VERSION, HEADER_KEY, WeightsMetadata, sort_metadata

Entry = TypeVar("Entry")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save_weights(
    path: str | Path, state: Mapping[str, Tensor], metadata: WeightsMetadata, names: Mapping[str, str] | None = None
) -> None:
    """Writes a weights file atomically.

    Args:
        path: ends in .safetensors by convention; the folder must exist.
        state: the unsharded tensors under the names of ``parameter_shapes``, of any floating type and device.
        metadata: metadata for the header.
        names: our name of a tensor → the name to write, for other programs; the folder's reader translates it back.
    """
    path, others = Path(path), names or {}
    problem = _unlike_metadata({name: tuple(tensor.shape) for name, tensor in state.items()}, metadata)
    assert problem is None, problem
    partial = path.with_name(path.name + ".partial")
    tensors = {others.get(name, name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, partial, metadata={"format": "pt", HEADER_KEY: metadata.model_dump_json()})
    sort_metadata(partial)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a weights file: its tensors on the CPU, in the type they were saved in, and its metadata.

    Raises:
        CheckpointError: no such file, truncated, not safetensors, no metadata of ours or of another version, or
            tensors that contradict the metadata.
    """
    state, header = read_tensors(path)
    metadata = parse_header(Path(path), header)
    check_tensors(state, metadata, path)
    return state, metadata


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads any safetensors file: its tensors on the CPU, in their saved type, and the metadata of its header.

    Raises:
        CheckpointError: no such file, pickled, truncated or not safetensors.
    """
    path = Path(path)
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); it was truncated or damaged: copy or export it again"
        ) from error


def read_metadata(path: str | Path) -> WeightsMetadata | None:
    """The metadata in a safetensors header, without reading tensors; None: it is not one of our weights files.

    Raises:
        CheckpointError: as ``load_weights``.
    """
    header = header_of(path)
    return parse_header(Path(path), header) if is_weights_header(header) else None


def header_of(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors header as texts, without reading tensors.

    Raises:
        CheckpointError: no such file, pickled, truncated or not safetensors.
    """
    path = Path(path)
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}); copy or export it again") from error


def is_weights_header(header: Mapping[str, str]) -> bool:
    """Whether the metadata of a safetensors header is that of one of our weights files."""
    return HEADER_KEY in header


def check_tensors(state: Mapping[str, Tensor], metadata: WeightsMetadata, path: str | Path) -> None:
    """Checks names and shapes against the metadata.

    Raises:
        CheckpointError: a tensor does not match the model in the metadata; the message names the first.
    """
    problem = _unlike_metadata({name: tuple(tensor.shape) for name, tensor in state.items()}, metadata)
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}; the file is damaged or was edited: export it again")


def _refuse_foreign(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path}: {what}; name a .safetensors file")
    with path.open("rb") as file:
        start = file.read(9)
    # The length of a header (8 bytes, then its JSON) may begin like a pickle: 640 is 80 02.
    if start.startswith(_PICKLE_STARTS) and start[8:] != b"{":
        raise CheckpointError(
            f"{path}: a pickled checkpoint or a zip archive; nothing is unpickled here: save its tensors as "
            "safetensors with pretrain.models.interop.save_weights"
        )


def parse_header(path: Path, header: Mapping[str, str]) -> WeightsMetadata:
    """The metadata in the header of one of our weights files.

    Raises:
        CheckpointError: there is none, of another version, or damaged.
    """
    text = header.get(HEADER_KEY)
    if text is None:
        raise CheckpointError(
            f"{path}: its header has no {HEADER_KEY!r}, so its grid, prefix tokens and normalisation are unknown and "
            "are not guessed; write it again with pretrain.models.interop.save_weights"
        )
    try:
        raw = json.loads(text)
        version = raw.get("version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: weights format {version!r}; this program reads version {FORMAT_VERSION}: use the program "
                "that wrote it to export it again"
            )
        return WeightsMetadata.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{path}: metadata in its header: {where}: {first['msg']}; export it again") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: the metadata in its header is not JSON ({error}); export it again") from error


def expected_shapes(metadata: WeightsMetadata) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that a file with this metadata holds; without classes there is no head."""
    return tensor_shapes(metadata.model, metadata.num_classes)


def without_head(tensors: Mapping[str, Entry]) -> dict[str, Entry]:
    """The tensors, or their shapes, of a network whose weights are kept without its head."""
    return {
        name: entry for name, entry in tensors.items() if not name.startswith(("head.", "head_dist.", "head_patches."))
    }


def _unlike_metadata(shapes: Mapping[str, tuple[int, ...]], metadata: WeightsMetadata) -> str | None:
    """Describes the first tensor that does not match the model in the metadata; None if all match."""
    expected = expected_shapes(metadata)
    for name in [*expected, *(name for name in shapes if name not in expected)]:
        found, wanted = shapes.get(name), expected.get(name)
        if found != wanted:
            return f"tensor {name} is {found or 'missing'}, but its metadata's model has {wanted or 'no such tensor'}"
    return None
