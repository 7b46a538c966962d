"""Packed JPEGs have restart markers, and every stage and reader sees the pixels of the original files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipelines.__main__ import main
from pipelines.pack import markers
from pipelines.pack.images import ImageOptions, make_image
from pretrain.data.images import restarts, turbojpeg
from pretrain.data.images.containers import read_jpeg_coding
from pretrain.data.images.opening import decode_strictly
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from tests.unit.pipelines.pack.test_pack import read_with_webdataset

pytestmark = [
    pytest.mark.skipif(not restarts.available(), reason="the C extension is not built"),
    pytest.mark.skipif(not turbojpeg.available(), reason="libjpeg-turbo 3 is not there"),
]


def jpeg(number: int = 0, size: tuple[int, int] = (333, 250), **options: object) -> bytes:
    pixels = load_sample_images().images[number % 2]  # pyright: ignore[reportAttributeAccessIssue]
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[number:, number:]).resize(size)
    image.save(buffer, "JPEG", **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight files: plain ones, a progressive one, one without chroma subsampling, a small one and a PNG."""
    files = {
        "a/0.jpg": jpeg(0),
        "a/1.jpg": jpeg(1, progressive=True),
        "a/2.jpg": jpeg(2, subsampling="4:4:4", optimize=True),
        "a/3.jpg": jpeg(3, (64, 48)),
        "b/4.jpg": jpeg(4, restart_marker_rows=1),
        "b/5.jpg": jpeg(5, (500, 375), comment=b"a secret"),
        "b/6.jpg": jpeg(6, (160, 300)),
    }
    for name, data in files.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    Image.open(io.BytesIO(jpeg(7))).save(tmp_path / "photos" / "b" / "7.png")
    return tmp_path / "photos"


def pack(*words: object) -> None:
    assert main(["pack", *map(str, words), "--workers", "1"]) == 0


def samples_of(folder: Path) -> dict[str, bytes]:
    """Original name → packed bytes."""
    reader = ShardReader(ShardTable.load(folder))
    records = [reader.record(one)[1] for one in range(reader.table.num_samples)]
    return {record.name or record.source: reader.read(one).data for one, record in enumerate(records)}


def test_a_pack_has_markers_and_counts_them(photos: Path, tmp_path: Path) -> None:
    pack("folder", photos, "--out", tmp_path / "out")
    folder = tmp_path / "out" / "train"
    packed = samples_of(folder)
    assert len(packed) == 8
    for name, data in packed.items():
        original = (photos / name).read_bytes()
        assert np.array_equal(decode_strictly(data).pixels, decode_strictly(original).pixels), name
        if name.endswith(".jpg"):
            coding = read_jpeg_coding(data)
            assert not coding.is_progressive and bool(coding.restart_interval) == (name != "a/3.jpg"), name
    card = Card.load(folder)
    assert card.changed == {"metadata removed": 1, markers.ADDED: 6, markers.MADE_SEQUENTIAL: 1}
    account = card.ledger["packed JPEGs"]
    assert (account.found, account.used) == (7, {markers.MARKED: 6, markers.SMALL: 1})
    assert main(["verify", str(folder)]) == 0
    by_stock = {sample["__key__"]: sample["jpg"] for sample in read_with_webdataset(folder) if "jpg" in sample}
    assert sorted(by_stock.values()) == sorted(data for name, data in packed.items() if name.endswith(".jpg"))


def test_packing_again_adds_markers_to_an_old_set(photos: Path, tmp_path: Path) -> None:
    pack("folder", photos, "--images", "keep", "--out", tmp_path / "old")
    old = samples_of(tmp_path / "old" / "train")
    assert all(data == (photos / name).read_bytes() for name, data in old.items())
    assert "packed JPEGs" not in Card.load(tmp_path / "old" / "train").ledger
    pack("webdataset", tmp_path / "old" / "train", "--out", tmp_path / "new")
    pack("folder", photos, "--out", tmp_path / "direct")
    new = samples_of(tmp_path / "new" / "train")
    assert new == samples_of(tmp_path / "direct" / "train")
    pack("webdataset", tmp_path / "new" / "train", "--out", tmp_path / "again")
    assert samples_of(tmp_path / "again" / "train") == new, "markers are only added once"
    assert markers.ADDED not in Card.load(tmp_path / "again" / "train").changed


def test_the_ledger_is_shown(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack("folder", photos, "--out", tmp_path / "out")
    shown = capsys.readouterr().out
    assert "7 packed JPEGs = 6 marked for partial decoding + 1 left unmarked, being too small to gain" in shown
    assert json.loads((tmp_path / "out" / "train" / "card.json").read_text())["changed"][markers.ADDED] == 6


def test_an_image_that_is_made_smaller_gets_markers_too() -> None:
    made = make_image(jpeg(0, (640, 427)), "jpg", ImageOptions("rgb", short_side=256))
    assert made.changes == ("made smaller", markers.ADDED) and read_jpeg_coding(made.data).restart_interval
    assert made.markers == markers.MARKED


def test_a_file_whose_pixels_would_change_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = jpeg(0), jpeg(2)
    monkeypatch.setattr(restarts, "add_restarts", lambda _: other)
    assert markers.with_markers(data) == (data, markers.DIFFERENT, ())


def test_without_the_extension_a_pack_is_made_and_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(0)
    monkeypatch.setattr(restarts, "available", lambda: False)
    assert markers.with_markers(data) == (data, markers.NOT_BUILT, ())


def test_an_unusual_file_stays_as_it_is() -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(0))).convert("CMYK").save(buffer, "JPEG")
    assert markers.with_markers(buffer.getvalue()) == (buffer.getvalue(), markers.NOT_POSSIBLE, ())
