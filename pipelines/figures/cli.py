"""``python -m pipelines figures``: the paper's pictures from any Vision Transformer's weights, several side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.terminal.arguments import add_json, stage_parser
from pretrain.command_line import Parser, check_output_folder
from pretrain.errors import CheckpointError, ConfigError, SetupError
from pretrain.names import shown, tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.figures.photos import Photo
    from pipelines.figures.pictures import Shown
    from pipelines.figures.source import Source

KINDS = ("filters", "position_similarity", "attention_distance", "attention_rollout", "attention_heads")
NEED_IMAGES = frozenset(kind for kind in KINDS if kind.startswith("attention"))
NUMBERS = "figures.npz"
PHOTOS = "photos"
SUMMARY = "figures.json"
EXAMPLES = """\
examples:
  python -m pipelines figures runs/vit_l16 --images photos/ --out figures/vit_l16
  python -m pipelines figures runs/vit_l16 --images data/imagenet/val --out figures/vit_l16_val
  python -m pipelines figures L_32.npz runs/vit_l16/checkpoints/step-00090000 --out figures/two --only filters
  python -m pipelines figures runs/vit_b16 --img-size 384 256 --out figures/resized
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_args(argv)
    check_output_folder(args.out)
    _check(args)
    say = (lambda line: None) if args.json else tell
    written = draw(args, say)
    if args.json:
        tell(json.dumps({"out": str(args.out), "files": written}))
    else:
        tell(f"{args.out}: {', '.join(written)}")
    return 0


def draw(args: argparse.Namespace, say: Any) -> list[str]:
    """Draws the requested figures and returns the names of the files.

    Raises:
        CheckpointError: weights that cannot be read, or nothing to draw in them.
        DataError: images that cannot be found or read.
    """
    from pipelines.figures import source

    labels = source.labels_of(args.checkpoints)
    models = [
        source.load(path, label, _size(args.img_size), say)
        for path, label in zip(args.checkpoints, labels, strict=True)
    ]
    kinds = args.only or [kind for kind in KINDS if args.images or kind not in NEED_IMAGES]
    numbers, photos = _measure(args, models, kinds, say)
    shown = _shown(models, photos, numbers["attention_rollout"], args.num_maps, say)
    figures = _figures(kinds, numbers, shown, args.width)
    if not figures:
        raise CheckpointError(f"nothing to draw: {', '.join(labels)} have none of {', '.join(kinds)}")
    if not args.images and not args.only:
        say("attention is drawn on images: give some with --images")
    return _write(args, models, Drawn(numbers, photos, shown, figures))


class Drawn(NamedTuple):
    """Kind → label → numbers; label → photos; label → photos with attention; file name without suffix → figure."""

    numbers: dict[str, dict[str, Any]]
    photos: dict[str, list[Photo]]
    shown: dict[str, list[Shown]]
    figures: dict[str, Figure]


def _measure(
    args: argparse.Namespace, models: Sequence[Source], kinds: Sequence[str], say: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Photo]]]:
    """Kind → label → array, and label → the photos as this model sees them."""
    from pipelines.figures import measures, photos

    numbers: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    seen: dict[str, list[Photo]] = {}
    images = photos.find(args.images, args.num_images) if args.images else []
    for source in models:
        no_table = f"pos_embed {source.metadata.model.pos_embed} has no table"
        for kind, measure, why in (
            ("filters", measures.patch_filters, "its patches are feature maps of a ResNet, not pixels"),
            ("position_similarity", measures.position_similarity, no_table),
        ):
            if kind in kinds:
                found = measure(source.model)
                if found is None:
                    say(f"{source.label}: no {kind}: {why}")
                else:
                    numbers[kind][source.label] = found.numpy()
        if NEED_IMAGES & set(kinds):
            seen[source.label] = photos.photos_of(images, source, args.num_maps)
            found = measures.measure_attention(
                source.model,
                lambda source=source: photos.normalised(seen[source.label], source, args.batch_size),
                args.num_maps,
            )
            for kind in NEED_IMAGES:
                numbers[kind][source.label] = found[kind].numpy()
    return numbers, seen


def _shown(
    models: Sequence[Source], photos: dict[str, list[Photo]], rollouts: dict[str, Any], num_maps: int, say: Any
) -> dict[str, list[Shown]]:
    """Label → the photos that are drawn: in their own resolution, lit by attention, with classes and predictions."""
    from pipelines.figures.photos import lit
    from pipelines.figures.pictures import Shown

    shown: dict[str, list[Shown]] = {}
    for source in models:
        drawn = photos.get(source.label, [])[:num_maps]
        predictions = source.predictions([photo.input for photo in drawn], say)
        shown[source.label] = [
            Shown(
                photo.seen, lit(photo.seen, attention), photo.truth, f"{best.name} ({best.score:.0%})" if best else ""
            )
            for photo, attention, best in zip(drawn, rollouts.get(source.label, ()), predictions, strict=True)
            if photo.seen is not None
        ]
    return shown


def _figures(
    kinds: Sequence[str], numbers: dict[str, dict[str, Any]], shown: dict[str, list[Shown]], width: float
) -> dict[str, Figure]:
    """File name without suffix → figure."""
    from pipelines.figures import pictures

    made: dict[str, Figure] = {}
    for kind, make in (
        ("filters", pictures.draw_filters),
        ("position_similarity", pictures.draw_similarity),
        ("attention_distance", pictures.draw_distance),
    ):
        if kind in kinds and numbers[kind]:
            made[kind] = make(numbers[kind], width)
    if (kind := "attention_rollout") in kinds:
        made[kind] = pictures.draw_rollout(shown, width)
    if (kind := "attention_heads") in kinds:
        for index, (label, maps) in enumerate(numbers[kind].items()):
            name = kind if len(numbers[kind]) == 1 else f"{kind}_{index + 1}"
            made[name] = pictures.draw_heads(shown[label], maps, label, width)
    return made


def _write(args: argparse.Namespace, models: Sequence[Source], drawn: Drawn) -> list[str]:
    from pipelines.figures import pictures
    from pretrain.files import write_atomic

    kinds = set(args.only or KINDS)
    arrays = {
        f"{kind}/{index}": array
        for kind, found in drawn.numbers.items()
        for index, source in enumerate(models)
        if kind in kinds and (array := found.get(source.label)) is not None
    }
    contents: dict[str, bytes | str] = {
        f"{name}.{suffix}": pictures.encode(figure, suffix)
        for name, figure in drawn.figures.items()
        for suffix in ("png", "svg")
    }
    if "attention_rollout" in kinds:
        contents |= _photos(drawn.shown)
    contents[NUMBERS] = _packed(arrays)
    contents[SUMMARY] = json.dumps(_summary(args, models, drawn, arrays), indent=1)
    try:
        for name, content in contents.items():
            (args.out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(args.out / name, content)
    except OSError as error:
        raise SetupError(f"--out {args.out} cannot be written: {error}; free space or choose another") from error
    for figure in drawn.figures.values():
        pictures.close(figure)
    return list(contents)


def _photos(shown: dict[str, list[Shown]]) -> dict[str, bytes]:
    """Each photo lit by attention, at its own resolution: file name → content."""
    from pipelines.pages.pictures import photo

    return {
        f"{PHOTOS}/attention_rollout_{index + 1}{f'_{model + 1}' if len(shown) > 1 else ''}.jpg": photo(one.lit)
        for model, several in enumerate(shown.values())
        for index, one in enumerate(several)
    }


def _packed(arrays: dict[str, Any]) -> bytes:
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _summary(
    args: argparse.Namespace, models: Sequence[Source], drawn: Drawn, arrays: dict[str, Any]
) -> dict[str, Any]:
    return {
        "checkpoints": [
            {
                "label": source.label,
                "path": source.path,
                "model": source.metadata.model.variant,
                "img_size": list(source.metadata.img_size),
                "grid": list(source.model.shape.grid),
            }
            for source in models
        ],
        "images": [str(path) for path in args.images or ()],
        "num_images": args.num_images,
        "photos": {
            label: [
                {"image": shown(photo.name), "class": one.truth, "predicted": one.predicted}
                for photo, one in zip(photos, drawn.shown[label], strict=False)
            ]
            for label, photos in drawn.photos.items()
        },
        "arrays": {name: list(array.shape) for name, array in arrays.items()},
        "units": {
            "attention_distance": "pixels, by block and head",
            "position_similarity": "cosine similarity (h, w, h, w)",
        },
    }


def _size(given: list[int] | None) -> tuple[int, int] | None:
    return None if given is None else (given[0], given[-1])


def _check(args: argparse.Namespace) -> None:
    if args.img_size is not None and len(args.img_size) > 2:
        raise ConfigError("--img-size takes one number, or height and width")
    if args.only and NEED_IMAGES & set(args.only) and not args.images:
        raise ConfigError(f"--only {' '.join(args.only)} needs --images: attention is drawn on images")
    if args.images and args.only and not NEED_IMAGES & set(args.only):
        raise ConfigError(f"--images would be ignored with --only {' '.join(args.only)}; remove one of them")
    for name in ("num_images", "num_maps", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be 1 or more")
    if not 1 <= args.width <= 40:
        raise ConfigError(f"--width {args.width:g}: must be 1 … 40 inches; one column of a paper is 3.25, two are 6.75")


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "figures",
        "Pictures of a Vision Transformer's weights and attention, and the numbers behind them.",
        EXAMPLES,
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="runs, checkpoints or weights")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for pictures and numbers")
    parser.add_argument(
        "--images", nargs="+", type=Path, metavar="PATH", help="image files, folders of them, or packed splits"
    )
    parser.add_argument("--img-size", nargs="+", type=int, help="resize position embeddings to this image size first")
    parser.add_argument("--only", nargs="+", choices=KINDS, help="draw only these")
    parser.add_argument("--num-images", type=int, default=128, help="images for the attention distance (128)")
    parser.add_argument("--num-maps", type=int, default=4, help="images drawn with attention maps (4)")
    parser.add_argument(
        "--width", type=float, default=6.75, help="of a figure, in inches (6.75: two columns of a paper)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images in one forward pass (8)")
    add_json(parser)
    return parser
