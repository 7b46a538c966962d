"""``python -m pipelines collect``: all transfers of a run as one table, beside the paper's figures."""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.probe import RESULT_FILE as PROBE_FILE
from pipelines.published import published
from pipelines.sweep import RESULT_FILE as SWEEP_FILE
from pretrain.errors import DataError
from pretrain.files import write_atomic

SUFFIXES = (".md", ".csv", ".html")
EXAMPLES = """\
examples:
  python -m pipelines collect runs/vit_l16_i21k_90ep_transfer
  python -m pipelines collect runs/a_transfer runs/b_transfer --out results/transfer.md --out results/transfer.html
"""
HEAD = ("data set", "from", "metric", "mean", "std", "seeds", "best trial", "published", "device-hours", "command")


@dataclass(frozen=True)
class Row:
    """One cell of the results: a metric of one sweep or probe. Accuracies in per cent.

    ``best``: the settings that were chosen; ``fine_tuned``: of a sweep, which the paper's figures are for.
    """

    dataset: str
    source: str
    metric: str
    mean: float
    std: float
    num_seeds: int
    best: str
    hours: float
    command: str
    fine_tuned: bool

    @property
    def published(self) -> str:
        """The paper's figures on this data set, which are of fine-tuned models."""
        if not (self.fine_tuned and self.metric.endswith("/top1")):
            return ""
        return "; ".join(f"{row.model} {row.value:.2f}" for row in published(self.dataset))

    def cells(self) -> tuple[str, ...]:
        """In the order of ``HEAD``."""
        figures = (f"{self.mean:.2f}", f"{self.std:.2f}", str(self.num_seeds))
        return (
            *(self.dataset, self.source, self.metric),
            *figures,
            *(self.best, self.published, f"{self.hours:.2f}", self.command),
        )


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = _parser().parse_args(argv)
    for out in args.out:
        if out.suffix not in SUFFIXES:
            raise DataError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}, which says the format")
    rows = [row for folder in args.folders for row in rows_of(folder)]
    rows.sort(key=lambda row: (row.dataset, row.source, row.metric))
    print(markdown(rows))
    for out in args.out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, WRITERS[out.suffix](rows))
    return 0


def rows_of(folder: Path) -> Iterator[Row]:
    """A row for each metric of every finished sweep and probe below a folder.

    Raises:
        DataError: no such folder, nothing finished in it, or a result that cannot be read.
    """
    found = sorted(path for name in READERS for path in folder.rglob(name)) if folder.is_dir() else []
    if not found:
        raise DataError(
            f"{folder}: no {' or '.join(READERS)} in or below it; run python -m pipelines sweep or probe to its end, "
            "or name its folder"
        )
    for path in found:
        try:
            yield from READERS[path.name](path, json.loads(path.read_text()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = "sweep" if path.name == SWEEP_FILE else "probe"
            raise DataError(f"{path}: not the result of a {what} ({error!r}); run it again") from error


def _of_sweep(path: Path, result: dict[str, Any]) -> Iterator[Row]:
    jobs = [*result["trials"], *result["runs"]]
    for metric, spread in result["test"].items():
        if spread["mean"] is None:
            continue
        yield Row(
            dataset=path.parent.name,
            source=result["from"] or "scratch",
            metric=metric,
            mean=100 * spread["mean"],
            std=100 * spread["std"],
            num_seeds=len(spread["values"]),
            best=result["best"].removeprefix("dev_"),
            hours=sum(job["seconds"] for job in jobs) * result["ranks"] / 3600,
            command=result["command"],
            fine_tuned=True,
        )


def _of_probe(path: Path, result: dict[str, Any]) -> Iterator[Row]:
    for metric, spread in result["test"].items():
        yield Row(
            dataset=path.parent.name,
            source=result["from"],
            metric=metric,
            mean=100 * spread["mean"],
            std=100 * spread["std"],
            num_seeds=spread["num_seeds"],
            best=f"l2 {result['chosen']['l2']:g}" if metric.startswith("logistic") else "",
            hours=result["seconds"] * result["ranks"] / 3600,
            command=result["command"],
            fine_tuned=False,
        )


READERS: dict[str, Callable[[Path, dict[str, Any]], Iterator[Row]]] = {SWEEP_FILE: _of_sweep, PROBE_FILE: _of_probe}


def markdown(rows: Sequence[Row]) -> str:
    """A table that GitHub shows."""
    lines = [HEAD, ("---",) * len(HEAD), *(_escaped(row.cells()) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _escaped(cells: Sequence[str]) -> tuple[str, ...]:
    *figures, command = (cell.replace("|", "\\|") for cell in cells)
    return (*figures, f"`{command}`")


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *(row.cells() for row in rows)])
    return text.getvalue()


def _html(rows: Sequence[Row]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(row.cells(), "td") for row in rows)
    return (
        "<!doctype html><meta charset=utf-8><title>Transfer</title>"
        "<style>body{font:14px sans-serif;color-scheme:light dark}table{border-collapse:collapse}"
        "td,th{border:1px solid #8886;padding:.3em .6em;text-align:left}td:last-child{font-family:monospace}</style>"
        f"<table>\n{line(HEAD, 'th')}\n{body}\n</table>\n"
    )


WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {".md": markdown, ".csv": _csv, ".html": _html}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines collect",
        description="Puts the results of sweeps and probes into one table, beside the published ones.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="sweeps and probes, or folders of them")
    parser.add_argument("--out", type=Path, action="append", default=[], help="a .md, .csv or .html file; repeatable")
    return parser
