"""Paths with braces and wildcards: the matching files, the location of each, and the other files next to them.

All other entries next to the files are recorded in the ledger, so that a forgotten half of a set is noticed.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from pipelines.sources.entries import Found, Walk
from pipelines.sources.splits import Place
from pretrain.config.object_stores import STORES
from pretrain.data.ledger import Ledger
from pretrain.data.storage.location import is_web_address
from pretrain.errors import DataError

STATE_FILE = "pack.json"  # of a pack, next to its splits; it exists from the first shard on
COMPRESSED = "compressed tar (unpack it first)"
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|Z)|tgz|tbz2|txz|tzst)$", re.IGNORECASE)
# of a packed set, and of img2dataset
_ABOUT = re.compile(
    r"(index|card|pack|contents)\.json|card\.md|classes\.csv|(quarantine|dropped)\.jsonl"
    r"|.*\.records\.safetensors|\d+(_stats\.json|\.parquet)"
)
ROWS = "rows of img2dataset"
_FAILED = {"failed_to_download": "failed to download", "failed_to_resize": "failed to resize"}


def files_with(folder: Path, suffix: str, ledger: Ledger, *, deep: bool = True) -> list[str]:
    """The sorted paths of all files below a folder with a suffix in upper or lower case; links are followed.

    Args:
        folder: the prefix of the paths.
        suffix: with its dot, in lower case.
        ledger: records every entry.
        deep: include files in subfolders.
    """
    walk, found = Walk(folder, ledger), []
    kind = "shards" if suffix == ".tar" else "files"
    for file in walk.files():
        if file.path.lower().endswith(suffix) and "/" in file.path and not deep:
            walk.left_out(file, f"{suffix} file in a folder below")
        elif file.path.lower().endswith(suffix):
            walk.used(file, kind)
            found.append(str(folder / file.path))
        elif _ABOUT.fullmatch(Path(file.path).name):
            walk.used(file, f"files about {kind}")
        else:
            walk.left_out(file, _reason(file, suffix))
    return sorted(found)


def _reason(file: Found, suffix: str) -> str:
    if suffix == ".tar" and _COMPRESSED.search(file.path):
        return COMPRESSED
    return f"not a {suffix} file ({'.' + file.extension if file.extension.isalnum() else 'no extension'})"


def compressed_note(ledger: Ledger) -> list[str]:
    """A warning if tars are not read because they are compressed."""
    lost = {reason: entry for account in ledger.accounts.values() for reason, entry in account.lost.items()}
    if COMPRESSED not in lost:
        return []
    entry = lost[COMPRESSED]
    return [f"compressed tars are not read: {entry.count}, such as {entry.examples[0]}; unpack them first"]


def add_img2dataset(ledger: Ledger, tar: Path, num_samples: int) -> None:
    """Reconciles the input rows of img2dataset with the samples of a tar, if it recorded them next to the tar."""
    try:
        stats = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_bytes())
        count, failed = int(stats["count"]), {name: int(stats[name]) for name in _FAILED}
    except (OSError, ValueError, KeyError, TypeError):
        return
    ledger.found(ROWS, max(count, num_samples))
    ledger.used(ROWS, "in tars", num_samples)
    for name, reason in _FAILED.items():
        ledger.lost(ROWS, reason, count=max(failed[name], 0))
    missing = max(count, num_samples) - num_samples - sum(max(number, 0) for number in failed.values())
    ledger.lost(ROWS, "not in the tar, though img2dataset calls them successes", tar.name, count=max(missing, 0))


_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")  # as in a shell, {name} alone is not a choice
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> Iterator[str]:
    """Expands ``shard-{000..003}.tar`` and ``{a,b}.tar`` into all names, as a shell would."""
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
    """Whether it is an http URL."""
    return is_web_address(text)


def is_remote(text: str) -> bool:
    """Whether the stream reads it: a URL of a web server or an object store, or a command."""
    scheme, separator, _ = text.partition("://")
    return is_url(text) or bool(separator and scheme.lower() in STORES) or text.startswith("pipe:")


class FoundFile(NamedTuple):
    """A file or URL, and its path below the one that the user gave."""

    url: str
    place: Place


def find_files(patterns: Sequence[str], suffix: str, ledger: Ledger | None = None) -> list[FoundFile]:
    """The files and URLs that match patterns and folders, each once, in order; the ledger records all in the folders.

    Raises:
        DataError: a pattern matches nothing, or a file is missing.
    """
    found: dict[str, FoundFile] = {}
    ledger = Ledger() if ledger is None else ledger
    base_of = {is_far: _given_folder([one for one in patterns if is_remote(one) == is_far]) for is_far in (False, True)}
    for pattern in patterns:
        is_far, count = is_remote(pattern), 0
        base = base_of[is_far]
        for name in expand_braces(pattern):
            files = [name] if is_far else _local_files(name, suffix, ledger)
            count += len(files)
            for file in files:
                found.setdefault(file, FoundFile(file, _remote_place(file, base) if is_far else _place(file, base)))
        if not count:
            raise DataError(f"{pattern} fits no {suffix} file")
    return list(found.values())


def _local_files(name: str, suffix: str, ledger: Ledger) -> list[str]:
    path = Path(name)
    if path.is_dir():
        return files_with(path, suffix, ledger)
    if path.is_file():
        return [name]
    if glob.has_magic(name):
        return sorted(glob.glob(name))
    raise DataError(f"{name} does not exist")


def distinct_names(addresses: Sequence[str]) -> list[str]:
    """The shortest suffix of each location, with the same number of parts for all, that distinguishes them."""
    parts = [PurePosixPath(address).parts for address in addresses]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        ends = ["/".join(one[-depth:]) for one in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(addresses)


def _given_folder(patterns: Sequence[str]) -> str:
    """The deepest common folder of all inputs: a name below it, such as train or val, may denote a split."""
    parents = [_folder_of(pattern) for pattern in patterns]
    if len(set(parents)) == 1:
        return parents[0]
    if not parents or not all(parents) or len({os.path.isabs(parent) for parent in parents}) > 1:
        return ""
    return os.path.commonpath(parents)


def _folder_of(pattern: str) -> str:
    """The folder that a pattern names, or the one before its first brace or wildcard, or before its file."""
    if is_remote(pattern):
        return _fixed_folder(_remote_path(pattern))
    return pattern if os.path.isdir(pattern) else _fixed_folder(pattern)


def _fixed_folder(pattern: str) -> str:
    """The folder before the first brace or wildcard."""
    match = re.search(r"[*?\[{]", pattern)
    return os.path.dirname(pattern[: match.start()] if match else pattern)


def _place(file: str, base: str) -> Place:
    below = os.path.relpath(file, base or ".") if not os.path.isabs(file) or base else os.path.basename(file)
    return Place(below, os.path.basename(os.path.abspath(base)) if base else "", base)


def _remote_place(url: str, base: str) -> Place:
    """The path below the given folder; the words of a command before the tar do not count."""
    return Place(_remote_path(url).removeprefix(base).lstrip("/"), os.path.basename(base), base)


def _remote_path(url: str) -> str:
    if not url.startswith("pipe:"):
        return urlsplit(url).path
    return next((word.strip("'\"") for word in reversed(url.split()) if ".tar" in word), "")
