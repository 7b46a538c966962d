"""Damages one sample of a set in a loader's own form, in which its JPEG is found by its bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.conformance.loaders import marks

TAR_HEADER = 512


class NotFoundError(Exception):
    """The sample's bytes are in no file, for example because the form is compressed."""


def find(folder: Path, number: int) -> tuple[Path, int, int]:
    """File, offset and length of a sample's JPEG.

    Raises:
        NotFoundError: it is in no file.
    """
    wanted = marks.drawn(number)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (start := path.read_bytes().find(wanted)) >= 0:
            return path, start, len(wanted)
    raise NotFoundError(f"the bytes of sample {number} are in no file of the set")


def truncate(folder: Path, number: int) -> Path:
    """Cuts the file before the sample: in a tar, before its header, so that no partial member remains."""
    path, start, _ = find(folder, number)
    _cut(path, start - TAR_HEADER if path.suffix == ".tar" else start)
    return path


def cut_member(folder: Path, number: int) -> Path:
    """Cuts the file in the middle of the sample."""
    path, start, length = find(folder, number)
    _cut(path, start + length // 2)
    return path


def flip(folder: Path, number: int) -> Path:
    """Flips a bit of the sample after which the image can still be decoded, but shows another number."""
    path, start, length = find(folder, number)
    data = bytearray(path.read_bytes())
    for place in range(start + length - 20, start, -1):
        data[place] ^= 0x10
        try:
            if marks.numbers([marks.decoded(bytes(data[start : start + length]))]) != [number]:
                path.write_bytes(data)
                return path
        except (OSError, ValueError, SyntaxError):
            pass
        data[place] ^= 0x10
    raise NotFoundError(f"no flipped bit of sample {number} changes what it shows")


def overwrite(folder: Path, number: int) -> Path:
    """Replaces the sample's image by zeros."""
    path, start, length = find(folder, number)
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    return path


def _cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGES: dict[str, Callable[[Path, int], Path]] = {
    "truncated": truncate,
    "cut_member": cut_member,
    "flipped": flip,
    "bad_image": overwrite,
}
