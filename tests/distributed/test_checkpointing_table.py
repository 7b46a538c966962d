"""Every supported combination of the table (``pretrain/config/combinations.py``) trains.

In fp32 all of them give the same ten losses; the others train to the losses of fp32 without sharding within the
precision.
"""

from __future__ import annotations

import pytest

from pretrain.config.combinations import Value, all_combinations, refusals
from pretrain.config.schema.experiment import Experiment
from tests.distributed.test_equality_laws import losses, settings
from tests.pool import Pool

SUPPORTED = [combination for combination in all_combinations() if not refusals(**combination)]
EXACT = [one for one in SUPPORTED if one["precision"] == "fp32"]
ROUNDED = [one for one in SUPPORTED if one not in EXACT]
UNSTAGED = {"DDP": ("accelerate", 0), "FSDP2": ("fsdp2", 0)}


def config_of(combination: dict[str, Value]) -> tuple[Experiment, str]:
    """The experiment of a combination, and its backend."""
    name, policy = str(combination["sharding"]), str(combination["activation_checkpointing"])
    kind, stage = UNSTAGED.get(name) or ("deepspeed", int(name[-1]))
    config = settings(
        stage,
        4,
        precision=combination["precision"],
        cluster__activation_checkpointing=policy.replace("every_k", "every_2"),
        cluster__compile=combination["compile"],
    )
    return config, kind


def in_words(combination: dict[str, Value]) -> str:
    return " ".join(str(value) for value in combination.values())


@pytest.fixture(scope="module")
def reference(pool2: Pool) -> list[float]:
    """Ten fp32 losses without sharding, checkpointing or compilation."""
    values = losses(pool2, settings(0, 4))
    assert values[9] < values[1] - 0.01, "the loss must move, or equality says nothing"
    return values


FAST = [
    ("ZeRO-1", "full", False),
    ("ZeRO-3", "full", False),
    ("ZeRO-1", "every_k", False),
    ("ZeRO-3", "every_k", False),
]
FAST += [("ZeRO-1", "selective", False), ("ZeRO-3", "selective", False), ("DDP", "selective", False)]
FAST += [("ZeRO-1", "full", True), ("FSDP2", "full", True), ("ZeRO-3", "selective", True)]
ROWS = [
    pytest.param(
        one,
        id=in_words(one),
        marks=() if (one["sharding"], one["activation_checkpointing"], one["compile"]) in FAST else pytest.mark.slow,
    )
    for one in EXACT
]


@pytest.mark.parametrize("combination", ROWS)
def test_supported(pool2: Pool, reference: list[float], combination: dict[str, Value]) -> None:
    assert losses(pool2, *config_of(combination)) == pytest.approx(reference, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("combination", ROUNDED, ids=in_words)
def test_supported_in_other_precisions(pool2: Pool, reference: list[float], combination: dict[str, Value]) -> None:
    assert losses(pool2, *config_of(combination)) == pytest.approx(reference, rel=0.03)


POSITIONS = [
    {"model__pos_embed": "learned_2d", "model__pos_embed_placement": "every_layer_shared"},
    {"model__pos_embed_placement": "every_layer"},
    {"model__pos_embed": "relative_bias", "model__pos_embed_placement": "every_layer_shared"},
    {"model__pos_embed": "relative_1d"},
    {
        "model__pos_embed": "none",
        "model__rope": "axial",
        "model__qk_norm": True,
        "model__layer_scale": 0.1,
        "model__num_registers": 2,
    },
    {"model__pool": "map", "model__pos_embed": "sincos2d_timm"},
    {"model__rope": "mixed", "model__norm": "rms_norm", "model__mlp": "swiglu", "model__gated_attention": True},
    {"model__block": "parallel", "model__rope": "axial", "model__patch_drop": 0.5, "model__layer_scale": 0.1},
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
