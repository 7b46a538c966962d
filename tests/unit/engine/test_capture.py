"""Skipped steps are kept with their weights, in limited number, and never at the cost of the run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from pretrain import records
from pretrain.engine.capture import (
    FILE,
    MOST_STEPS,
    MOST_WEIGHTS,
    Captures,
    captures_of,
    step_of_capture,
)
from pretrain.engine.capture import (
    SHAPE as OF_CAPTURE,
)
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.session import Session
from pretrain.engine.slices import SliceReader
from pretrain.engine.state import TrainState
from pretrain.files import remove_tree
from pretrain.telemetry.console import Reporter
from tests.faulty_disk import FaultyDisk, using
from tests.unit.engine.tiny_run import ALONE, SHAPE, Backend

BATCH = 4
ABOUT = {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1, "batch_digest": 7, "accumulation_steps": 1}


@pytest.fixture
def captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Captures:
    said: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: said.append(text))
    session = Session.of(ALONE, torch.device("cpu"), RunFolder(tmp_path))
    found = Captures(session, Backend(), "name: tiny\n", [torch.tensor([3, 1]), torch.tensor([4, 0])])
    found.said = said  # type: ignore[attr-defined]
    return found


def keep(captures: Captures, step: int, skipped: int = 0) -> None:
    """Keeps the step after ``step`` steps, of which the last ones were skipped."""
    captures.keep(
        TrainState(step, step * BATCH, step - skipped, skipped), (step - skipped) * BATCH, float("nan"), ABOUT
    )


def test_a_row_of_skipped_steps_shares_its_weights(captures: Captures, tmp_path: Path) -> None:
    for skipped in range(3):
        keep(captures, 8 + skipped, skipped)
    found = captures_of(tmp_path)
    assert [step_of_capture(path) for path in found] == [9, 10, 11]
    assert [(path / "slices").is_dir() for path in found] == [True, False, False]
    contents = [json.loads((path / FILE).read_text()) for path in found]
    assert {content["weights"] for content in contents} == {found[0].name}
    assert contents[2]["state"]["position"] == 10 * BATCH
    assert contents[0]["ranks"][0]["sample_ids"] == [[3, 1], [4, 0]]
    reader = SliceReader(found[0], range(1))
    assert reader.states() == {"master"}, "no optimiser state is needed"
    assert torch.equal(reader.full("master", "w"), captures.backend.slices()[0].states["master"].view(SHAPE))


def test_their_number_is_limited(captures: Captures, tmp_path: Path) -> None:
    for step in range(MOST_WEIGHTS + 2):
        keep(captures, 10 * step)
    assert len(captures_of(tmp_path)) == MOST_WEIGHTS
    for skipped in range(1, MOST_STEPS + 2):
        keep(captures, 100 + skipped, skipped)
    assert len(captures_of(tmp_path)) == MOST_STEPS
    assert "nonfinite is full" in captures.said[-1], captures.said  # type: ignore[attr-defined]


def test_a_disk_that_fails_costs_the_capture_only(captures: Captures, tmp_path: Path) -> None:
    """It is reported, and what counts as kept is complete."""
    for at in itertools.count():
        before = captures_of(tmp_path)
        failing = FaultyDisk("ENOSPC", at, lasting=True, changes_only=True)
        with using(failing):
            keep(captures, 8 + at)
        if not failing.has_fired:
            break
        assert "may not be kept for a replay" in captures.said[-1]  # type: ignore[attr-defined]
        for path in captures_of(tmp_path)[len(before) :]:
            assert records.read(path / FILE, OF_CAPTURE, without_hash=lambda value: False).problem is None
            assert SliceReader(path, range(1)).states() == {"master"}
            remove_tree(path)
    assert at > 3 and len(captures_of(tmp_path)) == 1
