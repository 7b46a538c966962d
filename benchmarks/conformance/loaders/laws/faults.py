"""Laws of faults: nothing is lost in silence, and an error names the place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.damage import DAMAGES, NotFoundError
from benchmarks.conformance.loaders.laws.law import Law, first_problem, worst
from benchmarks.conformance.loaders.laws.order import base
from benchmarks.conformance.loaders.outcomes import Outcome
from benchmarks.conformance.loaders.system import System
from tests.faulty_server import Server, folder_server, running

VICTIM = 437  # a sample in the middle of the sixth shard
KILL_AFTER = (3, 6, 9)
DELAY_S = 0.02
RETRIES_S = 300  # some wait five seconds before each try, and read every shard before the first batch


def killed(system: System) -> Cell:
    """One of two data processes is killed with SIGKILL, in three runs: what it holds at that moment is chance."""
    if problem := _unmeasurable(system):
        return problem
    cells = [_killed(system.run("even", workers=2, kill_after=batch)) for batch in KILL_AFTER]
    verdict = worst([cell.verdict for cell in cells])
    seen = next(cell.seen for cell in cells if cell.verdict == verdict)
    return Cell(verdict, f"in {sum(cell.verdict == verdict for cell in cells)} of {len(cells)} runs {seen}")


def _killed(outcome: Outcome) -> Cell:
    if outcome.ranks[0].killed is None:
        return Cell("not measured", "there was no data process to kill")
    missing = len(set(tars.SETS["even"].numbers) - set(outcome.counts()))
    if outcome.silent_end:
        return Cell("fails", outcome.silent_end)
    if outcome.problem:
        return Cell("partly", f"it stops with an error: {outcome.problem}")
    twice = sum(count > 1 for count in outcome.counts().values())
    if missing or twice:
        return Cell("fails", f"it continues: {missing} samples lost, {twice} repeated")
    return Cell("holds", "it continues, and every sample is drawn once")


def damaged(system: System, *, kind: str) -> Cell:
    """One sample of 960 is damaged after the set was made."""
    if problem := _unmeasurable(system):
        return problem
    folder = system.copied("even", kind)
    try:
        file = DAMAGES[kind](folder, VICTIM)
    except NotFoundError as error:
        return Cell("not measured", str(error))
    outcome = system.run("even", folders=(str(folder),))
    return _judge(outcome, _names(file))


def http(system: System) -> Cell:
    """Over HTTP, where every request waits 20 ms, the first answer to each is 503, and the second is cut short."""
    if problem := _unmeasurable(system):
        return problem
    with running(folder_server(system.folder("even"))) as server:
        healthy = system.run("even", folders=(server.url,))
    system.forget(healthy)
    if problem := first_problem({"a server without faults": healthy}):
        return Cell("not measured", problem.seen)
    with _faulty(system.folder("even")) as server:
        outcome = system.run("even", folders=(server.url,), patience_s=RETRIES_S)
        requests = server.requests
    system.forget(outcome)
    missing = len(set(tars.SETS["even"].numbers) - set(outcome.counts()))
    if outcome.silent_end:
        return Cell("fails", outcome.silent_end)
    if outcome.problem:
        return Cell("partly", f"it stops with an error: {outcome.problem}")
    if missing or outcome.wrong:
        return Cell("fails", f"{missing} samples lost without an error, {len(outcome.wrong)} wrong")
    return Cell("holds", f"every sample once, in {requests} requests")


def _unmeasurable(system: System) -> Cell | None:
    """A loader that cannot read the set as it is shows nothing about damage."""
    problem = first_problem({"the undamaged set": base(system)})
    return Cell("not measured", problem.seen) if problem else None


@contextmanager
def _faulty(folder: Path) -> Iterator[Server]:
    """A server of a folder whose answers are late, missing and cut."""
    server = folder_server(folder)

    def fault(path: str, number: int) -> str | None:
        server.closing.wait(DELAY_S)
        return ("error", "truncate")[number] if number < 2 else None

    server.fault = fault
    with running(server):
        yield server


def _names(file: Path) -> str:
    """A pattern of the file's name or the sample's number, as an error has to name one of them."""
    return rf"{re.escape(file.name)}|(?<!\d)0*{VICTIM}(?!\d)"


def _judge(outcome: Outcome, names: str) -> Cell:
    """An error or a report that names the place; then an error that does not; silence is the worst."""
    missing = sorted(set(tars.SETS["even"].numbers) - set(outcome.counts()))
    named = re.search(names, outcome.text) is not None
    where = "names the file or the sample" if named else "does not name the file or the sample"
    if outcome.silent_end:
        return Cell("fails", outcome.silent_end)
    if outcome.problem:
        return Cell("holds" if named else "partly", f"it stops with an error that {where}: {outcome.problem}")
    if outcome.wrong:
        return Cell("fails", f"it delivers the damaged pixels of sample {outcome.wrong[0]} as if they were right")
    if not missing:
        return Cell("not measured", "the sample was delivered intact, so the damaged file was not read")
    lost = f"{len(missing)} samples are left out"
    return Cell("holds", f"{lost}, and a report {where}") if named else Cell("fails", f"{lost} in silence")


LAWS = {
    "killed": Law(
        "a killed worker",
        "One of 2 data processes is killed, in three runs: no sample is lost, and nothing hangs; partly: an error.",
        killed,
    ),
    "truncated": Law(
        "a truncated file",
        "The file with the sample ends before it: an error or a report that names the place.",
        partial(damaged, kind="truncated"),
    ),
    "cut_member": Law(
        "a member cut in two",
        "The file ends in the middle of the sample: likewise.",
        partial(damaged, kind="cut_member"),
    ),
    "flipped": Law(
        "a flipped bit",
        "A bit of a JPEG, which still decodes, to other pixels: likewise.",
        partial(damaged, kind="flipped"),
    ),
    "bad_image": Law("a bad image", "A JPEG is replaced by zeros: likewise.", partial(damaged, kind="bad_image")),
    "http": Law(
        "a slow, failing web server",
        "Each request waits 20 ms; the first answer to each is 503 and the second is cut short: every sample once.",
        http,
    ),
}
