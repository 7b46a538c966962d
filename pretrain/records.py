"""Reading and writing the JSON files of a run folder. A damaged file is reported as such and never raises.

Files that decisions depend on (a checkpoint's marker, the owner of a folder) carry a hash of their values, so a flipped
bit is detected. In files of lines (metrics, history), a line that a kill or a full disk cut short is skipped and
counted. Any module may import this one.
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
UNREADABLE = "cannot be read"  # part of every problem that the disk caused, not the content
LAST_TIME = 253_402_300_799  # the end of the year 9999, in seconds since the epoch

Shape = Mapping[str, Callable[[Any], bool]]
"""Key → check of its value; a key that ends in ``?`` may be absent."""


@dataclass(frozen=True)
class Record:
    """The content of a file: ``value``, or the ``problem`` that makes it unusable; neither if there is no file."""

    value: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Lines:
    """The usable lines in order, and the number of unusable ones, not counting a last line that a kill cut short."""

    values: list[dict[str, Any]] = field(default_factory=list)
    num_damaged: int = 0
    problem: str | None = None


def text(value: Any) -> bool:
    """Whether it is text that can be printed and stored (without lone surrogates)."""
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
    """Whether it is a number; NaN and infinity count."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63)


def moment(value: Any) -> bool:
    """Whether it is a time in seconds since the epoch."""
    return number(value) and math.isfinite(value) and 0 <= value <= LAST_TIME


def fields(value: Any) -> bool:
    """Whether it is an object."""
    return isinstance(value, dict)


def each(of: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    """Whether it is a list of such values (``count`` of them)."""
    return lambda value: isinstance(value, list) and count in (None, len(value)) and all(map(of, value))


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object and a hash of its values, and syncs the file."""
    write_atomic(path, json.dumps({**value, HASH: _hash(value)}, indent=1))


def read(
    path: Path, shape: Shape | None = None, *, without_hash: Callable[[dict[str, Any]], bool] | None = None
) -> Record:
    """Reads an object.

    Args:
        path: of the file.
        shape: checks of its values.
        without_hash: whether an object without a hash may come from an older version. None: such files have no hash.
    """
    try:
        content = disk.current.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return Record()
    except OSError as error:
        return Record(problem=f"{path.name} {UNREADABLE} ({error.strerror or error})")
    return parse(path.name, content, shape, without_hash=without_hash)


def parse(
    name: str,
    content: bytes,
    shape: Shape | None = None,
    *,
    without_hash: Callable[[dict[str, Any]], bool] | None = None,
) -> Record:
    """As ``read``, from the content of a file called ``name``."""
    value = _parse(content)
    if value is None:
        return Record(problem=f"{name} is damaged: it is not a JSON object")
    if without_hash is not None:
        claimed = value.pop(HASH, None)
        if claimed is None and not without_hash(value):
            return Record(problem=f"{name} is damaged: it has no hash")
        if claimed is not None and claimed != _hash(value):
            return Record(problem=f"{name} is damaged: it does not have the hash that it was written with")
    wrong = misfit(value, shape or {})
    return Record(value) if wrong is None else Record(problem=f"{name} is damaged: {wrong}")


def read_lines(path: Path, shape: Shape | None = None) -> Lines:
    """Reads a file of objects, one per line."""
    try:
        content = disk.current.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return Lines()
    except OSError as error:
        return Lines(problem=f"{path.name} {UNREADABLE} ({error.strerror or error})")
    pieces = content.split(b"\n")
    cut = pieces.pop()  # after the last newline: empty, or a line that a kill cut short
    values, num_damaged = [], 0
    for piece in [*pieces, *([cut] if cut else [])]:
        value = _parse(piece)
        if value is not None and misfit(value, shape or {}) is None:
            values.append(value)
        elif piece and piece is not cut:
            num_damaged += 1
    return Lines(values, num_damaged)


def misfit(value: Mapping[str, Any], shape: Shape) -> str | None:
    """Which value is missing or fails its check, or None."""
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
