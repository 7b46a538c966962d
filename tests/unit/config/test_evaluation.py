"""Settings of an evaluation set that its kind would ignore, or lacks, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.loader import load_experiment
from pretrain.config.schema.evaluation import FEATURE_KINDS, KINDS
from pretrain.errors import ConfigError
from pretrain.evaluation.registry import EVALUATORS, PROBES

SMALL = """\
name: small
duration: 100 steps
global_batch_size: 64
model: {variant: mu/2, img_size: 8}
data: {shards: digits/train, num_samples: 714, num_classes: 5}
optim: {lr: 1e-4}
evaluation:
  sets:
    x: {shards: digits/val, num_samples: 187, %s}
"""
LEARNED = "train_shards: digits/train, num_train_samples: 50"


def write(folder: Path, settings: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(SMALL % settings)
    return path


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("k: 5", ["x.yaml:9", "k belongs to kind: knn; with accuracy it would be ignored"]),
        (f"kind: knn, {LEARNED}, shots: [1]", ["shots belongs to kind: few_shot"]),
        (f"kind: knn, {LEARNED}, l2: 1", ["l2 belongs to kind: few_shot or logistic"]),
        ("kind: few_shot", ["x.yaml:9", "sets.x.train_shards is missing: Location of the labelled training set"]),
        ("kind: logistic, train_shards: digits/train", ["evaluation.sets.x.num_train_samples is missing"]),
        (f"kind: accuracy, {LEARNED}", ["train_shards belongs to kind: few_shot, knn or logistic"]),
        (f"kind: knn, {LEARNED}, k: 51", ["k: 51 neighbours, but num_train_samples is 50"]),
        (f"kind: few_shot, {LEARNED}, shots: [5, 5]", ["shots: contains a duplicate"]),
        ("kind: multilabel, targets: real.json", ["targets belongs to kind: accuracy or label_map"]),
        ("class_map: map.csv", ["class_map belongs to kind: label_map"]),
        (
            "kind: mean_ap",
            ["kind: 'mean_ap' is not accuracy, multilabel, label_map, few_shot, knn, logistic, regression or "],
        ),
    ],
)
def test_refused(tmp_path: Path, settings: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, settings))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("settings", ["kind: accuracy", f"kind: few_shot, {LEARNED}, shots: [1, 5]", "kind: label_map"])
def test_a_resolved_config_loads_again(tmp_path: Path, settings: str) -> None:
    resolved = load_experiment(write(tmp_path, settings))
    again = tmp_path / "again.yaml"
    again.write_text(resolved.to_yaml())
    assert load_experiment(again).to_dict() == resolved.to_dict()


def test_every_kind_has_its_evaluator() -> None:
    assert EVALUATORS.keys() == KINDS.keys() and PROBES.keys() == FEATURE_KINDS.keys()


def test_colours_have_features_but_no_accuracy(tmp_path: Path) -> None:
    masked = ["objective.name=masked_patches", "model.mask_token=true"]
    load_experiment(write(tmp_path, f"kind: knn, {LEARNED}"), overrides=masked)
    with pytest.raises(ConfigError, match="a model that predicts colours has no accuracy"):
        load_experiment(write(tmp_path, "kind: accuracy"), overrides=masked)
