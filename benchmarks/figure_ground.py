r"""Segmentation of real drawings: openclipart's PNGs, whose alpha channel marks the pixels of the figure.

    python benchmarks/figure_ground.py --images /usr/share/openclipart/png --out data/figure_ground   # openclipart-png
    python -m pipelines pack masks data/figure_ground/images data/figure_ground/masks \
        --class-names data/figure_ground/names.txt --holdout 0.2 --out data/figure_ground/packed

Each drawing is laid on one colour, drawn by its name, so that no colour says ground; the mask is its alpha channel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.terminal.arguments import program_parser
from pretrain import seeds

SIDE = 64
OPAQUE = 128  # of 255: from this on a pixel belongs to the figure
LARGEST_BYTES = 200_000  # some have hundreds of millions of pixels
LEAST, MOST = 0.1, 0.9  # share of the figure: drawings without a ground, or hardly any figure, teach nothing


def main() -> None:
    parser = program_parser("python -m benchmarks.figure_ground", __doc__)
    parser.add_argument("--images", type=Path, default=Path("/usr/share/openclipart/png"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000, help="drawings that are taken at most")
    args = parser.parse_args()
    for name in ("images", "masks"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    (args.out / "names.txt").write_text("ground\nfigure\n")
    paths = sorted(path for path in args.images.rglob("*.png") if path.stat().st_size <= LARGEST_BYTES)
    paths.sort(key=lambda path: int(seeds.hash64("figure_ground", path.relative_to(args.images).as_posix())))
    taken = 0
    for path in paths:
        if taken == args.count:
            break
        taken += write_pair(path, path.relative_to(args.images).as_posix(), args.out, taken)
    print(f"{args.out}: {taken} drawings")


def write_pair(path: Path, name: str, out: Path, number: int) -> bool:
    """One drawing on its colour, and its mask; False where it is unusable."""
    with Image.open(path) as image:
        if image.mode not in ("RGBA", "LA", "P"):
            return False
        drawing = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    figure = np.asarray(drawing)[:, :, 3] >= OPAQUE
    if not LEAST <= figure.mean() <= MOST:
        return False
    colour = tuple((256 * seeds.uniform("figure_ground.colour", name, np.arange(3))).astype(int).tolist())
    laid = Image.alpha_composite(Image.new("RGBA", drawing.size, (*colour, 255)), drawing).convert("RGB")
    laid.save(out / "images" / f"{number:05d}.png")
    Image.fromarray(figure.astype(np.uint8)).save(out / "masks" / f"{number:05d}.png")
    return True


if __name__ == "__main__":
    main()
