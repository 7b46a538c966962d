"""Which fast checkpoint the ranks agree on, and how its parts get to them, after every kind of damage to the nodes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.distributed.rank import detect
from pretrain.engine import fast_saving
from pretrain.engine.backend import HeldSlice
from pretrain.engine.fast_folder import Key, NodeFolder, Part
from pretrain.engine.fast_resume import bring, newest_fast
from pretrain.engine.fast_saving import FastPolicy, FastTier
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.session import Session
from pretrain.engine.slices import SliceReader, load_into
from pretrain.errors import CheckpointError
from tests.pool import Pool

LENGTH = 6  # elements of the one weight per rank
TWO = (0, 1)  # the node of each rank
KEY = Key(1, 0, 2)


def tier_of(folder: str, nodes: tuple[int, ...], said: list[str]) -> FastTier:
    """The tier of a rank that believes itself on a node of its own."""
    rank = detect()
    rank = replace(rank, host=f"node-{nodes[rank.rank]}")
    for name in ("run", rank.host):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
    session = Session.of(rank, torch.device("cpu"), RunFolder(Path(folder) / "run"))
    session.reporter.say = said.append  # type: ignore[method-assign]
    return FastTier(FastPolicy(1, None, Path(folder) / rank.host), session)


def weight(key: Key, rank: int) -> torch.Tensor:
    """The elements that a rank owns of the weight of a checkpoint."""
    return torch.arange(LENGTH, dtype=torch.float32) + 100 * rank + 1000 * key.step + 10_000 * key.attempt


def part_of(key: Key, rank: int, world: int) -> Part:
    """The part of a rank that owns LENGTH elements."""
    places = {"master:w": {"offset": rank * LENGTH, "shape": (world * LENGTH,)}}
    marker = {"format": 1, "step": key.step, "attempt": key.attempt, "world_size": world}
    state = {"step": key.step, "position": 0, "num_updates": 0, "skipped_in_a_row": 0}
    windows = tuple((place, place) for place in range(key.rollbacks))
    tensors = {"master:w": weight(key, rank)}
    statistics = {"mean": torch.full((3,), float(key.step))}
    return Part(tensors, {"slices": json.dumps(places)}, statistics, marker, state | {"skipped_windows": windows}, "")


def save(folder: str, nodes: tuple[int, ...], keys: list[Key], margin: int | None = None) -> list[str]:
    """Saves checkpoints one after the other; ``margin``: the free space that the second needs. Returns the output."""
    said: list[str] = []
    tier, usual = tier_of(folder, nodes, said), fast_saving.MARGIN_BYTES
    for place, key in enumerate(keys):
        if margin is not None and place == 1 and detect().rank == 1:
            fast_saving.MARGIN_BYTES = margin
        tier.begin(part_of(key, detect().rank, detect().world))
        tier.finish(discard=False)
        fast_saving.MARGIN_BYTES = usual
    tier.close()
    return said


def resume(folder: str, nodes: tuple[int, ...], owns_all: bool = False) -> dict[str, Any]:
    """Chooses, brings and loads: this rank's elements, or all of them as DDP holds them."""
    said: list[str] = []
    tier, rank = tier_of(folder, nodes, said), detect()
    try:
        found = newest_fast(tier)
        if found is None:
            return {"key": None, "said": said}
        size = found.marker["world_size"] * LENGTH
        numel = size if owns_all else size // rank.world
        offset = 0 if owns_all else rank.rank * numel
        held = HeldSlice("w", (size,), offset, {"master": torch.zeros(numel)}, (offset, offset + numel))
        marker = bring(tier, found, [held])
        path = tier.node.save_path(found.key)
        files = sorted(int(name[len("slices/rank-") :][:5]) for name in marker["files"])
        load_into([held], SliceReader(path, files))
        state = json.loads((path / "state.json").read_text())
        return {
            "key": found.key, "said": said, "loaded": held.states["master"].tolist(), "files": files,
            "norm": marker["norms"]["master"], "step": state["step"],
        }  # fmt: skip
    finally:
        tier.close()


def values(key: Key, ranks: list[int]) -> list[float]:
    return torch.cat([weight(key, rank) for rank in ranks]).tolist()


def place(folder: Path, node: int, key: Key = KEY) -> Path:
    """The slices of a checkpoint on a node."""
    (found,) = (folder / f"node-{node}").iterdir()
    return NodeFolder(found).save_path(key) / "slices"


@pytest.fixture(scope="module")
def saved(pool2: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with two complete checkpoints on two nodes, steps 1 and 2; and a copy of it."""
    folder, copy = tmp_path_factory.mktemp("fast"), tmp_path_factory.mktemp("copy")
    pool2.run(save, str(folder), TWO, [Key(1, 0, 1)])
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    pool2.run(save, str(folder), TWO, [KEY])
    assert not place(folder, 0, Key(1, 0, 1)).exists(), "the older one is removed"
    shutil.copytree(copy, folder, dirs_exist_ok=True)
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    return folder, copy


@pytest.fixture
def nodes(saved: tuple[Path, Path]) -> Path:
    """The same, as it was: the run's name for its folder depends on its path."""
    folder, copy = saved
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    return folder


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_one(folder: Path) -> None:
    flip(place(folder, 0) / "rank-00000.safetensors")


def flip_both(folder: Path) -> None:
    flip_one(folder)
    flip(place(folder, 1) / "rank-00000.safetensors", 200)


def flip_records(folder: Path) -> None:
    for rank in (0, 1):
        flip(place(folder, rank) / f"rank-0000{rank}.json", 100)


def tear_both(folder: Path) -> None:
    for node in (0, 1):
        os.truncate(place(folder, node) / "rank-00001.safetensors", 90)


def tear_between_file_and_record(folder: Path) -> None:
    for node in (0, 1):
        (place(folder, node) / "rank-00001.json").unlink()


def lose_node(folder: Path) -> None:
    shutil.rmtree(folder / "node-0")


def lose_first_node_in_between(folder: Path) -> None:
    """Node 0 was replaced between the attempts: it has nothing, not even of the older checkpoint."""
    lose_node(folder)
    flip(place(folder, 1) / "rank-00000.json", 60)


def lose_pair(folder: Path) -> None:
    lose_node(folder)
    shutil.rmtree(folder / "node-1")


def copy_from_other_rank(folder: Path) -> None:
    for node in (0, 1):
        for end in ("json", "safetensors"):
            shutil.copy(place(folder, node) / f"rank-00000.{end}", place(folder, node) / f"rank-00001.{end}")


def copy_from_other_step(folder: Path) -> None:
    for node in (0, 1):
        for end in ("json", "safetensors"):
            source = place(folder, node, Key(1, 0, 1)) / f"rank-00001.{end}"
            shutil.copy(source, place(folder, node) / source.name)


def mix_attempts(folder: Path) -> None:
    """Of the newer attempt there is only rank 0's part, of the same step."""
    newer = Key(2, 0, 2)
    for node in (0, 1):
        target = NodeFolder(place(folder, node).parents[1])
        target.write(0, part_of(newer, 0, 2))


def leave_parts_of_another_run(folder: Path) -> None:
    for node in (0, 1):
        own = place(folder, node).parents[1]
        own.rename(own.with_name(f"{own.name[:-12]}{'0' * 12}"))


@pytest.mark.parametrize(
    ("damage", "step", "problem"),
    [
        (lambda folder: None, 2, None),
        (flip_one, 2, "the part of rank 0 on node-0 is damaged: rank-00000.safetensors does not have the hash"),
        (flip_both, 1, "no node has the parts of ranks 0"),
        (flip_records, 2, "rank-00001.json is damaged"),
        (tear_both, 1, "90 bytes instead of"),
        (tear_between_file_and_record, 1, "no node has the parts of ranks 1"),
        (lose_node, 2, None),
        (lose_first_node_in_between, 1, "rank-00000.json is damaged"),
        (lose_pair, None, None),
        (copy_from_other_rank, 1, "its record is that of another part"),
        (copy_from_other_step, 1, "its record is that of another part"),
        (mix_attempts, 2, "step 2, attempt 2 is passed over: no node has the parts of ranks 1"),
        (leave_parts_of_another_run, None, None),
    ],
)
def test_the_newest_complete_one_is_found_whatever_was_lost(
    pool2: Pool, nodes: Path, damage: Callable[[Path], None], step: int | None, problem: str | None
) -> None:
    damage(nodes)
    found = pool2.run(resume, str(nodes), TWO)
    said = found[0]["said"]
    assert [rank["key"] for rank in found] == 2 * [None if step is None else Key(1, 0, step)], said
    assert problem is None or any(problem in line for line in said), said
    if step is not None:
        key = Key(1, 0, step)
        for rank in range(2):
            assert found[rank]["loaded"] == values(key, [rank]) and found[rank]["step"] == step
            assert found[rank]["norm"] == pytest.approx(torch.tensor(values(key, [0, 1])).norm().item())


def test_every_flipped_byte_of_a_part_is_noticed(nodes: Path) -> None:
    node = NodeFolder(place(nodes, 0).parents[1])
    assert node.read(KEY, 1)["marker"]["step"] == 2
    for end in ("json", "safetensors"):
        path = place(nodes, 0) / f"rank-00001.{end}"
        whole = path.read_bytes()
        for at in range(len(whole)):
            flip(path, at)
            with pytest.raises(CheckpointError, match=r"rank-00001|record"):
                node.read(KEY, 1)
            path.write_bytes(whole)


def test_order_of_attempts_rollbacks_and_steps(pool2: Pool, tmp_path: Path) -> None:
    """A newer attempt that is behind, or a state after a rollback, is on the course of the run; the other is not."""
    keys = [Key(1, 0, 9), Key(1, 1, 4), Key(2, 0, 5)]
    copy = tmp_path / "copy"
    for chosen in keys:
        pool2.run(save, str(tmp_path / "all"), TWO, [chosen])
        shutil.copytree(tmp_path / "all", copy, dirs_exist_ok=True)
        shutil.copytree(copy, tmp_path / "all", dirs_exist_ok=True)
        assert pool2.run(resume, str(tmp_path / "all"), TWO)[1]["key"] == chosen


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 2), (0, 1)])
def test_three_nodes_one_of_which_has_two_ranks(pool4: Pool, tmp_path: Path, lost: tuple[int, ...]) -> None:
    """Any one node may be lost; of two neighbours the first one's parts are gone."""
    placement = (0, 0, 1, 2)
    pool4.run(save, str(tmp_path), placement, [KEY])
    for node in lost:
        shutil.rmtree(tmp_path / f"node-{node}")
    found = pool4.run(resume, str(tmp_path), placement)
    if len(lost) == 2:
        assert {rank["key"] for rank in found} == {None}
        assert any("no node has the parts of ranks" in line for line in found[0]["said"])
    else:
        assert [rank["loaded"] for rank in found] == [values(KEY, [rank]) for rank in range(4)]


def test_ranks_that_moved_to_other_nodes(pool2: Pool, nodes: Path) -> None:
    """A part that is on no node of its rank is sent; here neither rank is where it was, and one node is new."""
    (nodes / "node-0").rename(nodes / "node-3")
    found = pool2.run(resume, str(nodes), (2, 3))
    assert [rank["loaded"] for rank in found] == [values(KEY, [rank]) for rank in range(2)]
    assert [rank["files"] for rank in found] == [[0], [0, 1]]


@pytest.mark.parametrize("lost", [None, 1])
def test_ranks_that_hold_everything_get_all_parts(pool2: Pool, nodes: Path, lost: int | None) -> None:
    if lost is not None:
        shutil.rmtree(nodes / f"node-{lost}")
    found = pool2.run(resume, str(nodes), TWO, True)
    assert [rank["loaded"] for rank in found] == 2 * [values(KEY, [0, 1])]


def test_another_number_of_ranks(pool1: Pool, pool4: Pool, nodes: Path) -> None:
    assert pool1.run(resume, str(nodes), (1,))[0]["loaded"] == values(KEY, [0, 1])
    found = pool4.run(resume, str(nodes), (0, 0, 7, 7))
    half = LENGTH // 2
    parts = values(KEY, [0, 1])
    assert [rank["loaded"] for rank in found] == [parts[rank * half :][:half] for rank in range(4)]
    shutil.rmtree(nodes / "node-0")
    flip(place(nodes, 1) / "rank-00000.safetensors")
    alone = pool1.run(resume, str(nodes), (1,))[0]
    assert alone["key"] == Key(1, 0, 1), "with a part missing, the one before it"


def test_a_save_that_fails_leaves_the_one_before_and_the_next_one_works(pool2: Pool, tmp_path: Path) -> None:
    """Rank 1 has no space for the second save: nobody keeps it."""
    keys = [Key(1, 0, step) for step in (1, 2, 3)]
    said = pool2.run(save, str(tmp_path), TWO, keys[:2], 2**60)[0]
    assert any("step 2: no fast checkpoint: rank 1 on node-1 could not write" in line for line in said), said
    assert any("the one before it stays, and the training continues" in line for line in said)
    assert {path.parent.parent.name for path in tmp_path.glob("node-*/*/*/slices/*.json")} == {
        "00000001-0000-step-00000001"
    }
    said = pool2.run(save, str(tmp_path), TWO, keys, 2**60)[0]
    assert any("step 3: fast checkpoints work again, after 1 that failed" in line for line in said), said


def stick(folder: str) -> tuple[list[str], bool]:
    """Rank 1 does not come back from writing, until the save was given up. Returns the output and what is due."""
    said: list[str] = []
    tier, usual, released = tier_of(folder, TWO, said), fast_saving.SAVE_LIMIT_S, threading.Event()
    write = tier.node.write

    def late(rank: int, part: Part) -> None:
        assert rank == 0 or released.wait(60)
        write(rank, part)

    tier.node.write = late  # type: ignore[method-assign]
    fast_saving.SAVE_LIMIT_S = 0.2
    try:
        tier.begin(part_of(KEY, detect().rank, 2))
        tier.finish(discard=False)
        return said, tier.is_due(2)
    finally:
        fast_saving.SAVE_LIMIT_S = usual
        released.set()
        fast_saving._thread.submit(int).result()
        tier.close()


def test_a_save_that_gets_stuck_is_the_last_one_and_nobody_waits_for_it(pool2: Pool, tmp_path: Path) -> None:
    said, is_due = pool2.run(stick, str(tmp_path))[0]
    assert any("has not finished it in 0 s; there are no more until the next start" in line for line in said), said
    assert not is_due


def refused(folder: str) -> str:
    rank, said = detect(), []
    session = Session.of(rank, torch.device("cpu"), RunFolder(Path(folder) / "run"))
    try:
        FastTier(FastPolicy(1, None, Path(folder) / f"disk-{rank.rank}"), session)
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
    return "".join(said)


def test_a_folder_that_does_not_exist_on_one_node_is_refused(pool2: Pool, tmp_path: Path) -> None:
    (tmp_path / "disk-0").mkdir()
    (tmp_path / "run").mkdir()
    said = pool2.run(refused, str(tmp_path))
    assert said[0].startswith("PeerError: rank 1") and said[1].startswith("SetupError: checkpoint.fast.folder: ")
    assert "is not a folder" in said[1] and not (tmp_path / "disk-1").exists()


def test_leftovers_of_killed_runs_are_removed_after_a_day(pool2: Pool, tmp_path: Path) -> None:
    old, new, other = (tmp_path / "node-0" / name for name in ("vit-fast-a-1", "vit-fast-b-2", "somebody"))
    for path in (old, new, other):
        (path / "inner").mkdir(parents=True)
    for path in (old, other):
        os.utime(path, (1, 1))
    said = pool2.run(resume, str(tmp_path), TWO)[0]["said"]
    assert not old.exists() and new.exists() and other.exists()
    assert any("node-0: removed fast checkpoints without a save for a day: vit-fast-a-1" in line for line in said)
