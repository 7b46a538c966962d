"""Which pack the folder OUT belongs to and who works in it: the state file, the locks, and the shared folder.

OUT/pack.json       options and digest of the source's list
OUT/.pack.lock      held while a process packs (shared by the tasks of an array)
OUT/.plan/          made once and used by all tasks: list, digests, unpacked files; removed at the end
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.pack.options import PackOptions
from pipelines.sources.file_patterns import STATE_FILE
from pretrain.data.storage.index import TABLE_FILE
from pretrain.errors import ConfigError, DataError, SetupError
from pretrain.files import write_atomic

LOCK_FILE = ".pack.lock"
WORK_FOLDER = ".plan"
WORK_FILE = "work.json"
NEEDS_LOCKS = "--out needs a file system with locks (flock); choose a folder on another one"
WORK_KEYS = {"options": dict, "fingerprint": str, "tasks": int}
STATE_VERSION = 2
# Version 1 had fewer options, packed all bytes unchanged, and identified the source's list by another digest.
READ_VERSIONS = (1, STATE_VERSION)


@dataclass(frozen=True)
class Task:
    """One of the tasks that share a pack, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Task:
        """Reads ``3/64``.

        Raises:
            ConfigError: it is malformed.
        """
        number, slash, count = text.partition("/")
        if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        raise ConfigError(f"--task {text}: write I/N with 1 ≤ I ≤ N, such as 3/64 for the third of 64 tasks")


@dataclass(frozen=True)
class State:
    """The content of pack.json. ``splits`` and ``fingerprint`` are empty where version 1 wrote it."""

    version: int
    options: dict[str, Any]
    listing: str
    fingerprint: str
    splits: tuple[str, ...]

    def pack_options(self, out: Path) -> PackOptions:
        """The options that the pack was started with.

        Raises:
            DataError: this version has different options.
        """
        try:
            return PackOptions(**self.options)
        except TypeError as error:
            raise DataError(f"{out / STATE_FILE}: another version of the packer wrote it ({error})") from error

    def is_whole(self, out: Path) -> bool:
        """Every split has its index, which is written last."""
        return bool(self.splits) and all((out / name / TABLE_FILE).is_file() for name in self.splits)

    def check(self, listing: str, out: Path) -> None:
        """Rejects a source other than the one that the pack was started with.

        Raises:
            DataError: the list differs.
        """
        if self.version == STATE_VERSION and self.listing != listing:
            raise DataError(
                f"the source has changed since {out} was begun (files came, went or have other sizes, labels or "
                "splits), or an earlier version of the packer read its labels or splits differently; choose another "
                "--out, or delete the folder"
            )


def read_state(out: Path, options: PackOptions | None) -> State | None:
    """The state from an earlier run in ``out``; None: the folder is new.

    Args:
        out: the pack's folder.
        options: those that it must have been packed with; None: any.

    Raises:
        ConfigError: it holds other files, or was packed with other options or by another version.
        DataError: the state is damaged.
    """
    path = out / STATE_FILE
    if not path.is_file():
        ours = (LOCK_FILE, WORK_FOLDER)
        others = sorted(
            entry.name
            for entry in out.iterdir()
            if entry.name not in ours and not entry.name.startswith(f"{STATE_FILE}.")  # left by a killed run
        )
        if others:
            raise ConfigError(f"--out {out} holds other files, such as {others[0]}; choose a new or empty folder")
        return None
    found = _read_object(path, {"options": dict, "listing": str})
    if found.get("version") not in READ_VERSIONS:
        raise ConfigError(f"{path} is of version {found.get('version')!r}; choose another --out or delete the folder")
    if options is not None:
        _check_options(options, found["options"], out)
    return State(
        found["version"],
        found["options"],
        found["listing"],
        str(found.get("fingerprint", "")),
        tuple(map(str, found.get("splits") or ())),
    )


def _read_object(path: Path, needed: dict[str, type]) -> dict[str, Any]:
    """A file of JSON that this packer wrote.

    Raises:
        DataError: it has other content.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete {path.parent}, and pack again") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in needed.items()):
        raise DataError(f"{path} is damaged: it has no {', '.join(needed)}; delete {path.parent}, and pack again")
    return found


def write_state(out: Path, options: PackOptions, listing: str, fingerprint: str, splits: Sequence[str]) -> None:
    """Claims ``out`` for this pack."""
    state = {"version": STATE_VERSION, "options": options.to_dict(), "listing": listing}
    state |= {"fingerprint": fingerprint, "splits": list(splits)}
    write_atomic(out / STATE_FILE, json.dumps(state, indent=2) + "\n")


def _check_options(options: PackOptions, had: dict[str, Any], where: Path) -> None:
    wanted, defaults = options.to_dict(), PackOptions("").to_dict()
    differing = [
        f"{key}: {had.get(key, defaults[key])!r} then, {value!r} now"
        for key, value in wanted.items()
        if had.get(key, defaults[key]) != value
    ]
    if differing:
        raise ConfigError(
            f"{where} was packed with other options ({'; '.join(differing)}); choose another --out, "
            "or delete the folder"
        )


class Work:
    """The folder for everything that is prepared once.

    Args:
        out: the pack's folder.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / WORK_FOLDER

    def begin(self, options: PackOptions, fingerprint: str, task: Task | None) -> None:
        """Makes the folder, or checks that it belongs to this pack. If it does not, a single run starts over.

        Raises:
            ConfigError: the tasks of an array differ in options or number.
        """
        self.folder.mkdir(exist_ok=True)
        with self.lock("begin"):
            path = self.folder / WORK_FILE
            mine = {"options": options.to_dict(), "fingerprint": fingerprint, "tasks": task.count if task else 1}
            theirs = _read_object(path, WORK_KEYS) if path.is_file() else None
            if theirs is not None and task is not None:
                _check_options(options, theirs["options"], self.folder.parent)
                if theirs["tasks"] not in (1, task.count):
                    raise ConfigError(
                        f"{self.folder.parent} is being packed by {theirs['tasks']} tasks, not {task.count}; use the "
                        f"same number, or delete the folder {self.folder}"
                    )
                if theirs["fingerprint"] != fingerprint:
                    raise DataError(f"the source has changed since {self.folder.parent} was begun; delete the folder")
            if theirs is not None and task is None and theirs | {"tasks": 1} != mine:
                self.remove()
                self.folder.mkdir()
            write_atomic(self.folder / WORK_FILE, json.dumps(mine, indent=2) + "\n")

    @property
    def num_tasks(self) -> int:
        """How many tasks share the pack; 0 if none has started."""
        path = self.folder / WORK_FILE
        return _read_object(path, WORK_KEYS)["tasks"] if path.is_file() else 0

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Waits until no other process of the pack, on any machine, is inside this block."""
        path = self.folder / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise SetupError(f"{path} cannot be locked ({error.strerror}); {NEEDS_LOCKS}") from error
            yield

    def once(self, done: Path, work: Callable[[], None]) -> None:
        """Runs ``work``, which makes the file ``done``, unless that exists; one process does it, the others wait."""
        if done.exists():
            return
        with self.lock(f"locks/{done.name}"):
            if not done.exists():
                work()

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def locked(out: Path, *, together: bool = False) -> Iterator[None]:
    """Holds the folder's lock, which the kernel releases however this process ends.

    Args:
        out: the pack's folder.
        together: shared: other processes that pass True may hold it at the same time.

    Raises:
        SetupError: another process holds it, or the file system has no locks.
    """
    path = out / LOCK_FILE
    while True:
        file = open(path, "a")
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise SetupError(f"another process is packing into {out}; wait for it or choose another --out") from error
        except OSError as error:
            file.close()
            raise SetupError(f"{path} cannot be locked ({error.strerror}); {NEEDS_LOCKS}") from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder removed it in the meantime: locking that file would exclude nobody
    try:
        yield
    finally:
        if not together:
            path.unlink(missing_ok=True)
        file.close()
