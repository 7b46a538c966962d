"""The argument parser of every stage, and the options that several stages have."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.command_line import Parser
from pretrain.errors import ConfigError


def stage_parser(stage: str, description: str, examples: str) -> Parser:
    """The parser of ``python -m pipelines STAGE``.

    Args:
        stage: its name on the command line, such as ``bench-data``.
        description: what it does, in one line.
        examples: printed as they are below the options.
    """
    return Parser(
        prog=f"python -m pipelines {stage}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_json(parser: Parser, what: str = "the result as one line of JSON") -> None:
    """``--json``: output for programs."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def add_overrides(parser: Parser) -> None:
    """``key=value`` words; parse with ``parse_intermixed_args``, so that they may come between the options."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override settings of the config")


def add_workers(parser: Parser) -> None:
    """``--workers`` of the stages that read every image of a set."""
    parser.add_argument("--workers", type=int, help="processes (one per core)")


def add_data_workers(parser: Parser) -> None:
    """``--num-workers`` of the stages that feed a model."""
    parser.add_argument("--num-workers", type=int, choices=range(65), metavar="N", default=2, help="data processes (2)")


def add_weights_kind(parser: Parser) -> None:
    """``--weights``: which of the two sets of weights in a run or checkpoint."""
    parser.add_argument("--weights", choices=("raw", "ema"), default="raw", help="use the raw or the EMA weights (raw)")


def add_model(parser: Parser, *, classifies: bool = True) -> None:
    """The options of every stage that runs trained weights on images.

    Args:
        parser: gets the options.
        classifies: whether the stage uses class probabilities.
    """
    parser.add_argument(
        "--from", dest="source", required=True, type=Path, metavar="RUN_OR_WEIGHTS", help="run, checkpoint, any weights"
    )
    add_weights_kind(parser)
    parser.add_argument("--img-size", type=positive, help="pixels (default: the weights' own)")
    if classifies:
        parser.add_argument(
            "--activation", choices=("softmax", "sigmoid"), help="default: the one that fits the run's objective"
        )
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--micro-batch-size", type=positive, default=64, help="images per forward pass (64)")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``add_model`` that every ``load_…`` of ``pipelines.weights`` takes."""
    return {"weights": args.weights, "img_size": args.img_size, "device": args.device}


def refuse_options_of_others(args: argparse.Namespace, task: str, owners: Mapping[str, Sequence[str]]) -> None:
    """Rejects options that would be ignored because the weights were trained for another task.

    Args:
        args: has the options, with None for those that were not given, and ``source``.
        task: of the weights.
        owners: task → the options that only it has.

    Raises:
        ConfigError: such an option was given.
    """
    for owner, options in owners.items():
        for option in options if owner != task else ():
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise ConfigError(f"--{name} is for {owner}; {args.source} was trained for {task}: leave it out")


def positive(text: str) -> int:
    """An integer above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number
