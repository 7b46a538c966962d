"""Stateless randomness: every random number is a hash of its purpose and coordinates.

A stateful generator cannot be resumed at another world size. Here a number is the hash of its coordinates (seed,
purpose, epoch, sample, …), so any process can compute any number on its own, in any order. Only numpy is needed.

Legend: keys are integers, strings or integer arrays that broadcast against each other.
Source: the finaliser is MurmurHash3's ``fmix64``; the permutation is a balanced Feistel network with cycle walking
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Key = int | str | np.integer | NDArray[np.integer]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xFF51AFD7ED558CCD)
_M2 = np.uint64(0xC4CEB9FE1A85EC53)
_S33 = np.uint64(33)
_FEISTEL_ROUNDS = 6


@lru_cache(maxsize=4096)
def _name(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _as_uint64(key: Key) -> NDArray[np.uint64]:
    if isinstance(key, str):
        return np.asarray(_name(key), dtype=np.uint64)
    if isinstance(key, int):
        return np.asarray(key & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    return np.asarray(key).astype(np.uint64)


def _finalise(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h = h ^ (h >> _S33)
    h = h * _M1
    h = h ^ (h >> _S33)
    h = h * _M2
    return h ^ (h >> _S33)


def hash64(*keys: Key) -> NDArray[np.uint64]:
    """Hashes the keys, in order, to 64 bits; arrays broadcast, so one call returns many numbers."""
    h = np.asarray(_GOLDEN)
    with np.errstate(over="ignore"):
        for key in keys:
            h = _finalise((h + _GOLDEN) ^ _finalise(_as_uint64(key) + _GOLDEN))
    return h


def uniform(*keys: Key) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits, in the shape to which the keys broadcast."""
    return (hash64(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integer_seed(*keys: Key) -> int:
    """A seed in [0, 2**63) for a library generator (``torch.Generator.manual_seed``)."""
    return int(hash64(*keys) >> np.uint64(1))


def generator(*keys: Key) -> np.random.Generator:
    """A separate numpy generator for these keys, for code that needs a stream of numbers (such as one image's crop)."""
    return np.random.Generator(np.random.Philox(key=int(hash64(*keys))))


def permute(index: NDArray[np.integer], size: int | NDArray[np.integer], *keys: Key) -> NDArray[np.int64]:
    """Maps ``index`` in [0, size) through a pseudo-random bijection of [0, size), in O(1) memory per element.

    Args:
        index: positions, any shape. ``size`` and the keys broadcast against it.
        size: length of the permuted range (≥ 1), one for all or one per element.
        *keys: identify the permutation; equal keys give the same bijection.

    Returns:
        int64 positions in [0, size), in the broadcast shape. For one size and one set of keys, this is a permutation.
    """
    index, size = np.broadcast_arrays(np.asarray(index, dtype=np.int64), np.asarray(size, dtype=np.int64))
    key = np.broadcast_to(hash64(*keys), index.shape)
    assert np.all((index >= 0) & (index < size)), "an index is outside the permuted range"
    half_bits = np.maximum(1, np.ceil(np.log2(np.maximum(size, 2)) / 2)).astype(np.uint64)
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    out = index.astype(np.uint64)
    pending = np.ones(index.shape, dtype=bool)
    while pending.any():  # cycle walking: the domain is < 4 × size (or 4), so it ends after a few rounds
        value, bits, low, k = out[pending], half_bits[pending], mask[pending], key[pending]
        left, right = value >> bits, value & low
        with np.errstate(over="ignore"):
            for round_index in range(_FEISTEL_ROUNDS):
                mixed = _finalise(k + _finalise(right + np.uint64(round_index + 1) * _GOLDEN))
                left, right = right, left ^ (mixed & low)
        out[pending] = (left << bits) | right
        pending = out >= size.astype(np.uint64)
    return out.astype(np.int64)
