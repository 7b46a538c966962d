"""The sets that all loaders read: tars of numbered images, sorted by class as photos often are."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.conformance.loaders import marks


@dataclass(frozen=True)
class TarSet:
    """A set of shards.

    Attributes:
        sizes: samples of each shard.
        first: number of the first sample; the others follow.
    """

    sizes: tuple[int, ...]
    first: int = 0

    @property
    def numbers(self) -> range:
        """The numbers of the samples, in the order of the tars."""
        return range(self.first, self.first + sum(self.sizes))


SETS = {
    "even": TarSet((80,) * 12),
    "uneven": TarSet((90, 13, 50, 7, 120, 31, 1)),
    "other": TarSet((20,) * 12, first=60_000),
    "long": TarSet((500,) * 100),
}


def write(folder: Path, made: TarSet) -> None:
    """``shard-000000.tar`` and so on; member names are the numbers of the samples."""
    folder.mkdir(parents=True)
    numbers = iter(made.numbers)
    for index, size in enumerate(made.sizes):
        with tarfile.open(folder / f"shard-{index:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in (next(numbers) for _ in range(size)):
                _add(tar, f"{number:09d}.jpg", marks.drawn(number))
                _add(tar, f"{number:09d}.cls", str(number).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def samples(tars: Path) -> list[tuple[int, bytes]]:
    """(number, JPEG) of all samples of a folder, for loaders that convert them."""
    return [sample for path in sorted(tars.glob("*.tar")) for sample in samples_of(path)]


def samples_of(path: Path) -> list[tuple[int, bytes]]:
    """(number, JPEG) of the samples of a tar."""
    with tarfile.open(path) as tar:
        images = [member for member in tar if member.name.endswith(".jpg")]
        return [(int(member.name[:-4]), tar.extractfile(member).read()) for member in images]  # type: ignore[union-attr]


def copy(tars: Path, out: Path) -> Sequence[Path]:
    """The tars themselves in ``out``, for loaders that read them."""
    out.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(path, out / path.name)) for path in sorted(tars.glob("*.tar"))]
