"""Results → Markdown tables, mean ± sample standard deviation over the seeds, in per cent."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.transferring.cells import LONGER, POSITIONS, SHARES, SOURCES, TARGETS, Cell, Plan, is_same_set
from benchmarks.transferring.runs import Results
from benchmarks.transferring.sets import SETS
from pretrain.errors import DataError
from pretrain.files import write_atomic

MISSING = "–"
UNDONE = {"failed": "not done"}
MODELS = {"vit_small": "ViT, small", "vit_large": "ViT, larger", "resnet": "ResNet (BiT)"}
POSITION_NAMES = {
    "none": "none",
    "learned_1d": "1-D learned",
    "learned_2d": "2-D learned",
    "relative_1d": "relative keys, 1-D",
    "relative_bias": "relative bias, 2-D",
}
HOWS = {"frozen": "frozen", "fine-tuned": "transfer"}
UPSTREAM_METRICS = ("test/top1", "few_digits", "few_photos")


class Tables:
    """The tables of an experiment as far as it has come."""

    def __init__(self, plan: Plan, results: Results, num_seeds: int) -> None:
        self._plan, self._results, self._seeds = plan, results, range(num_seeds)

    def all(self) -> dict[str, str]:
        """Name → table."""
        return {
            "transfer": self.transfer(),
            "longer": self.longer(),
            "scale": self.scale(),
            "positions": self.positions(),
            "resolution": self.resolution(),
            "rates": self.rates(),
        }

    def transfer(self) -> str:
        """Start × target."""
        rows = [("random features", "frozen", "scratch"), ("from scratch", "transfer", "scratch")]
        for source in SOURCES:
            rows += [(f"{source}, frozen features", "frozen", source), (f"{source}, fine-tuned", "transfer", source)]
        head = ["", *(f"{target}, {SETS[target].metric}" for target in TARGETS)]
        lines = [
            [title, *(self._transferred(kind, target, start) for target in TARGETS)] for title, kind, start in rows
        ]
        return markdown(head, lines)

    def longer(self) -> str:
        """Length of the pretraining × target."""
        targets = ("digits", "fashion-1000", "photos")
        steps = self._plan.scale.steps["upstream"] * self._plan.budget
        head = [
            "pretrained on",
            "steps",
            "CPU-s a run",
            "its own test",
            *(f"{target}, {how}" for target in targets for how in HOWS),
        ]
        lines = []
        for source, key in {"nothing": "", **SOURCES}.items():
            start = source if key else "scratch"
            for factor, prefix, own in ((1, "", key), (LONGER, "longer_", f"longer/{source}")):
                if not key and factor > 1:
                    continue
                figures = [
                    self._transferred(f"{prefix}{kind}", target, start) for target in targets for kind in HOWS.values()
                ]
                metric = SETS[source].metric if key else ""
                length = f"{steps * factor:,.0f}" if key else "0"
                seconds = self._seconds(own) if key else ""
                lines.append([source, length, seconds, self._shown(own, f"test/{metric}") if key else "", *figures])
        return markdown(head, lines)

    def pretrained(self) -> dict[tuple[str, str], str]:
        """(pretrained on, steps) → key of the cell whose networks those are; the untrained ones too."""
        steps = self._plan.scale.steps["upstream"] * self._plan.budget
        found = {("nothing", "0"): "frozen/digits/scratch"}
        for source, key in SOURCES.items():
            found[source, f"{steps:,.0f}"] = key
            found[source, f"{steps * LONGER:,.0f}"] = f"longer/{source}"
        return found

    def networks(self, key: str) -> list[str]:
        """Names of a cell's runs that are done, one for each seed."""
        names = [self._results.final(self._plan.cells[key], seed) for seed in self._seeds]
        return [name for name in names if name is not None and not self._results.lines.get(name, UNDONE)["failed"]]

    def features(self, measured: Mapping[str, tuple[float, float]]) -> str:
        """Spread and effective rank of the features of digits; ``measured`` is run → both."""
        lines = []
        for (source, steps), key in self.pretrained().items():
            values = [measured[name] for name in self.networks(key)]
            columns = zip(*values, strict=True) if values else ((), ())
            lines.append([source, steps, *(plain(column, len(self._seeds)) for column in columns)])
        return markdown(["pretrained on", "steps", "spread / mean of the features", "effective rank"], lines)

    def scale(self) -> str:
        """Model × share of the upstream set."""
        few = f"{self._plan.scale.shots}-shot"
        head = ["pretrained on", "model", "upstream test, top1", f"digits, {few}", f"photos, {few}", "CPU-s a run"]
        lines = [
            [share, MODELS[model], *self._upstream(key := f"scale/{model}/{share.split()[0]}"), self._seconds(key)]
            for share in SHARES
            for model in MODELS
        ]
        return markdown(head, lines)

    def curves(self, metric: str) -> dict[str, dict[float, list[float]]]:
        """Model → upstream images → a metric in per cent for each seed; points without a seed are left out."""
        whole = self._plan.cells["scale/vit_small/100"].settings["data.num_samples"]
        found: dict[str, dict[float, list[float]]] = {}
        for model, title in MODELS.items():
            for share in SHARES:
                percent = share.split()[0]
                values = self.values(f"scale/{model}/{percent}", metric)
                if values:
                    points = found.setdefault(title, {})
                    points[round(whole * float(percent) / 100)] = [100 * value for value in values]
        return found

    def positions(self) -> str:
        """Kinds of position embedding."""
        few = f"{self._plan.scale.shots}-shot"
        head = ["position embedding", "upstream test, top1", f"digits, {few}", f"photos, {few}"]
        keys = {kind: f"positions/{kind}" for kind in POSITIONS} | {"learned_1d": "scale/vit_small/100"}
        return markdown(head, [[POSITION_NAMES[kind], *self._upstream(key)] for kind, key in keys.items()])

    def resolution(self) -> str:
        """Resized and new position embeddings on the photos."""
        steps, lines = self._plan.scale.steps["upstream"] * self._plan.budget, []
        for source in SOURCES:
            for length, factor in (("", 1), ("longer_", LONGER)):
                for title, frozen, tuned in (
                    ("interpolated", f"frozen/photos/{source}", f"transfer/photos/{source}"),
                    ("new", f"resolution_frozen/{source}/new", f"resolution/{source}/new"),
                ):
                    figures = [
                        self._shown(f"{length}{frozen}", "test/logistic_top1"),
                        self._shown(f"{length}{tuned}", "test/top1"),
                    ]
                    lines.append([source, f"{steps * factor:,.0f}", title, *figures])
        head = ["pretrained on", "steps", "position embedding", "frozen features, top1", "fine-tuned, top1"]
        return markdown(head, lines)

    def rates(self) -> str:
        """The result of each learning rate on the dev split with seed 0."""
        lines = []
        for cell in self._plan.cells.values():
            if isinstance(cell.rates, str) or len(cell.rates) == 1:
                continue
            found = []
            for rate in cell.rates:
                value = self._results.metric(f"{cell.key.replace('/', '.')}.seed0.lr{rate:g}", cell.judge)
                text = MISSING if value is None else f"{100 * value:.1f}"
                found.append(f"{rate:g}: {'**' + text + '**' if self._results.rate(cell) == rate else text}")
            lines.append([cell.key, cell.judge.removeprefix("dev/"), ", ".join(found)])
        return markdown(["cell", "dev metric", "learning rate: dev, seed 0"], lines)

    def missing(self) -> list[str]:
        """``CELL (seeds)`` of what is not done."""
        found = []
        for cell in self._plan.cells.values():
            absent = [seed for seed in self._seeds if not self._done(cell, seed)]
            if absent:
                found.append(f"{cell.key} (seed {', '.join(map(str, absent))})")
        return found

    def cost(self) -> str:
        """Runs and seconds of all of them."""
        lines = self._results.lines.values()
        cpu = sum(line["cpu_seconds"] or 0.0 for line in lines)
        wall = sum(line["seconds"] for line in lines)
        return f"{len(lines)} runs, {cpu / 3600:.2f} CPU-hours, {wall / 3600:.2f} hours one after the other"

    def values(self, key: str, metric: str) -> list[float]:
        """A metric of a cell, of the seeds that are done."""
        cell = self._plan.cells.get(key)
        if cell is None:
            return []
        names = [self._results.final(cell, seed) for seed in self._seeds]
        found = [None if name is None else self._results.metric(name, metric) for name in names]
        return [value for value in found if value is not None]

    def _done(self, cell: Cell, seed: int) -> bool:
        name = self._results.final(cell, seed)
        line = None if name is None else self._results.lines.get(name)
        return line is not None and not line["failed"]

    def _transferred(self, kind: str, target: str, start: str) -> str:
        if is_same_set(target, start):
            return "same set"
        probed = "logistic_" if "frozen" in kind and not SETS[target].multi_label else ""
        return self._shown(f"{kind}/{target}/{start}", f"test/{probed}{SETS[target].metric}")

    def _upstream(self, key: str) -> list[str]:
        few = f"{self._plan.scale.shots}_shot"
        names = [name if "/" in name else f"{name}/{few}" for name in UPSTREAM_METRICS]
        return [self._shown(key, name) for name in names]

    def _seconds(self, key: str) -> str:
        """Mean CPU time of a cell's runs."""
        found = [self._results.lines[name]["cpu_seconds"] for name in self.networks(key)]
        return f"{statistics.mean(found):.0f}" if found and None not in found else MISSING

    def _shown(self, key: str, metric: str) -> str:
        return shown(self.values(key, metric), len(self._seeds))


def shown(values: Sequence[float], num_seeds: int) -> str:
    """Mean ± sample standard deviation in per cent; how many seeds, where it is not all."""
    return plain([100 * value for value in values], num_seeds, digits=1)


def plain(values: Sequence[float], num_seeds: int, *, digits: int = 2) -> str:
    """Mean ± sample standard deviation; how many seeds, where it is not all."""
    if not values:
        return MISSING
    if not all(map(math.isfinite, values)):
        return "not finite"
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return text if len(values) == num_seeds else f"{text} ({len(values)} of {num_seeds} seeds)"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]) + "\n"


def fill(page: Path, parts: dict[str, str]) -> None:
    """Puts each part between its marks in a page: ``<!-- NAME: written by … -->`` and ``<!-- end of NAME -->``.

    Raises:
        DataError: a mark is not there.
    """
    text = page.read_text()
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, part=part: f"{found[1]}\n{part}\n{found[2]}", text)
        if count != 1:
            raise DataError(
                f"{page}: the marks <!-- {name}: … --> and <!-- end of {name} --> occur there {count} times"
            )
    write_atomic(page, text)
