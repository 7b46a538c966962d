"""Existing WebDataset shards, to be repacked: shuffled, with other labels, or several sets as one.

Local tars are read at random in place. Remote ones are fetched once into the pack's working folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.sources.class_names import ClassList, class_list
from pipelines.sources.entries import files_fingerprint
from pipelines.sources.file_patterns import add_img2dataset, compressed_note, distinct_names, find_files, is_remote
from pipelines.sources.label_classes import LabelCollector
from pipelines.sources.label_values import VectorLength
from pipelines.sources.options import SourceOptions
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pipelines.sources.remote import RemoteFiles, place_of
from pipelines.sources.samples import SAMPLES, LabelPlace, Sample, no_label, others_note, samples_of
from pipelines.sources.splits import splits_of_files
from pipelines.sources.table import ItemTable, relabel
from pipelines.sources.tars import Member, RangeReader, members_of
from pretrain.data.ledger import Ledger
from pretrain.data.storage.classes import CLASSES_FILE, read_classes
from pretrain.data.storage.records import Records, records_name
from pretrain.data.storage.transport import Refused
from pretrain.errors import ConfigError, DataError
from pretrain.files import TEMPORARY_SUFFIX
from pretrain.names import shown, to_bytes

_TAR = re.compile(r"\.tar$", re.IGNORECASE)


class WebDatasetSource(Source):
    """Samples of tars. Labels are numbers or names; those of sets that have a classes.csv are its classes.

    Sets with different classes are merged by class id or name; the key of a sample is ``SHARD/KEY``, or
    ``FOLDER/SHARD/KEY`` if shards of two folders have the same name.

    Args:
        patterns: tars, folders, URLs, or patterns with braces and wildcards.
        how: how labels and splits are read; the list of classes applies to shards without a classes.csv.
        remote: fetches remote shards.
    """

    def __init__(
        self, patterns: Sequence[str], how: SourceOptions | None = None, *, remote: RemoteFiles | None = None
    ) -> None:
        self._how = how = how or SourceOptions()
        self._beside = Ledger()
        found = find_files(patterns, ".tar", self._beside)
        self.urls = [file.url for file in found]
        self._splits = splits_of_files([file.place for file in found], how.split_from)
        self.split_rule = self._splits.rule
        self.remote = remote or RemoteFiles()
        for url in self.units():
            self.remote.check(place_of(url)[0])
        self.name = how.name or _name_of(self.urls[0])
        self.origin, self.licence = f"shards {' '.join(patterns)}", NOT_STATED
        self.multi_label = True  # known after all labels have been read, like target; see items
        self.classes: list[tuple[str, str]] = []
        self.notes = [*self._splits.notes, *compressed_note(self._beside)]
        self._place, self._given = LabelPlace(how.label_column, how.encoding), how.class_list()
        self._lists: dict[Path, ClassList | None] = {}
        self._folder: Path | None = None
        self._reader = RangeReader()
        self._prefix = distinct_names([_address(url) for url in self.urls])

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``; "" if shards are remote."""
        if self.units():
            return ""
        folders = dict.fromkeys(Path(url).parent for url in self.urls)
        return files_fingerprint([*self.urls, *(folder / CLASSES_FILE for folder in folders)], repr(self._given))

    def units(self) -> list[str]:
        """See ``Source.units``: the remote shards."""
        return [url for url in self.urls if is_remote(url)]

    def use(self, folder: Path) -> None:
        """See ``Source.use``."""
        self._folder = folder

    def prepare(self, unit: str, folder: Path) -> None:
        """Fetches one shard, and the list of classes next to it if there is one."""
        target = folder / _local_name(unit)
        temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
        location, name = place_of(unit)
        self.remote.fetch(location, name, temporary)
        _refuse_web_page(temporary, location.url(name))
        listed = folder / _list_name(unit)
        if location.kind != "pipe" and not listed.exists():  # a command belongs to one shard
            part = listed.with_name(f"{listed.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
            try:
                self.remote.fetch(location, CLASSES_FILE, part)
            except Refused:  # an empty file: there is no list, or it may not be read
                part.write_bytes(b"")
            part.rename(listed)
        temporary.rename(target)

    def items(self) -> ItemTable:
        """See ``Source.items``."""
        self.target, self.ledger = "labels", Ledger()
        self.ledger.merge(self._beside)
        self.notes = [*self._splits.notes, *compressed_note(self._beside)]
        labels, seen = LabelCollector(self._how.labels), _Seen()
        table = ItemTable.of(self._provisional(labels, seen))
        if not seen.num_samples:
            lines = "\n  ".join(self.ledger.lines())
            raise DataError(f"{self.urls[0]}: no sample can be used. The shards hold:\n  {lines}")
        if seen.num_masks:
            self.target, self.classes = "mask", self._classes_of_masks()
            if seen.num_masks < seen.num_samples:
                missing = seen.num_samples - seen.num_masks
                raise DataError(f"{missing} of {seen.num_samples} samples have no mask; pack them apart")
            return table
        if seen.vectors.length:
            self.target, self.classes = "vector", self._numbers(seen.vectors)
            return table
        if seen.num_samples and not seen.places:
            raise DataError(no_label(self.urls[0], self._place))
        if self._given and None not in self._lists.values():
            raise ConfigError(f"--class-names would be ignored: {next(iter(self._lists))} defines the classes")
        change = labels.resolve()
        self.multi_label, self.classes = labels.is_multi, list(change.classes)
        self.notes = [*self.notes, *labels.notes, *labels.gaps, *seen.notes()]
        return relabel(table, change)

    def _provisional(self, labels: LabelCollector, seen: _Seen) -> Iterator[Item]:
        """All samples, with provisional label codes instead of classes."""
        for part, url in enumerate(self.urls):
            path = self._path(part)
            labels.begin(self._classes_of(part))

            def read(member: Member, path: Path = path) -> bytes:
                return self._read(path, member)

            before, originals = self._num_found(), {} if is_remote(url) else _originals(path)
            for sample in samples_of(members_of(path, self.ledger), read, url, self._place, self.ledger):
                where = f"{url}: {sample.key}"
                seen.add(sample, path.parent, where)
                has_label = not sample.vector and sample.mask is None
                codes = labels.add(sample.label.value, where, typed=sample.label.typed) if has_label else ()
                key = f"{_TAR.sub('', self._prefix[part])}/{sample.key}.{sample.extension}"
                size, mask = sample.image.size, ""
                if sample.mask is not None:
                    size, mask = size + sample.mask.size, f"{size}:{sample.mask.offset}:{sample.mask.size}"
                split, name = self._splits.names[part], originals.get(sample.image, "")
                yield Item(key, codes, size, split, part, sample.image.offset, sample.vector, mask, name)
            if (num_found := self._num_found() - before) == 0:
                self.notes.append(f"{shown(url)} holds no sample")
            if not is_remote(url):
                add_img2dataset(self.ledger, path, num_found)

    def _num_found(self) -> int:
        account = self.ledger.accounts.get(SAMPLES)
        return account.found if account else 0

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        size = int(item.mask.partition(":")[0]) if item.mask else item.num_bytes
        return self._reader.read(self._path(item.part), item.offset, size), item.key.rpartition(".")[2]

    def read_mask(self, item: Item) -> bytes:
        """See ``Source.read_mask``."""
        _, offset, size = map(int, item.mask.split(":"))
        return self._reader.read(self._path(item.part), offset, size)

    def _numbers(self, vectors: VectorLength) -> list[tuple[str, str]]:
        """The names of the vectors' numbers, if the sets have them.

        Raises:
            DataError: two sets use different names.
        """
        known = [one for one in map(self._classes_of, range(len(self.urls))) if one is not None]
        named = [one for one in known if len(one.classes) == vectors.length]
        if other := next((one for one in named if one != named[0]), None):
            raise DataError(
                f"{named[0].where} and {other.where} call the {vectors.length} numbers of a target differently; pack "
                "the sets apart"
            )
        return list(named[0].classes) if named else vectors.classes

    def _classes_of_masks(self) -> list[tuple[str, str]]:
        """The classes of the first set, whose numbers all masks then use."""
        first, *others = [self._classes_of(part) for part in range(len(self.urls))]
        if first is None or any(other != first for other in others):
            what = "have different classes" if first else "say nowhere what the classes of their masks are"
            raise DataError(f"the shards {what}; give --class-names FILE, a class per line, or pack them apart")
        return first.from_zero("masks")

    def _read(self, path: Path, member: Member) -> bytes:
        return self._reader.read(path, member.offset, member.size)

    def _path(self, part: int) -> Path:
        url = self.urls[part]
        if not is_remote(url):
            return Path(url)
        assert self._folder is not None
        return self._folder / _local_name(url)

    def _classes_of(self, part: int) -> ClassList | None:
        """The classes in the file next to a shard, else the given ones."""
        url = self.urls[part]
        if is_remote(url):
            assert self._folder is not None
            path, where = self._folder / _list_name(url), place_of(url)[0].url(CLASSES_FILE)
        else:
            path = Path(url).parent / CLASSES_FILE
            where = str(path)
        if path not in self._lists:
            is_there = path.is_file() and path.stat().st_size > 0
            self._lists[path] = class_list(read_classes(path), where) if is_there else None
        return self._lists[path] or self._given


class _Seen:
    """Counts over the samples of all shards, and a check that their labels are in the same place."""

    def __init__(self) -> None:
        self.vectors = VectorLength()
        self.num_masks = self.num_samples = 0
        self.places: dict[Path, tuple[str, str]] = {}
        self._others: dict[str, str] = {}

    def add(self, sample: Sample, folder: Path, where: str) -> None:
        """Examines one sample.

        Raises:
            DataError: its label is in a different place than before, or its vector has a different length.
        """
        self.num_samples += 1
        self.num_masks += sample.mask is not None
        self.vectors.check(sample.vector, where)
        place = sample.label.place
        if not place:
            return
        known, first = self.places.setdefault(folder, (place, where))
        if known != place:
            raise DataError(
                f"{where}: its label is in {place}, that of {first} in {known}; name the place with --label-column, "
                f"such as {known.removeprefix('json:')}, and samples without it are left out as unlabelled"
            )
        for other in sample.others:
            self._others.setdefault(other, place)

    def notes(self) -> list[str]:
        """Other places where labels might be."""
        return [others_note(place, other) for other, place in self._others.items()]


def _originals(tar: Path) -> dict[Member, str]:
    """Image → its original name, from the record file beside a packed tar; {} if there is none for it."""
    try:
        records = Records.open(tar.with_name(records_name(tar.name)))
    except DataError:
        return {}
    found = (records[index] for index in range(len(records)))
    return {Member(one.member, one.offset, one.size): one.original for one in found if one.original}


def _name_of(url: str) -> str:
    """The last folder in the path of a shard."""
    if not is_remote(url):
        return Path(url).resolve().parent.name
    location = place_of(url)[0]
    return "shards" if location.kind == "pipe" else location.base.partition("?")[0].rpartition("/")[2]


def _address(url: str) -> str:
    """A URL without its query; of a command, the word that names the shard."""
    if url.startswith("pipe:"):
        name = place_of(url)[1]
        return next(word.strip("'\"") for word in reversed(url.split()) if name in word)
    return url.partition("?")[0] if is_remote(url) else url


def _list_name(url: str) -> str:
    """File name of the local copy of the list of classes of a remote shard."""
    name = str(place_of(url)[0])
    return hashlib.blake2b(to_bytes(name), digest_size=12).hexdigest() + ".classes.csv"


def _refuse_web_page(path: Path, url: str) -> None:
    """Some servers respond with a web page, such as a login, and a success status."""
    with open(path, "rb") as file:
        head = file.read(512)
    if head.lstrip()[:1] == b"<" and b"\0" not in head:
        path.unlink()
        raise DataError(f"{url}: the server sent a web page and not a tar; does it want a login?")


def _local_name(url: str) -> str:
    return hashlib.blake2b(to_bytes(url), digest_size=12).hexdigest() + ".tar"
