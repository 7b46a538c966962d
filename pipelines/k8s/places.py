"""The paths in a config, and the volumes of the pods that they must be on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from pipelines.k8s.manifest import Volume
from pretrain.config.schema.experiment import Experiment
from pretrain.data.storage.location import Location
from pretrain.errors import ConfigError


def check_places(experiment: Experiment, volumes: Sequence[Volume], workdir: str | None) -> None:
    """Requires that each path of a config is on a volume, and the run folder on one that all pods share.

    Raises:
        ConfigError: names the key, and what to do.
    """
    paths = [volume.path for volume in volumes]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(f"two volumes are mounted at {twice}; choose another path for one of them")
    problems = []
    for key, text in _paths(experiment):
        path = PurePosixPath(workdir or "", text)
        holding = _volume_of(path, volumes)
        if not path.is_absolute():
            problems.append(f"{key}: {text} is relative; write the path in the pods, or name its start with --workdir")
        elif holding is None:
            problems.append(f"{key}: {path} is on no volume of the pods; name it with --volume CLAIM:/PATH")
        elif key == "output_dir" and holding.claim is None:
            problems.append(f"{key}: {path} is a node's own folder; all pods must share it: use --volume CLAIM:/PATH")
    fast = experiment.checkpoint.fast
    if fast is not None and not _is_of_node(PurePosixPath(fast.folder), volumes):
        problems.append(
            f"checkpoint.fast.folder: {fast.folder} is deleted with its pod, so no restart would find a checkpoint "
            "there; name a folder of the node with --host-volume /HOST:/PATH, or set checkpoint.fast=null"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _paths(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Key → path, for everything that is read or written and is not remote."""
    yield "output_dir", experiment.output_dir
    data = experiment.data
    keys = [f"data.mixture.{place}" for place in range(len(data.sources))] if data.mixture else ["data"]
    shards = {f"{key}.shards": source.shards for key, source in zip(keys, data.sources, strict=True)}
    shards |= {f"evaluation.sets.{name}.shards": one.shards for name, one in experiment.evaluation.sets.items()}
    for key, text in shards.items():
        place = Location.parse(text)
        if not place.is_remote:
            yield key, place.base
    for key, source in (
        ("init.from", experiment.init.from_),
        ("resume.from", experiment.resume.from_),
        ("objective.teacher", experiment.objective.teacher_weights),
        *((f"{key}.drop_list", source.drop_list) for key, source in zip(keys, data.sources, strict=True)),
    ):
        if source is not None:
            yield key, source


def _volume_of(path: PurePosixPath, volumes: Sequence[Volume]) -> Volume | None:
    """The volume that a path is on: the one that is mounted deepest."""
    holding = [volume for volume in volumes if path.is_relative_to(volume.path)]
    return max(holding, key=lambda volume: len(volume.path), default=None)


def _is_of_node(path: PurePosixPath, volumes: Sequence[Volume]) -> bool:
    volume = _volume_of(path, volumes)
    return volume is not None and volume.host is not None
