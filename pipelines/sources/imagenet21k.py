"""ImageNet-21k as it is distributed: one tar of per-synset tars (or a folder of those), read without unpacking.

``fall11_whole.tar`` is a plain tar; ``winter21_whole.tar.gz`` must be unpacked with gunzip first, since a compressed
file cannot be read at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipelines.packing.wordnet import synset_names
from pipelines.sources.protocol import Item, Source
from pipelines.sources.tars import Member, RangeReader, Section, file_fingerprint, members_in, members_of
from pretrain.errors import DataError


class ImageNet21kSource(Source):
    """Images of every synset; the class id is the synset, such as n02084071.

    Args:
        path: the tar of tars, or a folder of per-synset tars.
        name: of the data set.
    """

    homepage = "https://image-net.org"
    licence = "ImageNet terms of access: non-commercial research and education; the images belong to their owners"

    def __init__(self, path: Path, *, name: str = "") -> None:
        self.path = path
        self.name = name or "imagenet21k"
        self.origin = str(path)
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []
        if not path.exists():
            raise DataError(f"{path} does not exist; give the tar of per-synset tars, or a folder of them")
        self._files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not self._files:
            raise DataError(f"{path} holds no .tar; give the tar of per-synset tars, or a folder of them")
        self._reader = RangeReader()

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``."""
        return file_fingerprint(self._files)

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        self.classes, names = [], synset_names()
        known: set[str] = set()
        for part, synset, member in self._members():
            if not self.classes or self.classes[-1][0] != synset:
                if synset in known:
                    raise DataError(f"{self.path}: the synset {synset} comes twice")
                known.add(synset)
                self.classes.append((synset, names.get(synset, synset)))
            key = f"{synset}/{PurePosixPath(member.name).name}"
            yield Item(key, (len(self.classes) - 1,), member.size, part=part, offset=member.offset)
        if not self.classes:
            raise DataError(f"{self.path} holds no per-synset tars such as n02084071.tar")

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        data = self._reader.read(self._files[item.part], item.offset, item.num_bytes)
        return data, PurePosixPath(item.key).suffix[1:].lower() or "jpg"

    def _members(self) -> Iterator[tuple[int, str, Member]]:
        if self.path.is_dir():
            for part, file in enumerate(self._files):
                yield from ((part, file.stem, member) for member in members_of(file))
            return
        with open(self.path, "rb") as file:
            for outer in members_of(self.path):
                name = PurePosixPath(outer.name)
                if name.suffix != ".tar":
                    continue
                section = Section(file, outer.offset, outer.size)
                for inner in members_in(section, f"{self.path}:{outer.name}"):  # pyright: ignore[reportArgumentType]
                    yield 0, name.stem, inner._replace(offset=outer.offset + inner.offset)
