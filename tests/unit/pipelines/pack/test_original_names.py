"""The name that an image had where it was packed from is kept, whatever the source, and shown to people."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.records import Record, Records, encode_records, records_name
from tests.unit.pipelines.photos import encode, write_photos
from tests.unit.pipelines.sources.test_tars import add


def records_of(split: Path) -> list[tuple[str, Record]]:
    """(shard, record) of every image."""
    table = ShardTable.load(split)
    opened = [(row.name, table.open_records(shard)) for shard, row in enumerate(table.rows)]
    return [(name, records[index]) for name, records in opened for index in range(len(records))]


def originals(split: Path) -> list[str]:
    return sorted(record.shown_in(shard) for shard, record in records_of(split))


def pack(*arguments: object) -> None:
    assert main(["pack", *map(str, arguments)]) == 0


def test_names_of_files_outlive_packing_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"cat": 3, "dog": 2})
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    pack("folder", photos, "--out", tmp_path / "first", "--shard-samples", 2)
    pack("webdataset", tmp_path / "first" / "train", "--out", tmp_path / "second", "--seed", 3)
    pack("webdataset", tmp_path / "second" / "train", "--out", tmp_path / "third", "--seed", 4)
    for folder in ("first", "second", "third"):
        assert originals(tmp_path / folder / "train") == names
    sources = {record.source for _, record in records_of(tmp_path / "third" / "train")}
    assert sources == {f"shard-000000/{number:09d}.jpg" for number in range(5)}


def test_names_in_a_column_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    paths = ["a/one.jpg", "b/two.jpg", None, "a/four.jpg"]
    images = [{"bytes": encode(number), "path": path} for number, path in enumerate(paths)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), tmp_path / "x.parquet")
    for task in ("1/2", "2/2"):  # the tasks share the list by a folder of columns
        pack("parquet", tmp_path / "x.parquet", "--out", tmp_path / "out", "--shard-samples", 2, "--task", task)
    pack("merge", tmp_path / "out")
    assert originals(tmp_path / "out" / "train") == ["a/four.jpg", "a/one.jpg", "b/two.jpg", "x/00000002"]


def test_of_shards_without_names_the_place_is_shown(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "0.tar", "w") as tar:
        for number in range(2):
            add(tar, f"{number:03d}.jpg", encode(number))
            add(tar, f"{number:03d}.cls", str(number).encode())
    assert main(["verify", str(tmp_path / "set")]) == 0
    assert originals(tmp_path / "set") == ["0.tar/000.jpg", "0.tar/001.jpg"]


def test_a_record_file_without_names_is_what_it_was(tmp_path: Path) -> None:
    """Those of earlier versions have no such column, and one is written only where a name differs from the key."""
    record = Record(512, 9, 1, (0,), "000000000.jpg", "cat/1.jpg")
    path = tmp_path / records_name("shard-000000.tar")
    path.write_bytes(encode_records([record], {}))
    assert b"name_starts" not in path.read_bytes() and Records.open(path)[0] == record
    renamed = [record, replace(record, name="b.jpg")]
    path.write_bytes(encode_records(renamed, {}))
    opened = Records.open(path)
    assert [opened[0], opened[1]] == renamed


@pytest.mark.parametrize(
    ("member", "source", "name", "shown"),
    [
        ("000000001.jpg", "cat/1.jpg", "", "cat/1.jpg"),
        ("000000001.png", "x/00000001", "b/two.png", "b/two.png"),
        ("a/001.jpg", "a/001", "", "0.tar/a/001.jpg"),
        ("a/001.seg.jpg", "a/001", "", "0.tar/a/001.seg.jpg"),
        ("001.jpg", "001", "cat/1.jpg", "cat/1.jpg"),
        ("0012.jpg", "001", "", "001"),
    ],
)
def test_what_is_shown_of_a_record(member: str, source: str, name: str, shown: str) -> None:
    assert Record(0, 1, 2, (), member, source, name=name).shown_in("0.tar") == shown
