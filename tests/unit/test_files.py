from __future__ import annotations

import pytest

from pretrain.files import digest, write_atomic


def test_a_file_is_replaced_whole_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises((TypeError, AttributeError)):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"


def test_digests_differ():
    assert digest(b"a") != digest(b"b")
    assert digest(memoryview(b"a")) == digest(b"a")
