from __future__ import annotations

import signal
import subprocess
import threading
import time

import psutil
import pytest

from pretrain.data.workers.worker import IGNORED_SIGNALS, signals_blocked

HELPER = """
import multiprocessing, os, sys, time
from pretrain.data.workers.worker import become_helper

def helper(parent):
    become_helper(parent)
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=helper, args=(os.getpid(),))
    process.start()
    input_line = sys.stdin.readline()
    if {terminate}:
        process.terminate()
        process.join()
        print("joined", process.exitcode, flush=True)
    process.join()
"""


@pytest.mark.parametrize("terminate", [True, False])
def test_a_helper_ends_by_its_parents_word_or_death_and_by_no_other_signal(tmp_path, command, terminate):
    script = tmp_path / "parent.py"
    script.write_text(HELPER.format(terminate=terminate))
    parent = command.start("python", script, stdin=subprocess.PIPE, env={"PYTHONPATH": "."})
    pid = parent.stdout.readline().strip()
    for number in IGNORED_SIGNALS:
        command.run("kill", f"-{int(number)}", pid, check=True)
    time.sleep(0.1)
    helper = psutil.Process(int(pid))
    assert helper.status() != psutil.STATUS_ZOMBIE
    if terminate:
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "joined 1\n"
        return
    helper.parent().kill()  # pyright: ignore[reportOptionalMemberAccess]
    assert psutil.wait_procs([helper], timeout=120)[1] == []


def test_blocked_signals_are_blocked_inside_only():
    def mask() -> set[int]:
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    before = mask()
    with pytest.raises(ZeroDivisionError), signals_blocked():
        assert set(IGNORED_SIGNALS) <= mask()
        raise ZeroDivisionError
    assert mask() == before


def test_a_thread_beside_the_main_one_blocks_nothing():
    masks: list[set[int]] = []

    def run() -> None:
        with signals_blocked():
            masks.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not masks[0] & set(IGNORED_SIGNALS)
