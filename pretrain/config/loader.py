"""Loads YAML files and command-line overrides into one typed experiment, with the origin of each setting.

Files and overrides are read to trees of text with line numbers (tree.py); the schema types the values (typed.py), not
YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

import pretrain
from pretrain.config import changes, tree, typed
from pretrain.config.earlier import settings_of_today
from pretrain.config.schema.base import Strict, fields_of
from pretrain.config.schema.experiment import Experiment
from pretrain.config.tree import COMMAND_LINE, Leaf, Node, Reader, Section
from pretrain.errors import ConfigError
from pretrain.redaction import redacted_in

Model = TypeVar("Model", bound=BaseModel)

DEFAULT = "default"
WRITTEN_BY = "# vit-pretrain "  # and the version, as the first line of a resolved config
# These do not decide the result, so a run can be read and resumed without the values an older version wrote there.
DISPENSABLE = ("cluster", "telemetry", "checkpoint", "evaluation", "guard", "sweep")


@dataclass(frozen=True)
class Resolved:
    """An experiment with the origin of its settings.

    Attributes:
        experiment: the typed settings.
        provenance: dotted key → ``file:line``, ``command line`` or ``default``.
        path: the config file as given.
    """

    experiment: Experiment
    provenance: dict[str, str]
    path: str

    @cached_property
    def _complete(self) -> dict[str, Any]:
        return _complete_settings(self.experiment)

    def to_dict(self) -> dict[str, Any]:
        """All settings with their defaults as plain JSON values, without those that would be refused as ignored."""
        return self._complete

    def to_yaml(self) -> str:
        """The complete resolved config. Loading it gives an equal experiment, without the credentials.

        A resume takes credentials from its own command line, because it does not compare the locations of data sets.
        """
        text = yaml.dump(redacted_in(self._complete), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        return f"{WRITTEN_BY}{pretrain.__version__}\n{text}"

    @property
    def digest(self) -> str:
        """Hash of the settings that decide the result; ``changes.UNDECISIVE_KEYS`` lists the others."""
        return changes.digest(self._complete)

    def where(self, key: str) -> str:
        """Where ``key`` (or the nearest section above it) was written; the config file itself for defaults."""
        while key:
            if self.provenance.get(key, DEFAULT) != DEFAULT:
                return self.provenance[key]
            key = key.rpartition(".")[0]
        return self.path


def load_experiment(
    path: str | Path,
    *,
    cluster: str | Path | None = None,
    overrides: Sequence[str] = (),
    without: Sequence[str] = (),
    complete: Callable[[Section], Section] = lambda settings: settings,
) -> Resolved:
    """Reads a config: the files it ``extends``, then the file itself, then the cluster file, then the overrides.

    Args:
        path: YAML of the experiment, or ``recipe:NAME`` for a shipped one. ``extends`` names a file or a list of files,
            relative to the file it is in, or recipes.
        cluster: YAML whose keys are those of the ``cluster`` section.
        overrides: ``key.sub=value``; the value is text as it is, typed by its key, or a list, a section or a quoted
            string of YAML.
        without: sections of the file to skip.
        complete: adds settings that follow from those written (``check.derived.load_complete``).

    Raises:
        ConfigError: a file cannot be read, or settings are wrong: all problems, with file, line, key and remedy.
    """
    reader = Reader()
    settings: Node = reader.read(str(path))
    assert isinstance(settings, Section)
    settings = Section({key: node for key, node in settings.children.items() if key not in without}, settings.where)
    if cluster is not None and (machines := reader.read(str(cluster))).children:
        settings = tree.merge(settings, Section({"cluster": machines}))
    settings = complete(reader.overridden(settings, overrides))
    experiment = _validated(settings, Experiment, reader, str(path))
    return Resolved(experiment, _provenance(settings, experiment), str(path))


def load_saved(path: Path) -> Resolved:
    """The experiment that a ``config.resolved.yaml`` describes.

    If settings that do not decide the result are invalid in this version, their sections take its defaults.

    Raises:
        ConfigError: it cannot be read, or settings that decide the result are invalid in this version; the message
            names them and the version that wrote them.
    """
    try:
        return load_experiment(path, complete=settings_of_today)
    except ConfigError as error:
        problem = error
    try:
        return load_experiment(path, without=DISPENSABLE, complete=settings_of_today)
    except ConfigError:
        raise ConfigError(
            f"{path} was written by {writer_of(path)} and is not valid in {pretrain.__version__}: {problem}. Use the "
            "version that wrote it, or correct the file"
        ) from problem


def writer_of(path: Path) -> str:
    """The version that wrote a resolved config, if the file records it."""
    try:
        with open(path, errors="replace") as file:
            first = file.readline().strip()
    except OSError:
        return "an unknown version"
    return first.removeprefix(WRITTEN_BY) if first.startswith(WRITTEN_BY) else "an earlier version"


def load_file(path: str | Path, schema: type[Model]) -> Model:
    """Reads a YAML file that is not an experiment, as strictly as one.

    Args:
        path: the file; ``extends`` works as in an experiment.
        schema: model of its top level.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong: all problems, with file, line, key and remedy.
    """
    reader = Reader()
    return _validated(reader.read(str(path)), schema, reader, str(path))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The merged content of a YAML file and those it extends, not validated against a schema; for display.

    Raises:
        ConfigError: the file cannot be read.
    """
    return typed.free_value(Reader().read(str(path)))


def load_settings(overrides: Sequence[str], schema: type[Model]) -> Model:
    """Reads one section from ``key.sub=value`` alone.

    Args:
        overrides: as on the command line.
        schema: model of the section.

    Raises:
        ConfigError: settings are missing or wrong: all problems, with key and remedy.
    """
    reader = Reader()
    settings = reader.overridden(Section(where=COMMAND_LINE), overrides)
    return _validated(settings, schema, reader, COMMAND_LINE)


def _validated(settings: Section, schema: type[Model], reader: Reader, where: str) -> Model:
    """The typed settings; raises ConfigError with all problems, those of the reader first."""
    loaded, problems = typed.validate(settings, schema, where)
    problems = reader.problems + problems
    if loaded is not None and not problems:
        return loaded
    if len(problems) == 1:
        raise ConfigError(problems[0])
    raise ConfigError(f"{len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems))


def _provenance(settings: Section, experiment: Experiment) -> dict[str, str]:
    written = dict(tree.places(settings))
    found = {key: DEFAULT for key, _ in changes.flatten(_complete_settings(experiment))}
    return found | written


def _complete_settings(section: BaseModel) -> dict[str, Any]:
    """The section's settings and defaults as JSON values, without keys that its other settings leave without effect."""
    values = section.model_dump(by_alias=True, mode="json")
    ignored = section.ignored() if isinstance(section, Strict) else {}
    names = {info.alias or name: name for name, info in type(section).model_fields.items()}
    return {
        key: _complete_value(getattr(section, names[key]), values[key])
        for key in fields_of(type(section))
        if names[key] not in ignored
    }


def _complete_value(value: Any, dumped: Any) -> Any:
    """A section, or sections by name, as ``_complete_settings`` gives them; anything else as it was dumped."""
    if isinstance(value, BaseModel):
        return _complete_settings(value)
    if isinstance(value, dict):
        return {key: _complete_value(part, dumped[key]) for key, part in value.items()}
    return dumped


class _Dumper(yaml.SafeDumper):
    """Writes short lists on one line and quotes text that would be read as a number, a boolean or null."""


def _dump_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = typed.free_value(Leaf(text, False, "")) == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


def _dump_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(str, _dump_text)
_Dumper.add_representer(list, _dump_list)
