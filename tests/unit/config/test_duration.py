"""Durations and intervals: every way to write one, and what it is in steps and seconds."""

from __future__ import annotations

import pytest

from pretrain.config.duration import Duration, Interval
from pretrain.config.subset import Subset


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


@pytest.mark.parametrize(
    ("text", "training", "seconds", "written"),
    [
        ("1000 steps", Duration(1000, "steps"), None, "1000 steps"),
        ("5 epochs", Duration(5, "epochs"), None, "5 epochs"),
        ("15 minutes", None, 900, "15 minutes"),
        ("0.5 hours", None, 1800, "30 minutes"),
        ("90 seconds", None, 90, "90 seconds"),
        ("1 hour", None, 3600, "1 hours"),
        ("1_000 steps or 15 minutes", Duration(1000, "steps"), 900, "1000 steps or 15 minutes"),
        ("15 minutes or 2 epochs", Duration(2, "epochs"), 900, "2 epochs or 15 minutes"),
    ],
)
def test_an_interval_is_training_or_time_or_both(
    text: str, training: Duration | None, seconds: float | None, written: str
) -> None:
    interval = Interval.parse(text)
    assert interval == Interval(training, seconds)
    assert str(interval) == written
    assert Interval.parse(written) == interval


@pytest.mark.parametrize(
    "text",
    [
        *("", "15", 15, None, "0 minutes", "-1 minutes", "15 days", "1e999 hours", ["1 steps", "15 minutes"]),
        *("1 steps or", "1 steps or 2 epochs", "1 hour or 2 minutes", "1 steps or 2 minutes or 3 epochs"),
    ],
)
def test_an_interval_is_one_of_each_at_most(text: object) -> None:
    with pytest.raises(ValueError, match="not an interval: write a duration such as '1000 steps', a time such as"):
        Interval.parse(text)


@pytest.mark.parametrize(
    ("text", "count", "shown"),
    [
        ("10 %", 100, "10 %"),
        ("10%", 100, "10 %"),
        ("0.25 %", 2, "0.25 %"),
        ("100 %", 1000, "100 %"),
        ("50_000 samples", 50_000, "50000 samples"),
        ("1 sample", 1, "1 samples"),
    ],
)
def test_parts(text, count, shown):
    subset = Subset.parse(text)
    assert (subset.count(1000), str(subset)) == (count, shown)
    assert Subset.parse(str(subset)) == subset


@pytest.mark.parametrize("text", ["10", "10 percent", "0 %", "101 %", "2.5 samples", "0 samples", "% 10", 10, None])
def test_what_is_no_part(text):
    with pytest.raises(ValueError, match=r"not a part of a data set|must be"):
        Subset.parse(text)
