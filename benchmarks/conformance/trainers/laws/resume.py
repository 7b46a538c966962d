"""Laws of the resume: after a kill, with another number of ranks, and after a save that failed."""

from __future__ import annotations

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.trainers.laws.law import ROUNDING, Law, after_a_failed_save, differing
from benchmarks.conformance.trainers.outcomes import SILENT_END
from benchmarks.conformance.trainers.system import System

SAVE = 8  # of the saves at 4, 8 and 12


def same(system: System) -> Cell:
    """With the same ranks."""
    full, resumed = system.full, system.run(system.copied("same"))
    if resumed.problem or resumed.start == 1:
        return Cell("fails", resumed.problem or "it starts again from step 1")
    close = resumed.difference(full) <= ROUNDING
    verdict = "holds" if resumed.is_same(full) else "partly" if close else "fails"
    return Cell(verdict, f"continues at step {resumed.start} with {differing(full, resumed)}")


def other_ranks(system: System) -> Cell:
    """At 1 rank and at 4."""
    full, good, seen = system.full, [], []
    for world in (1, 4):
        resumed, ranks = (
            system.run(system.copied(f"ranks-{world}"), world),
            "1 rank" if world == 1 else f"{world} ranks",
        )
        if resumed.problem or resumed.start == 1:
            good.append(False)
            seen.append(f"{ranks}: {resumed.problem or 'it starts again from step 1'}")
            continue
        good.append(resumed.difference(full) <= ROUNDING)
        seen.append(f"{ranks}: continues at step {resumed.start} with {differing(full, resumed)}")
    return Cell("holds" if all(good) else "partly" if any(good) else "fails", "; ".join(seen))


def killed_save(system: System) -> Cell:
    """The ranks die while they write the checkpoint of step 8."""
    folder = system.empty("killed-save")
    first = system.run(folder, full_at=SAVE, kill_in_save=True)
    if any(rank.done or SAVE not in rank.losses for rank in first.ranks):
        return Cell("not measured", f"no rank died in the save: {first.problem or 'the run came to its end'}")
    return after_a_failed_save(system.full, system.run(folder))


def full_disk(system: System) -> Cell:
    """The checkpoint of step 8 does not fit."""
    folder = system.empty("full-disk")
    first = system.run(folder, full_at=SAVE)
    if first.problem in (None, SILENT_END):
        return Cell("fails", first.problem or "the run that cannot save ends as if all were well")
    cell = after_a_failed_save(system.full, system.run(folder))
    return Cell(cell.verdict, f"it stops with an error ({first.problem[:200]}); {cell.seen}")


LAWS = {
    "killed": Law(
        "kill and resume",
        "After `kill -9` of all ranks in step 10, the same command has the losses of the uninterrupted run on every "
        "rank, bit for bit (partly: to 1e-5).",
        same,
    ),
    "ranks": Law(
        "resume at other ranks",
        "A checkpoint of 2 ranks continues at 1 rank and at 4 with the global batch's losses to 1e-5 (partly: at one "
        "of them).",
        other_ranks,
    ),
    "killed_save": Law(
        "killed in a save",
        "The kernel kills the ranks in the middle of writing a checkpoint; the next start uses the last complete one "
        "(partly: it stops with an error).",
        killed_save,
    ),
    "full_disk": Law(
        "a full disk",
        "A checkpoint that the disk has no room for is an error, and the next start uses the one before it (partly: "
        "the next start stops with an error).",
        full_disk,
    ),
}
