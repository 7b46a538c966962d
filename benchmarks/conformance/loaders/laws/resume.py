"""Laws of the resume: the samples of an uninterrupted run, also on another layout, at a cost without position."""

from __future__ import annotations

from collections import Counter

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.laws.law import Law, first_problem, worst
from benchmarks.conformance.loaders.laws.order import long_run
from benchmarks.conformance.loaders.outcomes import Outcome
from benchmarks.conformance.loaders.system import System

STOP = 8  # of 20 batches
EARLY, LATE = 50, 1000  # of 1,041
SAVED = {"world": 2, "workers": 1}
WEIGHTS = (0.5, 0.5)
MIX_STOP, MIX_END = 8, 16
FOUR_SIGMA = 0.1  # of the share in 384 draws at weight 1/2


def same(system: System) -> Cell:
    """On the same layout."""
    full = uninterrupted(system)
    return _compare(full, {"2 ranks, 1 worker": system.run("even", **SAVED, load=STOP)}, exact=True)


def other_ranks(system: System) -> Cell:
    """At 4 ranks and at 1 rank."""
    full = uninterrupted(system)
    resumed = {f"{world} ranks": system.run("even", world=world, workers=1, load=STOP) for world in (4, 1)}
    return _compare(full, resumed, exact=False)


def other_workers(system: System) -> Cell:
    """With 3 workers and with none."""
    full = uninterrupted(system)
    resumed = {f"{count} workers": system.run("even", world=2, workers=count, load=STOP) for count in (3, 0)}
    return _compare(full, resumed, exact=False)


def seek(system: System) -> Cell:
    """Late in the epoch as early."""
    if problem := first_problem({"the run that saved": long_run(system)}):
        return problem
    early, late = (system.run("long", workers=1, load=batch, stop_after=1) for batch in (EARLY, LATE))
    if problem := first_problem({"early": early, "late": late}):
        return problem
    first, last = early.ranks[0].first, late.ranks[0].first
    good = last["cpu_s"] < 1.5 * first["cpu_s"] + 0.5 and last["read_mib"] < 1.5 * first["read_mib"] + 5
    return Cell(
        "holds" if good else "fails",
        f"until the first batch, at batch {EARLY} and at batch {LATE:,}: {first['cpu_s']:.1f} and {last['cpu_s']:.1f} "
        f"CPU seconds, {first['read_mib']:.0f} and {last['read_mib']:.0f} MiB read",
    )


def mixture(system: System) -> Cell:
    """Two sets of 960 and 240 samples at equal weights, before and after a resume."""
    settings = {"weights": WEIGHTS, "workers": 1}
    full = system.run("even", "other", **settings, stop_after=MIX_END, save_at=(MIX_STOP,))
    if problem := first_problem({"uninterrupted": full}):
        return problem
    after = system.run("even", "other", **settings, stop_after=MIX_END - MIX_STOP, load=MIX_STOP)
    if problem := first_problem({"resumed": after}):
        return problem
    wanted, found = full.ranks[0].batches, after.ranks[0].batches
    shares = [_share(batches) for batches in (wanted[:MIX_STOP], found)]
    equal = found == wanted[MIX_STOP:]
    good = all(abs(share - WEIGHTS[1]) < FOUR_SIGMA for share in shares)
    verdict = ("holds" if equal else "partly") if good else "fails"
    return Cell(
        verdict,
        f"share of the second set {shares[0]:.1%} before and {shares[1]:.1%} after the resume (weight "
        f"{WEIGHTS[1]:.0%}); samples after it {'equal to' if equal else 'other than'} the uninterrupted run's",
    )


def uninterrupted(system: System) -> Outcome:
    """An epoch of 2 ranks that saves its state on the way."""
    return system.run("even", **SAVED, save_at=(STOP,))


def _share(batches: list[list[int]]) -> float:
    drawn = [number for batch in batches for number in batch]
    return sum(number >= tars.SETS["other"].first for number in drawn) / max(1, len(drawn))


def _compare(full: Outcome, resumed: dict[str, Outcome], *, exact: bool) -> Cell:
    """The rest of an uninterrupted run, and resumed runs: equal batches, or at least the same samples."""
    if problem := first_problem({"uninterrupted": full} | resumed):
        return problem
    rest, seen, verdicts = full.global_batches()[STOP:], [], []
    wanted = Counter(number for batch in rest for number in batch)
    for name, outcome in resumed.items():
        found, counts = outcome.global_batches(), outcome.counts()
        equal = sum(a == b for a, b in zip(rest, found, strict=False))
        missing, extra = (wanted - counts).total(), (counts - wanted).total()
        kept = not exact or [rank.batches[STOP:] for rank in full.ranks] == [rank.batches for rank in outcome.ranks]
        verdicts.append("holds" if found == rest and kept else "partly" if not (missing or extra) else "fails")
        lost = f"{missing} samples lost, {extra} repeated"
        seen.append(f"{name}: {equal} of {len(rest)} remaining global batches equal, {lost}")
    return Cell(worst(verdicts), "; ".join(seen))


LAWS = {
    "resume": Law(
        "resume", "A state saved in the middle of an epoch gives the batches of the uninterrupted run.", same
    ),
    "resume_ranks": Law(
        "resume at other ranks", "A state of 2 ranks gives the same global batches at 4 ranks and at 1.", other_ranks
    ),
    "resume_workers": Law(
        "resume with other workers",
        "A state of 1 worker gives the same batches with 3 workers and none.",
        other_workers,
    ),
    "seek": Law(
        "seek cost",
        f"Resuming at batch {LATE:,} of 1,041 costs at most 1.5 × the CPU time and bytes of batch {EARLY}, plus 0.5 s "
        "and 5 MiB.",
        seek,
    ),
    "mixture": Law(
        "mixture through a resume",
        "Two sets at equal weights keep their shares (to 4 sigma of independent draws) and their samples.",
        mixture,
    ),
}
