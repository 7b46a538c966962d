"""The data set card: the content, origin and classes of a packed split.

DIR/card.json    this model     DIR/card.md    the same as text     DIR/classes.csv    index,id,name
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pretrain.data.ledger import Account, Ledger
from pretrain.data.storage.classes import CLASSES_FILE, encode_classes
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.data.storage.records import REMEDY
from pretrain.errors import DataError
from pretrain.files import digest, write_atomic
from pretrain.names import printable, printable_in
from pretrain.redaction import redacted_in

CARD_VERSION = 1
CARD_FILE = "card.json"
READABLE_FILE = "card.md"


class SplitList(BaseModel):
    """A list of the images of a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_samples: int = Field(description="Images in the list.")
    digest: str = Field(description="BLAKE2b-128 of the file.")

    def __str__(self) -> str:
        return f"{self.num_samples:,} images ({self.digest})"


class Card(BaseModel):
    """One split of a data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_secrets(cls, values: Any) -> Any:
        """Redacts the source, which may be a URL with a password or a signature."""
        return redacted_in(values)

    version: Literal[1] = CARD_VERSION
    name: str = Field(description="The data set.")
    split: str = Field(description="train, val or test.")
    source: str = Field(description="The packed source and where it comes from.")
    release: str = Field("", description="Edition of the source.")
    licence: str = Field(description="Licence and terms of the images.")
    homepage: str = Field("", description="Web page about the data set.")
    num_samples: int = Field(description="Images in this split.")
    num_classes: int = Field(description="Classes; the labels are 0 … num_classes − 1. For vectors: their length.")
    labels: Literal["single", "multi", "vector", "mask"] = Field(
        description="Target of an image: one label (single), any number of labels (multi), a vector, or a mask."
    )
    max_labels: int = Field(description="The most labels that one image has; at least 2 where an image has none.")
    negatives: int = Field(default=0, description="Images with none of the classes.")
    num_shards: int = Field(description="Tars.")
    num_bytes: int = Field(description="Bytes of all tars.")
    split_rule: str = Field("", description="How each image was assigned to a split.")
    held_out: str = Field("", description="The rule by which images were held out of training.")
    selection: str = Field("", description="Which part of the source was taken.")
    lists: dict[str, SplitList] = Field(
        default_factory=dict, description="Split → the source's list of its images, for every split."
    )
    quarantined: dict[str, int] = Field(default_factory=dict, description="Reason → images of this split left out.")
    dropped: dict[str, int] = Field(default_factory=dict, description="Reason → excluded images of the source.")
    changed: dict[str, int] = Field(default_factory=dict, description="Kind of change → images of this split.")
    short_sides: dict[str, int] = Field(
        default_factory=dict, description="Shorter side in pixels, from this size up to twice it → images."
    )
    class_counts: list[int] = Field(default_factory=list, description="Images per class.")
    target_mean: list[float] = Field(default_factory=list, description="Mean of each number of the vectors.")
    target_std: list[float] = Field(
        default_factory=list, description="Standard deviation of each number of the vectors, of the whole population."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Options that differ from their defaults.")
    ledger: dict[str, Account] = Field(
        default_factory=dict,
        description="Kind of item in the source → how many are used, and how many are left out and why.",
    )
    shuffle_seed: int = Field(description="Seed of the global shuffle.")
    classes_digest: str = Field(description="BLAKE2b-128 of classes.csv.")
    index_digest: str = Field(description="Digest of the shard table.")
    facts_digest: str = Field(default="", description="BLAKE2b-128 of the numbers and digests that training reads.")

    @model_validator(mode="before")
    @classmethod
    def _printable(cls, content: Any) -> Any:
        return printable_in(content)

    @classmethod
    def load(cls, folder: str | Path) -> Card:
        """Reads card.json and checks classes.csv against it.

        Raises:
            DataError: the card is missing, of another version, or classes.csv was changed.
        """
        path = Path(folder) / CARD_FILE
        try:
            card = cls.model_validate_json(path.read_bytes())
            classes = (Path(folder) / CLASSES_FILE).read_bytes()
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}; the folder is not completely packed") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path}: not a card of version {CARD_VERSION}: {where}: {first['msg']}") from error
        if digest(classes) != card.classes_digest:
            raise DataError(f"{folder}/{CLASSES_FILE} was changed after packing: it no longer fits {CARD_FILE}")
        if card.facts_digest and card.facts_digest != card._digest_of_facts():
            raise DataError(
                f"{path} was changed or damaged: one of {', '.join(_READ_BY_TRAINING)} is not what was packed. Copy it "
                "again from where it was packed, or pack the set again; texts such as the licence may be changed"
            )
        return card

    def save(self, folder: Path, classes: list[tuple[str, str]]) -> None:
        """Writes the card and its classes, (id, name) in index order, into a split's folder; card.json comes last."""
        write_atomic(folder / CLASSES_FILE, encode_classes(classes))
        write_atomic(folder / READABLE_FILE, self.to_markdown(classes))
        write_atomic(folder / CARD_FILE, self.to_json())

    def to_json(self) -> bytes:
        """card.json; equal cards give equal bytes."""
        content = self.model_dump() | {"facts_digest": self._digest_of_facts()}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    def _digest_of_facts(self) -> str:
        facts = {name: getattr(self, name) for name in _READ_BY_TRAINING}
        return digest(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())

    def facts(self) -> list[tuple[str, str]]:
        """(name, value as text) of every known field; long lists are summarised."""
        own = {
            "short_sides": ", ".join(f"{size} – {2 * int(size) - 1} px: {n:,}" for size, n in self.short_sides.items())
        }
        if counts := self.class_counts:
            own["class_counts"] = f"{len(counts):,} classes of {min(counts):,} to {max(counts):,} images"
        own["ledger"] = "; ".join(
            f"{one.found:,} {kind}: {one.num_lost:,} left out" for kind, one in self.ledger.items()
        )
        for name in ("target_mean", "target_std"):
            own[name] = ", ".join(f"{number:.4g}" for number in getattr(self, name))
        found = [(name, own[name] if name in own else _shown(getattr(self, name))) for name in type(self).model_fields]
        return [(name, value) for name, value in found if value not in ("", "None", "[]")]

    def to_markdown(self, classes: list[tuple[str, str]] | None = None) -> bytes:
        """card.md.

        Args:
            classes: (id, name) in index order, to name the largest and smallest classes.
        """
        rows = [(name, _shown(getattr(self, name))) for name in type(self).model_fields if name not in _OWN_SECTION]
        described = {name: info.description or "" for name, info in type(self).model_fields.items()}
        lines = [f"| {name} | {value} | {described[name]} |" for name, value in rows if value != ""]
        lines = [f"# {self.name}, {self.split}", "", "| | | |", "|---|---|---|", *lines, ""]
        lines += self._ledger_lines()
        lines += _histogram("Shorter side in pixels", self.short_sides)
        lines += self._class_lines(classes) if classes and self.class_counts else []
        lines += self._target_lines(classes) if classes and self.target_mean else []
        return "\n".join(lines).encode()

    def _ledger_lines(self) -> list[str]:
        found = Ledger(self.ledger).lines()
        return ["## Where everything went", "", "```", *found, "```", ""] if found else []

    def _class_lines(self, classes: list[tuple[str, str]]) -> list[str]:
        by_count = sorted(range(len(classes)), key=lambda index: (-self.class_counts[index], index))
        shown = by_count if len(by_count) <= 2 * _SHOWN_CLASSES else by_count[:_SHOWN_CLASSES]
        last = [] if shown is by_count else by_count[-_SHOWN_CLASSES:]
        lines = [f"## Images per class{'' if not last else f': the {_SHOWN_CLASSES} largest and smallest'}", ""]
        lines += ["| index | id | name | images |", "|---|---|---|---|"]
        for index in shown + last:
            identifier, name = (_shown(printable(text)) for text in classes[index])
            lines.append(f"| {index} | {identifier} | {name} | {self.class_counts[index]:,} |")
        return [*lines, ""]

    def _target_lines(self, classes: list[tuple[str, str]]) -> list[str]:
        lines = [
            "## Numbers of an image",
            "",
            "| index | id | name | mean | standard deviation |",
            "|---|---|---|---|---|",
        ]
        for index, (mean, std) in enumerate(zip(self.target_mean, self.target_std, strict=True)):
            identifier, name = (_shown(printable(text)) for text in classes[index])
            lines.append(f"| {index} | {identifier} | {name} | {mean:.6g} | {std:.6g} |")
        return [*lines, ""]


_READ_BY_TRAINING = (
    "num_samples",
    "num_classes",
    "labels",
    "max_labels",
    "num_shards",
    "num_bytes",
    "class_counts",
    "target_mean",
    "target_std",
    "classes_digest",
    "index_digest",
)
_OWN_SECTION = ("name", "ledger", "short_sides", "class_counts", "target_mean", "target_std")
_SHOWN_CLASSES = 20


def _histogram(title: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    rows = [f"| {size} – {2 * int(size) - 1} | {count:,} |" for size, count in counts.items()]
    return [f"## {title}", "", "| pixels | images |", "|---|---|", *rows, ""]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items()).replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


_KINDS = {"labels": ("single", "multi"), "vector": ("vector",), "mask": ("mask",)}


def check_card(card: Card, table: ShardTable, where: str) -> None:
    """Compares a card with the shard table.

    Args:
        card: of the set.
        table: of the set.
        where: the set, for messages.

    Raises:
        DataError: names the first value in which they differ, or that is impossible.
    """
    if table.digest != card.index_digest:
        raise DataError(f"{where}: {TABLE_FILE} and {CARD_FILE} come from two packs (one of them is stale). {REMEDY}")
    expected = {
        "num_samples": table.num_samples,
        "num_classes": table.num_classes,
        "max_labels": table.max_labels,
        "num_shards": len(table.rows),
        "num_bytes": sum(row.num_bytes for row in table.rows),
    }
    for name, value in expected.items():
        if getattr(card, name) != value:
            raise _changed(where, f"{name} is {getattr(card, name):,}, {TABLE_FILE} has {value:,}")
    if card.labels not in _KINDS[table.target]:
        raise _changed(where, f"labels is {card.labels}, {TABLE_FILE} has the target {table.target}")
    counts = card.class_counts
    if counts and (len(counts) != card.num_classes or min(counts) < 0 or max(counts) > card.num_samples):
        raise _changed(where, f"class_counts are not {card.num_classes:,} numbers of images")
    if table.target == "vector":
        _check_moments(card, table, where)


def _check_moments(card: Card, table: ShardTable, where: str) -> None:
    mean, std = card.target_mean, card.target_std
    if {len(mean), len(std)} != {table.num_classes} or not all(map(math.isfinite, (*mean, *std))) or min(std) < 0:
        raise _changed(where, f"target_mean and target_std are not {table.num_classes} numbers each")
    if card.facts_digest or not table.num_samples:
        return
    # cards of an earlier version have no digest of these numbers
    total = squares = np.zeros(table.num_classes)
    for vectors in _vectors(table):
        total = total + vectors.sum(axis=0)
    true_mean = total / table.num_samples
    for vectors in _vectors(table):
        squares = squares + ((vectors - true_mean) ** 2).sum(axis=0)
    true_std = np.sqrt(squares / table.num_samples)
    near = 1e-6 * (np.abs(true_mean) + true_std) + 1e-12
    if np.any(np.abs(np.array(mean) - true_mean) > near) or np.any(np.abs(np.array(std) - true_std) > near):
        raise _changed(where, "target_mean and target_std are not those of the vectors")


def _vectors(table: ShardTable) -> Iterator[NDArray[np.float64]]:
    for shard, row in enumerate(table.rows):
        if row.num_samples:
            yield table.open_records(shard).vectors


def _changed(where: str, what: str) -> DataError:
    return DataError(f"{where}: {CARD_FILE} was changed or damaged: {what}. {REMEDY}")
