"""The node's cache: one fetch for all processes, never above its cap, whole or absent, usable after kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pretrain.data import cache as cache_module
from pretrain.data.cache import NodeCache
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
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:
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
