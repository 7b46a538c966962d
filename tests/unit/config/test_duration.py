"""Durations: every way to write one, and what it is in steps."""

from __future__ import annotations

import pytest

from pretrain.config.duration import Duration


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("90 epochs", 90, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("20_000 steps", 20_000, "steps"),
        ("303e6 samples", 303e6, "samples"),
        ("0.5epochs", 0.5, "epochs"),
        ("  7  steps ", 7, "steps"),
    ],
)
def test_reads_a_number_and_its_unit(text: str, value: float, unit: str) -> None:
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize("text", ["", "90", 90, "epochs", "-1 epochs", "90 days", "1e steps", "1 2 steps", None])
def test_refuses_what_has_no_number_or_unit(text: object) -> None:
    with pytest.raises(ValueError, match="number and its unit"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("20_000 steps", 20_000),
        ("1 epochs", 250),
        ("303e6 samples", 75_750_000),
        ("0 steps", 0),
        ("0.001 epochs", 0),
        ("3 samples", 1),
    ],
)
def test_steps_of_a_set_of_1000_at_batch_4(text: str, steps: int) -> None:
    assert Duration.parse(text).to_steps(num_samples=1000, global_batch_size=4) == steps


@pytest.mark.parametrize(
    "text", ["90 epochs", "0.5 epochs", "20_000 steps", "303e6 samples", "1e-7 epochs", "1e22 steps"]
)
def test_text_reads_back(text: str) -> None:
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)
