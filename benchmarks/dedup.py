"""Recall, precision and cost of ``python -m pipelines dedup`` on real images with planted copies.

    python benchmarks/dedup.py --images /usr/share/openclipart/png     # apt-get install openclipart-png
    python benchmarks/dedup.py --images photos/

Some images are the test set, others the training set, into which copies of the test images are planted: resized,
recompressed, cropped, mirrored, grey, and all of these at once. Recall counts the planted copies; other matches are
listed, since real sets contain duplicates of their own. Then the hashes of a million images are searched. Ends with one
line of JSON. Without --images, openclipart is used; if it is not installed, nothing is done.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipelines.dedup import cli as dedup
from pipelines.dedup.prints import COARSE_VIEWS, NUM_BITS, VIEWS
from pipelines.dedup.search import near_pairs
from pipelines.sources.entries import IMAGE_EXTENSIONS
from pipelines.terminal.arguments import program_parser
from pretrain.data.images.decode import open_image
from pretrain.errors import BadSample

DEBIAN = Path("/usr/share/openclipart/png")
LEAST_SIDE = 64
LARGEST_SIDE = 500
MILLION = 1_000_000
PLANTED = 1000  # hashes at the radius


def crop(image: Image.Image, generator: np.random.Generator, least: float, most: float) -> Image.Image:
    """A random crop with a share of the area between ``least`` and ``most``."""
    side = generator.uniform(least, most) ** 0.5
    width, height = round(image.width * side), round(image.height * side)
    left, top = (int(generator.integers(0, free + 1)) for free in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """Through a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def mirrored(image: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def grey(image: Image.Image) -> Image.Image:
    """Without colour."""
    return image.convert("L").convert("RGB")


Change = Callable[[Image.Image, np.random.Generator], Image.Image]
CHANGES: dict[str, Change] = {
    "half the size": lambda image, _: image.resize((image.width // 2, image.height // 2)),
    "squashed to 224×224": lambda image, _: image.resize((224, 224)),
    "JPEG quality 30": lambda image, _: recompressed(image, 30),
    "mirrored": lambda image, _: mirrored(image),
    "grey": lambda image, _: grey(image),
    "cropped to 80–95 %": lambda image, random: crop(image, random, 0.8, 0.95),
    "cropped to 60–80 %": lambda image, random: crop(image, random, 0.6, 0.8),
    "cropped to 40–60 %": lambda image, random: crop(image, random, 0.4, 0.6),
    "crop 70–90 %, mirrored, grey, 200×200, JPEG 50": lambda image, random: recompressed(
        grey(mirrored(crop(image, random, 0.7, 0.9))).resize((200, 200)), 50
    ),
}


def main() -> None:
    """Runs everything."""
    parser = program_parser("python -m benchmarks.dedup", __doc__)
    parser.add_argument("--images", type=Path, default=DEBIAN)
    parser.add_argument("--test", type=int, default=200, help="test images, each planted once per change")
    parser.add_argument("--others", type=int, default=2000, help="training images beside the planted ones")
    parser.add_argument("--threshold", type=float, default=dedup.DEFAULT_THRESHOLD)
    parser.add_argument("--million", type=int, default=MILLION, metavar="N", help="training images of the search")
    parser.add_argument("--report", type=Path, help="where to keep the pairs side by side (HTML)")
    args = parser.parse_args()
    if not args.images.is_dir():
        print(json.dumps({"benchmark": "dedup", "skipped": f"{args.images} is not a folder; give one with --images"}))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = planted(args, Path(folder))
    result |= {"cost": cost(args.million)}
    print(json.dumps({"benchmark": "dedup", "images": args.images.name, **result}))


def planted(args: argparse.Namespace, folder: Path) -> dict:
    """Recall by change, and what was found beside the planted copies."""
    generator = np.random.default_rng(0)
    images = usable(args.images, args.test + args.others, generator)
    upstream, test = folder / "upstream", folder / "test"
    upstream.mkdir()
    test.mkdir()
    chosen = images[: args.test]
    for index, image in enumerate(chosen):
        image.save(test / f"{index:05d}.png")
        for number, change in enumerate(CHANGES.values()):
            change(image, generator).save(upstream / f"copy-{number}-{index:05d}.png")
    for index, image in enumerate(images[args.test :]):
        image.save(upstream / f"other-{index:05d}.png")
    arguments = [str(upstream), "--against", str(test), "--out", str(folder / "out"), "--json"]
    parsed = dedup.parser().parse_args([*arguments, "--threshold", str(args.threshold)])
    summary = dedup.deduplicate(parsed)
    lines = [json.loads(line) for line in (folder / "out" / "drop.jsonl").read_text().splitlines()]
    found = {Path(line["file"]).stem: line for line in lines}
    recall = {}
    wrong = 0
    for number, name in enumerate(CHANGES):
        hits = [index for index in range(len(chosen)) if f"copy-{number}-{index:05d}" in found]
        recall[name] = round(len(hits) / len(chosen), 4)
    for stem, line in found.items():
        kind, _, rest = stem.partition("-")
        wrong += kind == "copy" and f"{rest.partition('-')[2]}.png" not in line["because"]
    others = {stem: line for stem, line in found.items() if stem.startswith("other")}
    for name, share in recall.items():
        print(f"{share:8.1%}  {name}")
    print(f"{len(others)} of {len(images) - len(chosen)} other images found; {wrong} copies laid to another test image")
    for stem, line in sorted(others.items(), key=lambda pair: pair[1]["score"])[:20]:
        print(f"          {stem}: {line['because']} ({line['score']})")
    if args.report:
        args.report.write_bytes((folder / "out" / "report.html").read_bytes())
        print(f"report: {args.report}")
    precision = (len(found) - len(others)) / max(len(found), 1)
    return {
        "recall": recall,
        "num_test": len(chosen),
        "num_others": len(images) - len(chosen),
        "others_found": len(others),
        "precision_if_all_others_are_wrong": round(precision, 4),
        "seconds": summary["seconds"],
    }


def usable(folder: Path, count: int, generator: np.random.Generator) -> list[Image.Image]:
    """Images of a sensible size that show something, no two with the same bytes.

    Of a series, files of one folder whose names differ in their numbers only, one is taken: openclipart has 1,375 stars
    that differ in one line or so.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix[1:].lower() in IMAGE_EXTENSIONS)
    images: list[Image.Image] = []
    seen: set[bytes | tuple[Path, str]] = set()
    for index in generator.permutation(len(files)):
        data, series = files[index].read_bytes(), (files[index].parent, re.sub(r"\d+", "#", files[index].stem))
        numbered = "#" in series[1].strip("#")  # photos are often called by a number alone, which is not a series
        if data in seen or (numbered and series in seen) or len(data) > 2_000_000:
            continue
        seen |= {data, series}
        try:
            pixels = open_image(data).decode(LARGEST_SIDE, LARGEST_SIDE)
        except BadSample:
            continue
        if min(pixels.shape[:2]) >= LEAST_SIDE and pixels.std() > 16:
            image = Image.fromarray(pixels)
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            images.append(image)
        if len(images) == count:
            break
    return images


def cost(num_images: int, num_test: int = 10_000) -> dict:
    """Seconds of one core to search a million training images among test images, by random hashes.

    Both directions: the whole training image among the test images' views, and its crops among the whole test images.
    A thousand hashes each are planted at the radius.
    """
    generator = np.random.default_rng(0)
    views = generator.integers(0, 1 << NUM_BITS, num_test * 2 * len(VIEWS), dtype=np.uint64)
    wholes = views[np.arange(len(views)) % len(VIEWS) == 0]
    result: dict = {"images": num_images, "test_images": num_test}
    directions = (("whole among views", 1, views), ("crops among wholes", len(COARSE_VIEWS) - 1, wholes))
    for name, per_image, stored in directions:
        count = num_images * per_image
        seconds, recall, found = searched(count, per_image, stored, generator)
        print(
            f"{name}: {count:,} hashes among {len(stored):,}: {seconds:.1f} s of one core; {recall:.1%} at the radius"
        )
        result[name] = {"hashes": count, "stored": len(stored), "seconds": seconds, "recall_at_radius": recall}
        result[name]["found_by_chance"] = found
    result["seconds"] = round(sum(one["seconds"] for one in result.values() if isinstance(one, dict)), 1)
    return result


def searched(
    count: int, per_image: int, stored: NDArray[np.uint64], generator: np.random.Generator
) -> tuple[float, float, int]:
    """(seconds, share of the planted that are found, other pairs) of a search as the stage makes it, run by run."""
    at_once = dedup.IMAGES_AT_ONCE * per_image
    seconds, hits, planted_at, found = 0.0, 0, 0, 0
    for start in range(0, count, at_once):
        queries = generator.integers(0, 1 << NUM_BITS, min(at_once, count - start), dtype=np.uint64)
        num_planted = min(PLANTED, len(queries)) if start == 0 else 0
        places = generator.integers(0, len(stored), num_planted)
        for row, place in enumerate(places):
            bits = generator.choice(NUM_BITS, dedup.RADIUS, replace=False).astype(np.uint64)
            queries[row] = stored[place] ^ np.bitwise_or.reduce(np.uint64(1) << bits)
        hit = np.zeros(num_planted, dtype=bool)
        began = time.process_time()
        for query, place, _ in near_pairs(queries, stored, dedup.RADIUS):
            mine = query < num_planted
            right = places[query[mine]] == place[mine]
            hit[query[mine][right]] = True
            found += int((~mine).sum())
        seconds += time.process_time() - began
        hits, planted_at = hits + int(hit.sum()), planted_at + num_planted
    return round(seconds, 1), hits / max(planted_at, 1), found


if __name__ == "__main__":
    main()
