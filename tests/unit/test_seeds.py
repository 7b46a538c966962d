"""Counter-based randomness: fixed values, uniformity, independence of coordinates, and that permutations are such."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import seeds

BITS = 64


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ((), 0x9E3779B97F4A7C15),
        ((0,), 0x3F6EE045E0CA8888),
        ((1, 2, 3), 0xCD403BB3DD1C3F12),
        (("init", 7), 0xEC18BD14B2344D9A),
        ((-1,), 0x2C619187BABA13F0),
    ],
)
def test_values_never_change(keys: tuple[seeds.Key, ...], value: int) -> None:
    """A new value would change every run's order, augmentation and initial weights."""
    assert int(seeds.hash64(*keys)) == value


def test_the_hash_is_murmurs_finaliser() -> None:
    """By hand, in Python's integers. Source: MurmurHash3, fmix64."""
    mask = 2**BITS - 1

    def fmix64(h: int) -> int:
        h = (h ^ (h >> 33)) * 0xFF51AFD7ED558CCD & mask
        h = (h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53 & mask
        return h ^ (h >> 33)

    golden = h = 0x9E3779B97F4A7C15
    for key in (3, 1 << 40, 2**63 + 5):
        h = fmix64((h + golden & mask) ^ fmix64(key + golden & mask))
    assert int(seeds.hash64(3, 1 << 40, 2**63 + 5)) == h


def test_arrays_broadcast_and_equal_the_scalars() -> None:
    epochs, samples = np.arange(3)[:, None], np.arange(5)[None, :]
    table = seeds.hash64(11, "flip", epochs, samples)
    assert table.shape == (3, 5) and table.dtype == np.uint64
    for epoch in range(3):
        for sample in range(5):
            assert table[epoch, sample] == seeds.hash64(11, "flip", epoch, sample)


def test_the_order_of_the_keys_matters() -> None:
    assert seeds.hash64(1, 2) != seeds.hash64(2, 1)
    assert seeds.hash64("a", "b") != seeds.hash64("ab")
    assert len(np.unique(seeds.hash64(np.arange(1000)[:, None], np.arange(1000)))) == 1_000_000


@pytest.mark.parametrize("coordinate", ["seed", "epoch", "sample"])
def test_uniform_numbers_are_uniform_along_every_coordinate(coordinate: str) -> None:
    count = 100_000
    keys: dict[str, seeds.Key] = {"seed": 1, "epoch": 2, "sample": 3}
    keys[coordinate] = np.arange(count)
    numbers = seeds.uniform(*keys.values())
    assert numbers.min() >= 0 and numbers.max() < 1
    observed = np.histogram(numbers, bins=100, range=(0, 1))[0]
    chi_square = ((observed - count / 100) ** 2 / (count / 100)).sum()
    assert chi_square < 160  # 99 degrees of freedom: p ≈ 1e-4
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / np.sqrt(count)


def test_every_output_bit_depends_on_every_input_bit() -> None:
    base = np.arange(4096, dtype=np.uint64)
    for bit in range(0, BITS, 7):
        flipped = seeds.hash64(base) ^ seeds.hash64(base ^ np.uint64(1 << bit))
        shares = [(flipped >> np.uint64(out) & np.uint64(1)).mean() for out in range(BITS)]
        assert min(shares) > 0.45 and max(shares) < 0.55


def test_integer_seeds_fit_into_63_bits() -> None:
    drawn = [seeds.integer_seed("torch", i) for i in range(1000)]
    assert len(set(drawn)) == 1000 and min(drawn) >= 0 and max(drawn) < 2**63
    assert all(type(seed) is int for seed in drawn)


def test_generators_are_their_keys_own() -> None:
    first, again, other = (seeds.generator(*keys).random(4).tolist() for keys in ((1, 2), (1, 2), (1, 3)))
    assert first == again != other


@settings(deadline=None, max_examples=100)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_permute_is_a_permutation(size: int, seed: int) -> None:
    assert np.array_equal(np.sort(seeds.permute(np.arange(size), size, seed)), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 65_536])
def test_permute_near_powers_of_two(size: int) -> None:
    moved = seeds.permute(np.arange(size), size, "edge")
    assert moved.dtype == np.int64 and np.array_equal(np.sort(moved), np.arange(size))


def test_permute_of_small_ranges_reaches_every_permutation_about_equally() -> None:
    index = np.broadcast_to(np.arange(4), (24_000, 4))
    permutations = seeds.permute(index, 4, np.arange(24_000)[:, None])
    codes, counts = np.unique(permutations @ [64, 16, 4, 1], return_counts=True)
    assert len(codes) == 24
    assert counts.min() > 500 and counts.max() < 1500  # a Feistel network of tiny halves is a little uneven


def test_permute_in_a_huge_range_is_quick_and_one_to_one() -> None:
    index = np.arange(10**12, 10**12 + 100_000)
    moved = seeds.permute(index, 2**41 - 7, 5)
    assert len(np.unique(moved)) == len(index) and moved.min() >= 0 and moved.max() < 2**41 - 7
    assert abs(moved.mean() / 2**40 - 1) < 0.02


def test_permute_takes_a_size_and_keys_per_element() -> None:
    index, size, key = np.array([0, 1, 6]), np.array([1, 5, 7]), np.array([3, 4, 5])
    expected = [seeds.permute(np.array([i]), int(s), int(k))[0] for i, s, k in zip(index, size, key, strict=True)]
    assert seeds.permute(index, size, key).tolist() == expected


def test_permute_refuses_an_index_outside_the_range() -> None:
    with pytest.raises(AssertionError):
        seeds.permute(np.array([5]), 5, 0)


def test_another_process_gets_the_same_numbers() -> None:
    code = "from pretrain import seeds; print(int(seeds.hash64('order', 3, 4)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == int(seeds.hash64("order", 3, 4))
