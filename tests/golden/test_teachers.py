"""Features and tokens of foundation teachers against the library that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTImageProcessor,
)

from pretrain.assembly.objective import build_teacher
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model, init_weights, patch_features
from tests.distributed.training import experiment
from tests.golden.twins import small_config

EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
TOWERS: dict[str, Any] = {
    "DINOv2 with registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2)),
    "SigLIP": lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL, intermediate_size=64)),
}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("view", ["features", "tokens"])
def test_towers_of_transformers(tmp_path: Path, tower: str, view: str) -> None:
    """The pooled output and the last hidden state, for images in another normalisation than the teacher's."""
    torch.manual_seed(0)
    net = TOWERS[tower]().eval()
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    net.save_pretrained(tmp_path)
    mean, std = STATISTICS
    ViTImageProcessor(image_mean=list(mean), image_std=list(std), size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    images = torch.randn(2, 3, 32, 32)
    pixels = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    with torch.no_grad():
        output = net(images)
    tokens = output.last_hidden_state[:, -16:].transpose(1, 2).unflatten(2, (4, 4))
    head = {"features": {}, "tokens": {"head": "patches"}}[view]
    name = {"features": "feature_distillation", "tokens": "token_distillation"}[view]
    config = experiment(
        model=small_config(img_size=32, head_init="normal", **head).model_dump(),
        objective={"name": name, "teacher": str(tmp_path), "width": 32},
    )
    found = build_teacher(config, str(tmp_path), torch.device("cpu"), lambda line: None)((pixels - 0.5) / 0.5)
    torch.testing.assert_close(found, output.pooler_output if view == "features" else tokens, **EXACT)


TIMM: dict[str, tuple[int, dict[str, Any], Any]] = {
    "vit_small_patch14_reg4_dinov2": (
        56, {"embed_dim": 24, "depth": 2, "num_heads": 2}, lambda net, x: net.forward_features(x)[:, 5:].mT
    ),
    "eva02_tiny_patch14_224": (
        56,
        {"embed_dim": 24, "depth": 2, "num_heads": 2, "global_pool": "avg"},
        lambda net, x: net.fc_norm(net.forward_features(x))[:, 1:].mT,
    ),
    "swin_tiny_patch4_window7_224": (
        64,
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        lambda net, x: net.forward_features(x).permute(0, 3, 1, 2),
    ),
    "convnext_atto": (64, {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]}, lambda net, x: net.forward_features(x)),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_tokens_of_timms_models(name: str) -> None:
    size, kwargs, tokens = TIMM[name]
    net: Any = build_model(ModelConfig(name=f"timm/{name}", img_size=size, kwargs=kwargs), 3).eval()
    init_weights(net, 0)
    images = torch.randn(2, 3, size, size)
    sized = {} if name.startswith("convnext") else {"img_size": size}
    twin = timm.create_model(name, num_classes=3, **sized, **kwargs).eval()
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        found, expected = patch_features(net, images), tokens(twin, images)
    assert found.ndim == 4 and found.std() > 0.05
    torch.testing.assert_close(found.flatten(2), expected.flatten(2), **EXACT)


def test_a_network_without_normed_tokens_is_named() -> None:
    kwargs = {"embed_dim": 24, "stages": (1, 1, 1, 1)}
    net = build_model(ModelConfig(name="timm/hiera_tiny_224", img_size=224, kwargs=kwargs), 3).eval()
    with pytest.raises(ConfigError, match="timm gives no normed feature map of timm/hiera_tiny_224"):
        patch_features(net, torch.zeros(1, 3, 224, 224))
