"""The two-level index beside the tars: a table of shards, which defines their order, and one record file per shard.

DIR/index.json                          one row per shard: name, samples, bytes, digest of its record file
DIR/shard-000000.tar                    an ordinary WebDataset shard
DIR/shard-000000.records.safetensors    offsets, sizes, CRC-32 and labels of its images, read with the shard

Labels are in CSR form: record i has ``labels[label_starts[i]:label_starts[i + 1]]``. Names are stored in the
same way, as bytes that need not be UTF-8. A set of vectors has a column ``vectors`` of N · D numbers, and a set of
masks has columns that locate the masks; columns that a set does not need are absent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pretrain.config.schema.data import Target
from pretrain.data.storage.index_checks import check_table, check_within, problem_in_rows
from pretrain.data.storage.open_files import check_descriptors
from pretrain.data.storage.records import PADDING_LABEL, REMEDY, Records, records_name
from pretrain.errors import DataError
from pretrain.files import digest, write_atomic

FORMAT = "webdataset-index"
VERSION = 1
TABLE_FILE = "index.json"


def max_labels_of(num_labels: NDArray[np.int64], before: int = 1) -> int:
    """The ``max_labels`` of a set with images of so many labels, int64 (n,); ``before`` is that of its other images.

    At least 2 where an image has none: a set in which not every image has exactly one label is a multi-label set.
    """
    return max(before, int(num_labels.max(initial=0)), 2 if np.any(num_labels == 0) else 1)


@dataclass(frozen=True)
class ShardRow:
    """One shard in the table. ``records`` is the digest of its record file, ``num_bytes`` the size of its tar."""

    name: str
    num_samples: int
    num_bytes: int
    records: str


class ShardTable:
    """The shards of one split in canonical order.

    Attributes:
        folder: where tars and record files are.
        rows: the shards.
        num_classes: number of classes; for vectors, their length.
        max_labels: the largest number of labels of a sample.
        target: kind of target that a sample has.
        sizes: int64 (S,), samples per shard.
        starts: int64 (S + 1,), sample id of each shard's first record; the last one is the number of samples.
        digest: of the table's content.
        find_records: shard name → its record file, if that is not in the folder (for remote sets).
        forget_records: drops that file, so that it is fetched again.
    """

    def __init__(
        self, folder: Path, rows: Sequence[ShardRow], *, num_classes: int, max_labels: int, target: Target = "labels"
    ) -> None:
        self.folder = Path(folder)
        self.rows = tuple(rows)
        self.num_classes = num_classes
        self.max_labels = max_labels
        self.target: Target = target
        self.sizes = np.array([row.num_samples for row in self.rows], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.digest = digest(_canonical(self._content()))
        self.find_records: Callable[[str], Path] | None = None
        self.forget_records: Callable[[str], None] | None = None

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return int(self.starts[-1])

    def locate(self, sample_ids: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard and record of each sample id, both int64 of its shape."""
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        assert np.all((sample_ids >= 0) & (sample_ids < self.num_samples)), "a sample id is outside the set"
        shards = self.starts.searchsorted(sample_ids, side="right") - 1
        return shards, sample_ids - self.starts[shards]

    def records_path(self, shard: int) -> Path:
        """Local path of a shard's record file."""
        if self.find_records is not None:
            return self.find_records(self.rows[shard].name)
        return self.folder / records_name(self.rows[shard].name)

    def open_records(self, shard: int) -> Records:
        """The record file of a shard, compared with the table.

        Raises:
            DataError: it is missing, damaged, or does not belong to the table. SetupError: too many open files.
        """
        try:
            return self._opened(shard)
        except DataError:
            if self.forget_records is None:
                raise
        self.forget_records(self.rows[shard].name)  # this node's copy was damaged or evicted: it is fetched again
        return self._opened(shard)

    def _opened(self, shard: int) -> Records:
        row, path = self.rows[shard], self.records_path(shard)
        records = Records.open(path, digest_wanted=row.records, num_samples=row.num_samples)
        bounds = (row.num_bytes, self.num_classes, self.max_labels)
        try:
            check_within(records.columns, self.target, *bounds)
        except ValueError as error:
            raise DataError(f"{path}: does not fit {TABLE_FILE}: {error}. {REMEDY}") from error
        return records

    def check_files(self) -> None:
        """Compares the folder with the table: every tar and record file must exist, and every tar must have its size.

        Raises:
            DataError: names the first shard that is missing or has the wrong size, and counts the others.
        """
        wrong = [problem for row in self.rows for problem in self._problems(row)]
        if wrong:
            more = f" (and {len(wrong) - 1} more problems like this)" if len(wrong) > 1 else ""
            raise DataError(f"{self.folder}: {wrong[0]}{more}. {REMEDY}")

    def _problems(self, row: ShardRow) -> list[str]:
        tar, records = self.folder / row.name, self.folder / records_name(row.name)
        if not tar.is_file():
            return [f"shard {row.name} is missing"]
        size = tar.stat().st_size
        if size != row.num_bytes:
            what = "truncated" if size < row.num_bytes else "not the file that was indexed"
            return [f"shard {row.name} is {what}: it has {size} bytes, not the {row.num_bytes} in {TABLE_FILE}"]
        return [] if records.is_file() else [f"record file {records.name} is missing"]

    def save(self) -> None:
        """Writes index.json atomically.

        Raises:
            DataError: a shard has a name that readers refuse.
        """
        self._check_rows()
        write_atomic(self.folder / TABLE_FILE, _dump(self._content() | {"digest": self.digest}))

    @classmethod
    def load(cls, folder: str | Path) -> ShardTable:
        """Reads index.json.

        Raises:
            DataError: the folder or the file is missing, has another version, or was changed after it was written.
        """
        path = Path(folder) / TABLE_FILE
        content = _read_table(path)
        try:
            check_table(content)
            rows = [ShardRow(*row) for row in content["shards"]]
            settings = {name: content[name] for name in ("num_classes", "max_labels")}
            table = cls(Path(folder), rows, **settings, target=content.get("target", "labels"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: not a complete index ({error}). {REMEDY}") from error
        if table.digest != content.get("digest"):
            raise DataError(
                f"{path} was changed or damaged: its rows give the digest {table.digest}, not the one written in it. "
                f"{REMEDY}"
            )
        table._check_rows()
        return table

    def _check_rows(self) -> None:
        problem = problem_in_rows([(row.name, row.num_samples, row.num_bytes) for row in self.rows])
        if problem:
            raise DataError(f"{self.folder / TABLE_FILE}: {problem}. Rename or pack the shards, and index them again")

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "num_samples": int(self.sizes.sum()),
            "num_classes": self.num_classes,
            "max_labels": self.max_labels,
            **({} if self.target == "labels" else {"target": self.target}),
            "columns": ["name", "num_samples", "num_bytes", "records"],
            "shards": [[row.name, row.num_samples, row.num_bytes, row.records] for row in self.rows],
        }


def _read_table(path: Path) -> dict[str, Any]:
    if not path.is_file():
        num_tars = len(list(path.parent.glob("*.tar")))
        if num_tars:
            raise DataError(
                f"{path} does not exist: the {num_tars} shards in {path.parent} have no index yet. "
                f"Make it with: python -m pipelines verify {path.parent}"
            )
        raise DataError(
            f"{path} does not exist: {path.parent} is not (or not completely) packed. "
            f"Make it with: python -m pipelines pack SOURCE --out {path.parent.parent}"
        )
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        check_descriptors(error, str(path))
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}). {REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: not an index of shards (its format should be {FORMAT!r}). {REMEDY}")
    if content.get("version") != VERSION:
        raise DataError(f"{path}: index version {content.get('version')!r}, this program reads version {VERSION}.")
    return content


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _dump(content: dict[str, Any]) -> bytes:
    """JSON with one shard per line, so that tables work with line-based tools."""
    shards = ",\n".join(json.dumps(row) for row in content["shards"])
    head = json.dumps({key: value for key, value in content.items() if key != "shards"}, indent=1)
    return f'{head[:-2]},\n "shards": [\n{shards}\n]\n}}\n'.encode()


def read_labels(table: ShardTable) -> NDArray[np.int64]:
    """Labels of every sample in canonical order, int64 (N, M), padded with −1.

    Raises:
        DataError: a record file is missing or stale.
    """
    labels = np.full((table.num_samples, table.max_labels), PADDING_LABEL, dtype=np.int64)
    for shard, first in enumerate(table.starts[:-1].tolist()):
        columns = table.open_records(shard).columns
        counts = np.diff(columns["label_starts"])
        rows = first + np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(columns["labels"])) - np.repeat(columns["label_starts"][:-1], counts)
        labels[rows, places] = columns["labels"]
    return labels


def read_sources(table: ShardTable) -> list[str]:
    """The packer's key of every sample in canonical order, such as the path of the file that was packed.

    Raises:
        DataError: a record file is missing or stale.
    """
    sources: list[str] = []
    for shard in range(len(table.rows)):
        records = table.open_records(shard)
        sources += [records[index].source for index in range(len(records))]
    return sources


def num_in_common(first: ShardTable, second: ShardTable) -> int:
    """Number of images of ``second`` with the same size and CRC-32 as an image of ``first``.

    Two different images of one size match by chance in one of four billion cases. Re-encoded images are not found; that
    is the task of de-duplication.

    Raises:
        DataError: a record file is missing or stale.
    """
    return int(np.isin(_names(second), _names(first)).sum())


def _names(table: ShardTable) -> NDArray[np.uint64]:
    """(size, CRC-32) of every image, packed into one number."""
    parts = [np.zeros(0, np.uint64)]
    for shard in range(len(table.rows)):
        records = table.open_records(shard)
        parts.append(
            (records.columns["sizes"].astype(np.uint64) << np.uint64(32)) | records.columns["crc32"].astype(np.uint64)
        )
    return np.concatenate(parts)
