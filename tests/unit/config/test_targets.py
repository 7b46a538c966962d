"""The target of a sample decides which settings go together; others are refused with the remedy."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.unit.data.sets import experiment

REGRESSION = {"objective__name": "regression"}
MASKS = {"objective__name": "segmentation", "model__head": "dense"}
SET = {"shards": "x", "num_samples": 5}
REFUSED = {
    "mixing": ({**REGRESSION, "data__mixing": {"mixup": 0.2}}, "mixes labels, of which objective.name: regression has"),
    "augreg": ({**REGRESSION, "data__augreg": "medium1"}, "mixes labels, of which objective.name: regression has none"),
    "smoothing": ({**REGRESSION, "objective__label_smoothing": 0.1}, "label_smoothing belongs to name: softmax"),
    "loss elsewhere": (
        {"objective__regression": "l1"},
        "objective.softmax.regression\n  Extra inputs are not permitted",
    ),
    "beta": ({**REGRESSION, "objective__beta": 2.0}, "beta belongs to regression: smooth_l1; with mse it would be"),
    "accuracy": (
        {**REGRESSION, "evaluation__sets": {"val": SET}},
        "evaluation.sets.val.kind: accuracy needs class labels, objective.name: regression learns from vectors of "
        "numbers; set kind: regression",
    ),
    "pooled head": ({"objective__name": "segmentation"}, "objective.name: segmentation needs model.head: dense"),
    "dense head": ({"model__head": "dense"}, "objective.name: softmax needs model.head: pooled"),
    "geometry": ({**MASKS, "data__train_transform": {"auto_augment": "rand-m9"}}, "not in its mask; remove it, or use"),
    "erasing": ({**MASKS, "data__train_transform": {"random_erasing": {}}}, "train_transform.random_erasing"),
    "mixing masks": ({**MASKS, "data__mixing": {"cutmix": 1.0}}, "of which objective.name: segmentation has none"),
    "few-shot": (
        {**MASKS, "evaluation__sets": {"few": {**SET, "kind": "knn", "train_shards": "y", "num_train_samples": 30}}},
        "evaluation.sets.few.kind: knn looks at one vector per image",
    ),
    "cropped": ({**MASKS, "data__eval_transform": {}}, "data.eval_transform.resize: short_side cuts pixels away"),
    "accuracy of masks": (
        {**MASKS, "evaluation__sets": {"val": SET}},
        "accuracy needs class labels, objective.name:",
    ),
    "classes": ({**MASKS, "data__num_classes": 256}, "masks have at most 255 classes"),
    "regression of classes": (
        {"evaluation__sets": {"val": {**SET, "kind": "regression"}}},
        "kind: regression needs vectors of numbers, objective.name: softmax learns from class labels",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ValidationError) as caught:
        experiment("x", 20, **settings)
    assert message in str(caught.value)


def test_accepted() -> None:
    probe = {**SET, "kind": "knn", "train_shards": "y", "num_train_samples": 30}
    sets = {"val": {**SET, "kind": "regression"}, "probe": probe}
    config = experiment("x", 20, **REGRESSION, objective__regression="smooth_l1", evaluation__sets=sets)
    assert config.num_outputs == config.data.num_classes
    assert [chosen.chief_metric for chosen in config.evaluation.sets.values()] == ["mae", "knn_top1"]
