"""Each kind of position embedding against its published formula, written out, and against timm where it has it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from pretrain.config.schema.model import POS_EMBED_PLACEMENTS, ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.layers.positions import Learned2d, RelativeKeys, axial_rotary, relative_index, rotate, sincos_2d
from pretrain.models.tensor_shapes import parameter_shapes
from pretrain.models.variants import resolve
from pretrain.models.vit import build_vit
from tests.golden.twins import our_model, small_config, some_images

CPU = torch.device("cpu")
GRIDS = [(14, 14), (3, 7), (1, 5)]
CASES = [(kind, where) for kind, places in POS_EMBED_PLACEMENTS.items() for where in (places or (None,))]


def rotary(grid: tuple[int, int], head_width: int, **changes: Any) -> Tensor:
    """Cosines and sines of a model whose heads have this width."""
    config = small_config(img_size=(8 * grid[0], 8 * grid[1]), embed_dim=4 * head_width, rope="axial", **changes)
    return axial_rotary(config, resolve(config), CPU)


@pytest.mark.parametrize("grid", GRIDS)
def test_big_visions_sincos(grid: tuple[int, int]) -> None:
    """Frequencies divided by D/4 − 1, and [sin x, cos x, sin y, cos y], element by element."""
    width = 32
    expected = np.zeros((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for k in range(width // 4):
                omega = 1.0 / 10_000 ** (k / (width // 4 - 1))
                x, y = column * omega, row * omega
                values = (math.sin(x), math.cos(x), math.sin(y), math.cos(y))
                expected[row * grid[1] + column, k :: width // 4] = values
    got = sincos_2d("big_vision", grid, width, CPU)
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_timms_sincos(grid: tuple[int, int]) -> None:
    expected = timm.layers.build_sincos2d_pos_embed(list(grid), 32)
    got = sincos_2d("timm", grid, 32, CPU)
    torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-6)
    assert (got - sincos_2d("big_vision", grid, 32, CPU)).abs().max() > 0.1, "two kinds with two names"


def maes_table(grid: tuple[int, int], width: int) -> Tensor:
    """Frequencies divided by D/4, and [sin x, cos x, sin y, cos y], element by element: fp32 (1, N, D)."""
    table = np.zeros((grid[0] * grid[1], width))
    for place, (row, column) in enumerate(np.ndindex(grid)):
        for k in range(width // 4):
            x, y = (position / 10_000 ** (k / (width // 4)) for position in (column, row))
            table[place, k :: width // 4] = math.sin(x), math.cos(x), math.sin(y), math.cos(y)
    return torch.from_numpy(table)[None].float()


@pytest.mark.parametrize("grid", GRIDS)
def test_maes_sincos(grid: tuple[int, int]) -> None:
    got = sincos_2d("mae", grid, 32, CPU)
    torch.testing.assert_close(got, maes_table(grid, 32), rtol=0, atol=2e-6)
    assert (got - sincos_2d("big_vision", grid, 32, CPU)).abs().max() > 0.1, "two kinds with two names"


@pytest.mark.parametrize("reference", [None, (7, 7)])
@pytest.mark.parametrize("grid", GRIDS)
def test_rotary_tables_equal_timm(grid: tuple[int, int], reference: tuple[int, int] | None) -> None:
    theirs = timm.layers.RotaryEmbeddingCat(
        16, in_pixels=False, feat_shape=list(grid), ref_feat_shape=None if reference is None else list(reference)
    )
    sin, cos = theirs.get_embed().chunk(2, dim=-1)
    got = rotary(grid, head_width=16, num_registers=1, rope_grid=reference)
    torch.testing.assert_close(got[:, 2:], torch.stack([cos, sin]), rtol=0, atol=2e-6)
    assert torch.equal(got[0, :2], torch.ones(2, 16)) and torch.equal(got[1, :2], torch.zeros(2, 16))


def test_rotation_leaves_only_relative_positions() -> None:
    """RoFormer's point: the product of a query and a key depends on their offset alone."""
    table = rotary((6, 6), head_width=8, rope_temperature=100.0, class_token=False, pool="norm_avg")
    q, k = torch.randn(2, 8).unbind(0)
    turned_q, turned_k = rotate(q.expand(1, 1, 36, 8), table)[0, 0], rotate(k.expand(1, 1, 36, 8), table)[0, 0]
    product = (turned_q @ turned_k.T).reshape(6, 6, 6, 6)
    torch.testing.assert_close(product[:5, :5, :5, :5], product[1:, 1:, 1:, 1:], rtol=1e-4, atol=1e-5)
    assert (product[0, 0] - product[0, 0, 0, 0]).abs().max() > 0.01


def test_learned_2d_joins_half_vectors_of_row_and_column() -> None:
    table = Learned2d((2, 3), 4)
    with torch.no_grad():
        table.row.copy_(torch.tensor([[[10.0, 11.0], [20.0, 21.0]]]))
        table.column.copy_(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]))
    x = torch.zeros(1, 1 + 6, 4)
    expected = [[0.0] * 4] + [[10.0 * r, 10.0 * r + 1, 2.0 * c + 1, 2.0 * c + 2] for r in (1, 2) for c in range(3)]
    assert table(x)[0].tolist() == expected


def test_relative_keys_against_a_double_loop() -> None:
    """D.4 and Shaw et al.: logit (i, j) gets q_i · r_(i − j), scaled as the logits are."""
    shape = resolve(small_config(img_size=(16, 24)))
    module = RelativeKeys(shape)
    nn.init.normal_(module.relative_keys)
    tokens, head_dim = shape.num_tokens, 12
    q = torch.randn(2, 4, tokens, head_dim)
    term = module(q)
    for i in range(tokens):
        for j in range(tokens):
            key = module.relative_keys[i - j + tokens - 1]
            torch.testing.assert_close(term[:, :, i, j], q[:, :, i] @ key / math.sqrt(head_dim), rtol=1e-4, atol=1e-5)


def test_relative_keys_act_as_keys_in_the_model() -> None:
    """One layer of attention with the relative logits, written out."""
    model = our_model(small_config(depth=1, pos_embed="relative_1d")).eval()
    block: Any = model.blocks[0]
    x = torch.randn(2, model.shape.num_tokens, 48)
    q, k, v = block.attn.qkv(x).reshape(2, -1, 3, 4, 12).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) / math.sqrt(12) + block.attn.rel_pos(q)
    expected = block.attn.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, -1, 48))
    torch.testing.assert_close(block.attn(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_relative_index_of_a_non_square_grid(prefix: int) -> None:
    height, width = 2, 3
    index = relative_index((height, width), prefix, CPU)
    assert index.shape == (prefix + 6, prefix + 6)
    for i in range(6):
        for j in range(6):
            offset = (i // width - j // width + height - 1, i % width - j % width + width - 1)
            assert index[prefix + i, prefix + j] == offset[0] * (2 * width - 1) + offset[1]
    offsets = (2 * height - 1) * (2 * width - 1)
    assert set(index[:prefix, prefix:].flatten().tolist()) <= {offsets}
    assert set(index[prefix:, :prefix].flatten().tolist()) <= {offsets + 1}
    assert set(index[:prefix, :prefix].flatten().tolist()) <= {offsets + 2}


def added(model: Any, x: Tensor) -> Tensor:
    return x + nn.functional.pad(model, (0, 0, x.shape[1] - model.shape[1], 0))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("where", ["stem", "every_layer", "every_layer_shared"])
def test_placements_of_d4(where: Any, prefix: bool) -> None:
    """The placements, checked by adding by hand to a model that has no positions."""
    config = small_config(pos_embed_placement=where, pos_embed_prefix=prefix, num_registers=1)
    model = our_model(config).eval()
    bare = build_vit(small_config(pos_embed="none", num_registers=1), 11).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("pos_embed")}
    bare.load_state_dict(state)
    images = some_images(model)
    x = bare._embed(images)
    for index, block in enumerate(bare.blocks):
        if where == "every_layer":
            x = added(model.blocks[index].pos_embed, x)
        elif where == "every_layer_shared" or index == 0:
            x = added(model.pos_embed, x)
        x = block(x)
    torch.testing.assert_close(model.forward_features(images), bare.norm(x), rtol=1e-5, atol=1e-5)
    expected = {"stem": 1, "every_layer": 3, "every_layer_shared": 1}[where]
    assert sum(name.endswith("pos_embed") for name in model.state_dict()) == expected


@pytest.mark.parametrize(("kind", "where"), CASES)
def test_every_kind_and_placement_is_built_trained_and_counted(kind: Any, where: Any) -> None:
    config = small_config(pos_embed=kind, pos_embed_placement=where)
    model = our_model(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(shapes.items()) == list(parameter_shapes(config, 11).items())
    assert not list(model.buffers()), "a buffer would be lost on the way from meta or rounded by a cast"
    model(some_images(model)).square().mean().backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []


ADDED = [{"pos_embed": kind, "pos_embed_placement": where} for kind, where in CASES if kind != "none"]


@pytest.mark.parametrize("positions", [*ADDED, *({"pos_embed": "none", "rope": kind} for kind in ("axial", "mixed"))])
def test_positions_matter(positions: dict[str, Any]) -> None:
    """Without a position embedding mean pooling cannot tell the order of the patches; with one it can."""
    changes: dict[str, Any] = {"class_token": False, "pool": "norm_avg"}
    model = our_model(small_config(**positions, **changes)).eval()
    bare = our_model(small_config(pos_embed="none", **changes)).eval()
    images = some_images(model)
    moved = torch.cat([images[..., 24:], images[..., :24]], dim=-1)  # whole patches of 8 pixels
    moved = torch.cat([moved[..., 8:16, :], moved[..., :8, :], moved[..., 16:, :]], dim=-2)
    with torch.no_grad():
        torch.testing.assert_close(bare(images), bare(moved), rtol=1e-4, atol=1e-4)
        assert (model(images) - model(moved)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pos_embed": "sincos2d_timm", "pos_embed_placement": "every_layer"}, ["stem or every_layer_shared"]),
        ({"pos_embed": "none", "rope": "axial", "pos_embed_placement": "stem"}, ["none", "remove it"]),
        ({"pos_embed": "relative_1d", "pos_embed_placement": "every_layer_shared"}, ["choose every_layer"]),
        ({"pos_embed": "none", "pos_embed_prefix": False}, ["pos_embed_prefix", "learned_1d", "ignored"]),
        ({"rope_temperature": 100.0}, ["rope_temperature", "axial or mixed", "ignored"]),
        ({"rope_grid": (4, 4)}, ["rope_grid", "axial or mixed"]),
        ({"rope": "mixed", "rope_register_temperature": 100.0}, ["rope_register_temperature", "axial"]),
        ({"rope": "axial", "rope_register_temperature": 9.0, "num_registers": 3}, ["3 registers", "square"]),
        ({"rope": "axial", "pos_embed": "relative_bias"}, ["rope", "relative_bias", "pos_embed: none"]),
        ({"block": "parallel", "mlp": "swiglu"}, ["block: parallel", "mlp: swiglu"]),
        ({"block": "parallel", "pos_embed": "relative_bias"}, ["block: parallel", "relative_bias"]),
        ({"patch_drop": 0.5, "rope": "mixed"}, ["patch_drop", "rope: mixed"]),
        ({"patch_drop": 0.5, "pos_embed": "relative_bias"}, ["patch_drop", "relative_bias"]),
        ({"patch_drop": 0.5, "head": "dense", "pool": "norm_avg"}, ["patch_drop", "head: dense"]),
        ({"mlp": "swiglu", "gelu": "tanh"}, ["gelu: tanh", "ignored", "swiglu"]),
        ({"distilled": True, "num_registers": 1}, ["distilled", "num_registers"]),
    ],
)
def test_settings_that_would_be_ignored_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        small_config(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pos_embed": "sincos2d_timm", "embed_dim": 42, "num_heads": 2}, ["sincos2d_timm", "width", "42"]),
        ({"pos_embed": "learned_2d", "embed_dim": 45, "num_heads": 3}, ["learned_2d", "2 divides"]),
        ({"pos_embed": "none", "rope": "axial", "embed_dim": 48, "num_heads": 8}, ["head width", "not 6"]),
        ({"variant": "R50+B/14", "img_size": 224}, ["total stride 16 or 32", "R50+B/16"]),
        ({"variant": "R101+B/16"}, ["R50+SIZE/STRIDE"]),
    ],
)
def test_impossible_ones_are_refused_with_the_remedy(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build_vit(ModelConfig(**{**small_config().model_dump(), **changes}), 3)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("kind", "where"), CASES)
def test_under_autocast_the_stream_is_fp32(kind: Any, where: Any) -> None:
    changes: dict[str, Any] = {"class_token": False, "pool": "norm_avg"}
    model = our_model(small_config(pos_embed=kind, pos_embed_placement=where, **changes)).eval()
    images = some_images(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.forward_features(images).dtype == torch.float32
        low = model(images)
    with torch.no_grad():
        torch.testing.assert_close(low, model(images), rtol=0.1, atol=0.15)
    low_weights = our_model(small_config(pos_embed=kind, pos_embed_placement=where, **changes)).bfloat16().eval()
    with torch.no_grad():
        assert low_weights.forward_features(images).dtype == torch.bfloat16
        torch.testing.assert_close(low_weights(images), model(images), rtol=0.1, atol=0.3)
