"""What the packer asks of a source of images."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        key: names it in the source, uniquely and for ever; shuffle and hold-out are functions of it.
        labels: class indices of the source, from general to special.
        num_bytes: size of its image file, or a bound where the file is made while packing.
        split: the part of the source that it belongs to.
    """

    key: str
    labels: tuple[int, ...]
    num_bytes: int
    split: str = "train"


class Source(Protocol):
    """A set of labelled images. Must pickle, since worker processes read from it."""

    name: str
    origin: str
    licence: str
    homepage: str
    multi_label: bool
    classes: list[tuple[str, str]]
    notes: list[str]

    def items(self) -> list[Item]:
        """Every image, in an order that depends on the source's content alone.

        Fills ``classes`` with (id, name) in index order and ``notes`` with what was left aside.

        Raises:
            DataError: the source cannot be used as it is.
        """
        ...

    def read(self, key: str) -> tuple[bytes, str]:
        """The bytes of an image file and its extension in lower case, without a dot.

        Raises:
            OSError: it cannot be read.
        """
        ...
