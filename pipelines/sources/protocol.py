"""The interface of a source of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

from pretrain.config.schema.data import Target
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import SplitList

NOT_STATED = "not stated"  # the licence, if neither source nor user gives it
UNKNOWN_NUM_BYTES = 128 * 1024  # assumed for an image whose size is not known until it is read


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        key: unique and permanent name in the source; shuffle and hold-out are functions of it.
        labels: class indices of the source, from general to specific.
        num_bytes: size of its image file, or an upper bound if the file is made while packing.
        split: the part of the source that it belongs to.
        part: number of the source file that holds it; 0 if there is only one, or if the key identifies it.
        offset: of its first byte in that file, or its row.
        vector: the numbers that belong to it, in a source of vectors; all of one length.
        mask: in a source of masks: location of its mask, in a form that the source defines.
        name: of its original file, where the key is another one, such as a row; "": it is not, or is not known.
    """

    key: str
    labels: tuple[int, ...]
    num_bytes: int
    split: str = "train"
    part: int = 0
    offset: int = 0
    vector: tuple[float, ...] = ()
    mask: str = ""
    name: str = ""


class Source(ABC):
    """A set of labelled images. Must pickle, since worker processes read from it.

    Attributes:
        name: of the data set.
        origin: description of the packed data and its location.
        licence: terms of the images.
        homepage: URL with more information.
        release: edition of the data set, if there are several.
        multi_label: an image may have several labels.
        target: of an image: labels, a vector, whose numbers ``classes`` then names, or a mask.
        images: default of the option ``--images``: "rgb" makes each image a plain RGB file, "keep" packs its
            bytes as they are.
        looks_at_files: the fingerprint checks the file of every image, so the tasks of an array share one.
        classes: (id, name) in index order, filled by ``items``.
        notes: on anything that was not used, filled by ``items``.
        split_rule: describes how each image's split was found, filled by ``items``.
        ledger: accounts for everything in the source, filled by ``items``: a new one each time.
        lists: split → the file of the source that lists its images, if there is one; filled by ``items``.
    """

    name: str
    origin: str
    licence: str
    homepage: str = ""
    release: str = ""
    multi_label: bool = False
    target: Target = "labels"
    images: ClassVar[Literal["rgb", "keep"]] = "rgb"
    looks_at_files: ClassVar[bool] = False
    classes: list[tuple[str, str]]
    notes: list[str]
    split_rule: str = "the source's own"
    ledger: Ledger = Ledger()
    lists: Mapping[str, SplitList] = MappingProxyType({})

    @abstractmethod
    def items(self) -> Iterable[Item]:
        """Every image, in an order that depends only on the source's content; can be iterated once.

        ``classes`` and ``notes`` are complete after the last one.

        Raises:
            DataError: the source is not usable.
        """

    @abstractmethod
    def read(self, item: Item) -> tuple[bytes, str]:
        """The bytes of an image file and its extension in lower case, without a dot.

        Raises:
            OSError: it cannot be read.
        """

    def read_mask(self, item: Item) -> bytes:
        """The bytes of an image's mask: one channel, or a palette, of class numbers.

        Raises:
            OSError: it cannot be read.
        """
        raise NotImplementedError

    def units(self) -> Sequence[str]:
        """Names of the source's files that do not allow random access and are unpacked to disk first."""
        return ()

    def prepare(self, unit: str, folder: Path) -> None:
        """Unpacks one of ``units`` into ``folder``, where ``items`` and ``read`` look for it; all or nothing."""
        raise NotImplementedError

    def use(self, folder: Path) -> None:
        """Sets the folder into which ``prepare`` unpacked the units."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A cheap digest of the source's content: equal fingerprints mean equal content.

        A different one may still be the same content; "" if only reading the source would tell.
        """
        return ""
