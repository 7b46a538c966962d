"""Several sets drawn by weight, and the samples selected from each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order.mixture import QUANTA, Mixture, Part, Selection, in_quanta, subset_sizes
from pretrain.data.order.order import Order, allowed_worlds
from pretrain.errors import ConfigError


@st.composite
def sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of shards, and dropped sample ids."""
    sizes = np.array(draw(st.lists(st.integers(0, 30), min_size=1, max_size=10)), dtype=np.int64)
    total = int(sizes.sum())
    dropped = draw(st.lists(st.integers(0, total - 1), max_size=total // 2)) if total else []
    return sizes, np.array(dropped, dtype=np.int64)


def chosen(selection: Selection) -> np.ndarray:
    return selection.sample_ids(np.arange(int(selection.sizes.sum())))


@settings(max_examples=40, deadline=None)
@given(of=sets())
def test_without_a_subset_everything_but_the_dropped_is_chosen_in_order(of):
    sizes, dropped = of
    expected = np.setdiff1d(np.arange(sizes.sum()), dropped)
    selection = Selection(sizes, dropped)
    assert np.array_equal(chosen(selection), expected)
    assert selection.is_all == (len(dropped) == 0)


@settings(max_examples=40, deadline=None)
@given(of=sets(), data=st.data())
def test_subsets_have_their_size_and_lie_within_each_other(of, data):
    sizes, dropped = of
    kept = np.setdiff1d(np.arange(sizes.sum()), dropped)
    counts = sorted(data.draw(st.lists(st.integers(0, len(kept)), min_size=2, max_size=4)))
    parts = [set(chosen(Selection(sizes, dropped, count)).tolist()) for count in counts]
    assert [len(part) for part in parts] == counts
    for smaller, larger in zip(parts, [*parts[1:], set(kept.tolist())], strict=True):
        assert smaller <= larger


@settings(max_examples=30, deadline=None)
@given(of=sets(), data=st.data())
def test_neighbours_are_drawn_samples_of_the_same_shard(of, data):
    sizes, dropped = of
    kept = len(np.setdiff1d(np.arange(sizes.sum()), dropped))
    count = data.draw(st.integers(1, kept)) if kept else None
    if count is None:
        return
    selection = Selection(sizes, dropped, count)
    members = np.sort(chosen(selection))
    one = int(data.draw(st.sampled_from(members.tolist())))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shard = np.searchsorted(starts, one, side="right") - 1
    same = [int(m) for m in members if starts[shard] <= m < starts[shard + 1]]
    place = same.index(one)
    assert selection.neighbours(one, 5) == [*same[place + 1 :], *same[:place]][:5]


def test_a_subset_is_spread_over_shards_and_inside_them():
    selection = Selection(np.full(100, 1000), count=10_000)
    assert set(selection.sizes.tolist()) == {100}
    inside = chosen(selection) % 1000
    assert abs(inside.mean() - 499.5) < 15  # standard error 2.9
    assert len(np.unique(inside)) > 990


def test_the_choice_is_pinned():
    """A change of these numbers changes every run on a subset."""
    assert chosen(Selection(np.array([5, 0, 9, 6]), np.array([3, 7]), 6)).tolist() == PINNED_CHOICE


PINNED_CHOICE = [1, 9, 5, 13, 15, 18]


@pytest.mark.parametrize("count", [1, 3_000_000, 30_000_001, 299_999_999])
def test_a_set_of_three_hundred_million_has_subsets_of_any_size_at_once(count):
    sizes = np.full(30_000, 10_000)
    taken = subset_sizes(sizes, count)
    assert int(taken.sum()) == count
    assert abs(taken - count / 30_000).max() <= 1


def mixture(sizes: list[list[int]], weights: list[float], *, lanes: int, pairs: int, window: int = 16, seed: int = 0):
    parts, first = [], 0
    for number, of_set in enumerate(sizes):
        order = Order(of_set, seed=seed + number, global_batch_size=2 * pairs * lanes, lanes=lanes, window=window)
        parts.append(Part(order, Selection(np.array(of_set, dtype=np.int64)), first))
        first += sum(of_set)
    return Mixture(parts, weights, seed=seed)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    lanes = draw(st.sampled_from([1, 2, 4, 8]))
    sizes = draw(st.lists(st.lists(st.integers(lanes, 40), min_size=1, max_size=5), min_size=1, max_size=4))
    weights = draw(st.lists(st.floats(0.01, 100), min_size=len(sizes), max_size=len(sizes)))
    return mixture(
        sizes,
        weights,
        lanes=lanes,
        pairs=draw(st.integers(1, 4)),
        window=draw(st.sampled_from([1, 3, 16, 1000])),
        seed=draw(st.integers(0, 5)),
    )


def straight(mixed: Mixture, num_steps: int, first: int = 0) -> np.ndarray:
    """(sample ids, slots, epochs) of some global batches, (3, steps × B)."""
    size = mixed.global_batch_size
    return np.concatenate([np.stack(mixed.batch((first + step) * size)) for step in range(num_steps)], axis=1)


@settings(max_examples=25, deadline=None)
@given(mixed=mixtures())
def test_each_set_keeps_its_own_epochs_and_each_epoch_has_each_sample_once(mixed):
    """Of every draw of a set, number n of a lane, there is one: so every whole epoch is complete."""
    num_steps = max(1, 1500 // mixed.global_batch_size)
    sample_ids, slots, epochs = straight(mixed, num_steps)
    lane = slots % mixed.lanes
    for number, part in enumerate(mixed.parts):
        mine = (sample_ids >= part.first_sample_id) & (sample_ids < part.first_sample_id + part.order.num_samples)
        for index in range(mixed.lanes):
            of_lane = sample_ids[mine & (lane == index)][np.argsort(slots[mine & (lane == index)])]
            expected, its_epochs = part.order.at(np.full(len(of_lane), index), np.arange(len(of_lane)))
            assert np.array_equal(of_lane - part.first_sample_id, expected)
            assert np.array_equal(np.sort(epochs[mine & (lane == index)]), np.sort(its_epochs))
        assert mixed.quanta[number] >= 1


@settings(max_examples=25, deadline=None)
@given(mixed=mixtures())
def test_counts_stay_close_to_the_weights(mixed):
    draws = np.concatenate([np.arange(300), 10**7 + np.arange(300)])
    for lane in range(mixed.lanes):
        counts = mixed.counts(np.full_like(draws, lane), draws)
        assert np.array_equal(counts.sum(axis=0), draws)
        assert set(np.diff(counts[:, :300], axis=1).ravel().tolist()) <= {0, 1}
        for number, quanta in enumerate(mixed.quanta):
            assert np.abs(counts[number] - draws * (quanta / QUANTA)).max() <= number + 1


def test_every_global_batch_has_the_sets_in_their_shares():
    mixed = mixture([[5000], [3000], [9000]], [0.7, 0.2, 0.1], lanes=64, pairs=4)
    for step in range(40):
        ids = mixed.batch(step * 512).sample_ids
        shares = np.histogram(ids, bins=[0, 5000, 8000, 17000])[0] / 512
        assert np.abs(shares - [0.7, 0.2, 0.1]).max() < 0.02


@settings(max_examples=25, deadline=None)
@given(mixed=mixtures(), data=st.data())
def test_any_world_and_micro_batch_give_the_same_global_batches(mixed, data):
    size = mixed.global_batch_size
    world = data.draw(st.sampled_from(allowed_worlds(size, mixed.lanes, size)))
    per_rank = size // world
    micro = data.draw(st.sampled_from([part for part in range(1, per_rank + 1) if per_rank % part == 0]))
    step = data.draw(st.integers(0, 1000))
    parts = [
        np.stack(mixed.batch(step * size, rank, world, start=first, stop=first + micro))
        for rank in range(world)
        for first in range(0, per_rank, micro)
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), straight(mixed, 1, first=step))


@settings(max_examples=25, deadline=None)
@given(mixed=mixtures(), step=st.integers(0, 60), world=st.sampled_from([1, 2, 4]))
def test_the_windows_hold_what_is_drawn(mixed, step, world):
    """Windows that are fetched ahead: every draw comes from its lane's current window or the one after it."""
    if world not in allowed_worlds(mixed.global_batch_size, mixed.lanes, world):
        return
    position = step * mixed.global_batch_size
    for rank in range(world):
        windows = mixed.windows(position, rank, world)
        draws = mixed.batch(position, rank, world)
        for sample_id, slot in zip(draws.sample_ids.tolist(), draws.slots.tolist(), strict=True):
            part = max(n for n, part in enumerate(mixed.parts) if part.first_sample_id <= sample_id)
            (window,) = [w for w in windows if (w.part, w.lane) == (part, slot % mixed.lanes)]
            assert 0 <= window.progress < 1
            draw, found = window.draw, False
            for _ in range(2 * mixed.global_batch_size):  # a small window may be over before the batch is
                found = found or sample_id - mixed.parts[part].first_sample_id in mixed.window_samples(
                    part, window.lane, draw
                )
                if found:
                    break
                first, length = mixed.parts[part].order.window_of(draw)
                draw = first + length
            assert found


def test_one_set_is_drawn_as_without_a_mixture():
    order = Order([40, 7, 90], seed=3, global_batch_size=16, lanes=4, window=8)
    mixed = Mixture([Part(order, Selection(order.sizes))], seed=9)
    for step in (0, 1, 50, 10**6):
        assert np.array_equal(np.stack(mixed.batch(16 * step)), np.stack(order.batch(16 * step)))


def test_the_mixture_is_pinned():
    """A change of these numbers changes every run on a mixture."""
    mixed = mixture([[8], [8], [8]], [2, 1, 1], lanes=2, pairs=2, window=4)
    assert [mixed.batch(8 * step).sample_ids.tolist() for step in range(3)] == PINNED_DRAWS


PINNED_DRAWS = [[0, 11, 2, 18, 22, 6, 13, 4], [1, 8, 3, 17, 20, 5, 12, 7], [0, 10, 1, 19, 21, 6, 14, 7]]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1], [QUANTA]), ([1, 1], [QUANTA // 2] * 2), ([1, 1, 1], [349526, 349525, 349525]), ([0.5, 1.5], None)],
)
def test_weights_become_whole_numbers(weights, expected):
    quanta = in_quanta(weights)
    assert sum(quanta) == QUANTA
    assert quanta == (expected or [QUANTA // 4, QUANTA * 3 // 4])


def test_a_weight_that_would_never_be_drawn_is_refused():
    with pytest.raises(ConfigError, match="less than a millionth"):
        in_quanta([1, 1e-9])
