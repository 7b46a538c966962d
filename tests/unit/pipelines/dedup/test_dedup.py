"""Planted copies of photos that come with scikit-learn and SciPy's face are found; other photos are not."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.__main__ import main
from pipelines.dedup.matching import likeness
from pipelines.dedup.prints import (
    COLOUR_SIDE,
    NUM_BITS,
    SIDE,
    WHOLE,
    Thumbnail,
    View,
    colours_of,
    grey_picture,
    hash_views,
    shrunk,
)
from pipelines.dedup.search import CROWD, near_pairs
from pretrain.data.storage.index import ShardTable
from tests.unit.pipelines.photos import jpeg, tiles

CHANGES = {
    "resized": lambda image: image.resize((97, 131)),
    "recompressed": lambda image: Image.open(io.BytesIO(jpeg(image, 25))),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "grey": lambda image: image.convert("L"),
    "cropped": lambda image: image.crop((9, 4, 205, 199)),
    "all": lambda image: image.crop((9, 4, 205, 199)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("L"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(summary, upstream key's file name → line of the drop list, folder)"""
    folder = tmp_path_factory.mktemp("dedup")
    photos = tiles()
    tests, others = photos[:4], photos[4:]
    for place in ("test", "upstream/a"):
        (folder / place).mkdir(parents=True)
    for index, image in enumerate(tests):
        (folder / "test" / f"{index}.jpg").write_bytes(jpeg(image))
    for index, image in enumerate(others):
        (folder / "upstream" / "a" / f"other-{index}.jpg").write_bytes(jpeg(image))
    for number, change in enumerate(CHANGES.values()):
        (folder / "upstream" / "a" / f"copy-{number}.jpg").write_bytes(jpeg(change(tests[number % 4])))
    for index, image in enumerate(tests):
        (folder / "upstream" / "a" / f"recoloured-{index}.jpg").write_bytes(jpeg(recoloured(image)))
    (folder / "upstream" / "a" / "exact.jpg").write_bytes((folder / "test" / "0.jpg").read_bytes())
    (folder / "upstream" / "a" / "white.png").write_bytes(_white(200))
    (folder / "test" / "white.png").write_bytes(_white(90))
    (folder / "test" / "part.jpg").write_bytes(jpeg(others[0].crop((20, 25, 180, 190))))
    packed = str(folder / "packed")
    arguments = ["pack", "folder", str(folder / "upstream"), "--images", "keep", "--shard-samples", "6"]
    assert main([*arguments, "--out", packed]) == 0
    out = str(folder / "out")
    arguments = ["dedup", f"{packed}/train", "--against", str(folder / "test"), "--out", out, "--workers", "1"]
    assert main(arguments) == 0
    table = ShardTable.load(folder / "packed" / "train")
    from pretrain.data.workers.reader import ShardReader

    reader = ShardReader(table)
    places = {}
    for sample_id in range(table.num_samples):
        _, record = reader.record(sample_id)
        shard = table.rows[int(table.locate(sample_id)[0])].name
        places[shard, record.member.partition(".")[0]] = record.source
    lines = [json.loads(line) for line in (folder / "out" / "drop.jsonl").read_text().splitlines()]
    return {places[line["shard"], line["key"]].removeprefix("a/"): line for line in lines}, folder, arguments


def recoloured(image: Image.Image) -> Image.Image:
    """With the same brightness everywhere and other colours."""
    luma, blue, red = image.convert("YCbCr").split()
    return Image.merge("YCbCr", (luma, red, blue)).convert("RGB")


def thumbnail(grey: np.ndarray, image: Image.Image | None = None) -> Thumbnail:
    """With the colours of an image, or without colours."""
    none = np.full((COLOUR_SIDE, COLOUR_SIDE, 2), 128, dtype=np.uint8)
    return Thumbnail(grey.astype(np.uint8), none if image is None else colours_of(np.asarray(image)))


def _white(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(buffer, format="PNG")
    return buffer.getvalue()


def test_every_planted_copy_is_found_and_nothing_else(found):
    lines, _, _ = found
    assert set(lines) == {"exact.jpg", "other-0.jpg", *(f"copy-{number}.jpg" for number in range(len(CHANGES)))}
    assert lines["other-0.jpg"]["because"].startswith("near-duplicate (the test image is a crop of it) of ")
    assert lines["other-0.jpg"]["because"].endswith("test: part.jpg")
    for number, name in enumerate(CHANGES):
        because = lines[f"copy-{number}.jpg"]["because"]
        assert because.endswith(f"test: {number % 4}.jpg")
        assert ("mirrored" in because) == (name in ("mirrored", "all"))
    assert lines["copy-4.jpg"]["because"].startswith("near-duplicate (cropped) of ")
    assert lines["exact.jpg"]["because"].startswith("exact copy of ")
    assert {name: line["image"] for name, line in lines.items()} == {name: f"a/{name}" for name in lines}


def test_images_are_called_by_their_original_names(found):
    """Also those of a packed test set, which the drop list and the report name."""
    _, folder, arguments = found
    assert main(["pack", "folder", str(folder / "upstream"), "--out", str(folder / "test_packed")]) == 0
    out = folder / "named"
    arguments = ["dedup", arguments[1], "--against", str(folder / "test_packed" / "train"), "--out", str(out)]
    assert main([*arguments, "--workers", "1"]) == 0
    lines = [json.loads(line) for line in (out / "drop.jsonl").read_text().splitlines()]
    exact = {line["image"]: line["because"] for line in lines if line["because"].startswith("exact")}
    assert exact["a/exact.jpg"] == "exact copy of test_packed/train: a/exact.jpg"
    assert "shard-0" not in (out / "report.html").read_text()


def test_the_report_stands_alone(found):
    lines, folder, _ = found
    text = (folder / "out" / "report.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 2 * len(lines)
    assert "http" not in text.replace("https://www.w3.org", "")


def test_a_second_run_uses_what_was_computed(found, capsys):
    lines, folder, arguments = found
    prints = {path: path.stat().st_mtime_ns for path in (folder / "out" / "prints").rglob("*.npz")}
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_dropped"] == len(lines)
    assert {path: path.stat().st_mtime_ns for path in prints} == prints


def test_packing_again_leaves_out_what_the_list_names(found):
    lines, folder, _ = found
    arguments = ["pack", "webdataset", str(folder / "packed" / "train"), "--out", str(folder / "clean")]
    assert main([*arguments, "--drop-list", str(folder / "out" / "drop.jsonl")]) == 0
    before, after = (ShardTable.load(folder / name / "train").num_samples for name in ("packed", "clean"))
    assert after == before - len(lines)
    assert "drop list: 8" in (folder / "clean" / "train" / "card.md").read_text()


def test_a_mirrored_picture_has_the_hash_that_is_computed_for_it():
    for image in tiles():
        pixels = np.asarray(image)
        both = hash_views(grey_picture(pixels), (WHOLE,), mirrored=True)
        assert both[1] == hash_views(grey_picture(pixels[:, ::-1]), (WHOLE,))[0]
        assert both[0] != both[1]


def test_light_and_dark_in_the_same_places_are_not_enough() -> None:
    first, second = (grey_picture(np.asarray(image)) for image in tiles()[:2])
    first, second = shrunk(first).astype(np.float32), shrunk(second).astype(np.float32)
    coarse = cv2.GaussianBlur(first, (0, 0), 4)
    other = np.clip(coarse + second - cv2.GaussianBlur(second, (0, 0), 4), 0, 255)  # the structure of another
    found = likeness(thumbnail(first), thumbnail(other), WHOLE, mirrored=False)
    assert found.grey > 0.8 > 0.5 > found.fine and found.score == found.fine


def test_without_fine_structure_the_grey_values_decide() -> None:
    ramp = np.linspace(100, 140, SIDE, dtype=np.float32)[:, None].repeat(SIDE, 1)
    found = likeness(thumbnail(ramp), thumbnail(0.8 * ramp), WHOLE, mirrored=False)
    assert found.score == found.grey > 0.99


def test_a_crowd_of_equal_hashes_says_nothing() -> None:
    """Pictures that are nearly empty agree with all others of their kind."""
    crowd = np.full(CROWD + 1, 12345, dtype=np.uint64)
    assert not list(near_pairs(crowd[:3], crowd, 8))
    assert {row for query, _, _ in near_pairs(crowd[:3], crowd[:-1], 8) for row in query.tolist()} == {0, 1, 2}


@pytest.mark.parametrize(("distance", "least"), [(0, 1.0), (4, 0.999), (8, 0.9)])
def test_the_search_finds_what_is_near_and_nothing_else(distance, least):
    generator = np.random.default_rng(distance)
    stored = generator.integers(0, 1 << NUM_BITS, 3000, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in generator.choice(NUM_BITS, distance, replace=False)) for _ in range(2000)]
    queries = stored[:2000] ^ np.array(flips, dtype=np.uint64)
    pairs = set()
    for query, other, far in near_pairs(queries, stored, 8):
        exact = [bin(int(queries[a]) ^ int(stored[b])).count("1") for a, b in zip(query[:50], other[:50], strict=True)]
        assert far[:50].tolist() == exact
        assert far.max() <= 8
        pairs |= set(zip(query.tolist(), other.tolist(), strict=True))
    assert sum((index, index) in pairs for index in range(2000)) >= least * 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--against", "x"), "nowhere is not a folder"),
        ((".", "--against", "x", "--threshold", "2"), "--threshold must be in"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path, capsys):
    assert main(["dedup", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", range(4))
def test_colours_are_compared_only_where_there_are_some(number: int) -> None:
    image = tiles()[number]
    grey = shrunk(grey_picture(np.asarray(image)))
    part = image.crop((20, 25, 180, 190))
    view = View(25 / 213, 20 / 213, 190 / 213, 180 / 213)
    cropped = thumbnail(shrunk(grey_picture(np.asarray(part))), part)
    assert likeness(cropped, thumbnail(grey, image), view, mirrored=False).colour < 0.3
    assert likeness(cropped, thumbnail(grey, recoloured(image)), view, mirrored=False).colour > 0.6
    assert likeness(cropped, thumbnail(grey), view, mirrored=False).colour == 0
