"""Our models with random weights in every tensor, and timm's model with the same weights."""

from __future__ import annotations

from typing import Any

import timm.models.vision_transformer as timm_vit
import torch
from torch import nn

from pretrain.config.schema import ModelConfig
from pretrain.models.init import init_weights
from pretrain.models.vit import VisionTransformer, build_vit

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_dim": 80}


def small_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"variant": "nano/8", "img_size": (32, 48), **SMALL, **changes})


def our_model(config: ModelConfig, num_classes: int = 11, seed: int = 0) -> VisionTransformer:
    """A model whose weights, norms and head included, are far from 0, 1 and each other."""
    model = build_vit(config, num_classes)
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
    return model


def timm_twin(model: VisionTransformer, drop_path_rate: float = 0.0) -> timm_vit.VisionTransformer:
    """timm's model of the same architecture with the same weights."""
    config, shape = model.config, model.shape
    twin = timm_vit.VisionTransformer(
        img_size=shape.img_size,
        patch_size=shape.patch,
        num_classes=model.num_classes,
        global_pool="token" if config.pool == "token" else "avg",
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_ratio=shape.mlp_dim / shape.embed_dim,
        class_token=config.class_token,
        fc_norm=False if config.pool == "norm_avg" else None,
        pos_drop_rate=config.dropout,
        proj_drop_rate=config.dropout,
        drop_path_rate=drop_path_rate,
        norm_layer=lambda dim, **options: nn.LayerNorm(dim, eps=config.layer_norm_eps, **options),
        act_layer="gelu" if config.gelu == "erf" else "gelu_tanh",
    )
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.train(model.training)


def some_images(model: VisionTransformer, num_images: int = 3, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_images, 3, *model.shape.img_size, generator=generator)
