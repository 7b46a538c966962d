"""Every kind of evaluation on packed sets: all ranks agree to the bit, and any number of them with one."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import to_model_input
from pretrain.data.storage.card import Card
from pretrain.distributed.rank import detect
from pretrain.engine.backends import build_backend
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.session import Session
from pretrain.errors import DataError
from pretrain.evaluation.context import Context
from pretrain.evaluation.registry import build_evaluators
from pretrain.models.families.registry import build_model, init_weights
from pretrain.models.metadata import TargetScale
from tests.pool import Pool
from tests.unit.data.sets import experiment, write_set

TRAIN, TEST = [30, 1, 0, 40], [13, 20]
MICRO = 4  # 71 and 33 images: the last batches have padding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "train", TRAIN, noise=True)
    write_set(folder / "test", TEST, noise=True)
    write_set(folder / "multi", TEST, multi_label=True, noise=True)
    real = [[index % 7, (index + 1) % 7] if index % 5 else [] for index in range(sum(TEST))]
    (folder / "real.json").write_text(json.dumps(real))
    return folder


def settings(folder: Path, **changes: Any) -> Experiment:
    """One set of each kind; the images are noise, and those of the test set are in the train set too."""
    test = {"shards": str(folder / "test"), "num_samples": sum(TEST)}
    learned = {**test, "train_shards": str(folder / "train"), "num_train_samples": sum(TRAIN)}
    sets = {
        "accuracy": test,
        "real": {**test, "targets": str(folder / "real.json")},
        "map": {**test, "kind": "label_map"},
        "multi": {**test, "kind": "multilabel", "shards": str(folder / "multi")},
        "few": {**learned, "kind": "few_shot", "shots": [1, 3]},
        "knn": {**learned, "kind": "knn", "k": 5},
        "logistic": {**learned, "kind": "logistic"},
    }
    given = {
        "evaluation__sets": sets, "evaluation__micro_batch_size": MICRO, "model__head_init": "normal",
        "precision": "fp32", "cluster__micro_batch_size": 4, **changes,
    }  # fmt: skip
    return experiment(folder / "train", sum(TRAIN), **given)


def measured(config: Experiment, stage: int | None) -> dict[str, dict[str, float]]:
    """Set → metrics as this rank has them, of an untrained model, bare or in DeepSpeed."""
    torch.manual_seed(0)
    rank, device = detect(), torch.device("cpu")
    model = build_model(config.model, config.num_outputs)
    init_weights(model, config.seed)
    forward: Any = model
    if stage is not None:
        accumulation = config.global_batch_size // 4 // rank.world
        backend = build_backend(config, model, rank, device, "deepspeed", (4, accumulation))
        backend.train(False)
        model, forward = backend.model, backend.forward
    to_images = functools.partial(to_model_input, mean=config.data.mean, std=config.data.std)
    card = Card.load(config.data.sources[0].shards)
    scale = TargetScale.of(card.target_mean, card.target_std)
    with tempfile.TemporaryDirectory() as folder:
        session = Session.of(rank, device, RunFolder(Path(folder)))
        context = Context(config, session, model, forward, to_images, scale)
        return {name: evaluator() for name, evaluator in build_evaluators(context).items()}


def test_ranks_agree_and_their_number_has_no_effect(folder: Path, pool1: Pool, pool2: Pool, pool4: Pool) -> None:
    config = settings(folder)
    (alone,) = pool1.run(measured, config, None)
    assert alone["accuracy"]["num_samples"] == alone["multi"]["num_samples"] == alone["few"]["num_samples"] == 33
    assert alone["real"]["num_samples"] == 33 - 7, "images without targets do not count"
    assert alone["map"] == alone["accuracy"], "equal ids: each output stands for its own class"
    assert set(alone["few"]) == {"1_shot", "1_shot_std", "3_shot", "3_shot_std", "num_samples"}
    assert 0 < alone["multi"]["mAP"] < 1 and alone["knn"]["knn_top1"] > 0.5, alone
    for pool in (pool2, pool4):
        first, *others = pool.run(measured, config, None)
        assert all(other == first for other in others), "to the bit"
        for name, metrics in alone.items():
            assert first[name] == pytest.approx(metrics, abs=1e-12), name


OTHER_TARGETS = {"regression": "vector", "segmentation": "mask"}


@pytest.mark.parametrize("kind", OTHER_TARGETS)
def test_other_targets_than_labels(tmp_path: Path, pool1: Pool, pool2: Pool, kind: str) -> None:
    write_set(tmp_path / "set", TEST, noise=True, target=OTHER_TARGETS[kind])
    chosen = {"kind": kind, "shards": str(tmp_path / "set"), "num_samples": sum(TEST)}
    config = experiment(
        tmp_path / "set", sum(TEST), objective__name=kind, evaluation__sets={"x": chosen}, precision="fp32",
        evaluation__micro_batch_size=MICRO, model__head_init="normal",
        model__head="dense" if kind == "segmentation" else "pooled",
    )  # fmt: skip
    (alone,) = pool1.run(measured, config, None)
    first, second = pool2.run(measured, config, None)
    assert first == second and first["x"] == pytest.approx(alone["x"], rel=1e-5)
    assert alone["x"]["num_samples"] == sum(TEST)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_sharded_weights_give_the_same(folder: Path, pool1: Pool, pool2: Pool, stage: int) -> None:
    (alone,) = pool1.run(measured, settings(folder), None)
    sharded = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if stage == 3 else {}
    config = settings(folder, cluster__zero_stage=stage, cluster__deepspeed=sharded)
    for found in pool2.run(measured, config, stage):
        for name, metrics in alone.items():
            assert found[name] == pytest.approx(metrics, abs=1e-12), name


BAD = {
    "shots": ({"kind": "few_shot", "shots": [25]}, "25 images per class, but .* has 10 of class 1"),
    "labels": ({"kind": "knn", "train": "multi", "num_train_samples": 33}, "do not have exactly one label"),
}


@pytest.mark.parametrize("case", BAD)
def test_sets_that_do_not_fit(folder: Path, case: str) -> None:
    changes, message = BAD[case]
    changes = dict(changes)
    train = folder / changes.pop("train", "train")
    chosen = {"shards": str(folder / "test"), "num_samples": 33, "train_shards": str(train), "num_train_samples": 71}
    config = settings(folder, evaluation__sets={"x": {**chosen, **changes}})
    with pytest.raises(DataError, match=message):
        measured(config, None)
