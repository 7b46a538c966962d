"""The figures of targets that are not labels: the errors of numbers, and the intersection over union of masks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.rows import Evaluated, finished, open_set, rows_of_set
from pipelines.terminal.arguments import model_options
from pipelines.weights.heads import Regressor, Segmenter
from pipelines.weights.load import warn_of_trained_images
from pipelines.weights.network import AnyNetwork, load_network
from pretrain.data.batch import Batch
from pretrain.data.sources import check_target
from pretrain.data.storage.packed_set import PackedSet
from pretrain.distributed.collectives import gather_objects
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError
from pretrain.evaluation.dense import check_shown, confusion, errors, errors_of_one, overlap, per_class_iou

NUMBER_COLUMNS = ("number", "mae", "rmse", "r2")
CLASS_COLUMNS = ("class", "iou", "recall", "precision", "pixels")
SHOWN = 6  # names in a message, and of the best and of the worst classes


def evaluate_numbers(args: argparse.Namespace, rank: Rank, say: Callable[[str], None]) -> Evaluated:
    """``mae``, ``rmse`` and ``r2``, over all numbers and of each. Collective: yes; errors as ``open_matching``."""
    packed, regressor = open_matching(args, Regressor, say)

    def look(batch: Batch) -> list[NDArray[Any]]:
        assert batch.targets is not None
        columns = [batch.sample_ids, regressor.values(batch.images).double(), batch.targets.double()]
        return [np.asarray(column[batch.valid]) for column in columns]

    (_, predicted, true), ledger = rows_of_set(args, packed, regressor.transform, rank, look)
    each = {name: errors_of_one(predicted[:, index], true[:, index]) for index, name in enumerate(regressor.keys)}
    account = finished(ledger, len(true), args.shards)
    figures = {"task": "regression", **errors(predicted, true), "num_samples": len(true), **account, "numbers": each}
    return Evaluated(figures, lambda: {"per_number.csv": _table(NUMBER_COLUMNS, each)})


def text_of_numbers(result: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    rows = [("all", result), *result["numbers"].items()] if len(result["numbers"]) > 1 else [("all", result)]
    return [
        f"{result['from']}: {result['num_samples']:,} images",
        *(f"  {name}: MAE {row['mae']:.6g}, RMSE {row['rmse']:.6g}, R² {row['r2']:.4f}" for name, row in rows),
    ]


def evaluate_masks(args: argparse.Namespace, rank: Rank, say: Callable[[str], None]) -> Evaluated:
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
    each = dict(zip(segmenter.keys, _per_class(total), strict=True))
    account = finished(ledger, len(seen), args.shards)
    figures = {"task": "segmentation", **overlap(total), "num_samples": len(seen), **account, "classes": each}
    return Evaluated(figures, lambda: {"per_class.csv": _table(CLASS_COLUMNS, each)})


def text_of_masks(result: dict[str, Any]) -> list[str]:
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


def _per_class(matrix: NDArray[np.int64]) -> list[dict[str, float | int | None]]:
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


def open_matching(
    args: argparse.Namespace, kind: type[AnyNetwork], say: Callable[[str], None]
) -> tuple[PackedSet, AnyNetwork]:
    """The set and the network, for a network whose outputs are the set's, in the same order.

    Raises:
        DataError: a set that cannot be read, without such targets, or whose names are not the network's.
        CheckpointError: weights that were trained for something else.
    """
    packed = open_set(args)
    if kind.target is not None:
        check_target(packed, kind.target, f"{args.source}, a {kind.task},")
    network = load_network(args.source, kind, **model_options(args), say=say)
    names = tuple(name for _, name in packed.classes)
    if names != network.names:
        raise DataError(
            f"{args.shards} has {_some(names)}, but the model gives {_some(network.names)}; name a set with the same"
        )
    warn_of_trained_images(args.source, args.weights, packed.table, say)
    return packed, network


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", … ({len(names)})" if len(names) > SHOWN else "")


def _table(columns: Sequence[str], each: Mapping[str, Mapping[str, float | int | None]]) -> list[Sequence[object]]:
    return [columns, *((name, *(row[key] for key in columns[1:])) for name, row in each.items())]
