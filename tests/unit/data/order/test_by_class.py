"""Classes drawn by quota: exact shares, epochs of each class, and the same batches for any ranks."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order.by_class import OrderByClass, quotas_of
from pretrain.data.order.mixture import Mixture, Part, Selection
from pretrain.data.order.order import allowed_worlds

POWERS = {"balanced": 0.0, "square_root": 0.5}


@st.composite
def orders(draw: st.DrawFn) -> tuple[OrderByClass, np.ndarray]:
    """An order of 1 to 150 samples, and their labels; classes may be empty."""
    counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any))
    labels = np.random.default_rng(draw(st.integers(0, 9))).permutation(np.repeat(np.arange(len(counts)), counts))
    lanes = draw(st.sampled_from([1, 2, 4]))
    size = 2 * lanes * draw(st.integers(1, 3))
    sampling: Any = draw(st.sampled_from(["balanced", "square_root"]))
    return OrderByClass(labels, sampling, seed=draw(st.integers(0, 9)), global_batch_size=size, lanes=lanes), labels


def drawn(order: OrderByClass, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples and epochs of the first draws, in the order of their slots."""
    return order.at(np.arange(num_draws) % order.lanes, np.arange(num_draws) // order.lanes)


@settings(max_examples=40, deadline=None)
@given(made=orders())
def test_each_period_has_the_quotas_and_each_epoch_of_a_class_each_of_its_samples_once(made):
    order, labels = made
    samples, epochs = drawn(order, 3 * len(labels))
    for period in range(3):
        classes = labels[samples[period * len(labels) : (period + 1) * len(labels)]]
        assert np.bincount(classes, minlength=len(order.quotas)).tolist() == order.quotas.tolist()
    seen = list(zip(samples.tolist(), epochs.tolist(), strict=True))
    assert len(set(seen)) == len(seen)  # no two draws have the same augmentation
    for index in np.unique(labels):
        members, mine = np.flatnonzero(labels == index), labels[samples] == index
        for epoch in range(3 * order.quotas[index] // len(members)):
            assert sorted(samples[mine & (epochs == epoch)].tolist()) == members.tolist()


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=50).filter(any))
@pytest.mark.parametrize("sampling", ["balanced", "square_root"])
def test_quotas_are_the_published_shares(sampling, counts):
    """p_j = n_j^q / Σ n_i^q, equation 1 of 1910.09217, here as numpy computes it."""
    present = np.array(counts, dtype=np.float64) ** POWERS[sampling] * (np.array(counts) > 0)
    quotas = quotas_of(counts, sampling)
    assert int(quotas.sum()) == sum(counts)
    assert np.abs(quotas - sum(counts) * present / present.sum()).max() < 1 + 1e-6
    assert ((quotas > 0) == (np.array(counts) > 0)).all()


@settings(max_examples=25, deadline=None)
@given(made=orders(), step=st.integers(0, 10**9), copies=st.sampled_from([1, 2]), data=st.data())
def test_any_world_and_micro_batch_give_the_same_global_batches(made, step, copies, data):
    order, labels = made
    mixed = Mixture([Part(order, Selection(np.array([len(labels)])))], seed=1, copies=min(copies, order.lanes))
    size = order.global_batch_size
    world = data.draw(st.sampled_from(allowed_worlds(size, order.lanes, size)))
    per_rank = size // world
    micro = data.draw(st.sampled_from([part for part in range(1, per_rank + 1) if per_rank % part == 0]))
    parts = [
        np.stack(mixed.batch(step * size, rank, world, start=first, stop=first + micro))
        for rank in range(world)
        for first in range(0, per_rank, micro)
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), np.stack(mixed.batch(step * size)))


def test_classes_are_spread_over_a_period():
    """Of 100 batches of 100 draws, each has 10 of a class's 1,000 draws, ± 3 as draws without replacement have."""
    labels = np.repeat(np.arange(10), [9100, *[100] * 9])
    order = OrderByClass(labels, "balanced", seed=0, global_batch_size=100, lanes=2)
    classes = labels[drawn(order, 10_000)[0]].reshape(100, 100)
    shares = np.stack([np.bincount(batch, minlength=10) for batch in classes])
    assert abs(shares.std() - np.sqrt(100 * 0.1 * 0.9 * (1 - 0.01))) < 0.3


def test_a_data_process_receives_four_bytes_per_image():
    labels = np.minimum(np.arange(1_000_000) // 10, 999)
    order = OrderByClass(labels, "balanced", seed=0, global_batch_size=8192, lanes=512)
    assert len(pickle.dumps(order)) < 4 * len(labels) + 100_000
    far = Mixture([Part(order, Selection(np.array([len(labels)])))], seed=0).batch(10**12 // 512 * 512)
    assert np.bincount(labels[far.sample_ids], minlength=1000).max() < 40  # 8.2 on average


def test_the_order_is_pinned():
    """A change of these numbers changes every run with data.sampling."""
    order = OrderByClass(np.array([0, 1, 0, 0, 2, 0, 0, 1]), "square_root", seed=3, global_batch_size=4, lanes=2)
    assert order.quotas.tolist() == [4, 2, 2]
    assert drawn(order, 16)[0].tolist() == PINNED


PINNED = [1, 4, 2, 7, 5, 0, 4, 6, 7, 3, 4, 1, 4, 0, 3, 6]
