"""Repeated augmentation: k copies in a batch and in different lanes; each image once in k epochs; any ranks alike."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order.lanes import allowed_worlds
from pretrain.data.order.mixture import Mixture
from pretrain.data.sources import mix, open_sources
from pretrain.data.stream import TrainStream
from pretrain.errors import ConfigError
from tests.unit.data.order.test_mixture import mixtures
from tests.unit.data.sets import experiment, write_set

SIZES = [40, 9, 31, 47, 1]  # 128 in all, so that nothing is left out
NUM = sum(SIZES)
# global batch, lanes, copies
CASES = [(16, 4, 2), (16, 4, 3), (32, 8, 4), (24, 4, 3), (16, 8, 5), (16, 2, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_set(tmp_path_factory.mktemp("set") / "train", SIZES, noise=True)


def order(folder: Any, batch: int, lanes: int, copies: int) -> Mixture:
    config = experiment(folder, NUM, global_batch_size=batch, data__lanes=lanes, data__repeated_augmentation=copies)
    return mix(open_sources(config), config, lanes)


@pytest.mark.parametrize(("batch", "lanes", "copies"), CASES)
def test_copies_stand_in_one_batch_and_in_different_lanes(folder: Any, batch: int, lanes: int, copies: int) -> None:
    made = order(folder, batch, lanes, copies)
    for step in range(12):
        draws = made.batch(step * batch)
        numbers = made.copy_numbers(draws.slots)
        assert numbers is not None
        assert sorted(draws.slots.tolist()) == list(range(step * batch, (step + 1) * batch))
        lane_of = draws.slots % lanes
        counts = Counter(draws.sample_ids.tolist())
        fewer = sum(count < copies for count in counts.values())
        assert set(counts.values()) <= {copies, copies - 1} and fewer < copies
        assert len({*zip(draws.sample_ids.tolist(), lane_of.tolist(), strict=True)}) == batch
        assert len({*zip(draws.sample_ids.tolist(), numbers.tolist(), strict=True)}) == batch


@pytest.mark.parametrize(("batch", "lanes", "copies"), CASES)
def test_an_image_returns_only_when_all_others_were_drawn(folder: Any, batch: int, lanes: int, copies: int) -> None:
    made, images = order(folder, batch, lanes, copies), -(-batch // copies)
    seen: list[int] = []
    for step in range(2 * NUM // images):
        seen += sorted(set(made.batch(step * batch).sample_ids.tolist()))
    first = Counter(seen[: NUM // images * images])
    assert set(first.values()) == {1}, "the first pass over the set draws nothing twice"


@pytest.mark.parametrize(("batch", "lanes", "copies"), CASES)
def test_ranks_and_slices_make_no_difference(folder: Any, batch: int, lanes: int, copies: int) -> None:
    made = order(folder, batch, lanes, copies)
    whole = made.batch(5 * batch)
    for world in allowed_worlds(batch, lanes, batch):
        per_rank = batch // world
        for start, stop in ((0, per_rank), (0, per_rank // 2), (per_rank // 2, per_rank)):
            parts = [made.batch(5 * batch, rank, world, start=start, stop=stop) for rank in range(world)]
            for field in ("sample_ids", "slots", "epochs"):
                rows = np.concatenate([getattr(whole, field)[rank * per_rank :][start:stop] for rank in range(world)])
                assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), rows)
            numbers = [made.copy_numbers(part.slots) for part in parts]
            rows = [made.copy_numbers(whole.slots)[rank * per_rank :][start:stop] for rank in range(world)]  # type: ignore
            assert np.array_equal(np.concatenate(numbers), np.concatenate(rows))  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(plain=mixtures(), copies=st.integers(2, 8), seed=st.integers(0, 5), data=st.data())
def test_a_mixture_is_repeated_as_one_set_is(plain: Mixture, copies: int, seed: int, data: st.DataObject) -> None:
    """Batch s has the images s · Q … (s + 1) · Q − 1 of the mixture without copies; laws as for one set."""
    lanes, batch = plain.lanes, plain.global_batch_size
    if copies > lanes:
        return
    single, repeated = (Mixture(plain.parts, plain.quanta, seed=seed, copies=number) for number in (1, copies))
    images = -(-batch // copies)
    step = data.draw(st.integers(0, 200))
    first = step * images // batch
    drawn = [single.batch(number * batch) for number in range(first, first + 3)]
    by_slot = {
        slot: (sample_id, epoch)
        for one in drawn
        for sample_id, slot, epoch in zip(*(column.tolist() for column in one), strict=True)
    }
    wanted = sorted(by_slot[slot] for slot in range(step * images, (step + 1) * images))
    draws = repeated.batch(step * batch)
    found = list(zip(draws.sample_ids.tolist(), draws.epochs.tolist(), strict=True))
    assert draws.slots.size == batch and set(draws.slots // batch) == {step}
    numbers = repeated.copy_numbers(draws.slots)
    assert numbers is not None
    for copy in range(copies):
        of_copy = [pair for pair, number in zip(found, numbers.tolist(), strict=True) if number == copy]
        assert sorted(of_copy) == wanted if copy < copies - 1 else set(of_copy) <= set(wanted)
    lane_of = (draws.slots % lanes).tolist()
    places = [(row % images, lane) for row, lane in enumerate(lane_of)]  # the copies of an image stand Q rows apart
    assert len(set(places)) == batch
    world = data.draw(st.sampled_from(allowed_worlds(batch, lanes, batch)))
    parts = [repeated.batch(step * batch, rank, world) for rank in range(world)]
    assert all(
        np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(draws, field))
        for field in ("sample_ids", "slots", "epochs")
    )


def test_copies_are_augmented_by_themselves(folder: Any) -> None:
    transform = {"crop": "inception", "min_area": 0.3, "hflip": 0.5}
    config = experiment(folder, NUM, data__repeated_augmentation=2, data__lanes=4, data__train_transform=transform)
    batch = next(iter(TrainStream(config, 0, 1, 16).iterate(0, 1)))
    by_sample: dict[int, list[bytes]] = {}
    for sample_id, image in zip(batch.sample_ids.tolist(), batch.images, strict=True):
        by_sample.setdefault(sample_id, []).append(image.numpy().tobytes())
    assert len(by_sample) == 8 and all(len(set(images)) == 2 for images in by_sample.values())


def test_what_is_read_ahead_covers_what_is_drawn(folder: Any) -> None:
    """The windows of a rank hold every sample that it draws next."""
    made = order(folder, 16, 4, 3)
    for step in range(6):
        for rank in range(2):
            windows = made.windows(step * 16, rank, 2)
            held = {int(i) for window in windows for i in made.window_samples(window.part, window.lane, window.draw)}
            after = {int(i) for w in windows for i in made.window_samples(w.part, w.lane, w.next_draw)}
            assert set(made.batch(step * 16, rank, 2).sample_ids.tolist()) <= held | after


def test_refusals(folder: Any) -> None:
    with pytest.raises(ConfigError, match="5 copies of an image need as many lanes"):
        order(folder, 16, 4, 5)
    with pytest.raises(ConfigError, match="multiples of global_batch_size"):
        order(folder, 16, 4, 2).batch(8)
