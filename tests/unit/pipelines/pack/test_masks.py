"""Meaning of the numbers in masks: options, files as users have them, and refusals where it would be a guess."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.__main__ import main
from pipelines.pack.images import ImageOptions, make_image
from pipelines.pack.masks import MaskOptions, make_mask
from pretrain.data.images.masks import read_mask
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import BadSample, ConfigError

HEIGHT, WIDTH = 20, 30
PLAIN = {"values": "", "none": "", "reduce_zero_label": False, "orientation": "auto"}


def encode(pixels: np.ndarray, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def figure(number: int) -> np.ndarray:
    """0 … 1, a figure at a place of its own."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[number % 8 : number % 8 + 9, number : number + 12] = 1
    return mask


FORMS = {
    "1 bit": lambda mask: encode(mask.astype(bool)),
    "0 and 1": encode,
    "0 and 255": lambda mask: encode(mask * 255),
    "1 and 2": lambda mask: encode(mask + 1),
    "0, 1 and 255": lambda mask: encode(np.where(np.arange(WIDTH) < 2, 255, mask).astype(np.uint8)),
    "0 and 38": lambda mask: encode(mask * 38),
    "all 255": lambda mask: encode(np.full_like(mask, 255)),
    "0 and 700": lambda mask: encode(mask.astype(np.uint16) * 700),
}


def pack(folder: Path, form: str, *options: str) -> tuple[int, Path]:
    for number in range(6):
        for kind, data in (("images", encode(figure(number) * 90)), ("masks", FORMS[form](figure(number)))):
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{number}.png").write_bytes(data)
    (folder / "names.txt").write_text("background\nfigure\n")
    paths = [str(folder / kind) for kind in ("images", "masks")]
    names = ["--class-names", str(folder / "names.txt")]
    return main(["pack", "masks", *paths, *names, "--out", str(folder / "out"), *options]), folder / "out" / "train"


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("1 bit", []),
        ("0 and 1", []),
        ("0 and 255", ["--mask-values", "0,255"]),
        ("1 and 2", ["--mask-values", "1,2"]),
        ("1 and 2", ["--reduce-zero-label"]),
        ("0 and 38", ["--mask-values", "0,38"]),
        ("0 and 700", ["--mask-values", "0,700"]),
        ("0, 1 and 255", []),
        ("0, 1 and 255", ["--mask-values", "0,1", "--mask-none", "255"]),
    ],
)
def test_the_figure_is_class_one(tmp_path: Path, form: str, options: list[str]) -> None:
    code, packed = pack(tmp_path, form, *options)
    assert code == 0 and Card.load(packed).class_counts == [6, 6]
    reader = ShardReader(ShardTable.load(packed))
    for sample in map(reader.read, range(6)):
        with Image.open(io.BytesIO(sample.data)) as image:
            wanted = np.asarray(image)[:, :, 0] // 90
        mask = read_mask(sample.mask or b"")
        wanted = np.where(np.arange(WIDTH) < 2, 255, wanted) if "255" in form and form.startswith("0, 1") else wanted
        np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("0 and 255", [], "1 of 2 classes occur in no mask of OUT: figure"),
        ("0 and 255", [], "stored as 0 (in 6 masks), 255 (in 6 masks), and 255 counts as no class"),
        ("0 and 255", [], "pack again with --mask-values 0,255"),
        ("all 255", [], "no pixel of its masks has a class: their pixels are stored as 255 (in 6 masks)"),
        ("all 255", ["--allow-empty-classes"], "no pixel of its masks has a class"),
        ("1 and 2", [], "a pixel is 2, but classes are 0, 1, none is 255: --mask-values NUMBER,…"),
        ("1 and 2", [], "--reduce-zero-label where numbers begin at 1"),
        ("0 and 38", [], "a pixel is 38, but classes are 0, 1"),
        ("0 and 700", [], "a pixel is 700"),
        ("0 and 1", ["--mask-values", "0,1,2"], "--mask-values names 3 numbers, but there are 2 classes"),
        ("0 and 1", ["--mask-values", "0,0"], "a number is named twice"),
        ("0 and 1", ["--mask-values", "0,x"], "write whole numbers from 0 to 65535"),
        ("0 and 1", ["--mask-values", "0,70000"], "write whole numbers from 0 to 65535"),
        ("0 and 1", ["--mask-none", "1"], "--mask-none 1: that is the number of class 1"),
        ("0 and 1", ["--mask-values", "0,1", "--reduce-zero-label"], "leave out --mask-values"),
    ],
)
def test_a_guess_is_refused_with_the_option_that_settles_it(
    tmp_path: Path, form: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, packed = pack(tmp_path, form, *options)
    said = capsys.readouterr().err.replace(str(packed.parent), "OUT")
    assert code == 2 and message in said and "Traceback" not in said
    assert not (packed / "index.json").exists()


def test_a_class_that_is_really_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    code, packed = pack(tmp_path / "a", "0 and 255")
    assert code == 2
    paths = [str(tmp_path / "a" / kind) for kind in ("images", "masks")]
    command = ["pack", "masks", *paths, "--class-names", str(tmp_path / "a" / "names.txt"), "--out", str(packed.parent)]
    assert main(command) == 2, "the same command finds the same"
    assert main([*command, "--allow-empty-classes"]) == 0
    assert Card.load(packed).class_counts == [6, 0]
    assert main(["pack", "digits", "--out", str(tmp_path / "x"), "--allow-empty-classes"]) == 2
    assert "with digits it would be ignored" in capsys.readouterr().err


def turned(orientation: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = np.random.default_rng(1).integers(0, 200, (height, width), dtype=np.uint8)
    return encode(np.repeat(grey[:, :, None], 3, axis=2), "PNG", exif=exif.tobytes())


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("images", ["rgb", "keep"])
def test_a_mask_lies_on_its_turned_image(orientation: int, images: str) -> None:
    """The mask repeats the image's grey, so that it can be compared with what Pillow turns upright."""
    data = turned(orientation)
    image = make_image(data, "png", ImageOptions(images))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))[:, :, 0]
    stored = np.asarray(Image.open(io.BytesIO(data)))[:, :, 0]
    for mask, how in ((stored, "stored"), (upright, "upright")):
        for orientations in (how, *(["auto"] if orientation >= 5 else [])):
            options = MaskOptions(200, orientation=orientations)
            made = make_mask(encode(mask), image, options)
            np.testing.assert_array_equal(made.classes, upright)
            assert made.was_turned == (how == "stored")
    if orientation < 5:
        with pytest.raises(BadSample, match=f"EXIF orientation {orientation}.*--mask-orientation stored"):
            make_mask(encode(stored), image, MaskOptions(200))


def test_a_square_mask_of_a_turned_image_is_not_guessed() -> None:
    image = make_image(turned(6, 20, 20), "png", ImageOptions("rgb"))
    with pytest.raises(BadSample, match="its size does not tell"):
        make_mask(encode(np.zeros((20, 20), np.uint8)), image, MaskOptions(1))


def test_a_mask_with_an_orientation_of_its_own_follows_it() -> None:
    data = turned(3)
    image = make_image(data, "png", ImageOptions("rgb"))
    exif = Image.Exif()
    exif[0x0112] = 3
    stored = np.asarray(Image.open(io.BytesIO(data)))[:, :, 0]
    made = make_mask(encode(stored, exif=exif.tobytes()), image, MaskOptions(200))
    np.testing.assert_array_equal(made.classes, stored[::-1, ::-1])
    assert not made.was_turned


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH + 1), (WIDTH, HEIGHT), (1, 1)])
def test_a_mask_of_another_size(shape: tuple[int, int]) -> None:
    image = make_image(turned(1), "png", ImageOptions("rgb"))
    with pytest.raises(BadSample, match=f"{shape[1]}×{shape[0]} pixels, its image {WIDTH}×{HEIGHT}"):
        make_mask(encode(np.zeros(shape, np.uint8)), image, MaskOptions(1))


@pytest.mark.parametrize("count", [0, 1])
def test_more_numbers_than_a_pack_allows(count: int) -> None:
    """255 classes, and the number 255 a class among them: nothing is none then."""
    options = MaskOptions.of(255, **{**PLAIN, "values": ",".join(map(str, range(1, 256)))})
    assert options.of_none == () and options.table[255] == 254
    with pytest.raises(ConfigError, match="names 1 numbers, but there are 0 classes"):
        MaskOptions.of(0, **{**PLAIN, "values": str(count)})
