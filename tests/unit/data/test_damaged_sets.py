"""Damage to the files of a set, a fixed seed and many places: the same samples as before, or an error that names it.

Never a traceback, other labels, or minutes. Text is damaged as JSON (values replaced by every kind of other) and
as bytes; what a digest would find at once is also tried with a digest that fits.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.data.storage.card import CARD_FILE, Card
from pretrain.data.storage.classes import CLASSES_FILE
from pretrain.data.storage.index import TABLE_FILE
from pretrain.data.storage.packed_set import open_packed
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import BadSample, UserError
from pretrain.files import digest
from tests.unit.data.sets import write_set
from tests.unit.data.storage.test_index import _rewrite

ODD: list[Any] = [
    None, True, 0, -1, 1, 7, 10**9, 2**63, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "7",
    "\x1b[31m", "../x", "\udcff", [], {}, [[]], {"a": 1}, [1, 2, 3], "x" * 10_000,
]  # fmt: skip
SIZES = [5, 1, 0, 7]
SLOWEST_S = 20.0  # of the processor: the bound of a hang


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("clean") / "set", SIZES)


@pytest.fixture
def folder(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "set"))


def content_of(folder: Path) -> Any:
    """Everything that training takes from a set, or the kind of error."""
    began = time.process_time()
    try:
        packed = open_packed(str(folder), AutoClusterConfig())
        packed.check_files()
        reader = ShardReader(packed.table)
        samples = [reader.read(number) for number in range(packed.table.num_samples)]
        classes, card = packed.classes, packed.card
        facts = (card.num_samples, card.num_classes, card.class_counts, card.target_mean, packed.table.max_labels)
        found = ([(sample.data, sample.labels) for sample in samples], classes, facts)
    except (UserError, BadSample) as error:
        assert str(error).replace("\n", "").isprintable()
        found = None
    assert time.process_time() - began < SLOWEST_S
    return found


def damaged_tree(random: random.Random, tree: Any) -> Any:
    """A copy with one value, at any depth, replaced, removed or doubled."""
    tree = json.loads(json.dumps(tree))
    branch, path = tree, []
    while isinstance(branch, (dict, list)) and branch and (not path or random.random() < 0.8):
        keys = list(branch) if isinstance(branch, dict) else range(len(branch))
        path.append((branch, random.choice(list(keys))))
        branch = branch[path[-1][1]]
    parent, key = path[-1]
    match random.randrange(4):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.insert(key, parent[key])
        case _:
            parent[key] = random.choice(ODD)
    return tree


def damaged_bytes(random: random.Random, data: bytes) -> bytes:
    at, kind = random.randrange(len(data)), random.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + random.randbytes(random.randrange(1, 9)) + data[at:]
    if kind == 2:
        return data[:at] + data[at + random.randrange(1, 9) :]
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


@pytest.mark.parametrize(
    "name", [TABLE_FILE, CARD_FILE, CLASSES_FILE, "shard-000003.records.safetensors", "shard-000000.tar"]
)
def test_damaged_bytes_change_nothing_without_a_word(folder, clean, name):
    source, expected = random.Random(f"bytes of {name}"), content_of(clean)
    original = (folder / name).read_bytes()
    outcomes = []
    for _ in range(120):
        (folder / name).write_bytes(damaged_bytes(source, original))
        found = content_of(folder)
        assert found in (None, expected)
        outcomes.append(found is None)
    assert sum(outcomes) > 30  # it was damage


def damage_table(folder: Path, source: random.Random) -> None:
    tree = damaged_tree(source, json.loads((folder / TABLE_FILE).read_text()))
    (folder / TABLE_FILE).write_text(json.dumps(tree))


def damage_table_and_digest(folder: Path, source: random.Random) -> None:
    damage_table(folder, source)
    try:
        _rewrite(folder)
    except (KeyError, TypeError, IndexError):
        return  # not even a foreign program would write that
    card = Card.load(folder)
    table_digest = json.loads((folder / TABLE_FILE).read_text())["digest"]
    (folder / CARD_FILE).write_bytes(card.model_copy(update={"index_digest": table_digest}).to_json())


def damage_card(folder: Path, source: random.Random) -> None:
    tree = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(damaged_tree(source, tree)))


def damage_records_and_digest(folder: Path, source: random.Random) -> None:
    """Columns of other numbers, lengths and kinds, in a file that fits its digest."""
    path = folder / "shard-000003.records.safetensors"
    arrays = safetensors.numpy.load(path.read_bytes())
    name = source.choice(sorted(arrays))
    column = arrays[name].copy()
    match source.randrange(4):
        case 0:
            column = column[: source.randrange(len(column))]
        case 1:
            column = column.astype(source.choice([np.float32, np.int16, np.uint64]))
        case _:
            limits = np.iinfo(column.dtype)
            column[source.randrange(len(column))] = source.choice([limits.min, limits.max, 0, 1, limits.max // 2])
    info = {} if source.random() < 0.1 else {"info": source.choice(["{}", "[]", "[" * 50_000, "{", '{"num_bytes": 1}'])}
    data = safetensors.numpy.save(arrays | {name: column}, metadata=info)
    path.write_bytes(data)
    rows = json.loads((folder / TABLE_FILE).read_text())["shards"]
    rows[3][3] = digest(data)
    _rewrite(folder, shards=rows)


@pytest.mark.parametrize("damage", [damage_table, damage_card, damage_table_and_digest, damage_records_and_digest])
def test_odd_values_never_end_in_a_traceback(clean, tmp_path, damage: Callable[[Path, random.Random], None]):
    source, expected = random.Random(damage.__name__), content_of(clean)
    for number in range(150):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in clean.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        damage(folder, source)
        found = content_of(folder)
        if damage in (damage_table, damage_card):  # there a digest shows the change
            assert found in (None, expected)
        shutil.rmtree(folder)
