"""The message of the ranks at the boundary of a step."""

from __future__ import annotations

import dataclasses

import torch

from pretrain.distributed.rank import detect
from pretrain.engine.boundary import Boundary, RankReport
from tests.pool import Pool

NAMES = [field.name for field in dataclasses.fields(RankReport)]
ON_DEVICE = ("loss", "square_sum")


def report_of(rank: int, *, on_device: bool) -> RankReport:
    """Another value in each field of each rank; three counts of data processes."""
    values: dict[str, object] = {name: 100.0 * rank + place + 0.25 for place, name in enumerate(NAMES)}
    if on_device:
        values |= {name: torch.tensor(values[name], dtype=torch.float32) for name in ON_DEVICE}
    return RankReport(**{**values, "counts": (1000.0 * rank + 1, 1000.0 * rank + 2, 2.0**40 + rank)})  # type: ignore[arg-type]


def gathered() -> list[RankReport]:
    return report_of(detect().rank, on_device=True).gathered(torch.device("cpu"))


def test_each_field_of_each_rank_arrives_in_its_place(pool2: Pool) -> None:
    for found in pool2.run(gathered):
        assert found == [report_of(rank, on_device=False) for rank in range(2)]


def test_the_boundary_sums_means_and_maxima() -> None:
    reports = [report_of(rank, on_device=False) for rank in range(2)]
    boundary = Boundary.of(reports, measured=True)
    assert boundary.loss == (reports[0].loss + reports[1].loss) / 2
    assert boundary.memory_bytes == reports[1].memory_bytes and boundary.saving == [own.saving for own in reports]
    assert boundary.weight_norm == (reports[0].square_sum + reports[1].square_sum) ** 0.5
    assert boundary.counts == [1002.0, 1004.0, 2.0**41 + 1]
    assert boundary.times.by_rank() == [own.waited_s + own.forward_s for own in reports]


def test_one_rank_that_wants_to_stop_is_enough() -> None:
    quiet = RankReport(1.0, 1, 0, 0.0, 0.0)
    asked = dataclasses.replace(quiet, wants_stop=True)
    assert not Boundary.of([quiet, quiet], measured=False).stop
    boundary = Boundary.of([quiet, asked], measured=False)
    assert boundary.stop and not boundary.lost and boundary.weight_norm is None and boundary.counts is None
