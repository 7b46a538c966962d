"""How many equal lanes an epoch is cut into, and which numbers of ranks can share them.

Legend: B images per global batch · L lanes · R ranks.
"""

from __future__ import annotations

from typing import Literal

from pretrain.errors import ConfigError

MAX_LANES = 512
ROOMY_DRAWS_PER_LANE = 8


def default_lanes(global_batch_size: int) -> int:
    """The largest power of two ≤ 512 with an even B / L that is ≥ 8 where the batch allows.

    Raises:
        ConfigError: B is odd, so its samples do not come in pairs.
    """
    _check_even(global_batch_size)
    powers = [1 << bit for bit in range(MAX_LANES.bit_length())]
    fitting = [lanes for lanes in powers if global_batch_size % (2 * lanes) == 0]
    roomy = [lanes for lanes in fitting if global_batch_size // lanes >= ROOMY_DRAWS_PER_LANE]
    return max(roomy or fitting)


def resolve_lanes(global_batch_size: int, lanes: int | Literal["auto"], num_samples: int | None = None) -> int:
    """The number of lanes that ``data.lanes`` means, checked.

    Args:
        global_batch_size: B, samples per step.
        lanes: the config's value.
        num_samples: samples of the set, where known: each lane needs at least one.

    Raises:
        ConfigError: B / L is not an even whole number, or there are more lanes than samples.
    """
    resolved = default_lanes(global_batch_size) if lanes == "auto" else lanes
    _check_even(global_batch_size)
    if resolved < 1 or global_batch_size % (2 * resolved):
        raise ConfigError(
            f"data.lanes: {resolved} does not fit global_batch_size {global_batch_size}: each lane gives an even "
            f"number of samples to every batch; possible: {_join(_divisors(global_batch_size // 2))}"
        )
    if num_samples is not None and num_samples < resolved:
        raise ConfigError(
            f"data.lanes: {resolved} lanes need at least as many samples, but the set has {num_samples}; "
            f"set data.lanes to one of {_join([n for n in _divisors(global_batch_size // 2) if n <= num_samples])}"
        )
    return resolved


def can_share(global_batch_size: int, lanes: int, ranks: int) -> bool:
    """True where R ranks can draw the same global batches: R | L, or L | R and R | B with an even B / R."""
    if lanes % ranks == 0:
        return True
    return ranks % lanes == 0 and global_batch_size % (2 * ranks) == 0


def allowed_worlds(global_batch_size: int, lanes: int, up_to: int) -> list[int]:
    """The numbers of ranks ≤ ``up_to`` that keep the laws, ascending."""
    return [ranks for ranks in range(1, up_to + 1) if can_share(global_batch_size, lanes, ranks)]


def check_world(global_batch_size: int, lanes: int, ranks: int) -> None:
    """Refuses a number of ranks under which the global batches would differ.

    Raises:
        ConfigError: lists the numbers that can.
    """
    if ranks < 1 or not can_share(global_batch_size, lanes, ranks):
        worlds = allowed_worlds(global_batch_size, lanes, max(ranks, global_batch_size // 2))
        raise ConfigError(
            f"{ranks} ranks cannot share {lanes} lanes of a global batch of {global_batch_size}; numbers of ranks that "
            f"draw the same batches: {_join(worlds)}"
        )


def _check_even(global_batch_size: int) -> None:
    if global_batch_size < 2 or global_batch_size % 2:
        raise ConfigError(
            f"global_batch_size: {global_batch_size} is odd, but samples are drawn in pairs; use an even number"
        )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


def _join(numbers: list[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 24 else [*shown[:12], "…", *shown[-12:]])
