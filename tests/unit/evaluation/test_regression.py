"""MAE, RMSE and R² are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from pretrain.evaluation.regression import errors

TRUE = np.random.default_rng(0).normal([5.0, -300.0], [1.0, 40.0], size=(50, 2))
CONSTANT = np.column_stack([TRUE[:, 0], np.full(50, 3.0)])
CASES = {
    "noisy": (TRUE, TRUE + np.random.default_rng(1).normal(0, [0.5, 30], size=TRUE.shape)),
    "worse than the mean": (TRUE, TRUE[::-1].copy()),
    "one number": (TRUE[:, :1], TRUE[:, :1] + 0.1),
    "constant, missed": (CONSTANT, CONSTANT + 0.1),
    "constant, met": (CONSTANT, np.column_stack([CONSTANT[:, 0] + 0.1, CONSTANT[:, 1]])),
}


@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_scikit_learn(case: str) -> None:
    true, predicted = CASES[case]
    found = errors(predicted, true)
    assert found["mae"] == pytest.approx(mean_absolute_error(true, predicted))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(true, predicted))
    assert found["r2"] == pytest.approx(r2_score(true, predicted))
