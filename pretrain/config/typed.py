"""Builds the typed experiment from a tree of text: parses each scalar by its key's type and reports all problems.

YAML's own type inference is not used, because it is wrong here: YAML 1.1 reads ``1e-4`` as text, ``off`` as false and
``12:30`` as 750.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pretrain.config.explained import enumerated, explained, unique
from pretrain.config.schema.base import Choice, choice_of, fields_of, models_in, options_of
from pretrain.config.schema.experiment import Experiment
from pretrain.config.tree import Items, Leaf, Node, Section
from pretrain.names import printable

Model = TypeVar("Model", bound=BaseModel)

_INT = re.compile(r"[+-]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[+-]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][+-]?[0-9]+)?")
_BOOL = {word: value for words, value in (("true yes on", True), ("false no off", False)) for word in words.split()}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_ABSENT = object()
LARGEST_INT = 2**63 - 1
MOST_DIGITS = 40


def validate(tree: Section, schema: type[Model], file: str) -> tuple[Model | None, list[str]]:
    """Reads ``tree`` as ``schema``.

    Args:
        tree: the merged settings.
        schema: model of the top level.
        file: reported as the location of a missing key if there is no better one.

    Returns:
        The typed settings, or None and all problems found: one line each, with location, key and remedy.
    """
    problems: list[str] = []
    values = _section_values(tree, fields_of(schema), "", problems)
    try:
        typed = schema.model_validate(values, strict=True)
    except ValidationError as error:
        problems.extend(explained(error, tree, schema, file))
        return None, unique(problems)
    return (None, problems) if problems else (typed, [])


def known_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields every dotted key of ``schema``, sections included."""
    for key, info in fields_of(schema).items():
        yield prefix + key
        inner = (known_keys(section, f"{prefix}{key}.") for section in models_in(info.annotation))
        yield from dict.fromkeys(chain.from_iterable(inner))  # members of a union share keys


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known dotted key that ``key`` was probably meant to be."""
    known = list(known)
    leaf, parent = key.rpartition(".")[2], key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    same_name = [name for name in known if name.rpartition(".")[2] == leaf]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.75) or same_name[:1]
    return (near or difflib.get_close_matches(key, known, n=1, cutoff=0.7) or [None])[0]


def free_value(node: Node) -> Any:
    """Reads a value whose key has no type: null, true/false/yes/no/on/off, a number (also ``1e-4``), else text."""
    if isinstance(node, Section):
        return {key: free_value(child) for key, child in node.children.items()}
    if isinstance(node, Items):
        return [free_value(item) for item in node.items]
    if node.quoted:
        return node.text
    return None if node.is_null else _scalar(node.text, (bool, int, float))


def _section_values(tree: Section, fields: Mapping[str, FieldInfo], prefix: str, problems: list[str]) -> dict[str, Any]:
    values = {}
    for key, node in tree.children.items():
        if key not in fields:
            problems.append(_unknown_key(prefix + key, node.where, list(fields)))
            continue
        value = _value(node, fields[key].annotation, prefix + key, problems)
        if value is not _ABSENT:
            values[key] = value
    return values


def _chosen_values(tree: Section, choice: Choice, key: str, problems: list[str]) -> dict[str, Any]:
    """Reads a member of a union. An unknown name, which is reported later, accepts the keys of all members."""
    chosen = tree.children.get(choice.key)
    name = choice.default if chosen is None else chosen.text if isinstance(chosen, Leaf) else ""
    if name not in choice.models:
        return _section_values(tree, choice.fields, f"{key}.", problems)
    fields = fields_of(choice.models[name])
    implied = choice.models[name].implied
    kept = {own: node for own, node in tree.children.items() if own not in implied or free_value(node) != implied[own]}
    foreign = {own: choice.owners(own) for own in kept if own not in fields and choice.owners(own)}
    for own, owners in foreign.items():
        owner = f"{choice.key}: {enumerated(owners)}"
        where = tree.children[own].where
        problems.append(f"{where}: {key}: {own} belongs to {owner}; with {name} it would be ignored, so remove it")
    left = {own: node for own, node in kept.items() if own not in foreign}
    return _section_values(Section(left, tree.where), fields, f"{key}.", problems)


def _unknown_key(key: str, where: str, siblings: list[str]) -> str:
    parent = key.rpartition(".")[0]
    candidates = [f"{parent}.{name}" if parent else name for name in siblings] + list(known_keys(Experiment))
    near = nearest_key(key, candidates)
    hint = f"did you mean {near}?" if near else f"allowed: {', '.join(siblings)}"
    return f"{where}: {key}: unknown key; {hint}"


def _value(node: Node, annotation: Any, key: str, problems: list[str]) -> Any:
    options = options_of(annotation)
    choice, sections = choice_of(annotation), models_in(annotation)
    keys = choice.fields if choice is not None else fields_of(sections[0]) if sections else {}
    if isinstance(node, Leaf) and not _is_text(node.text):
        problems.append(f"{node.where}: {key}: {printable(node.text)!r} has a character that no text may have")
        return _ABSENT
    if sections:
        if isinstance(node, Section) and choice is not None:
            return _chosen_values(node, choice, key, problems)
        if isinstance(node, Section):
            return _section_values(node, keys, f"{key}.", problems)
        if isinstance(node, Leaf) and node.is_null:
            return _ABSENT  # null resets a section to its defaults
        problems.append(f"{node.where}: {key}: expected a section with the keys {', '.join(keys)}")
        return _ABSENT
    mapping = next((option for option in options if get_origin(option) is dict), None)
    if mapping is not None:
        return _mapping_values(node, get_args(mapping)[1], key, problems)
    if isinstance(node, Items):
        return _tuple_values(node, options, key, problems)
    if isinstance(node, Leaf) and not node.quoted and Any not in options:
        return None if node.is_null else _scalar(node.text, options)
    return free_value(node)


def _mapping_values(node: Node, annotation: Any, key: str, problems: list[str]) -> Any:
    if isinstance(node, Leaf) and node.is_null:
        return _ABSENT
    if not isinstance(node, Section):
        return free_value(node)
    values = {name: _value(child, annotation, f"{key}.{name}", problems) for name, child in node.children.items()}
    return {name: value for name, value in values.items() if value is not _ABSENT}


def _tuple_values(node: Items, options: tuple[Any, ...], key: str, problems: list[str]) -> Any:
    arguments = next((get_args(option) for option in options if get_origin(option) is tuple), None)
    if not arguments:
        return free_value(node)
    variadic = len(arguments) == 2 and arguments[1] is Ellipsis
    element = [arguments[0] if variadic else arguments[min(i, len(arguments) - 1)] for i in range(len(node.items))]
    return tuple(_value(item, kind, key, problems) for item, kind in zip(node.items, element, strict=True))


def _scalar(text: str, options: tuple[Any, ...]) -> Any:
    for literal in (value for option in options if get_origin(option) is Literal for value in get_args(option)):
        if str(literal) == text:
            return literal
    if bool in options and text.lower() in _BOOL:
        return _BOOL[text.lower()]
    if int in options and _INT.fullmatch(text):
        return int(text.replace("_", "")) if _fits(text) else text
    if (float in options or int in options) and _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if float in options and math.isfinite(number):
            return number
        if abs(number) < LARGEST_INT and number.is_integer():
            return int(number)  # 303e6 for a count
    return text


def _fits(digits: str) -> bool:
    """Whether an integer fits numpy's and torch's types; checks its length before converting the digits."""
    return len(digits) <= MOST_DIGITS and abs(int(digits.replace("_", ""))) <= LARGEST_INT


def _is_text(text: str) -> bool:
    """Whether text can be a name or a path: no control characters, and encodable for the file system."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return _CONTROL.search(text) is None
