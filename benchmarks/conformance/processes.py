"""Processes of a measured system: how one is ended, and whether it still runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

import psutil


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_session(process: int) -> None:
    """Ends a process and all that it started, which are in a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def is_running(process: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
