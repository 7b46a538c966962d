"""FSDP2 where it could differ: uneven rows, frozen and shared tensors, every family, adapters, running statistics."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.test_backbones import FAMILIES
from tests.distributed.test_equality_laws import losses, settings
from tests.pool import Pool

FROZEN = [{"pattern": r"^(blocks\.0\.|cls_token|patch_embed)", "freeze": True}]
MODELS: dict[str, dict[str, Any]] = {
    "LayerScale, registers": {
        "model__layer_scale": 1e-2, "model__num_registers": 3, "model__qk_norm": True,
        "model__representation_size": None,
    },
    "shared positions": {"model__pos_embed": "relative_bias", "model__pos_embed_placement": "every_layer_shared"},
    "frozen": {"optim__overrides": FROZEN},
    "only the head": {"optim__overrides": [{"pattern": "^(?!head)", "freeze": True}]},
    "layer-wise rates": {"optim__layer_decay": 0.7},
    "adapters": {"optim__lora": {"rank": 4, "alpha": 8.0, "train": ["norm"]}},
    **{
        name: {"model": {"head_init": "normal", **FAMILIES[name][0]}}
        for name in ("swin", "pvt_v2", "hf_clip")
    },
}  # fmt: skip


FAST = ("LayerScale, registers", "frozen", "swin")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MODELS]
)
def test_every_model_has_the_losses_of_one_rank(pool1: Pool, pool4: Pool, name: str) -> None:
    """A head of 5 rows, tokens of one row: over 4 ranks some ranks hold none."""
    expected = losses(pool1, settings(0, 8, **MODELS[name]))
    assert expected[9] != expected[1]
    assert losses(pool4, settings(0, 1, **MODELS[name]), "fsdp2") == pytest.approx(expected, rel=1e-5)
