"""Counters that data processes share: nothing is lost, and the hit rate is that of late."""

from __future__ import annotations

import multiprocessing

from pretrain.data.storage.tally import COUNTED, Tally, take_row

ADDED = 20_000


def _add(tally: Tally, row: int) -> None:
    take_row(row)
    for _ in range(ADDED):
        tally.add(bytes_read=3, cache_hits=1)


def test_processes_that_count_at_once_lose_nothing() -> None:
    tally = Tally(num_workers=2)
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_add, args=(tally, row)) for row in (1, 2)]
    for process in processes:
        process.start()
    tally.add(bytes_read=5)
    for process in processes:
        process.join(60)
    assert dict(zip(COUNTED, tally.totals(), strict=True)) == {
        "bytes_read": 2 * 3 * ADDED + 5,
        "bytes_fetched": 0,
        "fetch_retries": 0,
        "cache_hits": 2 * ADDED,
        "cache_misses": 0,
    }


def test_the_hit_rate_is_that_since_the_last_call() -> None:
    tally = Tally(num_workers=0)
    assert tally.figures(tally.totals()) == {"bytes_read": 0}, "a set on the disk says nothing of a network"
    tally.add(bytes_read=10, bytes_fetched=20, cache_hits=1, cache_misses=3)
    assert tally.figures(tally.totals())["cache_hit_rate"] == 0.25
    tally.add(cache_hits=4)
    found = tally.figures(tally.totals())
    assert (found["cache_hit_rate"], found["bytes_fetched"]) == (1.0, 20)
    assert "cache_hit_rate" not in tally.figures(tally.totals()), "nothing was asked for since"
