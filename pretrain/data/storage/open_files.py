"""Keeps the number of open files of a process within its limit (``ulimit -n``).

Each owner (a store, a reader of an index) closes its least recently used files first. A closed file is reopened when it
is needed, so the limit costs time but never an image.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from pretrain.errors import SetupError

FEWEST, MOST = 16, 2048
T = TypeVar("T")
_owners: weakref.WeakSet[OpenFiles[Any]] = weakref.WeakSet()
_lock = threading.RLock()


def allowance() -> int:
    """How many data set files this process keeps open: half of its limit, to leave the rest for everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(FEWEST, min(MOST, soft // 2))


class TooManyOpenFiles(SetupError):
    """The process, or the machine, has no descriptor left."""


def check_descriptors(error: OSError, what: str) -> None:
    """Turns "too many open files" into an error with a remedy; ignores other errors.

    Raises:
        TooManyOpenFiles: too many files are open.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        whose = f"this process may have {soft} (ulimit -n)" if error.errno == errno.EMFILE else "of the machine"
        raise TooManyOpenFiles(
            f"{what} cannot be opened: too many open files, {whose}. Raise the limit, for example with ulimit -n "
            f"{hard if hard > soft else 'N as root, or in /etc/security/limits.conf'}; the data are not at fault"
        ) from error


class Descriptor:
    """A file that is open for reading; closed when nothing refers to it any more, including running threads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0 and os is not None:  # the interpreter may be shutting down
            os.close(self.number)


class OpenFiles(Generic[T]):
    """The open files of one owner, by name. It can be pickled; the files are left out.

    Args:
        most: files that are open at the same time, unless the process's limit is lower.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: OrderedDict[Hashable, T] = OrderedDict()
        _owners.add(self)

    def get(self, name: Hashable, opened: Callable[[], T]) -> T:
        """The open file with this name; ``opened`` opens it if necessary.

        Raises:
            TooManyOpenFiles: the process has no descriptor left. Others: as ``opened``.
        """
        with _lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
        made = self._made(name, opened)
        with _lock:
            self._open[name] = made
            while len(self._open) > max(1, self.most):
                self.close_oldest()
            _keep_to(allowance())
        return made

    def drop(self, name: Hashable) -> None:
        """Closes a file, if it is open."""
        with _lock:
            self._open.pop(name, None)

    def close_oldest(self) -> None:
        """Closes the least recently used file."""
        with _lock:
            if self._open:
                self._open.popitem(last=False)

    def close(self) -> None:
        """Closes all files."""
        with _lock:
            self._open.clear()

    def _made(self, name: Hashable, opened: Callable[[], T]) -> T:
        try:
            return opened()
        except TooManyOpenFiles:
            pass
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        _keep_to(0)  # other code took the descriptors; those of data sets can be reopened
        try:
            return opened()
        except OSError as error:
            check_descriptors(error, str(name))
            raise

    def __len__(self) -> int:
        return len(self._open)

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _keep_to(most: int) -> None:
    """Closes the oldest file of the owner with the most files, until at most ``most`` are open."""
    with _lock:
        owners = list(_owners)
        excess = sum(map(len, owners)) - most
        while excess > 0:
            max(owners, key=len).close_oldest()
            excess -= 1
