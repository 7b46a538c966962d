"""Padded sequences of images at their own aspect ratio, against timm's NaFlexVit and against each image alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.naflex_transforms import get_image_size_for_seq
from timm.models.naflexvit import NaFlexVit, checkpoint_filter_fn
from torch import Tensor

from pretrain.config.sequences import native_grid, padding_share
from pretrain.models.families.registry import adapt_state_dict
from pretrain.models.layers.places import Places
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.vit import VisionTransformer, build_vit
from tests.golden.twins import our_model, small_config

EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
LENGTH, PATCH = 24, 8
HALF = (0.5, 0.5, 0.5)
GRIDS = [(4, 6), (3, 5), (6, 4), (1, 24), (12, 1), (2, 2)]  # the model's own, all places used, and few

ALONE: dict[str, dict[str, Any]] = {
    "learned": {},
    "learned, patches only, registers": {"pos_embed_prefix": False, "num_registers": 2},
    "learned by axis": {"pos_embed": "learned_2d"},
    "sincos": {"pos_embed": "sincos2d_big_vision", "pool": "norm_avg"},
    "timm's sincos": {"pos_embed": "sincos2d_timm", "pool": "avg_norm", "class_token": False},
    "none": {"pos_embed": "none", "pool": "map"},
    "rotary": {"pos_embed": "none", "rope": "axial", "pool": "norm_avg"},
    "rotary, scaled": {"pos_embed": "none", "rope": "axial", "rope_grid": (5, 5)},
    "ViT-5": {"norm": "rms_norm", "qkv_bias": False, "qk_norm": True, "layer_scale": 1e-1, "num_registers": 4,
        "pos_embed_prefix": False, "rope": "axial", "rope_register_temperature": 100.0},
    "parallel, SiLU": {"block": "parallel", "pool": "avg_norm"},
    "gated": {"mlp": "swiglu", "gated_attention": True},
}  # fmt: skip

TIMM: dict[str, dict[str, Any]] = {
    "class token": {"pos_embed_prefix": False},
    "class token with a position": {},
    "mean, registers": {"pos_embed_prefix": False, "num_registers": 3, "class_token": False, "pool": "avg_norm"},
    "mean of normed tokens": {"pos_embed_prefix": False, "pool": "norm_avg", "layer_scale": 0.1, "qk_norm": True},
    "attention pooling": {"pos_embed_prefix": False, "pool": "map"},
    "no positions": {"pos_embed": "none", "gelu": "tanh"},
}


def strips_and_images(seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Strips (B, 3, P, N · P) with noise where padding is, and the images (1, 3, h · P, w · P) that they hold."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(1, 3, rows * PATCH, columns * PATCH, generator=generator) for rows, columns in GRIDS]
    strips = torch.randn(len(GRIDS), 3, PATCH, LENGTH * PATCH, generator=generator)
    for strip, image in zip(strips, images, strict=True):
        patches = F.unfold(image, PATCH, stride=PATCH)[0].T.unflatten(1, (3, PATCH, PATCH))  # (h · w, 3, P, P)
        strip[:, :, : len(patches) * PATCH] = patches.permute(1, 2, 0, 3).flatten(2)
    return strips, images


def alone(model: VisionTransformer, image: Tensor) -> VisionTransformer:
    """The same weights for images of one size, their positions interpolated as for a fine-tuning."""
    config = model.config.model_copy(update={"img_size": tuple(image.shape[2:])})
    other = build_vit(config, model.num_classes)
    metadata = WeightsMetadata.of(model.config, model.num_classes, HALF, HALF)
    state, _ = adapt_state_dict(model.state_dict(), metadata, other, head="keep", filter="bicubic_aa", seed=0)
    other.load_state_dict(state)
    return other.train(model.training)


def naflex(model: VisionTransformer) -> Any:
    """timm's model of the same architecture, with the weights that timm makes of those of a plain ViT."""
    config, shape = model.config, model.shape
    twin = NaFlexVit(
        num_classes=model.num_classes, patch_size=PATCH, embed_dim=shape.embed_dim, depth=shape.depth,
        num_heads=shape.num_heads, mlp_ratio=shape.mlp_dim / shape.embed_dim, qk_norm=config.qk_norm,
        init_values=config.layer_scale, class_token=config.class_token, reg_tokens=config.num_registers,
        pos_embed="learned" if config.pos_embed == "learned_1d" else "none", pos_embed_grid_size=shape.grid,
        global_pool={"token": "token", "map": "map"}.get(config.pool, "avg"), fc_norm=config.pool == "avg_norm",
        act_layer="gelu" if config.gelu == "erf" else "gelu_tanh",
    )  # fmt: skip
    twin.load_state_dict(checkpoint_filter_fn(copy.deepcopy(model.state_dict()), twin), strict=True)
    return twin.train(model.training)


def as_timms(strips: Tensor) -> dict[str, Tensor]:
    """The input of timm's model: flat patches, channels last, with coordinates and validity."""
    patches = strips.unflatten(3, (LENGTH, PATCH)).permute(0, 3, 2, 4, 1).flatten(2)
    coordinates = torch.zeros(len(GRIDS), LENGTH, 2, dtype=torch.int64)
    valid = torch.zeros(len(GRIDS), LENGTH, dtype=torch.bool)
    for row, (height, width) in enumerate(GRIDS):
        places = [(y, x) for y in range(height) for x in range(width)]
        coordinates[row, : len(places)] = torch.tensor(places)
        valid[row, : len(places)] = True
    return {"patches": patches, "patch_coord": coordinates, "patch_valid": valid}


@pytest.mark.parametrize("changes", [pytest.param(value, id=key) for key, value in ALONE.items()])
def test_logits_are_those_of_each_image_alone(changes: dict[str, Any]) -> None:
    model = our_model(small_config(**changes)).eval()
    strips, images = strips_and_images()
    with torch.no_grad():
        together = model(strips, grids=torch.tensor(GRIDS))
        separate = torch.cat([alone(model, image)(image) for image in images])
    assert together.std() > 0.1, "logits that are all alike would prove nothing"
    torch.testing.assert_close(together, separate, **EXACT)


@pytest.mark.parametrize("changes", [pytest.param(value, id=key) for key, value in TIMM.items()])
def test_logits_and_gradients_are_timms(changes: dict[str, Any]) -> None:
    model = our_model(small_config(img_size=32, **changes))
    twin, (strips, _) = naflex(model), strips_and_images()
    ours, theirs = model(strips, grids=torch.tensor(GRIDS)), twin(as_timms(strips))
    torch.testing.assert_close(ours, theirs, **EXACT)
    labels = torch.arange(len(GRIDS))
    for logits in (ours, theirs):
        F.cross_entropy(logits, labels).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = {"norm.weight", "blocks.0.attn.qkv.weight", "blocks.2.mlp.fc1.bias"} & set(found)
    for name in names:
        torch.testing.assert_close(found[name], twin.get_parameter(name).grad, **EXACT)
    kernel = twin.embeds.proj.weight.grad.unflatten(1, (PATCH, PATCH, 3)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found["patch_embed.proj.weight"], kernel, **EXACT)
    if model.pos_embed is not None:
        table = found["pos_embed"][:, -model.shape.num_patches :]  # type: ignore[index]
        torch.testing.assert_close(table, twin.embeds.pos_embed.grad.flatten(1, 2), **EXACT)


def test_a_batch_of_one_size_is_computed_as_without_grids() -> None:
    model = our_model(small_config()).eval()
    strips, images = strips_and_images()
    with torch.no_grad():
        torch.testing.assert_close(model(strips[:1], grids=torch.tensor(GRIDS[:1])), model(images[0]), **EXACT)


@pytest.mark.parametrize("size", [2, 5, 14])
def test_tables_are_stretched_as_torch_interpolates(size: int) -> None:
    counts = [1, 2, 3, size, 9, 31]
    table = torch.randn(size, 4, generator=torch.Generator().manual_seed(size))
    places = Places.of(torch.tensor([[count, 1] for count in counts]), max(counts))
    found = places.rows.weights(size) @ table
    for count, own in zip(counts, found, strict=True):
        planes = table.T[None, :, :, None].expand(-1, -1, -1, 2)  # torch is wrong where an axis has one row
        expected = F.interpolate(planes, size=(count, 2), mode="bicubic", antialias=True)[0, :, :, 0].T
        torch.testing.assert_close(own[:count], expected, **EXACT)
        if count == size:
            assert torch.equal(own[:count], table)


def test_sizes_are_timms() -> None:
    generator = np.random.default_rng(0)
    for height, width in generator.integers(24, 500, (300, 2)).tolist():
        for length in (1, 7, 64, 256):
            _, (rows, columns) = get_image_size_for_seq((height, width), PATCH, length, eps=1e-7)
            assert native_grid(height, width, length) == (rows // PATCH, columns // PATCH), (height, width, length)


def test_the_padding_of_a_photo() -> None:
    assert padding_share(300, 300, 256) == 0
    assert padding_share(375, 500, 256) == pytest.approx(1 - 14 * 18 / 256)
