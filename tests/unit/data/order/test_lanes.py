from __future__ import annotations

import pytest

from pretrain.data.order.lanes import allowed_worlds, check_world, default_lanes, resolve_lanes
from pretrain.errors import ConfigError


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
