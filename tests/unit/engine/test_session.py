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
        assert request.check() is None
        os.kill(os.getpid(), number)
        assert request.check() == f"signal {number.name}"
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_file_sets_the_reason(tmp_path: Path) -> None:
    request = StopRequest()
    request.watch_file(tmp_path / "STOP")
    assert request.check() is None
    (tmp_path / "STOP").touch()
    assert request.check() == f"file {tmp_path / 'STOP'}"


def test_handlers_stand_before_torch_is_imported() -> None:
    code = "import sys; from pretrain.engine.session import StopRequest; StopRequest().install(); "
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
