"""The tasks of an array pack the same bytes as one machine."""

from __future__ import annotations

import pytest

from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from tests.unit.pipelines.pack.test_pack import PHOTOS, fails, pack, result_of
from tests.unit.pipelines.photos import encode, tree, write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", PHOTOS)


ARRAY = ("--shard-samples", 2, "--holdout", 0.3)


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_the_tasks_of_an_array_give_the_bytes_of_one_machine(tmp_path, photos, num_tasks, capsys):
    assert pack("folder", photos, "--out", tmp_path / "alone", *ARRAY) == 0
    capsys.readouterr()
    out = tmp_path / "shared"
    for number in range(num_tasks, 0, -1):
        arguments = ("folder", photos, "--out", out, *ARRAY, "--task", f"{number}/{num_tasks}")
        assert result_of(capsys, *arguments)["status"] == "task"
    assert pack("merge", out) == 0
    assert tree(out) == tree(tmp_path / "alone")
    capsys.readouterr()
    assert result_of(capsys, "merge", out)["status"] == "unchanged"
    assert result_of(capsys, "folder", photos, "--out", out, *ARRAY)["status"] == "unchanged"


def test_a_task_lists_once_and_cleans_up_after_itself_alone(tmp_path, photos, capsys):
    out, arguments = tmp_path / "out", ("folder", photos, "--out", tmp_path / "out", *ARRAY)
    assert pack(*arguments, "--task", "1/2") == 0
    (photos / "cat" / "new.jpg").write_bytes(encode(99))  # seen by nobody: the first task's list is the list
    other, own = out / "train" / "shard-000000.tar.tmp", out / "train" / "shard-000001.tar.tmp"
    other.write_bytes(b"half")
    own.write_bytes(b"half")
    assert pack(*arguments, "--task", "2/2") == 0
    assert other.exists()
    assert not own.exists()
    other.unlink()
    assert pack("merge", out) == 0
    assert "new.jpg" not in "".join(record_sources(out))


def record_sources(out) -> list[str]:
    readers = [ShardReader(ShardTable.load(path.parent)) for path in out.glob("*/index.json")]
    return [reader.record(index)[1].source for reader in readers for index in range(reader.table.num_samples)]


def test_a_merge_before_its_time_names_the_tasks(tmp_path, photos, capsys):
    out, arguments = tmp_path / "out", ("folder", photos, "--out", tmp_path / "out", *ARRAY)
    assert "holds no pack.json" in fails(capsys, "merge", tmp_path)
    assert pack(*arguments, "--task", "2/3") == 0
    capsys.readouterr()
    message = fails(capsys, "merge", out)
    assert "run again with --task 1/3, 3/3, then merge" in message
    assert "by 3 tasks, not 4" in fails(capsys, *arguments, "--task", "1/4")
    assert "seed: 0 then, 1 now" in fails(capsys, *arguments, "--seed", 1, "--task", "1/3")
    assert "--seed would be ignored" in fails(capsys, "merge", out, "--seed", 1)
    assert "write I/N" in fails(capsys, *arguments, "--task", "4/3")


def test_a_run_alone_goes_on_where_tasks_stopped(tmp_path, photos):
    out, arguments = tmp_path / "out", ("folder", photos, "--out", tmp_path / "out", *ARRAY)
    assert pack(*arguments, "--task", "2/3") == 0
    assert pack(*arguments) == 0
    assert pack("folder", photos, "--out", tmp_path / "alone", *ARRAY) == 0
    assert tree(out) == tree(tmp_path / "alone")
