"""The wish to stop, by each signal and by a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.engine.session import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_reason(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        request = StopRequest().install()
        request.wait_for_boundaries()
        assert request.check() is None
        os.kill(os.getpid(), number)
        assert request.check() == f"signal {number.name}"
    finally:
        signal.set_wakeup_fd(-1)
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_file_sets_the_reason(tmp_path: Path) -> None:
    request = StopRequest()
    request.watch_file(tmp_path / "STOP")
    assert request.check() is None
    (tmp_path / "STOP").touch()
    assert request.check() == f"file {tmp_path / 'STOP'}"


class SignalledMeanwhile:
    """A launcher that lives; while it is looked at, this process receives a signal."""

    @property
    def is_gone(self) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False


def test_a_signal_in_the_middle_of_a_check_is_not_lost() -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        request = StopRequest().install()
        request.wait_for_boundaries()
        request.watch_launchers([SignalledMeanwhile()])  # type: ignore[list-item]
        request.check()
        assert request.reason == "signal SIGTERM"
    finally:
        signal.set_wakeup_fd(-1)
        for each, handler in before.items():
            signal.signal(each, handler)


STARTING = """
import socket
from pretrain.engine.session import StopRequest
StopRequest().install()
print("installed", flush=True)
pair = socket.socketpair()
while True:
    pair[0].recv(1)  # Python calls again after a signal, and a library that waits in C does not return at all
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_during_the_start_ends_the_process_at_once(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "installed\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert f"signal {number.name} during the start" in errors


FORKS = """
import os, signal, time
from pretrain.engine.session import StopRequest
request = StopRequest().install()
arrived, ready = os.pipe()
child = os.fork()
if child == 0:
    os.write(ready, b".")  # Python drops signals that come before a child is set up
    while request.check() is None:
        time.sleep(0.01)
    os._exit(7)
os.read(arrived, 1)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
time.sleep(0.5)
print("lives")
"""


def test_a_signal_to_a_forked_process_is_not_taken_for_ours() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["7", "lives"], done.stderr


def test_handlers_stand_before_torch_is_imported() -> None:
    code = "import sys; from pretrain.engine.session import StopRequest; StopRequest().install(); "
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
