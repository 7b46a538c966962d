"""The numbers that a regression gives for images, as lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from pipelines.predict.cli import Answer, Say, answers, as_csv, as_json
from pipelines.weights.regressor import Regressor, load_regressor
from pretrain.data.ledger import Ledger
from pretrain.names import shown


def predict_numbers(args: argparse.Namespace, say: Say, ledger: Ledger) -> Iterator[Answer]:
    """The lines for each image, a header first in CSV."""
    regressor = load_regressor(args.source, weights=args.weights, img_size=args.img_size, device=args.device, say=say)
    if args.format == "csv":
        yield Answer("", as_csv(["image", *regressor.keys]))
    write = {"table": _table, "jsonl": _jsonl, "csv": _csv}[args.format]
    found = answers(args, regressor.transform, lambda images: regressor.values(images).tolist(), ledger)
    for answer, values in found:
        yield answer if values is None else answer._replace(text=write(regressor, answer.name, values))


def _table(regressor: Regressor, name: str, values: Sequence[float]) -> str:
    pairs = zip(regressor.keys, values, strict=True)
    return f"{shown(name)}  " + "  ".join(f"{what} {value:.6g}" for what, value in pairs)


def _jsonl(regressor: Regressor, name: str, values: Sequence[float]) -> str:
    return as_json({"image": shown(name), "values": dict(zip(regressor.keys, values, strict=True))})


def _csv(regressor: Regressor, name: str, values: Sequence[float]) -> str:
    return as_csv([shown(name), *(f"{value:.9g}" for value in values)])
