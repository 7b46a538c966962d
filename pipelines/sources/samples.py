"""The samples of a WebDataset tar: neighbouring members with one key, an image and its label.

Source: webdataset's naming: the key is the path up to the first dot of the file name, the extension is what follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pipelines.sources.tars import Member
from pipelines.sources.vectors import TARGET_KEY, to_vector
from pretrain.errors import DataError

IMAGES = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "img"])
LABELS = ("cls", "json", "txt")
MASK = "seg.png"
JSON_KEYS = ("labels", "label", "cls", "class_id", "class")


class Sample(NamedTuple):
    """One sample: its key, where its image is, and its labels as they stand in the tar, or in their place a vector.

    Where there is a mask, it is the answer, and labels beside it are left aside.
    """

    key: str
    image: Member
    extension: str
    labels: tuple[int | str, ...]
    is_multi: bool
    vector: tuple[float, ...] = ()
    mask: Member | None = None


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def samples_of(members: Iterable[Member], read: Callable[[Member], bytes], where: str) -> Iterator[Sample]:
    """Groups members into samples.

    Args:
        members: of one tar, in order.
        read: the bytes of a small member.
        where: the tar's name, for messages.

    Raises:
        DataError: a sample has no image or no label, or its members do not lie together.
    """
    group: dict[str, Member] = {}
    key: str | None = None
    seen: set[str] = set()
    for member in members:
        this, extension = split_name(member.name)
        if not extension or this.rpartition("/")[2].startswith("__"):
            continue
        if this != key:
            if key is not None:
                yield _sample(key, group, read, where)
            if this in seen:
                raise DataError(
                    f"{where}: the members of {this!r} do not lie together (one is {member.name}); readers would see "
                    "broken samples. Sort the tar by name, and write it again"
                )
            seen.add(this)
            key, group = this, {}
        if extension in group:
            raise DataError(f"{where}: the member {member.name} is there twice")
        group[extension] = member
    if key is not None:
        yield _sample(key, group, read, where)


def _sample(key: str, group: dict[str, Member], read: Callable[[Member], bytes], where: str) -> Sample:
    mask = group.pop(MASK, None)
    images = [extension for extension in group if extension.rpartition(".")[2] in IMAGES]
    if len(images) != 1:
        raise DataError(
            f"{where}: the sample {key!r} has {len(images)} images among {', '.join(sorted(group))}; one is needed"
        )
    if mask is not None:
        return Sample(key, group[images[0]], images[0], (), False, mask=mask)
    for extension in LABELS:
        if extension in group:
            found = _labels(extension, read(group[extension]))
            if found is not None:
                return Sample(key, group[images[0]], images[0], *found)
    if "json" in group and (vector := _vector(read(group["json"]), f"{where}: {key}")):
        return Sample(key, group[images[0]], images[0], (), False, vector)
    raise DataError(
        f"{where}: the sample {key!r} has no label among {', '.join(sorted(group))}; known are KEY.cls (a number or "
        f"name), KEY.txt, and KEY.json with one of {', '.join(JSON_KEYS)}, or with {TARGET_KEY}: [numbers]; "
        f"KEY.{MASK} for a mask"
    )


def _labels(extension: str, data: bytes) -> tuple[tuple[int | str, ...], bool] | None:
    text = data.decode("utf-8", "replace").strip()
    if extension != "json":
        return ((int(text) if text.lstrip("-").isdecimal() else text),), False
    try:
        content = json.loads(text)
    except ValueError:
        return None
    value = (
        next((content[name] for name in JSON_KEYS if name in content), None) if isinstance(content, dict) else content
    )
    if isinstance(value, list):
        return tuple(value), True
    return ((value,), False) if isinstance(value, (int, str)) else None


def _vector(data: bytes, where: str) -> tuple[float, ...]:
    """The numbers of KEY.json, or () where it has none."""
    try:
        content = json.loads(data)
    except ValueError:
        return ()
    return to_vector(content[TARGET_KEY], where) if isinstance(content, dict) and TARGET_KEY in content else ()
