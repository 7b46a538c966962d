"""The predict stage: the answer of timm's own pipeline on the exported model, in every format; what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config  # type: ignore[attr-defined]

from pipelines.__main__ import main
from pipelines.weights.heads import load_classifier
from pretrain.errors import ConfigError
from tests.golden.exchange import IDS, NAMES, SQUASH, image_file
from tests.unit.pipelines.export.test_export import checkpoint, weights


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return weights(tmp_path, transform=SQUASH)[0]


def test_an_answer_is_that_of_timm_on_the_exported_model(
    tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = image_file(tmp_path, 57, 43), tmp_path / "timm"
    assert main(["export", str(model_file), "--format", "timm", "--out", str(out)]) == 0
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=theirs))
    with Image.open(photo) as image:
        wanted = theirs(transform(image.convert("RGB"))[None]).softmax(1)[0]  # type: ignore[index]
    values, indices = wanted.topk(5)
    for source in (model_file, out):
        found = load_classifier(source).predict([photo, photo.read_bytes()])
        assert found[0] == found[1] and [one.index for one in found[0]] == indices.tolist()
        assert [one.score for one in found[0]] == pytest.approx(values.tolist(), abs=5e-3)  # resized by another library
        assert [(one.name, one.id) for one in found[0]] == [(NAMES[i], IDS[i]) for i in indices.tolist()]


def test_formats_agree_and_bad_images_do_not_stop_it(
    tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    good = [image_file(folder, 40, 30), image_file(folder / "deep", 31, 33, "jpg")]
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    common = (folder, "--from", model_file, "--top", "2", "--micro-batch-size", "2")
    code, table, error = run(capsys, *common)
    assert code == 0 and f"not read: {folder}/broken.jpg: decode" in error
    assert [line.split("  ")[0] for line in table.splitlines()] == sorted(map(str, good))
    code, text, _ = run(capsys, *common, "--format", "jsonl")
    lines = [json.loads(line) for line in text.splitlines()]
    out = tmp_path / "answers.csv"
    assert run(capsys, *common, "--format", "csv", "--out", out)[1] == ""
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["image"] for row in rows] == [line["image"] for line in lines for _ in range(2)]
    assert [row["name"] for row in rows] == [one["name"] for line in lines for one in line["predictions"]]
    assert table.splitlines()[0].split("  ")[1].startswith(rows[0]["name"])


def test_packed_images_are_answered_like_files(
    tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos" / "cat"
    photos.mkdir(parents=True)
    files = [image_file(photos, width, 30, kind) for width, kind in ((29, "png"), (40, "jpg"))]
    assert main(["pack", "folder", str(photos.parent), "--out", str(tmp_path / "packed")]) == 0
    capsys.readouterr()
    _, one, _ = run(capsys, *files, "--from", model_file, "--format", "jsonl")
    _, other, _ = run(capsys, tmp_path / "packed" / "train", "--from", model_file, "--format", "jsonl")
    answers = [{str(json.loads(line)["predictions"]) for line in text.splitlines()} for text in (one, other)]
    assert answers[0] == answers[1] and len(answers[0]) == 2
    named = {json.loads(line)["image"] for line in other.splitlines()}
    assert named == {f"cat/{file.name}" for file in files}


def test_another_resolution_resizes_the_position_embedding(tmp_path: Path, model_file: Path) -> None:
    said: list[str] = []
    larger = load_classifier(model_file, img_size=64, say=said.append)
    assert larger.metadata.img_size == (64, 64) and "resized: pos_embed from grid (4, 4) to (8, 8)" in said
    assert larger.outputs(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 11)
    with pytest.raises(ConfigError, match="img_size"):
        load_classifier(model_file, img_size=60)


def test_a_multi_label_run_gets_a_probability_for_each_class(tmp_path: Path) -> None:
    run_folder = checkpoint(tmp_path, SQUASH)
    config = next(run_folder.rglob("config.resolved.yaml"))
    content = json.loads(config.read_text()) | {"objective": {"name": "sigmoid"}}
    config.write_text(json.dumps(content))
    step = config.parent
    assert load_classifier(step / "weights.safetensors").activation == "sigmoid"
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    both = [load_classifier(step / "weights.safetensors", activation=how) for how in ("softmax", "sigmoid")]
    sums = [float(one.probabilities(pixels).sum()) for one in both]
    assert sums[0] == pytest.approx(1.0) and sums[1] != pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (["nowhere.jpg"], [], "nowhere.jpg does not exist: give images, folders"),
        (["empty"], [], "empty: no image in it"),
        (["photo.png"], ["--device", "cuda:7"], "device cuda:7"),
        (["photo.png"], ["--img-size", "60"], "img_size"),
    ],
)
def test_bad_input_is_answered_in_words(
    tmp_path: Path,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    images: list[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    image_file(tmp_path, 40, 40).rename("photo.png")
    code, _, error = run(capsys, *images, "--from", model_file, *more)
    assert code == 2 and message in error and "Traceback" not in error


def test_weights_without_a_head_name_no_classes(
    tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, photo = tmp_path / "headless", image_file(tmp_path, 40, 40)
    assert main(["export", str(model_file), "--format", "timm", "--drop-head", "--out", str(out)]) == 0
    code, _, error = run(capsys, photo, "--from", out)
    assert code == 2 and "no head" in error
