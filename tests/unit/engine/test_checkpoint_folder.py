"""A folder of checkpoints after a kill at the worst moments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.disk import Disk
from pretrain.engine.checkpoint_folder import (
    FORMAT_VERSION,
    MARKER,
    clean,
    complete_checkpoints,
    examine,
    final_path,
    newest_valid,
    publish,
    seal,
    temporary_path,
    write_marker,
)
from pretrain.errors import CheckpointError
from tests.faulty_disk import FaultyDisk, using


def write(folder: Path, step: int, content: str, *, complete: bool = True) -> Path:
    path = temporary_path(folder, step)
    (path / "slices").mkdir(parents=True)
    (path / "content").write_text(content)
    if complete:
        files = {"content": seal(path / "content")}
        write_marker(path, {"format": FORMAT_VERSION, "step": step, "files": files, "lr": 0.5, "world_size": 2})
    return path


def test_a_save_that_lacks_its_name_only_gets_it(tmp_path: Path) -> None:
    write(tmp_path, 4, "new")
    write(tmp_path, 8, "half", complete=False)
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    assert complete_checkpoints(tmp_path) == [final_path(tmp_path, 4)]


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    publish(write(tmp_path, 4, "old"), final_path(tmp_path, 4))
    publish(write(tmp_path, 4, "new"), final_path(tmp_path, 4))
    assert (final_path(tmp_path, 4) / "content").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_killed_while_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    publish(write(tmp_path, 4, "old"), final_path(tmp_path, 4))
    write(tmp_path, 4, "new")
    final_path(tmp_path, 4).rename(tmp_path / "step-00000004.replaced")  # as publish does first; then the kill
    clean(tmp_path)
    assert (final_path(tmp_path, 4) / "content").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_one_that_made_room_comes_back_where_the_new_one_is_lost(tmp_path: Path) -> None:
    publish(write(tmp_path, 4, "old"), final_path(tmp_path, 4))
    final_path(tmp_path, 4).rename(tmp_path / "step-00000004.replaced")
    write(tmp_path, 4, "half", complete=False)
    clean(tmp_path)
    assert (final_path(tmp_path, 4) / "content").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_that_cannot_be_given_leaves_the_old_one(tmp_path: Path) -> None:
    publish(write(tmp_path, 4, "old"), final_path(tmp_path, 4))
    new = write(tmp_path, 4, "new")

    class Full(Disk):
        def rename(self, source: Path, target: Path) -> None:
            if source == new:
                raise OSError(28, "No space left on device")
            super().rename(source, target)

    with using(Full()), pytest.raises(OSError, match="No space"):
        publish(new, final_path(tmp_path, 4))
    assert (final_path(tmp_path, 4) / "content").read_text() == "old"


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    """Otherwise a run would start from scratch beside its checkpoints."""
    publish(write(tmp_path, 4, "old"), final_path(tmp_path, 4))
    with using(FaultyDisk("EIO", 0, lasting=True)), pytest.raises(CheckpointError, match="cannot be listed"):
        complete_checkpoints(tmp_path)


@pytest.mark.parametrize("flip", [1, 4, 0x20, 0x80, 0xFF])
def test_every_byte_of_a_marker(tmp_path: Path, flip: int) -> None:
    """One that says something else than was written is passed over, however it is damaged."""
    path = write(tmp_path, 4, "content")
    good, content = examine(path)[0], (path / MARKER).read_bytes()
    assert good is not None and good["lr"] == 0.5
    for index in range(len(content)):
        (path / MARKER).write_bytes(content[:index] + bytes([content[index] ^ flip]) + content[index + 1 :])
        marker, problem = examine(path)
        assert marker == good or (marker is None and problem is not None and MARKER in problem)


def test_every_cut_of_a_marker(tmp_path: Path) -> None:
    path = write(tmp_path, 4, "content")
    content = (path / MARKER).read_bytes()
    for length in range(len(content) - 1):
        (path / MARKER).write_bytes(content[:length])
        assert examine(path)[0] is None
    (path / MARKER).write_bytes(content + content)
    assert examine(path)[0] is None


def test_a_marker_of_an_older_version_has_no_hash(tmp_path: Path) -> None:
    """It is still read; with one of its bytes changed it may be believed, but raises nothing."""
    path = write(tmp_path, 4, "content")
    old = json.loads((path / MARKER).read_text())
    del old["blake2b"]
    content = json.dumps(old).encode()
    (path / MARKER).write_bytes(content)
    assert examine(path)[0] == old
    for flip in (1, 0x10, 0xFF):
        for index in range(len(content)):
            (path / MARKER).write_bytes(content[:index] + bytes([content[index] ^ flip]) + content[index + 1 :])
            try:
                marker, problem = examine(path)
                assert (marker is None) != (problem is None)
            except CheckpointError as error:
                assert "checkpoint format" in str(error)


def test_a_newer_one_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    for step in (4, 8):
        publish(write(tmp_path, step, "content"), final_path(tmp_path, step))
    (final_path(tmp_path, 8) / MARKER).write_text('{"format": 1, "files": {}}')
    said: list[str] = []
    found = newest_valid(tmp_path, said.append)
    assert found is not None and found[0] == final_path(tmp_path, 4)
    assert said == [f"checkpoint {final_path(tmp_path, 8)} is passed over: {MARKER} is damaged: step is missing"]
