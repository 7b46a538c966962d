from __future__ import annotations

import os
import pickle

import pytest

from pretrain.data.storage.store import LocalStore
from pretrain.errors import BadSample, DataError


@pytest.fixture
def folder(tmp_path):
    for index in range(9):
        (tmp_path / f"{index}.tar").write_bytes(bytes([index]) * 100)
    return tmp_path


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_few_files_are_open_at_a_time(folder):
    before = num_descriptors()
    store = LocalStore(folder, max_open=3)
    for turn in range(3):
        for index in range(9):
            assert store.read(f"{index}.tar", turn * 10, 7) == bytes([index]) * 7
            assert store.num_open <= 3
            assert num_descriptors() - before <= 3
    store.close()
    assert num_descriptors() == before


def test_the_file_that_was_not_used_for_longest_is_closed(folder):
    store = LocalStore(folder, max_open=2)
    for index in (0, 1, 0, 2):
        store.read(f"{index}.tar", 0, 1)
    for index in (0, 2):
        (folder / f"{index}.tar").unlink()
        store.read(f"{index}.tar", 0, 1)  # still open
    (folder / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1\.tar cannot be opened: No such file"):
        store.read("1.tar", 0, 1)


@pytest.mark.parametrize(("offset", "size"), [(95, 6), (200, 1)])
def test_a_short_read_is_a_bad_sample_and_never_an_end(folder, offset, size):
    with pytest.raises(BadSample, match="short_read"):
        LocalStore(folder).read("0.tar", offset, size)


def test_open_files_stay_behind_when_it_is_sent_to_a_process(folder):
    store = LocalStore(folder)
    store.read("0.tar", 0, 1)
    sent = pickle.loads(pickle.dumps(store))
    assert sent.num_open == 0
    assert sent.read("3.tar", 0, 2) == b"\x03\x03"
