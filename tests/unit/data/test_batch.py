from __future__ import annotations

import pytest
import torch

from pretrain.data.batch import Batch


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
