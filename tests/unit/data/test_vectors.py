"""A set of vectors from the packer to the batch: index, card, stream, evaluation, verify; and what it refuses."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.__main__ import main
from pretrain.data.sources import open_sources
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.data.stream import EvalRequest, EvalStream, TrainStream
from pretrain.errors import DataError
from tests.unit.data.sets import NUM_CLASSES, experiment, vector_of, write_set

SIZES = [30, 0, 18]
VECTORS = np.array([vector_of(number) for number in range(sum(SIZES))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("vectors") / "set", SIZES, target="vector")


def regression(folder: Path, **changes: object):
    return experiment(folder, sum(SIZES), objective__name="regression", **changes)


def test_the_card_has_their_moments_and_the_tar_the_numbers(folder: Path) -> None:
    card, table = Card.load(folder), ShardTable.load(folder)
    np.testing.assert_allclose(card.target_mean, VECTORS.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(card.target_std, VECTORS.std(axis=0), rtol=1e-12)
    assert (card.labels, card.num_classes, card.class_counts) == ("vector", NUM_CLASSES, [])
    assert (table.target, table.max_labels) == ("vector", 0)
    with tarfile.open(folder / "shard-000002.tar") as tar:
        member = tar.extractfile("000000031.json")
        assert member is not None and tuple(json.load(member)["target"]) == vector_of(31)
    assert "| 6 | c6 | class 6 | 5 | 0 |" in (folder / "card.md").read_text()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_have_the_numbers_of_their_samples(folder: Path, num_workers: int) -> None:
    stream = TrainStream(regression(folder, cluster__num_workers=num_workers), 0, 1, 8)
    for batch in stream.iterate(0, 3):
        assert batch.targets is not None and batch.labels.shape == (8, 0)
        np.testing.assert_allclose(batch.targets.numpy(), VECTORS[batch.sample_ids.numpy()], rtol=1e-6)
    seen = []
    for rank in range(3):
        for batch in EvalStream(regression(folder), str(folder), rank, 3, 7, EvalRequest(kind="regression")):
            assert batch.targets is not None
            np.testing.assert_allclose(
                batch.targets[batch.valid].numpy(), VECTORS[batch.sample_ids[batch.valid].numpy()], rtol=1e-6
            )
            seen += batch.sample_ids[batch.valid].tolist()
    assert sorted(seen) == list(range(sum(SIZES)))


def test_sets_and_objectives_must_fit(folder: Path, tmp_path: Path) -> None:
    labelled = write_set(tmp_path / "labelled", [20])
    with pytest.raises(DataError, match=r"its images have vectors of numbers, but objective.name: softmax needs class"):
        open_sources(experiment(folder, sum(SIZES)))
    with pytest.raises(DataError, match=r"have class labels, but objective.name: regression needs vectors"):
        open_sources(experiment(labelled, 20, objective__name="regression"))
    with pytest.raises(DataError, match=r"have vectors of numbers, but kind: knn needs class labels"):
        EvalStream(regression(folder), str(folder), 0, 1, 8, EvalRequest(kind="knn"))
    mixture = [
        {"shards": str(folder), "num_samples": 48, "weight": 1},
        {"shards": str(labelled), "num_samples": 20, "weight": 1},
    ]
    data = {"mixture": mixture, "num_samples": 68, "num_classes": NUM_CLASSES}
    with pytest.raises(DataError, match="labelled: its images have class labels"):
        open_sources(experiment("", 1, objective__name="regression", data=data))


def test_verify_reads_them_and_makes_the_same_index(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "shard-000001.tar").unlink()  # empty: a foreign set has none such
    (copy / "index.json").unlink()
    assert main(["verify", str(copy)]) == 1, "the card belongs to another index"
    (copy / "card.json").unlink()
    (copy / "index.json").unlink()
    for records in copy.glob("*.records.safetensors"):
        records.unlink()
    assert main(["verify", str(copy)]) == 0
    made, card = ShardTable.load(copy), Card.load(copy)
    assert (made.target, made.num_classes, made.num_samples) == ("vector", NUM_CLASSES, sum(SIZES))
    np.testing.assert_allclose(card.target_std, VECTORS.std(axis=0), rtol=1e-12)
    assert main(["verify", str(copy)]) == 0


def test_options_about_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--classes", "0"], ["--per-class", "3"], ["--duplicates", "merge"]):
        assert main(["pack", "digit-canvases", "position", "--out", str(tmp_path / options[0]), *options]) == 2
        assert f"{options[0]}" in (error := capsys.readouterr().err) and "have vectors of numbers" in error
