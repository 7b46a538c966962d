"""Validates an index before it is used, since it may come from an untrusted source.

A digest only shows that a file was not changed, not that its author can be trusted. So this module checks the names of
shards, which become paths, addresses and words of commands, and every number that becomes an offset, a size or a
length.

Legend: N records · C classes · M labels of one sample at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema.data import Target
from pretrain.errors import DataError
from pretrain.names import printable

LARGEST = 2**53  # bytes and samples: JSON numbers up to this are exact in every program
MOST_CLASSES = 2**31 - 1
MOST_LABELS = 2**20  # of one sample
BLOCK = 512  # minimum bytes of a tar per sample
SUFFIX = ".tar"
_LONGEST = 200  # bytes; the record file's name is longer by its suffix, and file systems take 255
# letters and digits of any script, and signs that are not special in a shell, a path or an address
_SAFE = re.compile(r"\w[\w .,+=@#%~:()\[\]^-]*")
_SAFE_IN_SHELL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+=@%^-]*")
_ALLOWED = "letters, digits, spaces and _ . , + = @ # % ~ : ( ) [ ] ^ -"
_ROW = ("name", "num_samples", "num_bytes", "records")


def check_table(content: Mapping[str, Any]) -> None:
    """Checks that index.json has all fields, each of the right type.

    Raises:
        ValueError: describes the problem.
    """
    for name, largest in (("num_classes", MOST_CLASSES), ("max_labels", MOST_LABELS)):
        _whole_number(content.get(name), name, largest)
    if content.get("target", "labels") not in get_args(Target):
        raise ValueError(f"target is {str(content['target'])[:40]!r}")
    shards = content.get("shards")
    if not isinstance(shards, list):
        raise ValueError("no list of shards")
    for number, row in enumerate(shards):
        if not isinstance(row, list) or len(row) != len(_ROW):
            raise ValueError(f"shard {number} is not a list of {', '.join(_ROW)}")
        _whole_number(row[1], f"num_samples of shard {number}", LARGEST)
        _whole_number(row[2], f"num_bytes of shard {number}", LARGEST)
        if not isinstance(row[0], str) or not isinstance(row[3], str):
            raise ValueError(f"name or records of shard {number} is not a text")


def problem_in_rows(rows: Sequence[tuple[str, int, int]]) -> str:
    """The first problem with the names, samples and bytes of shards, or ""."""
    seen: set[str] = set()
    for name, num_samples, num_bytes in rows:
        problem = problem_of(name)
        if not problem and name in seen:
            problem = f"the shard {name} is there twice"
        if not problem and num_samples * BLOCK > num_bytes:
            problem = f"{num_samples:,} samples do not fit into the {num_bytes:,} bytes of the shard {name}"
        if problem:
            return problem
        seen.add(name)
    return ""


def check_columns(columns: Mapping[str, NDArray[Any]]) -> None:
    """Checks that the columns of a record file are consistent.

    Raises:
        ValueError: describes the problem.
    """
    count = len(columns["offsets"])
    for name in ("sizes", "crc32", "mask_offsets", "mask_sizes", "mask_crc32"):
        if name in columns and len(columns[name]) != count:
            raise ValueError(f"{len(columns[name])} {name} of {count} records")
    for values in ("labels", "members", "sources", "names"):
        starts = f"{values[:-1]}_starts"
        if starts not in columns:
            continue
        cuts = columns[starts]
        if len(cuts) != count + 1 or cuts[0] != 0 or cuts[-1] != len(columns[values]) or np.any(np.diff(cuts) < 0):
            raise ValueError(f"{starts} do not cut {values} into {count} parts")
    if "vectors" in columns and count and len(columns["vectors"]) % count:
        raise ValueError(f"{len(columns['vectors'])} numbers of {count} vectors")


def check_within(
    columns: Mapping[str, NDArray[Any]], target: Target, num_bytes: int, num_classes: int, max_labels: int
) -> None:
    """Checks that every image is inside its tar, and that every target is valid for the set.

    Args:
        columns: of a record file.
        target: kind of target that a sample has.
        num_bytes: of the tar.
        num_classes: C; for vectors, their length.
        max_labels: M.

    Raises:
        ValueError: describes the problem and names the record.
    """
    for offsets, sizes in (("offsets", "sizes"), ("mask_offsets", "mask_sizes")):
        if offsets in columns:
            start, size = columns[offsets], columns[sizes]
            _first(
                (start < 0) | (size < 0) | (size > num_bytes) | (start > num_bytes - size),
                f"{offsets} and {sizes} lie outside the {num_bytes:,} bytes of the shard",
            )
    if target == "vector":
        wanted = len(columns["offsets"]) * num_classes
        if len(columns.get("vectors", ())) != wanted:
            raise ValueError(f"{len(columns.get('vectors', ()))} numbers in its vectors, not {wanted}")
        return
    if target == "mask":
        if "mask_offsets" not in columns:
            raise ValueError("no masks")
        return
    _first(np.diff(columns["label_starts"]) > max_labels, f"more than {max_labels} labels")
    beyond = (columns["labels"] < 0) | (columns["labels"] >= num_classes)
    if beyond.any():
        label = int(columns["labels"][np.argmax(beyond)])
        raise ValueError(f"the label {label} is none of the {num_classes} classes")


def _first(wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise ValueError(f"record {int(np.argmax(wrong))}: {what}")


def _whole_number(value: Any, name: str, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        said = "out of range" if isinstance(value, int) else printable(str(value)[:40])
        raise ValueError(f"{name} is {said}")


def problem_of(name: object) -> str:
    """The problem with a shard's name, or "" if it may be used."""
    if not isinstance(name, str):
        return f"the shard's name {str(name)[:40]!r} is not a text"
    shown = ascii(name[:80])
    if not name.lower().endswith(SUFFIX):
        return f"the shard's name {shown} does not end with {SUFFIX}"
    if len(name.encode(errors="replace")) > _LONGEST:
        return f"the shard's name {shown} has more than {_LONGEST} bytes"
    if not _SAFE.fullmatch(name):
        return (
            f"the shard's name {shown} is not safe to use as a file name: allowed are {_ALLOWED}, the first one a "
            "letter, a digit or _"
        )
    return ""


def check_name_for_shell(name: str, command: str) -> None:
    """Refuses a name that a shell might not treat as a plain word, even if the command evaluates it repeatedly.

    Raises:
        DataError: it has characters other than ASCII letters, digits and a few signs.
    """
    if not _SAFE_IN_SHELL.fullmatch(name):
        raise DataError(
            f"{command}: the file name {name[:80]!a} does not go into a command; allowed are A-Z a-z 0-9 and "
            "_ . , + = @ % ^ -, the first one a letter, a digit or _. Rename the shard and index the set again, or "
            "read it from a folder, http or S3"
        )
