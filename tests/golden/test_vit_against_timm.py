"""Our Vision Transformer against timm's with the same weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer_hybrid import _resnetv2
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.cost import num_parameters
from pretrain.models.init import initial_value
from pretrain.models.layers.patch_drop import kept_patches
from pretrain.models.variants import VARIANTS
from pretrain.models.vit import build_vit
from tests.golden.twins import our_model, small_config, some_images, timm_twin, timms_name

EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}

KINDS: dict[str, dict[str, Any]] = {
    "token": {"pool": "token"},
    "token, square": {"pool": "token", "img_size": 32},
    "norm_avg with class token": {"pool": "norm_avg"},
    "norm_avg without class token": {"pool": "norm_avg", "class_token": False},
    "avg_norm with class token": {"pool": "avg_norm"},
    "avg_norm without class token": {"pool": "avg_norm", "class_token": False},
    "tanh gelu": {"gelu": "tanh"},
    "another epsilon": {"layer_norm_eps": 1e-3},
    "another patch": {"variant": "nano/16", "img_size": (64, 48)},
    "registers": {"num_registers": 3},
    "registers, patches alone have positions": {"num_registers": 2, "pos_embed_prefix": False},
    "registers without class token": {"num_registers": 2, "class_token": False, "pool": "avg_norm"},
    "LayerScale": {"layer_scale": 0.1},
    "normalised queries and keys": {"qk_norm": True},
    "attention pooling": {"pool": "map"},
    "attention pooling without class token": {"pool": "map", "class_token": False, "num_registers": 1},
    "no positions": {"pos_embed": "none"},
    "timm's sincos": {"pos_embed": "sincos2d_timm"},
    "timm's sincos without class token": {"pos_embed": "sincos2d_timm", "class_token": False, "pool": "norm_avg"},
    "relative bias": {"pos_embed": "relative_bias"},
    "relative bias without class token": {"pos_embed": "relative_bias", "class_token": False, "pool": "avg_norm"},
    "shared relative bias": {"pos_embed": "relative_bias", "pos_embed_placement": "every_layer_shared"},
    "relative bias with LayerScale": {"pos_embed": "relative_bias", "layer_scale": 0.1, "qk_norm": True},
    "rotary": {"pos_embed": "none", "rope": "axial"},
    "rotary, registers, qk norm": {
        "pos_embed": "none",
        "rope": "axial",
        "num_registers": 2,
        "qk_norm": True,
        "pool": "avg_norm",
    },
    "rotary with another temperature": {"pos_embed": "none", "rope": "axial", "rope_temperature": 100.0},
    "rotary scaled to another grid": {"pos_embed": "none", "rope": "axial", "rope_grid": (3, 5)},
    "rotary beside a table of the patches": {"rope": "axial", "pos_embed_prefix": False, "layer_scale": 0.1},
    "mixed rotary": {"pos_embed": "none", "rope": "mixed"},
    "mixed rotary beside a table": {"rope": "mixed", "layer_scale": 0.1, "num_registers": 2, "qk_norm": True},
    "RMSNorm": {"norm": "rms_norm", "qk_norm": True},
    "RMSNorm in attention pooling": {"norm": "rms_norm", "pool": "map", "layer_norm_eps": 1e-3},
    "SwiGLU": {"mlp": "swiglu"},
    "SwiGLU, rotary": {"mlp": "swiglu", "rope": "axial", "pool": "avg_norm", "class_token": False},
    "no biases of q, k, v": {"qkv_bias": False, "layer_scale": 0.1, "num_registers": 1, "class_token": False,
        "pool": "avg_norm"},
    "gated attention": {"gated_attention": True},
    "parallel": {"block": "parallel"},
    "parallel, all options": {"block": "parallel", "layer_scale": 0.1, "qk_norm": True, "norm": "rms_norm",
        "gelu": "tanh"},
    "gated attention without biases, rotary": {"gated_attention": True, "qkv_bias": False, "rope": "axial"},
    "ViT-5": {"norm": "rms_norm", "qkv_bias": False, "qk_norm": True, "layer_scale": 1e-1, "num_registers": 4,
        "pos_embed_prefix": False, "rope": "axial", "rope_register_temperature": 100.0},
    "hybrid of stride 16": {"variant": "R50+nano/16", "img_size": (32, 64)},
    "hybrid of stride 32": {"variant": "R50+nano/32", "img_size": (32, 96), "pool": "avg_norm"},
}  # fmt: skip


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return small_config(**request.param)


def test_logits_and_features_equal_timm(config: ModelConfig) -> None:
    model = our_model(config).eval()
    twin, images = timm_twin(model), some_images(model)
    with torch.no_grad():
        tokens = model.forward_features(images)
        torch.testing.assert_close(tokens, twin.forward_features(images), **EXACT)
        torch.testing.assert_close(
            model.forward_head(tokens, pre_logits=True), twin.forward_head(tokens, pre_logits=True), **EXACT
        )
        logits = model(images)
        assert logits.std() > 0.1, "logits that are all alike would prove nothing"
        torch.testing.assert_close(logits, twin(images), **EXACT)


def test_intermediates_equal_timm(config: ModelConfig) -> None:
    model = our_model(config).eval()
    twin, images = timm_twin(model), some_images(model)
    options: dict[str, Any] = {"output_fmt": "NLC", "intermediates_only": True}
    options["return_prefix_tokens"] = model.shape.num_prefix_tokens > 0
    with torch.no_grad():
        ours = model.forward_intermediates(images)
        pairs: list[Any] = list(twin.forward_intermediates(images, **options))
        theirs = [torch.cat(pair[::-1], dim=1) if isinstance(pair, tuple) else pair for pair in pairs]
    assert len(ours) == len(theirs) == model.shape.depth
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(mine, other, **EXACT, msg=lambda text, i=index: f"block {i}: {text}")


@pytest.mark.quick
def test_gradients_equal_timm(config: ModelConfig) -> None:
    model = our_model(config)
    twin, images = timm_twin(model), some_images(model)
    labels = torch.tensor([1, 0, 7])
    for each in (model, twin):
        nn.functional.cross_entropy(each(images), labels).backward()
    others = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(
            parameter.grad,
            others[timms_name(twin, name)].grad,
            **EXACT,
            msg=lambda text, n=name: f"gradient of {n}: {text}",
        )


@pytest.mark.parametrize("changes", [{}, {"mlp": "swiglu"}, {"block": "parallel"}, {"rope": "axial"}])
def test_dropout_sits_where_timm_puts_it(changes: dict[str, Any]) -> None:
    """With the same generator state both draw the same masks only if they drop the same tensors in the same order."""
    model = our_model(small_config(dropout=0.3, **changes))
    twin, images = timm_twin(model), some_images(model)
    outputs = []
    for each in (model, twin):
        torch.manual_seed(5)
        outputs.append(each(images))
    torch.testing.assert_close(outputs[0], outputs[1], **EXACT)
    torch.manual_seed(6)
    assert not torch.allclose(model(images), outputs[0]), "another state must drop something else"


class Recorded(nn.Module):
    """timm's DropPath by its own formula, with the mask taken from a table instead of the generator."""

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales.view(-1, 1, 1)


@pytest.mark.parametrize("block", ["sequential", "parallel"])
def test_drop_path_tensor_equals_timms_drop_path_with_the_same_mask(block: str) -> None:
    model = our_model(small_config(block=block))
    twin, images = timm_twin(model), some_images(model, num_images=4)
    keep = 0.75
    torch.manual_seed(3)
    scales = torch.empty(4, model.shape.depth, 2).bernoulli_(keep).div_(keep)
    assert 0 < (scales == 0).sum() < scales.numel()
    for index, theirs in enumerate(twin.blocks):
        theirs.drop_path = theirs.drop_path1 = Recorded(scales[:, index, 0])
        theirs.drop_path2 = Recorded(scales[:, index, 1])
    torch.testing.assert_close(model(images, scales), twin(images), **EXACT)


@pytest.mark.parametrize("changes", [{}, {"rope": "axial", "num_registers": 1}, {"pool": "map", "class_token": False}])
def test_dropped_patches_are_timms(changes: dict[str, Any]) -> None:
    """timm's own module, which keeps the patches with the smallest draws, is given draws that keep ours."""
    model = our_model(small_config(patch_drop=0.5, **changes))
    twin, images = timm_twin(model), some_images(model, num_images=4)
    kept = kept_patches(np.arange(4), model.shape, seed=3)
    assert kept is not None and kept.shape == (4, 12)
    with mock.patch("torch.randn", return_value=torch.ones(4, 24).scatter(1, kept, 0.0)):
        expected = twin(images)
    torch.testing.assert_close(model(images, kept=kept), expected, **EXACT)
    assert not torch.allclose(model(images), expected, atol=1e-3), "all patches give other logits"


def test_drop_path_scales_are_what_timm_draws() -> None:
    """timm's own module, run on ones, gives the scale of each image: 0 or 1 / keep, as ours."""
    torch.manual_seed(0)
    drawn = timm.layers.DropPath(0.25).train()(torch.ones(4000, 1, 1)).flatten()
    assert set(drawn.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("Ti/16", "vit_tiny_patch16_224"),
        ("S/32", "vit_small_patch32_224"),
        ("B/16", "vit_base_patch16_224"),
        ("L/16", "vit_large_patch16_224"),
        ("H/14", "vit_huge_patch14_224"),
        ("g/14", "vit_giant_patch14_224"),
        ("G/14", "vit_gigantic_patch14_224"),
    ],
)
def test_published_sizes_have_timms_tensors(variant: str, name: str) -> None:
    with torch.device("meta"):
        ours = build_vit(ModelConfig(variant=variant), 1000).state_dict()
        theirs = timm.create_model(name, num_classes=1000).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert list(ours) == list(theirs)


def test_patch_convolution_initialises_as_timms_jax_scheme() -> None:
    """lecun_normal of the patch convolution and zero biases: the parts that timm's `jax` scheme has right."""
    config = small_config(embed_dim=512, num_heads=8)
    ours = initial_value("patch_embed.proj.weight", (512, 3, 8, 8), config, 0)
    theirs = torch.empty(512, 3, 8, 8)
    timm.layers.lecun_normal_(theirs)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.02)
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)


def _hybrid(size: str, stem_blocks: tuple[int, ...]) -> nn.Module:
    """A hybrid that timm can make but does not name: its own parts, put together as its named ones are."""
    embed_dim, depth, _, num_heads = VARIANTS[size]
    embed = functools.partial(timm.layers.HybridEmbed, backbone=_resnetv2(stem_blocks))
    return timm.models.VisionTransformer(
        patch_size=1, embed_dim=embed_dim, depth=depth, num_heads=num_heads, embed_layer=embed
    )


@pytest.mark.parametrize(
    ("variant", "twin"),
    [
        ("R50+B/16", lambda: timm.create_model("vit_base_r50_s16_224", num_classes=1000)),
        ("R50+L/32", lambda: timm.create_model("vit_large_r50_s32_224", num_classes=1000)),
        ("R50+B/32", lambda: _hybrid("B", (3, 4, 6, 3))),
        ("R50+L/16", lambda: _hybrid("L", (3, 4, 9))),
    ],
)
def test_hybrids_have_timms_tensors(variant: str, twin: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        ours, theirs = build_vit(ModelConfig(variant=variant), 1000).state_dict(), twin().state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert list(ours) == list(theirs)
    assert num_parameters(ModelConfig(variant=variant), 1000) == sum(t.numel() for t in theirs.values())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_medium_patch16_reg4_gap_256", {"variant": "M/16", "img_size": 256, "class_token": False,
            "num_registers": 4, "pos_embed_prefix": False, "pool": "avg_norm", "layer_scale": 1e-5}),
        ("vit_base_patch16_siglip_gap_224", {"variant": "B/16", "class_token": False, "pool": "norm_avg"}),
        ("vit_so150m_patch16_reg4_map_256", {"variant": "So150m/16", "img_size": 256, "class_token": False,
            "num_registers": 4, "pool": "map"}),
        ("vit_so150m2_patch16_reg1_gap_256", {"variant": "So150m2/16", "img_size": 256, "class_token": False,
            "num_registers": 1, "pool": "avg_norm", "qkv_bias": False, "layer_scale": 1e-5}),
        ("vit_so400m_patch14_siglip_224", {"variant": "So400m/14", "class_token": False, "pool": "map"}),
        ("vit_pwee_patch16_reg1_gap_256", {"variant": "B/16", "embed_dim": 256, "depth": 16, "num_heads": 4,
            "mlp_dim": 1280, "img_size": 256, "class_token": False, "num_registers": 1, "pos_embed_prefix": False,
            "pool": "avg_norm", "layer_scale": 1e-5, "block": "parallel"}),
        ("vit_giant_patch14_dinov2", {"variant": "B/14", "embed_dim": 1536, "depth": 40, "num_heads": 24,
            "mlp_dim": 4096, "img_size": 518, "layer_scale": 1e-5, "mlp": "swiglu"}),
        ("deit3_base_patch16_224", {"variant": "B/16", "layer_scale": 1e-6, "pos_embed_prefix": False}),
        ("vit_base_patch16_224", {"variant": "B/16"}),
    ],
)  # fmt: skip
def test_options_have_timms_tensors(name: str, changes: dict[str, Any]) -> None:
    config = ModelConfig(**changes)
    with torch.device("meta"):
        ours = build_vit(config, 1000).state_dict()
        theirs = timm.create_model(name, num_classes=1000).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert num_parameters(config, 1000) == sum(t.numel() for t in theirs.values())
