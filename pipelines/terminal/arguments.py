"""The argument parser of every stage and benchmark, and the options that several stages have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.command_line import Parser
from pretrain.errors import ConfigError

CONSOLE, MODULE = "vit-pretrain", "python -m pipelines"
RESIZES = ("short_side", "resmall", "squash", "squash_crop")
FILTERS = ("bilinear", "bilinear_aa", "bicubic_aa", "area")
_NAMES = ("mean", "std", "resize", "crop_fraction", "resize_filter")


def program() -> str:
    """The words before the stage's name."""
    return CONSOLE if Path(sys.argv[0]).name == CONSOLE else MODULE


def in_users_words(text: str) -> str:
    """Examples of commands, written with ``python -m pipelines``, as the user types them."""
    return text.replace(MODULE, program())


def stage_parser(stage: str, description: str, examples: str) -> Parser:
    """The parser of ``vit-pretrain STAGE``, or ``python -m pipelines STAGE``.

    Args:
        stage: its name on the command line, such as ``bench-data``.
        description: what it does, in one line.
        examples: printed below the options, as the user types them.
    """
    return program_parser(f"{program()} {stage}", description, in_users_words(examples))


def program_parser(program: str, description: str | None, examples: str | None = None) -> Parser:
    """The parser of a command line that begins with ``program``; texts are printed as they are."""
    return Parser(
        prog=program,
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
            "--activation", choices=("softmax", "sigmoid"), help="logits to probabilities (default: as recorded)"
        )
    add_preprocessing(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--micro-batch-size", type=positive, default=64, help="images per forward pass (64)")


def add_preprocessing(parser: Parser) -> None:
    """``--mean``, ``--std`` and how images are resized; for weights that do not record them, or to replace them."""
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{name}", nargs=3, type=float, metavar=("R", "G", "B"), help=f"{what} of pixels in [0, 1] (as recorded)"
        )
    parser.add_argument("--resize", choices=RESIZES, help="how images are resized (as recorded)")
    parser.add_argument("--crop-fraction", type=float, help="model size over the resized side (as recorded)")
    parser.add_argument("--resize-filter", choices=FILTERS, help="interpolation of the resize (as recorded)")


def stated_in(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name in _NAMES if (value := getattr(args, name)) is not None}


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``add_model`` that every ``load_…`` of ``pipelines.weights`` takes."""
    return {"weights": args.weights, "img_size": args.img_size, "device": args.device, "stated": stated_in(args)}


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
