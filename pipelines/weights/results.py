"""Results of ``evaluate``, read back from its folder: figures with an interval, a baseline, and every prediction.

DIR/result.json        the figures
DIR/per_class.csv      images, recall and precision of each class
DIR/confusion.csv      every kind of mistake, the most frequent first
DIR/predictions.csv    what the model predicts for each image
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.data.storage.classes import told_apart
from pretrain.errors import DataError
from pretrain.telemetry.metrics import is_share

RESULT_FILE, CLASSES_FILE, CONFUSION_FILE = "result.json", "per_class.csv", "confusion.csv"
PREDICTIONS_FILE = "predictions.csv"
PREDICTION_COLUMNS = ("index", "image", "class", "predicted", "score", "right")
# Of a result or of an evaluation in a run, the first of these is its headline.
HEADLINES = ("mAP", "top1", "precision_at_1", "mIoU", "r2")
TITLES = {"top1": "top-1 accuracy", "precision_at_1": "precision at 1", "r2": "R²"}
OF_IMAGES = frozenset({"top1", "top5", "precision_at_1"})  # shares of images, whose interval is binomial
_95_PERCENT = 1.959964  # quantile of the normal distribution


class Interval(NamedTuple):
    """The ends of a 95 % confidence interval of a share."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.low:.2f} … {100 * self.high:.2f} %"


def wilson(name: str, share: float, num_images: Any) -> Interval | None:
    """Wilson's score interval of a metric that is a share of images; None for other metrics.

    Source: Wilson 1927.

    Args:
        name: of the metric, such as val/top1.
        share: its value.
        num_images: that it is computed from.
    """
    metric = name.rpartition("/")[2]
    if metric not in OF_IMAGES or not is_share(metric) or not isinstance(num_images, int | float) or num_images < 1:
        return None
    square = _95_PERCENT**2
    centre = (share + square / (2 * num_images)) / (1 + square / num_images)
    spread = math.sqrt(share * (1 - share) / num_images + square / (4 * num_images**2))
    half = _95_PERCENT / (1 + square / num_images) * spread
    return Interval(centre - half, centre + half)


class ClassScore(NamedTuple):
    """A row of per_class.csv; a score is None if the class has no image, or is never predicted."""

    name: str
    num_samples: int
    recall: float | None
    precision: float | None


class Predicted(NamedTuple):
    """A row of predictions.csv."""

    index: int
    image: str
    truth: str
    predicted: str
    score: float
    right: bool


@dataclass(frozen=True)
class Result:
    """One folder of results.

    Attributes:
        folder: where it is.
        figures: result.json.
        classes: of a classification, each class.
        confusions: (class, predicted class, images).
        predictions: of a classification, each image in the order of the set; empty for results of older versions.
    """

    folder: Path
    figures: dict[str, Any]
    classes: list[ClassScore]
    confusions: list[tuple[str, str, int]]
    predictions: list[Predicted]

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Reads a folder that ``evaluate --out`` has written.

        Raises:
            DataError: it is not such a folder, or incomplete.
        """
        try:
            figures = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
            rows = {name: _rows(folder / name) for name in (CLASSES_FILE, CONFUSION_FILE, PREDICTIONS_FILE)}
            return cls(
                folder,
                {"from": str(figures["from"]), "shards": str(figures["shards"]), **figures},
                _classes(rows[CLASSES_FILE]),
                [(row["class"], row["said"], int(row["count"])) for row in rows[CONFUSION_FILE]],
                [_predicted(row) for row in rows[PREDICTIONS_FILE]],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: not a folder of results ({error!r}); make one with python -m pipelines evaluate SPLIT "
                f"--from RUN --out {folder}"
            ) from error

    @property
    def source(self) -> Path:
        """The evaluated weights."""
        return Path(self.figures["from"])

    @property
    def shards(self) -> str:
        """The set."""
        return self.figures["shards"]

    @property
    def headline(self) -> tuple[str, float] | None:
        """The most important metric and its value; None if there is none of ``HEADLINES``."""
        return next(((name, float(self.figures[name])) for name in HEADLINES if name in self.figures), None)

    @cached_property
    def constant(self) -> float | None:
        """The accuracy of always predicting the most frequent class; None where images have several labels, or none."""
        truths = Counter(one.truth for one in self.predictions)
        total = sum(row.num_samples for row in self.classes)
        if not total or total != self.figures.get("num_samples"):
            return None
        return max(truths.values() if truths else (row.num_samples for row in self.classes)) / total

    @property
    def mistakes(self) -> list[Predicted]:
        """Wrong predictions, the most confident first."""
        return sorted((one for one in self.predictions if not one.right), key=lambda one: (-one.score, one.index))


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if it does not exist."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _classes(rows: list[dict[str, str]]) -> list[ClassScore]:
    """The rows of a classification; of masks, whose columns differ, none."""
    if not rows or "num_samples" not in rows[0]:
        return []
    names = told_apart([(row["id"], row["name"]) for row in rows])
    return [
        ClassScore(name, int(row["num_samples"]), _number(row["recall"]), _number(row["precision"]))
        for name, row in zip(names, rows, strict=True)
    ]


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def _predicted(row: dict[str, str]) -> Predicted:
    return Predicted(
        int(row["index"]), row["image"], row["class"], row["predicted"], float(row["score"]), row["right"] == "1"
    )
