"""ImageNet-21k as it is distributed: one tar of per-synset tars (or a folder of those), read without unpacking.

``fall11_whole.tar`` is a plain tar; ``winter21_whole.tar.gz`` must be unpacked with gunzip first, since a compressed
file cannot be read at random. Of a per-synset tar that is damaged the images before the damage are listed; the rest
is listed as one image that cannot be read, so it is quarantined with its reason and counts as bad.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from pipelines.sources.entries import files_fingerprint
from pipelines.sources.file_patterns import compressed_note, files_with
from pipelines.sources.options import SourceOptions
from pipelines.sources.protocol import Item, Source
from pipelines.sources.splits import Place, splits_of_files
from pipelines.sources.tars import KIND as MEMBERS
from pipelines.sources.tars import Member, RangeReader, Section, members_in, members_of
from pretrain.data.ledger import Ledger
from pretrain.errors import DataError
from pretrain.names import shown

DAMAGED = -1  # the offset of the unreadable rest


class ImageNet21kSource(Source):
    """Images of every synset; the class id is the synset, such as n02084071.

    Args:
        path: the tar of tars, or a folder of per-synset tars.
        how: the name of the set, and what determines the split of a tar.
    """

    homepage = "https://image-net.org"
    licence = "ImageNet terms of access: non-commercial research and education; the images belong to their owners"

    def __init__(self, path: Path, how: SourceOptions | None = None) -> None:
        how = how or SourceOptions()
        self.path = path
        self.name = how.name or "imagenet21k"
        self.origin = str(path)
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []
        if not path.exists():
            raise DataError(f"{path} does not exist; give the tar of per-synset tars, or a folder of them")
        self._beside = Ledger()
        found = files_with(path, ".tar", self._beside, deep=False) if path.is_dir() else [str(path)]
        self._files = [Path(file) for file in found]
        if not self._files:
            raise DataError(f"{path} holds no .tar; give the tar of per-synset tars, or a folder of them")
        folder = Path(os.path.abspath(path)).name if path.is_dir() else ""
        self._splits = splits_of_files([Place(file.name, folder) for file in self._files], how.split_from)
        self.split_rule, self.notes = self._splits.rule, [*self._splits.notes, *compressed_note(self._beside)]
        self._reader = RangeReader()

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``."""
        return files_fingerprint(self._files)

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        self.classes, names, self.ledger = [], synset_names(), Ledger()
        self.ledger.merge(self._beside)
        self._empty: list[str] = []
        known: set[str] = set()
        for part, synset, member in self._members():
            if not self.classes or self.classes[-1][0] != synset:
                if synset in known:
                    raise DataError(f"{self.path}: the synset {synset} comes twice")
                known.add(synset)
                self.classes.append((synset, names.get(synset, synset)))
            key = f"{synset}/{PurePosixPath(member.name).name}"
            if member.offset != DAMAGED:
                self.ledger.used(MEMBERS, "images")
            else:
                self.notes.append(f"{synset}.tar cannot be read to its end; the images before that are packed")
            yield Item(key, (len(self.classes) - 1,), member.size, self._splits.names[part], part, member.offset)
        if not self.classes:
            raise DataError(f"{self.path} holds no per-synset tars such as n02084071.tar")
        if self._empty:
            some = ", ".join(map(shown, self._empty[:3])) + (", …" if len(self._empty) > 3 else "")
            self.notes.append(f"tars without an image, which make no class: {len(self._empty)} ({some})")

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        if item.offset == DAMAGED:
            raise OSError(self._damage(item))
        data = self._reader.read(self._files[item.part], item.offset, item.num_bytes)
        return data, PurePosixPath(item.key).suffix[1:].lower() or "jpg"

    def _members(self) -> Iterator[tuple[int, str, Member]]:
        if self.path.is_dir():
            for part, file in enumerate(self._files):
                members = self._or_empty(_to_the_damage(members_of(file, self.ledger), file.stem), file.stem)
                yield from ((part, file.stem, member) for member in members)
            return
        for synset, outer in self._inner_tars(self.ledger):
            members = _to_the_damage(self._members_of_inner(outer, self.ledger), synset)
            for inner in self._or_empty(members, synset):
                is_whole = inner.offset != DAMAGED
                yield 0, synset, inner._replace(offset=outer.offset + inner.offset) if is_whole else inner

    def _or_empty(self, members: Iterator[Member], synset: str) -> Iterator[Member]:
        """The same members; a tar without any is recorded."""
        first = next(members, None)
        if first is None:
            self._empty.append(synset)
            return
        yield first
        yield from members

    def _inner_tars(self, ledger: Ledger) -> Iterator[tuple[str, Member]]:
        for outer in members_of(self.path, ledger):
            name = PurePosixPath(outer.name)
            if name.suffix.lower() == ".tar":
                ledger.used(MEMBERS, "tars of a synset")
                yield name.stem, outer
            else:
                ledger.lost(MEMBERS, "not a tar of a synset", outer.name)

    def _members_of_inner(self, outer: Member, ledger: Ledger | None = None) -> Iterator[Member]:
        with open(self.path, "rb") as file:
            section = Section(file, outer.offset, outer.size)
            yield from members_in(section, f"{self.path}:{outer.name}", ledger)  # pyright: ignore[reportArgumentType]

    def _damage(self, item: Item) -> str:
        """The error in the tar of an item; reads the tar again up to that point."""
        synset = item.key.partition("/")[0]
        try:
            if self.path.is_dir():
                deque(members_of(self._files[item.part]), maxlen=0)
            else:
                for _, outer in (pair for pair in self._inner_tars(Ledger()) if pair[0] == synset):
                    deque(self._members_of_inner(outer), maxlen=0)
        except DataError as error:
            return str(error)
        return f"{synset}.tar has changed since it was listed"


def _to_the_damage(members: Iterator[Member], synset: str) -> Iterator[Member]:
    """The members of one tar; if it is truncated, one more for the rest that is lost."""
    try:
        yield from members
    except DataError:
        yield Member(f"rest of {synset}.tar", DAMAGED, 0)


@cache
def synset_names() -> dict[str, str]:
    """Synset → name of ImageNet's classes, from the list in timm's package; empty without it."""
    from importlib.util import find_spec

    spec = find_spec("timm")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    path = folder / "data" / "_info" / "imagenet_synset_to_lemma.txt" if folder else None
    if path is None or not path.is_file():
        return {}
    rows = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {synset: name for synset, _, name in rows}
