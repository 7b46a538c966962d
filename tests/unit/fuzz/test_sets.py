"""No index, record file, card or class list makes a reader crash: a set is read, or refused by name."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from pretrain.check.files import report_data
from pretrain.data.sources import load_drop_list, open_sources
from pretrain.data.storage.packed_set import open_packed
from pretrain.data.workers.reader import ShardReader
from tests.unit.data.sets import experiment, write_set
from tests.unit.fuzz.bounded import damaged, outcome, replaced

SIZES = [3, 4]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("fuzz") / "train", SIZES)


def read_everything(folder: Path) -> None:
    """As a run does: the check, the stream's sources, and every sample."""
    config = experiment(folder, sum(SIZES), data__lanes=2, global_batch_size=4)
    report_data(config, require_data=True)
    packed = open_sources(config)[0].packed
    packed.check_files()
    packed.card.to_markdown(packed.classes)
    reader = ShardReader(packed.table)
    for sample in range(packed.table.num_samples):
        reader.read(sample)
    reader.places(np.arange(packed.table.num_samples), packed.table.max_labels)


def tried(original: Path, folder: Path, name: str, content: bytes) -> str:
    shutil.copytree(original, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(content)
    return outcome(lambda: read_everything(folder), (name, content[:300]))


@pytest.mark.parametrize("name", ["index.json", "card.json", "classes.csv", "RECORDS", "shard-000000.tar"])
def test_damaged_bytes(original: Path, tmp_path: Path, name: str) -> None:
    rng = random.Random(f"bytes of {name}")
    file = (
        name
        if name != "RECORDS"
        else next(path.name for path in original.glob("shard-000000*") if path.suffix != ".tar")
    )
    data = (original / file).read_bytes()
    seen = {tried(original, tmp_path / "set", file, damaged(data, rng)) for _ in range(40)}
    assert seen - {"ok"}, "most of it is noticed"


@pytest.mark.parametrize("name", ["index.json", "card.json"])
def test_other_values(original: Path, tmp_path: Path, name: str) -> None:
    rng = random.Random(f"values of {name}")
    tree = json.loads((original / name).read_text())
    for _ in range(80):
        tried(original, tmp_path / "set", name, json.dumps(replaced(tree, rng)).encode())


@pytest.mark.parametrize("content", [b"", b"\0", b"[" * 100_000, b"{}", b"[]", b"null", b"1" * 10_000, b"\xff\xfe{}"])
@pytest.mark.parametrize("name", ["index.json", "card.json", "classes.csv"])
def test_what_is_no_such_file(original: Path, tmp_path: Path, name: str, content: bytes) -> None:
    assert tried(original, tmp_path / "set", name, content) == "DataError"


def test_drop_lists(original: Path, tmp_path: Path) -> None:
    rng = random.Random("drop lists")
    table = open_packed(str(original), experiment(original, sum(SIZES)).cluster).table
    reader = ShardReader(table)
    line = {"shard": "shard-000000.tar", "key": "000000001"}
    path = tmp_path / "drop.jsonl"
    for number in range(80):
        content = json.dumps(replaced(line, rng)).encode() if number % 2 else damaged(json.dumps(line).encode(), rng)
        path.write_bytes(content)
        outcome(lambda: load_drop_list(str(path), table, reader._open), content)
