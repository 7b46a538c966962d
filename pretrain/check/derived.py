"""Settings that follow from what a config names: the architecture from its weights, the counts from its packed sets.

They are added to the settings as written, below them: whatever a config states is kept, and checked. Files of our own
are read without torch, those of other libraries by their readers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.config import tree
from pretrain.config.loader import DEFAULT, Resolved, load_experiment, load_saved
from pretrain.config.schema.model import TRAINING_ONLY, ModelConfig
from pretrain.config.schema.run import Head
from pretrain.config.tree import Leaf, Node, Section
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.data.storage.location import Location
from pretrain.engine.run_folder import RunFolder
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.exchange.hub import local
from pretrain.models.families.registry import require_same
from pretrain.models.metadata import Described, described_in_file

BESIDE = "beside:"  # evaluation.sets.NAME.shards: a split in the folder that data.shards is in
_OF_THE_HEAD = frozenset({"head", "representation_size"})


def load_complete(
    path: str | Path, *, cluster: str | Path | None = None, overrides: Sequence[str] = (), head: Head = "keep"
) -> Resolved:
    """``load_experiment``, with the settings that follow from ``init.from`` and from the packed sets.

    What ``model`` leaves out is as in the weights, except settings of training and those of a head that is replaced;
    so are ``data.mean`` and ``data.std``. ``num_samples`` and ``num_classes`` of sets in local folders are counted,
    unless a drop list leaves samples out, and ``beside:NAME`` becomes the split NAME beside ``data.shards``.

    Args:
        path, cluster, overrides: as for ``load_experiment``.
        head: what becomes of the weights' head where ``init.head`` is auto.

    Raises:
        ConfigError: as ``load_experiment``; ``model`` is not given, by the config or by weights; or it contradicts the
            weights. CheckpointError: weights of another library cannot be read. DataError: a set is damaged.
    """
    started: list[tuple[str, ModelConfig]] = []

    def complete(settings: Section) -> Section:
        settings = _with_splits_in_place(settings)
        for section, key, value, where in _counts(settings):
            settings = _below(settings, section, {key: value}, where)
        source, about = _weights(settings)
        if about is None:
            _require_model(settings, str(path), source)
            return settings
        assert source is not None
        started.append((source, about.model))
        _require_same_name(settings, source, about.model)
        settings = _below(settings, "model", _architecture(about.model, _head(settings, head)), source)
        return _normalised(settings, source, about)

    resolved = load_experiment(path, cluster=cluster, overrides=overrides, complete=complete)
    for source, theirs in started:
        try:
            require_same(theirs, resolved.experiment.model)
        except CheckpointError as error:
            raise ConfigError(f"{_blamed(str(error), resolved, source)}: init.from: {source}: {error}") from error
    return resolved


def _blamed(message: str, resolved: Resolved, source: str) -> str:
    """Where the config states a setting that ``message`` names."""
    keys = (name.rstrip(".") for name in re.findall(r"model\.[a-z_.]+", message))
    places = [resolved.provenance.get(key, DEFAULT) for key in keys]
    places = [place for place in places if place not in (DEFAULT, source)]
    return places[0] if places else resolved.where("init.from")


def describe(source: str) -> Described | None:
    """Model and normalisation of weights, as stored with them; None: they are not stored.

    Raises:
        CheckpointError: weights of another library cannot be read.
    """
    path = local(source)
    saved = RunFolder(path).config
    if saved.is_file():
        try:
            experiment = load_saved(saved).experiment
        except ConfigError:  # of an older version
            return None
        return Described(experiment.model, experiment.data.mean, experiment.data.std)
    if path.is_file() and (about := described_in_file(path)) is not None:
        return about
    return _described_by_reader(path)


def _described_by_reader(path: Path) -> Described | None:
    from pretrain.models.exchange.formats import is_model_folder, load_any  # needs torch

    if not path.is_file() and not is_model_folder(path):
        return None
    about = load_any(path)[1]
    return Described(about.model, about.mean, about.std, about.transform_problem)


def _weights(settings: Section) -> tuple[str | None, Described | None]:
    """``init.from`` and what those weights say."""
    source = _text(settings, "init.from")
    return source, None if source is None else describe(source)


def _require_model(settings: Section, file: str, source: str | None) -> None:
    """Refuses a config without a model."""
    model = tree.find(settings, "model")
    if isinstance(model, Section) and {"name", "variant"} & model.children.keys():
        return
    if source is None:
        raise ConfigError(
            f"{file}: model: is missing; state one, such as model.variant: B/16, or start from weights that have one: "
            "--from RUN_OR_WEIGHTS (init.from)"
        )
    problem = "does not exist" if not local(source).exists() else "does not say which model it holds"
    raise ConfigError(
        f"{_where(settings, 'init.from')}: init.from: {source} {problem}; name a run folder, a checkpoint or a weights "
        "file, or state the model: model.variant: B/16"
    )


def _normalised(settings: Section, source: str, about: Described) -> Section:
    """The settings with the normalisation of the weights; refuses to leave it to weights that do not record it."""
    if about.mean is not None and about.std is not None:
        return _below(settings, "data", {"mean": list(about.mean), "std": list(about.std)}, source)
    missing = [name for name in ("data.mean", "data.std") if tree.find(settings, name) is None]
    if missing:
        raise ConfigError(
            f"{_where(settings, 'init.from')}: init.from: how pixels are normalised for {source} is unknown "
            f"({about.problem or 'it does not record it'}); state {' and '.join(missing)}"
        )
    return settings


def _require_same_name(settings: Section, source: str, theirs: ModelConfig) -> None:
    """Refuses another architecture than the weights', whose other settings would not make sense with theirs."""
    stated = _text(settings, "model.name")
    if stated is not None and stated != theirs.name:
        raise ConfigError(
            f"{_where(settings, 'model.name')}: model.name: {stated}, but the weights {source} are of model.name: "
            f"{theirs.name}; remove it, or name other weights"
        )


def _head(settings: Section, head: Head) -> str:
    stated = _text(settings, "init.head")
    return head if stated in (None, "auto") else str(stated)


def _architecture(model: ModelConfig, head: str) -> dict[str, object]:
    """The settings of ``model`` that belong to its weights and are not defaults."""
    values, fields = model.model_dump(mode="json"), type(model).model_fields
    left_out = TRAINING_ONLY | (_OF_THE_HEAD if head == "replace" else frozenset())
    default = {name: fields[name].get_default(call_default_factory=True) for name in values}
    return {
        name: value for name, value in values.items() if name not in left_out and getattr(model, name) != default[name]
    }


def _counts(settings: Section) -> Iterator[tuple[str, str, int, str]]:
    """(section, key, number, where it is from) of every count that the sets know and the settings do not state."""
    for section, shards, key, classes in _sets(settings):
        place = _text(settings, f"{section}.{shards}")
        wanted = [name for name in (key, classes) if name and tree.find(settings, f"{section}.{name}") is None]
        if place is None or not wanted or tree.find(settings, f"{section}.drop_list") is not None:
            continue
        location = Location.parse(place)
        if location.is_remote:
            continue
        if not (Path(location.base) / TABLE_FILE).is_file():
            raise ConfigError(
                f"{_where(settings, f'{section}.{shards}')}: {section}.{shards}: {place} is not a packed set of this "
                f"machine, so its images cannot be counted; pack it (python -m pipelines pack), correct the place, or "
                f"state {' and '.join(f'{section}.{name}' for name in wanted)}"
            )
        table = ShardTable.load(location.base)
        numbers = {key: table.num_samples, classes: table.num_classes}
        yield from ((section, name, numbers[name], f"{place}/{TABLE_FILE}") for name in wanted)


def _sets(settings: Section) -> Iterator[tuple[str, str, str, str]]:
    """(section, key of the place, key of its number of samples, key of its number of classes or "")."""
    yield "data", "shards", "num_samples", "num_classes"
    sets = tree.find(settings, "evaluation.sets")
    for name in sets.children if isinstance(sets, Section) else ():
        yield f"evaluation.sets.{name}", "shards", "num_samples", ""
        yield f"evaluation.sets.{name}", "train_shards", "num_train_samples", ""


def _with_splits_in_place(settings: Section) -> Section:
    """``beside:NAME`` replaced by the place of that split.

    Raises:
        ConfigError: ``beside:`` needs exactly one training set, and the config has none or several.
    """
    sets = tree.find(settings, "evaluation.sets")
    for name in sets.children if isinstance(sets, Section) else ():
        key = f"evaluation.sets.{name}.shards"
        split = _text(settings, key)
        if split is None or not split.startswith(BESIDE):
            continue
        where, train = _where(settings, key), _text(settings, "data.shards")
        if train is None or "?" in train or Location.parse(train).kind == "pipe":
            raise ConfigError(f"{where}: {key}: {split} needs data.shards, a folder or an address; write the place")
        parent, slash, _ = train.removesuffix(f"/{TABLE_FILE}").rstrip("/").rpartition("/")
        place = f"{parent}{slash}{split.removeprefix(BESIDE)}"
        settings = _over(settings, tree.nest(key, Leaf(place, True, where), where))
    return settings


def _below(settings: Section, section: str, values: dict[str, object], where: str) -> Section:
    """The settings with ``values`` where they state nothing."""
    stated = tree.find(settings, section)
    if not values or (stated is not None and not isinstance(stated, Section)):
        return settings
    merged = tree.merge(tree.written(values, where), stated) if stated is not None else tree.written(values, where)
    return _over(settings, tree.nest(section, merged, where))


def _over(settings: Section, top: Node) -> Section:
    merged = tree.merge(settings, top)
    assert isinstance(merged, Section)
    return merged


def _text(settings: Section, key: str) -> str | None:
    found = tree.find(settings, key)
    return found.text if isinstance(found, Leaf) and not found.is_null else None


def _where(settings: Section, key: str) -> str:
    found = tree.find(settings, key)
    return found.where if found is not None else key
