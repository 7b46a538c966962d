"""Small copies of images for a page: those behind predictions, and drawings in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.pages.pictures import Picture, embedded, thumbnail
from pipelines.weights.results import Predicted, Result
from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.data.storage.packed_set import open_packed
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import BadSample, DataError, UserError
from pretrain.names import shown

DRAWING_WIDTH = 1200  # pixels


class Shown(NamedTuple):
    """A prediction with its image."""

    picture: Picture | None
    name: str
    truth: str
    predicted: str
    score: str
    right: bool


class Drawing(NamedTuple):
    """A picture of ``figures``."""

    name: str
    picture: Picture


def shown_with_pictures(result: Result, groups: Sequence[Sequence[Predicted]]) -> tuple[list[list[Shown]], str]:
    """Each group of predictions with its images; and why these cannot be shown, or an empty text."""
    pictures: dict[int, Picture | None] = {}
    problem = ""
    try:
        packed = open_packed(result.shards, AutoClusterConfig())
        reader = ShardReader(packed.table, packed.store(AutoClusterConfig(), 1))
        for one in {one for group in groups for one in group}:
            pictures[one.index] = _picture(reader, one)
    except (UserError, OSError, LookupError) as error:
        problem = str(error)
    return [[_shown(one, pictures.get(one.index)) for one in group] for group in groups], problem


def _picture(reader: ShardReader, one: Predicted) -> Picture | None:
    """Raises DataError if the set has changed since it was evaluated."""
    shard, record = reader.record(one.index)
    name = shown(record.shown_in(shard))
    if name != one.image:
        raise DataError(f"image {one.index} is {name} now, and was {one.image} when it was evaluated; evaluate again")
    try:
        return thumbnail(reader.read(one.index).data)
    except BadSample:
        return None


def _shown(one: Predicted, picture: Picture | None) -> Shown:
    return Shown(picture, one.image, one.truth, one.predicted, f"{one.score:.0%}", one.right)


def drawings_of(folder: Path) -> list[Drawing]:
    """Every PNG of a folder.

    Raises:
        DataError: one cannot be read.
    """
    found = []
    for file in sorted(folder.glob("*.png")):
        try:
            found.append(Drawing(file.stem.replace("_", " "), embedded(file.read_bytes(), DRAWING_WIDTH)))
        except (BadSample, OSError) as error:
            raise DataError(f"--figures {file}: cannot be read: {error}; draw it again with figures") from error
    return found
