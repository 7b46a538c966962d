"""predict and evaluate with a dense head: masks as files, scikit-learn's figures; export without the head."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score

from pipelines.__main__ import main
from pipelines.weights import heads
from pipelines.weights.heads import class_of_pixels, load_segmenter
from pipelines.weights.network import stack
from pretrain.data.images.masks import read_mask
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from pretrain.models.interop import save_weights
from tests.golden.exchange import SQUASH, metadata_of, model_of
from tests.unit.data.sets import NUM_CLASSES, write_set

COUNT = 9
HEIGHT, WIDTH = 24, 32  # of the coded images with noise


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("pixels") / "set", [COUNT], noise=True, target="mask")


@pytest.fixture(scope="module")
def weights(packed: Path) -> Path:
    model = model_of(num_classes=NUM_CLASSES, img_size=32, head="dense")
    names = tuple(name for _, name in load_classes(packed))
    save_weights(packed.parent / "w.safetensors", model.state_dict(), metadata_of(model, SQUASH, class_names=names))
    return packed.parent / "w.safetensors"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_evaluate(packed: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, error = run(capsys, "evaluate", packed, "--from", weights, "--json", "--out", tmp_path / "out")
    assert code == 0, error
    segmenter, reader = load_segmenter(weights), ShardReader(ShardTable.load(packed))
    views = [segmenter.transform.pair(reader.read(index)) for index in range(COUNT)]
    true = np.stack([view.mask for view in views if view.mask is not None])
    found = segmenter.masks(stack(view.pixels for view in views)).numpy()
    counts, result = true != 255, json.loads(text)
    each = jaccard_score(true[counts], found[counts], labels=range(NUM_CLASSES), average=None)  # pyright: ignore[reportArgumentType]
    assert result["mIoU"] == pytest.approx(np.mean(each)) and result["num_samples"] == COUNT
    assert result["pixel_accuracy"] == pytest.approx(accuracy_score(true[counts], found[counts]))
    rows = list(csv.DictReader((tmp_path / "out" / "per_class.csv").read_text().splitlines()))
    assert [float(row["iou"]) for row in rows] == pytest.approx(list(np.atleast_1d(each)))
    assert "class 3: IoU" in run(capsys, "evaluate", packed, "--from", weights)[1]


def test_predict_writes_a_mask_of_each_images_own_size(
    packed: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    samples = [ShardReader(ShardTable.load(packed)).read(index) for index in range(2)]
    for place, sample in zip(("a/x.png", "y.png"), samples, strict=True):
        (folder / place).write_bytes(sample.data)
    (folder / "z.png").write_bytes(b"nothing")
    masks = tmp_path / "masks"
    code, text, error = run(capsys, "predict", folder, "--from", weights, "--masks", masks, "--format", "jsonl")
    assert code == 0 and "not read:" in error and len(text.splitlines()) == 2
    assert sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*.png")) == ["a/x.png", "y.png"]
    segmenter = load_segmenter(weights)
    for place, sample, line in zip(("a/x.png", "y.png"), samples, text.splitlines(), strict=True):
        written = read_mask((masks / place).read_bytes())
        assert written.shape == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(written, segmenter.predict(sample.data))
        shares = json.loads(line)["shares"]
        assert shares["class 2"] == pytest.approx((written == 2).mean()) if (written == 2).any() else True
    code, _, error = run(capsys, "predict", folder, "--from", weights)
    assert code == 2 and "--masks FOLDER is missing" in error


def test_the_mask_is_the_nearest_at_the_models_own_size(weights: Path) -> None:
    segmenter = load_segmenter(weights)
    pixels = np.random.default_rng(0).integers(0, 256, (*segmenter.metadata.img_size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    np.testing.assert_array_equal(segmenter.predict(buffer.getvalue()), segmenter.masks(stack([pixels]))[0].numpy())


def test_export_leaves_the_head_behind_and_says_so(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("export", weights, "--format", "timm", "--out", tmp_path / "timm")
    code, _, error = run(capsys, *common)
    assert code == 2 and "dense head" in error and "--drop-head" in error
    assert run(capsys, *common, "--drop-head")[0] == 0


def test_bands_of_a_large_image_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 5, 7, 9, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(logits, (61, 83), mode="bilinear", align_corners=False)[0]
    for most in (1, 5 * 83 * 4, 5 * 83 * 60):
        monkeypatch.setattr(heads, "MOST_LOGITS", most)
        found = class_of_pixels(logits, 61, 83)
        best, second = whole.topk(2, dim=0).values
        clear = (best - second > 1e-5).numpy()
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(found[clear], whole.argmax(0).numpy()[clear])
