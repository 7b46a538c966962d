"""Two classes of one name, as ImageNet's cranes and maillots: no stage merges them or takes one for the other."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.__main__ import main
from pipelines.weights.heads import load_classifier
from pipelines.weights.network import stack
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from pretrain.models.interop import save_weights
from tests.golden.exchange import SQUASH, metadata_of, model_of
from tests.unit.pipelines.photos import encode
from tests.unit.pipelines.sources.test_imagenet21k import tar_of

NAMES = ("crane", "tench", "crane")
KEYS = ["crane (n1)", "tench", "crane (n3)"]
IDS = ("n1", "n2", "n3")
COUNT = 24


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cranes")
    files = {}
    for number in range(COUNT):
        files |= {f"{number:03d}.jpg": encode(number), f"{number:03d}.cls": str(number % 3).encode()}
    (folder / "x.tar").write_bytes(tar_of(files))
    (folder / "names.csv").write_text("".join(f"{key},{name}\n" for key, name in zip(IDS, NAMES, strict=True)))
    out = folder / "packed"
    command = ["pack", "webdataset", str(folder / "x.tar"), "--class-names", str(folder / "names.csv")]
    assert main([*command, "--out", str(out)]) == 0
    assert load_classes(out / "train") == list(zip(IDS, NAMES, strict=True))
    return out / "train"


def save(path: Path, ids: tuple[str, ...] | None = IDS, names: tuple[str, ...] = NAMES, **changes: object) -> Path:
    model = model_of(num_classes=len(names), img_size=32, **changes)
    save_weights(path, model.state_dict(), metadata_of(model, SQUASH, class_names=names, class_ids=ids))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_mistakes_between_the_two_are_told(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = save(tmp_path / "w.safetensors"), tmp_path / "out"
    code, text, error = run(capsys, "evaluate", packed, "--from", weights, "--json", "--out", out)
    assert code == 0, error
    classifier, reader = load_classifier(weights), ShardReader(ShardTable.load(packed))
    samples = [reader.read(index) for index in range(COUNT)]
    said = classifier.outputs(stack(classifier.transform(sample.data) for sample in samples)).argmax(1).tolist()
    pairs = zip((sample.labels[0] for sample in samples), said, strict=True)
    wanted = Counter((KEYS[label], KEYS[best]) for label, best in pairs if label != best)
    rows = list(csv.DictReader((out / "confusion.csv").read_text().splitlines()))
    assert {(row["class"], row["said"]): int(row["count"]) for row in rows} == wanted
    assert {(row["class"], row["said"]) for row in json.loads(text)["most_confused"]} == set(wanted)


def test_names_alone_do_not_match_other_lists(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save(tmp_path / "other.safetensors", None, ("tench", "crane", "crane"))
    code, _, error = run(capsys, "evaluate", packed, "--from", other)
    assert code == 2 and "class 0 is 'tench' there" in error, "the same names in another order"
    code, _, error = run(capsys, "evaluate", packed, "--from", other, "--match", "names")
    assert code == 2 and "several classes of the set are called 'crane', the numbers 0, 2" in error
    same = save(tmp_path / "same.safetensors", None)
    assert run(capsys, "evaluate", packed, "--from", same, "--match", "names")[0] == 0


def test_predictions_say_which(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, photo = save(tmp_path / "w.safetensors"), tmp_path / "a.jpg"
    photo.write_bytes(encode(3))
    _, table, _ = run(capsys, "predict", photo, "--from", weights)
    assert all(f"{key} " in table for key in KEYS)
    _, text, _ = run(capsys, "predict", photo, "--from", weights, "--format", "jsonl")
    found = json.loads(text)["predictions"]
    assert sorted((one["id"], one["name"]) for one in found) == sorted(zip(IDS, NAMES, strict=True))


def test_shares_of_a_mask_are_those_of_every_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, photo = save(tmp_path / "w.safetensors", head="dense"), tmp_path / "a.jpg"
    photo.write_bytes(encode(3))
    code, text, error = run(
        capsys, "predict", photo, "--from", weights, "--format", "csv", "--masks", tmp_path / "masks"
    )
    assert code == 0, error
    (row,) = csv.DictReader(text.splitlines())
    assert list(row)[2:] == KEYS
    assert np.sum([float(row[key]) for key in KEYS]) == pytest.approx(1, abs=1e-5)
