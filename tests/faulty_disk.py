"""Disks that fail: an error at one call or from one call on, and a power cut that forgets what was not made durable."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pretrain import disk
from pretrain.disk import Disk

ERRNOS = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "ESTALE", "EFBIG", "ENOLCK")


@contextlib.contextmanager
def using(other: Disk) -> Iterator[None]:
    """Everything goes through this disk meanwhile."""
    before, disk.current = disk.current, other
    try:
        yield
    finally:
        disk.current = before


class QuickDisk(Disk):
    """Waits for no platter: a test that loses no power sees no difference, and takes a tenth of the time."""

    def _flush(self, descriptor: int) -> None:
        pass


class FaultyDisk(QuickDisk):
    """Fails at a call.

    Args:
        error: name of the errno.
        at: number of the call, counted from 0.
        lasting: every call from that one on fails, except where nothing is written and ``changes_only``.
        changes_only: counts and fails only calls that write.
    """

    def __init__(self, error: str, at: int, *, lasting: bool = False, changes_only: bool = False) -> None:
        super().__init__()
        self._errno, self._at, self._lasting, self._changes_only = getattr(errno, error), at, lasting, changes_only
        self.calls: list[str] = []

    @property
    def has_fired(self) -> bool:
        return len(self.calls) > self._at

    def about_to(self, call: str, path: Path) -> None:
        if self._changes_only and call in ("read", "list", "stat", "flock"):
            return
        number = len(self.calls)
        self.calls.append(f"{call} {path.name}")
        if number == self._at or (self._lasting and number > self._at):
            raise OSError(self._errno, os.strerror(self._errno), str(path))

    def _put(self, file: IO[bytes], path: Path, data: bytes) -> None:
        try:
            super()._put(file, path, data)
        except OSError:
            file.write(data[: len(data) // 2])  # a disk fills up in the middle of a write
            raise


class SlowDisk(QuickDisk):
    """Waits before every call, as a distant file server makes one wait."""

    def __init__(self, pause: Callable[[], None]) -> None:
        super().__init__()
        self._pause = pause

    def about_to(self, call: str, path: Path) -> None:
        self._pause()


class _Node:
    """A file or folder as the disk has it: what was written to it, in order, and up to where that is durable."""

    def __init__(self, is_folder: bool) -> None:
        self.is_folder = is_folder
        self.contents: list[bytes] = [b""]
        self.durable = 0  # index into contents


class ForgetfulDisk(QuickDisk):
    """Remembers every change, to tell what may be left of a folder after a power cut.

    Only what was made durable (``sync`` of a file for its content, of a folder for its entries) is sure to be left. Of
    the rest any part may be, in any order: of two renames the later and not the earlier.

    Args:
        root: the folder to remember; what is in it already is durable.
        cut_at: PowerCut is raised before the call with this number.
    """

    def __init__(self, root: Path, cut_at: int) -> None:
        super().__init__()
        self.root, self._cut_at, self.num_calls = root, cut_at, 0
        self._nodes: dict[Path, _Node] = {root: _Node(True)}
        # Changes of entries: [(folder, name) → node or None, …] that come together, and whether they are durable.
        self._changes: list[tuple[list[tuple[_Node, str, _Node | None]], set[int]]] = []

    @property
    def was_cut(self) -> bool:
        return self.num_calls > self._cut_at

    def about_to(self, call: str, path: Path) -> None:
        self.num_calls += 1
        if self.was_cut:
            raise PowerCut

    def _entry(self, path: Path, node: _Node | None) -> tuple[_Node, str, _Node | None]:
        return self._nodes[path.parent], path.name, node

    def _note(self, *entries: tuple[_Node, str, _Node | None]) -> None:
        self._changes.append((list(entries), set()))

    def _known(self, path: Path) -> _Node:
        if path not in self._nodes:
            self._nodes[path] = _Node(False)
            self._note(self._entry(path, self._nodes[path]))
        return self._nodes[path]

    def _content(self, path: Path) -> None:
        if path.is_relative_to(self.root):
            self._known(path).contents.append(path.read_bytes())

    def write(self, path: Path, data: bytes, *, exclusive: bool = False) -> None:
        super().write(path, data, exclusive=exclusive)
        self._content(path)

    def append(self, path: Path, data: bytes, *, durable: bool = False) -> None:
        super().append(path, data, durable=durable)
        self._content(path)
        if durable:
            self._nodes[path].durable = len(self._nodes[path].contents) - 1

    def write_with(self, path: Path, writer: Callable[[Path], Any]) -> None:
        super().write_with(path, writer)
        self._content(path)

    def sync(self, path: Path) -> None:
        super().sync(path)
        if not path.is_relative_to(self.root):
            return
        node = self._nodes[path]
        if not node.is_folder:
            node.durable = len(node.contents) - 1
        for entries, durable in self._changes:
            durable |= {index for index, entry in enumerate(entries) if entry[0] is node}

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        moved = self._nodes[source]
        self._note(self._entry(source, None), self._entry(target, moved))
        for path in [path for path in self._nodes if path.is_relative_to(target)]:
            del self._nodes[path]
        for path in [path for path in self._nodes if path.is_relative_to(source)]:
            self._nodes[target / path.relative_to(source)] = self._nodes.pop(path)

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self._nodes[target] = self._nodes[source]
        self._note(self._entry(target, self._nodes[source]))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        if self._nodes.pop(path, None) is not None:
            self._note(self._entry(path, None))

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        if path.is_relative_to(self.root) and path not in self._nodes:
            self._nodes[path] = _Node(True)
            self._note(self._entry(path, self._nodes[path]))

    def remove_folder(self, path: Path) -> None:
        super().remove_folder(path)
        del self._nodes[path]
        self._note(self._entry(path, None))

    def leave(self, target: Path, chance: float, seed: int) -> None:
        """Writes what is left after the cut into an empty folder.

        Args:
            target: that folder.
            chance: with which a change that was not made durable is there nonetheless.
            seed: of the draws.
        """
        draw = random.Random(seed)
        top = next(iter(self._nodes.values()))
        entries: dict[int, dict[str, _Node]] = {}
        for change, durable in self._changes:
            # A rename is one change; journals of file systems keep it one, also where only one folder was synced.
            if durable or draw.random() < chance:
                for folder, name, node in change:
                    here = entries.setdefault(id(folder), {})
                    if node is None:
                        here.pop(name, None)
                    else:
                        here[name] = node
        self._lay_out(top, target, entries, chance, draw)

    def _lay_out(
        self, folder: _Node, target: Path, entries: dict[int, dict[str, _Node]], chance: float, draw: random.Random
    ) -> None:
        target.mkdir(exist_ok=True)
        for name, node in entries.get(id(folder), {}).items():
            if node.is_folder:
                self._lay_out(node, target / name, entries, chance, draw)
            else:
                later = range(node.durable, len(node.contents))
                content = node.contents[draw.choice(later) if draw.random() < chance else node.durable]
                if content is not node.contents[node.durable] and draw.random() < 0.5:
                    content = content[: draw.randrange(len(content) + 1)]  # blocks of a file are written in no order
                (target / name).write_bytes(content)


class PowerCut(BaseException):
    """The machine is off: no handler of the code under test may catch it."""
