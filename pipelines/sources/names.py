"""Paths with braces and wildcards, and what names of files say about their split."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.errors import DataError

SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")  # {name} alone is no choice, as in a shell
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> Iterator[str]:
    """``shard-{000..003}.tar`` and ``{a,b}.tar`` → every name that is meant, as a shell would say it."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    span = _RANGE.fullmatch(braces[1])
    if span:
        width = len(span[1])
        choices = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def is_url(text: str) -> bool:
    """An http address."""
    return text.startswith(("http://", "https://"))


def is_remote(text: str) -> bool:
    """An address that the stream reads: of a web server, of an S3-compatible store, or a command."""
    return is_url(text) or text.startswith(("s3://", "pipe:"))


def find_files(patterns: Sequence[str], suffix: str) -> list[str]:
    """Files and URLs that patterns and folders mean, each once, in order.

    Raises:
        DataError: a pattern fits nothing, or a file is missing.
    """
    found: list[str] = []
    for pattern in patterns:
        names = list(expand_braces(pattern))
        if is_remote(pattern):
            found += names
            continue
        before = len(found)
        for name in names:
            path = Path(name)
            if path.is_dir():
                found += sorted(str(entry) for entry in path.rglob(f"*{suffix}"))
            elif path.is_file():
                found.append(name)
            elif glob.has_magic(name):
                found += sorted(glob.glob(name))
            else:
                raise DataError(f"{name} does not exist")
        if len(found) == before:
            raise DataError(f"{pattern} fits no {suffix} file")
    return list(dict.fromkeys(found))


def split_of(path: str) -> str:
    """The split that a file's name or its folder's says; train where they say nothing."""
    parts = Path(path).parts[-2:]
    for part in reversed(parts):
        word = re.split(r"[-_.]", part)[0].lower()
        if word in SPLIT_WORDS:
            return SPLIT_WORDS[word]
    return "train"
