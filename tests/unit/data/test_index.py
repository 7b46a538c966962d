from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
import safetensors.numpy

from pretrain.data.index import Record, Records, ShardRow, ShardTable, encode_records
from pretrain.data.reader import ShardReader
from pretrain.errors import DataError
from tests.unit.data.sets import labels_of, write_set

SIZES = [5, 1, 0, 7]


def test_records_come_back_as_they_were_written(tmp_path):
    records = [
        Record(512, 10, 0xFFFFFFFF, (3,), "000000000.jpg", "a/über.jpg"),
        Record(2**40, 2**31, 0, (0, 5, 6), "000000001.png", "b/\udcff.png"),  # a file name that is not UTF-8
        Record(0, 0, 7, (), "x", ""),
    ]
    path = tmp_path / "records.safetensors"
    path.write_bytes(encode_records(records, {"num_bytes": 9}))
    opened = Records.open(path)
    assert [opened[index] for index in range(3)] == records
    assert opened.info == {"num_bytes": 9}
    assert len(opened) == 3


def test_record_files_are_ordinary_safetensors_with_fixed_bytes(tmp_path):
    records = [Record(512, 10, 1, (3,), "0.jpg", "a/0.jpg")]
    data = encode_records(records, {"b": 1, "a": 2})
    assert data == encode_records(records, {"a": 2, "b": 1})
    assert safetensors.numpy.load(data)["offsets"].tolist() == [512]


def test_an_empty_shard_has_a_record_file(tmp_path):
    (tmp_path / "records").write_bytes(encode_records([], {}))
    assert len(Records.open(tmp_path / "records")) == 0


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_index_says_where_each_image_is(tmp_path, multi_label):
    folder = write_set(tmp_path / "set", SIZES, multi_label=multi_label)
    table = ShardTable.load(folder)
    reader = ShardReader(table)
    assert (table.num_samples, table.num_classes, table.max_labels) == (13, 7, 3 if multi_label else 1)
    for sample_id in range(13):
        shard, record = reader.record(sample_id)
        with tarfile.open(folder / shard) as tar:
            member = tar.extractfile(record.member)
            assert member is not None
            assert member.read() == reader.read(sample_id).data
        assert record.source == f"image-{sample_id:06d}"
        assert record.labels == labels_of(sample_id, multi_label)


def test_locate_skips_empty_shards():
    rows = [ShardRow(f"{index}.tar", size, 0, "") for index, size in enumerate([0, 2, 0, 0, 3, 0])]
    table = ShardTable("x", rows, num_classes=1, max_labels=1)  # pyright: ignore[reportArgumentType]
    shards, records = table.locate(np.arange(5))
    assert shards.tolist() == [1, 1, 4, 4, 4]
    assert records.tolist() == [0, 1, 0, 1, 2]


def _truncate(folder):
    path = folder / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:-1000])


def _grow(folder):
    with open(folder / "shard-000000.tar", "ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"shard-000003.tar is truncated: it has \d+ bytes, index.json says \d+"),
        (_grow, "shard-000000.tar is not the file that was indexed"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), "shard shard-000001.tar is missing"),
        (
            lambda folder: (folder / "shard-000001.records.safetensors").unlink(),
            "record file shard-000001.records.safetensors is missing",
        ),
    ],
)
def test_check_files_finds_what_does_not_fit_the_table(tmp_path, damage, message):
    folder = write_set(tmp_path / "set", SIZES)
    ShardTable.load(folder).check_files()
    damage(folder)
    with pytest.raises(DataError, match=message):
        ShardTable.load(folder).check_files()


def _change(folder, **values):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "index.json does not exist.*pipelines verify"),
        (lambda folder: (folder / "index.json").write_text('{"format"'), "not JSON"),
        (lambda folder: (folder / "index.json").write_text("[]"), "not an index of shards"),
        (lambda folder: _change(folder, format="other"), "not an index of shards"),
        (lambda folder: _change(folder, version=99), "index version 99, this program reads version 1"),
        (lambda folder: _change(folder, shards=[["only a name"]]), "not a complete index"),
        (lambda folder: _change(folder, num_classes=8), "was changed or damaged"),
        (lambda folder: _change(folder, shards=[["shard-000000.tar", 6, 10240, "x"]]), "was changed or damaged"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(tmp_path, damage, message):
    folder = write_set(tmp_path / "set", SIZES)
    damage(folder)
    with pytest.raises(DataError, match=message):
        ShardTable.load(folder)


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda path: _flip(path, -1), {"digest_wanted": "0"}, "stale or damaged"),
        (lambda path: path.write_bytes(b""), {}, "cannot be read"),
        (lambda path: path.write_bytes(b"not safetensors at all"), {}, "not a record file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), {}, "ends behind the end"),
        (lambda path: None, {"num_samples": 2}, "1 records, index.json says 2"),
        (lambda path: path.unlink(), {}, "cannot be read"),
    ],
)
def test_a_record_file_that_cannot_be_trusted_is_refused(tmp_path, damage, arguments, message):
    path = tmp_path / "records"
    path.write_bytes(encode_records([Record(512, 10, 1, (3,), "0.jpg", "a/0.jpg")], {}))
    damage(path)
    with pytest.raises(DataError, match=message):
        Records.open(path, **arguments)
