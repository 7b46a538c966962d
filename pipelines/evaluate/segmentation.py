"""The intersection over union of a dense head on a packed set, class by class."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.rows import Evaluated, finished, open_matching, rows_of_set
from pipelines.weights.segmenter import Segmenter
from pretrain.data.batch import Batch
from pretrain.distributed.collectives import gather_objects
from pretrain.distributed.rank import Rank
from pretrain.evaluation.segmentation import check_shown, confusion, overlap, per_class_iou

SHOWN = 6
HEAD = ("class", "iou", "recall", "precision", "pixels")


def evaluate(args: argparse.Namespace, rank: Rank, say: Callable[[str], None]) -> Evaluated:
    """``mIoU``, ``pixel_accuracy``, ``num_classes`` and the figures of each class. Collective: yes.

    Computed at the model's resolution, as in a run.

    Raises:
        DataError: as ``open_matching``, or the masks show one class or none.
    """
    packed, segmenter = open_matching(args, Segmenter, say)
    num_classes = len(segmenter.names)
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)

    def look(batch: Batch) -> list[NDArray[Any]]:
        assert batch.targets is not None
        found = segmenter.masks(batch.images)
        matrix[...] += confusion(found[batch.valid], batch.targets[batch.valid], num_classes).numpy()
        return [batch.sample_ids[batch.valid].numpy()]

    (seen,), ledger = rows_of_set(args, packed, segmenter.transform, rank, look)
    total = np.sum(gather_objects(matrix), axis=0)
    check_shown(total, str(args.shards))
    each = dict(zip(segmenter.keys, _rows(total), strict=True))
    account = finished(ledger, len(seen), args.shards)
    figures = {"task": "segmentation", **overlap(total), "num_samples": len(seen), **account, "classes": each}
    return Evaluated(figures, lambda: {"per_class.csv": _table(each)})


def text(result: dict[str, Any]) -> list[str]:
    """The figures as lines of text, with the best and the worst classes."""
    lines = [
        f"{result['from']}: mIoU {result['mIoU']:.2%} over {result['num_classes']} classes, pixel accuracy "
        f"{result['pixel_accuracy']:.2%}, of {result['num_samples']:,} images"
    ]
    shown = sorted(
        ((row["iou"], name) for name, row in result["classes"].items() if row["iou"] is not None), reverse=True
    )
    lines += [f"  {name}: IoU {iou:.2%}" for iou, name in shown[:SHOWN]]
    if len(shown) > SHOWN:
        lines += ["  …", *(f"  {name}: IoU {iou:.2%}" for iou, name in shown[SHOWN:][-SHOWN:])]
    absent = [name for name, row in result["classes"].items() if not row["pixels"]]
    if absent:
        named = ", ".join(absent[:SHOWN]) + (", …" if len(absent) > SHOWN else "")
        lines.append(f"{len(absent)} of {len(result['classes'])} classes have no pixel in the masks: {named}")
    return lines


def _table(each: Mapping[str, Mapping[str, float | int | None]]) -> list[Sequence[object]]:
    return [HEAD, *((name, *(row[key] for key in HEAD[1:])) for name, row in each.items())]


def _rows(matrix: NDArray[np.int64]) -> list[dict[str, float | int | None]]:
    """Figures of each class; None where no pixel counts."""
    hits, there, said = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    ious = per_class_iou(matrix)
    return [
        {
            "iou": None if np.isnan(ious[index]) else float(ious[index]),
            "recall": float(hits[index] / there[index]) if there[index] else None,
            "precision": float(hits[index] / said[index]) if said[index] else None,
            "pixels": int(there[index]),
        }
        for index in range(len(matrix))
    ]
