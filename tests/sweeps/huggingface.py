"""Every class of transformers that is read, built small with random weights, and what it computes.

Legend: B images · C H W · K classes · D numbers of a feature.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import ViTImageProcessor

from tests.golden.exchange import filled

NUM_CLASSES = 5
_SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
_SMALL = {**_SIZES, "image_size": 32, "patch_size": 8}
_DINOV2 = {name: value for name, value in _SMALL.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
_SIGLIP2 = {**_SIZES, "num_patches": 16, "patch_size": 8}
_MAE = {f"decoder_{name}": value for name, value in _SIZES.items()} | {"mask_ratio": 0.0}
_TEXT = {**_SIZES, "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}


class Case(NamedTuple):
    """One architecture.

    Attributes:
        kind: the class of transformers.
        settings: of its config.
        family: what ``model.name`` of the weights read begins with.
        more: arguments of its constructor.
        outputs: the numbers that the network read must compute from images, if not logits or the pooled output.
    """

    kind: str
    settings: dict[str, Any]
    family: str = "vit"
    more: Mapping[str, Any] = MappingProxyType({})
    outputs: Callable[[Any, Tensor], Tensor] | None = None


def class_token(net: Any, images: Tensor) -> Tensor:
    return net(images).last_hidden_state[:, 0]


def mean_token(net: Any, images: Tensor) -> Tensor:
    return net(images).last_hidden_state.mean(1)


def naflex(net: Any, images: Tensor) -> Tensor:
    """SigLIP 2 takes patches, whose pixels are rows, columns and channels, with the shape of their grid."""
    side = 8
    cut = images.unfold(2, side, side).unfold(3, side, side)  # B C h w P P
    patches = cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([cut.shape[2:4]] * len(images))
    out = net(patches, pixel_attention_mask=torch.ones(patches.shape[:2]), spatial_shapes=shapes)
    return out.logits if hasattr(out, "logits") else out.pooler_output


def of_tower(net: Any, images: Tensor) -> Tensor:
    """The pooled output of the tower of a model of images and text."""
    return net.vision_model(images).pooler_output


def of_encoder(net: Any, images: Tensor) -> Tensor:
    return class_token(net.vit, images)


CASES: dict[str, Case] = {
    "ViT": Case("ViTForImageClassification", _SMALL),
    "ViT, oblong, tanh GELU": Case(
        "ViTForImageClassification", {**_SMALL, "image_size": [16, 32], "hidden_act": "gelu_new"}
    ),
    "ViT, pooler": Case("ViTModel", _SMALL),
    "ViT, no pooler": Case("ViTModel", _SMALL, more={"add_pooling_layer": False}, outputs=class_token),
    "ViT, mask token": Case("ViTModel", _SMALL, more={"use_mask_token": True}),
    "ViT, masked": Case("ViTForMaskedImageModeling", {**_SMALL, "encoder_stride": 8}, outputs=of_encoder),
    "ViT-MSN": Case("ViTMSNForImageClassification", _SMALL),
    "ViT-MSN, headless": Case("ViTMSNModel", _SMALL, outputs=class_token),
    "ViT-MAE": Case("ViTMAEModel", {**_SMALL, **_MAE}, outputs=class_token),
    "ViT-MAE, pretraining": Case("ViTMAEForPreTraining", {**_SMALL, **_MAE}, outputs=of_encoder),
    "DeiT": Case("DeiTForImageClassification", _SMALL),
    "DeiT, distilled": Case("DeiTForImageClassificationWithTeacher", _SMALL),
    "DeiT, headless": Case("DeiTModel", _SMALL),
    "DINOv2": Case("Dinov2Model", _DINOV2),
    "DINOv2, registers": Case("Dinov2WithRegistersModel", {**_DINOV2, "num_register_tokens": 3}),
    "SigLIP": Case("SiglipVisionModel", _SMALL),
    "SigLIP, no pooling": Case("SiglipVisionModel", {**_SMALL, "vision_use_head": False}, outputs=mean_token),
    "SigLIP, so400m/14": Case(
        "SiglipVisionModel",
        {**_SIZES, "hidden_size": 1152, "num_attention_heads": 16, "intermediate_size": 4304, "num_hidden_layers": 1}
        | {"image_size": 28, "patch_size": 14},
    ),
    "SigLIP, with text": Case("SiglipModel", {"vision_config": _SMALL, "text_config": _TEXT}, outputs=of_tower),
    "SigLIP, classifier": Case("SiglipForImageClassification", {"vision_config": _SMALL, "text_config": _TEXT}),
    "SigLIP 2": Case("Siglip2VisionModel", _SIGLIP2, outputs=naflex),
    "SigLIP 2, classifier": Case(
        "Siglip2ForImageClassification", {"vision_config": _SIGLIP2, "text_config": _TEXT}, outputs=naflex
    ),
}


_CLIP = {**_SMALL, "projection_dim": 12}
_BOTH = {"vision_config": _CLIP, "text_config": _TEXT, "projection_dim": 12}
_BEIT = {**_SMALL, "use_relative_position_bias": True, "layer_scale_init_value": 0.1}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 1], "num_heads": [2, 3], "window_size": 4}
_DINOV3 = {**_SMALL, "num_register_tokens": 2}

CASES |= {
    "ViT, no bias": Case("ViTForImageClassification", {**_SMALL, "qkv_bias": False}, "hf/"),
    "ViT, no bias, no pooler": Case(
        "ViTModel", {**_SMALL, "qkv_bias": False}, "hf/", {"add_pooling_layer": False}, class_token
    ),
    "ViT, quick GELU": Case("ViTForImageClassification", {**_SMALL, "hidden_act": "quick_gelu"}, "hf/"),
    "DINOv2, SwiGLU": Case("Dinov2Model", {**_DINOV2, "use_swiglu_ffn": True}, "hf/"),
    "DINOv2, classifier": Case("Dinov2ForImageClassification", _DINOV2, "hf/"),
    "DINOv2, registers, classifier": Case("Dinov2WithRegistersForImageClassification", _DINOV2, "hf/"),
    "DINOv3": Case("DINOv3ViTModel", _DINOV3, "hf/"),
    "DINOv3, gated": Case("DINOv3ViTModel", {**_DINOV3, "use_gated_mlp": True, "hidden_act": "silu"}, "hf/"),
    "CLIP": Case("CLIPVisionModel", _CLIP, "hf/"),
    "CLIP, with text": Case("CLIPModel", _BOTH, "hf/", outputs=of_tower),
    "CLIP, projection": Case(
        "CLIPVisionModelWithProjection", _CLIP, "hf/", outputs=lambda net, images: net(images).image_embeds
    ),
    "CLIP, classifier": Case("CLIPForImageClassification", _BOTH, "hf/"),
    "BEiT": Case("BeitForImageClassification", _BEIT, "hf/"),
    "BEiT, shared bias": Case(
        "BeitForImageClassification",
        {**_BEIT, "use_relative_position_bias": False, "use_shared_relative_position_bias": True},
        "hf/",
    ),
    "BEiT, headless": Case("BeitModel", {**_BEIT, "use_absolute_position_embeddings": True}, "hf/"),
    "Data2Vec": Case("Data2VecVisionForImageClassification", _BEIT, "hf/"),
    "Swin": Case("SwinForImageClassification", _SWIN, "hf/"),
    "Swin, headless": Case("SwinModel", _SWIN, "hf/"),
    "Swin v2": Case("Swinv2ForImageClassification", _SWIN, "hf/"),
    "Swin v2, headless": Case("Swinv2Model", _SWIN, "hf/"),
    "I-JEPA": Case("IJepaForImageClassification", _SMALL, "hf/"),
    "Hiera": Case(
        "HieraForImageClassification",
        {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "image_size": [64, 64]},
        "hf/",
    ),
    "PVT v2": Case(
        "PvtV2ForImageClassification",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2], "image_size": 64},
        "hf/",
    ),
    "ConvNeXt v2": Case(
        "ConvNextV2ForImageClassification",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64},
        "hf/",
    ),
    "ResNet": Case(
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "hf/",
    ),
    "SegFormer": Case(
        "SegformerForImageClassification",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
        "hf/",
    ),
}


@functools.cache
def theirs(name: str) -> Any:
    """The network of a case, in evaluation mode, with random numbers in every tensor."""
    case = CASES[name]
    kind: Any = getattr(transformers, case.kind)
    config = kind.config_class(**case.settings, num_labels=NUM_CLASSES)
    return filled(kind(config, **case.more))


def save(name: str, folder: Path, **options: Any) -> Any:
    """Saves a case with its own library; returns the network."""
    net = theirs(name)
    net.save_pretrained(folder, **options)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return net


@torch.no_grad()
def outputs_of(name: str, net: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K), or features (B, D), of transformers' network."""
    case = CASES[name]
    if case.outputs is not None:
        return case.outputs(net, images)
    found: Any = net(images)
    return found.logits if hasattr(found, "logits") else found.pooler_output
