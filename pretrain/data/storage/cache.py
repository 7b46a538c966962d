"""A size-limited cache of byte strings on the node's disk, shared by any number of processes.

It needs only files and ``flock``: no daemon, no shared memory, no named lock that a killed job could leave behind.

DIR/entries/ab/abcdef…       one entry, renamed into place when it is complete
DIR/entries/ab/abcdef….tmp   an entry being written, already at its final length
DIR/locks/chunk-123          held while an entry is written; entries share 1,024 locks
DIR/usage                    bytes used and bytes fetched so far; its lock guards reservation and eviction

Space is reserved before an entry is written, so the files never exceed the cap. Eviction is least recently used first.

An entry that cannot be read back is dropped and fetched again. Any other disk failure is an error that names the
setting, not the data set.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.data.storage.open_files import check_descriptors
from pretrain.errors import SetupError
from pretrain.files import digest
from pretrain.names import to_bytes

_NUM_LOCKS = 1024
_USAGE = struct.Struct("<qq")
_LOW_WATER = 0.95  # evict down to this share of the cap, so that not every new entry scans all of them
_TEMPORARY = ".tmp"


def default_folder() -> Path:
    """The default folder of the cache."""
    return Path(tempfile.gettempdir()) / f"vit-pretrain-{os.getuid()}"


class NodeCache:
    """See the module. It can be pickled, since it keeps nothing open between calls.

    Args:
        folder: on a local disk; created if missing, and readable only by this user.
        max_bytes: the cap.

    Raises:
        SetupError: the folder cannot be made, or belongs to another user.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for part in ("entries", "locks"):
                (folder / part).mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise SetupError(f"cluster.cache.dir: {folder} cannot be made: {error.strerror}") from error
        if folder.stat().st_uid != os.getuid():
            raise SetupError(f"cluster.cache.dir: {folder} belongs to another user; name a folder of your own")
        with self._usage():  # find out early if the disk cannot be locked or written to
            pass

    def get(self, key: str, fetch: Callable[[], bytes], *, start: int = 0, size: int | None = None) -> bytes:
        """A part of an entry. If it is missing, one process of the node calls ``fetch`` for the entire entry."""
        found = self.peek(key, start=start, size=size)
        if found is not None:
            return found
        with self.lock("chunk", key):
            found = self.peek(key, start=start, size=size)  # another process was faster
            if found is not None:
                return found
            data = fetch()
            self._write(key, data)
        return data[start:] if size is None else data[start : start + size]

    def peek(self, key: str, *, start: int = 0, size: int | None = None) -> bytes | None:
        """A part of an entry, or None. An entry that is too short, or that cannot be read, is dropped."""
        try:
            descriptor = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            check_descriptors(error, f"cluster.cache.dir: {self.folder}")
            self.drop(key)
            return None
        try:
            with suppress(OSError):  # a disk that became read-only can still be read
                os.utime(descriptor)
            wanted = os.fstat(descriptor).st_size - start if size is None else size
            data = os.pread(descriptor, wanted, start) if wanted > 0 else b""
        except OSError:
            data = None
        finally:
            os.close(descriptor)
        if data is not None and len(data) == max(wanted, 0):
            return data
        self.drop(key)
        return None

    def fill(self, key: str, fetch: Callable[[], bytes]) -> bool:
        """Adds an entry, unless it exists or another process is adding it. Returns whether it was added."""
        if key in self:
            return False
        with self.lock("chunk", key, wait=False) as held:
            if not held or key in self:
                return False
            self._write(key, fetch())
        return True

    def put(self, key: str, data: bytes) -> None:
        """Adds an entry whose bytes are already available."""
        with self.lock("chunk", key):
            if key not in self:
                self._write(key, data)

    def drop(self, key: str) -> None:
        """Removes an entry whose bytes were wrong."""
        path = self.path(key)
        if not os.path.lexists(path):
            return
        with self._usage() as usage, on_disk(self.folder), suppress(FileNotFoundError):
            size = path.lstat().st_size
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            usage[0] -= size

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def path(self, key: str) -> Path:
        """The file of an entry, whether or not it exists."""
        name = digest(to_bytes(key))
        return self.folder / "entries" / name[:2] / name

    @property
    def used_bytes(self) -> int:
        """Bytes in use now."""
        with self._usage() as usage:
            return usage[0]

    @property
    def fetched_bytes(self) -> int:
        """Bytes added to the cache since its folder was made."""
        with self._usage() as usage:
            return usage[1]

    @contextmanager
    def lock(self, kind: str, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Holds the lock that all entries with this key's slot share. Without ``wait``, yields False if it is taken.

        The system releases it when its holder dies, for whatever reason.
        """
        with self._slot(kind, digest(to_bytes(key)), wait) as held:
            yield held

    @contextmanager
    def _slot(self, kind: str, name: str, wait: bool) -> Iterator[bool]:
        descriptor = self._opened(self.folder / "locks" / f"{kind}-{int(name[:8], 16) % _NUM_LOCKS:03x}")
        try:
            try:
                with on_disk(self.folder):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)

    def _opened(self, path: Path) -> int:
        """Opens a bookkeeping file, creating it and its folder if a cleaner of old files has removed them."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with on_disk(self.folder):
            try:
                return os.open(path, flags, 0o600)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                return os.open(path, flags, 0o600)

    def _write(self, key: str, data: bytes) -> None:
        """Writes an entry; the caller holds its lock."""
        path = self.path(key)
        temporary = path.with_name(path.name + _TEMPORARY)
        with on_disk(self.folder, self.max_bytes):
            for again in (True, False):
                try:
                    self._take_room(temporary, len(data))
                    with open(temporary, "r+b") as file:
                        file.write(data)
                    with self._usage():  # a process that counts the files sees it under exactly one name
                        os.replace(temporary, path)
                    return
                except FileNotFoundError:  # a cleaner of old files was here
                    if not again:
                        raise
                except OSError:
                    self._give_back(temporary, len(data))
                    raise

    def _give_back(self, temporary: Path, size: int) -> None:
        with suppress(OSError, SetupError), self._usage() as usage:
            temporary.unlink()
            usage[0] -= size

    def _take_room(self, temporary: Path, size: int) -> None:
        """Creates the temporary file at its final length, so that processes that count the files include it."""
        with self._usage() as usage:
            if usage[0] + size > self.max_bytes:
                usage[0] = self._evict(self.max_bytes - size, temporary)
            temporary.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(temporary, "wb") as file:
                file.truncate(size)
            usage[0] += size
            usage[1] += size

    def _evict(self, limit: int, mine: Path) -> int:
        """Removes the least recently used entries until at most ``limit`` bytes remain. Returns the remaining bytes."""
        entries, total = [], 0
        for path in (self.folder / "entries").glob("*/*"):
            with suppress(FileNotFoundError):
                info = path.stat()
                if path.suffix == _TEMPORARY and (path == mine or self._is_stale(path)):
                    path.unlink()  # the process that wrote it was killed
                    continue
                total += info.st_size
                if path.suffix != _TEMPORARY:
                    entries.append((info.st_mtime_ns, info.st_size, path))
        low = min(limit, int(self.max_bytes * _LOW_WATER))
        for _, size, path in sorted(entries):
            if total <= low:
                break
            with suppress(FileNotFoundError):
                path.unlink()
                total -= size
        return total

    def _count(self) -> int:
        sizes = []
        for path in (self.folder / "entries").glob("*/*"):
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return sum(sizes)

    def _is_stale(self, temporary: Path) -> bool:
        with self._slot("chunk", temporary.name.removesuffix(_TEMPORARY), wait=False) as held:
            return held

    @contextmanager
    def _usage(self) -> Iterator[list[int]]:
        """[bytes used, bytes fetched], under the lock; changes to the list are stored."""
        descriptor = self._opened(self.folder / "usage")
        try:
            with on_disk(self.folder, self.max_bytes):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                stored = os.pread(descriptor, _USAGE.size, 0)
                usage = list(_USAGE.unpack(stored)) if len(stored) == _USAGE.size else [-1, 0]
                is_known = min(usage) >= 0
                usage = usage if is_known else [self._count(), max(0, usage[1])]
            before = list(usage)
            yield usage
            if usage != before or not is_known:
                with on_disk(self.folder, self.max_bytes):
                    os.pwrite(descriptor, _USAGE.pack(max(0, usage[0]), usage[1]), 0)
        finally:
            os.close(descriptor)


@contextmanager
def on_disk(folder: Path, max_bytes: int = 0) -> Iterator[None]:
    """Turns disk errors of the cache into errors with a remedy; missing and locked files are left to the caller.

    Raises:
        SetupError: the disk is full, read-only, broken, does not support locks, or denies access.
    """
    try:
        yield
    except (FileNotFoundError, BlockingIOError):
        raise
    except OSError as error:
        check_descriptors(error, f"cluster.cache.dir: {folder}")
        raise SetupError(f"cluster.cache.dir: {folder}: {_said_of(error, max_bytes)}") from error


def _said_of(error: OSError, max_bytes: int) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return (
                f"the disk is full before cluster.cache.max_bytes ({max_bytes:,}) is reached; lower it, or name a "
                "folder on a larger disk"
            )
        case errno.ENOLCK | errno.ENOTSUP | errno.ENOSYS | errno.EINVAL:
            return f"its file system has no locks ({error.strerror}); name a folder on a local disk"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"it cannot be written to ({error.strerror}); name a folder of your own on a local disk"
        case _:
            return f"its disk fails ({error.strerror}); look at the system's log, or name a folder on another disk"
