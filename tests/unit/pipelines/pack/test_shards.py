from __future__ import annotations

import io
import tarfile

import pytest
from PIL import Image

from pipelines.pack.plan import Shard
from pipelines.pack.shards import Writing, is_done, write_shard
from pipelines.sources.folder import FolderSource
from pipelines.sources.protocol import Item
from pretrain.data.storage.records import Records
from tests.unit.pipelines.photos import encode


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    (root / "good.JPG").write_bytes(encode(1))
    (root / "other.png").write_bytes(encode(2, "PNG"))
    (root / "cut.jpg").write_bytes(encode(3)[:300])
    (root / "text.jpg").write_text("no image")
    return FolderSource(root)


def shard(*keys: str, labels=(2,)) -> Shard:
    return Shard("shard-000007.tar", 40, tuple(Item(key, labels, 0) for key in keys))


def test_headers_say_nothing_of_time_or_user(tmp_path, source):
    assert write_shard(Writing(source), (tmp_path, shard("good.JPG", "other.png")), lambda count: None) == 0
    with tarfile.open(tmp_path / "shard-000007.tar") as tar:
        members = tar.getmembers()
        contents = {member.name: tar.extractfile(member).read() for member in members}  # pyright: ignore
    assert list(contents) == ["000000040.jpg", "000000040.cls", "000000041.png", "000000041.cls"]
    assert contents["000000040.jpg"] == encode(1)
    assert contents["000000041.cls"] == b"2"
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_undecodable_images_are_left_out_with_their_reason(tmp_path, source):
    seen: list[int] = []
    num_bad = write_shard(
        Writing(source), (tmp_path, shard("cut.jpg", "good.JPG", "text.jpg", "gone.jpg")), seen.append
    )
    assert num_bad == 3
    assert sum(seen) == 4
    records = Records.open(tmp_path / "shard-000007.records.safetensors")
    assert [records[index].member for index in range(len(records))] == ["000000041.jpg"]
    reasons = {entry["source"]: (entry["kind"], entry["detail"]) for entry in records.info["quarantined"]}
    assert reasons["gone.jpg"] == ("read", "No such file or directory")
    assert reasons["text.jpg"][0] == "decode" and "formats that are read: " in reasons["text.jpg"][1]
    assert reasons["cut.jpg"][1].startswith("OSError: ")


def test_a_shard_is_done_when_its_record_file_and_its_tar_are_whole(tmp_path, source):
    task = shard("good.JPG")
    tar, records = tmp_path / task.name, tmp_path / "shard-000007.records.safetensors"
    assert not is_done(tmp_path, task)
    write_shard(Writing(source), (tmp_path, task), lambda count: None)
    assert is_done(tmp_path, task)
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    assert not is_done(tmp_path, task)
    tar.write_bytes(whole)
    records.write_bytes(records.read_bytes()[:-30])
    assert not is_done(tmp_path, task)
    records.unlink()
    assert not is_done(tmp_path, task)


def test_large_images_are_checked_to_the_last_pixel(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1500), "red").save(buffer, format="JPEG")
    (root / "a.jpg").write_bytes(buffer.getvalue()[:-2000])
    assert write_shard(Writing(FolderSource(root)), (tmp_path, shard("a.jpg")), lambda count: None) == 1
