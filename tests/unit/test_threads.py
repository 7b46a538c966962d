"""Threads have names, end with the process, and an error that ends one is reported."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from pretrain import threads


def _fail(address: str) -> None:
    raise ValueError(f"{address} cannot be read")


@pytest.mark.parametrize("starter", ["start", "after"])
def test_an_error_is_reported_with_the_name_and_without_secrets(starter, capsys):
    address = "https://user:secret@host/set"
    if starter == "start":
        thread = threads.start("reader-3", _fail, address)
    else:
        thread = threads.after(0, "reader-3", lambda: _fail(address))
    thread.join(60)
    said = capsys.readouterr().err
    assert said.startswith("error: thread reader-3 ended:\nTraceback") and "in _fail" in said
    assert said.endswith("ValueError: https://***@host/set cannot be read\n") and "secret" not in said


def test_a_thread_has_its_name():
    names = []
    threads.start("a", lambda: names.append(threading.current_thread().name)).join(60)
    threads.after(0, "b", lambda: names.append(threading.current_thread().name)).join(60)
    with threads.pool("c", 1) as pool:
        names.append(pool.submit(lambda: threading.current_thread().name).result(60))
    assert names == ["a", "b", "c_0"]


def test_a_cancelled_timer_does_nothing():
    called = threading.Event()
    timer = threads.after(3600, "never", called.set)
    timer.cancel()
    timer.join(60)
    assert not timer.is_alive() and not called.is_set()


def test_the_process_does_not_wait_for_a_thread():
    program = (
        "import threading; from pretrain import threads\n"
        "threads.start('stuck', threading.Event().wait); threads.after(3600, 'late', print)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
