"""The supported combinations of activation checkpointing, compilation and sharding: each gives the same ten losses.

docs/models.md prints this table; ``ClusterConfig`` refuses what is not in it.
"""

from __future__ import annotations

import pytest

from tests.distributed.test_equality_laws import losses, settings
from tests.pool import Pool

POLICIES = ["none", "full", "every_2", "selective"]
SUPPORTED = [("deepspeed", stage, policy, False) for stage in (0, 1, 2, 3) for policy in POLICIES]
SUPPORTED += [("accelerate", 0, policy, False) for policy in POLICIES]
SUPPORTED += [("deepspeed", stage, policy, True) for stage in (0, 1, 2) for policy in ("none", "full", "every_2")]
SUPPORTED += [("accelerate", 0, policy, True) for policy in ("none", "full")]


@pytest.fixture(scope="module")
def reference(pool2: Pool) -> list[float]:
    """Ten fp32 losses without sharding, checkpointing or compilation."""
    values = losses(pool2, settings(0, 4))
    assert values[9] < values[1] - 0.01, "the loss must move, or equality says nothing"
    return values


FAST = [("deepspeed", stage, policy, False) for stage in (1, 3) for policy in POLICIES[1:]]
FAST += [("accelerate", 0, "selective", False), ("deepspeed", 1, "full", True)]
ROWS = [pytest.param(*row, marks=() if row in FAST else pytest.mark.slow) for row in SUPPORTED]


@pytest.mark.parametrize(("kind", "stage", "policy", "compiled"), ROWS)
def test_supported(pool2: Pool, reference: list[float], kind: str, stage: int, policy: str, compiled: bool) -> None:
    config = settings(stage, 4, cluster__activation_checkpointing=policy, cluster__compile=compiled)
    assert losses(pool2, config, kind) == pytest.approx(reference, rel=1e-5)


POSITIONS = [
    {"model__pos_embed": "learned_2d", "model__pos_embed_placement": "every_layer_shared"},
    {"model__pos_embed_placement": "every_layer"},
    {"model__pos_embed": "relative_bias", "model__pos_embed_placement": "every_layer_shared"},
    {"model__pos_embed": "relative_1d"},
    {"model__pos_embed": "rope_2d", "model__qk_norm": True, "model__layer_scale": 0.1, "model__num_registers": 2},
    {"model__pool": "map", "model__pos_embed": "sincos2d_timm"},
]


@pytest.mark.parametrize(
    "policy", ["none", pytest.param("full", marks=pytest.mark.slow), pytest.param("selective", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("changes", POSITIONS, ids=[" ".join(map(str, case.values())) for case in POSITIONS])
def test_every_new_tensor_may_be_sharded(pool2: Pool, changes: dict[str, object], policy: str) -> None:
    """ZeRO-3 gathers weights by module: a tensor that is used outside its own would be empty."""
    straight = losses(pool2, settings(0, 4, **changes))
    sharded = losses(pool2, settings(3, 4, cluster__activation_checkpointing=policy, **changes))
    assert sharded == pytest.approx(straight, rel=1e-5)
