"""Initial weights: by name, with the paper's distributions, in any order."""

from __future__ import annotations

import math
import random
from typing import Any
from unittest import mock

import pytest
import torch
from timm.layers.pos_embed_sincos import init_random_2d_freqs
from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models import init
from pretrain.models.init import digest, init_weights, initial_state, initial_value
from pretrain.models.tensor_shapes import parameter_shapes
from pretrain.models.vit import build_vit

CONFIG = ModelConfig(variant="nano/8", img_size=32, depth=2, representation_size=64)
NUM_CLASSES = 10


def test_the_order_and_the_way_of_making_do_not_matter() -> None:
    shapes = list(parameter_shapes(CONFIG, NUM_CLASSES).items())
    random.Random(0).shuffle(shapes)
    shuffled = {name: initial_value(name, shape, CONFIG, 3) for name, shape in shapes}
    model = build_vit(CONFIG, NUM_CLASSES)
    torch.manual_seed(99)
    init_weights(model, 3)
    state = initial_state(CONFIG, NUM_CLASSES, 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, shuffled[name]) and torch.equal(tensor, state[name]), name


def test_torchs_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    initial_state(CONFIG, NUM_CLASSES, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_from_meta_and_in_bfloat16_gets_the_same_values() -> None:
    with torch.device("meta"):
        model = build_vit(CONFIG, NUM_CLASSES).to(torch.bfloat16)
    model.to_empty(device="cpu")
    init_weights(model, 3)
    for name, value in initial_state(CONFIG, NUM_CLASSES, 3).items():
        assert torch.equal(model.state_dict()[name], value.bfloat16()), name


def test_values_are_made_on_the_cpu_inside_a_device_context() -> None:
    with torch.device("meta"):
        value = initial_value("pos_embed", (1, 5, 4), CONFIG, 0)
    assert value.device.type == "cpu"


def test_seeds_and_names_give_other_values() -> None:
    first = initial_value("blocks.0.mlp.fc1.weight", (384, 96), CONFIG, 0)
    assert not torch.equal(first, initial_value("blocks.0.mlp.fc1.weight", (384, 96), CONFIG, 1))
    assert not torch.equal(first, initial_value("blocks.1.mlp.fc1.weight", (384, 96), CONFIG, 0))


def assert_uniform(tensor: torch.Tensor, bound: float) -> None:
    assert tensor.abs().max().item() <= bound
    assert tensor.abs().max().item() > 0.99 * bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_q_k_and_v_are_each_xavier_uniform() -> None:
    qkv = initial_value("blocks.0.attn.qkv.weight", (3 * 96, 96), CONFIG, 0)
    bound = math.sqrt(6 / (96 + 96))
    thirds = qkv.chunk(3)
    for third in thirds:
        assert_uniform(third, bound)
    assert not torch.equal(thirds[0], thirds[1]) and not torch.equal(thirds[1], thirds[2])
    assert qkv.std().item() > 1.3 * math.sqrt(6 / (3 * 96 + 96)) / math.sqrt(3), "the fused bound is √2 smaller"


def test_matrices_that_share_a_tensor_are_each_xavier_uniform() -> None:
    gated = ModelConfig(variant="nano/8", img_size=32, mlp="swiglu")
    for half in initial_value("blocks.0.mlp.fc1.weight", (2 * 300, 96), gated, 0).chunk(2):
        assert_uniform(half, math.sqrt(6 / (300 + 96)))
    hidden, *qkv = initial_value("blocks.0.in_proj.weight", (300 + 3 * 96, 96), CONFIG, 0).split([300, 96, 96, 96])
    assert_uniform(hidden, math.sqrt(6 / (300 + 96)))
    for part in qkv:
        assert_uniform(part, math.sqrt(6 / (96 + 96)))


def test_mixed_rotary_frequencies_are_rope_vits() -> None:
    """timm's initialiser draws the angle of each head; with ours both give the same frequencies."""
    config = ModelConfig(variant="nano/8", img_size=32, rope="mixed")
    ours = initial_value("rope.freqs", (2, 3, 4, 16), config, 0)
    angles = torch.atan2(ours[1, ..., :1], ours[0, ..., :1])
    assert angles.unique().numel() == 12 and angles.min() < -1 and angles.max() > 1
    with mock.patch("torch.rand", return_value=angles / (2 * torch.pi)):
        theirs = init_random_2d_freqs(head_dim=32, depth=3, num_heads=4)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.attn.gate.weight", (96, 96)),
        ("blocks.0.mlp_out_proj.weight", (96, 300)),
        ("blocks.0.attn.proj.weight", (96, 96)),
        ("blocks.11.mlp.fc1.weight", (384, 96)),
        ("blocks.1.mlp.fc2.weight", (96, 384)),
    ],
)
def test_dense_layers_are_xavier_uniform(name: str, shape: tuple[int, int]) -> None:
    assert_uniform(initial_value(name, shape, CONFIG, 0), math.sqrt(6 / sum(shape)))


@pytest.mark.parametrize(
    ("name", "shape", "std"),
    [
        ("pos_embed", (1, 197, 96), 0.02),
        ("pos_embed.row", (1, 140, 48), 0.02),
        ("pos_embed.column", (1, 140, 48), 0.02),
        ("blocks.7.pos_embed", (1, 197, 96), 0.02),
        ("blocks.7.pos_embed.row", (1, 140, 48), 0.02),
        ("reg_token", (1, 64, 96), 0.02),
        ("shared_rel_pos.relative_position_bias_table", (732, 12), 0.02),
        ("blocks.3.attn.rel_pos.relative_position_bias_table", (732, 12), 0.02),
        ("blocks.3.attn.rel_pos.relative_keys", (393, 32), 0.02),
        ("attn_pool.mlp.fc2.bias", (20_000,), 1e-6),
        ("patch_embed.backbone.stem.conv.weight", (64, 3, 7, 7), 1 / math.sqrt(3 * 7 * 7)),
        ("patch_embed.backbone.stages.1.blocks.0.downsample.conv.weight", (512, 256, 1, 1), 1 / math.sqrt(256)),
        ("patch_embed.backbone.stages.2.blocks.8.conv2.weight", (256, 256, 3, 3), 1 / math.sqrt(256 * 9)),
        ("blocks.0.mlp.fc1.bias", (20_000,), 1e-6),
        ("blocks.0.mlp.fc2.bias", (20_000,), 1e-6),
        ("patch_embed.proj.weight", (96, 3, 8, 8), 1 / math.sqrt(3 * 8 * 8)),
        ("pre_logits.fc.weight", (96, 96), 1 / math.sqrt(96)),
    ],
)
def test_normal_tensors(name: str, shape: tuple[int, ...], std: float) -> None:
    value = initial_value(name, shape, CONFIG, 0)
    assert value.std().item() == pytest.approx(std, rel=0.03)
    assert value.mean().item() == pytest.approx(0.0, abs=0.03 * std)
    cut = 2 * std / 0.87962566103423978
    lecun = name in ("patch_embed.proj.weight", "pre_logits.fc.weight") or "conv" in name
    assert (value.abs().max().item() <= cut * (1 + 1e-6)) == lecun, "lecun_normal is cut at two deviations"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cls_token", 0.0),
        ("patch_embed.proj.bias", 0.0),
        ("blocks.0.norm1.weight", 1.0),
        ("blocks.0.norm2.bias", 0.0),
        ("norm.weight", 1.0),
        ("fc_norm.bias", 0.0),
        ("blocks.0.attn.qkv.bias", 0.0),
        ("blocks.0.attn.proj.bias", 0.0),
        ("pre_logits.fc.bias", 0.0),
        ("blocks.0.attn.q_norm.weight", 1.0),
        ("blocks.0.attn.k_norm.bias", 0.0),
        ("attn_pool.kv.bias", 0.0),
        ("attn_pool.q.bias", 0.0),
        ("attn_pool.norm.weight", 1.0),
        ("attn_pool.norm.bias", 0.0),
        ("patch_embed.backbone.stem.norm.weight", 1.0),
        ("patch_embed.backbone.stages.0.blocks.0.downsample.norm.weight", 1.0),
        ("patch_embed.backbone.stages.0.blocks.0.norm2.weight", 1.0),
        ("patch_embed.backbone.stages.0.blocks.0.norm3.weight", 0.0),
        ("patch_embed.backbone.stages.0.blocks.0.norm3.bias", 0.0),
        ("blocks.0.in_norm.weight", 1.0),
        ("blocks.0.q_norm.weight", 1.0),
        ("blocks.0.attn_out_proj.bias", 0.0),
        ("blocks.0.attn.gate.bias", 0.0),
        ("head.weight", 0.0),
        ("head.bias", 0.0),
    ],
)
def test_constant_tensors(name: str, value: float) -> None:
    assert initial_value(name, (1, 6), CONFIG, 0).unique().tolist() == [value]


def test_the_heads_settings() -> None:
    config = ModelConfig(variant="B/16", head_init="normal", head_bias=-10.0)
    assert initial_value("head.bias", (8,), config, 0).unique().tolist() == [-10.0]
    assert initial_value("head.weight", (1000, 768), config, 0).std().item() == pytest.approx(0.01, rel=0.02)


def test_attention_pooling_is_as_big_visions() -> None:
    bound = math.sqrt(6 / (96 + 96))
    for half in initial_value("attn_pool.kv.weight", (2 * 96, 96), CONFIG, 0).chunk(2):
        assert_uniform(half, bound)
    assert_uniform(initial_value("attn_pool.q.weight", (96, 96), CONFIG, 0), bound)
    probe = initial_value("attn_pool.latent", (1, 1, 20_000), CONFIG, 0)
    assert probe.shape == (1, 1, 20_000)
    assert_uniform(probe, math.sqrt(6 / (1 + 20_000)))


def test_layer_scale_starts_at_its_setting() -> None:
    config = ModelConfig(variant="B/16", layer_scale=1e-4)
    for name in ("blocks.3.ls1.gamma", "blocks.0.ls2.gamma"):
        assert torch.equal(initial_value(name, (9,), config, 0), torch.full((9,), 1e-4))


def test_a_hybrid_starts_as_the_identity_of_each_bottleneck() -> None:
    """The last norm of a bottleneck is 0, so that each starts as relu(shortcut)."""
    model = build_vit(ModelConfig(variant="R50+nano/32", img_size=64, depth=1), 3)
    init_weights(model, 0)
    block: Any = model.get_submodule("patch_embed.backbone.stages.0.blocks.1")
    x = torch.randn(1, 256, 4, 4)
    assert torch.equal(block(x), x.relu())


def test_a_tensor_without_a_rule_is_an_error() -> None:
    model = build_vit(CONFIG, NUM_CLASSES)
    model.mystery = nn.Parameter(torch.zeros(3))
    with pytest.raises(LookupError, match=r"0 rules .* explain the tensor 'mystery'"):
        init_weights(model, 0)


def test_two_rules_for_a_tensor_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(init.RULES, "cls_.*", init.RULES["cls_token"])
    with pytest.raises(LookupError, match=r"2 rules .* 'cls_token'"):
        initial_value("cls_token", (1, 1, 4), CONFIG, 0)


def test_digests_tell_tensors_apart() -> None:
    model = build_vit(CONFIG, NUM_CLASSES)
    init_weights(model, 0)
    before = digest(model)
    assert list(before) == list(model.state_dict())
    assert before == digest(model.state_dict()) == digest(initial_state(CONFIG, NUM_CLASSES, 0))
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.fc2.weight")[3, 4] += 1e-3
    changed = [name for name, value in digest(model).items() if value != before[name]]
    assert changed == ["blocks.1.mlp.fc2.weight"]


@pytest.mark.parametrize(
    "other", [torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(3, 2), torch.zeros(6), torch.full((2, 3), -0.0)]
)
def test_digests_see_type_shape_and_sign(other: torch.Tensor) -> None:
    assert digest({"x": torch.zeros(2, 3)}) != digest({"x": other})


def test_digests_do_not_see_the_layout_in_memory() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert digest({"x": tensor}) == digest({"x": tensor.T.contiguous().T})
    assert len(digest({"x": torch.tensor(1.0)})["x"]) == 16
