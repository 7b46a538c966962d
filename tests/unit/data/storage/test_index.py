from __future__ import annotations

import hashlib
import json
import os
import tarfile

import numpy as np
import pytest
import safetensors.numpy

from pretrain.data.storage.index import ShardRow, ShardTable
from pretrain.data.storage.records import Record, Records, encode_records
from pretrain.data.workers.reader import ShardReader
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
        (_truncate, r"shard-000003.tar is truncated: it has \d+ bytes, not the \d+ in index.json"),
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


def _rewrite(folder, **changes):
    """A table as a foreign program may write it: consistent with its own digest."""
    content = json.loads((folder / "index.json").read_text()) | changes
    body = {name: value for name, value in content.items() if name != "digest"}
    rows = body["shards"] or []
    body["num_samples"] = sum(row[1] for row in rows if isinstance(row, list) and isinstance(row[1], int))
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    body["digest"] = hashlib.blake2b(text, digest_size=16).hexdigest()
    (folder / "index.json").write_text(json.dumps(body))


ROW = ["shard-000000.tar", 5, 10240, "0" * 32]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": -1}, "num_classes is out of range"),
        ({"num_classes": True}, "num_classes is out of range"),
        ({"num_classes": 7.0}, "num_classes is 7.0"),
        ({"num_classes": 10**400}, "num_classes is out of range"),
        ({"num_classes": "7"}, "num_classes is 7"),
        ({"max_labels": None}, "max_labels is None"),
        ({"max_labels": 2**40}, "max_labels is out of range"),
        ({"target": "boxes"}, "target is 'boxes'"),
        ({"target": ["labels"]}, "target is"),
        ({"shards": None}, "no list of shards"),
        ({"shards": {"a": 1}}, "no list of shards"),
        ({"shards": [ROW, 7]}, "shard 1 is not a list"),
        ({"shards": [[*ROW, 1]]}, "shard 0 is not a list"),
        ({"shards": [["a.tar", -1, 10240, "0"]]}, "num_samples of shard 0 is out of range"),
        ({"shards": [["a.tar", 1, 2**60, "0"]]}, "num_bytes of shard 0 is out of range"),
        ({"shards": [["a.tar", 1, 10240, None]]}, "name or records of shard 0"),
        ({"shards": [[7, 1, 10240, "0"]]}, "name or records of shard 0"),
        ({"shards": [ROW, ROW]}, r"the shard shard-000000\.tar is there twice"),
        ({"shards": [["a.tar", 10**9, 10240, "0"]]}, "1,000,000,000 samples do not fit into the 10,240 bytes"),
        ({"shards": [["../a.tar", 1, 10240, "0"]]}, "the shard's name '../a.tar' is not safe"),
    ],
)
def test_a_foreign_table_is_believed_in_nothing(tmp_path, changes, message):
    folder = write_set(tmp_path / "set", SIZES)
    _rewrite(folder)
    ShardTable.load(folder)
    _rewrite(folder, **changes)
    with pytest.raises(DataError, match=message):
        ShardTable.load(folder)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"format":' * 100_000, '{"format": "webdataset-index", "version": 1e999}', "\xff", "1" * 5000],
)
def test_json_of_any_shape_is_an_error(tmp_path, text):
    (tmp_path / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"index\.json"):
        ShardTable.load(tmp_path)


def _change_records(folder, shard, **columns):
    """Rewrites a record file and the table to fit, as an index from elsewhere may be."""
    path = folder / f"shard-00000{shard}.records.safetensors"
    data = path.read_bytes()
    info = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["info"])
    arrays = safetensors.numpy.load(data)
    for name, change in columns.items():
        arrays[name] = change(arrays[name].copy())
    data = safetensors.numpy.save(arrays, metadata={"info": json.dumps(info)})
    path.write_bytes(data)
    rows = json.loads((folder / "index.json").read_text())["shards"]
    rows[shard][3] = hashlib.blake2b(data, digest_size=16).hexdigest()
    _rewrite(folder, shards=rows)


def _put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"offsets": _put(2, 10**15)}, "record 2: offsets and sizes lie outside the"),
        ({"offsets": _put(2, -1)}, "record 2: offsets and sizes lie outside the"),
        ({"sizes": _put(1, -5)}, "record 1: offsets and sizes"),
        ({"sizes": _put(1, 2**62)}, "record 1: offsets and sizes"),
        ({"labels": _put(3, 7)}, "the label 7 is none of the 7 classes"),
        ({"labels": _put(3, -1)}, "the label -1 is none of the 7 classes"),
        ({"label_starts": _put(1, 3)}, "label_starts do not cut labels"),
        ({"label_starts": _put(slice(None), [0, 0, 2, 3, 4, 5])}, "record 1: more than 1 labels"),
        ({"label_starts": _put(-1, 4)}, "label_starts do not cut labels"),
        ({"member_starts": _put(0, 1)}, "member_starts do not cut members"),
        ({"crc32": lambda array: array[:-1]}, "4 crc32 of 5 records"),
        ({"source_starts": lambda array: array[:-1]}, "source_starts do not cut sources"),
        ({"labels": lambda array: array.astype(np.int64)}, "column labels is not of the kind I32"),
    ],
)
def test_a_foreign_record_file_is_believed_in_nothing(tmp_path, columns, message):
    folder = write_set(tmp_path / "set", SIZES)
    _change_records(folder, 0)
    assert ShardReader(ShardTable.load(folder)).read(4).labels == (4,)
    _change_records(folder, 0, **columns)
    with pytest.raises(DataError, match=message):
        ShardReader(ShardTable.load(folder)).read(4)


def test_labels_that_are_written_over_are_not_trained_on(tmp_path):
    """The file is mapped, so the change would show at once; and its length and time may stay as they were."""
    folder = write_set(tmp_path / "set", SIZES)
    reader = ShardReader(ShardTable.load(folder))
    assert reader.places(np.arange(5), 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    path = folder / "shard-000000.records.safetensors"
    data, info = path.read_bytes(), path.stat()
    labels = np.array([0, 1, 2, 3, 4], "<i4").tobytes()
    with open(path, "r+b") as file:
        file.write(data.replace(labels, labels[::-1]))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert path.read_bytes() != data
    with pytest.raises(DataError, match=r"not the file that index\.json was made with"):
        reader.places(np.arange(5), 1)
    path.write_bytes(data)  # put right again, in place
    assert reader.places(np.arange(5), 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]


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
        (lambda path: None, {"num_samples": 2}, "1 records, but index.json has 2"),
        (lambda path: path.unlink(), {}, "cannot be read"),
    ],
)
def test_a_record_file_that_cannot_be_trusted_is_refused(tmp_path, damage, arguments, message):
    path = tmp_path / "records"
    path.write_bytes(encode_records([Record(512, 10, 1, (3,), "0.jpg", "a/0.jpg")], {}))
    damage(path)
    with pytest.raises(DataError, match=message):
        Records.open(path, **arguments)
