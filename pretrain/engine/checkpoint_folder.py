"""What lies in a run's folder of checkpoints: which are complete, which of them are whole, and how one is replaced.

A checkpoint is a folder ``step-00000100``; what is not complete has a suffix (``.tmp``, ``.removing``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pretrain.engine.backend import EMA, MASTER
from pretrain.errors import CheckpointError, SetupError
from pretrain.files import file_digest, sync

FORMAT_VERSION = 1
MARKER = "COMPLETE.json"
STATE = "state.json"
PLAIN_WEIGHTS = "weights.safetensors"
WEIGHTS = {PLAIN_WEIGHTS: MASTER, "weights_ema.safetensors": EMA}  # plain weights file → state
_TEMPORARY, _REMOVING = ".tmp", ".removing"


def final_path(folder: Path, step: int) -> Path:
    """Where the complete checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def temporary_path(folder: Path, step: int) -> Path:
    """Where it is written."""
    return folder / f"step-{step:08d}{_TEMPORARY}"


def step_of(path: Path) -> int:
    """The step that a checkpoint folder is named after."""
    return int(path.name.removeprefix("step-"))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a run, the newest first."""
    return sorted((path for path in folder.glob("step-" + "[0-9]" * 8) if (path / MARKER).exists()), reverse=True)


def read_marker(path: Path) -> dict[str, Any]:
    """What a complete checkpoint says about itself."""
    return json.loads((path / MARKER).read_text())


def read_state(path: Path) -> dict[str, Any]:
    """Where the run stood when the checkpoint was written, as JSON values."""
    return json.loads((path / STATE).read_text())


def seal(path: Path) -> dict[str, Any]:
    """Makes a file durable and returns its size and hash."""
    sync(path)
    return {"bytes": path.stat().st_size, "blake2b": file_digest(path)}


def publish(temporary: Path, final: Path) -> None:
    """Gives a checkpoint whose marker is written its name.

    One of the same step (after a rollback, or a resume that went over it) makes room for it; a kill in between leaves
    the new one under its temporary name, with its marker, and ``clean`` gives it the name.
    """
    sync(temporary / "slices")
    sync(temporary)
    replaced = _set_aside(final) if final.exists() else None
    temporary.rename(final)
    sync(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a checkpoint so that a kill in between leaves nothing that looks complete."""
    shutil.rmtree(_set_aside(path), ignore_errors=True)


def _set_aside(path: Path) -> Path:
    aside = path.with_name(path.name + _REMOVING)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    return aside


def clean(folder: Path) -> None:
    """Removes what an interrupted save or removal left, and ends a save that lacked its name only.

    Only the lock's owner calls it.
    """
    for leftover in folder.glob(f"step-*{_TEMPORARY}"):
        final = leftover.with_name(leftover.name.removesuffix(_TEMPORARY))
        if (leftover / MARKER).exists() and not final.exists():  # the marker is written last, when all else is durable
            leftover.rename(final)
            sync(folder)
    for leftover in [*folder.glob(f"*{_TEMPORARY}"), *folder.glob(f"*{_REMOVING}")]:
        shutil.rmtree(leftover, ignore_errors=True)


def newest_valid(
    source: Path, say: Callable[[str], None], *, wanted: Callable[[Path], bool] = lambda path: True
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files have the sizes and hashes of its marker; says which it passed over and why.

    Args:
        source: a folder of checkpoints, a run folder, or one checkpoint.
        say: where a line for the user goes.
        wanted: only those for which it is true.

    Raises:
        CheckpointError: there are some, but none is whole.
    """
    if (source / MARKER).exists():
        candidates = [source]
    else:
        candidates = complete_checkpoints(source / "checkpoints" if (source / "checkpoints").is_dir() else source)
    candidates = [path for path in candidates if wanted(path)]
    for path in candidates:
        try:
            marker = read_marker(path)
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
