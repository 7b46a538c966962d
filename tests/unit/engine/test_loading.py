"""Reasons to refuse a load, and findings that are only reported."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pretrain.engine.loading import Reading, judge, marker_entries

FIRST = tuple(range(8))
NAN = math.nan
OLD = {"probe_loss": 2.0, "precision": "fp32", "config_digest": "c"}  # as written before samples were recorded
NEW = OLD | {"probe_samples": list(FIRST), "probe_settings": "s"}


@pytest.mark.parametrize(
    ("marker", "reading", "kind", "words"),
    [
        (NEW, Reading(2.0, FIRST, "s"), "agrees", ""),
        (NEW, Reading(2.0001, FIRST, "s"), "agrees", ""),
        (NEW, Reading(2.001, FIRST, "s"), "error", "2.001000 after loading, 2.000000 when saved"),
        (NEW, Reading(NAN, FIRST, "s"), "error", "nan after loading"),
        (NEW | {"probe_loss": NAN}, Reading(NAN, FIRST, "s"), "agrees", ""),
        (NEW | {"probe_loss": NAN}, Reading(2.0, FIRST, "s"), "error", "nan when saved"),
        (NEW, Reading(9.0, (0, 1, 3, *range(3, 8)), "s"), "warning", "other samples"),
        (NEW, Reading(9.0, FIRST, "t"), "warning", "settings that decide its loss"),
        (NEW, None, "warning", "its samples cannot be read"),
        (NEW | {"probe_loss": None}, Reading(2.0, FIRST, "s"), "warning", "the checkpoint has none"),
        (NEW | {"precision": "bf16"}, Reading(2.03, FIRST, "s"), "agrees", ""),
        (OLD, Reading(2.0, FIRST, "s"), "agrees", ""),
        (OLD, Reading(3.0, FIRST, "s"), "error", "3.000000 after loading"),
        (OLD, Reading(3.0, FIRST[:5], "s"), "warning", "other samples"),
        (OLD | {"config_digest": "d"}, Reading(3.0, FIRST, "s"), "warning", "other settings were changed"),
    ],
)
def test_the_judgement(marker: dict[str, Any], reading: Reading | None, kind: str, words: str) -> None:
    found = judge(marker, reading, precision="fp32", config_digest="c")
    said = {"error": found.error, "warning": found.warning}
    assert {name for name, text in said.items() if text is not None} == ({kind} if kind != "agrees" else set())
    assert words in (said.get(kind) or "")


def test_a_reading_agrees_with_the_marker_that_it_was_written_to() -> None:
    reading = Reading(1.5, (3, 4), "s")
    marker = {"precision": "fp32", "config_digest": "c", **marker_entries(reading)}
    assert judge(marker, reading, precision="fp32", config_digest="d").error is None
    assert judge(marker, reading, precision="fp32", config_digest="d").warning is None
