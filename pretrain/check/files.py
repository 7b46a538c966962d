"""Checks of what is on the disk: the weights to start from, the run folder, the data sets. Does not import torch."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pretrain.check.kept_head import check_head
from pretrain.config.loader import load_saved
from pretrain.config.schema.evaluation import EvaluationSetConfig
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.run import Head
from pretrain.config.typed import known_keys, nearest_key
from pretrain.data.sampling import in_words, order_by_class
from pretrain.data.sources import Source, check_target, lanes_of, needed_bytes, open_sources
from pretrain.data.storage.classes import require_same_classes
from pretrain.data.storage.index import TABLE_FILE
from pretrain.data.storage.location import Location
from pretrain.data.storage.objects import ObjectFolder, require_client
from pretrain.data.storage.packed_set import LARGEST_TABLE, PackedSet, open_packed
from pretrain.data.storage.transport import TransportError, Unreachable
from pretrain.data.storage.transports import open_transport
from pretrain.engine.run_folder import RunFolder
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.models.exchange.hub import local
from pretrain.models.families.registry import require_same
from pretrain.models.metadata import model_in_file
from pretrain.sharding.protocol import size_text

RANKS_PER_NODE = 8  # assumed by --check, which does not know how many ranks share a cache
LONGEST_BELOW = 64  # characters of the longest path in a run folder: checkpoints/step-00000000.tmp/slices/…


def report_start(experiment: Experiment, require_data: bool) -> list[str]:
    """The weights or the run that training starts from.

    Raises:
        ConfigError: they do not exist, do not fit the model, or a setting beside them would be ignored.
    """
    problems, lines = [], []
    known = set(known_keys(Experiment))
    for name in experiment.resume.allow_changes:
        if name not in known:
            near = nearest_key(name, known)
            problems.append(f"resume.allow_changes: {name} is not a key" + (f"; did you mean {near}?" if near else ""))
    sources = {
        "resume.from": experiment.resume.from_,
        "init.from": experiment.init.from_,
        "objective.teacher": experiment.objective.teacher_weights,
    }
    for key, source in sources.items():
        if source is not None and not local(source).exists():
            if key == "objective.teacher" and not require_data:  # an input like the data: it may be on another machine
                lines.append(f"teacher     {source}: not found, not checked")
                continue
            problems.append(f"{key}: {source} does not exist; name a run folder, a checkpoint or a weights file")
        elif source is not None and key == "resume.from" and not _has_checkpoint(Path(source)):
            problems.append(
                f"{key}: {source} holds no complete checkpoint: give a run folder or one of its checkpoints"
            )
        elif source is not None:
            lines.append(f"{key.removeprefix('objective.'):<11} {source}")
    if experiment.optim.lora is not None and experiment.init.from_ is None and experiment.resume.from_ is None:
        problems.append("optim.lora: adapts given weights, but there are none; set init.from (--from), or remove it")
    init, fields = experiment.init, type(experiment.init).model_fields  # a resolved config lists the defaults too
    unused = sorted(name for name in init.model_fields_set if getattr(init, name) != fields[name].default)
    if experiment.init.from_ is None and unused:
        problems.append(f"init.{unused[0]}: would be ignored without init.from; set init.from or remove it")
    if problems:
        raise ConfigError("\n".join(problems))
    if experiment.init.from_ is not None:
        _check_weights(local(experiment.init.from_), experiment.model)
    return lines


def _has_checkpoint(source: Path) -> bool:
    """Whether the folder is a checkpoint or a run folder with one; its files are not checked."""
    places = ("COMPLETE.json", "step-*/COMPLETE.json", "checkpoints/step-*/COMPLETE.json")
    return any(next(source.glob(place), None) is not None for place in places)


def _check_weights(source: Path, model: ModelConfig) -> None:
    """Checks that our own weights fit the model's architecture; the run checks those of other libraries.

    Raises:
        ConfigError: they do not.
    """
    theirs = model_in_file(source) if source.is_file() else _model_of_run(source)
    if theirs is None:
        return
    try:
        require_same(theirs, model)
    except CheckpointError as error:
        raise ConfigError(f"init.from: {source}: {error}") from error


def _model_of_run(folder: Path) -> ModelConfig | None:
    try:
        return load_saved(RunFolder(folder).config).experiment.model
    except ConfigError:  # another library's folder, or an older version: the run checks the weights themselves
        return None


def report_place(experiment: Experiment) -> list[str]:
    """Returns no lines, since only problems are reported.

    Raises:
        ConfigError: the run folder cannot be made, or a package is missing that a setting needs.
    """
    _check_folder(Path(experiment.output_dir), experiment.name)
    if experiment.telemetry.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "telemetry.wandb: the package wandb is not installed; pip install 'vit-pretrain[wandb]', or remove the "
            "setting"
        )
    return []


def report_mirror(experiment: Experiment, require: bool) -> list[str]:
    """Whether this process can write to ``checkpoint.mirror``, to which every rank uploads its slices.

    A store that does not answer is left to the choice of the checkpoint, since a restart may do without it.

    Raises:
        ConfigError: the store refuses, and ``require`` is set. SetupError: a package is missing.
    """
    address, remote = experiment.mirror_address, experiment.cluster.remote
    if address is None:
        return []
    remote = remote if require else remote.model_copy(update={"attempts": 1})
    require_client(address.partition("://")[0], address)
    try:
        ObjectFolder(address, remote).check_writable()
    except DataError as error:
        if require and not isinstance(error, Unreachable):
            raise ConfigError(f"checkpoint.mirror: {error}") from error
        return [f"mirror      cannot be written from here, which a run needs: {error}"]
    return [f"mirror      {address} can be written"]


def _check_folder(parent: Path, name: str) -> None:
    run = parent / name
    if run.exists() and not run.is_dir():
        raise ConfigError(f"name: {run} is a file; choose another name or output_dir")
    above = Path(os.path.abspath(run))
    longest = len(os.fsencode(above)) + LONGEST_BELOW
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise ConfigError(f"output_dir: {above} is not a folder, so {run} cannot be made in it; choose another")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir: {above} cannot be written to, so {run} cannot be made; choose another")
    most = os.pathconf(above, "PC_PATH_MAX")
    if longest > most:
        raise ConfigError(f"output_dir: {run}: paths in it would have up to {longest} bytes, and {most} are possible")


def report_data(experiment: Experiment, require_data: bool, head: Head = "replace") -> list[str]:
    """The data sets; those that are not found here are an error only with ``require_data``.

    Raises:
        ConfigError: a set does not fit the settings, or a kept head has other classes. DataError: sets are damaged, or
            missing; a line for each problem.
    """
    splits, lines, problems, absent = _splits(experiment), [], [], set()
    for split in splits:
        try:
            line = _checked(experiment, split, require_data)
        except DataError as error:
            problems.append(str(error))
            continue
        if line is None:
            absent.add(split.key)
            line = (
                f"data        {split.shards}: data not found, not checked; {split.num_samples:,} samples as configured"
            )
        lines.append(line)
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
    if absent.isdisjoint(split.key for split in splits if split.evaluation is None):
        opened = open_sources(experiment)
        first = opened[0]
        if head == "keep" and experiment.init.from_ is not None:
            check_head(local(experiment.init.from_), experiment, first.packed)
        for split in splits:
            if split.evaluation is not None and not split.evaluation.has_own_classes and split.key not in absent:
                _check_classes(experiment, first.packed, split.shards)
        if len(opened) > 1 or not all(source.selection.is_all for source in opened):
            drawn = [f"{int(source.selection.sizes.sum()):,} of {source.packed.location}" for source in opened]
            lines.append(f"data        an epoch draws {experiment.data.drawn_samples:,} samples: {', '.join(drawn)}")
        lines += _report_sampling(first, experiment) + _report_cache(opened, experiment)
    return list(dict.fromkeys(lines))


class _Split(NamedTuple):
    """A packed split that the experiment reads.

    Attributes:
        key: the setting that names it.
        shards, num_samples: as configured.
        evaluation: the evaluation that it belongs to; None: it is trained on.
    """

    key: str
    shards: str
    num_samples: int
    evaluation: EvaluationSetConfig | None = None


def _splits(experiment: Experiment) -> list[_Split]:
    """All splits, the training sets first."""
    data = experiment.data
    keys = [f"data.mixture.{place}.shards" for place in range(len(data.mixture))] or ["data.shards"]
    splits = [_Split(key, one.shards, one.num_samples) for key, one in zip(keys, data.sources, strict=True)]
    for name, chosen in experiment.evaluation.sets.items():
        splits.append(_Split(f"evaluation.sets.{name}.shards", chosen.shards, chosen.num_samples, chosen))
        if chosen.train_set is not None:
            splits.append(_Split(f"evaluation.sets.{name}.train_shards", *chosen.train_set, chosen))
    return splits


def _checked(experiment: Experiment, split: _Split, require_data: bool) -> str | None:
    """The line of a split that is here and fits the settings; None if it is not here."""
    location = Location.parse(split.shards)
    if location.is_remote or _has_shards(Path(location.base)):
        try:
            return _check_split(experiment, split)
        except DataError:
            if require_data or not location.is_remote or _answers(location, experiment):
                raise
    if require_data:
        raise DataError(
            f"{split.key}: no shards in {split.shards}; make them with python -m pipelines pack, or correct the path"
        )
    return None


def _report_sampling(source: Source, experiment: Experiment) -> list[str]:
    """Reports how often each class is drawn, unless it is as often as it has images."""
    data = experiment.data
    if data.sampling == "natural":
        return []
    order = order_by_class(experiment, source.packed, source.selection, lanes_of(experiment))
    return [f"sampling    {data.sampling}: {in_words(order, data.num_classes)}"]


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


def _check_split(experiment: Experiment, split: _Split) -> str:
    key, shards, num_samples, evaluation = split
    packed = open_packed(shards, experiment.cluster, allow_pipe=experiment.data.allow_pipe)
    table, objective = packed.table, experiment.objective
    if evaluation is not None:
        check_target(packed, evaluation.target, f"{key}: kind: {evaluation.kind}")
    else:
        check_target(packed, objective.needs.target, f"objective.name: {objective.name}")
    has_own_classes = evaluation is not None and evaluation.has_own_classes
    num_classes = table.num_classes if has_own_classes else experiment.data.num_classes
    count_key = key.replace(".train_shards", ".num_train_samples").replace(".shards", ".num_samples")
    training = evaluation is None
    counts = [("data.num_classes", table.num_classes, num_classes)]
    if not training or experiment.data.sources[_place_in_mixture(key)].drop_list is None:
        counts.insert(0, (count_key, table.num_samples, num_samples))
    require_counts(packed.location.url(TABLE_FILE), key, counts)
    packed.check_files()
    if training and table.max_labels > 1 and objective.needs.one_label:
        raise ConfigError(
            f"objective.name: {objective.name} takes one label per image, but images of {shards} have none or "
            "several; use sigmoid"
        )
    return f"data        {shards}: {table.num_samples:,} samples in {len(table.rows):,} shards, digest {table.digest}"


def require_counts(table: object, key: str, counts: Sequence[tuple[str, int, int]]) -> None:
    """Compares a set with the config.

    Args:
        table: the set's table, for the message.
        key: of the set in the config.
        counts: (key, number in the set, number in the config).

    Raises:
        DataError: lists every number that differs.
    """
    problems = [
        f"{table}: the set has {found:,}, but {name} is {expected:,}; set {name}: {found}, or {key} to the set that "
        "was meant"
        for name, found, expected in counts
        if found != expected
    ]
    if problems:
        raise DataError("\n".join(problems))


def _check_classes(experiment: Experiment, trained: PackedSet, shards: str) -> None:
    """Checks that class numbers mean the same in an evaluation set and in the training set."""
    evaluated = open_packed(shards, experiment.cluster, allow_pipe=experiment.data.allow_pipe)
    require_same_classes(trained.classes, evaluated.classes, (trained.location, evaluated.location))


def _place_in_mixture(key: str) -> int:
    match = re.search(r"mixture\.(\d+)", key)
    return int(match[1]) if match else 0
