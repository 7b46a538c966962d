"""Every process group of a live job has the configured timeout, also those that a library created."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist

from pretrain.config.schema.experiment import Experiment
from tests.distributed.training import experiment, make, objective_for, one_step
from tests.pool import Pool

TIMEOUT_S = 9_000  # none of the defaults of torch and DeepSpeed: 600 and 1800


def timeouts_s(config: Experiment, kind: str) -> list[float]:
    """The timeout of every process group of this rank after one step, in seconds. Collective: yes."""
    backend, accumulation = make(config, kind)
    one_step(backend, config, accumulation, 0, objective=objective_for(config, backend))
    groups = list(dist.distributed_c10d._world.pg_map)
    timeouts: list[datetime.timedelta] = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
    return [timeout.total_seconds() for timeout in timeouts]


@pytest.mark.parametrize(
    ("kind", "stage"), [("accelerate", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
)
def test_every_group_has_the_timeout_of_the_config(pool2: Pool, kind: str, stage: int) -> None:
    config = experiment(cluster__zero_stage=stage, cluster__collective_timeout_s=TIMEOUT_S)
    for found in pool2.run(timeouts_s, config, kind):
        assert found == [TIMEOUT_S] * len(found)
        assert len(found) >= (2 if kind == "deepspeed" else 1), "DeepSpeed's own groups are among them"
