"""Steps before the plan: unpack files that cannot be read at random, list the images, digest their bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.pack.state import Task, Work
from pipelines.runs.processes import Progress, run_tasks
from pipelines.sources.protocol import Source
from pipelines.sources.table import ItemTable
from pipelines.terminal.output import LazyBar
from pretrain.config.schema.data import Target
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import SplitList
from pretrain.files import write_atomic
from pretrain.names import to_bytes

ROWS_PER_CHUNK = 4096
ABOUT_FILE = "about.json"
TABLE_FOLDER = "table"
UNITS_FOLDER = "units"
CONTENT_FOLDER = "content"


@dataclass(frozen=True)
class About:
    """A source's description, complete after the source has been listed; see ``Source``."""

    name: str
    origin: str
    licence: str
    homepage: str
    release: str
    multi_label: bool
    classes: list[tuple[str, str]]
    notes: list[str]
    lists: dict[str, SplitList]
    target: Target = "labels"
    split_rule: str = ""
    ledger: Ledger = field(default_factory=Ledger)

    @classmethod
    def of(cls, source: Source) -> About:
        """Copies the description from a source."""
        words: dict[str, Any] = {name: getattr(source, name) for name in cls.__dataclass_fields__}
        return cls(**{**words, "lists": dict(source.lists)})

    @classmethod
    def load(cls, path: Path) -> About:
        """Reads the file that ``save`` wrote."""
        content = json.loads(path.read_bytes())
        lists = {split: SplitList.model_validate(entry) for split, entry in content["lists"].items()}
        ledger = Ledger.of_dict(content.get("ledger", {}))
        classes = [tuple(entry) for entry in content["classes"]]
        return cls(**content | {"classes": classes, "lists": lists, "ledger": ledger})

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        lists = {split: entry.model_dump() for split, entry in self.lists.items()}
        write_atomic(path, json.dumps(asdict(self) | {"lists": lists, "ledger": self.ledger.to_dict()}))


@dataclass(frozen=True)
class Preparation:
    """A job's shared part: the source, and the folder to prepare it in."""

    source: Source
    work: Work


def prepare_units(source: Source, work: Work, num_workers: int, task: Task | None) -> None:
    """Lays out the source's files that cannot be read at random; tasks share them out."""
    units = source.units()
    if not units:
        return
    (work.folder / UNITS_FOLDER).mkdir(parents=True, exist_ok=True)
    shared = Preparation(source, work)
    with LazyBar("unpacking", len(units), "files") as bar:
        for _ in run_tasks(_prepare, _rotated(units, task), shared, min(num_workers, len(units)), bar.show):
            pass
    source.use(work.folder / UNITS_FOLDER)


def _prepare(shared: Preparation, unit: str, progress: Progress) -> None:
    folder = shared.work.folder / UNITS_FOLDER
    name = hashlib.blake2b(to_bytes(unit), digest_size=12).hexdigest()

    def work() -> None:
        shared.source.prepare(unit, folder)
        write_atomic(folder / f"{name}.done", "")

    shared.work.once(folder / f"{name}.done", work)
    progress(1)


def _rotated(units: Sequence[str], task: Task | None) -> list[str]:
    """Each task starts at a different file, so that they seldom contend."""
    first = len(units) * (task.number - 1) // task.count if task else 0
    return [*units[first:], *units[:first]]


def list_source(source: Source, work: Work, task: Task | None) -> tuple[ItemTable, About]:
    """The source's list: every single run makes it, the tasks of an array share one."""
    if task is None:
        table = ItemTable.of(source.items())
        return table, About.of(source)
    with work.lock("listing"):
        if not (work.folder / TABLE_FOLDER).is_dir():
            table = ItemTable.of(source.items())
            About.of(source).save(work.folder / ABOUT_FILE)
            table.save(work.folder / TABLE_FOLDER)
    return load_listing(work)


def load_listing(work: Work) -> tuple[ItemTable, About]:
    """The list that the first task made."""
    return ItemTable.load(work.folder / TABLE_FOLDER), About.load(work.folder / ABOUT_FILE)


def digest_content(
    table: ItemTable, source: Source, work: Work, num_workers: int, task: Task | None
) -> NDArray[np.uint64]:
    """uint64 (N, 2): a digest of every row's bytes. Tasks divide the chunks; a kill loses only the last few."""
    (work.folder / CONTENT_FOLDER).mkdir(parents=True, exist_ok=True)
    names = [str(first) for first in range(0, len(table), ROWS_PER_CHUNK)]
    shared = Preparation(source, work)
    chunks = ((int(name), [table[row] for row in _rows(int(name), len(table))]) for name in _rotated(names, task))
    with LazyBar("digesting", len(table), "images") as bar:
        for _ in run_tasks(_digest_chunk, chunks, shared, min(num_workers, len(names)), bar.show):
            pass
    return load_content(table, work)


def load_content(table: ItemTable, work: Work) -> NDArray[np.uint64]:
    """The digests that all chunks hold."""
    parts = [np.load(_chunk_path(work, first)) for first in range(0, len(table), ROWS_PER_CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.uint64)


def _rows(first: int, num_rows: int) -> range:
    return range(first, min(first + ROWS_PER_CHUNK, num_rows))


def _chunk_path(work: Work, first: int) -> Path:
    return work.folder / CONTENT_FOLDER / f"{first:012d}.npy"


def _digest_chunk(shared: Preparation, chunk: tuple[int, list], progress: Progress) -> None:
    first, items = chunk
    path = _chunk_path(shared.work, first)

    def work() -> None:
        digests = b""
        for item in items:
            try:
                data = shared.source.read(item)[0]
            except OSError:  # quarantined when it is packed; here it must only differ from all others
                data = b"unreadable " + to_bytes(item.key)
            digests += hashlib.blake2b(data, digest_size=16).digest()
        buffer = BytesIO()
        np.save(buffer, np.frombuffer(digests, dtype="<u8").reshape(-1, 2))
        write_atomic(path, buffer.getvalue())

    shared.work.once(path, work)
    progress(len(items))
