"""Memory is lent until nothing refers to it any more, and no longer."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch

from pretrain.data.stream import EvalStream, TrainStream
from pretrain.data.workers import lent_memory
from tests.unit.data.sets import experiment, number_of, write_set


@pytest.fixture(autouse=True)
def no_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lent_memory, "_own", [])
    monkeypatch.setattr(lent_memory, "_borrowed", {})
    yield
    gc.collect()


def sent(block: Any) -> Any:
    return pickle.loads(ForkingPickler.dumps(block))


def test_a_block_is_lent_until_the_last_view_has_gone() -> None:
    block = lent_memory.take(1000)
    assert block is not None
    for value in (7, 9):  # the second time without a file descriptor
        block.content[:] = value
        received = sent(block)
        assert (received == value).all()
        view = torch.from_numpy(received).view(10, 100).permute(1, 0)[5:8]
        del received
        assert lent_memory.take(1000) is not block
        lent_memory._own[1:] = []
        assert (view == value).all()
        del view
        assert lent_memory.take(1000) is block


def test_blocks_are_few_and_of_one_size_each() -> None:
    blocks = [lent_memory.take(1000) for _ in range(lent_memory.MAX_BLOCKS)]
    assert None not in blocks and len(set(map(id, blocks))) == lent_memory.MAX_BLOCKS
    assert lent_memory.take(1000) is None
    del lent_memory._own[4:]
    other = lent_memory.take(500)
    assert other is not None and len(other.content) == 500


def test_what_is_borrowed_outlives_its_lender() -> None:
    block = lent_memory.take(1000)
    assert block is not None
    block.content[:] = 5
    received, key = sent(block), block._key
    lent_memory.forget({key[0] + 1})
    assert key in lent_memory._borrowed
    lent_memory.forget({key[0]})
    lent_memory._own.clear()
    del block
    assert not lent_memory._borrowed and (received == 5).all()


def test_batches_that_are_kept_are_not_overwritten(tmp_path: Any) -> None:
    """More batches than a process has blocks; those that were let go are overwritten meanwhile."""
    config = experiment(write_set(tmp_path / "set", [40, 24]), 64, global_batch_size=8, cluster__num_workers=1)
    with closing(TrainStream(config, 0, 1, 8).iterate(0, 40)) as batches:
        kept = [(batch.sample_ids, batch.images) for number, batch in enumerate(batches) if number % 2]
    assert all(number_of(images) == ids.tolist() for ids, images in kept)
    assert len({images.data_ptr() for _, images in kept}) == 20


def test_padding_is_zero_in_memory_that_was_used_before(tmp_path: Any) -> None:
    shards = write_set(tmp_path / "set", [49])
    config = experiment(shards, 49, cluster__num_workers=1)
    places, seen = set(), 0
    for batch in EvalStream(config, str(shards), 0, 1, 4):
        places.add(batch.images.data_ptr())
        seen += int(batch.valid.sum())
        assert not batch.images[~batch.valid].any() and batch.images[batch.valid][:, 2].all()
    assert seen == 49 and len(places) < 13, "the last of 13 batches, with three rows of padding, lies where others lay"
