"""WebDataset shards that exist: packed again, so shuffled anew, with other labels, or several sets as one.

Local tars are read at random where they lie. Remote ones are fetched once into the pack's working folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.sources.names import find_files, is_remote, split_of
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pipelines.sources.remote import RemoteFiles, place_of
from pipelines.sources.samples import samples_of
from pipelines.sources.tars import Member, RangeReader, file_fingerprint, members_of
from pipelines.sources.vectors import VectorLength
from pretrain.data.card import CLASSES_FILE, load_classes
from pretrain.errors import ConfigError, DataError
from pretrain.files import TEMPORARY_SUFFIX

LARGEST_LABEL = 10_000_000  # more classes than that are no class numbers


class WebDatasetSource(Source):
    """Samples of tars. Labels are numbers or names; those of sets that have a classes.csv are its ids.

    Sets with different classes are merged by class id; the key of a sample is ``SHARD/KEY``, or ``FOLDER/SHARD/KEY``
    where shards of two folders have one name.

    Args:
        patterns: tars, folders, URLs, or patterns with braces and wildcards.
        class_names: file with a line per class (the id, or ``id,name``), for labels that are numbers.
        name: of the data set.
        remote: fetches what lies elsewhere.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        *,
        class_names: Path | None = None,
        name: str = "",
        remote: RemoteFiles | None = None,
    ) -> None:
        self.urls = find_files(patterns, ".tar")
        self.remote = remote or RemoteFiles()
        for url in self.units():
            self.remote.check(place_of(url)[0])
        self.name = name or _name_of(self.urls[0])
        self.origin = f"shards {' '.join(patterns)}"
        self.licence = NOT_STATED
        self.multi_label = True  # known when all labels are read, like target; see items
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._given = read_class_names(class_names) if class_names else []
        self._folder: Path | None = None
        self._reader = RangeReader()
        self._prefix = _prefixes(self.urls)

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``; "" where shards are remote."""
        return "" if self.units() else file_fingerprint([Path(url) for url in self.urls])

    def units(self) -> list[str]:
        """See ``Source.units``: the remote shards."""
        return [url for url in self.urls if is_remote(url)]

    def use(self, folder: Path) -> None:
        """See ``Source.use``."""
        self._folder = folder

    def prepare(self, unit: str, folder: Path) -> None:
        """Fetches one shard."""
        target = folder / _local_name(unit)
        temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
        self.remote.fetch(*place_of(unit), temporary)
        temporary.rename(target)

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        classes = _Classes()
        is_multi = False
        vectors, num_masks, num_samples = VectorLength(), 0, 0
        for part, url in enumerate(self.urls):
            path = self._path(part)
            classes.begin(self._own_classes(path))
            for sample in samples_of(members_of(path), lambda member, path=path: self._read(path, member), url):
                labels = tuple(classes.number(label, f"{url}: {sample.key}") for label in sample.labels)
                is_multi = is_multi or sample.is_multi
                vectors.check(sample.vector, f"{url}: {sample.key}")
                key = f"{self._prefix[part].removesuffix('.tar')}/{sample.key}.{sample.extension}"
                split = split_of(_address(url))
                num_samples, num_masks = num_samples + 1, num_masks + (sample.mask is not None)
                size, mask = sample.image.size, ""
                if sample.mask is not None:
                    size, mask = size + sample.mask.size, f"{size}:{sample.mask.offset}:{sample.mask.size}"
                yield Item(key, labels, size, split, part, sample.image.offset, sample.vector, mask)
        self.multi_label = is_multi
        self.classes = list(classes.names.items())
        if num_masks:
            self.target, self.classes = "mask", self._classes_of_masks()
            if num_masks < num_samples:
                raise DataError(f"{num_samples - num_masks} of {num_samples} samples have no mask; pack them apart")
        if vectors.length:
            self.target, self.classes = "vector", self._numbers(vectors)

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        size = int(item.mask.partition(":")[0]) if item.mask else item.num_bytes
        return self._reader.read(self._path(item.part), item.offset, size), item.key.rpartition(".")[2]

    def read_mask(self, item: Item) -> bytes:
        """See ``Source.read_mask``."""
        _, offset, size = map(int, item.mask.split(":"))
        return self._reader.read(self._path(item.part), offset, size)

    def _numbers(self, vectors: VectorLength) -> list[tuple[str, str]]:
        """The names of the numbers: those of the first set that has as many, else none."""
        known = [self._own_classes(self._path(part)) for part in range(len(self.urls))]
        return next((names for names in known if len(names) == vectors.length), vectors.classes)

    def _classes_of_masks(self) -> list[tuple[str, str]]:
        """Of the first set, whose numbers all masks then have."""
        classes = [self._own_classes(self._path(part)) for part in range(len(self.urls))]
        if not classes[0] or any(other != classes[0] for other in classes):
            what = "have different classes" if classes[0] else "say nowhere what the classes of their masks are"
            raise DataError(f"the shards {what}; give --class-names FILE, a class per line, or pack them apart")
        return classes[0]

    def _read(self, path: Path, member: Member) -> bytes:
        return self._reader.read(path, member.offset, member.size)

    def _path(self, part: int) -> Path:
        url = self.urls[part]
        if not is_remote(url):
            return Path(url)
        assert self._folder is not None
        return self._folder / _local_name(url)

    def _own_classes(self, path: Path) -> list[tuple[str, str]]:
        return load_classes(path.parent) if (path.parent / CLASSES_FILE).is_file() else self._given


class _Classes:
    """The classes of several sets as one, by their ids; numbers without a name keep their place."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._index: dict[str, int] = {}
        self._own: list[tuple[str, str]] = []

    def begin(self, own: list[tuple[str, str]]) -> None:
        """The next samples' numbers mean these classes."""
        if own is not self._own and own != self._own:
            for identifier, name in own:
                self._add(identifier, name)
        self._own = own

    def number(self, label: int | str, where: str) -> int:
        """The class of a label."""
        if isinstance(label, str):
            return self._add(label, label)
        if self._own:
            if not 0 <= label < len(self._own):
                raise DataError(f"{where}: the label {label} lies outside the {len(self._own)} classes that are named")
            return self._index[self._own[label][0]]
        if not 0 <= label < LARGEST_LABEL:
            raise DataError(f"{where}: the label {label} is no class")
        for number in range(len(self.names), label + 1):
            self._add(str(number), str(number))
        return self._index[str(label)]

    def _add(self, identifier: str, name: str) -> int:
        self.names.setdefault(identifier, name)
        return self._index.setdefault(identifier, len(self._index))


def _name_of(url: str) -> str:
    """The last folder on the way to a shard."""
    if not is_remote(url):
        return Path(url).resolve().parent.name
    location = place_of(url)[0]
    return "shards" if location.kind == "pipe" else location.base.partition("?")[0].rpartition("/")[2]


def _prefixes(urls: list[str]) -> list[str]:
    """The shortest end of each address, the same depth for all, that tells them apart."""
    for depth in (1, 2, 3):
        ends = ["/".join(Path(_address(url)).parts[-depth:]) for url in urls]
        if len(set(ends)) == len(ends):
            return ends
    return urls


def _address(url: str) -> str:
    """A URL without its query; of a command, the word that names the shard."""
    if url.startswith("pipe:"):
        name = place_of(url)[1]
        return next(word.strip("'\"") for word in reversed(url.split()) if name in word)
    return url.partition("?")[0] if is_remote(url) else url


def _local_name(url: str) -> str:
    return hashlib.blake2b(url.encode(), digest_size=12).hexdigest() + ".tar"


def read_class_names(path: Path) -> list[tuple[str, str]]:
    """(id, name) of a class per line.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"--class-names {path}: cannot be read ({error.strerror})") from error
    pairs = [line.partition(",") for line in lines]
    return [(identifier, name.strip() or identifier) for identifier, _, name in pairs]
