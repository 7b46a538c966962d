"""Loads YAML files and command-line overrides into one typed experiment, with the origin of each setting.

This is the only module that reads or writes YAML. Files are parsed to nodes with line numbers; values are typed by
the schema (typed.py), not by YAML.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

import pretrain
from pretrain.config import changes, tree, typed
from pretrain.config.overrides import is_yaml
from pretrain.config.schema.base import Strict, fields_of
from pretrain.config.schema.experiment import Experiment
from pretrain.config.tree import COMMAND_LINE, Items, Leaf, Node, Section
from pretrain.errors import ConfigError
from pretrain.redaction import redacted_in

Model = TypeVar("Model", bound=BaseModel)

DEFAULT = "default"
DEEPEST = 30  # levels of sections and lists
LARGEST_FILE_BYTES = 4 << 20
WRITTEN_BY = "# vit-pretrain "  # and the version, as the first line of a resolved config
_CORE_TAG_NAMES = ("str", "int", "float", "bool", "null", "timestamp", "map", "seq", "value")
_CORE_TAGS = {f"tag:yaml.org,2002:{name}" for name in _CORE_TAG_NAMES}


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
) -> Resolved:
    """Reads a config: the files it ``extends``, then the file itself, then the cluster file, then the overrides.

    Args:
        path: YAML of the experiment. ``extends`` names a file or a list of files, relative to the file it is in.
        cluster: YAML whose keys are those of the ``cluster`` section.
        overrides: ``key.sub=value``; the value is text as it is, typed by its key, or a list, a section or a quoted
            string of YAML.
        without: sections of the file to skip.

    Raises:
        ConfigError: a file cannot be read, or settings are wrong: all problems, with file, line, key and remedy.
    """
    reader = _Reader()
    settings: Node = reader.read(str(path))
    assert isinstance(settings, Section)
    settings = Section({key: node for key, node in settings.children.items() if key not in without}, settings.where)
    if cluster is not None and (machines := reader.read(str(cluster))).children:
        settings = tree.merge(settings, Section({"cluster": machines}))
    for override in overrides:
        settings = tree.merge(settings, reader.override(override))
    assert isinstance(settings, Section)
    experiment, problems = typed.validate(settings, Experiment, str(path))
    problems = reader.problems + problems
    if problems or experiment is None:
        raise ConfigError(_join(problems))
    return Resolved(experiment, _provenance(settings, experiment), str(path))


def load_file(path: str | Path, schema: type[Model]) -> Model:
    """Reads a YAML file that is not an experiment, as strictly as one.

    Args:
        path: the file; ``extends`` works as in an experiment.
        schema: model of its top level.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong: all problems, with file, line, key and remedy.
    """
    reader = _Reader()
    settings = reader.read(str(path))
    loaded, problems = typed.validate(settings, schema, str(path))
    if reader.problems or problems or loaded is None:
        raise ConfigError(_join(reader.problems + problems))
    return loaded


def read_settings(path: str | Path) -> dict[str, Any]:
    """The merged content of a YAML file and those it extends, not validated against a schema; for display.

    Raises:
        ConfigError: the file cannot be read.
    """
    return typed.free_value(_Reader().read(str(path)))


def load_settings(overrides: Sequence[str], schema: type[Model]) -> Model:
    """Reads one section from ``key.sub=value`` alone.

    Args:
        overrides: as on the command line.
        schema: model of the section.

    Raises:
        ConfigError: settings are missing or wrong: all problems, with key and remedy.
    """
    reader = _Reader()
    settings = Section(where=COMMAND_LINE)
    for override in overrides:
        settings = tree.merge(settings, reader.override(override))
    assert isinstance(settings, Section)
    loaded, problems = typed.validate(settings, schema, COMMAND_LINE)
    if reader.problems or problems or loaded is None:
        raise ConfigError(_join(reader.problems + problems))
    return loaded


def _join(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems)


def _provenance(settings: Section, experiment: Experiment) -> dict[str, str]:
    written = dict(tree.places(settings))
    found = {key: DEFAULT for key, _ in changes.flatten(_complete_settings(experiment))}
    return found | written


class _Reader:
    """Reads files and overrides into trees and collects the problems that do not prevent further reading."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, path: str, chain: tuple[str, ...] = ()) -> Section:
        """The tree of a file, merged over the files it extends."""
        if os.path.realpath(path) in map(os.path.realpath, chain):
            raise ConfigError(f"extends goes round in a circle: {' → '.join((*chain, path))}; remove one of them")
        section = self._to_section(self._compose(_read_bytes(path, chain), path), path)
        parents = section.children.pop("extends", None)
        below = Section(where=section.where)
        for parent in self._parents(parents):
            name = os.path.normpath(os.path.join(os.path.dirname(path), parent.text))
            below = tree.merge(below, self.read(name, (*chain, path)))
        merged = tree.merge(below, section)
        assert isinstance(merged, Section)
        return merged

    def override(self, text: str) -> Section:
        """The tree of one ``key.sub=value``."""
        key, equals, value = text.partition("=")
        if not equals or not key or not all(key.split(".")) or key != key.strip():
            raise ConfigError(f"{COMMAND_LINE}: {text!r} is not an override; write key.sub=value, like optim.lr=3e-4")
        return tree.nest(key, self._override_value(value.strip(), f" (in {text!r})"), COMMAND_LINE)

    def _override_value(self, value: str, hint: str) -> Node:
        """Takes text literally unless it begins like a YAML list, mapping or quoted string."""
        if not is_yaml(value):
            return Leaf(value, False, COMMAND_LINE)
        node = self._compose(value, COMMAND_LINE, hint=hint)
        assert node is not None
        if node.end_mark.index != len(value) or _has_comment(value):
            raise ConfigError(f"{COMMAND_LINE}: text after the value, or a comment in it{hint}; quote all of it")
        return self._to_node(node, COMMAND_LINE)

    def _compose(self, text: bytes | str, name: str, hint: str = "") -> yaml.Node | None:
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except RecursionError as error:
            raise ConfigError(f"{name}: nested more than {DEEPEST} levels deep{hint}; no setting is") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{name}:{mark.line + 1}" if mark is not None and name != COMMAND_LINE else name
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
            raise ConfigError(f"{where}: not valid YAML: {problem}{hint}") from error

    def _parents(self, node: Node | None) -> list[Leaf]:
        items = [] if node is None else node.items if isinstance(node, Items) else [node]
        parents = [item for item in items if isinstance(item, Leaf) and not item.is_null]
        if node is not None and (len(parents) != len(items) or not items):
            raise ConfigError(f"{node.where}: extends: expected a file or a list of files, relative to this file")
        return parents

    def _to_section(self, node: yaml.Node | None, path: str) -> Section:
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: expected keys and values (key: value) at the top level, the file has none")
        section = self._to_node(node, path)
        assert isinstance(section, Section)
        return Section(section.children, path)

    def _to_node(self, node: yaml.Node, path: str, seen: set[int] | None = None, depth: int = 0) -> Node:
        seen = set() if seen is None else seen
        where = path if path == COMMAND_LINE else f"{path}:{node.start_mark.line + 1}"
        if id(node) in seen:
            raise ConfigError(f"{where}: aliases (*name) are not supported; write the value again, or use extends")
        if depth > DEEPEST:
            raise ConfigError(f"{where}: nested more than {DEEPEST} levels deep; no setting is")
        seen.add(id(node))
        if node.tag not in _CORE_TAGS:
            raise ConfigError(f"{where}: the tag {node.tag} is not supported; write a plain value")
        if isinstance(node, yaml.MappingNode):
            return self._to_mapping(node, path, where, seen, depth)
        if isinstance(node, yaml.SequenceNode):
            return Items([self._to_node(item, path, seen, depth + 1) for item in node.value], where)
        assert isinstance(node, yaml.ScalarNode)
        return Leaf(node.value, node.style is not None, where)

    def _to_mapping(self, node: yaml.MappingNode, path: str, where: str, seen: set[int], depth: int) -> Section:
        section = Section(where=where)
        for key_node, value_node in node.value:
            line = path if path == COMMAND_LINE else f"{path}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                raise ConfigError(f"{line}: a key must be a word (merge keys << are not supported: use extends)")
            key = key_node.value
            child = self._to_node(value_node, path, seen, depth + 1)
            if isinstance(child, Section):
                child = Section(child.children, line)
            if key in section.children:
                first = section.children[key].where
                self.problems.append(f"{line}: {key}: duplicate key, first written at {first}; remove one of them")
            section.children[key] = child
        return section


def _has_comment(text: str) -> bool:
    """Whether YAML would ignore part of the text."""
    tokens = (token for token in yaml.scan(text) if isinstance(token, yaml.ScalarToken))
    inside = {place for token in tokens for place in range(token.start_mark.index, token.end_mark.index)}
    return any(place not in inside for place, letter in enumerate(text) if letter == "#")


def _read_bytes(path: str, chain: tuple[str, ...]) -> bytes:
    named = f" (extended by {chain[-1]})" if chain else ""
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot read the config{named}: {reason}; check the path") from error
    if len(text) > LARGEST_FILE_BYTES:
        raise ConfigError(f"{path}: more than {LARGEST_FILE_BYTES:,} bytes{named}, which no config has; check the path")
    return text


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
