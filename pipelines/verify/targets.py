"""The splits to check: the tars of each, and the location of its index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.sources.file_patterns import expand_braces, files_with, is_remote
from pipelines.sources.remote import RemoteFiles, place_of
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import CARD_FILE
from pretrain.data.storage.classes import CLASSES_FILE
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.data.storage.location import Location
from pretrain.data.storage.transport import Missing
from pretrain.errors import ConfigError, DataError


@dataclass(frozen=True)
class Target:
    """One split.

    Attributes:
        names: of its tars.
        folder: of its index.
        location: where the tars are if they are remote.
        beside: the other files in the folder of local tars.
        below: the path of that folder below the one that the user gave, or above all that were given; "": it is that.
    """

    names: tuple[str, ...]
    folder: Path
    location: Location | None = None
    beside: Ledger = field(default_factory=Ledger, compare=False)
    below: str = ""

    def __str__(self) -> str:
        return str(self.location or self.folder)


def targets_of(places: Sequence[str], out: Path | None, remote: RemoteFiles, temporary: Path) -> list[Target]:
    """The splits at the given places.

    Args:
        places: folders, URLs of packed sets, URLs of tars.
        out: folder for the index of remote tars.
        remote: fetches remote files.
        temporary: folder for the indexes that are fetched where ``out`` is not given.

    Raises:
        ConfigError: ``out`` is not possible for a place. DataError: there are no tars.
    """
    targets: list[Target] = []
    local = [os.path.abspath(place) for place in places if not is_remote(place)]
    given = os.path.commonpath(local) if local else ""
    for number, place in enumerate(places):
        if not is_remote(place):
            targets += _local_targets(Path(place), out, given)
        elif ".tar" in place:
            targets.append(_remote_tars(place, out, remote))
        else:
            targets.append(_remote_set(place, out or temporary / str(number), remote))
    return targets


def _local_targets(place: Path, out: Path | None, given: str) -> list[Target]:
    if out is not None:
        raise ConfigError(f"--out is for remote shards; the index of {place} is written next to them")
    if place.suffix.lower() == ".tar":
        raise ConfigError(f"{place}: give the folder; an index is of a complete set")
    if not place.is_dir():
        raise DataError(f"{place} is not a folder")
    folders = sorted(entry for entry in place.iterdir() if entry.is_dir())
    targets = [_target(folder, given) for folder in (place, *folders)]
    targets = targets[:1] if targets[0].names else [target for target in targets if target.names]
    if not targets:
        raise DataError(f"{place} holds no .tar, and neither do its folders")
    return targets


def _target(folder: Path, given: str) -> Target:
    """The tars of one folder, not those of folders below."""
    ledger = Ledger()
    below = os.path.relpath(os.path.abspath(folder), given)
    names = [Path(path).name for path in files_with(folder, ".tar", ledger, deep=False)]
    return Target(tuple(names), folder, beside=ledger, below="" if below == "." else below)


def _remote_tars(pattern: str, out: Path | None, remote: RemoteFiles) -> Target:
    """Tars that are given individually; their index goes into ``out``."""
    if out is None:
        raise ConfigError("--out DIR is missing: the folder for the index of remote shards, to be copied next to them")
    places = [place_of(url) for url in expand_braces(pattern)]
    locations = sorted({str(location) for location, _ in places})
    if len(locations) > 1:
        raise ConfigError(f"{pattern} names several places ({', '.join(locations[:3])}); an index is of a complete set")
    location = places[0][0]
    remote.check(location)
    out.mkdir(parents=True, exist_ok=True)
    return Target(tuple(name for _, name in places), out, location)


def _remote_set(place: str, folder: Path, remote: RemoteFiles) -> Target:
    """A set with an index, which is fetched into ``folder``."""
    location = Location.parse(place)
    remote.check(location)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TABLE_FILE, CARD_FILE, CLASSES_FILE):
        try:
            remote.fetch(location, name, folder / name)
        except Missing as error:
            (folder / name).unlink(missing_ok=True)
            raise DataError(
                f"{error}. Shards without index and card get them by naming the tars: python -m pipelines verify "
                f"'{location.url('shard-{000000..000127}.tar')}' --out index/"
            ) from error
    return Target(tuple(row.name for row in ShardTable.load(folder).rows), folder, location)
