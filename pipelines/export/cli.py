"""``python -m pipelines export``: trained weights for the programs that use them.

An export is read back before it is published: tensors, names and metadata are compared, and a forward pass is
run by our own reader and, where it is installed, by the library that the format belongs to.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.terminal.arguments import add_json, add_preprocessing, add_weights_kind, stage_parser, stated_in
from pipelines.weights.load import load_source
from pipelines.weights.preprocessing import require_preprocessing, with_stated
from pipelines.weights.results import Result
from pretrain.command_line import Parser, check_output_file, check_output_folder
from pretrain.errors import CheckpointError, ConfigError
from pretrain.names import tell

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.models.metadata import TargetScale, WeightsMetadata

FORMATS = ("timm", "hf", "npz", "onnx")
SUFFIXES = {"npz": ".npz", "onnx": ".onnx"}  # the others are folders
EXAMPLES = """\
examples:
  python -m pipelines export runs/vit_b16 --format timm --out exports/vit_b16_timm
  python -m pipelines export runs/vit_b16 --format hf --out exports/vit_b16_hf --results results/vit_b16
  python -m pipelines export B_16.npz --format timm --out exports/b16 --resize squash --resize-filter bilinear_aa
  python -m pipelines export runs/vit_h14/checkpoints/step-00090000 --format onnx --out exports/vit_h14.onnx
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_args(argv)
    started = time.monotonic()
    say: Callable[[str], None] = (lambda line: None) if args.json else tell
    result = export(args, say)
    result["seconds"] = round(time.monotonic() - started, 2)
    if args.json:
        tell(json.dumps(result))
    else:
        for line in result["checked"]:
            tell(f"checked: {line}")
        tell(f"{result['out']}: {result['format']}, {result['num_parameters']:,} parameters, in {result['seconds']} s")
    return 0


def export(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Writes, checks and publishes one export; returns what the stage prints.

    Raises:
        ConfigError: incompatible options, or ``--out`` exists.
        CheckpointError: weights that cannot be read, or that the format cannot express.
    """
    _check_arguments(args)
    state, metadata = load_source(args.source, args.weights, say)
    metadata = with_stated(metadata, stated_in(args), say)
    require_preprocessing(metadata)
    state, metadata = _for_inference(state, metadata, drop_head=args.drop_head)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    workshop = args.out.with_name(f".{args.out.name}.partial")
    shutil.rmtree(workshop, ignore_errors=True)
    try:
        workshop.mkdir()
        checked = _write_and_check(workshop / args.out.name, state, metadata, args, say)
        _publish(workshop, args.out)
    except OSError as error:
        raise CheckpointError(f"--out {args.out} cannot be written: {error}; free space or choose another") from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    num_parameters = sum(tensor.numel() for tensor in state.values())
    return {
        "out": str(args.out),
        "format": args.format,
        "num_parameters": num_parameters,
        "num_classes": metadata.num_classes,
        "checked": checked,
    }


def _check_arguments(args: argparse.Namespace) -> None:
    """Rejects options that would be ignored, before anything is read."""
    from pretrain.models.exchange.onnx import require_packages

    suffix = SUFFIXES.get(args.format, "")
    if suffix and args.out.suffix != suffix:
        raise ConfigError(f"--out {args.out}: --format {args.format} writes a file; its name must end in {suffix}")
    if not suffix and args.out.suffix in SUFFIXES.values():
        raise ConfigError(f"--out {args.out}: --format {args.format} writes a folder; choose a name without a suffix")
    if args.accept_erf_gelu and args.format != "npz":
        raise ConfigError("--accept-erf-gelu belongs to --format npz; elsewhere it would be ignored")
    if suffix and args.results:
        raise ConfigError(
            f"--results go into the README of a folder, and --format {args.format} writes a file: remove it"
        )
    for folder in args.results:
        _check_result(Result.read(folder), args.source)
    (check_output_file if suffix else check_output_folder)(args.out)
    if args.out.exists() and not args.force:
        raise ConfigError(f"--out {args.out} exists; give --force to replace it, or choose another path")
    if args.format == "onnx":
        require_packages()


def _check_result(result: Result, source: Path) -> None:
    """Rejects the results of other weights."""
    this, other = source.resolve(), result.source.resolve()
    if not (this.is_relative_to(other) or other.is_relative_to(this)):
        raise ConfigError(
            f"--results {result.folder}: these are the results of {result.source}, not of {source}; make others with "
            f"python -m pipelines evaluate SPLIT --from {source} --out FOLDER"
        )


def _for_inference(
    state: dict[str, Tensor], metadata: WeightsMetadata, *, drop_head: bool
) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """The weights without tensors for training only, and with ``drop_head`` without the head and its tanh layer."""
    from pretrain.models.interop import expected_shapes

    if metadata.task == "segmentation" and not drop_head:
        raise ConfigError(
            "the weights have a dense head (a class for every pixel), which no other program's model has a place for; "
            "give --drop-head to export the backbone, or use the weights file as it is"
        )
    changes: dict[str, Any] = {"mask_token": False, "decoder": None}
    update: dict[str, Any] = {}
    if drop_head:
        changes["representation_size"] = None
        changes["head"] = "pooled"
        lost = ("class_names", "class_ids", "target_mean", "target_std", "activation")
        update = dict.fromkeys(lost, None) | {"num_classes": 0}
    elif metadata.scale is not None:
        state = _in_units(state, metadata.scale, metadata)
        update = {"target_mean": (0.0,) * metadata.num_classes, "target_std": (1.0,) * metadata.num_classes}
    update["model"] = metadata.model.model_copy(update=changes)
    metadata = metadata.model_copy(update=update)
    return {name: state[name].float() for name in expected_shapes(metadata)}, metadata


def _in_units(state: dict[str, Tensor], scale: TargetScale, metadata: WeightsMetadata) -> dict[str, Tensor]:
    """A regression whose head outputs the data's own units, since other programs do not standardise targets."""
    import torch

    if not metadata.model.family.has_plain_head:
        raise ConfigError(f"a regression by {metadata.model.name} is not exported: its head's units would be lost")
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (scale.mean, scale.std))
    head = {"head.weight": state["head.weight"].double() * std[:, None]}
    head["head.bias"] = state["head.bias"].double() * std + mean
    return state | {name: tensor.float() for name, tensor in head.items()}


def _write_and_check(
    path: Path,
    state: dict[str, Tensor],
    metadata: WeightsMetadata,
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> list[str]:
    from pipelines.export import verification
    from pipelines.export.card import FILE as CARD
    from pipelines.export.card import card_of
    from pipelines.weights.network import built
    from pretrain.models.exchange.formats import with_learned_table
    from pretrain.models.exchange.google import write_npz
    from pretrain.models.exchange.huggingface import write_huggingface
    from pretrain.models.exchange.onnx import write_onnx
    from pretrain.models.exchange.timm import write_timm

    model, kind = built(state, metadata), metadata.model.pos_embed
    if args.format != "onnx":
        state, metadata = with_learned_table(state, metadata)
    if metadata.model.pos_embed != kind:
        say(f"pos_embed: {kind} is written as a learned table of the same numbers")
    if args.format == "onnx":
        write_onnx(path, model, metadata)
    elif args.format == "npz":
        write_npz(path, state, metadata, accept_erf_gelu=args.accept_erf_gelu)
    else:
        path.mkdir()
        {"timm": write_timm, "hf": write_huggingface}[args.format](path, state, metadata)
        card = card_of(
            path, args.format, args.source, args.weights, metadata, [Result.read(one) for one in args.results]
        )
        (path / CARD).write_text(card, encoding="utf-8")
    return verification.verify(path, args.format, state, metadata, model)


def _publish(workshop: Path, out: Path) -> None:
    """Gives the files in ``workshop`` their final names, the main one last, after everything is on the disk."""
    from pretrain.files import sync

    for path in sorted(workshop.rglob("*")):
        sync(path)
    if out.is_dir():
        out.rename(workshop / f"{out.name}.replaced")
    for path in sorted(workshop.iterdir(), key=lambda path: path.name == out.name):
        if not path.name.endswith(".replaced"):
            path.replace(out.with_name(path.name))
    sync(out.parent)


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "export",
        "Exports trained weights to the format of another library, and verifies the result.",
        EXAMPLES,
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_WEIGHTS", help="run, checkpoint, or weights of any format")
    parser.add_argument("--format", required=True, choices=FORMATS, help="timm and hf: folders; npz: Google's; onnx")
    parser.add_argument("--out", required=True, type=Path, help="folder (timm, hf) or file (.npz, .onnx) to make")
    add_weights_kind(parser)
    parser.add_argument("--drop-head", action="store_true", help="omit the classifier, and the tanh layer before it")
    parser.add_argument("--force", action="store_true", help="replace an existing --out")
    parser.add_argument(
        "--results", nargs="+", default=[], type=Path, metavar="DIR", help="folders of evaluate --out, for the README"
    )
    add_preprocessing(parser)
    parser.add_argument("--accept-erf-gelu", action="store_true", help="npz: for readers that compute erf GELU (timm)")
    add_json(parser)
    return parser
