"""``key.sub=value`` as it is written on a command line, by people and by stages that start runs.

A value is text as it is, so that a path may hold `` #`` or ``: ``; its key gives it a type. Only what begins as a list,
a section or a quoted string of YAML is read as that.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pretrain.config.tree import COMMAND_LINE, Leaf

_NOT_IN_YAML = re.compile("[\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
YAML_OPENERS = ("[", "{", '"', "'")


def is_yaml(value: str) -> bool:
    """Whether the text behind ``key=`` is YAML; otherwise it is the value itself."""
    return value.startswith(YAML_OPENERS)


def override(key: str, value: Any) -> str:
    """``key=value`` that is read back as the same value."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    means_itself = not is_yaml(value) and value == value.strip() and not Leaf(value, False, COMMAND_LINE).is_null
    return f"{key}={value if means_itself else _quoted(value)}"


def _quoted(text: str) -> str:
    """A double-quoted string of YAML; JSON's, but characters beyond 16 bits stay as they are."""
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))
