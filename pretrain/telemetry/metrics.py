"""The names under which a run reports, each with its unit, how it is reduced, and its meaning.

A name that is not here is a bug. docs/telemetry.md shows the same table.
"""

from __future__ import annotations

import re
from typing import NamedTuple


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
        "FLOP/s of the model (3 × forward, nothing for what is computed again) over the device's peak in this "
        "precision; absent where the peak is not known",
    ),
    "step_s": Metric("s", f"mean over {_WINDOW}", "time of a step"),
    "data_wait": Metric(
        "share, 0-1", f"largest of the ranks in each step, {_WINDOW}", "share of the time spent waiting for data"
    ),
    "slowest_rank": Metric(
        "rank", f"largest of the ranks, {_WINDOW}", "rank with the most time of its own: data wait and forward passes"
    ),
    "slowest_rank_ratio": Metric(
        "1", f"largest over median of the ranks, {_WINDOW}", "its own time over the median rank's; 1 on one rank"
    ),
    "memory_gib": Metric(
        "GiB", "largest of the ranks, since the start", "memory: peak of the device's allocator, or on a CPU resident"
    ),
    "skipped_updates": Metric("steps", "since step 0", "updates skipped because loss or gradient was not finite"),
    "bad_samples": Metric(
        "samples", "sum over ranks, since the start", "samples replaced because they could not be read or decoded"
    ),
    "bytes_read": Metric("bytes", "sum over ranks, since the start", "bytes of images read, from disk or cache"),
    "bytes_fetched": Metric(
        "bytes",
        "sum over ranks, since the start",
        "bytes of shards that came over the network; absent where all sets are in folders",
    ),
    "fetch_retries": Metric(
        "requests", "sum over ranks, since the start", "requests that failed and were tried again; absent likewise"
    ),
    "cache_hit_rate": Metric(
        "share, 0-1",
        f"all ranks together, {_WINDOW}",
        "chunks that were in the node's cache when they were read, and need not be waited for; absent likewise",
    ),
    "batch_digest": Metric(
        "1", "sum over ranks", "order-free checksum of the global batch's (sample, slot) pairs: equal for equal batches"
    ),
    "epoch": Metric("epochs", "same on all ranks", "passes over the training set"),
    "samples": Metric("samples", "sum over ranks, since step 0", "samples drawn"),
}

# Of an evaluation set the names are SET/METRIC, and SET_ema/METRIC for the Polyak average.
EVENTS: dict[str, Metric] = {
    "top1": Metric("share, 0-1", "mean over images", "images whose highest logit is one of their labels"),
    "top5": Metric("share, 0-1", "mean over images", "images with a label among their five highest logits"),
    "precision_at_1": Metric("share, 0-1", "mean over images", "images whose highest logit is one of their labels"),
    "mAP": Metric("share, 0-1", "mean over classes with an image", "average precision of a class, no interpolation"),
    "num_classes": Metric("classes", "all ranks", "classes over which mAP (those with an image) or mIoU is the mean"),
    "N_shot": Metric(
        "share, 0-1", "mean over images and draws", "accuracy of the regression on N images per class: `5_shot`"
    ),
    "N_shot_std": Metric("share, 0-1", "over draws", "its sample standard deviation"),
    "knn_top1": Metric("share, 0-1", "mean over images", "top-1 of the vote of the nearest neighbours"),
    "knn_top5": Metric("share, 0-1", "mean over images", "top-5 of that vote"),
    "logistic_top1": Metric("share, 0-1", "mean over images", "top-1 of the logistic regression on features"),
    "logistic_top5": Metric("share, 0-1", "mean over images", "top-5 of that regression"),
    "mae": Metric("the data's", "mean over numbers and images", "mean absolute error of a regression"),
    "rmse": Metric("the data's", "mean over numbers", "root of the mean squared error of a regression"),
    "r2": Metric("1", "mean over numbers", "R² of a regression: 1 is perfect, 0 what their mean would get"),
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
    return "\n".join(["| name | unit | reduced | what it is |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    print(markdown(TRAIN), markdown(EVENTS), sep="\n", end="")
