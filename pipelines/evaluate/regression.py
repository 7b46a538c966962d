"""How far the numbers of a regression are from those of a packed set, number by number."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.rows import finished, ledger_lines, open_set, rows_of_set
from pipelines.weights.load import warn_of_trained_images
from pipelines.weights.regressor import Regressor, load_regressor
from pretrain.data.batch import Batch
from pretrain.data.sources import check_target
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError
from pretrain.evaluation.regression import errors, errors_of_one

TABLE_FILE = "per_number.csv"
HEAD = ("number", "mae", "rmse", "r2")


def evaluate(args: argparse.Namespace, rank: Rank, say: Callable[[str], None]) -> dict[str, Any]:
    """``mae``, ``rmse``, ``r2``, ``num_samples``, ``num_bad``, ``ledger``, and those of each number. Collective: yes.

    Raises:
        DataError: a set that cannot be read, or that has other numbers. CheckpointError: weights of something else.
    """
    packed = open_set(args)
    check_target(packed, "vector", f"{args.source}, a regression,")
    regressor = load_regressor(args.source, weights=args.weights, img_size=args.img_size, device=args.device, say=say)
    names = tuple(name for _, name in packed.classes)
    if names != regressor.names:
        raise DataError(
            f"{args.shards}: its numbers are {', '.join(names)}, the model gives {', '.join(regressor.names)}; name a "
            "set with the same"
        )
    warn_of_trained_images(args.source, args.weights, packed.table, say)
    (_, predicted, true), ledger = rows_of_set(
        args, packed, regressor.transform, rank, lambda batch: _rows(regressor, batch)
    )
    each = {name: errors_of_one(predicted[:, index], true[:, index]) for index, name in enumerate(regressor.keys)}
    account = finished(ledger, len(true), args.shards)
    return {**errors(predicted, true), "num_samples": len(true), **account, "numbers": each}


def text(result: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [("all", result), *result["numbers"].items()] if len(result["numbers"]) > 1 else [("all", result)]
    lines = [f"{result['from']}: {result['num_samples']:,} images"]
    lines += [f"  {name}: MAE {row['mae']:.6g}, RMSE {row['rmse']:.6g}, R² {row['r2']:.4f}" for name, row in rows]
    return "\n".join([*lines, *ledger_lines(result)])


def table(result: dict[str, Any]) -> list[Sequence[object]]:
    """The rows of ``TABLE_FILE``."""
    return [HEAD, *((name, *(row[key] for key in HEAD[1:])) for name, row in result["numbers"].items())]


def _rows(regressor: Regressor, batch: Batch) -> list[NDArray[Any]]:
    assert batch.targets is not None
    values = regressor.values(batch.images)
    columns = [batch.sample_ids, values.double(), batch.targets.double()]
    return [np.asarray(column[batch.valid]) for column in columns]
