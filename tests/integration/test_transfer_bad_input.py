"""Mistakes in a transfer: each command names the problem, the place and the remedy, and exits with 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from tests.command import Commands
from tests.integration.small_run import FINETUNE, SMALL
from tests.integration.test_docs import _weights

TRAIN, VAL, OTHER = "data/demo/downstream/train", "data/demo/downstream/val", "data/demo/upstream/val"


@pytest.fixture(scope="module")
def places(digits: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of five classes at 32 px, a split without images, and a set of two classes."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(VAL, folder / "empty")
    table = ShardTable(folder / "empty", [], num_classes=5, max_labels=1)
    table.save()
    nothing = {"num_samples": 0, "num_shards": 0, "num_bytes": 0, "class_counts": []}
    card = Card.load(VAL).model_copy(update=nothing | {"index_digest": table.digest})
    (folder / "empty" / "card.json").write_bytes(card.to_json())
    assert main(["pack", "digits", "--classes", "0-1", "--out", str(folder / "two")]) == 0
    weights = _weights(folder / "weights.safetensors")
    return {"W": str(weights), "EMPTY": str(folder / "empty"), "TWO": str(folder / "two" / "train")}


# Words of the command (W, EMPTY and TWO are the places above) → words of its answer.
STAGES: dict[str, tuple[list[str], list[str]]] = {
    "evaluate: other classes": (["evaluate", "TWO", "--from", "W"], ["2 classes, the model has 5", "--match ids"]),
    "evaluate: labels outside the head": (
        ["evaluate", OTHER, "--from", "W", "--match", "numbers", "--targets", "real.json"],
        ["real.json", "cannot be read"],
    ),
    "evaluate: empty split": (["evaluate", "EMPTY", "--from", "W"], ["holds no image", "name another split"]),
    "evaluate: resolution": (["evaluate", VAL, "--from", "W", "--img-size", "33"], ["img_size", "33"]),
    "evaluate: not the set's metric": (
        ["evaluate", VAL, "--from", "W", "--class-map", "none.csv"],
        ["none.csv", "cannot be read"],
    ),
    "probe: empty train": (
        ["probe", "--from", "W", "--train", "EMPTY", "--test", VAL, "--kind", "knn", "--k", "1"],
        ["holds no image", "name another split"],
    ),
    "probe: empty test": (
        ["probe", "--from", "W", "--train", TRAIN, "--test", "EMPTY", "--kind", "knn"],
        ["holds no image"],
    ),
    "probe: other classes": (
        ["probe", "--from", "W", "--train", TRAIN, "--test", "TWO"],
        ["2 classes", "must be splits of one set"],
    ),
    "predict: empty split": (["predict", "EMPTY", "--from", "W"], ["EMPTY", "holds no image"]),
    "collect: nothing": (["collect", "data"], ["no sweep.json or probe.json", "sweep or probe"]),
    "sweep: empty split": (
        ["sweep", "--config", FINETUNE, "data.shards=EMPTY", "sweep={grid: {optim.lr: [0.1, 0.2]}}"],
        ["data.num_samples", "0"],
    ),
}


@pytest.mark.parametrize("case", STAGES)
def test_a_stage_refuses_bad_input(
    places: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    words, answers = STAGES[case]
    words = [places.get(word, word.replace("EMPTY", places["EMPTY"])) for word in words]
    if words[0] == "probe":
        words += ["--out", str(tmp_path), "--cache", str(tmp_path)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    assert all(places.get(answer, answer) in error for answer in answers), error
    assert len(error.splitlines()) <= 8 and "Traceback" not in error


# Settings of a fine-tuning → words of its answer.
FINETUNINGS: dict[str, tuple[list[str], list[str]]] = {
    "labels outside the head": (["data.num_classes=3"], ["data.num_classes", "5"]),
    "empty split": (["evaluation.sets.val.shards=EMPTY"], ["evaluation.sets.val", "0"]),
    "another architecture": (["--from", "W", "model.variant=nano/2"], ["error: ", "weights"]),
    "resolution": (["--from", "W", "model.variant=mu/8", "model.img_size=33"], ["img_size", "33"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FINETUNINGS)
def test_a_fine_tuning_refuses_bad_input(places: dict[str, str], command: Commands, tmp_path: Path, case: str) -> None:
    settings, answers = FINETUNINGS[case]
    settings = [places.get(word, word.replace("EMPTY", places["EMPTY"])) for word in settings]
    small = [word for word in SMALL if not word.startswith("model.")]
    done = command.run(
        "python", "pipelines/finetune.py", "--config", FINETUNE, *small, f"output_dir={tmp_path}", *settings
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(answer in done.stderr for answer in answers), done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 8


@pytest.mark.slow
def test_a_test_set_that_is_trained_on_is_told(digits: None, command: Commands, tmp_path: Path) -> None:
    sets = f"evaluation.sets.val={{shards: {TRAIN}, num_samples: 50}}"
    words = ["--config", FINETUNE, *SMALL, "model.img_size=16", f"output_dir={tmp_path}", sets]
    done = command.run("python", "pipelines/finetune.py", *words, check=True)
    assert (
        "warning: 50 of the 50 images of data/demo/downstream/train (evaluation.sets.val)" in done.stdout + done.stderr
    )
