"""Bytes held and sent by each sharding, and the questions that it answers; live storages: tests/distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.config.combinations import AXES
from pretrain.config.schema.cluster import AccelerateConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.models.cost import num_parameters
from pretrain.models.vit import build_vit
from pretrain.sharding.choice import SHARDINGS, more_sharded, possible_shardings, sharding_of
from pretrain.sharding.fsdp2 import FSDP2
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
        ("bf16", DDP, 2, 2, 12),
        ("bf16", ZERO_0, 2, 2, 12),
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


def test_fsdp2_gathers_blocks_padded_to_equal_rows() -> None:
    """L/16 on 8 ranks: a position table of one row is gathered 8 times over, everything else divides."""
    config = experiment(model={"variant": "L/16"}, data__num_classes=1000, global_batch_size=64, precision="bf16")
    once, twice = (step_of(config, 8, micro) for micro in (8, 4))
    (gather, reduce), (gather_2, reduce_2) = FSDP2.traffic(once), FSDP2.traffic(twice)
    count, table, token = num_parameters(config.model, 1000), 197 * 1024, 1024
    padded = count + 7 * (table + token)
    block = 12 * 1024**2 + 13 * 1024
    assert gather.payload == 2 * (padded + 24 * block) and gather_2.payload == 2 * gather.payload
    assert reduce.payload == reduce_2.payload == 2 * padded
    held, carried = FSDP2.memory(once), FSDP2.memory(twice)
    assert held.weights == 4 * padded // 8 and held.optimizer == 8 * padded // 8 and held.gradients == held.weights
    assert held.gathered == 2 * (padded - 24 * block) and not held.carried
    assert carried.carried == carried.gradients == 2 * count


def test_fsdp2_gathers_once_for_blocks_without_a_backward_pass() -> None:
    """Only the head is trained: torch gathers the last block ahead of a backward pass that does not come."""
    frozen = [{"pattern": "^(?!head)", "freeze": True}]
    config = experiment(model={"variant": "S/16", "img_size": 32}, optim__overrides=frozen)
    gather, reduce = FSDP2.traffic(step_of(config, 2, 4))
    block = 12 * 384**2 + 13 * 384
    rest = num_parameters(config.model, 5) - 12 * block
    # of two ranks: table and class token have one row, and the head and its bias 5
    assert gather.payload == 4 * (rest + (5 + 1) * 384 + (384 + 1) + 13 * block)
    assert reduce.payload == 4 * 6 * (384 + 1)


def test_peak_is_the_larger_of_backward_and_update() -> None:
    config, options = ModelConfig(variant="B/16"), {"deepspeed": DeepSpeedSettings(reduce_bucket=10**6)}
    small = memory(Zero(1), config, 10, micro_batch_size=1, **options)
    large = memory(Zero(1), config, 10, micro_batch_size=256, **options)
    assert small.activations < small.update and small.peak == small.step
    assert large.activations > large.update and large.peak == large.backward


def test_buckets_have_their_full_size_and_can_be_set() -> None:
    config = ModelConfig(variant="L/16")
    assert memory(Zero(2), config, 10, num_devices=8).buffers == 2 * 2 * 50_000_000
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
    for sharding in (DDP, ZERO_0, Zero(1), Zero(2), Zero(3), FSDP2):
        held, less = (sharding.memory(step_of(config, 2, 2)) for config in (plain, frozen))
        assert less.gradients < held.gradients / 2 and less.optimizer < held.optimizer / 2
        assert less.weights == pytest.approx(held.weights, rel=0.5)


def test_the_choice_and_what_shards_more() -> None:
    assert {one.name for each in SHARDINGS.values() for one in each} == set(AXES["sharding"])
    for stage in range(4):
        config = experiment(cluster__zero_stage=stage)
        assert sharding_of(config).stage == stage and sharding_of(config, "accelerate") is DDP
        ddp = config.model_copy(update={"cluster": AccelerateConfig()})
        assert sharding_of(ddp, "deepspeed") is DDP
        further = more_sharded(config, sharding_of(config))
        assert (further is None) == (stage == 3) and (further is None or further.stage == stage + 1)
    compiled = experiment(cluster__zero_stage=2, cluster__compile=True, precision="bf16")
    assert possible_shardings(compiled) == [ZERO_0, Zero(1), Zero(2), Zero(3)]
    keys = {"zero_optimization": {"overlap_comm": False}}
    assert possible_shardings(experiment(cluster__deepspeed=keys, precision="bf16")) == [Zero(1), Zero(2), Zero(3)]
