"""The samples of a WebDataset tar: neighbouring members with one key, an image and its label.

The location of a sample's label, its *place*, is ``cls``, ``txt``, or ``json:KEY``. ``label_values`` parses the label,
and ``label_classes`` determines what all labels mean together.

Source: webdataset's naming: the key is the path up to the first dot of the file name, the extension is the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.sources.entries import IMAGE_EXTENSIONS
from pipelines.sources.label_values import TARGET_KEY, decode_label, to_vector
from pipelines.sources.tars import Member
from pretrain.data.ledger import Ledger
from pretrain.errors import DataError
from pretrain.text_files import UTF8

IMAGES = IMAGE_EXTENSIONS | {"img"}
MASK = "seg.png"
MEMBERS, SAMPLES = "tar members", "samples"
NO_IMAGE, OF_NO_SAMPLE = "no image", "of no sample"
SEVERAL_IMAGES = "several images (a key ends at the first dot of the file's name)"
JSON_KEYS = ("labels", "label", "cls", "class_id", "class")
_META = re.compile(r"__[^/]*__(?:$|/)")  # members that webdataset reserves
CAPTION = "caption"  # a key of KEY.json that shows that KEY.txt is not a class


@dataclass(frozen=True)
class LabelPlace:
    """The location of the labels, as given by the user.

    Attributes:
        name: ``cls``, ``txt``, a key of KEY.json; "": KEY.cls, else one of ``JSON_KEYS``, else KEY.txt.
        encoding: of the text in them.
    """

    name: str = ""
    encoding: str = UTF8


class Label(NamedTuple):
    """A label as stored in the tar: its place, its value, and whether texts in it are typed."""

    place: str
    value: Any = None
    typed: bool = False


NO_LABEL = Label("")


class Sample(NamedTuple):
    """One sample: its key, the position of its image, and its label as stored in the tar, or a vector instead.

    If there is a mask, it is the target, and labels next to it are not used.

    Attributes:
        others: further places of KEY.json that hold a label; next to KEY.cls, those with a different one.
    """

    key: str
    image: Member
    extension: str
    label: Label = NO_LABEL
    vector: tuple[float, ...] = ()
    mask: Member | None = None
    others: tuple[str, ...] = ()


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def samples_of(
    members: Iterable[Member],
    read: Callable[[Member], bytes],
    where: str,
    place: LabelPlace | None = None,
    ledger: Ledger | None = None,
) -> Iterator[Sample]:
    """Groups members into samples. Those without exactly one image are left out and recorded in the ledger.

    Args:
        members: of one tar, in order.
        read: the bytes of a small member.
        where: the tar's name, for messages.
        place: location of the labels, if the user gives it.
        ledger: records every sample, and what each member is used as.

    Raises:
        DataError: a label cannot be read, or the members of a sample are not next to each other.
    """
    place, ledger = place or LabelPlace(), Ledger() if ledger is None else ledger
    for key, group in _groups(members, where, ledger):
        images = [name for name in group if name.rpartition(".")[2] in IMAGES and name != MASK]
        if not images and not group.keys() & {"cls", "json", "txt", MASK}:
            ledger.lost(MEMBERS, OF_NO_SAMPLE, *(member.name for member in group.values()), count=len(group))
            continue
        ledger.found(SAMPLES)
        if len(images) != 1:
            found = ", ".join(sorted(group)[:4]) + (", …" if len(group) > 4 else "")
            ledger.lost(SAMPLES, SEVERAL_IMAGES if images else NO_IMAGE, f"{key} ({found})")
            ledger.lost(MEMBERS, "of a sample that is left out", key, count=len(group))
            continue
        sample = _sample(key, images[0], group, read, where, place)
        ledger.used(SAMPLES, "with an image")
        _account(ledger, sample, group)
        yield sample


def _groups(members: Iterable[Member], where: str, ledger: Ledger) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, extension → member) of each run of members with one key."""
    group: dict[str, Member] = {}
    key: str | None = None
    seen: set[str] = set()
    for member in members:
        this, extension = split_name(member.name)
        if not extension or _META.match(member.name):
            ledger.lost(MEMBERS, "about the tar (__NAME__)" if extension else "no extension", member.name)
            continue
        if this != key:
            if key is not None:
                yield key, group
            if this in seen:
                raise DataError(
                    f"{where}: the members of {this!r} are not next to each other (one is {member.name}); readers "
                    "would see broken samples. Sort the tar by name, and write it again"
                )
            seen.add(this)
            key, group = this, {}
        if extension in group:
            raise DataError(f"{where}: the member {member.name} is there twice")
        group[extension] = member
    if key is not None:
        yield key, group


def _account(ledger: Ledger, sample: Sample, group: dict[str, Member]) -> None:
    """Records in the ledger what each member of a sample is used as."""
    ledger.used(MEMBERS, "images")
    answer = MASK if sample.mask is not None else "json" if sample.vector else sample.label.place.partition(":")[0]
    if answer:
        ledger.used(MEMBERS, "masks" if answer == MASK else "labels")
    for extension, member in group.items():
        if extension not in (sample.extension, answer):
            ledger.lost(MEMBERS, f"neither image nor label (.{extension.rpartition('.')[2][:8]})", member.name)


def _sample(
    key: str,
    image: str,
    group: dict[str, Member],
    read: Callable[[Member], bytes],
    where: str,
    place: LabelPlace,
) -> Sample:
    """One sample; ``image`` is the extension of its image."""
    sample = Sample(key, group[image], image)
    if MASK in group:
        return sample._replace(mask=group[MASK])

    def text(name: str) -> Label:
        member = group[name]
        return Label(name, decode_label(read(member), f"{where}: {member.name}", place.encoding))

    if "cls" in group and place.name in ("", "cls"):
        label = text("cls")
        is_alone = bool(place.name) or "json" not in group
        return sample._replace(label=label, others=() if is_alone else _contrary(label, read(group["json"])))
    content = {}
    if "json" in group and place.name not in ("cls", "txt"):
        content = _content(read(group["json"]), f"{where}: {group['json'].name}")
        found = _json_labels(content, place)
        if vector := _vector(content, found, place, f"{where}: {key}"):
            return sample._replace(vector=vector)
        if found:
            return sample._replace(label=found[0], others=tuple(label.place for label in found[1:]))
    if "txt" in group and (place.name == "txt" or (not place.name and CAPTION not in content)):
        return sample._replace(label=text("txt"))
    return sample


def _contrary(label: Label, data: bytes) -> tuple[str, ...]:
    """The places in KEY.json that differ from KEY.cls; a KEY.json that cannot be read is ignored."""
    try:
        labels = _json_labels(_content(data, ""), LabelPlace())
    except DataError:
        return ()
    return tuple(other.place for other in labels if _texts(other.value) != _texts(label.value))


def _texts(value: Any) -> list[str]:
    return [str(one).strip() for one in (value if isinstance(value, list) else [value])]


def others_note(place: str, other: str) -> str:
    """The note about a further place of labels that was not used."""
    name = other.removeprefix("json:")
    return f"labels are those of {place}; samples also have {other}, which --label-column {name} takes in its place"


def _content(data: bytes, where: str) -> dict[str, Any]:
    """The content of KEY.json; a value that is not a mapping is the label itself."""
    try:
        content = json.loads(decode_label(data, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); correct it, or take the member out of the tar") from error
    return content if isinstance(content, dict) else {JSON_KEYS[0]: content}


def _json_labels(content: dict[str, Any], place: LabelPlace) -> list[Label]:
    names = [place.name.removeprefix("json:")] if place.name else JSON_KEYS
    return [Label(f"json:{name}", content[name], typed=True) for name in names if name in content]


def _vector(content: dict[str, Any], labels: list[Label], place: LabelPlace, where: str) -> tuple[float, ...]:
    """The numbers of KEY.json, or () if it has none."""
    if TARGET_KEY not in content or place.name not in ("", TARGET_KEY):
        return ()
    if labels and not place.name:
        other = labels[0].place.removeprefix("json:")
        raise DataError(
            f"{where}: KEY.json has {TARGET_KEY} and {other}, two answers for one image; say which with --label-column"
        )
    return to_vector(content[TARGET_KEY], where)


def no_label(where: str, place: LabelPlace) -> str:
    """The error for a set in which no sample has a label."""
    if place.name:
        return f"{where}: no sample has the label {place.name}, which --label-column names"
    return (
        f"{where}: no sample has a label; known are KEY.cls (a number or name), KEY.txt (a name; beside a caption in "
        f"KEY.json it is that caption), and KEY.json with one of {', '.join(JSON_KEYS)}, or with {TARGET_KEY}: "
        f"[numbers]; KEY.{MASK} for a mask. --label-column names another key of KEY.json"
    )
