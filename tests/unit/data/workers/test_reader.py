from __future__ import annotations

import pickle

import numpy as np
import pytest

from pretrain.data.images.opening import Decoded, decode_strictly
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.records import PADDING_LABEL
from pretrain.data.storage.store import LocalStore
from pretrain.data.workers import reader as reader_module
from pretrain.data.workers.reader import MixedReader, Sample, ShardReader
from pretrain.errors import BadSample, DataError
from tests.unit.data.sets import labels_of, write_set

SIZES = [6, 4]


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "set", SIZES)


def damage(folder, *sample_ids: int) -> None:
    """Flips a bit in the middle of each sample's image."""
    reader = ShardReader(ShardTable.load(folder))
    for sample_id in sample_ids:
        shard, record = reader.record(sample_id)
        data = bytearray((folder / shard).read_bytes())
        data[record.offset + record.size // 2] ^= 0x10
        (folder / shard).write_bytes(bytes(data))


def decoded(sample: Sample) -> Decoded:
    return decode_strictly(sample.data)


def test_samples_have_their_labels(folder):
    reader = ShardReader(ShardTable.load(folder))
    assert [reader.read(index).labels for index in range(10)] == [labels_of(index) for index in range(10)]


def test_a_changed_byte_is_found(folder):
    damage(folder, 3)
    with pytest.raises(BadSample, match=r"crc: CRC-32 .* packed as"):
        ShardReader(ShardTable.load(folder)).read(3)


@pytest.mark.parametrize(
    ("bad", "asked", "replacement"),
    [([2], 2, 3), ([5], 5, 0), ([4, 5, 0], 4, 1), ([9], 9, 6), ([6, 7, 8], 7, 9)],
)
def test_a_bad_sample_is_replaced_by_the_next_good_one_of_its_shard(folder, bad, asked, replacement):
    damage(folder, *bad)
    sample, _, faults = ShardReader(ShardTable.load(folder)).read_or_neighbour(asked, decoded)
    assert (sample.sample_id, sample.labels) == (replacement, labels_of(replacement))
    (fault,) = faults
    assert (fault.sample_id, fault.replaced_by, fault.kind) == (asked, replacement, "crc")
    assert fault.shard == ("shard-000000.tar" if asked < 6 else "shard-000001.tar")
    assert fault.member == f"{asked:09d}.png (image-{asked:06d})"


def test_a_shard_of_bad_samples_has_no_replacement(folder):
    damage(folder, 6, 7, 8, 9)
    with pytest.raises(BadSample, match="crc"):
        ShardReader(ShardTable.load(folder)).read_or_neighbour(7, decoded)


def test_a_shard_that_has_gone_is_no_bad_sample(folder):
    reader = ShardReader(ShardTable.load(folder))
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar cannot be opened"):
        reader.read_or_neighbour(7, decoded)


def test_a_stale_record_file_is_found_when_its_shard_is_first_read(folder):
    other = write_set(folder.parent / "other", SIZES, noise=True)
    records = "shard-000001.records.safetensors"
    (folder / records).write_bytes((other / records).read_bytes())
    reader = ShardReader(ShardTable.load(folder))
    reader.read(0)
    with pytest.raises(DataError, match=r"shard-000001\.records\.safetensors: not the file that index\.json was"):
        reader.read(6)


def test_few_shards_and_record_files_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "MAX_OPEN_RECORDS", 4)
    table = ShardTable.load(write_set(tmp_path / "many", [1] * 12))
    store = LocalStore(table.folder, max_open=3)
    reader = ShardReader(table, store)
    for sample_id in [*range(12), *range(12)]:
        assert reader.read(sample_id).labels == labels_of(sample_id)
        assert store.num_open <= 3
        assert len(reader._records) <= 4


def test_a_reader_can_be_sent_to_a_process(folder):
    reader = ShardReader(ShardTable.load(folder))
    reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(9).labels == labels_of(9)


def test_places_of_many_samples_are_those_of_their_records(tmp_path):
    tables = [ShardTable.load(write_set(tmp_path / name, sizes)) for name, sizes in (("one", SIZES), ("two", [3, 5]))]
    reader = MixedReader([ShardReader(table) for table in tables], [0, 10], ["one", "two"])
    sample_ids = np.array([17, 3, 9, 0, 10, 12, 3, 5])
    places, labels = reader.places(sample_ids)
    assert labels.shape == (8, reader.max_labels)
    for row, sample_id in enumerate(sample_ids.tolist()):
        inner = reader.readers[sample_id >= 10]
        sample = inner.read(sample_id % 10)
        assert reader.read_at(sample_id, places[row]) == sample.data
        padded = [*sample.labels, *[PADDING_LABEL] * reader.max_labels][: reader.max_labels]
        assert labels[row].tolist() == padded
