"""The identity of a process. Its PID alone is not enough: PIDs repeat across machines, containers and time.

A process is identified by its kernel (boot id), its PID namespace (each container has one), its PID in it, and its
start time. Whether it is alive can be determined only from the same namespace of the same kernel.

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
        host: name of its machine or container, for display.
        pid: its PID in its namespace.
        boot_id: the kernel's boot id.
        pid_namespace: the kernel's number of the namespace, which is reused after the namespace is gone.
        started: start time in clock ticks since boot.
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
        """Reads an identity from the content of a file."""
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
        process: the process to check.
        own: the caller; None: this process.
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
        pass  # it belongs to another user
    if _link("/proc/self") != str(os.getpid()):
        return None  # this /proc belongs to another namespace: its PIDs are other processes
    state, started = _stat(str(process.pid))
    if started is None:
        return None
    # A killed process that its parent has not reaped is a zombie (Z); it counts as dead.
    return started == process.started and state not in ("Z", "X")


def _stat(process: str) -> tuple[str, int | None]:
    text = _text(f"/proc/{process}/stat")
    fields = [] if text is None else text.rsplit(")", 1)[-1].split()  # a name may contain spaces and parentheses
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
