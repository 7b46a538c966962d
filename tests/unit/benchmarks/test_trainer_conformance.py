"""The laws of ``benchmarks/conformance/trainers``: ours keeps each of them, and each finds a trainer that does not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conformance.__main__ import measure
from benchmarks.conformance.kinds import KINDS
from benchmarks.conformance.trainers.laws import LAWS, faults
from benchmarks.conformance.trainers.outcomes import Outcome, RankOutcome, read_rank
from benchmarks.conformance.trainers.system import System

STEPS = range(1, 13)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ours_keeps_every_law(tmp_path: Path) -> None:
    system = System("ours", tmp_path)
    try:
        cells = {law: measure(KINDS["trainers"], system, law) for law in LAWS}
    finally:
        system.close()
    assert {law: cell.verdict for law, cell in cells.items()} == dict.fromkeys(LAWS, "holds"), cells


def outcome(start: int = 1, world: int = 2, log: str = "", **changed: Any) -> Outcome:
    """A run with the right losses from a step on."""
    losses = [{step: 1 / step for step in STEPS if step >= start} for _ in range(world)]
    return Outcome([RankOutcome(losses=one, **({"done": True} | changed)) for one in losses], log)


def wrong(start: int, by: float) -> Outcome:
    """The same, with losses that differ by a factor."""
    found = outcome(start)
    for rank in found.ranks:
        rank.losses = {step: loss * (1 + by) for step, loss in rank.losses.items()}
    return found


def in_save() -> Outcome:
    """A run that ended while it saved step 8."""
    found = outcome(done=False)
    for rank in found.ranks:
        rank.losses = {step: loss for step, loss in rank.losses.items() if step <= 8}
    return found


def from_nan(*ranks: int, log: str = "") -> Outcome:
    """A run whose losses after step 6 are NaN on some ranks."""
    found = outcome(log=log)
    for rank in ranks:
        found.ranks[rank].losses |= {step: math.nan for step in STEPS if step > 6}
    return found


class Fake:
    """A trainer whose runs have these outcomes, one after the other; the last one again and again."""

    def __init__(self, folder: Path, *outcomes: Outcome) -> None:
        self._folder, self._outcomes, self.full = folder, list(outcomes), outcome()
        self.facts = {"newest": ["step-8/*"], "not_offered": {}}

    @property
    def killed(self) -> Path:
        """With one file in its newest checkpoint."""
        return self.copied("killed")

    def copied(self, purpose: str) -> Path:
        """A folder of that name with the file."""
        file = self._folder / purpose / "step-8" / "rank_0.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(100))
        return self._folder / purpose

    def empty(self, purpose: str) -> Path:
        """A folder of that name."""
        return self._folder / purpose

    def run(self, folder: Path, world: int = 2, **settings: Any) -> Outcome:
        """The next outcome."""
        return self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]

    launch = run


def ended(seconds: float | None, code: int) -> Outcome:
    """A launched job, so long after its rank was killed."""
    now = time.time()
    found = outcome(killed=now)
    found.code, found.ended = code, None if seconds is None else now + seconds
    return found


failed = Outcome([RankOutcome(error="OSError: crc"), RankOutcome()])
CASES: list[tuple[str, Callable[[], tuple[Outcome, ...]], str]] = [
    ("killed", lambda: (outcome(9),), "holds"),
    ("killed", lambda: (wrong(9, 1e-6),), "partly"),
    ("killed", lambda: (wrong(9, 1e-3),), "fails"),
    ("killed", lambda: (outcome(1),), "fails"),
    ("killed", lambda: (failed,), "fails"),
    ("ranks", lambda: (outcome(9, 1), outcome(9, 4)), "holds"),
    ("ranks", lambda: (outcome(9, 1), failed), "partly"),
    ("ranks", lambda: (wrong(9, 1e-3),), "fails"),
    ("killed_save", lambda: (in_save(), outcome(5)), "holds"),
    ("killed_save", lambda: (in_save(), failed), "partly"),
    ("killed_save", lambda: (in_save(), outcome(1)), "fails"),
    ("killed_save", lambda: (in_save(), wrong(9, 0.1)), "fails"),
    ("killed_save", lambda: (in_save(), in_save()), "fails"),
    ("killed_save", lambda: (outcome(),), "not measured"),
    ("full_disk", lambda: (failed, outcome(5)), "holds"),
    ("full_disk", lambda: (outcome(), outcome(5)), "fails"),
    ("full_disk", lambda: (failed, failed), "partly"),
    ("full_disk", lambda: (in_save(), outcome(5)), "fails"),
    ("flipped", lambda: (failed,), "holds"),
    ("flipped", lambda: (outcome(5, log="step-8 is damaged"),), "holds"),
    ("flipped", lambda: (outcome(5),), "fails"),
    ("flipped", lambda: (wrong(9, 1e-7),), "fails"),
    ("flipped", lambda: (outcome(9),), "not measured"),
    ("flipped", lambda: (outcome(9), wrong(9, 1e-7)), "fails"),
    ("flipped", lambda: (in_save(),), "fails"),
    ("truncated", lambda: (failed,), "holds"),
    ("truncated", lambda: (outcome(1),), "fails"),
    ("nan", lambda: (from_nan(log="the gradient is not finite"),), "holds"),
    ("nan", lambda: (from_nan(),), "partly"),
    ("nan", lambda: (from_nan(0, 1),), "partly"),
    ("nan", lambda: (from_nan(1),), "fails"),
    ("nan", lambda: (failed,), "fails"),
    ("killed_rank", lambda: (ended(20, 1),), "holds"),
    ("killed_rank", lambda: (ended(200, 1),), "fails"),
    ("killed_rank", lambda: (ended(20, 0),), "fails"),
    ("killed_rank", lambda: (ended(None, 1),), "fails"),
]


@pytest.mark.parametrize(("law", "outcomes", "verdict"), CASES)
def test_a_law_finds_a_trainer_that_breaks_it(
    tmp_path: Path, law: str, outcomes: Callable[[], tuple[Outcome, ...]], verdict: str
) -> None:
    cell = measure(KINDS["trainers"], Fake(tmp_path, *outcomes()), law)
    assert cell.verdict == verdict, cell.seen


def test_every_law_is_seen_to_hold_and_to_fail() -> None:
    assert {(law, verdict) for law, _, verdict in CASES} >= {(law, v) for law in LAWS for v in ("holds", "fails")}


def test_damage_and_classes_of_files(tmp_path: Path) -> None:
    names = ("rank_0.pt", "rank_1.pt", "latest", "empty")
    for name in names:
        (tmp_path / name).write_bytes(bytes(100 if name != "empty" else 0))
    found = faults.classes(tmp_path, ["*"])
    assert set(found) == {"rank_N.pt", "latest"}
    faults.flip(found["latest"])
    assert found["latest"].read_bytes() == bytes(51) + b"\xff" + bytes(48)
    faults.cut(found["latest"])
    assert found["latest"].stat().st_size == 50


def test_a_report_is_a_line_that_the_uninterrupted_run_does_not_print() -> None:
    usual = outcome(log="overflow check: 1\n")
    assert not outcome(log="overflow check: 2\n").reports(faults.NAN_REPORTS, usual)
    assert outcome(log="overflow in step 2\n").reports(faults.NAN_REPORTS, usual)


def test_what_a_rank_reports_is_read(tmp_path: Path) -> None:
    (tmp_path / "rank-0.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"killed": 5.0}\n{"held": true}\n{"error": "x"}\n'
    )
    rank = read_rank(tmp_path / "rank-0.jsonl")
    assert math.isnan(rank.losses[1]) and (rank.killed, rank.held, rank.done, rank.error) == (5.0, True, False, "x")
    assert read_rank(tmp_path / "rank-1.jsonl") == RankOutcome()
