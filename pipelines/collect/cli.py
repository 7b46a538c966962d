"""``python -m pipelines collect``: all transfers of a run as one table, next to the paper's figures."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.pages.templates import render
from pipelines.sources.vtab import GROUPS, TASKS, Group, task_of, why_not
from pipelines.terminal.arguments import stage_parser
from pipelines.terminal.output import as_csv
from pipelines.weights.transfer import PROBE_FILE, SWEEP_FILE, published
from pretrain.command_line import Parser, check_output_file
from pretrain.errors import DataError
from pretrain.files import write_atomic
from pretrain.names import tell
from pretrain.redaction import redacted
from pretrain.telemetry.metrics import is_share

SUFFIXES = (".md", ".csv", ".html")
EXAMPLES = """\
examples:
  python -m pipelines collect runs/vit_l16_i21k_90ep_transfer
  python -m pipelines collect runs/a_transfer runs/b_transfer --out results/transfer.md --out results/transfer.html
"""
HEAD = ("data set", "from", "metric", "mean", "std", "seeds", "best trial", "published", "device-hours", "command")


@dataclass(frozen=True)
class Row:
    """One cell of the results: a metric of one sweep or probe. Shares, such as accuracies, in per cent.

    Attributes:
        values: of each seed; empty for a probe.
        best: the settings that were chosen.
        beside: the data set in the table of published results; "": no published results, as for probes.
        data: the result's record of its sets.
    """

    dataset: str
    source: str
    metric: str
    mean: float
    std: float | None
    num_seeds: int
    best: str
    hours: float
    command: str
    values: tuple[float, ...] = ()
    beside: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def published(self) -> str:
        """The paper's figures on this data set, which are of fine-tuned models."""
        return "; ".join(f"{row.model} {row.value:.2f}" for row in published(self.beside))

    def cells(self) -> tuple[str, ...]:
        """In the order of ``HEAD``."""
        figures = (f"{self.mean:.2f}", "" if self.std is None else f"{self.std:.2f}", str(self.num_seeds))
        return (
            *(self.dataset, self.source, self.metric),
            *figures,
            *(self.best, self.published, f"{self.hours:.2f}", self.command),
        )


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_args(argv)
    for out in args.out:
        if out.suffix not in SUFFIXES:
            raise DataError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}, which says the format")
        check_output_file(out)
    rows = [row for folder in args.folders for row in rows_of(folder)]
    rows.sort(key=lambda row: (row.dataset, row.source, row.metric))
    means, notes = vtab_means(rows)
    rows += means
    tell(markdown(rows))
    for note in notes:
        tell(f"note: {note}", file=sys.stderr)
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
        factor = 100 if is_share(metric) else 1
        yield Row(
            dataset=_name_of(path, result),
            source=result["from"] or "scratch",
            metric=metric,
            mean=factor * spread["mean"],
            std=_scaled(factor, spread["std"], len(spread["values"])),
            num_seeds=len(spread["values"]),
            best=result["best"].removeprefix("dev_"),
            hours=sum(job["seconds"] for job in jobs) * result["ranks"] / 3600,
            command=redacted(result["command"]),
            values=tuple(factor * value for value in spread["values"]),
            beside=_beside(path.parent.name, metric, result.get("data", {})),
            data=result.get("data", {}),
        )


def _name_of(path: Path, result: Mapping[str, Any]) -> str:
    """The training set's name, from its card; results of earlier versions are called by their folder."""
    return str(result.get("data", {}).get("train", {}).get("name") or path.parent.name)


def _scaled(factor: int, std: float | None, num_values: int) -> float | None:
    """In percent; one value has no spread, though earlier versions wrote 0."""
    return None if std is None or num_values < 2 else factor * std


def _beside(dataset: str, metric: str, data: Mapping[str, Any]) -> str:
    """A cell's key in the published results, such as ``imagenet_real`` for the set ``real`` of imagenet_l16_512."""
    evaluated, _, kind = metric.partition("/")
    if kind != "top1":
        return ""
    if (task := task_of(data)) is not None:
        return f"vtab/{task}"
    plain = next((name for name in (dataset, dataset.partition("_")[0]) if published(name)), dataset)
    return (
        f"{plain}_{evaluated}" if published(f"{plain}_{evaluated}") else plain if evaluated in ("val", "test") else ""
    )


def vtab_means(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """VTAB-1k's mean over its 19 tasks and over its groups, for each source that has all of them in the right form.

    Returns:
        The rows, and for every other source with a task the reason why it has none.
    """
    means, notes = [], []
    for source in dict.fromkeys(row.source for row in rows):
        own = {task: row for row in rows if row.source == source and (task := _vtab_task(row)) is not None}
        wrong = [f"{task}: {reason}" for task, row in own.items() for reason in why_not(task, row.data, row.metric)]
        missing = [task for task in TASKS if task not in own]
        if own and not wrong and not missing:
            means += [_vtab_mean(source, own, group) for group in (*GROUPS, None)]
        elif own:
            wrong += [f"no result on {', '.join(missing)}"] if missing else []
            notes.append(f"{source}: no mean over VTAB-1k: {'; '.join(wrong)}")
    return means, notes


def _vtab_task(row: Row) -> str | None:
    return task_of(row.data) if row.metric.endswith("/top1") else None


def _vtab_mean(source: str, own: Mapping[str, Row], group: Group | None) -> Row:
    """The mean over tasks; its spread is the deviation of the per-seed means."""
    tasks = [row for task, row in own.items() if group in (TASKS[task].group, None)]
    num_seeds = min(row.num_seeds for row in tasks)
    by_seed = [statistics.mean(row.values[seed] for row in tasks) for seed in range(num_seeds)]
    return Row(
        dataset=f"VTAB-1k {group} ({len(tasks)})" if group else f"VTAB-1k ({len(tasks)})",
        source=source,
        metric="mean of top1",
        mean=statistics.mean(row.mean for row in tasks),
        std=statistics.stdev(by_seed) if num_seeds > 1 else None,
        num_seeds=num_seeds,
        best="",
        hours=sum(row.hours for row in tasks),
        command="python -m pipelines collect",
        beside=f"vtab_{group}" if group else "vtab",
    )


def _of_probe(path: Path, result: dict[str, Any]) -> Iterator[Row]:
    for metric, spread in result["test"].items():
        yield Row(
            dataset=_name_of(path, result),
            source=result["from"],
            metric=metric,
            mean=100 * spread["mean"],
            std=_scaled(100, spread["std"], spread["num_seeds"]),
            num_seeds=spread["num_seeds"],
            best=f"l2 {result['chosen']['l2']:g}" if metric.startswith("logistic") else "",
            hours=result["seconds"] * result["ranks"] / 3600,
            command=redacted(result["command"]),
        )


READERS: dict[str, Callable[[Path, dict[str, Any]], Iterator[Row]]] = {SWEEP_FILE: _of_sweep, PROBE_FILE: _of_probe}


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *(_escaped(row.cells()) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _escaped(cells: Sequence[str]) -> tuple[str, ...]:
    *figures, command = (cell.replace("|", "\\|") for cell in cells)
    return (*figures, f"`{command}`")


def _csv(rows: Sequence[Row]) -> str:
    return as_csv([HEAD, *(row.cells() for row in rows)])


def _html(rows: Sequence[Row]) -> str:
    return render("transfer.html", title="Transfer", heads=HEAD, rows=[row.cells() for row in rows])


WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {".md": markdown, ".csv": _csv, ".html": _html}


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "collect",
        "Puts the results of sweeps and probes into one table, next to the published ones.",
        EXAMPLES,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="sweeps and probes, or folders of them")
    parser.add_argument("--out", type=Path, action="append", default=[], help="a .md, .csv or .html file; repeatable")
    return parser
