"""A source as the packer uses it: units laid out, everything listed, everything read by a copy that was pickled."""

from __future__ import annotations

import pickle
from pathlib import Path

from pipelines.sources.protocol import Item, Source


def listed(source: Source, folder: Path) -> dict[str, tuple[Item, bytes, str]]:
    """Key → item, bytes, extension."""
    for unit in source.units():
        folder.mkdir(exist_ok=True)
        source.prepare(unit, folder)
    if source.units():
        source.use(folder)
    items = list(source.items())
    twin = pickle.loads(pickle.dumps(source))
    return {item.key: (item, *twin.read(item)) for item in items}
