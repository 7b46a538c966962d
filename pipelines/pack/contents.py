"""Digests of the source's images, one per shard, by which a later run detects a changed pixel.

OUT/.contents/SPLIT/shard-000000    written before the shard counts as done
OUT/contents.json                   all of them, when the pack is complete
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.pack.plan import Plan, Shard
from pipelines.runs.processes import Progress, run_tasks
from pipelines.sources.protocol import Item, Source
from pipelines.terminal.output import LazyBar
from pretrain.errors import DataError
from pretrain.files import write_atomic
from pretrain.names import shown

FOLDER, FILE = ".contents", "contents.json"
UNREADABLE = b"unreadable"


class Reading:
    """Reads images, and masks if there are any, and computes a digest of everything read.

    Args:
        source: of the images.
        masked: images have masks.
    """

    def __init__(self, source: Source, *, masked: bool) -> None:
        self._source, self._masked = source, masked
        self._seen = hashlib.blake2b(digest_size=16)

    def read(self, item: Item) -> tuple[bytes, str, bytes]:
        """The image, its extension and its mask.

        Raises:
            OSError: one of them cannot be read.
        """
        try:
            data, extension = self._source.read(item)
            mask = self._source.read_mask(item) if self._masked else b""
        except OSError:
            self._seen.update(UNREADABLE)
            raise
        for part in (data, mask):
            self._seen.update(len(part).to_bytes(8, "little") + part)
        return data, extension, mask

    def digest(self) -> str:
        """Digest of everything that was read, in order."""
        return self._seen.hexdigest()

    def save(self, folder: Path, shard: str) -> None:
        """Records the digest of a shard in a split's folder."""
        path = _path(folder, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.digest())


def finish_contents(out: Path, plan: Plan) -> None:
    """Collects the digests of all shards in one file."""
    shards = [(out / split.name, shard) for split in plan.splits for shard in split.shards]
    found = {_name(folder, shard): known for folder, shard in shards if (known := _known(out, folder, shard))}
    write_atomic(out / FILE, json.dumps(found, indent=0) + "\n")
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def check_contents(
    out: Path, shards: Sequence[tuple[Path, Shard]], source: Source, *, masked: bool, num_workers: int
) -> bool:
    """Reads the source of finished shards again and compares it with what was packed.

    Args:
        out: the pack's folder.
        shards: (folder of the split, shard).
        source: of the images.
        masked: images have masks.
        num_workers: processes.

    Returns:
        False if some were packed by an earlier version, which recorded no digests.

    Raises:
        DataError: an image has changed.
    """
    known = [(folder, shard, _known(out, folder, shard)) for folder, shard in shards]
    tasks = [entry for entry in known if entry[2]]
    job = _Comparison(source, masked)
    with LazyBar("comparing", sum(len(shard.items) for _, shard, _ in tasks), "images") as bar:
        changed = sorted(filter(None, run_tasks(_changed, tasks, job, min(num_workers, len(tasks)), bar.show)))
    if changed:
        raise DataError(
            f"the source has changed since {out} was packed: {len(changed)} of {len(shards)} shards hold an image with "
            f"other bytes now; the first is {changed[0]}. Choose another --out, or delete the folder and pack again"
        )
    return len(tasks) == len(known)


@dataclass(frozen=True)
class _Comparison:
    source: Source
    masked: bool


def _changed(shared: _Comparison, task: tuple[Path, Shard, str], progress: Progress) -> str:
    """A description of the shard if the source of its images has changed, else ""."""
    folder, shard, expected = task
    reading = Reading(shared.source, masked=shared.masked)
    for item in shard.items:
        with contextlib.suppress(OSError):  # the digest shows whether it was readable before
            reading.read(item)
        progress(1)
    first, last = shown(shard.items[0].key), shown(shard.items[-1].key)
    return "" if reading.digest() == expected else f"{_name(folder, shard)} ({first} … {last})"


def _known(out: Path, folder: Path, shard: Shard) -> str:
    path = _path(folder, shard.name)
    if path.is_file():
        return path.read_text()
    return _finished(out).get(_name(folder, shard), "")


def _finished(out: Path) -> dict[str, str]:
    try:
        found = json.loads((out / FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path(folder: Path, shard: str) -> Path:
    return folder.parent / FOLDER / folder.name / shard.removesuffix(".tar")


def _name(folder: Path, shard: Shard) -> str:
    return f"{folder.name}/{shard.name}"
