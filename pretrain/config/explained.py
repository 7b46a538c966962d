"""Turns pydantic's messages into the user's terms: where the setting was written, its key and a remedy."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pretrain.config.duration import Duration, Interval, Moment
from pretrain.config.schema.base import choice_of, fields_of, models_in, options_of
from pretrain.config.subset import Subset
from pretrain.config.tree import Items, Leaf, Node, Section

MOST_SHOWN = 200  # characters of an invalid value


class _Place(NamedTuple):
    """Where one of pydantic's errors belongs: dotted key, ``file:line``, the value there and the type expected."""

    key: str
    where: str
    node: Node
    kind: Any
    info: FieldInfo | None


def explained(error: ValidationError, tree: Section, schema: type[BaseModel], file: str) -> Iterator[str]:
    wrong: dict[str, tuple[int, str]] = {}  # by key: a union gives an error per branch; keep the deepest
    for detail in error.errors(include_url=False):
        loc = detail["loc"]
        place = _locate(loc, tree, schema, file)
        key, where, node, info = place.key, place.where, place.node, place.info
        message = str(detail.get("ctx", {}).get("error", detail["msg"]))
        if detail["type"] == "union_tag_invalid":
            yield _unknown_name(place)
        elif detail["type"] == "missing" and isinstance(loc[-1], str):
            yield f"{where}: {key} is missing" + (f": {info.description}" if info and info.description else "")
        elif detail["type"] == "value_error" and isinstance(node, Section):
            mentioned = [word for word in re.findall(r"[a-z_]+", message) if word in node.children]
            line = node.children[mentioned[0]].where if mentioned else where
            yield f"{line}: {key}: {message}" if key else f"{line}: {message}"
        elif detail["type"] == "value_error" or info is None:
            yield f"{where}: {key}: {message}"
        elif len(loc) > wrong.get(key, (0, ""))[0]:
            wrong[key] = (len(loc), f"{where}: {key}: {_wrong_value(node, info)}")
    yield from (message for _, message in wrong.values())


def _unknown_name(place: _Place) -> str:
    """Describes the error of a section whose name is not one of its union's."""
    choice = choice_of(place.kind)
    assert choice is not None and isinstance(place.node, Section)
    name = place.node.children[choice.key]
    return f"{name.where}: {place.key}.{choice.key}: {_shown(name)} is not {enumerated(list(choice.models))}"


def _locate(loc: tuple[int | str, ...], tree: Section, schema: type[BaseModel], file: str) -> _Place:
    """Follows pydantic's location through tree and schema, skipping the parts it adds for branches of a union."""
    node: Node = tree
    kind: Any = schema
    info: FieldInfo | None = None
    where, path = file, []
    for part in loc:
        if isinstance(node, Items) and isinstance(part, int):
            if part < len(node.items):
                node, where = node.items[part], node.items[part].where
            kind = next((get_args(option)[0] for option in options_of(kind) if get_origin(option) is tuple), kind)
            continue
        choice, sections = choice_of(kind), models_in(kind)
        mapping = next((option for option in options_of(kind) if get_origin(option) is dict), None)
        if choice is not None:
            kind = choice.models[str(part)]
            continue
        if sections and part in fields_of(sections[0]):
            info = fields_of(sections[0])[str(part)]
            kind = info.annotation
        elif mapping is not None:
            info, kind = None, get_args(mapping)[1]
        else:
            continue  # the name of a branch
        path.append(str(part))
        if isinstance(node, Section) and part in node.children:
            node = node.children[str(part)]
            where = node.where
        else:
            node = Section(where=where)
    return _Place(".".join(path), where, node, kind, info)


def _wrong_value(node: Node, info: FieldInfo) -> str:
    quoted = isinstance(node, Leaf) and node.quoted and str not in options_of(info.annotation)
    return f"{_shown(node)} is not {describe(info.annotation, info.metadata)}" + (
        "; remove the quotes" if quoted else ""
    )


def _shown(node: Node) -> str:
    """The value written at a key, described in words if it is not text."""
    if not isinstance(node, Leaf):
        return "a section" if isinstance(node, Section) else "a list"
    return repr(node.text) if len(node.text) <= MOST_SHOWN else f"{node.text[:MOST_SHOWN]!r}…"


def describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Describes in words the values that a key accepts."""
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        return describe(base, [*metadata, *more])
    if get_origin(annotation) in (Union, types.UnionType):
        parts = get_args(annotation)
        words = [describe(part, metadata) for part in parts if part is not type(None)]
        return " or ".join(unique(words) + (["null"] if type(None) in parts else []))
    if get_origin(annotation) is Literal:
        return enumerated([str(value) for value in get_args(annotation)])
    if get_origin(annotation) is tuple:
        arguments = get_args(annotation)
        if arguments[-1] is Ellipsis:
            return f"a list, each {describe(arguments[0])}"
        if len(set(map(str, arguments))) > 1:
            return f"a list of {len(arguments)}: {', '.join(describe(argument) for argument in arguments)}"
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    if get_origin(annotation) is dict:
        return "a section"
    return _describe_scalar(annotation, metadata)


def _describe_scalar(annotation: Any, metadata: Iterable[Any]) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if annotation is Subset:
        return "a part of a set such as '10 %' or '50_000 samples'"
    if annotation is Duration:
        return "a duration such as '90 epochs', '20_000 steps' or '303e6 samples'"
    if annotation is Moment:
        return "0, a share of the run such as '40 %' or a duration such as '30 epochs'"
    if annotation is Interval:
        return "a duration such as '1000 steps', a time such as '15 minutes', or both: '1000 steps or 15 minutes'"
    bounds = []
    for constraint in _constraints(metadata):
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if getattr(constraint, attribute, None) is not None:
                bounds.append(f"{sign} {getattr(constraint, attribute)}")
        if getattr(constraint, "pattern", None):
            bounds.append(f"that matches {constraint.pattern}")
    return " ".join([names.get(annotation, str(annotation)), " and ".join(bounds)]).rstrip()


def _constraints(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def enumerated(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def unique(lines: list[str]) -> list[str]:
    return list(dict.fromkeys(lines))
