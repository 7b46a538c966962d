"""The norm of the weights over all ranks is that of the whole model, however the state is sharded."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.distributed.collectives import all_reduce_sum
from pretrain.engine.backend import square_sum
from pretrain.models.init import initial_state
from tests.distributed.training import experiment, make
from tests.pool import Pool


def weight_norm(kind: str, stage: int) -> float:
    backend, _ = make(experiment(cluster__zero_stage=stage, cluster__micro_batch_size=4), kind)
    return math.sqrt(float(all_reduce_sum(square_sum(backend.slices()))))


@pytest.mark.parametrize(("kind", "stage"), [*(("deepspeed", stage) for stage in range(4)), ("accelerate", 0)])
def test_weight_norm(pool2: Pool, kind: str, stage: int) -> None:
    config = experiment()
    whole = initial_state(config.model, config.num_outputs, seed=config.seed)
    expected = torch.linalg.vector_norm(torch.cat([tensor.double().view(-1) for tensor in whole.values()]))
    for found in pool2.run(weight_norm, kind, stage):
        assert found == pytest.approx(float(expected), rel=1e-12)
