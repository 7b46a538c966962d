"""Saved weights in another model: everything is reported, nothing is guessed, another architecture is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.families.registry import adapt_state_dict
from pretrain.models.init import initial_state
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.surgery import (
    SurgeryReport,
    resize_axis,
    resize_pos_embed,
    resize_relative_bias,
)
from pretrain.models.vit import build_vit
from tests.golden.twins import our_model, small_config, some_images

HALF = (0.5, 0.5, 0.5)


def saved(config: ModelConfig, num_classes: int = 11) -> tuple[dict[str, Tensor], WeightsMetadata]:
    return our_model(config, num_classes).state_dict(), WeightsMetadata.of(config, num_classes, HALF, HALF)


def adapt(
    config: ModelConfig, wanted: ModelConfig, *, num_classes: int = 11, head: Any = "keep", state: Any = None
) -> tuple[dict[str, Tensor], SurgeryReport]:
    file_state, source = saved(config)
    with torch.device("meta"):
        model = build_vit(wanted, num_classes)
    return adapt_state_dict(state or file_state, source, model, head=head, filter="bilinear_corners", seed=5)


def test_the_same_model_takes_every_tensor_as_it_is() -> None:
    config = small_config(representation_size=20)
    state, report = adapt(config, config)
    original, _ = saved(config)
    assert report.loaded == list(original) == list(state)
    assert (report.resized, report.renamed, report.new, report.dropped) == ({}, {}, [], [])
    assert all(torch.equal(state[name], original[name]) for name in original)


def test_a_new_resolution_and_a_new_head() -> None:
    """The paper's transfer: tanh layer dropped, zero head, position embedding resized; all of it reported."""
    config = small_config(representation_size=20)
    wanted = small_config(img_size=(64, 96), head_bias=-3.0)
    state, report = adapt(config, wanted, num_classes=4, head="replace")
    original, _ = saved(config)
    assert report.resized == {"pos_embed": ((4, 6), (8, 12))}
    assert report.new == ["head.weight", "head.bias"]
    assert report.dropped == ["pre_logits.fc.weight", "pre_logits.fc.bias", "head.weight", "head.bias"]
    assert set(report.loaded) == set(state) - {"pos_embed", "head.weight", "head.bias"}
    assert torch.equal(state["head.weight"], torch.zeros(4, 48))
    assert state["head.bias"].tolist() == [-3.0] * 4
    expected = resize_pos_embed(original["pos_embed"], (4, 6), (8, 12), 1, "bilinear_corners")
    assert torch.equal(state["pos_embed"], expected)
    model = build_vit(wanted, 4)
    model.load_state_dict(state, strict=True)
    assert model(some_images(model)).tolist() == [[-3.0] * 4] * 3
    text = "\n".join(report.lines())
    for word in ("from grid (4, 6) to (8, 12)", "new: head.weight", "dropped: pre_logits.fc.bias", "tensors loaded"):
        assert word in text


def test_larger_patches_give_the_tokens_of_the_original_images() -> None:
    """FlexiViT, equation 4: bicubically resized images in patches of twice the size are embedded exactly as before."""
    config = small_config()
    wanted = small_config(img_size=tuple(2 * side for side in config.size), variant="nano/16")
    state, report = adapt(config, wanted)
    assert report.resampled == {"patch_embed.proj.weight": ((8, 8), (16, 16))} and not report.resized
    assert "resampled: patch_embed.proj.weight from patches of (8, 8) to (16, 16) pixels" in "\n".join(report.lines())
    old, new = our_model(config, 11), build_vit(wanted, 11)
    new.load_state_dict(state, strict=True)
    patch = some_images(old)[:, :, :8, :8]
    larger = torch.nn.functional.interpolate(patch, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(new.patch_embed(larger), old.patch_embed(patch), rtol=1e-4, atol=1e-5)


def test_new_tensors_are_those_of_the_seed() -> None:
    wanted = small_config(head_init="normal")
    state, _ = adapt(small_config(), wanted, num_classes=4, head="replace")
    assert torch.equal(state["head.weight"], initial_state(wanted, 4, 5)["head.weight"])


@pytest.mark.parametrize(
    ("source", "wanted", "renamed"),
    [
        ("token", "norm_avg", {}),
        ("norm_avg", "token", {}),
        ("token", "avg_norm", {"fc_norm.weight": "norm.weight", "fc_norm.bias": "norm.bias"}),
        ("avg_norm", "token", {"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"}),
    ],
)
def test_the_pooling_may_be_switched(source: str, wanted: str, renamed: dict[str, str]) -> None:
    state, report = adapt(small_config(pool=source), small_config(pool=wanted))
    original, _ = saved(small_config(pool=source))
    assert report.renamed == renamed
    assert (report.new, report.dropped) == ([], [])
    for new, old in renamed.items():
        assert torch.equal(state[new], original[old])
    build_vit(small_config(pool=wanted), 11).load_state_dict(state, strict=True)


def test_a_class_token_may_be_dropped_and_is_reported() -> None:
    config, wanted = small_config(), small_config(pool="norm_avg", class_token=False, img_size=(64, 96))
    state, report = adapt(config, wanted)
    original, _ = saved(config)
    assert report.dropped == ["cls_token", "pos_embed (its rows for the class token)"]
    expected = resize_pos_embed(original["pos_embed"][:, 1:], (4, 6), (8, 12), 0, "bilinear_corners")
    assert torch.equal(state["pos_embed"], expected)
    build_vit(wanted, 11).load_state_dict(state, strict=True)


def test_the_input_is_left_alone() -> None:
    state, source = saved(small_config())
    before = {name: tensor.clone() for name, tensor in state.items()}
    with torch.device("meta"):
        model = build_vit(small_config(pool="avg_norm", img_size=64), 3)
    adapt_state_dict(state, source, model, head="replace", filter="bicubic", seed=0)
    assert state.keys() == before.keys() and all(torch.equal(state[name], before[name]) for name in before)


def without(name: str) -> dict[str, Tensor]:
    state, _ = saved(small_config())
    del state[name]
    return state


def with_(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**saved(small_config())[0], name: tensor}


@pytest.mark.parametrize(
    ("wanted", "options", "words"),
    [
        ({"depth": 4}, {}, ["depth 3", "4", "blocks.3.norm1.weight", "model.depth: 3"]),
        ({"depth": 2}, {}, ["depth 3", "2", "blocks.2.norm1.weight"]),
        ({"embed_dim": 64}, {}, ["embed_dim 48", "64", "pos_embed", "model.embed_dim: 48"]),
        ({"mlp_dim": 96}, {}, ["mlp_dim 80", "96", "blocks.0.mlp.fc1.weight"]),
        ({"num_heads": 8}, {}, ["num_heads 4", "8", "blocks.0.attn.qkv.weight", "model.num_heads: 4"]),
        ({"gelu": "tanh"}, {}, ["gelu erf", "tanh", "model.gelu: erf"]),
        ({"layer_norm_eps": 1e-5}, {}, ["layer_norm_eps 1e-06", "model.layer_norm_eps: 1e-06"]),
        ({}, {"num_classes": 5}, ["tensor head.weight", "(11, 48)", "(5, 48)", "init.head: replace"]),
        ({"representation_size": 20}, {}, ["pre_logits.fc.weight", "not in the weights", "init.head: replace"]),
        ({}, {"state": without("blocks.1.mlp.fc1.bias")}, ["blocks.1.mlp.fc1.bias", "not in the weights"]),
        ({}, {"state": without("norm.weight")}, ["norm.weight", "not in the weights"]),
        ({}, {"state": with_("dist_token", torch.zeros(1, 1, 48))}, ["dist_token", "no place", "model.variant"]),
        ({}, {"state": with_("fc_norm.weight", torch.zeros(48))}, ["fc_norm.weight", "no place"]),
        ({}, {"state": with_("norm.bias", torch.zeros(5))}, ["norm.bias", "(5,)", "(48,)"]),
        ({}, {"state": with_("pos_embed", torch.zeros(1, 26, 48))}, ["pos_embed has 26 tokens", "4×6", "25"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    wanted: dict[str, Any], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CheckpointError) as error:
        adapt(small_config(), small_config(**wanted), **options)
    for word in words:
        assert word in str(error.value)


def test_a_kept_head_without_its_tanh_layer_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"head\.weight is \(11, 20\).*init\.head: replace"):
        adapt(small_config(representation_size=20), small_config())


def test_a_class_token_that_was_never_trained_is_not_invented() -> None:
    with pytest.raises(CheckpointError, match=r"cls_token .* model\.class_token: false"):
        adapt(small_config(pool="norm_avg", class_token=False), small_config())


@pytest.mark.parametrize("filter", ["bilinear_corners", "bicubic", "bicubic_aa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unchanged_grid_changes_nothing(filter: Any, dtype: torch.dtype) -> None:
    source = torch.randn(1, 13, 8).to(dtype)
    same = resize_pos_embed(source, (3, 4), (3, 4), 1, filter)
    assert torch.equal(same, source) and same.dtype == dtype
    assert same.data_ptr() != source.data_ptr()


@pytest.mark.parametrize("filter", ["bilinear_corners", "bicubic", "bicubic_aa"])
def test_resizing_keeps_type_constants_and_orientation(filter: Any) -> None:
    ramp = torch.arange(4.0).repeat_interleave(6).reshape(1, 24, 1)  # grows from row to row of a 4 × 6 grid
    resized = resize_pos_embed(ramp.bfloat16(), (4, 6), (8, 3), 0, filter)
    assert resized.dtype == torch.bfloat16
    rows = resized.float().reshape(8, 3)
    assert torch.all(rows[1:] > rows[:-1]) and torch.equal(rows, rows[:, :1].expand(8, 3))


def test_a_wrong_grid_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has 17 tokens, but 1 prefix tokens and a grid of 3×5 make 16"):
        resize_pos_embed(torch.zeros(1, 17, 4), (3, 5), (6, 6), 1, "bicubic")


@pytest.mark.parametrize(
    ("changes", "resized"),
    [
        ({"pos_embed": "none"}, 0),
        ({"pos_embed": "learned_2d"}, 2),
        ({"pos_embed_placement": "every_layer"}, 3),
        ({"pos_embed_placement": "every_layer_shared", "num_registers": 2, "pos_embed_prefix": False}, 1),
        ({"pos_embed": "learned_2d", "pos_embed_placement": "every_layer"}, 6),
        ({"pos_embed": "relative_bias"}, 3),
        ({"pos_embed": "relative_bias", "pos_embed_placement": "every_layer_shared", "num_registers": 1}, 1),
        ({"pos_embed": "sincos2d_big_vision", "pool": "map", "layer_scale": 0.1, "qk_norm": True}, 0),
        ({"pos_embed": "none", "rope": "axial"}, 0),
    ],
)
@pytest.mark.parametrize("drop_class_token", [False, True])
def test_every_kind_moves_to_another_grid(changes: dict[str, Any], resized: int, drop_class_token: bool) -> None:
    less: dict[str, Any] = {"class_token": False, "pool": changes.get("pool", "norm_avg")} if drop_class_token else {}
    wanted = small_config(**{**changes, "img_size": (40, 64), **less})
    state, report = adapt(small_config(**changes), wanted)
    assert len(report.resized) == resized
    assert set(report.resized.values()) <= {((4, 6), (5, 8))}
    model = build_vit(wanted, 11)
    model.load_state_dict(state, strict=True)
    assert torch.isfinite(model(some_images(model))).all()
    notes = "\n".join(report.lines())
    assert ("note: sincos2d_big_vision" in notes) == ("sincos" in changes.get("pos_embed", ""))
    assert ("model.rope_grid: [4, 6] scales them back" in notes) == ("rope" in changes)


def test_rotary_positions_scaled_back_need_no_note() -> None:
    rotary: dict[str, Any] = {"pos_embed": "none", "rope": "axial"}
    _, report = adapt(small_config(**rotary), small_config(**rotary, img_size=(64, 96), rope_grid=(4, 6)))
    assert report.notes == []


@pytest.mark.parametrize("changes", [{"img_size": (64, 96)}, {"class_token": False, "pool": "norm_avg"}])
def test_relative_keys_cannot_move(changes: dict[str, Any]) -> None:
    same = small_config(pos_embed="relative_1d")
    assert adapt(same, same)[1].loaded
    with pytest.raises(CheckpointError, match=r"relative_keys .* 4×6.*relative_bias .*rope"):
        adapt(same, small_config(pos_embed="relative_1d", **changes))


@pytest.mark.parametrize(
    ("source", "wanted", "words"),
    [
        ({}, {"num_registers": 2}, ["model.num_registers: 0", "has 2"]),
        ({"qk_norm": True}, {}, ["model.qk_norm: true", "has false"]),
        ({}, {"layer_scale": 0.1}, ["model.layer_scale: null", "has 0.1"]),
        ({}, {"pos_embed": "none"}, ["model.pos_embed: learned_1d", "has none"]),
        ({}, {"rope": "axial"}, ["model.rope: null", "has axial"]),
        ({"rope": "axial"}, {"rope": "axial", "rope_temperature": 100.0}, ["model.rope_temperature", "has 100"]),
        ({"norm": "rms_norm"}, {}, ["model.norm: rms_norm", "has layer_norm"]),
        ({}, {"mlp": "swiglu"}, ["model.mlp: mlp", "has swiglu"]),
        ({}, {"qkv_bias": False}, ["model.qkv_bias: true", "has false"]),
        ({"gated_attention": True}, {}, ["model.gated_attention: true", "has false"]),
        ({}, {"pos_embed_placement": "every_layer"}, ["pos_embed_placement", "every_layer"]),
        ({}, {"pos_embed_prefix": False}, ["pos_embed_prefix: true"]),
        ({}, {"pool": "map"}, ["attn_pool.latent", "not in the weights"]),
    ],
)
def test_another_architecture_is_refused_by_its_setting(
    source: dict[str, Any], wanted: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CheckpointError) as error:
        adapt(small_config(**source), small_config(**wanted))
    for word in words:
        assert word in str(error.value)


def test_attention_pooling_may_come_and_go_with_a_new_head() -> None:
    state, report = adapt(small_config(), small_config(pool="map"), head="replace")
    assert len(report.new) == 2 + 13 and "attn_pool.latent" in report.new
    build_vit(small_config(pool="map"), 11).load_state_dict(state, strict=True)
    _, report = adapt(small_config(pool="map"), small_config())
    assert len(report.dropped) == 13


@pytest.mark.parametrize("filter", ["bilinear_corners", "bicubic", "bicubic_aa"])
@pytest.mark.parametrize(("old", "new"), [((4, 6), (9, 7)), ((9, 7), (4, 6)), ((3, 3), (3, 5))])
def test_resizing_the_axes_is_resizing_the_joined_table(old: Any, new: Any, filter: Any) -> None:
    row, column = torch.randn(1, old[0], 4), torch.randn(1, old[1], 4)

    def joined(row: Tensor, column: Tensor) -> Tensor:
        grid = (1, row.shape[1], column.shape[1], 4)
        return torch.cat([row[:, :, None].expand(grid), column[:, None].expand(grid)], dim=-1).flatten(1, 2)

    axes = joined(resize_axis(row, new[0], filter), resize_axis(column, new[1], filter))
    torch.testing.assert_close(axes, resize_pos_embed(joined(row, column), old, new, 0, filter), rtol=1e-5, atol=1e-5)


def test_a_relative_bias_on_its_own_grid_is_unchanged() -> None:
    table = torch.randn(7 * 11 + 3, 2)
    assert torch.equal(resize_relative_bias(table, (4, 6), (4, 6), "bicubic_aa"), table)
