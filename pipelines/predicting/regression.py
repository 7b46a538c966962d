"""The numbers that a regression gives for images, as lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence

from pipelines.predict import Answer, Say, answers, as_csv
from pipelines.regressor import Regressor, load_regressor


def predict_numbers(args: argparse.Namespace, say: Say) -> Iterator[Answer]:
    """The lines for each image, a header first in CSV."""
    regressor = load_regressor(args.source, weights=args.weights, img_size=args.img_size, device=args.device, say=say)
    if args.format == "csv":
        yield Answer("", as_csv(["image", *regressor.names]))
    write = {"table": _table, "jsonl": _jsonl, "csv": _csv}[args.format]
    found = answers(args, regressor.transform, lambda images: regressor.values(images).tolist())
    for name, values, problem in found:
        yield Answer(name, "" if values is None else write(regressor, name, values), problem)


def _table(regressor: Regressor, name: str, values: Sequence[float]) -> str:
    return f"{name}  " + "  ".join(f"{what} {value:.6g}" for what, value in zip(regressor.names, values, strict=True))


def _jsonl(regressor: Regressor, name: str, values: Sequence[float]) -> str:
    return json.dumps({"image": name, "values": dict(zip(regressor.names, values, strict=True))}, ensure_ascii=False)


def _csv(regressor: Regressor, name: str, values: Sequence[float]) -> str:
    return as_csv([name, *(f"{value:.9g}" for value in values)])
