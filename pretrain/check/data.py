"""Checks that the data sets match the config. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pretrain.config.schema.evaluation import target_of_kind
from pretrain.config.schema.experiment import Experiment
from pretrain.data.sources import Source, check_target, lanes_of, needed_bytes, open_sources
from pretrain.data.storage.classes import require_same_classes
from pretrain.data.storage.index import TABLE_FILE
from pretrain.data.storage.location import Location
from pretrain.data.storage.packed_set import LARGEST_TABLE, PackedSet, open_packed
from pretrain.data.storage.transport import TransportError
from pretrain.data.storage.transports import open_transport
from pretrain.errors import ConfigError, DataError
from pretrain.sharding.memory import size_text

RANKS_PER_NODE = 8  # assumed by --check, which does not know how many ranks share a cache


def report_data(experiment: Experiment, require_data: bool) -> list[str]:
    data = experiment.data
    keys = [f"data.mixture.{place}.shards" for place in range(len(data.mixture))] or ["data.shards"]
    places = {key: (source.shards, source.num_samples, True) for key, source in zip(keys, data.sources, strict=True)}
    kinds = {f"evaluation.sets.{name}": split.kind for name, split in experiment.evaluation.sets.items()}
    for name, split in experiment.evaluation.sets.items():
        own = not split.has_own_classes
        places[f"evaluation.sets.{name}.shards"] = (split.shards, split.num_samples, own)
        if split.train_shards is not None and split.num_train_samples is not None:
            places[f"evaluation.sets.{name}.train_shards"] = (split.train_shards, split.num_train_samples, own)
    lines: list[str] = []
    absent: set[str] = set()
    for key, (shards, num_samples, same_classes) in places.items():
        location = Location.parse(shards)
        if location.is_remote or _has_shards(Path(location.base)):
            try:
                kind = kinds.get(key.rpartition(".")[0])
                lines.append(_check_split(experiment, key, shards, num_samples, same_classes, kind))
                continue
            except DataError:
                if require_data or not location.is_remote or _answers(location, experiment):
                    raise
        if require_data:
            raise DataError(
                f"{key}: no shards in {shards}; make them with python -m pipelines pack, or correct the path"
            )
        absent.add(key)
        lines.append(f"data        {shards}: data not found, not checked; {num_samples:,} samples as configured")
    if absent.isdisjoint(keys):
        opened = open_sources(experiment)
        for key, (shards, _, same_classes) in places.items():
            if same_classes and key not in (*keys, *absent):
                _check_classes(experiment, opened[0].packed, shards)
        if len(opened) > 1 or not all(source.selection.is_all for source in opened):
            drawn = [f"{int(source.selection.sizes.sum()):,} of {source.packed.location}" for source in opened]
            lines.append(f"data        an epoch draws {data.drawn_samples:,} samples: {', '.join(drawn)}")
        lines += _report_cache(opened, experiment)
    return list(dict.fromkeys(lines))


def _report_cache(sources: Sequence[Source], experiment: Experiment) -> list[str]:
    """Reports how much of the cache a full node uses; the stream itself refuses a cap that is too small."""
    cluster = experiment.cluster
    if not any(source.packed.location.is_remote for source in sources):
        return []
    world = cluster.num_devices if cluster.num_devices != "auto" else 1
    per_node = min(world, RANKS_PER_NODE)
    num_lanes = lanes_of(experiment)
    needed = needed_bytes(sources, experiment, num_lanes, world, per_node, experiment.data.shuffle_window)
    return [
        f"cache       {size_text(needed)} of {size_text(cluster.cache.max_bytes)} in use on a node of {per_node} ranks"
    ]


def _answers(location: Location, experiment: Experiment) -> bool:
    """Whether a remote location answers; a machine without a network cannot check the data."""
    transport = open_transport(location, experiment.cluster.remote, allow_pipe=experiment.data.allow_pipe)
    try:
        transport.get(TABLE_FILE, most_bytes=LARGEST_TABLE)
    except (TransportError, DataError):
        return False
    return True


def _has_shards(folder: Path) -> bool:
    return (folder / TABLE_FILE).exists() or any(folder.glob("*.tar"))


def _check_split(
    experiment: Experiment, key: str, shards: str, num_samples: int, same_classes: bool, kind: str | None
) -> str:
    packed = open_packed(shards, experiment.cluster, allow_pipe=experiment.data.allow_pipe)
    table = packed.table
    objective = experiment.objective
    if kind:
        check_target(packed, target_of_kind(kind), f"{key}: kind: {kind}")
    else:
        check_target(packed, objective.needs.target, f"objective.name: {objective.name}")
    num_classes = experiment.data.num_classes if same_classes else table.num_classes
    count_key = key.replace(".train_shards", ".num_train_samples").replace(".shards", ".num_samples")
    training = not key.startswith("evaluation")
    counts = [("data.num_classes", table.num_classes, num_classes)]
    if not training or experiment.data.sources[_place_in_mixture(key)].drop_list is None:
        counts.insert(0, (count_key, table.num_samples, num_samples))
    for name, found, expected in counts:
        if found != expected:
            raise DataError(
                f"{packed.location.url(TABLE_FILE)}: the set has {found:,}, but {name} is {expected:,}; "
                f"set {name}: {found}, or {key} to the set that was meant"
            )
    packed.check_files()
    if training and table.max_labels > 1 and objective.needs.one_label:
        raise ConfigError(
            f"objective.name: {objective.name} takes one label per image, but {shards} has up to {table.max_labels}; "
            "use sigmoid"
        )
    return f"data        {shards}: {table.num_samples:,} samples in {len(table.rows):,} shards, digest {table.digest}"


def _check_classes(experiment: Experiment, trained: PackedSet, shards: str) -> None:
    """Checks that class numbers mean the same in an evaluation set and in the training set."""
    evaluated = open_packed(shards, experiment.cluster, allow_pipe=experiment.data.allow_pipe)
    require_same_classes(trained.classes, evaluated.classes, (trained.location, evaluated.location))


def _place_in_mixture(key: str) -> int:
    match = re.search(r"mixture\.(\d+)", key)
    return int(match[1]) if match else 0
