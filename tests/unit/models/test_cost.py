"""Parameters, multiply-adds and FLOPs of the papers, and bytes against what torch really keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.live_storages import LiveStorages
from pretrain.config.schema.model import ModelConfig
from pretrain.models.cost import (
    activation_bytes,
    forward_macs,
    num_parameters,
    recomputed_macs,
)
from pretrain.models.families.registry import build_model, training_flops
from pretrain.models.layers.patch_drop import kept_patches
from pretrain.models.tensor_shapes import parameter_shapes
from pretrain.objectives.feature_distillation import FeatureAndTokenDistillation, TokenDistillation
from pretrain.objectives.masked_autoencoding import MaskedAutoencoding
from pretrain.objectives.protocol import MicroBatch
from tests.unit.sharding.steps import step

JFT_IMAGES = 303e6
AUTOENCODER = {"embed_dim": 128, "depth": 3, "num_heads": 4}


@pytest.mark.parametrize(
    ("variant", "with_head", "without_head_millions"),
    [("B/16", 86_567_656, 85.80), ("L/16", 304_326_632, 303.30), ("H/14", 632_045_800, 630.76)],
)
def test_published_parameter_counts(variant: str, with_head: int, without_head_millions: float) -> None:
    config = ModelConfig(variant=variant)
    assert num_parameters(config, 1000) == with_head
    assert round(num_parameters(config, 1000, with_head=False) / 1e6, 2) == without_head_millions


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "B/16"},
        {"variant": "H/14", "representation_size": "width"},
        {"variant": "g/14", "class_token": False, "pool": "norm_avg"},
        {"variant": "S/16", "img_size": (160, 320), "pool": "avg_norm", "representation_size": 99},
        {"variant": "nano/8", "img_size": 32, "mlp_dim": 50},
        {"variant": "G/14", "pool": "map", "class_token": False, "qk_norm": True, "layer_scale": 1e-4},
        {"variant": "R50+L/32", "num_registers": 4},
        {"variant": "S/16", "norm": "rms_norm", "mlp": "swiglu", "qk_norm": True, "pool": "map"},
        {"variant": "S/16", "rope": "mixed", "gated_attention": True, "qkv_bias": False},
        {"variant": "R50+S/32", "norm": "rms_norm"},
        {"variant": "So150m/16", "block": "parallel", "layer_scale": 0.1, "qk_norm": True},
        {"variant": "S/16", "head": "dense", "pool": "norm_avg"},
        {"variant": "S/16", "head": "patches", "pool": "avg_norm"},
        {"variant": "S/16", "head": "patches", "representation_size": 200},
        {"variant": "S/16", "head": "pooled_and_patches", "pool": "map"},
        {"variant": "S/16", "pos_embed": "sincos2d_mae", "num_registers": 2, "decoder": {}},
        {"variant": "S/16", "norm": "rms_norm", "mlp": "swiglu", "pool": "norm_avg", "decoder": {"depth": 2}},
    ],
)
def test_count_and_names_equal_the_built_model(changes: dict[str, Any]) -> None:
    config = ModelConfig(**changes)
    with torch.device("meta"):
        model = build_model(config, 21_843)
    assert num_parameters(config, 21_843) == sum(p.numel() for p in model.parameters())
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(built.items()) == list(parameter_shapes(config, 21_843).items())


@pytest.mark.parametrize(("variant", "gmac"), [("B/16", 17.5), ("L/16", 61.6), ("H/14", 167.4)])
def test_published_multiply_adds(variant: str, gmac: float) -> None:
    """DeiT III's README, within its rounding and 0.5 %."""
    assert forward_macs(ModelConfig(variant=variant), 1000) / 1e9 == pytest.approx(gmac, rel=5e-3)


@pytest.mark.parametrize(("variant", "gflops"), [("B/16", 111.3), ("L/16", 382.8)])
def test_published_flops_at_384(variant: str, gflops: float) -> None:
    """Scaling ViT, Table 2."""
    assert 2 * forward_macs(ModelConfig(variant=variant, img_size=384), 1000) / 1e9 == pytest.approx(gflops, rel=5e-3)


@pytest.mark.parametrize(
    ("variant", "epochs", "exaflops"), [("B/16", 7, 224), ("L/16", 7, 783), ("L/16", 14, 1567), ("H/14", 14, 4262)]
)
def test_published_training_cost(variant: str, epochs: int, exaflops: float) -> None:
    """ViT, Table 6: pretraining on JFT-300M."""
    flops = training_flops(ModelConfig(variant=variant), 18_291, JFT_IMAGES * epochs)
    assert flops / 1e18 == pytest.approx(exaflops, rel=5e-3)


def kept_bytes(config: ModelConfig, num_classes: int, precision: str, checkpointing: str, num_images: int) -> int:
    """Bytes of what lives between the forward and the backward pass and was made after the weights."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model: Any = build_model(config, num_classes).to(dtype)
    model.set_grad_checkpointing(checkpointing)
    pixels = model.shape.img_size if config.head == "dense" else ()
    labels = torch.zeros(num_images, *pixels, dtype=torch.uint8)
    live = LiveStorages(model.parameters())
    with live, torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        images = torch.randn(num_images, 3, *model.shape.img_size)
        if config.decoder is not None:
            loss = MaskedAutoencoding(model.shape, 0)(model, MicroBatch(images, labels, slots=torch.arange(num_images)))
        elif config.head in ("patches", "pooled_and_patches"):
            tokens = torch.randn(num_images, num_classes, *model.shape.grid)
            loss = _imitation(config, model, tokens)(model, MicroBatch(images, labels))
            del tokens
        else:
            kept = kept_patches(np.arange(num_images), model.shape, seed=0)
            options = {} if kept is None else {"kept": kept}
            loss = torch.nn.functional.cross_entropy(model(images, **options), labels.long())
        del images
    assert loss.requires_grad  # it holds what the backward pass needs
    return live.total()


def _imitation(config: ModelConfig, model: Any, tokens: torch.Tensor) -> Any:
    if config.head == "patches":
        return TokenDistillation(lambda images: tokens)
    features = torch.randn(tokens.shape[:2])
    return FeatureAndTokenDistillation(lambda images: (features, tokens), model.shape.grid)


POLICIES = ["none", "full", "selective", "every_2", "every_4"]


def assert_activations(changes: dict[str, Any], precision: Any, checkpointing: str) -> None:
    """The difference of two batch sizes: what does not grow with the batch are copies of weights."""
    config = ModelConfig(**{"variant": "Ti/16", "img_size": 128, "depth": 6, **changes})
    totals = [kept_bytes(config, 1000, precision, checkpointing, num_images) for num_images in (2, 4)]
    per_image = (totals[1] - totals[0]) / 2
    expected = activation_bytes(config, 1000, precision=precision, checkpointing=checkpointing)
    assert expected == pytest.approx(per_image, rel=0.03)


@pytest.mark.parametrize("checkpointing", POLICIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "token"},
        {"pool": "avg_norm", "representation_size": "width", "img_size": (96, 192)},
        {"pool": "norm_avg", "class_token": False, "mlp_dim": 384},
        {"pool": "map", "num_registers": 3, "layer_scale": 0.1, "qk_norm": True, "pos_embed": "none", "rope": "axial"},
    ],
)
def test_activations_are_what_stays_alive(changes: dict[str, Any], precision: Any, checkpointing: str) -> None:
    assert_activations(changes, precision, checkpointing)


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({"qk_norm": True}, "autocast"),
        ({"qk_norm": True}, "bf16"),
        ({"pos_embed": "none", "rope": "axial"}, "fp32"),
        ({"rope": "mixed"}, "bf16"),
        ({"rope": "mixed", "qk_norm": True}, "fp32"),
        ({"mlp": "swiglu"}, "bf16"),
        ({"mlp": "swiglu", "layer_scale": 0.1}, "autocast"),
        ({"patch_drop": 0.5}, "fp32"),
        ({"patch_drop": 0.5, "rope": "axial", "pool": "map"}, "bf16"),
        ({"block": "parallel"}, "bf16"),
        ({"block": "parallel", "layer_scale": 0.1, "qk_norm": True}, "autocast"),
        ({"gated_attention": True}, "bf16"),
        ({"gated_attention": True, "layer_scale": 0.1}, "autocast"),
        ({"pos_embed": "relative_bias"}, "bf16"),
        ({"pos_embed": "relative_bias", "pos_embed_placement": "every_layer_shared"}, "fp32"),
        ({"pos_embed": "relative_1d"}, "bf16"),
        ({"pos_embed": "relative_1d"}, "fp32"),
        ({"pos_embed_placement": "every_layer"}, "autocast"),
        ({"pos_embed": "sincos2d_timm", "pos_embed_placement": "every_layer_shared"}, "fp32"),
        ({"head": "dense", "img_size": 64}, "fp32"),
        ({"head": "dense", "img_size": 64, "pool": "avg_norm"}, "bf16"),
        ({"head": "patches", "img_size": 64}, "autocast"),
        ({"head": "patches", "img_size": 64, "representation_size": "width"}, "fp32"),
        ({"head": "pooled_and_patches", "img_size": 64}, "fp32"),
        ({"patch_drop": 0.75, "decoder": AUTOENCODER}, "fp32"),
        ({"patch_drop": 0.5, "decoder": AUTOENCODER, "num_registers": 2}, "bf16"),
        ({"patch_drop": 0.5, "decoder": AUTOENCODER, "pool": "norm_avg"}, "autocast"),
        ({"variant": "R50+Ti/16", "depth": 2, "img_size": 64}, "fp32"),
        ({"variant": "R50+Ti/32", "depth": 2, "img_size": 64}, "autocast"),
    ],
)
def test_activations_of_every_option(changes: dict[str, Any], precision: Any, checkpointing: str) -> None:
    assert_activations(changes, precision, checkpointing)


def test_what_is_recomputed() -> None:
    """A block again without its last matrix, of every k-th block; the selective policy repeats no matrix product."""
    config = ModelConfig(variant="L/16")
    whole = forward_macs(config, 1000)
    full = recomputed_macs(config, "full")
    assert 0.65 < full / whole < 0.7
    assert recomputed_macs(config, "every_3") * 3 == full
    assert recomputed_macs(config, "none") == recomputed_macs(config, "selective") == 0
    kept = {policy: activation_bytes(config, 1000, precision="bf16", checkpointing=policy) for policy in POLICIES}
    assert kept["full"] < kept["every_2"] < kept["every_4"] < kept["none"] and kept["selective"] < 0.75 * kept["none"]


@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_copies_of_weights_are_what_autograd_keeps(precision: Any) -> None:
    config, num_classes = ModelConfig(variant="Ti/16", img_size=64, depth=4), 1000
    total = kept_bytes(config, num_classes, precision, "none", 1)
    kept = step(config, num_classes, precision=precision).activations
    assert kept == pytest.approx(total, rel=0.05)


def test_checkpointing_and_dropout_change_the_activations() -> None:
    config = ModelConfig(variant="L/16")
    none = activation_bytes(config, 1000, precision="bf16")
    full = activation_bytes(config, 1000, precision="bf16", checkpointing="full")
    assert full < none / 10
    with_dropout = ModelConfig(variant="L/16", dropout=0.1)
    masks = activation_bytes(with_dropout, 1000, precision="bf16") - none
    tokens, width, mlp_dim, depth = 197, 1024, 4096, 24
    assert masks == depth * tokens * (2 * width + mlp_dim) + tokens * width
