"""The identity of a process. Its number alone is not enough: numbers repeat between machines, containers and over time.

A process is named by the kernel that it runs on (its boot id), its PID namespace (each container has one), its number
in it, and when it was started. Whether it lives can be told only from the same namespace of the same kernel.

Source: proc(5), pid_namespaces(7); the start is field 22 of /proc/PID/stat.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Identity:
    """A process. Values that the system does not provide (no /proc), or an older version did not write, are None.

    Attributes:
        host: name of its machine or container; for people.
        pid: its number in its namespace.
        boot_id: of the kernel since its last start.
        pid_namespace: as the kernel numbers them; a number is used again when its namespace is gone.
        started: clock ticks from the start of the kernel to that of the process.
    """

    host: str
    pid: int
    boot_id: str | None = None
    pid_namespace: str | None = None
    started: int | None = None

    @classmethod
    def own(cls) -> Identity:
        """This process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            boot_id=_text("/proc/sys/kernel/random/boot_id"),
            pid_namespace=_link("/proc/self/ns/pid"),
            started=_stat("self")[1],
        )

    @classmethod
    def of(cls, values: dict[str, Any]) -> Identity:
        """From the content of a file."""
        return cls(
            host=str(values.get("host")),
            pid=int(values.get("pid", 0)),
            boot_id=values.get("boot_id"),
            pid_namespace=values.get("pid_namespace"),
            started=values.get("started"),
        )


def lives(process: Identity, own: Identity | None = None) -> bool | None:
    """Whether a process is alive; None: that cannot be determined from here.

    Args:
        process: the one in question.
        own: who asks; None: this process.
    """
    own = Identity.own() if own is None else own
    place, here = (process.boot_id, process.pid_namespace), (own.boot_id, own.pid_namespace)
    if None in place or None in here or process.started is None or place != here:
        return None
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it is somebody else's
    if _link("/proc/self") != str(os.getpid()):
        return None  # this /proc is of another namespace: its numbers name other processes
    state, started = _stat(str(process.pid))
    if started is None:
        return None
    # A killed process whose parent has not looked yet is a zombie (Z): dead for us.
    return started == process.started and state not in ("Z", "X")


def _stat(process: str) -> tuple[str, int | None]:
    text = _text(f"/proc/{process}/stat")
    fields = [] if text is None else text.rsplit(")", 1)[-1].split()  # a name may hold blanks and brackets
    return (fields[0], int(fields[19])) if len(fields) > 19 else ("", None)


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
