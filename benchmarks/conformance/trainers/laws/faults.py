"""Laws about damage: to a checkpoint, to a gradient, and to the ranks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.trainers.laws.law import REPORTS, Law, differing
from benchmarks.conformance.trainers.outcomes import SILENT_END, Outcome
from benchmarks.conformance.trainers.system import KILL_AT, System

NAN_STEP = 6
LIMIT_S = 120
PLACES = (0.5, 0.35, 0.65, 0.8)  # of a file; some weights have no effect, such as those of pixels that are always black
NAN_REPORTS = re.compile(r"\bnan\b|finite|overflow", re.I)
NOTICED, NO_EFFECT, SILENT = "noticed", "no effect", "silent"


def flipped(system: System) -> Cell:
    """A byte of a file of each class is inverted: at the next place if the losses do not depend on it."""
    return _damaged(system, [partial(flip, share=share) for share in PLACES])


def truncated(system: System) -> Cell:
    """A file of each class loses its second half."""
    return _damaged(system, [cut])


def flip(path: Path, share: float = 0.5) -> None:
    """Inverts the byte after a share of the file: that with the sign and the exponent of an aligned float32."""
    data = bytearray(path.read_bytes())
    place = min(int(len(data) * share) | 3, len(data) - 1)
    data[place] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Keeps the first half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def classes(folder: Path, patterns: list[str]) -> dict[str, Path]:
    """One file of each class below a folder; files whose names differ in digits only are of one class."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {re.sub(r"\d+", "N", path.name): path for path in found if path.stat().st_size}


def _damaged(system: System, damages: Sequence[Callable[[Path], None]]) -> Cell:
    seen, verdicts = [], []
    for name, path in classes(system.killed, system.facts["newest"]).items():
        verdict = text = NO_EFFECT
        for damage in damages:
            folder = system.copied("damaged")
            damage(folder / path.relative_to(system.killed))
            verdict, text = judge(system.full, system.run(folder))
            if verdict != NO_EFFECT:
                break
        verdicts.append(verdict)
        seen.append(f"{name}: {text}")
    if NOTICED not in verdicts and SILENT not in verdicts:
        return Cell("not measured", f"the damage had no effect: {'; '.join(seen)}")
    return Cell("fails" if SILENT in verdicts else "holds", "; ".join(seen))


def judge(full: Outcome, resumed: Outcome) -> tuple[str, str]:
    """Whether the damage was noticed, and what was seen."""
    if resumed.problem == SILENT_END:
        return SILENT, SILENT_END
    if resumed.problem:
        return NOTICED, f"error: {resumed.problem[:160]}"
    newest = KILL_AT - 1
    if resumed.start == newest and resumed.is_same(full):
        return NO_EFFECT, "no effect on the losses"
    said = resumed.reports(REPORTS, full)
    text = f"continues at step {resumed.start} with {differing(full, resumed)}, "
    if resumed.start != newest and said:
        return NOTICED, text + "and reports the damage"
    return SILENT, text + "without a word"


def nan(system: System) -> Cell:
    """The loss of rank 1 is NaN in step 6."""
    outcome = system.run(system.empty("nan"), nan_at=NAN_STEP)
    said = outcome.reports(NAN_REPORTS, system.full)
    if outcome.problem:
        good = bool(NAN_REPORTS.search(outcome.problem))
        return Cell("holds" if good else "fails", f"it stops: {outcome.problem}")
    after = [[loss for step, loss in rank.losses.items() if step > NAN_STEP] for rank in outcome.ranks]
    finite = [all(map(math.isfinite, losses)) for losses in after]
    if all(finite):
        verdict = "holds" if said else "partly"
        return Cell(verdict, f"the step is skipped on all ranks, {'and reported' if said else 'without a word'}")
    if any(finite):
        return Cell("fails", "ranks differ: some continue with NaN weights, others do not")
    return Cell("partly", "every later loss is NaN on all ranks; the run continues to its end")


def killed_rank(system: System) -> Cell:
    """Rank 1 is killed, under the documented launcher."""
    outcome = system.launch(system.empty("killed-rank"), die_at=NAN_STEP)
    died = outcome.ranks[1].killed
    if died is None:
        return Cell("not measured", f"the ranks did not come to step {NAN_STEP}: {outcome.log[-300:]}")
    if outcome.ended is None:
        return Cell("fails", "its processes were still running at the limit of a run")
    seconds = outcome.ended - died
    seen = f"all processes have ended {seconds:.0f} s after the kill, exit code {outcome.code}"
    return Cell("holds" if seconds <= LIMIT_S and outcome.code else "fails", seen)


LAWS = {
    "flipped": Law(
        "a flipped byte",
        "A byte of the newest checkpoint is inverted, once in a file of each class: an error, or an older checkpoint "
        "and a report.",
        flipped,
    ),
    "truncated": Law(
        "a truncated file",
        "A file of the newest checkpoint, one of each class, loses its second half: an error, or an older checkpoint "
        "and a report.",
        truncated,
    ),
    "nan": Law(
        "NaN on one rank",
        "The loss of one rank is NaN in one step: it is reported, and later losses are finite on all ranks (partly: "
        "they are NaN on all ranks, or the skip is not reported).",
        nan,
    ),
    "killed_rank": Law(
        "a killed rank",
        f"Under the documented launcher, all processes end with an error at most {LIMIT_S} s after one rank is killed.",
        killed_rank,
    ),
}
