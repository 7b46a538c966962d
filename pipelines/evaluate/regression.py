"""The errors of a regression on a packed set, number by number."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.rows import Evaluated, finished, open_matching, rows_of_set
from pipelines.weights.regressor import Regressor
from pretrain.data.batch import Batch
from pretrain.distributed.rank import Rank
from pretrain.evaluation.regression import errors, errors_of_one

HEAD = ("number", "mae", "rmse", "r2")


def evaluate(args: argparse.Namespace, rank: Rank, say: Callable[[str], None]) -> Evaluated:
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
    return Evaluated(figures, lambda: {"per_number.csv": _table(each)})


def text(result: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    rows = [("all", result), *result["numbers"].items()] if len(result["numbers"]) > 1 else [("all", result)]
    return [
        f"{result['from']}: {result['num_samples']:,} images",
        *(f"  {name}: MAE {row['mae']:.6g}, RMSE {row['rmse']:.6g}, R² {row['r2']:.4f}" for name, row in rows),
    ]


def _table(each: Mapping[str, Mapping[str, float]]) -> list[Sequence[object]]:
    return [HEAD, *((name, *(row[key] for key in HEAD[1:])) for name, row in each.items())]
