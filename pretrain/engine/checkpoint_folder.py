"""A run's checkpoint folder: which checkpoints are complete, which of those are intact, and how one is replaced.

A checkpoint is a folder ``step-00000100``. An incomplete one has a suffix (``.tmp``, ``.removing``), and so does
one that makes room for another of the same step (``.replaced``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pretrain import disk, records
from pretrain.engine.backend import EMA, MASTER
from pretrain.errors import CheckpointError, SetupError
from pretrain.files import file_digest, remove_tree, sync
from pretrain.names import tell

FORMAT_VERSION = 1
MARKER = "COMPLETE.json"
STATE = "state.json"
PLAIN_WEIGHTS = "weights.safetensors"
WEIGHTS = {PLAIN_WEIGHTS: MASTER, "weights_ema.safetensors": EMA}  # plain weights file → state
_TEMPORARY, _REMOVING, _REPLACED = ".tmp", ".removing", ".replaced"
COMPLETE_NAME = re.compile(r"step-\d{8}")


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(records.number, value.values()))


def _sealed_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict) and records.misfit(entry, {"bytes": records.whole, "blake2b": records.text}) is None
        for entry in value.values()
    )


MARKER_SHAPE: records.Shape = {
    "format": records.whole,
    "step": records.whole,
    "files": _sealed_files,
    "world_size?": records.whole,
    "attempt?": records.whole,
    "config_digest?": records.text,
    "data_digest?": records.text,
    "precision?": lambda value: value in ("fp32", "autocast", "bf16"),
    "probe_loss?": lambda value: value is None or records.number(value),
    "probe_samples?": records.each(records.whole),
    "probe_settings?": records.text,
    "lr?": records.number,
    "metrics?": _numbers,
    "norms?": _numbers,
}
# Additional marker keys that a resume needs; plain weights can be read without them.
LOADED = ("world_size", "config_digest", "data_digest", "precision", "lr", "norms")
STATE_SHAPE: records.Shape = {
    **dict.fromkeys(("step", "position", "num_updates", "skipped_in_a_row"), records.whole),
    "skipped_windows?": records.each(records.each(records.whole, 2)),
}


def final_path(folder: Path, step: int) -> Path:
    """The folder of the complete checkpoint of a step."""
    return folder / f"step-{step:08d}"


def temporary_path(folder: Path, step: int) -> Path:
    """The temporary folder in which a step's checkpoint is written."""
    return folder / f"step-{step:08d}{_TEMPORARY}"


def step_of(path: Path) -> int:
    """The step that a checkpoint folder is named after."""
    return int(path.name.removeprefix("step-"))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, the newest first; empty if the folder does not exist.

    Raises:
        CheckpointError: the folder exists but cannot be listed.
    """
    try:
        names = disk.current.entries(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror or error}") from error
    return [folder / name for name in reversed(names) if COMPLETE_NAME.fullmatch(name) and has_marker(folder / name)]


def has_marker(path: Path) -> bool:
    """Whether a checkpoint is complete; True if unknown, so that the damage is reported when it is read."""
    try:
        return disk.current.exists(path / MARKER)
    except OSError:
        return True


def read_marker(path: Path) -> dict[str, Any]:
    """The marker of a complete checkpoint.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return _usable(path, records.read(path / MARKER, MARKER_SHAPE, without_hash=_is_of_older_version), MARKER)


def parse_marker(place: str, content: bytes) -> dict[str, Any]:
    """The marker of a complete checkpoint, from the content of its file.

    Args:
        place: of the checkpoint, for messages.
        content: of COMPLETE.json.

    Raises:
        CheckpointError: it is damaged.
    """
    return _usable(place, records.parse(MARKER, content, MARKER_SHAPE, without_hash=_is_of_older_version), MARKER)


def write_marker(path: Path, marker: Mapping[str, Any]) -> None:
    """Completes a checkpoint by writing its marker, with a hash over the marker's values."""
    records.write(path / MARKER, marker)


def _is_of_older_version(marker: dict[str, Any]) -> bool:
    """Whether an older version, which wrote no hash, wrote the marker. A marker with newer keys lost its hash."""
    known = {key.removesuffix("?") for key in MARKER_SHAPE}
    return marker.keys() <= known and marker.get("format") == 1


def read_state(path: Path) -> dict[str, Any]:
    """The position of the run when the checkpoint was written, as JSON values.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return _usable(path, records.read(path / STATE, STATE_SHAPE), STATE)


def parse_state(place: str, content: bytes) -> dict[str, Any]:
    """As ``read_state``, from the content of state.json; ``place`` is that of the checkpoint, for messages."""
    return _usable(place, records.parse(STATE, content, STATE_SHAPE), STATE)


def _usable(path: Path | str, record: records.Record, name: str) -> dict[str, Any]:
    if record.value is None:
        raise CheckpointError(f"{path}: {record.problem or f'{name} is missing'}")
    return record.value


def seal(path: Path) -> dict[str, Any]:
    """Makes a file durable and returns its size and hash."""
    sync(path)
    status = disk.current.status(path)
    return {"bytes": status.st_size if status is not None else 0, "blake2b": file_digest(path)}


def publish(temporary: Path, final: Path) -> None:
    """Renames a checkpoint with a marker to its final name.

    An existing checkpoint of the same step (after a rollback, or a resume from before it) is moved aside first. If the
    process is killed in between, the new one keeps its temporary name and its marker, and ``clean`` renames it.
    """
    sync(temporary / "slices")
    sync(temporary)
    replaced = _set_aside(final, _REPLACED) if disk.current.exists(final) else None
    try:
        disk.current.rename(temporary, final)
    except OSError:
        if replaced is not None:
            disk.current.rename(replaced, final)
        raise
    sync(final.parent)
    if replaced is not None:
        remove_tree(replaced)


def remove(path: Path) -> None:
    """Removes a checkpoint such that a kill or power failure in between leaves nothing that looks complete."""
    aside = _set_aside(path, _REMOVING)
    sync(path.parent)
    remove_tree(aside)


def _set_aside(path: Path, suffix: str) -> Path:
    aside = path.with_name(path.name + suffix)
    remove_tree(aside)
    disk.current.rename(path, aside)
    return aside


def clean(folder: Path) -> None:
    """Removes leftovers of an interrupted save or removal; completes a save that only lacked its final name.

    Only the folder's owner may call it.

    Raises:
        CheckpointError: the folder cannot be listed or written.
    """
    try:
        names = disk.current.entries(folder)
        for suffix in (_TEMPORARY, _REPLACED):  # of the same step, the new one comes first
            for name in names:
                if name.endswith(suffix):
                    _give_back_its_name(folder / name, folder / name.removesuffix(suffix))
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be tidied up: {error.strerror or error}") from error
    for name in names:
        if name.endswith((_TEMPORARY, _REMOVING, _REPLACED)):
            remove_tree(folder / name)


def _give_back_its_name(leftover: Path, final: Path) -> None:
    """Renames an intact checkpoint unless its target exists."""
    if not COMPLETE_NAME.fullmatch(final.name) or disk.current.exists(final):
        return
    if disk.current.exists(leftover / MARKER) and examine(leftover)[0] is not None:
        disk.current.rename(leftover, final)
        sync(final.parent)


def newest_valid(
    source: Path,
    say: Callable[[str], None],
    *,
    wanted: Callable[[Path], bool] = lambda path: True,
    or_none: bool = False,
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files have the sizes and hashes of its marker; reports each one it skips.

    Args:
        source: a folder of checkpoints, a run folder, or one checkpoint.
        say: prints one line for the user.
        wanted: filter on checkpoints.
        or_none: return None if none is intact, since there are others elsewhere.

    Raises:
        CheckpointError: checkpoints exist but none is intact (unless ``or_none``), or that cannot be determined.
    """
    try:
        if disk.current.exists(source / MARKER):
            candidates = [source]
        else:
            inner = source / "checkpoints"
            candidates = complete_checkpoints(inner if disk.current.is_folder(inner) else source)
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error.strerror or error}") from error
    candidates = [path for path in candidates if wanted(path)]
    for path in candidates:
        marker, problem = examine(path)
        if marker is not None:
            return path, marker
        say(f"checkpoint {path} is passed over: {problem}")
    if candidates and not or_none:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {source} is intact: restore one from a copy, "
            "or start again in a run folder with another name"
        )
    return None


def examine(path: Path) -> tuple[dict[str, Any], None] | tuple[None, str]:
    """The marker of a checkpoint whose files all match its sizes and hashes; otherwise the problem.

    Raises:
        CheckpointError: it has another format version.
    """
    record = records.read(path / MARKER, MARKER_SHAPE, without_hash=_is_of_older_version)
    if record.value is None:
        return None, record.problem or f"{MARKER} is missing"
    marker = record.value
    if marker["format"] != FORMAT_VERSION:
        raise CheckpointError(f"{path} has checkpoint format {marker['format']}; this version reads {FORMAT_VERSION}")
    try:
        for name, entry in marker["files"].items():
            if (flaw := _flaw(path, name, entry)) is not None:
                return None, flaw
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return None, f"it {records.UNREADABLE} ({error})"
    return marker, None


def _flaw(path: Path, name: str, entry: dict[str, Any]) -> str | None:
    status = disk.current.status(path / name)
    if status is None:
        return f"{name} is missing"
    if status.st_size != entry["bytes"]:
        return f"{name} has {status.st_size} bytes instead of {entry['bytes']}"
    if file_digest(path / name) != entry["blake2b"]:
        return f"{name} does not have the hash that it was saved with"
    return None


def weights_file(source: Path, kind: Literal["raw", "ema"], say: Callable[[str], None] = tell) -> Path:
    """The plain weights file that ``init.from`` or ``--from`` refers to.

    Args:
        source: a safetensors file, a checkpoint or a run folder.
        kind: the raw or the EMA weights of a checkpoint or run.
        say: prints one line for the user.

    Raises:
        CheckpointError: it has no such weights.
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
