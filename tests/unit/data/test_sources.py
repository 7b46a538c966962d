from __future__ import annotations

import json

import pytest

from pretrain.data.sources import load_drop_list, webdataset_key
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.records import Records
from pretrain.errors import DataError
from tests.unit.data.sets import write_set


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return ShardTable.load(write_set(tmp_path_factory.mktemp("set") / "train", [6, 0, 4]))


def load(table, path):
    return load_drop_list(path, table, lambda shard: Records.open(table.records_path(shard))).tolist()


def test_samples_are_found_by_shard_and_key(table, tmp_path):
    rows = [("shard-000002.tar", "000000009"), ("shard-000000.tar", "000000003"), ("shard-000002.tar", "000000006")]
    lines = [json.dumps({"shard": shard, "key": key, "reason": "twin"}) for shard, key in [*rows, rows[0]]]
    (tmp_path / "drop.jsonl").write_text("\n".join(lines) + "\n")
    assert load(table, tmp_path / "drop.jsonl") == [3, 6, 9]
    (tmp_path / "empty.jsonl").write_text("")
    assert load(table, tmp_path / "empty.jsonl") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"drop\.jsonl:2: not \{\"shard\""),
        ('{"shard": "shard-000000.tar"}', r"drop\.jsonl:2: not"),
        ("[1]", r"drop\.jsonl:2: not"),
        ('{"shard": "shard-000000.tar", "key": 3}', r"drop\.jsonl:2: shard and key must be text"),
        ('{"shard": "shard-9.tar", "key": "000000000"}', r"drop\.jsonl:2: the set has no shard 'shard-9\.tar'"),
        ('{"shard": "shard-000002.tar", "key": "000000000"}', r"drop\.jsonl:2: shard shard-000002\.tar has no sample"),
    ],
)
def test_lines_that_name_nothing(table, tmp_path, line, message):
    (tmp_path / "drop.jsonl").write_text('{"shard": "shard-000000.tar", "key": "000000001"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        load(table, tmp_path / "drop.jsonl")


def test_a_missing_file_is_an_error(table, tmp_path):
    with pytest.raises(DataError, match=r"data\.drop_list: .*nowhere\.jsonl cannot be read"):
        load(table, tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("member", "key"), [("000000042.jpg", "000000042"), ("a.b/c.d.jpg", "a.b/c"), ("x", "x"), ("./a.cls", "./a")]
)
def test_the_key_is_webdatasets(member, key):
    from webdataset.tariterators import base_plus_ext

    assert webdataset_key(member) == key
    if "." in member.rpartition("/")[2]:
        assert base_plus_ext(member)[0] == key
