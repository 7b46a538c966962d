"""Images that a user names: files, folders of images, and packed splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.sources.entries import IMAGE_EXTENSIONS, Walk
from pipelines.sources.entries import images_of as images_below
from pretrain.data.ledger import Ledger
from pretrain.errors import DataError

IMAGES = "images"  # their account in the ledger


class GivenImage(NamedTuple):
    """One image: its name, a function that reads its bytes, and in a packed split the names of its classes."""

    name: str
    read: Callable[[], bytes]
    truth: str = ""


def images_of(paths: Sequence[Path], ledger: Ledger) -> Iterator[GivenImage]:
    """Lists files, folders of images (also nested), and packed splits.

    Each image is recorded in the ledger when it is found, as is everything else in the folders.

    Raises:
        DataError: one does not exist, or holds no image.
    """
    from pretrain.data.storage.index import TABLE_FILE

    for path in paths:
        if path.is_file():
            found = iter([GivenImage(str(path), path.read_bytes)])
        elif (path / TABLE_FILE).is_file():
            found = _packed(path)
        elif path.is_dir():
            found = _in_folder(path, ledger)
        else:
            raise DataError(f"{path} does not exist: give images, folders of images, or the folder of a packed split")
        for source in found:
            ledger.found(IMAGES)
            yield source


def _in_folder(folder: Path, ledger: Ledger) -> Iterator[GivenImage]:
    found = images_below(Walk(folder, ledger))
    if not found:
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        raise DataError(f"{folder}: no image in it ({known}), and no packed split either")
    yield from (GivenImage(str(folder / path), (folder / path).read_bytes) for path, _ in found)


def _packed(folder: Path) -> Iterator[GivenImage]:
    from pretrain.data.storage.classes import load_classes, told_apart
    from pretrain.data.storage.index import ShardTable
    from pretrain.data.workers.reader import ShardReader

    table = ShardTable.load(folder)
    if not table.num_samples:
        raise DataError(f"{folder}: holds no image; pack it again, or name another split")
    reader = ShardReader(table)
    classes = told_apart(load_classes(folder)) if table.target == "labels" else []
    for sample_id in range(table.num_samples):
        shard, record = reader.record(sample_id)
        truth = "; ".join(classes[label] for label in record.labels) if classes else ""
        yield GivenImage(record.shown_in(shard), lambda sample_id=sample_id: reader.read(sample_id).data, truth)
