"""Drop lists: one JSON line per sample to leave out, with "shard", "key" and "because". Re-packing honours them too."""

from __future__ import annotations

import json
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.names import parsed


def load_dropped_keys(path: Path) -> frozenset[str]:
    """What the list names, as ``SHARD/KEY``: shard without .tar, key without extension.

    Raises:
        ConfigError: it cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--drop-list {path}: cannot be read ({error})") from error
    keys = set()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            keys.add(f"{parsed(entry['shard']).removesuffix('.tar')}/{parsed(entry['key'])}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f'--drop-list {path}:{number}: not {{"shard": …, "key": …}} ({error!r})') from error
    return frozenset(keys)
