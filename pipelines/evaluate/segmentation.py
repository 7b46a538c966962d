"""How well a dense head finds the classes of a packed set's pixels, class by class."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.rows import finished, ledger_lines, open_set, rows_of_set
from pipelines.weights.load import warn_of_trained_images
from pipelines.weights.segmenter import load_segmenter
from pretrain.data.batch import Batch
from pretrain.data.sources import check_target
from pretrain.distributed.collectives import gather_objects
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError
from pretrain.evaluation.segmentation import check_shown, confusion, overlap, per_class_iou

TABLE_FILE = "per_class.csv"
SHOWN = 6
HEAD = ("class", "iou", "recall", "precision", "pixels")


def evaluate(args: argparse.Namespace, rank: Rank, say: Callable[[str], None]) -> dict[str, Any]:
    """``mIoU``, ``pixel_accuracy``, ``num_classes``, ``num_samples``, the account, and each class. Collective: yes.

    As in a run: at the model's resolution.

    Raises:
        DataError: a set that cannot be read, with other classes, or whose masks show one class or none.
        CheckpointError: weights of something else.
    """
    packed = open_set(args)
    check_target(packed, "mask", f"{args.source}, a segmentation,")
    segmenter = load_segmenter(args.source, weights=args.weights, img_size=args.img_size, device=args.device, say=say)
    names = tuple(name for _, name in packed.classes)
    if names != segmenter.names:
        raise DataError(
            f"{args.shards}: its {len(names)} classes are not the model's; name a set with the same classes"
        )
    warn_of_trained_images(args.source, args.weights, packed.table, say)
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)

    def look(batch: Batch) -> list[NDArray[Any]]:
        assert batch.targets is not None
        found = segmenter.masks(batch.images)
        matrix[...] += confusion(found[batch.valid], batch.targets[batch.valid], len(names)).numpy()
        return [batch.sample_ids[batch.valid].numpy()]

    (seen,), ledger = rows_of_set(args, packed, segmenter.transform, rank, look)
    total = np.sum(gather_objects(matrix), axis=0)
    check_shown(total, str(args.shards))
    each = dict(zip(segmenter.keys, _rows(total), strict=True))
    account = finished(ledger, len(seen), args.shards)
    return {**overlap(total), "num_samples": len(seen), **account, "classes": each}


def text(result: dict[str, Any]) -> str:
    """The figures for people: the best and the worst classes."""
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
    return "\n".join([*lines, *ledger_lines(result)])


def table(result: dict[str, Any]) -> list[Sequence[object]]:
    """The rows of ``TABLE_FILE``."""
    return [HEAD, *((name, *(row[key] for key in HEAD[1:])) for name, row in result["classes"].items())]


def _rows(matrix: NDArray[np.int64]) -> list[dict[str, float | int | None]]:
    """Figures of each class; None where there is no pixel to judge by."""
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
