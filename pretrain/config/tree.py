"""Settings as written: untyped text with its location. YAML files and overrides are read and merged into one such tree.

The text after ``key=`` in an override is taken literally, so that a path may contain `` #`` or ``: ``; its key
determines its type. Only a value that begins like a YAML list, mapping or quoted string is parsed as YAML.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pretrain.errors import ConfigError
from pretrain.shipped_files import RECIPE, located

COMMAND_LINE = "command line"
DEEPEST = 30  # levels of sections and lists
LARGEST_FILE_BYTES = 4 << 20
_CORE_TAG_NAMES = ("str", "int", "float", "bool", "null", "timestamp", "map", "seq", "value")
_CORE_TAGS = {f"tag:yaml.org,2002:{name}" for name in _CORE_TAG_NAMES}
_NOT_IN_YAML = re.compile("[\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
YAML_OPENERS = ("[", "{", '"', "'")


@dataclass(frozen=True)
class Leaf:
    """One scalar as written. ``quoted`` text stays a string, plain text is parsed by the type of its key."""

    text: str
    quoted: bool
    where: str

    @property
    def is_null(self) -> bool:
        return not self.quoted and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Items:
    """A list."""

    items: list[Node]
    where: str


@dataclass(frozen=True)
class Section:
    """Keys and their values, in the order written."""

    children: dict[str, Node] = field(default_factory=dict)
    where: str = ""


Node = Leaf | Items | Section


def merge(base: Node, top: Node) -> Node:
    """Merges ``top`` over ``base``: sections merge key by key, anything else replaces the old value.

    An empty section in ``top`` (``evaluation.sets: {}``) clears the one in ``base``.
    """
    if not (isinstance(base, Section) and isinstance(top, Section)):
        return top
    children = dict(base.children)
    for key, node in top.children.items():
        empties = isinstance(node, Section) and not node.children
        children[key] = merge(children[key], node) if key in children and not empties else node
    return Section(children, base.where if top.where == COMMAND_LINE and base.where else top.where)


def nest(key: str, node: Node, where: str) -> Section:
    """The section that holds ``node`` under the dotted ``key``."""
    for part in reversed(key.split(".")):
        node = Section({part: node}, where)
    assert isinstance(node, Section)
    return node


def written(value: Any, where: str) -> Node:
    """A typed JSON value as a tree, as if it were written at ``where``."""
    if isinstance(value, dict):
        return Section({str(key): written(part, where) for key, part in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return Items([written(part, where) for part in value], where)
    return Leaf(value if isinstance(value, str) else json.dumps(value), isinstance(value, str), where)


def find(node: Node, key: str) -> Node | None:
    """The node at a dotted key of ``node``; None: nothing."""
    for part in key.split("."):
        if not isinstance(node, Section) or part not in node.children:
            return None
        node = node.children[part]
    return node


def places(node: Node, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, where it was written) for every scalar and list below ``node``, and for empty sections."""
    if isinstance(node, Section) and (node.children or not prefix):
        for key, child in node.children.items():
            yield from places(child, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, node.where


def is_yaml(value: str) -> bool:
    """Whether the text after ``key=`` is parsed as YAML; otherwise it is taken literally."""
    return value.startswith(YAML_OPENERS)


def override(key: str, value: Any) -> str:
    """Writes ``key=value`` such that it is read back as the same value."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    means_itself = not is_yaml(value) and value == value.strip() and not Leaf(value, False, COMMAND_LINE).is_null
    return f"{key}={value if means_itself else _quoted(value)}"


def _quoted(text: str) -> str:
    """A double-quoted YAML string: JSON's, except that characters beyond 16 bits are not escaped."""
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


class Reader:
    """Reads files and overrides into trees and collects the problems that do not prevent further reading."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, path: str, chain: tuple[str, ...] = ()) -> Section:
        """The tree of a file (also ``recipe:NAME``), merged over the files it extends."""
        path = located(path)
        if os.path.realpath(path) in map(os.path.realpath, chain):
            raise ConfigError(f"extends goes round in a circle: {' → '.join((*chain, path))}; remove one of them")
        section = self._to_section(self._compose(_read_bytes(path, chain), path), path)
        parents = section.children.pop("extends", None)
        below = Section(where=section.where)
        for parent in self._parents(parents):
            name = parent.text
            if not name.startswith(RECIPE):
                name = os.path.normpath(os.path.join(os.path.dirname(path), name))
            below = merge(below, self.read(name, (*chain, path)))
        merged = merge(below, section)
        assert isinstance(merged, Section)
        return merged

    def override(self, text: str) -> Section:
        """The tree of one ``key.sub=value``."""
        key, equals, value = text.partition("=")
        if not equals or not key or not all(key.split(".")) or key != key.strip():
            raise ConfigError(f"{COMMAND_LINE}: {text!r} is not an override; write key.sub=value, like optim.lr=3e-4")
        return nest(key, self._override_value(value.strip(), f" (in {text!r})"), COMMAND_LINE)

    def overridden(self, settings: Node, overrides: Sequence[str]) -> Section:
        """The settings with each ``key.sub=value`` merged over them, in turn."""
        for text in overrides:
            settings = merge(settings, self.override(text))
        assert isinstance(settings, Section)
        return settings

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
