"""The laws of data, as properties of the pure order."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pretrain.data.order.order import Order, allowed_worlds, check_world, default_lanes, resolve_lanes
from pretrain.errors import ConfigError, DataError

MAX_EXAMPLES = 60


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Uneven shards, also empty ones and ones of a single sample."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    lanes = draw(st.sampled_from([1, 2, 3, 4, 8]))
    pairs = draw(st.integers(1, 4))
    assume(sum(sizes) >= lanes)
    return Order(
        sizes,
        seed=draw(st.integers(0, 5)),
        global_batch_size=2 * pairs * lanes,
        lanes=lanes,
        window=draw(st.sampled_from([1, 3, 16, 1000])),
    )


def straight(order: Order, num_steps: int) -> list[np.ndarray]:
    """(sample ids, slots, epochs) of the first global batches, each (3, B)."""
    size = order.global_batch_size
    return [np.stack(order.batch(step * size)) for step in range(num_steps)]


def as_set(batch: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(column) for column in batch.T.tolist()}


@pytest.mark.quick
@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(order=orders())
def test_an_epoch_draws_each_sample_once_up_to_the_left_outs(order):
    num_steps = -(-3 * order.epoch_samples // order.global_batch_size)
    drawn = np.concatenate(straight(order, num_steps), axis=1)
    for epoch in range(3):
        of_epoch = drawn[0][drawn[2] == epoch]
        expected = np.setdiff1d(np.arange(order.num_samples), order.left_out(epoch))
        assert np.array_equal(np.sort(of_epoch), expected)
        assert len(order.left_out(epoch)) == order.num_samples - order.epoch_samples < order.lanes


@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(order=orders())
def test_slots_number_the_draws(order):
    drawn = np.concatenate(straight(order, 4), axis=1)
    assert np.array_equal(np.sort(drawn[1]), np.arange(drawn.shape[1]))
    assert np.array_equal(drawn[2], drawn[1] // order.lanes // order.samples_per_lane)


@pytest.mark.quick
@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(order=orders(), data=st.data())
def test_any_world_and_micro_batch_give_the_same_global_batches(order, data):
    size = order.global_batch_size
    world = data.draw(st.sampled_from(allowed_worlds(size, order.lanes, size)))
    per_rank = size // world
    micro = data.draw(st.sampled_from([part for part in range(1, per_rank + 1) if per_rank % part == 0]))
    for step, expected in enumerate(straight(order, 3)):
        parts = [
            np.stack(order.batch(step * size, rank, world, start=first, stop=first + micro))
            for rank in range(world)
            for first in range(0, per_rank, micro)
        ]
        assert as_set(np.concatenate(parts, axis=1)) == as_set(expected)
        # ranks in their order give the batch in lane order, so a pair of slots (2i, 2i + 1 of a lane) stays together
        assert np.array_equal(np.concatenate(parts, axis=1), expected)


@pytest.mark.quick
@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(order=orders(), steps=st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_a_seek_equals_the_straight_run(order, steps):
    run = straight(order, max(steps) + 1)
    fresh = Order(
        order.sizes,
        seed=order.seed,
        global_batch_size=order.global_batch_size,
        lanes=order.lanes,
        window=order.window,
    )
    for step in steps:
        assert np.array_equal(np.stack(fresh.batch(step * order.global_batch_size)), run[step])


@pytest.mark.parametrize("sizes", [[103], [1] * 103, [50, 0, 53], [3, 90, 10]])
def test_left_outs_move_on_until_every_sample_had_its_turn(sizes):
    order = Order(sizes, seed=1, global_batch_size=32, lanes=8, window=16)
    left = [tuple(order.left_out(epoch)) for epoch in range(14)]
    assert all(len(row) == 7 for row in left)
    assert len({sample for row in left for sample in row}) == 98  # 14 × 7: nobody twice


def test_epochs_and_seeds_have_orders_of_their_own():
    def first_epochs(seed: int) -> list[np.ndarray]:
        order = Order([64] * 4, seed=seed, global_batch_size=256, lanes=4, window=32)
        return [order.batch(256 * epoch).sample_ids for epoch in range(3)]

    runs = first_epochs(0) + first_epochs(1)
    for index, one in enumerate(runs):
        for other in runs[index + 1 :]:
            assert np.mean(one == other) < 0.1


def test_shuffling_inside_windows_is_uniform():
    """Where a sample lands within its window is uniform over the seeds."""
    window = 8
    counts = np.zeros((window, window))
    for seed in range(400):
        order = Order([window], seed=seed, global_batch_size=window, lanes=1, window=window)
        counts[np.arange(window), order.batch(0).sample_ids] += 1
    expected = 400 / window
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 100  # 49 degrees of freedom: mean 49, standard deviation 10


def test_a_lane_reads_few_shards_at_a_time():
    order = Order([100] * 64, seed=0, global_batch_size=64, lanes=4, window=50)
    for position in range(0, 64 * 50, 64):
        sample_ids = order.batch(position, 1, 4).sample_ids
        assert len(np.unique(sample_ids // 100)) <= 2


@pytest.mark.quick
def test_the_order_is_pinned():
    """A change of these numbers changes every run: it needs a new format version and an entry in the changelog."""
    order = Order([5, 0, 9, 6], seed=7, global_batch_size=6, lanes=3, window=4)
    assert [order.batch(position).sample_ids.tolist() for position in (0, 6, 12, 18, 24)] == [
        [16, 15, 3, 1, 8, 10],
        [17, 14, 0, 2, 9, 11],
        [18, 19, 7, 4, 13, 12],
        [10, 9, 2, 0, 16, 17],
        [5, 6, 1, 13, 15, 14],
    ]


@pytest.mark.parametrize("position", [0, 3 * 10**8, 10**11 // 512 * 512])
def test_a_seek_in_a_set_of_three_hundred_million_samples_is_quick_and_small(position, benchmark_line):
    tracemalloc.start()
    try:
        order = Order(np.full(30_000, 10_000), seed=0, global_batch_size=4096, lanes=512, window=8192)
        elapsed = benchmark_line(f"seek to sample {position:,}", lambda: order.batch(position // 512 * 512, 3, 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert elapsed < 1.0
    assert peak < 16e6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda order: order.batch(3), ConfigError, "not a multiple of data.lanes"),
        (lambda order: order.batch(-4), ConfigError, "not a multiple"),
        (lambda order: order.batch(0, 0, 3), ConfigError, "3 ranks cannot share 4 lanes"),
        (
            lambda order: Order([1, 2], seed=0, global_batch_size=8, lanes=4, window=8),
            DataError,
            "3 samples, fewer than the 4 lanes",
        ),
        (
            lambda order: Order([100], seed=0, global_batch_size=8, lanes=8, window=8),
            ConfigError,
            "data.lanes: 8 does not fit",
        ),
    ],
)
def test_what_cannot_keep_the_laws_is_refused(call, error, message):
    order = Order([20, 30], seed=0, global_batch_size=8, lanes=4, window=8)
    with pytest.raises(error, match=message):
        call(order)


@pytest.mark.parametrize(
    ("global_batch_size", "lanes"),
    [
        (4096, 512),
        (8192, 512),
        (1024, 128),
        (512, 64),
        (64, 8),
        (16, 2),
        (8, 1),
        (4, 2),  # too small for 8 draws per lane: as many lanes as have a pair
        (2, 1),
        (12, 1),
        (96, 8),
        (1000, 4),
    ],
)
def test_default_lanes(global_batch_size, lanes):
    assert default_lanes(global_batch_size) == lanes


@pytest.mark.parametrize("global_batch_size", range(2, 300, 2))
def test_default_lanes_give_pairs_and_a_power_of_two(global_batch_size):
    lanes = default_lanes(global_batch_size)
    assert global_batch_size % (2 * lanes) == 0
    assert lanes & (lanes - 1) == 0


@pytest.mark.parametrize(
    ("global_batch_size", "lanes", "worlds"),
    [
        (16, 4, [1, 2, 4, 8]),
        (16, 2, [1, 2, 4, 8]),
        (48, 4, [1, 2, 4, 8, 12, 24]),
        (48, 6, [1, 2, 3, 6, 12, 24]),
        (24, 1, [1, 2, 3, 4, 6, 12]),
        (32, 4, [1, 2, 4, 8, 16]),
    ],
)
def test_allowed_worlds(global_batch_size, lanes, worlds):
    assert allowed_worlds(global_batch_size, lanes, 24) == worlds
    for ranks in worlds:
        check_world(global_batch_size, lanes, ranks)


def test_other_worlds_are_refused_with_those_that_can():
    with pytest.raises(ConfigError, match=r"3 ranks cannot share 4 lanes .* 1, 2, 4, 8$"):
        check_world(16, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 3), "possible: 1, 2, 4, 8"),
        ((16, 16), "possible: 1, 2, 4, 8"),
        ((15, "auto"), "15 is odd"),
        ((16, 8, 5), "set data.lanes to one of 1, 2, 4"),
    ],
)
def test_impossible_lanes_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        resolve_lanes(*arguments)
