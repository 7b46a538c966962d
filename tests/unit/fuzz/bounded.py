"""Outcomes allowed for a fuzzed input: success or a user's error, within a bounded amount of work."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pretrain.errors import BadSample, UserError

LIMIT_S = 20  # of this process's own time, so that a loaded machine does not matter


class TooMuchWorkError(Exception):
    """An input made the program compute for longer than any input may."""


@contextmanager
def bounded() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooMuchWorkError(f"more than {LIMIT_S} s of computing")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(action: Callable[[], Any], what: object) -> str:
    """Runs it; the name of a user's error, or "ok". Anything else is the test's failure, with the input.

    Its message must be text that a log can hold.
    """
    try:
        with bounded():
            action()
    except (UserError, BadSample) as error:
        str(error).encode("utf-8", "surrogateescape")
        return type(error).__name__
    except SystemExit as error:
        assert error.code in (0, 2), (what, error.code)
        return "usage"
    except BaseException as error:
        raise AssertionError(f"{what!r}: {type(error).__name__}: {error}") from error
    return "ok"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four changes: bits, runs, cuts, insertions, repetitions."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(6)
        if kind == 0 and content:
            content[place % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[place : place + rng.randrange(1, 40)]
        elif kind == 2:
            content[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif kind == 3:
            content[place:place] = content[: rng.randrange(1, 60)]
        elif kind == 4:
            content[place:place] = rng.choice(
                [b"\0", b"\xff\xfe", b"{", b"]", b'"', b"\n", b": ", b" #", b"1e999", b"\x1b[2J"]
            )
        else:
            del content[place:]
    return bytes(content)


WEIRD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf"), "", "x", "\x00", "\x1b[31m",
    "é", "\ud800", "../../x", "/dev/null", "a" * 300, [], [[]], [None], [1, "a"], {}, {"a": 1}, {"": {}},
)  # fmt: skip


def replaced(tree: Any, rng: random.Random) -> Any:
    """A JSON tree with one value replaced by another kind of value, removed, or given twice."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(sorted(tree))
        if rng.random() < 0.15:
            return {name: value for name, value in tree.items() if name != key}
        if rng.random() < 0.1:
            return tree | {rng.choice(["", "x", "\x00", "a" * 300]): rng.choice(WEIRD)}
        return tree | {key: replaced(tree[key], rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        place = rng.randrange(len(tree))
        return [*tree[:place], replaced(tree[place], rng), *tree[place + 1 :]]
    return rng.choice(WEIRD)
