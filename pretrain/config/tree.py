"""Settings as written: untyped text with its location. Files and the command line are merged into one such tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

COMMAND_LINE = "command line"


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


def places(node: Node, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, where it was written) for every scalar and list below ``node``, and for empty sections."""
    if isinstance(node, Section) and (node.children or not prefix):
        for key, child in node.children.items():
            yield from places(child, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, node.where
