"""The laws of ``benchmarks/conformance``: ours keeps each of them, and each finds a loader that does not."""

from __future__ import annotations

import gc
import random
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from benchmarks.conformance import results
from benchmarks.conformance.__main__ import measure
from benchmarks.conformance.kinds import KINDS
from benchmarks.conformance.loaders import SYSTEMS, damage, marks, tars
from benchmarks.conformance.loaders.job import GLOBAL_BATCH
from benchmarks.conformance.loaders.laws import LAWS, faults, order, resume
from benchmarks.conformance.loaders.outcomes import Outcome, RankOutcome
from benchmarks.conformance.loaders.system import System
from benchmarks.conformance.page import page

NUMBERS = list(tars.SETS["even"].numbers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ours_keeps_every_law(tmp_path: Path) -> None:
    system = System("ours", tmp_path, tmp_path / "tars")
    try:
        cells = {law: measure(KINDS["loaders"], system, law) for law in LAWS}
    finally:
        system.close()
    assert {law: cell.verdict for law, cell in cells.items()} == dict.fromkeys(LAWS, "holds"), cells


def test_the_page_is_that_of_the_results_and_every_cell_is_measured() -> None:
    kept = results.load()
    assert results.PAGE.read_text() == page(kept)
    assert list(kept["loaders"]) and set(kept["loaders"]) == set(SYSTEMS)
    for name, system in kept["loaders"].items():
        assert set(system["cells"]) == set(LAWS), name
        assert system["version"] and system["documentation"]["use"], name


def test_images_show_their_number_and_webdataset_reads_the_tars(tmp_path: Path) -> None:
    made = tars.TarSet((3, 2), first=60_000)
    tars.write(tmp_path / "set", made)
    files = [str(path) for path in sorted((tmp_path / "set").glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the closing of a tar to the garbage collector
        dataset: Any = webdataset.WebDataset(files, shardshuffle=False)  # type: ignore[call-arg]
        found = [(label, marks.numbers([image])) for image, label in dataset.decode("rgb8").to_tuple("jpg", "cls")]
        gc.collect()
    assert found == [(number, [number]) for number in made.numbers]
    assert marks.numbers([marks.decoded(marks.drawn(5)) // 2]) == [-1], "grey is not a number"


@pytest.mark.parametrize("kind", damage.DAMAGES)
def test_damage_is_what_its_name_says(tmp_path: Path, kind: str) -> None:
    tars.write(tmp_path / "set", tars.TarSet((4, 4)))
    file = damage.DAMAGES[kind](tmp_path / "set", 6)
    assert file.name == "shard-000001.tar"
    if kind == "cut_member":
        with pytest.raises(tarfile.ReadError, match="unexpected end"), tarfile.open(file) as tar:
            for member in tar:
                tar.extractfile(member).read()  # type: ignore[union-attr]
        return
    with tarfile.open(file) as tar:
        images = {member.name: tar.extractfile(member).read() for member in tar if "jpg" in member.name}  # type: ignore[union-attr]
    if kind == "truncated":
        assert list(images) == ["000000004.jpg", "000000005.jpg"]
    elif kind == "bad_image":
        assert set(images["000000006.jpg"]) == {0}
    else:
        assert marks.numbers([marks.decoded(images["000000006.jpg"])]) != [6]


def test_a_sample_that_is_in_no_file_is_not_damaged(tmp_path: Path) -> None:
    tars.write(tmp_path / "set", tars.TarSet((2,)))
    with pytest.raises(damage.NotFoundError, match="sample 9"):
        damage.flip(tmp_path / "set", 9)


class Drawn:
    """A loader that draws what a function says: (settings of the run) → epochs of batches of all ranks."""

    def __init__(self, draw: Callable[..., list[list[list[int]]]], *, sets: str = "even") -> None:
        self._draw = draw

    def run(self, *sets: str, world: int = 1, **settings: Any) -> Outcome:
        epochs = self._draw(world=world, **settings)
        ranks = [RankOutcome(done=True) for _ in range(world)]
        for number, batches in enumerate(epochs):
            for batch in batches:
                for index, rank in enumerate(ranks):
                    rank.batches.append(batch[index::world])
                    rank.epochs.append(number)
        return Outcome(ranks)


def shuffled(seed: Any, numbers: list[int] = NUMBERS) -> list[list[int]]:
    order_of = random.Random(str(seed)).sample(numbers, len(numbers))
    return [order_of[start : start + GLOBAL_BATCH] for start in range(0, len(order_of), GLOBAL_BATCH)]


def good(load: int | None = None, epochs: int = 1, **_: Any) -> list[list[list[int]]]:
    return [shuffled(epoch)[load or 0 :] for epoch in range(epochs)]


def by_world(world: int, load: int | None = None, epochs: int = 1, **_: Any) -> list[list[list[int]]]:
    return [shuffled((world, epoch))[load or 0 :] for epoch in range(epochs)]


def by_workers(workers: int = 0, load: int | None = None, epochs: int = 1, **_: Any) -> list[list[list[int]]]:
    return [shuffled((workers, epoch))[load or 0 :] for epoch in range(epochs)]


def lossy(epochs: int = 1, **_: Any) -> list[list[list[int]]]:
    return [shuffled(epoch, NUMBERS[:-1]) for epoch in range(epochs)]


def repeating(epochs: int = 1, **_: Any) -> list[list[list[int]]]:
    return [[*shuffled(epoch)[:-1], shuffled(epoch)[0]] for epoch in range(epochs)]


def one_order(epochs: int = 1, **_: Any) -> list[list[list[int]]]:
    return [shuffled(0)] * epochs


def restarted(load: int | None = None, **_: Any) -> list[list[list[int]]]:
    return [shuffled(0)]


def regrouped(load: int | None = None, **_: Any) -> list[list[list[int]]]:
    """The samples that were left, in other batches."""
    rest = [number for batch in shuffled(0)[load or 0 :] for number in batch]
    return [shuffled(0) if load is None else shuffled(load, rest)]


@pytest.mark.parametrize(
    ("law", "draw", "verdict"),
    [
        (order.once, good, "holds"),
        (order.once, lossy, "partly"),
        (order.once, repeating, "fails"),
        (order.ranks, good, "holds"),
        (order.ranks, by_world, "fails"),
        (order.workers, good, "holds"),
        (order.workers, by_workers, "fails"),
        (order.epochs, good, "holds"),
        (order.epochs, one_order, "fails"),
        (resume.same, good, "holds"),
        (resume.same, restarted, "fails"),
        (resume.same, regrouped, "partly"),
        (resume.other_ranks, good, "holds"),
        (resume.other_ranks, by_world, "fails"),
        (resume.other_workers, good, "holds"),
        (resume.other_workers, by_workers, "fails"),
    ],
)
def test_a_law_finds_who_breaks_it(law: Any, draw: Any, verdict: str) -> None:
    assert law(Drawn(draw)).verdict == verdict


UNEVEN = list(tars.SETS["uneven"].numbers)


@pytest.mark.parametrize(
    ("first", "second", "steps", "verdict"),
    [
        (UNEVEN[:156] * 2, UNEVEN[156:] * 2, (7, 7), "holds"),
        (UNEVEN[:150] * 2, UNEVEN[156:] * 2, (7, 7), "partly"),
        (UNEVEN[:100] * 2, UNEVEN[156:] * 2, (7, 7), "fails"),
        (UNEVEN[:156] * 2, UNEVEN[156:] * 2, (7, 8), "fails"),
    ],
)
def test_uneven_shards(first: list[int], second: list[int], steps: tuple[int, int], verdict: str) -> None:
    class Uneven:
        def run(self, *sets: str, **settings: Any) -> Outcome:
            ranks = []
            for drawn, count in zip((first, second), steps, strict=True):
                ranks.append(RankOutcome([drawn, *([[]] * (count - 1))], [0] * count, done=True))
            return Outcome(ranks)

    assert order.uneven(Uneven()).verdict == verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rank", "verdict", "seen"),
    [
        (RankOutcome([NUMBERS], [0], done=True), "not measured", "damaged file was not read"),
        (RankOutcome([NUMBERS], [0], wrong=[437], done=True), "fails", "damaged pixels of sample 437"),
        (RankOutcome([NUMBERS[:437] + NUMBERS[438:]], [0], done=True), "fails", "in silence"),
        (RankOutcome([NUMBERS[:437]], [0], done=True, log="skips shard-000005.tar"), "holds", "a report names"),
        (RankOutcome([NUMBERS[:437]], [0], error="OSError: 000000437.jpg", done=True), "holds", "names the file"),
        (RankOutcome([NUMBERS[:437]], [0], error="OSError: end of file", done=True), "partly", "does not name"),
        (RankOutcome([NUMBERS[:437]], [0]), "fails", "hung"),
        (RankOutcome([NUMBERS[:437]], [0], died=True), "fails", "died without an error"),
    ],
)
def test_silence_is_the_worst_answer_to_damage(rank: RankOutcome, verdict: str, seen: str) -> None:
    cell = faults._judge(Outcome([rank]), faults._names(Path("shard-000005.tar")))
    assert cell.verdict == verdict and seen in cell.seen


def test_what_a_peer_said_cannot_break_the_table() -> None:
    kept = results.load()
    name = next(iter(kept["loaders"]))
    kept["loaders"][name]["cells"]["once"]["seen"] = "a | b\n*c* <d>"
    assert "| a \\| b \\*c\\* \\<d> |" in page(kept)
    assert results.without_folders("in /tmp/x/y/z.tar, 1/2, http://host/a") == "in …/z.tar, 1/2, http://host/a"
