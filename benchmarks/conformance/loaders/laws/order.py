"""Laws of the order: each sample once, the same global batches on any layout, a good shuffle."""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy.stats import spearmanr

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import GLOBAL_BATCH
from benchmarks.conformance.loaders.laws.law import Law, first_problem, worst
from benchmarks.conformance.loaders.outcomes import Outcome
from benchmarks.conformance.loaders.system import System

EVEN = tars.SETS["even"].numbers
NUM_CLASSES = 10  # of the long set, whose tars are sorted by class
GOOD_CORRELATION, GOOD_CLASSES = 0.1, 0.9


def once(system: System) -> Cell:
    """Each sample once, by one process and by two ranks with data processes."""
    runs = {"1 rank": base(system), "2 ranks with 3 workers": system.run("even", world=2, workers=3)}
    workers_of = dict(zip(runs, (0, 3), strict=True))
    if problem := first_problem(runs):
        return problem
    seen, verdicts = [], []
    for name, outcome in runs.items():
        counts = outcome.counts(0)
        missing, twice = _compare(counts, EVEN)
        rest = sum(len(rank.batches[0]) for rank in outcome.ranks) * max(1, workers_of[name])
        verdicts.append("fails" if twice or missing >= rest else "partly" if missing else "holds")
        seen.append(f"{name}: {len(counts)} of {len(EVEN)} samples, {missing} missing, {twice} more than once")
    return Cell(worst(verdicts), "; ".join(seen))


def ranks(system: System) -> Cell:
    """The same global batches at 1, 2, 3 and 4 ranks."""
    others = {f"{world} ranks": system.run("even", world=world) for world in (2, 3, 4)}
    return _same_batches(base(system), others)


def workers(system: System) -> Cell:
    """The same global batches with 0, 1 and 3 workers."""
    others = {f"{count} workers": system.run("even", workers=count) for count in (1, 3)}
    return _same_batches(base(system), others)


def epochs(system: System) -> Cell:
    """Another order in the next epoch."""
    outcome = base(system)
    if problem := first_problem({"2 epochs": outcome}):
        return problem
    first, second = ([n for batch in _drawn(outcome, epoch) for n in batch] for epoch in (0, 1))
    if not second:
        return Cell("fails", "the second epoch has no samples")
    equal = sum(a == b for a, b in zip(first, second, strict=False)) / min(len(first), len(second))
    return Cell("holds" if equal < 0.05 else "fails", f"{equal:.1%} of the positions hold the same sample")


def uneven(system: System) -> Cell:
    """Two ranks with two workers each, on shards of 1 to 120 samples: as many batches on each rank, nothing lost."""
    outcome = system.run("uneven", world=2, workers=2, epochs=2)
    if problem := first_problem({"2 ranks": outcome}):
        return problem
    counts, steps = outcome.counts(), [len(rank.batches) for rank in outcome.ranks]
    drawn = [counts[number] for number in tars.SETS["uneven"].numbers]
    lost, repeated = sum(max(0, 2 - times) for times in drawn), sum(max(0, times - 2) for times in drawn)
    never = drawn.count(0)
    seen = (
        f"batches per rank: {steps[0]} and {steps[1]}; of 2 × {len(drawn)} draws {lost} are missing and {repeated} are "
        f"repetitions; {never} samples in neither epoch"
    )
    if len(set(steps)) > 1:
        return Cell("fails", f"{seen}: a job with collectives would hang")
    if lost or repeated:
        return Cell("partly" if max(lost, repeated) < 2 * GLOBAL_BATCH else "fails", seen)
    return Cell("holds", seen)


def shuffle(system: System) -> Cell:
    """How far the order of an epoch of 50,000 samples, stored by class, is from the stored one."""
    outcome = long_run(system)
    if problem := first_problem({"1 rank": outcome}):
        return problem
    drawn = [n for batch in _drawn(outcome, 0) for n in batch]
    places = np.asarray(drawn)
    along = abs(float(spearmanr(np.arange(len(places)), places).statistic))
    neighbours = abs(float(spearmanr(places[:-1], places[1:]).statistic))
    classes = places * NUM_CLASSES // len(tars.SETS["long"].numbers)
    mixed = float(np.mean([len(set(classes[i : i + GLOBAL_BATCH])) for i in range(0, len(places), GLOBAL_BATCH)]))
    expected = NUM_CLASSES * (1 - (1 - 1 / NUM_CLASSES) ** GLOBAL_BATCH)
    good = along < GOOD_CORRELATION and neighbours < GOOD_CORRELATION and mixed > GOOD_CLASSES * expected
    return Cell(
        "holds" if good else "fails",
        f"rank correlation of position and sample {along:.2f}, of neighbours {neighbours:.2f}; {mixed:.1f} of "
        f"{NUM_CLASSES} classes in a batch of {GLOBAL_BATCH} (uniform: {expected:.1f}); longest run of a class "
        f"{_longest_run(classes)}",
    )


def base(system: System) -> Outcome:
    """Two epochs of one process, which several laws compare with."""
    return system.run("even", epochs=2)


def long_run(system: System) -> Outcome:
    """An epoch of the long set in one data process, with states early and late."""
    return system.run("long", workers=1, memory_every=100, save_at=(50, 1000))


def _drawn(outcome: Outcome, epoch: int) -> list[list[int]]:
    rank = outcome.ranks[0]
    return [batch for batch, of in zip(rank.batches, rank.epochs, strict=True) if of == epoch]


def _compare(counts: Counter[int], numbers: range) -> tuple[int, int]:
    return sum(number not in counts for number in numbers), sum(count > 1 for count in counts.values())


def _same_batches(one: Outcome, others: dict[str, Outcome]) -> Cell:
    if problem := first_problem({"base": one} | others):
        return problem
    wanted, seen, good = one.global_batches(0), [], True
    for name, outcome in others.items():
        found = outcome.global_batches(0)
        equal = sum(a == b for a, b in zip(wanted, found, strict=False))
        good &= found == wanted
        seen.append(f"{name}: {equal} of {len(wanted)} global batches equal")
    return Cell("holds" if good else "fails", "; ".join(seen))


def _longest_run(classes: np.ndarray) -> int:
    changes = np.flatnonzero(np.diff(classes)) + 1
    return int(np.diff(np.concatenate([[0], changes, [len(classes)]])).max())


LAWS = {
    "once": Law(
        "every sample once",
        "An epoch has each of 960 samples once, with 1 rank and with 2 × 3 workers; partly: less than a batch per data "
        "process is left out.",
        once,
    ),
    "ranks": Law("same batches at 1–4 ranks", "Global batches of 48 are equal at 1, 2, 3 and 4 ranks.", ranks),
    "workers": Law("same batches at 0, 1, 3 workers", "Global batches are equal with 0, 1 and 3 workers.", workers),
    "uneven": Law(
        "uneven shards",
        "7 shards of 1 to 120 samples on 2 ranks × 2 workers: each rank has as many batches, and two epochs have each "
        "sample twice; partly: less than a batch per epoch is left out or repeated.",
        uneven,
    ),
    "epochs": Law("new order per epoch", "The second epoch has another order.", epochs),
    "shuffle": Law(
        "shuffle",
        f"50,000 samples stored by class: rank correlations below {GOOD_CORRELATION}, and at least {GOOD_CLASSES:.0%} "
        "of the classes per batch that a uniform shuffle has.",
        shuffle,
    ),
}
