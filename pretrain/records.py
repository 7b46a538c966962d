"""JSON files of a run folder, read in one way: what is in them, or that they are damaged; never a traceback.

A file that decides something (a checkpoint's marker, who owns a folder) has a hash over its values, so a flipped bit is
found. A file of lines (metrics, history) may have a line that a kill or a full disk cut short: it is passed over and
counted. Everybody may import this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain import disk
from pretrain.files import digest, write_atomic

HASH = "blake2b"
UNREADABLE = "cannot be read"  # in every problem whose cause is the disk, not the content
LAST_TIME = 253_402_300_799  # the end of the year 9999, in seconds since the epoch

Shape = Mapping[str, Callable[[Any], bool]]
"""Key → what its value must be; a key that ends in ``?`` may be absent."""


@dataclass(frozen=True)
class Record:
    """What a file holds: ``value``, or why that cannot be used (``problem``); neither where there is no file."""

    value: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Lines:
    """The lines that can be used, in order, and how many others there are, less one that a kill cut at the end."""

    values: list[dict[str, Any]] = field(default_factory=list)
    num_damaged: int = 0
    problem: str | None = None


def text(value: Any) -> bool:
    """Whether it is text that can be shown and stored (no half of a surrogate pair)."""
    return isinstance(value, str) and _encodes(value)


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole(value: Any) -> bool:
    """Whether it is a whole number from 0 to 2⁶³ - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def number(value: Any) -> bool:
    """Whether it is a number, NaN and infinity among them."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63)


def moment(value: Any) -> bool:
    """Whether it is a time in seconds since the epoch."""
    return number(value) and math.isfinite(value) and 0 <= value <= LAST_TIME


def fields(value: Any) -> bool:
    """Whether it is an object."""
    return isinstance(value, dict)


def each(of: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    """Whether it is a list of such values (of so many)."""
    return lambda value: isinstance(value, list) and count in (None, len(value)) and all(map(of, value))


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object durably, with a hash over its values."""
    write_atomic(path, json.dumps({**value, HASH: _hash(value)}, indent=1))


def read(
    path: Path, shape: Shape | None = None, *, without_hash: Callable[[dict[str, Any]], bool] | None = None
) -> Record:
    """Reads an object.

    Args:
        path: of the file.
        shape: what its values must be.
        without_hash: whether an object that has no hash may be an older version's. None: the file has no hash at all.
    """
    try:
        content = disk.current.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return Record()
    except OSError as error:
        return Record(problem=f"{path.name} {UNREADABLE} ({error.strerror or error})")
    value = _parse(content)
    if value is None:
        return Record(problem=f"{path.name} is damaged: it is not a JSON object")
    if without_hash is not None:
        claimed = value.pop(HASH, None)
        if claimed is None and not without_hash(value):
            return Record(problem=f"{path.name} is damaged: it has no hash")
        if claimed is not None and claimed != _hash(value):
            return Record(problem=f"{path.name} is damaged: it does not have the hash that it was written with")
    wrong = misfit(value, shape or {})
    return Record(value) if wrong is None else Record(problem=f"{path.name} is damaged: {wrong}")


def read_lines(path: Path, shape: Shape | None = None) -> Lines:
    """Reads a file of objects, one a line."""
    try:
        content = disk.current.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return Lines()
    except OSError as error:
        return Lines(problem=f"{path.name} {UNREADABLE} ({error.strerror or error})")
    pieces = content.split(b"\n")
    cut = pieces.pop()  # what comes after the last newline: nothing, or a line that a kill cut
    values, num_damaged = [], 0
    for piece in [*pieces, *([cut] if cut else [])]:
        value = _parse(piece)
        if value is not None and misfit(value, shape or {}) is None:
            values.append(value)
        elif piece and piece is not cut:
            num_damaged += 1
    return Lines(values, num_damaged)


def misfit(value: Mapping[str, Any], shape: Shape) -> str | None:
    """Which value is not what it must be, or None."""
    for key, fits in shape.items():
        name = key.removesuffix("?")
        if name not in value:
            if key == name:
                return f"{name} is missing"
        elif not fits(value[name]):
            return f"{name} is {str(value[name])[:40]!r}"
    return None


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # ValueError: not UTF-8, not JSON, a number of thousands of digits
        return None
    return value if isinstance(value, dict) else None


def _hash(value: Mapping[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return digest(canonical.encode())
