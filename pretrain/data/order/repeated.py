"""Repeated augmentation: k copies of each image in a global batch, as a pure function of a draw's place.

Batch s takes Q = ⌈B / k⌉ images, the numbers s · Q … (s + 1) · Q − 1 of a stream that repeats nothing, in the order
of that stream's lanes, k times one after the other, up to B. So the copies of an image are Q rows of the batch apart,
which is more than a lane has: they stand in different lanes. Where k does not divide B, fewer than k images have one
copy less. A rank's rows hold neighbouring lanes of the inner stream, so it reads at most k times its share of the
bytes.

Legend: B global batch · L lanes · k copies · Q images of a batch.
Source: repeated augmentation (1901.09335; DeiT's RASampler). Differs: RASampler shuffles anew each epoch and keeps
the first N / k images; here an image returns only when all others were drawn, after k epochs of N draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import ConfigError

IntArray = NDArray[np.int64]


class Copies(NamedTuple):
    """For each draw, what it is a copy of; int64 (b,) each.

    Attributes:
        lanes: of the inner stream.
        draws: of that lane.
        copies: which copy, 0 … k − 1.
    """

    lanes: IntArray
    draws: IntArray
    copies: IntArray


def copies_of(lanes: IntArray, draws: IntArray, *, copies: int, global_batch_size: int, num_lanes: int) -> Copies:
    """The inner draws that stand at these places of one global batch.

    Args:
        lanes: (b,) of the stream.
        draws: (b,) of those lanes, all of one global batch.
        copies: k.
        global_batch_size: B.
        num_lanes: L.
    """
    per_lane = global_batch_size // num_lanes
    if not lanes.size:
        return Copies(lanes, draws, np.zeros_like(lanes))
    batch, images = int(draws[0]) // per_lane, -(-global_batch_size // copies)
    rows = lanes * per_lane + draws - batch * per_lane
    numbers = batch * images + np.arange(images, dtype=np.int64)
    numbers = numbers[np.argsort(numbers % num_lanes, kind="stable")]
    copy, image = np.divmod(rows, images)
    return Copies(numbers[image] % num_lanes, numbers[image] // num_lanes, copy)


def check_copies(copies: int, global_batch_size: int, num_lanes: int) -> None:
    """Refuses copies that would stand in one lane.

    Raises:
        ConfigError: more copies than lanes.
    """
    if copies > num_lanes:
        raise ConfigError(
            f"data.repeated_augmentation: {copies} copies of an image need as many lanes, but data.lanes is {num_lanes}"
            f" (global_batch_size {global_batch_size}); use at most {num_lanes} copies, or more lanes"
        )
