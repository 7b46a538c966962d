"""The message of the ranks at the boundary of a step."""

from __future__ import annotations

import dataclasses

import torch

from pretrain.distributed.rank import detect
from pretrain.engine.boundary import Boundary, Measured, RankMeasurement, RankReport
from tests.pool import Pool

NAMES = [field.name for field in dataclasses.fields(RankReport)]
ON_DEVICE = ("loss", "grad_norm")


def report_of(rank: int, *, on_device: bool) -> RankReport:
    """Another value in each field of each rank."""
    values: dict[str, object] = {name: 100.0 * rank + place + 0.25 for place, name in enumerate(NAMES)}
    if on_device:
        values |= {name: torch.tensor(values[name], dtype=torch.float32) for name in ON_DEVICE}
    return RankReport(**values)  # type: ignore[arg-type]


def measurement_of(rank: int, *, on_device: bool) -> RankMeasurement:
    """Another value in each field of each rank; three counts of data processes."""
    squares = 16.0 * rank + 9.0
    counts = (1000.0 * rank + 1, 1000.0 * rank + 2, 2.0**40 + rank)
    return RankMeasurement(100.0 * rank, torch.tensor(squares) if on_device else squares, counts)


def gathered() -> tuple[list[RankReport], list[RankMeasurement]]:
    rank, device = detect().rank, torch.device("cpu")
    return report_of(rank, on_device=True).gathered(device), measurement_of(rank, on_device=True).gathered(device)


def test_each_field_of_each_rank_arrives_in_its_place(pool2: Pool) -> None:
    for reports, measurements in pool2.run(gathered):
        assert reports == [report_of(rank, on_device=False) for rank in range(2)]
        assert measurements == [measurement_of(rank, on_device=False) for rank in range(2)]


def test_the_boundary_sums_means_and_maxima() -> None:
    reports = [report_of(rank, on_device=False) for rank in range(2)]
    boundary = Boundary.of(reports)
    assert boundary.loss == (reports[0].loss + reports[1].loss) / 2
    assert boundary.grad_norm == reports[0].grad_norm and boundary.saving == [own.saving for own in reports]
    assert boundary.times.by_rank() == [own.waited_s + own.forward_s for own in reports]
    measured = Measured.of([measurement_of(rank, on_device=False) for rank in range(2)])
    assert measured == Measured(100.0, (9.0 + 25.0) ** 0.5, [1002.0, 1004.0, 2.0**41 + 1])


def test_one_rank_that_wants_to_stop_is_enough() -> None:
    quiet = RankReport(1.0, 1, 0, 0.0, 0.0)
    asked = dataclasses.replace(quiet, wants_stop=True)
    assert not Boundary.of([quiet, quiet]).stop
    boundary = Boundary.of([quiet, asked])
    assert boundary.stop and not boundary.lost and boundary.measured is None
