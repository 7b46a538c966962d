"""Heartbeats: one file per node, of this start only; and who is named as the one that the others wait for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pretrain.distributed import heartbeats
from pretrain.distributed.heartbeats import Beat, Heartbeats, accuse, ranks, read_beats
from pretrain.distributed.rank import Rank
from pretrain.engine.run_folder import RunFolder

BEAT = Beat(rank=0, host="a", pid=1, step=7, phase="step", phase_s=3.0, count=5)


def until(holds: Callable[[], bool]) -> None:
    """Waits for an event."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Node:
    """The heartbeats of some ranks of one node, in this process; each may be frozen."""

    def __init__(self, memory: Path, *numbers: int, host: str = "a") -> None:
        self.memory, self.frozen = memory, set[int]()
        self.ranks = {number: Heartbeats("start", host, self._now_of(number)).begin() for number in numbers}

    def _now_of(self, number: int) -> Callable[[], Beat]:
        def now() -> Beat:
            while number in self.frozen:
                time.sleep(0.01)
            return replace(BEAT, rank=number)

        return now

    def stop(self) -> None:
        self.frozen.clear()
        for each in self.ranks.values():
            each.stop()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(heartbeats, "_memory", lambda: tmp_path / "memory")
    monkeypatch.setattr(heartbeats, "INTERVAL_S", 0.02)
    monkeypatch.setattr(heartbeats, "PUBLISH_S", 0.5)
    node = Node(tmp_path / "memory", 2, 3)
    yield node
    node.stop()


def test_a_node_writes_one_file_of_all_its_ranks(node: Node, tmp_path: Path) -> None:
    shared = tmp_path / "heartbeats"
    for each in node.ranks.values():
        each.publish_in(shared)
    until(lambda: [beat.rank for beat in read_beats(shared)] == [2, 3])
    before = read_beats(shared)
    until(lambda: all(now.count > old.count for now, old in zip(read_beats(shared), before, strict=True)))
    assert {name for name in os.listdir(shared) if name.endswith(".json")} == {"node-00002.json"}
    assert node.ranks[3].read()[0].rank == 2, "each rank sees the others"


def test_nodes_that_share_a_memory_write_a_file_each(node: Node, tmp_path: Path) -> None:
    """As containers of one machine do."""
    other, shared = Node(node.memory, 4, 5, host="b"), tmp_path / "heartbeats"
    for each in [*node.ranks.values(), *other.ranks.values()]:
        each.publish_in(shared)
    until(lambda: [beat.rank for beat in read_beats(shared)] == [2, 3, 4, 5])
    other.stop()
    assert {"node-00002.json", "node-00004.json"} <= set(os.listdir(shared))


def test_another_rank_writes_for_a_node_whose_writer_is_frozen(node: Node, tmp_path: Path) -> None:
    shared = tmp_path / "heartbeats"
    for each in node.ranks.values():
        each.publish_in(shared)
    until(lambda: len(read_beats(shared)) == 2)
    node.frozen.add(2)
    before = read_beats(shared)
    until(lambda: (shared / "node-00003.json").exists())
    until(lambda: read_beats(shared)[1].count > before[1].count + 5)
    accused = accuse(read_beats(shared), [replace(read_beats(shared)[0]), before[1]], reader=3)
    assert "wait for rank 2" in accused and "no longer beating" in accused


def test_nothing_is_left_in_the_memory_of_the_node(node: Node, tmp_path: Path) -> None:
    killed = tmp_path / "memory/vit-pretrain-killed"
    killed.mkdir()
    (killed / "rank-00000.json").write_text("{}")
    os.utime(killed, (1e9, 1e9))
    other = tmp_path / "memory/of-another-program"
    other.mkdir()
    os.utime(other, (1e9, 1e9))
    node.stop()
    later = Heartbeats("later", "a", lambda: BEAT).begin()
    later.stop()
    until(lambda: os.listdir(tmp_path / "memory") == ["of-another-program"])


def test_a_disk_in_trouble_is_reported_once(node: Node, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    node.ranks[2].publish_in(tmp_path / "taken" / "heartbeats")
    until(lambda: "not written" in capfd.readouterr().err)
    time.sleep(1.2)  # two more tries
    assert "not written" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["rank-00003.json", "node-00002.json"])
def test_ranks_of_an_earlier_start_are_not_taken_for_living_ones(tmp_path: Path, name: str) -> None:
    """A run of four ranks that is resumed with one."""
    folder = RunFolder(tmp_path / "run")
    folder.heartbeats.mkdir(parents=True)
    beat = asdict(replace(BEAT, rank=3))
    (folder.heartbeats / name).write_text(json.dumps(beat if name.startswith("rank") else {"beats": [beat]}))
    assert [beat.rank for beat in read_beats(folder.heartbeats)] == [3]
    folder.open(Rank(0, 0, 1, 1, "here", "alone"), ("local", 0))
    assert read_beats(folder.heartbeats) == []
    folder.close(None, ("local", 0), writes=False)


@pytest.mark.parametrize(
    ("beats", "named"),
    [
        (
            [BEAT, replace(BEAT, rank=1, phase="data"), replace(BEAT, rank=2)],
            "wait for rank 1 (process 1 on a: step 7, phase data",
        ),
        ([BEAT, replace(BEAT, rank=1), replace(BEAT, rank=2, step=6, phase="save")], "wait for rank 2"),
        ([BEAT, replace(BEAT, rank=1)], "all 2 ranks are in phase step of step 7"),
        ([], "no heartbeat can be read"),
    ],
)
def test_who_is_named(beats: list[Beat], named: str) -> None:
    assert named in accuse(beats)


def test_a_rank_that_no_longer_beats_is_named_whatever_its_clock_says() -> None:
    before = [BEAT, replace(BEAT, rank=1), replace(BEAT, rank=2, count=900)]
    now = [BEAT, replace(BEAT, rank=1, count=8), replace(BEAT, rank=2, count=900)]
    assert "wait for rank 2" in accuse(now, before, reader=0) and "no longer beating" in accuse(now, before, reader=0)
    assert "rank 0" not in accuse(now, before, reader=0), "the one that asks does not beat while it does"
    assert "all 3 ranks" in accuse([replace(beat, count=beat.count + 3) for beat in before], before)


def test_a_rank_that_has_never_beaten_is_named() -> None:
    text = accuse([BEAT, replace(BEAT, rank=2)], world=4)
    assert "no heartbeat of ranks 1, 3 can be read" in text and "all 2 ranks" in text
    assert ranks(range(20)).endswith("15 and 4 more") and ranks([7]) == "rank 7"


@pytest.mark.parametrize("name", ["rank-00000.json", "node-00000.json"])
@pytest.mark.parametrize(
    "text",
    ["null", "[]", "3", '"x"', "{}", "[" * 100_000, '{"rank": 0, "ho', '{"beats": 3}', '{"beats": [3, null, {}]}']
    + [
        json.dumps(change)
        for wrong in ({"phase": "?"}, {"phase": []}, {"step": None}, {"rank": "0"})
        for change in (asdict(BEAT) | wrong, {"beats": [asdict(BEAT) | wrong]})
    ]
    + [json.dumps({"rank": 0, "host": "a", "pid": 1, "step": 1, "phase": "step", "since": 1.0, "seen": 1.0})],
)
def test_what_is_not_a_heartbeat_is_left_out(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "rank-00001.json").write_text(json.dumps(asdict(BEAT)))
    assert read_beats(tmp_path) == [BEAT]


def test_the_newest_beat_of_a_rank_counts(tmp_path: Path) -> None:
    for writer, count in ((0, 9), (1, 30), (2, 20)):
        beats = [asdict(replace(BEAT, rank=3, count=count))]
        (tmp_path / f"node-{writer:05d}.json").write_text(json.dumps({"beats": beats}))
    assert [beat.count for beat in read_beats(tmp_path)] == [30]
