"""Sizes by name, the geometry that follows, and the errors of impossible ones."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.tensor_shapes import is_head_tensor, parameter_shapes
from pretrain.models.variants import VARIANTS, representation_size, resolve


@pytest.mark.parametrize(
    ("changes", "grid", "num_tokens"),
    [
        ({"variant": "B/16", "img_size": 48, "class_token": False, "pool": "norm_avg"}, (3, 3), 9),
        ({"variant": "nano/12", "img_size": 84, "embed_dim": 128, "num_heads": 4}, (7, 7), 50),
        ({"variant": "H/14"}, (16, 16), 257),
        ({"variant": "L/16", "img_size": (192, 384)}, (12, 24), 289),
    ],
)
def test_grid_and_tokens(changes: dict[str, Any], grid: tuple[int, int], num_tokens: int) -> None:
    shape = resolve(ModelConfig(**changes))
    assert (shape.grid, shape.num_tokens) == (grid, num_tokens)


def test_overrides_replace_the_variants_row() -> None:
    shape = resolve(ModelConfig(variant="B/16", embed_dim=60, depth=2, num_heads=5, mlp_dim=7))
    assert (shape.embed_dim, shape.depth, shape.num_heads, shape.mlp_dim) == (60, 2, 5, 7)


@pytest.mark.parametrize(("size", "row"), VARIANTS.items())
def test_every_variant_is_possible(size: str, row: tuple[int, int, int, int]) -> None:
    shape = resolve(ModelConfig(variant=f"{size}/16"))
    assert (shape.embed_dim, shape.depth, shape.mlp_dim, shape.num_heads) == row


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": "X/16"}, ["model.variant", "'X'", "known are mu, nano, Ti, S, M, B, L, H, g, G"]),
        ({"variant": "ti/16"}, ["did you mean Ti/16?"]),
        ({"variant": "nanno/8"}, ["did you mean nano/8?"]),
        ({"variant": "B16"}, ["'B16'", "SIZE/PATCH"]),
        ({"variant": "B/0"}, ["SIZE/PATCH"]),
        ({"variant": "B/16", "img_size": 230}, ["height 230", "patch 16", "224 or 240"]),
        ({"variant": "B/16", "img_size": (224, 8)}, ["width 8", "use 16"]),
        ({"variant": "B/16", "num_heads": 7}, ["7 heads", "width 768", "model.num_heads"]),
    ],
)
def test_impossible_architectures_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(ModelConfig(**changes))
    for word in words:
        assert word in str(error.value)


def test_worked_shapes_of_the_tensors() -> None:
    nine = parameter_shapes(ModelConfig(variant="B/16", img_size=48, class_token=False, pool="norm_avg"), 2)
    assert nine["pos_embed"] == (1, 9, 768)
    assert math.prod(nine["patch_embed.proj.weight"][1:]) == 768  # 16 · 16 · 3 values of a patch
    fifty = parameter_shapes(ModelConfig(variant="nano/12", img_size=84, embed_dim=128, num_heads=4), 2)
    assert fifty["pos_embed"] == (1, 50, 128)
    assert (fifty["patch_embed.proj.weight"][0], math.prod(fifty["patch_embed.proj.weight"][1:])) == (128, 432)


@pytest.mark.parametrize(("value", "width", "head"), [(None, None, (5, 96)), ("width", 96, (5, 96)), (40, 40, (5, 40))])
def test_the_tanh_layer_belongs_to_the_head(value: Any, width: int | None, head: tuple[int, int]) -> None:
    config = ModelConfig(variant="nano/8", img_size=32, representation_size=value)
    shapes = parameter_shapes(config, 5)
    assert representation_size(config) == width
    assert shapes["head.weight"] == head
    heads = {name for name in shapes if is_head_tensor(name)}
    expected = {"head.weight", "head.bias"}
    assert heads == (expected | {"pre_logits.fc.weight", "pre_logits.fc.bias"} if width else expected)


def test_variants_and_cost_need_no_torch() -> None:
    code = "import sys, pretrain.models.variants, pretrain.models.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
