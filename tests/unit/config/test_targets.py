"""What a sample carries decides which settings go together: everything else is refused, with the remedy."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.unit.data.sets import experiment

REGRESSION = {"objective__name": "regression"}
SET = {"shards": "x", "num_samples": 5}
REFUSED = {
    "mixing": ({**REGRESSION, "data__mixing": {"mixup": 0.2}}, "mixes labels, of which objective.name: regression has"),
    "augreg": ({**REGRESSION, "data__augreg": "medium1"}, "mixes labels, of which objective.name: regression has none"),
    "smoothing": ({**REGRESSION, "objective__label_smoothing": 0.1}, "label_smoothing belongs to name: softmax"),
    "loss elsewhere": ({"objective__regression": "l1"}, "regression belongs to name: regression"),
    "beta": ({**REGRESSION, "objective__beta": 2.0}, "beta belongs to regression: smooth_l1; with mse it would be"),
    "accuracy": (
        {**REGRESSION, "evaluation__sets": {"val": SET}},
        "evaluation.sets.val.kind: accuracy needs class labels, objective.name: regression learns from vectors of "
        "numbers; set kind: regression",
    ),
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
