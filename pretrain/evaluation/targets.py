"""Labels from a file instead of a set's own, such as the reassessed labels of ImageNet (ReaL).

Source: Beyer et al., "Are we done with ImageNet?" (2006.07159), section 4: a prediction is right if it is among an
image's labels, and images without any are left out. Its ``real.json`` is a list in the order of the file names
``ILSVRC2012_val_00000001.JPEG`` …, which this reads as it is.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema.evaluation import IMAGENET_REAL
from pretrain.data.storage.classes import repeated
from pretrain.data.storage.index import ShardTable, read_labels, read_sources
from pretrain.data.storage.records import PADDING_LABEL
from pretrain.errors import DataError

LEAST_AGREEMENT = 0.5
ENOUGH_TO_JUDGE = 1_000  # images


def load_targets(path: str | Path, table: ShardTable) -> NDArray[np.int64]:
    """Labels of every sample of the set in canonical order, int64 (N, M), padded with −1.

    Args:
        path: JSON: a list with one list of class numbers per image, in the order of the packed files' names; or an
            object from file name to list (where files share a name, from the path as it was packed). An empty list: the
            image does not count. ``imagenet_real``: ReaL's own list.
        table: the set.

    Raises:
        DataError: not such a file, another number of images, an image that is missing, a number that is not a class, or
            a list that seems to be in another order.
    """
    path = _imagenet_real() if str(path) == IMAGENET_REAL else path
    content = _read(Path(path))
    is_list = isinstance(content, list)
    sources = read_sources(table)
    names = [PurePosixPath(source).name for source in sources]
    if isinstance(content, list):
        if len(content) != len(names):
            raise DataError(f"{path}: labels of {len(content):,} images, but {table.folder} has {len(names):,}")
        content = dict(zip(_ordered(names, table), content, strict=True))
    else:
        names = _keys(names, sources, content, path)
    missing = [name for name in names if name not in content]
    if missing:
        raise DataError(f"{path}: no labels of {missing[0]} and {len(missing) - 1:,} more images of {table.folder}")
    rows = [_numbers(content[name], name, path, table.num_classes) for name in names]
    targets = np.full((len(rows), max(1, *map(len, rows)) if rows else 1), PADDING_LABEL, dtype=np.int64)
    for index, row in enumerate(rows):
        targets[index, : len(row)] = row
    if is_list:
        _check_order(targets, table, path)
    return targets


def _imagenet_real() -> Path:
    """The file in timm's package, which is not imported for it."""
    found = importlib.util.find_spec("timm")
    places = [] if found is None else list(found.submodule_search_locations or [])
    path = Path(places[0], "data", "_info", "imagenet_real_labels.json") if places else None
    if path is None or not path.is_file():
        raise DataError(f"targets: {IMAGENET_REAL} is a file of timm's, which is not installed; name real.json instead")
    return path


def _check_order(targets: NDArray[np.int64], table: ShardTable, path: str | Path) -> None:
    """A list in another order looks valid, except that it agrees with the labels only as often as chance does.

    ReaL's lists hold the original label of about nine images in ten.
    """
    own = read_labels(table)
    labelled = (targets >= 0).any(1) & (own >= 0).any(1)
    agreeing = (targets[:, :, None] == np.where(own >= 0, own, -2)[:, None, :]).any((1, 2))
    share = float(agreeing[labelled].mean()) if labelled.any() else 1.0
    if share < LEAST_AGREEMENT and len(targets) >= ENOUGH_TO_JUDGE:
        raise DataError(
            f"{path}: only {share:.0%} of its lists hold the image's own label in {table.folder}, so the packed files "
            "are probably not those that it lists in the order of their names; give an object from file name to list"
        )


def _read(path: Path) -> list[Any] | dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the targets cannot be read ({error})") from error
    if not isinstance(content, (list, dict)):
        raise DataError(f"{path}: a JSON list of lists, or an object from file name to list, is expected")
    return content


def _keys(names: list[str], sources: list[str], content: dict[str, Any], path: str | Path) -> list[str]:
    """The key of each image in an object: its name as packed, or its file name, which must then be unique."""
    keys = [source if source in content else name for source, name in zip(sources, names, strict=True)]
    if twice := [key for key in repeated(keys) if key in content]:
        raise DataError(f"{path}: {twice[0]!r} is the name of several images of the set; name each as it was packed")
    return keys


def _ordered(names: list[str], table: ShardTable) -> list[str]:
    ordered = sorted(names)
    twice = [name for name, after in itertools.pairwise(ordered) if name == after]
    if twice:
        raise DataError(
            f"{table.folder}: two images are called {twice[0]}, so a list of targets has no order; give an object from "
            "file name to list, or pack the set with names that differ"
        )
    return ordered


def _numbers(value: Any, name: str, path: str | Path, num_classes: int) -> list[int]:
    labels = value if isinstance(value, list) else [value]
    for label in labels:
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < num_classes:
            raise DataError(f"{path}: {name}: {label!r} is not a class; the set has the classes 0 to {num_classes - 1}")
    return labels
