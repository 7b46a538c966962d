"""The interface of a source of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

from pretrain.config.target import Target
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import SplitList

NOT_STATED = "not stated"  # the licence, where neither source nor user states it
UNKNOWN_NUM_BYTES = 128 * 1024  # planned for an image whose size is only known when it is read


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        key: names it in the source, uniquely and for ever; shuffle and hold-out are functions of it.
        labels: class indices of the source, from general to special.
        num_bytes: size of its image file, or a bound where the file is made while packing.
        split: the part of the source that it belongs to.
        part: which of the source's own files holds it; 0 where there is but one, or where the key says it.
        offset: of its first byte in that file, or its row.
        vector: the numbers that belong to it, in a source of vectors; all of one length.
        mask: in a source of masks: where its mask is, in the source's own words.
    """

    key: str
    labels: tuple[int, ...]
    num_bytes: int
    split: str = "train"
    part: int = 0
    offset: int = 0
    vector: tuple[float, ...] = ()
    mask: str = ""


class Source(ABC):
    """A set of labelled images. Must pickle, since worker processes read from it.

    Attributes:
        name: of the data set.
        origin: what is packed, from where.
        licence: terms of the images.
        homepage: where to read more.
        release: which edition of the data set, where there are several.
        multi_label: an image may have several labels.
        target: what an image has: labels, or in their place a vector, whose numbers ``classes`` then names, or a mask.
        images: what is done to them where the user does not say: "rgb" makes each a plain RGB file, "keep" packs its
            bytes as they are.
        looks_at_files: the fingerprint looks at the file of every image, so the tasks of an array share one.
        classes: (id, name) in index order, filled by ``items``.
        notes: what was left aside, filled by ``items``.
        split_rule: how each image's split was found, in words, filled by ``items``.
        ledger: what became of everything that the source holds, filled by ``items``: a new one each time.
        lists: split → the file of the source that names its images, where there is one; filled by ``items``.
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
        """Every image, in an order that depends on the source's content alone; may be drawn once.

        ``classes`` and ``notes`` are complete when the last one was drawn.

        Raises:
            DataError: the source cannot be used as it is.
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
        """Names of the source's files that cannot be read at random and are laid out on the disk first."""
        return ()

    def prepare(self, unit: str, folder: Path) -> None:
        """Lays out one of ``units`` in ``folder``, where ``items`` and ``read`` look for it. Complete or not at all."""
        raise NotImplementedError

    def use(self, folder: Path) -> None:
        """Sets the folder in which ``prepare`` laid the units out."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Names the source's content at little cost, so that equal names are equal content.

        Another name may still be the same content; "" where only reading it would tell.
        """
        return ""
