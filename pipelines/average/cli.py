"""``python -m pipelines average``: the mean of several trained weights, as one file (a uniform model soup).

Source: Wortsman et al. 2022, "Model soups", section 2 (uniform soup); Izmailov et al. 2018 for checkpoints of one run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.terminal.arguments import add_weights_kind, stage_parser
from pretrain.command_line import Parser, check_output_file
from pretrain.errors import CheckpointError, ConfigError
from pretrain.names import tell

EXAMPLES = """\
examples:
  python -m pipelines average runs/a/seed0 runs/a/seed1 runs/a/seed2 --out soups/a.safetensors
  python -m pipelines average runs/l16/checkpoints/step-* --out soups/l16_last.safetensors
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_args(argv)
    if len(args.sources) < 2:
        raise ConfigError("average: name at least two runs, checkpoints or weights files")
    if args.out.suffix != ".safetensors":
        raise ConfigError(f"--out {args.out}: a weights file is written; its name must end in .safetensors")
    check_output_file(args.out)
    if args.out.exists():
        raise ConfigError(f"--out {args.out} exists; choose another name, or remove it")
    num_parameters = average(args)
    tell(f"{args.out}: the mean of {len(args.sources)} weights, {num_parameters:,} parameters")
    return 0


def average(args: argparse.Namespace) -> int:
    """Writes the file; one source at a time is in memory, besides the sum. Returns the number of parameters.

    Raises:
        CheckpointError: weights cannot be read, or differ in model, classes or transform.
    """
    import torch

    from pipelines.weights.load import load_source
    from pretrain.config.changes import changes
    from pretrain.models.interop import save_weights

    total, about, first = {}, None, args.sources[0]
    for source in args.sources:
        state, metadata = load_source(source, args.weights, lambda line: tell(line, file=sys.stderr))
        if about is not None and metadata != about:
            key, theirs, own = changes(about.model_dump(), metadata.model_dump())[0]
            raise CheckpointError(
                f"{source}: its {key} is {own}, that of {first} is {theirs}; only weights of one model on one set of "
                "classes have a mean"
            )
        about = metadata
        for name, tensor in state.items():  # in double precision, so that the order of the sources does not matter
            total[name] = tensor.double() + total.get(name, 0.0)
    assert about is not None
    kinds = {name: tensor.dtype for name, tensor in state.items()}
    mean = {name: tensor / len(args.sources) for name, tensor in total.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        name: tensor.to(torch.float32 if kinds[name].is_floating_point else kinds[name])
        for name, tensor in mean.items()
    }
    save_weights(args.out, kept, about)
    return sum(tensor.numel() for tensor in kept.values())


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "average",
        "Averages trained weights of one architecture.",
        EXAMPLES,
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="RUN_OR_WEIGHTS", help="two or more")
    parser.add_argument("--out", required=True, type=Path, help="the .safetensors file to make")
    add_weights_kind(parser)
    return parser
