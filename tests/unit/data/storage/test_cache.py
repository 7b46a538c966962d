"""The node's cache: one fetch for all processes, never above its cap, whole or absent, usable after kill -9."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.storage import cache as cache_module
from pretrain.data.storage.cache import NodeCache
from pretrain.errors import SetupError


def on_disk(cache: NodeCache) -> int:
    with cache._usage():  # nothing comes, goes or is renamed meanwhile
        files = (cache.folder / "entries").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())


def fail() -> bytes:
    raise AssertionError("it was there")


def test_an_entry_is_fetched_once_and_read_in_parts(tmp_path):
    cache = NodeCache(tmp_path / "cache", 1000)
    assert cache.get("a", lambda: b"0123456789", start=2, size=3) == b"234"
    assert cache.get("a", fail) == b"0123456789"
    assert cache.get("a", fail, start=7) == b"789"
    assert cache.peek("b") is None
    assert (cache.used_bytes, cache.fetched_bytes) == (10, 10)
    assert not cache.fill("a", fail)
    assert cache.fill("b", lambda: b"xy")
    assert oct((tmp_path / "cache").stat().st_mode)[-3:] == "700"


def test_a_failed_fetch_leaves_nothing(tmp_path):
    cache = NodeCache(tmp_path, 1000)

    def broken() -> bytes:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        cache.get("a", broken)
    assert "a" not in cache
    assert (on_disk(cache), cache.used_bytes) == (0, 0)
    assert cache.get("a", lambda: b"1") == b"1"


def test_what_was_not_used_for_longest_goes_and_the_cap_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_LOW_WATER", 1.0)
    cache = NodeCache(tmp_path, 100)
    for name in "abcde":
        cache.get(name, lambda: bytes(20))
        time.sleep(0.01)
    cache.get("a", fail)  # used again
    for name in "fg":
        time.sleep(0.01)
        cache.get(name, lambda: bytes(20))
        assert on_disk(cache) <= 100
    assert [name for name in "abcdefg" if name in cache] == list("adefg")
    cache.drop("a")
    cache.drop("a")
    assert "a" not in cache
    assert cache.used_bytes == on_disk(cache) == 80


def test_lost_and_stale_bookkeeping_is_made_anew(tmp_path):
    cache = NodeCache(tmp_path, 100)
    for name in "abc":
        cache.get(name, lambda: bytes(30))
    (tmp_path / "usage").unlink()
    stale = cache.path("dead").with_name(cache.path("dead").name + ".tmp")
    stale.parent.mkdir(exist_ok=True)
    stale.write_bytes(bytes(25))
    cache.get("d", lambda: bytes(30))
    assert not stale.exists()
    assert cache.used_bytes == on_disk(cache) <= 100


def work(folder: Path, log: Path, worker: int) -> None:
    """Reads 40 entries in an order of its own, and writes down which it had to fetch."""
    cache = NodeCache(folder, 100_000)

    def fetch(name: str) -> bytes:
        with open(log, "a") as file:
            file.write(f"{name}\n")
        time.sleep(0.002)
        return name.encode() * 100

    for step in range(40):
        name = f"entry-{(step * 7 + worker * 3) % 40:02d}"
        assert cache.get(name, lambda name=name: fetch(name)) == name.encode() * 100


def test_processes_and_threads_that_want_the_same_fetch_it_once(tmp_path):
    NodeCache(tmp_path / "cache", 100_000)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(tmp_path / "cache", tmp_path / "log", n)) for n in range(2)]
    threads = [threading.Thread(target=work, args=(tmp_path / "cache", tmp_path / "log", n)) for n in range(2, 5)]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == [f"entry-{n:02d}" for n in range(40)]


def churn(folder: Path, worker: int) -> None:
    cache = NodeCache(folder, 5000)
    for step in range(10**9):
        size = 100 + (step * 37 + worker * 11) % 900
        assert len(cache.get(f"{worker}-{step}-{size}", lambda size=size: bytes(size))) == size


def test_the_cap_holds_while_processes_are_killed(tmp_path):
    cache = NodeCache(tmp_path, 5000)
    context = multiprocessing.get_context("fork")
    largest = 0
    for turn in range(4):
        processes = [context.Process(target=churn, args=(tmp_path, 10 * turn + n), daemon=True) for n in range(3)]
        for process in processes:
            process.start()
        begun = time.monotonic()
        while time.monotonic() < begun + 0.4 or largest <= 2000:  # a busy machine may start them late
            largest = max(largest, on_disk(cache))
            time.sleep(0.005)
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    assert 2000 < largest <= 5000
    for step in range(100):  # nobody left a lock, and the room of the dead is found again
        cache.get(f"after-{step}", lambda: bytes(500))
    assert cache.used_bytes == on_disk(cache) <= 5000


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"cluster\.cache\.dir: .*cannot be made"):
        NodeCache(tmp_path / "file" / "cache", 100)


@pytest.fixture
def failing(monkeypatch):
    """Makes a function of ``os`` or ``fcntl`` fail for paths or descriptors of entries, with an error of the system."""

    def fail_with(module: Any, name: str, number: int, *, times: int = 10**9, part: str = "") -> None:
        real, left = getattr(module, name), [times]

        def failing_call(*args: Any, **kwargs: Any) -> Any:
            if left[0] and part in str(args[0]):
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, failing_call)

    return fail_with


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_locks_is_found_out_at_the_start(tmp_path, failing, number):
    failing(fcntl, "flock", number)
    with pytest.raises(SetupError, match=r"cluster\.cache\.dir: .* has no locks .*; name a folder on a local disk"):
        NodeCache(tmp_path / "cache", 1000)


@pytest.mark.parametrize(
    ("module", "name", "number", "message"),
    [
        (os, "replace", errno.EIO, "its disk fails"),
        (os, "replace", errno.EROFS, "cannot be written to .Read-only file system"),
        (os, "replace", errno.ENOSPC, r"the disk is full before cluster\.cache\.max_bytes \(1,000\)"),
        (os, "replace", errno.EDQUOT, "the disk is full before"),
        (os, "pwrite", errno.EIO, "its disk fails"),
        (os, "pwrite", errno.ENOSPC, "the disk is full before"),
        (fcntl, "flock", errno.ENOLCK, "has no locks"),
        (fcntl, "flock", errno.EIO, "its disk fails"),
    ],
)
def test_a_disk_that_refuses_names_the_setting(tmp_path, failing, module, name, number, message):
    cache = NodeCache(tmp_path / "cache", 1000)
    failing(module, name, number)
    with pytest.raises(SetupError, match=rf"cluster\.cache\.dir: {tmp_path}/cache: .*{message}"):
        cache.get("a", lambda: b"0123456789")


def test_room_of_an_entry_that_could_not_be_written_is_given_back(tmp_path, failing):
    cache = NodeCache(tmp_path / "cache", 1000)
    failing(os, "replace", errno.ENOSPC, times=1)
    with pytest.raises(SetupError, match="disk is full"):
        cache.get("a", lambda: bytes(900))
    assert cache.used_bytes == on_disk(cache) == 0
    assert cache.get("a", lambda: bytes(900)) == bytes(900)


@pytest.mark.parametrize("name", ["open", "pread"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_an_entry_that_the_disk_does_not_give_back_is_fetched_again(tmp_path, failing, name, number):
    cache = NodeCache(tmp_path / "cache", 1000)
    assert cache.get("a", lambda: b"old") == b"old"
    descriptor = os.open(cache.path("a"), os.O_RDONLY)
    os.close(descriptor)  # the number that the next file gets
    failing(os, name, number, times=1, part=str(cache.path("a")) if name == "open" else str(descriptor))
    assert cache.get("a", lambda: b"new") == b"new"
    assert cache.get("a", fail) == b"new"
    assert cache.used_bytes == on_disk(cache) == 3


def spoil_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4])


def make_folder(path: Path) -> None:
    path.unlink()
    (path / "x").mkdir(parents=True)


def make_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("harm", [spoil_length, make_folder, make_link])
def test_a_damaged_entry_is_dropped_and_fetched_again(tmp_path, harm):
    cache = NodeCache(tmp_path / "cache", 1000)
    cache.get("a", lambda: b"0123456789")
    harm(cache.path("a"))
    assert cache.get("a", lambda: b"9876543210", start=2, size=6) == b"765432"
    assert cache.get("a", fail, start=2, size=6) == b"765432"


@pytest.mark.parametrize("usage", [b"", b"\xff" * 16, b"abc", b"\x7f" * 16])
def test_damaged_bookkeeping_is_made_anew(tmp_path, usage):
    cache = NodeCache(tmp_path / "cache", 100)
    cache.get("a", lambda: bytes(60))
    (tmp_path / "cache" / "usage").write_bytes(usage)
    for name in "bcd":
        cache.get(name, lambda: bytes(60))
        assert on_disk(cache) <= 100
    assert cache.used_bytes == on_disk(cache)


def test_a_cleaner_of_old_files_may_come_by(tmp_path):
    cache = NodeCache(tmp_path / "cache", 1000)
    for name in "abc":
        shutil.rmtree(tmp_path / "cache")
        assert cache.get(name, lambda: b"0123456789") == b"0123456789"
        assert name in cache


def test_a_disk_that_became_read_only_still_gives_what_it_has(tmp_path, failing):
    cache = NodeCache(tmp_path / "cache", 1000)
    cache.get("a", lambda: b"0123456789")
    failing(os, "utime", errno.EROFS)
    assert cache.get("a", fail) == b"0123456789"
