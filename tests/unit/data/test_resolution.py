"""Images of each step have the step's size, whoever makes them, and are those of a run at that size throughout."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch
from pretrain.data.stream import TrainStream
from pretrain.errors import ConfigError
from tests.unit.data.sets import experiment, write_set

NUM, STEPS = 64, 6
SCHEDULE = [[0, 4], ["1 step", [4, 8, 12]], ["4 steps", 12]]
AUGMENTED = {
    "crop": "inception", "min_area": 0.3, "hflip": 0.5, "randaugment": {"num_layers": 2, "magnitude": 9}
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sizes") / "train", [40, 24], noise=True, image_format="jpeg")


def settings(folder: Path, **changes: object) -> Experiment:
    changes = {"duration": f"{STEPS} steps", "data__train_transform": AUGMENTED, **changes}
    return experiment(folder, NUM, **changes)


def growing(folder: Path, **changes: object) -> Experiment:
    return settings(folder, data__resolution=SCHEDULE, **changes)


def images_of(batches: list[Batch]) -> dict[int, bytes]:
    """slot → shape and pixels."""
    return {
        int(slot): str(tuple(image.shape)).encode() + image.numpy().tobytes()
        for batch in batches
        for slot, image in zip(batch.slots, batch.images, strict=True)
    }


def drawn(config: Experiment, world: int = 1, micro: int = 8, first: int = 0) -> dict[int, bytes]:
    position = first * config.global_batch_size
    ranks = [TrainStream(config, rank, world, micro).iterate(position, STEPS - first) for rank in range(world)]
    return images_of([batch for rank in ranks for batch in rank])


def test_each_step_has_the_images_of_a_run_at_its_size(folder: Path) -> None:
    config, found = growing(folder), drawn(growing(folder))
    sizes = [config.image_sizes.at(step).size for step in range(STEPS)]
    assert len(set(sizes)) == 3, "the seed draws every size"
    for step, (side, _) in enumerate(sizes):
        constant = drawn(settings(folder, model__img_size=side))
        own = range(16 * step, 16 * (step + 1))
        assert [found[slot] == constant[slot] for slot in own] == [True] * 16, step


def test_ranks_passes_and_a_start_in_the_middle_change_nothing(folder: Path) -> None:
    straight = drawn(growing(folder))
    assert drawn(growing(folder), world=4, micro=2) == straight
    resumed = drawn(growing(folder), world=2, micro=4, first=3)
    assert resumed == {slot: image for slot, image in straight.items() if slot >= 16 * 3}


def test_after_skipped_samples_the_schedule_decides(folder: Path) -> None:
    """A rollback skips samples: the stream is then further than the schedule."""
    stream = TrainStream(growing(folder), 0, 1, 16)
    batches = list(stream.iterate(16 * 5, 2, first_step=0))
    assert batches[0].images.shape[2:] == (4, 4) and batches[0].slots.min() == 16 * 5


@pytest.mark.slow
def test_data_processes_that_are_ahead_of_a_change_make_the_right_size(folder: Path) -> None:
    """More changes than a process has blocks of shared memory, which all sizes use."""
    schedule = [[0, [4, 8, 12]]]
    alone = settings(folder, data__resolution=schedule, duration="40 steps", cluster__num_workers=0)
    apart = settings(folder, data__resolution=schedule, duration="40 steps", cluster__num_workers=2)
    expected = images_of(list(TrainStream(alone, 0, 1, 8).iterate(0, 40)))
    assert images_of(list(TrainStream(apart, 0, 1, 8).iterate(0, 40))) == expected


TOKENS = {
    "constant": {"data__resolution": [[0, [4, 8]], ["2 steps", [4, 6, 12]]], "global_batch_size": 32, "batch_unit": 8},
    "lengths": {
        "global_batch_size": 16,
        "batch_unit": 8,
        "data__train_transform": {"crop": "native", "max_tokens": [16, 4, 8]},
        "data__eval_transform": {"resize": "native", "max_tokens": 8},
    },
}


@pytest.mark.parametrize("case", TOKENS)
def test_batches_of_constant_tokens_are_the_same_for_ranks_passes_and_after_a_seek(folder: Path, case: str) -> None:
    config = settings(folder, **TOKENS[case], data__lanes=4, cluster__num_workers=0)
    batches = config.batches
    sizes = [batches.size(step) for step in range(STEPS)]
    assert len(set(sizes)) > 1

    def read(world: int, micro: int, first: int = 0) -> dict[int, bytes]:
        ranks = [TrainStream(config, rank, world, micro) for rank in range(world)]
        made = [list(one.iterate(batches.before(first), STEPS - first)) for one in ranks]
        passes = config.global_batch_size // world // micro
        for of_rank in made:
            found = [sum(map(len, of_rank[at : at + passes])) * world for at in range(0, len(of_rank), passes)]
            assert found == sizes[first:], "every rank has an equal part of each step"
        return images_of([batch for of_rank in made for batch in of_rank])

    straight = read(1, config.global_batch_size)
    assert sorted(straight) == list(range(sum(sizes))), "every position once"
    assert read(2, config.global_batch_size // 4) == read(4, config.global_batch_size // 4) == straight
    late = {slot: image for slot, image in straight.items() if slot >= batches.before(3)}
    assert read(2, config.global_batch_size // 2, first=3) == late


def test_a_micro_batch_that_does_not_divide_the_larger_batches_is_refused(folder: Path) -> None:
    config = settings(folder, **TOKENS["constant"], data__lanes=4)
    with pytest.raises(ConfigError, match=r"micro_batch_size: 1 does not divide the larger batches .* possible: 4, "):
        TrainStream(config, 0, 4, 1)
