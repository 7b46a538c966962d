"""The metrics that a run reports, and where their lines go: metrics.jsonl, TensorBoard, Weights & Biases.

Each name has its unit, how it is reduced, and its meaning; a name that is not here is a bug. docs/telemetry.md shows
the same table.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pretrain import disk, records
from pretrain.config.schema.run import WandbConfig
from pretrain.errors import SetupError
from pretrain.files import Journal


class Metric(NamedTuple):
    """One name.

    Attributes:
        unit: of the value; 1 for a share or a plain number.
        reduction: over what, and how, the ranks' and steps' values become one.
        meaning: in words.
    """

    unit: str
    reduction: str
    meaning: str


SIZES = ("image_size", "patch_size", "sequence_length")  # metrics of the images of a step, where they change
_WINDOW = "steps since the last line"

TRAIN: dict[str, Metric] = {
    "loss": Metric("1", "mean over ranks and micro-batches", "training loss of the step"),
    "lr": Metric("1", "same on all ranks", "learning rate of the step, before the factors of groups"),
    "grad_norm": Metric("1", "norm over all parameters", "global norm of the gradient before clipping"),
    "weight_norm": Metric("1", "norm over all trained parameters", "global norm of the fp32 weights after the step"),
    "images_per_s": Metric("images/s", f"sum over ranks, {_WINDOW}", "throughput of the job"),
    "images_per_s_per_device": Metric("images/s", f"mean over ranks, {_WINDOW}", "throughput of one device"),
    "mfu": Metric(
        "share, 0-1",
        f"mean over ranks, {_WINDOW}",
        "FLOP/s of the model (3 × forward, without recomputation) over the device's peak in this "
        "precision; absent if the peak is not known",
    ),
    "flops": Metric(
        "FLOPs",
        "sum over ranks",
        "FLOPs of the step at the sizes of its images and patches, counted as by `--check`; absent if not known",
    ),
    "step_s": Metric("s", f"mean over {_WINDOW}", "time of a step"),
    "data_wait": Metric(
        "share, 0-1", f"largest of the ranks in each step, {_WINDOW}", "share of the time spent waiting for data"
    ),
    "slowest_rank": Metric(
        "rank", f"largest of the ranks, {_WINDOW}", "rank with the longest data wait and forward passes"
    ),
    "slowest_rank_ratio": Metric(
        "1",
        f"largest over median of the ranks, {_WINDOW}",
        "the slowest rank's time over the median rank's; 1 on one rank",
    ),
    "memory_gib": Metric(
        "GiB", "largest of the ranks, since the start", "peak of the device's allocator; on a CPU resident memory"
    ),
    "skipped_updates": Metric("steps", "since step 0", "updates skipped because loss or gradient was not finite"),
    "bad_samples": Metric(
        "samples", "sum over ranks, since the start", "samples replaced because they could not be read or decoded"
    ),
    "padding": Metric(
        "share, 0-1",
        "mean over ranks and micro-batches",
        "share of the step's sequences of patches that is padding; absent for images of one size",
    ),
    "bytes_read": Metric("bytes", "sum over ranks, since the start", "bytes of images read, from disk or cache"),
    "bytes_fetched": Metric(
        "bytes",
        "sum over ranks, since the start",
        "bytes of shards fetched over the network; absent for local sets",
    ),
    "fetch_retries": Metric(
        "requests", "sum over ranks, since the start", "failed requests that were retried; absent for local sets"
    ),
    "cache_hit_rate": Metric(
        "share, 0-1",
        f"all ranks together, {_WINDOW}",
        "chunks that were in the node's cache when they were needed; absent for local sets",
    ),
    "batch_digest": Metric(
        "1", "sum over ranks", "order-free checksum of the global batch's (sample, slot) pairs: equal for equal batches"
    ),
    "image_size": Metric(
        "pixels", "same on all ranks", "side of the images of the step; absent without `data.resolution`"
    ),
    "patch_size": Metric(
        "pixels", "same on all ranks", "side of the patches of the step; absent without `model.patch_sizes`"
    ),
    "sequence_length": Metric(
        "patches", "same on all ranks", "length of the sequences of the step; absent unless lengths are drawn"
    ),
    "batch_size": Metric("images", "sum over ranks", "images of the step; absent without `batch_unit`"),
    "epoch": Metric("epochs", "same on all ranks", "passes over the training set"),
    "samples": Metric("samples", "sum over ranks, since step 0", "samples drawn"),
}

# Of an evaluation set the names are SET/METRIC, and SET_ema/METRIC for the EMA weights.
EVENTS: dict[str, Metric] = {
    "top1": Metric("share, 0-1", "mean over images", "images whose highest logit is one of their labels"),
    "top5": Metric("share, 0-1", "mean over images", "images with a label among their five highest logits"),
    "precision_at_1": Metric("share, 0-1", "mean over images", "images whose highest logit is one of their labels"),
    "mAP": Metric("share, 0-1", "mean over classes with an image", "average precision of a class, no interpolation"),
    "num_classes": Metric("classes", "all ranks", "classes in the mean of mAP (those with an image) or mIoU"),
    "N_shot": Metric(
        "share, 0-1", "mean over images and draws", "accuracy of the regression on N images per class: `5_shot`"
    ),
    "N_shot_std": Metric("share, 0-1", "over draws", "its sample standard deviation"),
    "knn_top1": Metric("share, 0-1", "mean over images", "top-1 of the nearest-neighbour vote"),
    "knn_top5": Metric("share, 0-1", "mean over images", "top-5 of that vote"),
    "logistic_top1": Metric("share, 0-1", "mean over images", "top-1 of the logistic regression on features"),
    "logistic_top5": Metric("share, 0-1", "mean over images", "top-5 of that regression"),
    "mae": Metric("the data's", "mean over numbers and images", "mean absolute error of a regression"),
    "rmse": Metric("the data's", "mean over numbers", "root of the mean squared error of a regression"),
    "r2": Metric("1", "mean over numbers", "R² of a regression: 1 is perfect, 0 is a prediction of the mean"),
    "mIoU": Metric("share, 0-1", "mean over classes in masks or answers", "intersection over union of pixels"),
    "pixel_accuracy": Metric(
        "share, 0-1", "mean over pixels with a class", "pixels whose highest logit is their class"
    ),
    "num_samples": Metric("images", "sum over ranks", "images evaluated"),
    "seconds": Metric("s", "rank 0", "duration of the event"),
}

METRICS: dict[str, Metric] = {**TRAIN, **EVENTS}


def find_metric(name: str) -> Metric | None:
    """The metric of a reported name: ``set/top1`` is ``top1`` of a set, ``set/5_shot`` is ``N_shot``."""
    return METRICS.get(re.sub(r"^\d+_", "N_", name.rsplit("/", 1)[-1]))


def is_share(name: str) -> bool:
    """Whether a metric is a share, which people read in per cent."""
    metric = find_metric(name)
    return metric is not None and metric.unit.startswith("share")


def in_units(name: str, value: float) -> str:
    """A figure for people: shares in per cent, others as they are."""
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.4g}"


def checked(values: dict[str, float]) -> dict[str, float]:
    """The values themselves, once every name is known."""
    unknown = [name for name in values if find_metric(name) is None]
    assert not unknown, f"register {unknown} in pretrain/telemetry/metrics.py"
    return values


def markdown(metrics: dict[str, Metric]) -> str:
    """The table of docs/telemetry.md."""
    rows = [f"| `{name}` | {metric.unit} | {metric.reduction} | {metric.meaning} |" for name, metric in metrics.items()]
    return "\n".join(["| name | unit | reduction | meaning |", "|---|---|---|---|", *rows, ""])


# A line of metrics.jsonl; figures that others compute with must be numbers.
LINE: records.Shape = {
    "kind": records.text,
    "step": records.whole,
    "time?": records.moment,
    **dict.fromkeys(("skipped_updates?", "bad_samples?"), records.whole),
    **dict.fromkeys(
        ("loss?", "lr?", "images_per_s?", "step_s?", "data_wait?", "mfu?", "seconds?", "samples?"), records.number
    ),
}


class Sink(Protocol):
    """On rank 0 only. Takes one event: a kind (train, eval, save, resume, …), the step and its numbers."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Delayed(Exception):
    """Lines that could not be written wait, and are written when that is possible again. Nothing is lost yet."""


class JsonlSink:
    """Appends lines to metrics.jsonl; a resumed run continues in the same file, and the later line of a step counts."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Raises: Delayed."""
        line = json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
        self._report(self._journal.add(line))

    def close(self) -> None:
        """Raises: Delayed: lines still wait, and are lost."""
        self._report(self._journal.flush())

    def _report(self, failure: OSError | None) -> None:
        if failure is not None:
            raise Delayed(f"{self._journal.path} cannot be written: {failure}")


class TensorBoardSink:
    """Event files; what a killed run wrote after the step it resumes from is purged from the display."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        disk.current.may_change(folder)
        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        disk.current.may_change(self._folder)
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases, online or in files that ``wandb sync`` sends later.

    A resumed run continues under the same id; of the steps that it repeats the service keeps the first lines.

    Args:
        folder: where wandb keeps its files (in a folder ``wandb`` below).
        config: project, entity, mode, tags.
        name: of the run.
        settings: the resolved experiment, shown beside the curves.
        run_id: equal for every start of one run.

    Raises:
        SetupError: the package is not installed, or refuses to start.
    """

    def __init__(self, folder: Path, config: WandbConfig, *, name: str, settings: dict[str, Any], run_id: str) -> None:
        try:
            import wandb
            from wandb.errors import Error as WandbError
        except ImportError as error:
            raise SetupError(
                "telemetry.wandb: the package wandb is not installed; pip install 'vit-pretrain[wandb]', or remove the "
                "setting"
            ) from error
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,
                tags=list(config.tags),
                name=name,
                id=run_id,
                resume="allow" if config.mode == "online" else None,
                dir=str(folder),
                config=settings,
                settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            )
        except (WandbError, OSError) as error:
            raise SetupError(
                f"telemetry.wandb: {error}; log in with `wandb login`, or use telemetry.wandb.mode: offline"
            ) from error

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


def _figure(value: Any) -> bool:
    return value is None or isinstance(value, (bool, str)) or records.number(value)


def is_line(line: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is one that a sink wrote: figures by name."""
    return records.misfit(line, LINE) is None and all(map(_figure, line.values()))


def read_metrics(path: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """Step → the last line of this kind for it; one that is damaged or was truncated by a kill is skipped."""
    return {line["step"]: line for line in records.read_lines(path, LINE).values if line["kind"] == kind}


if __name__ == "__main__":
    print(markdown(TRAIN), markdown(EVENTS), sep="\n", end="")
