"""The evaluate stage: scikit-learn's figures, the same on two ranks, and what it refuses and warns of."""

from __future__ import annotations

import argparse
import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from pipelines.__main__ import main
from pipelines.evaluate import cli as stage
from pipelines.evaluate.classification import outcomes_of
from pipelines.evaluate.measures import Outcomes, calibration, paired_difference, resampled
from pipelines.evaluate.rows import open_set
from pipelines.weights.heads import load_classifier
from pipelines.weights.network import stack
from pretrain.data.storage.index import ShardTable, read_sources
from pretrain.data.workers.reader import ShardReader
from pretrain.distributed.rank import detect
from pretrain.models.interop import save_weights
from tests.golden.exchange import SQUASH, metadata_of, model_of
from tests.pool import Pool
from tests.unit.pipelines.photos import encode, write_photos
from tests.unit.pipelines.sources.test_tars import add

CLASSES = {"cat": 9, "dog": 14, "emu": 6, "fox": 12, "gnu": 8, "hen": 7, "owl": 11}
NAMES = tuple(CLASSES)


def save(path: Path, names: tuple[str, ...] | None = NAMES, **changes: Any) -> Path:
    """A weights file for the classes of the set."""
    model = model_of(num_classes=len(names or CLASSES), img_size=32, **changes)
    save_weights(path, model.state_dict(), metadata_of(model, SQUASH, class_names=names, class_ids=names))
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    photos = write_photos(folder / "photos", CLASSES)
    assert main(["pack", "folder", str(photos), "--out", str(folder / "packed"), "--shard-samples", "20"]) == 0
    return folder / "packed" / "train"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_figures_are_those_of_scikit_learn(
    tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = save(tmp_path / "w.safetensors"), tmp_path / "out"
    code, text, _ = run(capsys, packed, "--from", weights, "--out", out, "--json", "--micro-batch-size", "16")
    assert code == 0
    result = json.loads(text)
    table, classifier = ShardTable.load(packed), load_classifier(weights)
    samples = [ShardReader(table).read(index) for index in range(table.num_samples)]
    labels = np.array([sample.labels[0] for sample in samples])
    scores = classifier.probabilities(stack(classifier.transform(sample.data) for sample in samples)).numpy()
    said, every = scores.argmax(1), np.arange(len(CLASSES))
    assert result["num_samples"] == len(labels) == sum(CLASSES.values())
    assert result["top1"] == pytest.approx(np.mean(said == labels))
    assert result["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=every))
    predictions = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    names = [ShardReader(table).record(index)[1].original for index in range(table.num_samples)]
    assert [row["image"] for row in predictions] == names and names[0].endswith(".jpg")
    assert [row["predicted"] for row in predictions] == [NAMES[index] for index in said]
    assert [row["class"] for row in predictions] == [NAMES[index] for index in labels]
    assert [row["right"] for row in predictions] == [str(int(right)) for right in said == labels]
    assert [float(row["score"]) for row in predictions] == pytest.approx(scores.max(1).tolist(), rel=1e-4)
    rows = list(csv.DictReader((out / "per_class.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == list(NAMES)
    scores_of: tuple[tuple[str, Any], ...] = (("recall", recall_score), ("precision", precision_score))
    for column, score in scores_of:
        wanted = score(labels, said, labels=every, average=None, zero_division=0.0)  # type: ignore[arg-type]
        assert [float(row[column] or 0) for row in rows] == pytest.approx(list(np.atleast_1d(wanted)))
    matrix = confusion_matrix(labels, said, labels=every)
    mistakes = list(csv.DictReader((out / "confusion.csv").read_text().splitlines()))
    assert {(row["class"], row["said"]): int(row["count"]) for row in mistakes} == {
        (NAMES[a], NAMES[b]): matrix[a, b] for a in every for b in every if a != b and matrix[a, b]
    }
    bins = list(csv.DictReader((out / "calibration.csv").read_text().splitlines()))
    assert sum(int(row["num_samples"]) for row in bins) == len(labels)


def figures_in_a_rank(arguments: list[str]) -> dict[str, Any]:
    return stage.evaluate(stage.parser().parse_args(arguments), detect())


def test_two_ranks_give_the_figures_of_one(tmp_path: Path, packed: Path, pool1: Pool, pool2: Pool) -> None:
    weights = save(tmp_path / "w.safetensors")
    arguments = [str(packed), "--from", str(weights), "--against", str(save(tmp_path / "v.safetensors", gelu="tanh"))]
    one, *two = [
        {**result, "seconds": 0}
        for pool in (pool1, pool2)
        for result in pool.run(
            figures_in_a_rank, [*arguments, "--num-workers", "0", "--micro-batch-size", "8"], timeout_s=120
        )
    ]
    assert two == [one, one]
    in_order = list(range(sum(CLASSES.values())))
    assert pool2.run(ids_in_a_rank, packed, weights, timeout_s=120) == [in_order, in_order]


def ids_in_a_rank(shards: Path, weights: Path) -> list[int]:
    args = argparse.Namespace(shards=shards, micro_batch_size=8, num_workers=0)
    found, _ = outcomes_of(args, open_set(args), load_classifier(weights), detect())
    return found.sample_ids.tolist()


def test_classes_are_matched_by_id_and_never_guessed(
    tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reordered = ("owl", "zoo", *NAMES[:-1])
    larger = save(tmp_path / "larger.safetensors", names=reordered)
    code, _, error = run(capsys, packed, "--from", larger)
    assert code == 2 and "7 classes, the model has 8; class 0 is 'owl' there" in error and "--match ids" in error
    code, text, _ = run(capsys, packed, "--from", larger, "--match", "ids", "--json")
    assert code == 0
    classifier, table = load_classifier(larger), ShardTable.load(packed)
    columns = [reordered.index(name) for name in NAMES]
    hits = 0
    for index in range(table.num_samples):
        sample = ShardReader(table).read(index)
        logits = classifier.outputs(stack([classifier.transform(sample.data)]))[0, columns]
        hits += int(logits.argmax()) in sample.labels
    assert json.loads(text)["top1"] == pytest.approx(hits / table.num_samples)
    other = save(tmp_path / "other.safetensors", names=("cat", "dog", "emu", "fox", "gnu", "hen", "yak"))
    code, _, error = run(capsys, packed, "--from", other, "--match", "names")
    assert code == 2 and "1 of its 7 classes, such as 'owl'" in error
    code, _, error = run(capsys, packed, "--from", save(tmp_path / "n.safetensors", names=None), "--match", "ids")
    assert code == 2 and "the weights do not say the ids of their classes" in error


def test_images_that_the_model_was_trained_on_are_told(
    tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "name": "run", "duration": "1 steps", "global_batch_size": 2, "model": {"variant": "mu/8"},
        "data": {"shards": str(packed), "num_samples": 67, "num_classes": 7}, "optim": {"lr": 0.1},
    }  # fmt: skip
    (tmp_path / "config.resolved.yaml").write_text(json.dumps(config))
    _, _, error = run(capsys, packed, "--from", save(tmp_path / "weights.safetensors"))
    assert "warning: 67 of the 67 images of" in error
    other = write_photos(tmp_path / "other", dict.fromkeys(NAMES, 1))
    assert main(["pack", "folder", str(other), "--out", str(tmp_path / "set"), "--seed", "1"]) == 0
    _, _, error = run(capsys, tmp_path / "set" / "train", "--from", tmp_path / "weights.safetensors")
    assert "warning: 7 of the 7 images" in error, "the first images have the same bytes"


def scored(weights: Path, packed: Path) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Logits and labels of every image, one by one."""
    table, classifier = ShardTable.load(packed), load_classifier(weights)
    samples = [ShardReader(table).read(index) for index in range(table.num_samples)]
    logits = classifier.outputs(stack(classifier.transform(sample.data) for sample in samples))
    return logits.numpy(), [tuple(sample.labels) for sample in samples]


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with one to three labels."""
    folder = tmp_path_factory.mktemp("multi")
    photos = write_photos(folder / "photos", {"a": 40})
    rows = ["path,labels"]
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        chosen = [NAMES[(number + step) % 7] for step in range(1 + number % 3)]
        rows.append(f"{path.relative_to(photos)},{'|'.join(chosen)}")
    (photos / "m.csv").write_text("\n".join(rows) + "\n")
    assert main(["pack", "manifest", str(photos / "m.csv"), "--out", str(folder / "packed")]) == 0
    return folder / "packed" / "train"


def test_several_labels_per_image_are_ranked_as_by_scikit_learn(
    tmp_path: Path, multi: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, other, out = (
        save(tmp_path / "w.safetensors"),
        save(tmp_path / "v.safetensors", gelu="tanh"),
        tmp_path / "out",
    )
    code, text, error = run(capsys, multi, "--from", weights, "--against", other, "--out", out, "--json")
    assert code == 0, error
    result = json.loads(text)
    expected = []
    for path in (weights, other):
        logits, labels = scored(path, multi)
        shown = np.array([[k in own for k in range(7)] for own in labels])
        score: Any = average_precision_score
        expected.append(score(shown, logits, average=None))
    assert result["mAP"] == pytest.approx(np.mean(expected[0])) and result["num_classes"] == 7
    rows = list(csv.DictReader((out / "per_class.csv").read_text().splitlines()))
    assert [float(row["average_precision"]) for row in rows] == pytest.approx(list(expected[0]))
    difference = result["against"]["mAP_difference"]
    assert difference["difference"] == pytest.approx(np.mean(expected[1]) - np.mean(expected[0]))
    assert difference["low"] <= difference["difference"] <= difference["high"]
    _, text, _ = run(capsys, multi, "--from", weights, "--against", other)
    assert "precision@1" in text and " mAP, 95 % interval " in text and not (out / "confusion.csv").exists()


def test_the_interval_of_map_is_that_of_resampling_the_images() -> None:
    rng = np.random.default_rng(0)
    scores, shown = np.round(rng.normal(size=(60, 5)), 1), rng.random((60, 5)) < 0.2  # with equal scores
    shown[:, 4] = np.arange(60) == 7  # some resamples do not show this class
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=20)
    assert (counts[:, 7] == 0).any()
    expected = []
    for row in counts:
        drawn = np.repeat(np.arange(60), row)
        each = [average_precision_score(shown[drawn, k], scores[drawn, k]) for k in range(5) if shown[drawn, k].any()]
        expected.append(np.mean(each))
    np.testing.assert_allclose(resampled(scores, shown, counts), expected, atol=1e-12)


def test_labels_of_a_file_as_reals(tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, path = save(tmp_path / "w.safetensors"), tmp_path / "real.json"
    path.write_text(json.dumps([[0]] * sum(CLASSES.values())))
    code, _, error = run(capsys, packed, "--from", weights, "--targets", path)
    assert code == 2 and "two images are called" in error
    renamed = write_photos(tmp_path / "photos", CLASSES)
    for folder in renamed.iterdir():
        for file in folder.iterdir():
            file.rename(folder / f"{folder.name}_{file.name}")
    assert main(["pack", "folder", str(renamed), "--out", str(tmp_path / "set")]) == 0
    shards = tmp_path / "set" / "train"
    logits, labels = scored(weights, shards)
    names = [Path(name).name for name in read_sources(ShardTable.load(shards))]
    real = [[] if index % 4 == 0 else [*own, (own[0] + 1) % 7] for index, own in enumerate(labels)]
    ordered = [real[names.index(name)] for name in sorted(names)]
    path.write_text(json.dumps(ordered))
    code, text, error = run(capsys, shards, "--from", weights, "--targets", path, "--json")
    counted = [index for index, own in enumerate(real) if own]
    assert code == 0 and f"{len(counted)} of the {len(real)} images have a label there" in error
    result = json.loads(text)
    hits = [int(logits[index].argmax()) in real[index] for index in counted]
    assert result["num_samples"] == len(counted) and result["top1"] == pytest.approx(np.mean(hits))
    assert result["most_confused"] == []


def test_classes_whose_ids_are_the_numbers_of_outputs(
    tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", {"0": 3, "10": 4, "2": 5})  # as ImageNet-V2's folders
    assert main(["pack", "folder", str(photos), "--out", str(tmp_path / "v2")]) == 0
    shards = tmp_path / "v2" / "train"
    weights = save(tmp_path / "w.safetensors", names=tuple(f"n{number:02d}" for number in range(11)))
    code, text, _ = run(capsys, shards, "--from", weights, "--match", "numbers", "--json")
    logits, labels = scored(weights, shards)
    said = logits[:, [0, 2, 10]].argmax(1)  # folders that are numbers are in the order of the numbers
    assert code == 0 and json.loads(text)["top1"] == pytest.approx(np.mean(said == np.array(labels)[:, 0]))
    (tmp_path / "map.csv").write_text("class,output\n0,n00\n10,n10\n")
    code, text, error = run(capsys, shards, "--from", weights, "--class-map", tmp_path / "map.csv", "--json")
    assert code == 0 and "2 of 3 classes have an output of the head" in error
    said = np.array([0, 2])[logits[:, [0, 10]].argmax(1)]
    assert json.loads(text)["top1"] == pytest.approx(np.mean(said == np.array(labels)[:, 0]))
    code, _, error = run(capsys, shards, "--from", weights, "--match", "ids", "--class-map", tmp_path / "map.csv")
    assert code == 2 and "give one" in error


def outcomes(hits: np.ndarray, confidence: np.ndarray | None = None) -> Outcomes:
    number = len(hits)
    sure = np.zeros(number) if confidence is None else confidence
    best, labels = np.zeros((number, 1), np.int64), np.where(hits, 0, 1)[:, None]
    return Outcomes(np.arange(number), labels, best, sure.astype(np.float32), np.zeros((number, 0), np.float32))


def test_calibration_error_by_hand() -> None:
    error, bins = calibration(outcomes(np.array([1, 0, 1, 1]) > 0, np.array([0.95, 0.97, 0.3, 0.32])))
    assert [(found.num_samples, found.accuracy) for found in bins] == [(2, 1.0), (2, 0.5)]
    assert error == pytest.approx(0.5 * (1 - 0.31) + 0.5 * (0.96 - 0.5))


def test_the_interval_is_that_of_resampling_the_images() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random(400) < 0.6, generator.random(400) < 0.7
    found = paired_difference(outcomes(first), outcomes(second))
    difference = second.astype(int) - first.astype(int)
    means = [difference[generator.integers(0, 400, 400)].mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found["difference"] == pytest.approx(difference.mean())
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.01)


def test_every_image_and_class_is_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set that somebody else packed: some images cannot be decoded, and no image shows the class owl."""
    folder = tmp_path / "set"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(20):
            add(tar, f"{number:03d}.jpg", b"\xff\xd8\xff nothing" if number in (3, 8, 11, 14) else encode(number))
            add(tar, f"{number:03d}.cls", str(number % 6).encode())
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert main(["verify", str(folder), "--class-names", str(tmp_path / "names.txt")]) == 1
    arguments = (folder, "--from", save(tmp_path / "w.safetensors"), "--num-workers", "0")
    code, text, _ = run(capsys, *arguments, "--json")
    result = json.loads(text)
    assert code == 0 and result["empty_classes"] == ["owl"] and result["num_bad"] == 4
    examples = [f"0.tar/{key}.jpg ({key})" for key in ("003", "008", "011")]
    assert result["ledger"] == {
        "images": {
            "found": 20,
            "used": {"evaluated": 16},
            "lost": {"decode": {"count": 4, "examples": examples}},
        }
    }
    _, text, _ = run(capsys, *arguments)
    assert "20 images = 16 evaluated + 4 left out:" in text and "classes without an image in this set: 1 (owl)" in text
