"""Names of shards that an index may give, and those that would reach another file, or a shell."""

from __future__ import annotations

import subprocess

import pytest

from pretrain.data.storage.index import TABLE_FILE, ShardRow, ShardTable
from pretrain.data.storage.index_checks import problem_of
from pretrain.data.storage.location import Location
from pretrain.data.storage.transports import PipeTransport
from pretrain.errors import DataError

GOOD = ["shard-000000.tar", "train 00+x.tar", "고양이.tar", "set#1 (50%), [a]~b.tar", "_x.tar", "a=b@c:d^e.tar"]
BAD = [
    "$(touch x)shard.tar", "`touch x`.tar", "a;b.tar", "a|b.tar", "a&b.tar", "a>b.tar", "a\nb.tar",
    "a'b.tar", 'a"b.tar',
    "a\\b.tar", "../a.tar", "/etc/a.tar", "a/b.tar", "..", "", ".tar", ".hidden.tar", "-rf.tar", "~root.tar", " a.tar",
    "a*.tar", "a?.tar", "a!b.tar", "{a,b}.tar", "a\x00.tar", "a\x1b[31m.tar", "\udcff.tar",
    "a.zip", "x" * 200 + ".tar",
    "a\u202eb.tar", "$HOME.tar", None, 7, ["a.tar"],
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_name_that_is_only_a_name(name, tmp_path):
    assert problem_of(name) == ""
    (tmp_path / name).write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_name_that_could_be_more(name):
    assert problem_of(name).startswith("the shard's name ")
    assert problem_of(name).isprintable()


@pytest.mark.parametrize("name", [name for name in BAD if isinstance(name, str)], ids=ascii)
def test_a_table_with_such_a_name_is_neither_read_nor_written(name, tmp_path, monkeypatch):
    table = ShardTable(tmp_path, [ShardRow(name, 1, 1024, "0" * 32)], num_classes=1, max_labels=1)
    with pytest.raises(DataError, match="the shard's name"):
        table.save()
    monkeypatch.setattr(ShardTable, "_check_rows", lambda self: None)
    table.save()  # as a foreign program would write it, its digest included
    monkeypatch.undo()
    with pytest.raises(DataError, match=rf"{TABLE_FILE}: the shard's name"):
        ShardTable.load(tmp_path)


@pytest.mark.parametrize("name", [*GOOD[1:4], *(name for name in BAD if isinstance(name, str) and name)], ids=ascii)
def test_no_command_runs_with_a_name_that_a_shell_could_read(name, tmp_path, monkeypatch):
    """Not even where the name is evaluated twice, as by ssh."""
    monkeypatch.setattr(subprocess, "Popen", None)
    transport = PipeTransport(Location.parse(f"pipe:cat {tmp_path}/{{name}}"), timeout_s=60)
    if name in ("..", ".tar", ".hidden.tar", "a.zip"):
        return  # harmless to a shell; a table refuses them
    with pytest.raises((DataError, TypeError)) as caught:
        transport.get(name)
    assert isinstance(caught.value, DataError) != (name == "x" * 200 + ".tar")


@pytest.mark.parametrize("name", ["shard-000000.tar", "index.json", "a+b=c@d%e^f,g.tar"])
def test_a_plain_name_reaches_the_command_as_it_is(name, tmp_path):
    (tmp_path / name).write_bytes(b"bytes")
    transport = PipeTransport(Location.parse(f"pipe:cat {tmp_path}/{{name}}"), timeout_s=60)
    assert transport.get(name) == b"bytes"
