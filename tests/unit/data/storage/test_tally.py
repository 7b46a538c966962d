"""Counters that data processes share lose nothing; bad samples are counted once and limited."""

from __future__ import annotations

import json

import pytest

from pretrain.data.storage.tally import COUNTED, Fault, FaultLog, Tally, take_row
from pretrain.data.workers.worker import fork_server
from pretrain.errors import DataError
from tests.faulty_disk import FaultyDisk, using

ADDED = 20_000


def _add(tally: Tally, row: int) -> None:
    take_row(row)
    for _ in range(ADDED):
        tally.add(bytes_read=3, cache_hits=1)


def test_processes_that_count_at_once_lose_nothing() -> None:
    tally = Tally(num_workers=2)
    processes = [fork_server().Process(target=_add, args=(tally, row)) for row in (1, 2)]  # type: ignore[attr-defined]
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


def fault(sample_id: int, shard: str = "shard-000000.tar", kind: str = "crc") -> Fault:
    return Fault(sample_id, sample_id + 1, shard, f"{sample_id:09d}.jpg", kind, "detail")


def test_distinct_samples_are_counted_by_shard_and_kind(tmp_path):
    log = FaultLog(1000, 0.01, tmp_path / "quarantine" / "rank-00000.jsonl")
    log.add([fault(1), fault(1), fault(2, kind="decode"), fault(3, "shard-000001.tar")])
    log.add([fault(1), fault(4)])
    assert log.num_bad == 4
    assert log.counts == {
        ("shard-000000.tar", "crc"): 2,
        ("shard-000000.tar", "decode"): 1,
        ("shard-000001.tar", "crc"): 1,
    }
    assert log.path is not None
    written = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [row["sample_id"] for row in written] == [1, 2, 3, 4]
    assert log.summary().startswith("shard-000000.tar crc × 2")


@pytest.mark.parametrize(("rate", "allowed"), [(0.0, 0), (0.001, 1), (0.0035, 3), (1.0, 1000)])
def test_the_limit_is_a_share_of_the_set(rate, allowed):
    log = FaultLog(1000, rate)
    log.add(fault(index) for index in range(allowed))
    if allowed == 1000:
        return
    with pytest.raises(DataError, match=rf"{allowed + 1} of 1000 samples .* shard shard-000000.tar, member .*jpg, crc"):
        log.add([fault(allowed)])


def test_a_full_disk_ends_nothing_and_is_told_once(tmp_path, capsys):
    """The samples count all the same; what is missing in the file is written when there is room again."""
    log = FaultLog(1000, 0.5, tmp_path / "quarantine" / "rank-00000.jsonl")
    with using(FaultyDisk("ENOSPC", 0, lasting=True)):
        log.add([fault(1), fault(2)])
    assert capsys.readouterr().err.count("No space left on device") == 1
    log.add([fault(3)])
    assert log.num_bad == 3 and log.path is not None
    assert [json.loads(line)["sample_id"] for line in log.path.read_text().splitlines()] == [1, 2, 3]


def test_a_run_folder_that_vanished_is_not_made_again(tmp_path):
    FaultLog(1000, 0.5, tmp_path / "run" / "quarantine" / "rank-00000.jsonl").add([fault(1)])
    assert not (tmp_path / "run").exists()
