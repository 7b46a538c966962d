"""Generates the documentation page of all config keys from the models.

python -m pretrain.config.keys > docs/config.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pretrain.config.changes import decides_result
from pretrain.config.devices import DeviceTable
from pretrain.config.explained import describe, enumerated
from pretrain.config.schema.base import Choice, choice_of, fields_of, models_in
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.jobs import ChainConfig

Kind = Choice | type[BaseModel]

REQUIRED = "*required*"
SECTION_IN_LISTS = "NUMBER"
SECTION_BY_NAME = "NAME"
INTRODUCTION = """\
# Config keys

Generated from the schema: `python -m pretrain.config.keys > docs/config.md`. Editors that read the first line of our \
configs complete and check these keys while you type.

An experiment is one YAML file, which may extend others (`extends: base.yaml`, or a list; paths are relative to the \
file). Any key can be overridden on the command line: `optim.lr=3e-4 "optim.betas=[0.9, 0.95]"`. There, a value is \
taken literally (so a path may contain `#` or `:`) unless it begins with `[`, `{` or a quote, which makes it YAML. A \
file given with `--cluster` has the keys of the section `cluster` at its top level. Sections are merged key by key; an \
empty one (`evaluation.sets={}`) clears the inherited section, and a list of sections is replaced as one value. \
`--print-config` shows the resolved config.

Durations are written as `90 epochs`, `20_000 steps` or `303e6 samples`. Keys marked ⟳ do not decide the result and \
may change on a resume. Changes to any other key must be allowed by name ([checkpoints](checkpoints.md)).
"""
FILES: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The experiment", "", Experiment),
    ("A chain of jobs", "The file of `python -m pipelines chain` ([Slurm](slurm.md)).", ChainConfig),
    ("Devices", "[configs/devices.yaml](../configs/devices.yaml), or the file given with `--devices`.", DeviceTable),
)


@dataclass(frozen=True)
class Key:
    """One key: dotted name, accepted values, default and meaning, in words."""

    name: str
    accepts: str
    default: str
    meaning: str


@dataclass
class KeySection:
    """The keys of one section; ``name`` is empty at the top of a file."""

    name: str
    about: str
    keys: list[Key] = field(default_factory=list)


def sections_of(kind: Kind, prefix: str = "", about: str | None = None) -> Iterator[KeySection]:
    """The section of a model (or union of models) followed by its subsections, depth first."""
    section = KeySection(prefix, _about(kind) if about is None else about)
    below: list[KeySection] = []
    for name, info, meaning in _fields(kind):
        key = f"{prefix}.{name}" if prefix else name
        section_here = _kind_of(info.annotation)
        part = "" if section_here else _part_of(info.annotation)
        inner = section_here or (_inner(info.annotation) if part else None)
        if inner is None or part:
            section.keys.append(Key(key, _accepts(info, inner), _default(info), meaning))
        if inner is not None:
            below += sections_of(inner, f"{key}.{part}" if part else key, None if part else _section_about(info, inner))
    if isinstance(kind, Choice):
        section.keys.insert(0, _name_row(kind, prefix))
    yield section
    yield from below


def _fields(kind: Kind) -> Iterator[tuple[str, FieldInfo, str]]:
    """Key, field and meaning. In a union, a key appears once per meaning, prefixed with the names it applies to."""
    if not isinstance(kind, Choice):
        yield from ((key, info, _meaning(info)) for key, info in fields_of(kind).items())
        return
    for key in kind.fields:
        owners: dict[tuple[str, ...], list[str]] = {}
        for name in kind.owners(key) if key != kind.key else ():
            info = fields_of(kind.models[name])[key]
            if isinstance(info.json_schema_extra, dict) and "const" in info.json_schema_extra:
                continue  # the key of another model, which old configs list with its default
            owners.setdefault((_accepts(info, _kind_of(info.annotation)), _default(info), _meaning(info)), []).append(
                name
            )
        for (_, _, meaning), names in owners.items():
            only = "" if len(names) == len(kind.models) else f"{', '.join(names)}: "
            yield key, fields_of(kind.models[names[0]])[key], only + meaning


def _name_row(choice: Choice, prefix: str) -> Key:
    """The key of a union whose value chooses the model."""
    meanings = [f"{name}: {_meaning(fields_of(model)[choice.key])}" for name, model in choice.models.items()]
    return Key(f"{prefix}.{choice.key}", enumerated(list(choice.models)), f"`{choice.default}`", " ".join(meanings))


def _kind_of(annotation: Any) -> Kind | None:
    """The section or union of sections in an annotation."""
    return choice_of(annotation) or next(iter(models_in(annotation)), None)


def _about(kind: Kind) -> str:
    """The first paragraph of the model's docstring (for a union: of its base class), on one line."""
    model = kind.base if isinstance(kind, Choice) else kind
    return " ".join((inspect.getdoc(model) or "").split("\n\n")[0].split())


def _section_about(info: FieldInfo, kind: Kind) -> str:
    text = info.description or _about(kind)
    optional = type(None) in get_args(info.annotation) and "null" not in text
    return f"{text} null (the default): none." if optional else text


def _inner(annotation: Any) -> Kind | None:
    """The section type of a mapping's values or a list's items."""
    kinds = [kind for kind in get_args(annotation) if kind not in (str, Ellipsis)]
    return _kind_of(kinds[0]) if len(kinds) == 1 else None


def _part_of(annotation: Any) -> str:
    """Placeholder for a name or an index in the keys below; empty for a scalar."""
    if _inner(annotation) is None:
        return ""
    return {dict: SECTION_BY_NAME, tuple: SECTION_IN_LISTS}.get(get_origin(annotation) or type(None), "")


def _accepts(info: FieldInfo, inner: Kind | None) -> str:
    if inner is not None:
        return "sections by name" if get_origin(info.annotation) is dict else "a list of sections"
    if get_origin(info.annotation) is dict:
        return "keys and values"
    return describe(info.annotation, info.metadata)


def _default(info: FieldInfo) -> str:
    if info.default_factory is not None:
        value = info.default_factory()  # type: ignore[call-arg]
    elif info.default is PydanticUndefined:
        return REQUIRED
    else:
        value = info.default
    return f"`{written(value)}`"


def written(value: Any) -> str:
    """A default as written in a YAML file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {written(part)}' for key, part in value.items())}}}"
    return str(value) if value != "" else '""'


def _meaning(info: FieldInfo) -> str:
    return " ".join((info.description or "").split())


def _cell(text: str) -> str:
    """Escapes text so that it neither ends a table cell nor becomes markup."""
    return re.sub(r"([|*])", r"\\\1", text).replace("<", "&lt;")


def _table(section: KeySection, resumes: bool) -> Iterator[str]:
    yield "| key | accepts | default | meaning |"
    yield "|---|---|---|---|"
    for key in section.keys:
        mark = " ⟳" if resumes and not decides_result(key.name) else ""
        yield f"| `{key.name}` | {_cell(key.accepts)} | {key.default} | {_cell(key.meaning)}{mark} |"


def page() -> str:
    """The complete page."""
    lines = [INTRODUCTION]
    for title, about, model in FILES:
        lines += [f"## {title}\n"] + ([f"{about}\n"] if about else [])
        for section in sections_of(model):
            if section.name:
                lines.append(f"### {section.name}\n")
            lines.append(f"{_cell(section.about)}\n")
            if section.keys:
                lines += [*_table(section, resumes=model is Experiment), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
