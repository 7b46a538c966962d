"""predict and evaluate on the weights of a regression: the data's units, scikit-learn's figures, on any ranks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from pipelines.__main__ import main
from pipelines.evaluate import cli as stage
from pipelines.weights.heads import load_classifier, load_regressor
from pipelines.weights.network import stack
from pretrain.data.batch import to_model_input
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from pretrain.distributed.rank import detect
from pretrain.errors import CheckpointError
from pretrain.models.interop import load_weights, save_weights
from pretrain.models.metadata import TargetScale
from tests.golden.exchange import SQUASH, metadata_of, model_of
from tests.pool import Pool
from tests.unit.data.sets import NUM_CLASSES, write_set

COUNT = 30


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("numbers") / "set", [20, COUNT - 20], noise=True, target="vector")


@pytest.fixture(scope="module")
def weights(packed: Path) -> Path:
    card, model = Card.load(packed), model_of(num_classes=NUM_CLASSES, img_size=32)
    names = tuple(name for _, name in load_classes(packed))
    scale = TargetScale.of(card.target_mean, card.target_std)
    path = packed.parent / "w.safetensors"
    save_weights(path, model.state_dict(), metadata_of(model, SQUASH, class_names=names, scale=scale))
    return path


def by_hand(packed: Path, weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """(true, predicted) in the data's units, (N, D)."""
    regressor, reader = load_regressor(weights), ShardReader(ShardTable.load(packed))
    samples = [reader.read(index) for index in range(COUNT)]
    images = stack([regressor.transform(sample.data) for sample in samples])
    about = load_weights(weights)[1]
    assert about.mean is not None and about.std is not None
    with torch.no_grad():
        outputs = regressor.model(to_model_input(images, about.mean, about.std)).double()
    card = Card.load(packed)
    std = np.where(np.array(card.target_std) > 0, card.target_std, 1.0)
    return np.array([sample.vector for sample in samples]), outputs.numpy() * std + np.array(card.target_mean)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_evaluate(packed: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "evaluate", packed, "--from", weights, "--json", "--out", tmp_path / "out")
    assert code == 0
    result, (true, predicted) = json.loads(text), by_hand(packed, weights)
    assert result["num_samples"] == COUNT
    assert result["mae"] == pytest.approx(mean_absolute_error(true, predicted), rel=1e-4)
    assert result["rmse"] == pytest.approx(root_mean_squared_error(true, predicted), rel=1e-4)
    assert result["r2"] == pytest.approx(r2_score(true, predicted), rel=1e-4)
    rows = list(csv.DictReader((tmp_path / "out" / "per_number.csv").read_text().splitlines()))
    each = mean_absolute_error(true, predicted, multioutput="raw_values")
    assert [float(row["mae"]) for row in rows] == pytest.approx(list(np.atleast_1d(each)), rel=1e-4)
    code, text, _ = run(capsys, "evaluate", packed, "--from", weights)
    assert code == 0 and "class 0: MAE" in text and f"{COUNT} images" in text


def test_predict(packed: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, predicted = by_hand(packed, weights)
    code, text, _ = run(capsys, "predict", packed, "--from", weights, "--format", "jsonl", "--micro-batch-size", "7")
    lines = [json.loads(line) for line in text.splitlines()]
    assert code == 0 and len(lines) == COUNT and list(lines[0]["values"])[1] == "class 1"
    np.testing.assert_allclose([list(line["values"].values()) for line in lines], predicted, rtol=1e-4, atol=1e-3)
    _, text, _ = run(capsys, "predict", packed, "--from", weights, "--format", "csv")
    rows = list(csv.reader(text.splitlines()))
    assert rows[0] == ["image", *(f"class {index}" for index in range(NUM_CLASSES))] and len(rows) == COUNT + 1
    np.testing.assert_allclose(np.array(rows[1:])[:, 1:].astype(float), predicted, rtol=1e-4, atol=1e-3)
    assert "  class 0 " in run(capsys, "predict", packed, "--from", weights)[1]


def figures_in_a_rank(arguments: list[str]) -> dict[str, Any]:
    return stage.evaluate(stage.parser().parse_args(arguments), detect())


def test_two_ranks_give_the_figures_of_one(packed: Path, weights: Path, pool1: Pool, pool2: Pool) -> None:
    arguments = [str(packed), "--from", str(weights), "--num-workers", "0", "--micro-batch-size", "8"]
    one, *two = [
        {**result, "seconds": 0}
        for pool in (pool1, pool2)
        for result in pool.run(figures_in_a_rank, arguments, timeout_s=120)
    ]
    assert two[0] == two[1] and two[0]["r2"] == pytest.approx(one["r2"], rel=1e-5)


@pytest.mark.parametrize("arguments", [["evaluate", "--match", "ids"], ["predict", "--top", "3"]])
def test_options_for_classes_are_refused(
    packed: Path, weights: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    code, _, error = run(capsys, command, packed, "--from", weights, *options)
    assert code == 2 and f"{options[0]} is for classification" in error and "was trained for regression" in error


def test_weights_and_sets_must_fit(
    packed: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = write_set(tmp_path / "labelled", [4])
    code, _, error = run(capsys, "evaluate", labelled, "--from", weights)
    assert code == 2 and "its images have class labels, but" in error
    with pytest.raises(CheckpointError, match="were trained for regression, not for classification"):
        load_classifier(weights)
