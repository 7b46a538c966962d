"""What is beside the files that are looked for: told to the ledger, so that a forgotten half of a set is seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipelines.sources.entries import Found, Walk
from pretrain.data.ledger import Ledger

STATE_FILE = "pack.json"  # of a pack, beside its splits; it is there from the first shard on
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
    """The paths of all files below a folder with a suffix in upper or lower case, by name; links are followed.

    Args:
        folder: it is in front of the paths.
        suffix: with its dot, in lower case.
        ledger: is told of every entry.
        deep: also those in folders below it.
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
    """A warning where tars are not read because they are compressed."""
    lost = {reason: entry for account in ledger.accounts.values() for reason, entry in account.lost.items()}
    if COMPRESSED not in lost:
        return []
    entry = lost[COMPRESSED]
    return [f"compressed tars are not read: {entry.count}, such as {entry.examples[0]}; unpack them first"]


def add_img2dataset(ledger: Ledger, tar: Path, num_samples: int) -> None:
    """Reconciles the rows that img2dataset was given with the samples of a tar, where it noted them beside the tar."""
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
