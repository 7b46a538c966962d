"""The Jinja2 environment of every HTML page: values are escaped, and secrets in them are redacted.

A page is one file: style, script and pictures are in it, so it needs no network.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pretrain.names import printable, printable_in
from pretrain.redaction import redacted, redacted_in

FOLDER = Path(__file__).resolve().parent
_CONFIG_WORDS = {True: "true", False: "false"}


def render(template: str, **content: Any) -> str:
    """The page that a template of ``templates/`` makes of its content."""
    return printable(_environment().get_template(template).render(**content))


def asset(name: str) -> Markup:
    """A file of ``assets/``, as it is."""
    return Markup((FOLDER / "assets" / name).read_text(encoding="utf-8"))


def when(seconds: float) -> str:
    """A point in time, empty for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def number(value: float) -> str:
    """A number in a short, readable form."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.4g}"


def as_data(value: Any) -> Markup:
    """A value as JSON that may be inside a ``script`` element."""
    content = json.dumps(redacted_in(printable_in(value)), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Markup(content)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        finalize=_without_secrets,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"when": when, "number": number, "as_data": as_data}
    environment.globals |= {"asset": asset}
    return environment


def _without_secrets(value: Any) -> Any:
    """The text of a value, as a config writes it; what is HTML already stays."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return "null"
    return _CONFIG_WORDS[value] if isinstance(value, bool) else redacted(str(value))
