"""Batches on the host, their normalised images, and the shared memory that is lent until nothing refers to it."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch

from pretrain.data import batch as batches
from pretrain.data.batch import Batch, to_model_input
from pretrain.data.stream import EvalStream, TrainStream
from tests.unit.data.sets import experiment, number_of, write_set


def test_a_moved_batch_keeps_everything():
    batch = Batch(
        images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        labels=torch.tensor([[1], [2]]),
        sample_ids=torch.tensor([5, 6]),
        slots=torch.tensor([0, 1]),
        valid=torch.tensor([True, False]),
    )
    moved = batch.to("meta")
    assert len(moved) == 2
    assert {tensor.device.type for tensor in moved._tensors().values()} == {"meta"}
    assert (moved.images.dtype, moved.labels.shape, moved.faults) == (torch.uint8, (2, 1), [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_a_pinned_batch_is_page_locked():
    ones = torch.ones(1, dtype=torch.int64)
    pinned = Batch(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), ones[None], ones, ones, ones.bool()).pin_memory()
    assert all(tensor.is_pinned() for tensor in pinned._tensors().values())


@pytest.mark.parametrize(
    ("mean", "std", "pixel", "value"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0, (-1, -1, -1)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 255, (1, 1, 1)),
        ((0.0, 0.2, 0.4), (1.0, 0.5, 0.25), 51, (0.2, 0.0, -0.8)),
    ],
)
def test_pixels_are_normalised_per_channel(mean, std, pixel, value):
    images = torch.full((2, 3, 4, 5), pixel, dtype=torch.uint8)
    out = to_model_input(images, mean, std)
    assert out.dtype == torch.float32
    expected = torch.tensor(value, dtype=torch.float32).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(out, expected)


@pytest.fixture(autouse=True)
def no_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(batches, "_own", [])
    monkeypatch.setattr(batches, "_borrowed", {})
    yield
    gc.collect()


def sent(block: Any) -> Any:
    return pickle.loads(ForkingPickler.dumps(block))


def test_a_block_is_lent_until_the_last_view_has_gone() -> None:
    block = batches.take_block(1000)
    assert block is not None
    for value in (7, 9):  # the second time without a file descriptor
        block.content[:] = value
        received = sent(block)
        assert (received == value).all()
        view = torch.from_numpy(received).view(10, 100).permute(1, 0)[5:8]
        del received
        assert batches.take_block(1000) is not block
        batches._own[1:] = []
        assert (view == value).all()
        del view
        assert batches.take_block(1000) is block


def test_blocks_are_few_and_of_one_size_each() -> None:
    blocks = [batches.take_block(1000) for _ in range(batches.MAX_BLOCKS)]
    assert None not in blocks and len(set(map(id, blocks))) == batches.MAX_BLOCKS
    assert batches.take_block(1000) is None
    del batches._own[4:]
    other = batches.take_block(500)
    assert other is not None and len(other.content) == 500


def test_what_is_borrowed_outlives_its_lender() -> None:
    block = batches.take_block(1000)
    assert block is not None
    block.content[:] = 5
    received, key = sent(block), block._key
    batches.forget_blocks({key[0] + 1})
    assert key in batches._borrowed
    batches.forget_blocks({key[0]})
    batches._own.clear()
    del block
    assert not batches._borrowed and (received == 5).all()


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
