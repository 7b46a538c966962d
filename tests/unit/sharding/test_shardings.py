"""Bytes held and sent by each sharding, and the questions that it answers; live storages: tests/distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.config.combinations import AXES
from pretrain.config.schema.model import ModelConfig
from pretrain.models.cost import num_parameters
from pretrain.models.vit import build_vit
from pretrain.sharding.choice import SHARDINGS, more_sharded, possible_shardings, sharding_of
from pretrain.sharding.protocol import Sharding
from pretrain.sharding.replicated import DDP, ZERO_0
from pretrain.sharding.step import DeepSpeedSettings, step_of
from pretrain.sharding.zero import Zero
from tests.distributed.training import experiment
from tests.unit.sharding.steps import memory, step

SHARD_ALL = DeepSpeedSettings(persistence_threshold=0)


@pytest.mark.parametrize(
    ("precision", "sharding", "weights", "gradients", "optimizer"),
    [
        ("fp32", DDP, 4, 4, 8),
        ("fp32", ZERO_0, 4, 4, 8),
        ("autocast", ZERO_0, 4, 4, 8),
        ("bf16", Zero(1), 2, 2, 12 / 8),
        ("bf16", Zero(2), 2, 2 / 8, 12 / 8),
        ("fp32", Zero(2), 4, 4 / 8, 12 / 8),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_state_bytes_per_parameter(
    precision: Any, sharding: Sharding, weights: float, gradients: float, optimizer: float, accumulation: int
) -> None:
    """Gradients are held at the end of every backward pass, whether or not a step has several."""
    config = ModelConfig(variant="H/14")
    count = num_parameters(config, 1000)
    held = memory(sharding, config, 1000, precision=precision, num_devices=8, accumulation_steps=accumulation)
    got = (held.weights / count, held.gradients / count, held.optimizer / count)
    assert got == pytest.approx((weights, gradients, optimizer), rel=1e-6)


def test_adam_in_mixed_precision_is_16_bytes_a_parameter() -> None:
    """H/14 10.1 GB and L/16 4.9 GB before activations."""
    for variant, gigabytes in (("H/14", 10.1), ("L/16", 4.9)):
        held = memory(Zero(1), ModelConfig(variant=variant), 1000)
        assert (held.state + held.gradients) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_stage_3_holds_a_share_and_what_is_used_again_soon() -> None:
    """H/14 keeps the weights of half the reuse distance unsharded; without a distance, two blocks."""
    config = ModelConfig(variant="H/14")
    complete = 2 * num_parameters(config, 1000)
    with torch.device("meta"):
        block = sum(p.numel() for p in build_vit(config, 1000).blocks[0].parameters())
    held = memory(Zero(3), config, 1000, num_devices=16, deepspeed=SHARD_ALL)
    assert held.weights == pytest.approx(complete / 16, rel=1e-6)
    assert held.gathered == pytest.approx(2 * (500e6 + 2 * block), rel=1e-6)
    at_once = DeepSpeedSettings(persistence_threshold=0, max_reuse_distance=0)
    held = memory(Zero(3), config, 1000, num_devices=16, deepspeed=at_once)
    assert held.gathered == pytest.approx(2 * 2 * block, rel=1e-6)


def test_peak_is_the_larger_of_backward_and_update() -> None:
    config, options = ModelConfig(variant="B/16"), {"deepspeed": DeepSpeedSettings(reduce_bucket=10**6)}
    small = memory(Zero(1), config, 10, micro_batch_size=1, **options)
    large = memory(Zero(1), config, 10, micro_batch_size=256, **options)
    assert small.activations < small.update and small.peak == small.step
    assert large.activations > large.update and large.peak == large.backward


def test_buckets_have_their_full_size_and_can_be_set() -> None:
    config = ModelConfig(variant="L/16")
    assert memory(Zero(2), config, 10, num_devices=8).buffers == 2 * 500_000_000
    settings = DeepSpeedSettings.of({"zero_optimization": {"reduce_bucket_size": 2e8, "overlap_comm": True}})
    assert memory(Zero(2), config, 10, num_devices=8, deepspeed=settings).buffers == 2 * 2 * 200_000_000
    ddp = memory(DDP, config, 10, precision="fp32", num_devices=8)
    assert ddp.buffers == ddp.gradients and not memory(DDP, config, 10, precision="fp32").buffers, "one rank: no DDP"


@pytest.mark.parametrize(
    ("sharding", "accumulation", "passes"),
    [(DDP, 4, 2), (ZERO_0, 4, 2), (Zero(1), 4, 3), (Zero(2), 1, 3), (Zero(2), 4, 9), (Zero(3), 1, 2), (Zero(3), 4, 8)],
)
def test_bytes_sent_in_a_step(sharding: Sharding, accumulation: int, passes: float) -> None:
    """L/16 at stage 3 keeps all of its weights until the backward pass, so that it gathers them once."""
    config, ranks = ModelConfig(variant="L/16"), 8
    found = step(config, 1000, num_devices=ranks, accumulation_steps=accumulation, deepspeed=SHARD_ALL)
    sent = sum(one.sent(ranks) for one in sharding.traffic(found))
    assert sent == pytest.approx(passes * 2 * num_parameters(config, 1000) * (ranks - 1) / ranks, rel=1e-6)
    assert sharding.traffic(step(config, 1000)) == (), "one rank has nobody to send to"


def test_frozen_tensors_have_neither_gradients_nor_state() -> None:
    plain, frozen = experiment(), experiment(optim__overrides=[{"pattern": "^blocks", "freeze": True}])
    for sharding in (DDP, ZERO_0, Zero(1), Zero(2), Zero(3)):
        held, less = (sharding.memory(step_of(config, 2, 2)) for config in (plain, frozen))
        assert less.gradients < held.gradients / 2 and less.optimizer < held.optimizer / 2
        assert less.weights == pytest.approx(held.weights, rel=0.5)


def test_the_choice_and_what_shards_more() -> None:
    assert {one.name for each in SHARDINGS.values() for one in each} == set(AXES["sharding"])
    for stage in range(4):
        config = experiment(cluster__zero_stage=stage)
        assert sharding_of(config).stage == stage and sharding_of(config, "accelerate") is DDP
        assert sharding_of(experiment(cluster__backend="accelerate", cluster__zero_stage=0), "deepspeed") is DDP
        further = more_sharded(config, sharding_of(config))
        assert (further is None) == (stage == 3) and (further is None or further.stage == stage + 1)
    compiled = experiment(cluster__zero_stage=2, cluster__compile=True)
    assert more_sharded(compiled, Zero(2)) is None, "stage 3 does not work with compile"
    assert possible_shardings(compiled) == [ZERO_0, Zero(1), Zero(2)]
