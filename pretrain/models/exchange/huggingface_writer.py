"""Writes our Vision Transformers for transformers: the class that has the model's tokens, its names and config.json.

ViT's and DeiT's classifiers, ViTModel with its pooler, DINOv2's and SigLIP's towers, and SigLIP's classifier on the
mean of the tokens. The names are those of the released files, which every version reads. transformers' LayerNorms have
other epsilons by default, so ``layer_norm_eps`` is always written.

Legend: D width · N patch tokens.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.config.schema.model import ModelConfig
from pretrain.models.exchange.facts import to_config
from pretrain.models.exchange.huggingface_folder import CONFIG, PREPROCESSOR, WEIGHTS
from pretrain.models.exchange.huggingface_towers import TOWERS
from pretrain.models.exchange.preprocessor import preprocessor_of
from pretrain.models.exchange.translation import refusal, refuse_inexpressible
from pretrain.models.interop import expected_shapes
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.variants import representation_size

PROGRAM = "Hugging Face"
_NAMES_OF_GELU = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+?)(\.(?:weight|bias|gamma))")
_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "pre_logits.fc": "pooler.dense",
}
_ATTENTION = {
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
}


@dataclass(frozen=True)
class Form:
    """The names of a kind of model.

    Attributes:
        block: prefix of a block's tensors, with its number to be filled in.
        of_block: our part of a block → theirs; attention's q, k and v apart.
        others: our tensor or layer → theirs.
        carried: settings of ModelConfig that the kind expresses.
    """

    block: str
    of_block: Mapping[str, str]
    others: Mapping[str, str]
    carried: frozenset[str] = field(default_factory=frozenset)


_VIT = Form(
    "encoder.layer.{}.",
    {
        **_ATTENTION, "norm1": "layernorm_before", "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    },
    {**_EMBEDDINGS, "reg_token": "embeddings.distillation_token"},
    frozenset({"distilled", "num_registers"}),
)  # fmt: skip
_DINOV2 = Form(
    "encoder.layer.{}.",
    {
        **_ATTENTION, "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
        "ls1": "layer_scale1.lambda1", "ls2": "layer_scale2.lambda1",
    },
    {**_EMBEDDINGS, "reg_token": "embeddings.register_tokens", "mask_token": "embeddings.mask_token"},
    frozenset({"layer_scale", "num_registers", "pos_embed_prefix"}),
)  # fmt: skip
_SIGLIP = Form(
    "encoder.layers.{}.",
    {
        **{f"attn.{letter}": f"self_attn.{letter}_proj" for letter in "qkv"}, "attn.proj": "self_attn.out_proj",
        "norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    },
    {
        "pos_embed": "embeddings.position_embedding.weight", "patch_embed.proj": "embeddings.patch_embedding",
        "norm": "post_layernorm", "attn_pool.latent": "head.probe", "attn_pool.qkv": "head.attention.in_proj_",
        "attn_pool.proj": "head.attention.out_proj", "attn_pool.norm": "head.layernorm",
        "attn_pool.mlp.fc1": "head.mlp.fc1", "attn_pool.mlp.fc2": "head.mlp.fc2",
    },
    frozenset({"class_token"}),
)  # fmt: skip
FORMS: dict[str, Form] = {
    "ViTForImageClassification": _VIT,
    "DeiTForImageClassification": _VIT,
    "DeiTForImageClassificationWithTeacher": _VIT,
    "ViTModel": Form(_VIT.block, _VIT.of_block, _VIT.others, frozenset({"representation_size"})),
    "Dinov2Model": _DINOV2,
    "Dinov2WithRegistersModel": _DINOV2,
    "SiglipVisionModel": _SIGLIP,
    "SiglipForImageClassification": _SIGLIP,
}


def class_for(model: ModelConfig, num_classes: int) -> str:
    """The class of transformers that has this model's tokens."""
    if model.distilled:
        return "DeiTForImageClassificationWithTeacher"
    if model.layer_scale is not None and not num_classes:
        return "Dinov2WithRegistersModel" if model.num_registers else "Dinov2Model"
    if not model.class_token:
        return "SiglipForImageClassification" if num_classes else "SiglipVisionModel"
    if model.representation_size is not None and not num_classes:
        return "ViTModel"
    return "DeiTForImageClassification" if model.num_registers else "ViTForImageClassification"


def write_vit(folder: Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
    """As ``huggingface.write_huggingface``, for our Vision Transformers."""
    kind = class_for(metadata.model, metadata.num_classes)
    _refuse(metadata, kind)
    ours = {name: state[name].detach().cpu() for name in expected_shapes(metadata) if name != "mask_token"}
    tensors = _theirs(_in_their_shapes(ours, metadata, kind), kind)
    texts = {CONFIG: _config(metadata, kind), PREPROCESSOR: preprocessor_of(metadata)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse(metadata: WeightsMetadata, kind: str) -> None:
    model, shape, form = metadata.model, metadata.shape, FORMS[kind]
    if model.layer_scale is not None and metadata.num_classes:
        raise refusal(
            PROGRAM,
            "layer_scale",
            model.layer_scale,
            "no classifier of it sees the class token of blocks with scales: give --drop-head for its Dinov2Model, or "
            "choose --format timm, which transformers loads too",
        )
    refuse_inexpressible(model, PROGRAM, "hf", form.carried | {"gelu", "layer_norm_eps", "pool"})
    if form is not _DINOV2 and model.num_registers + model.distilled > 1:
        raise refusal(PROGRAM, "num_registers", model.num_registers, "its DeiT has one more token: choose timm")
    if form is _DINOV2 and model.pos_embed_prefix == bool(model.num_registers):
        has = "positions of patches only" if model.num_registers else "a position of the class token"
        raise refusal(PROGRAM, "pos_embed_prefix", model.pos_embed_prefix, f"its {kind} has {has}: choose timm")
    pool = {"SiglipVisionModel": "map", "SiglipForImageClassification": "norm_avg"}.get(kind, "token")
    if model.pool != pool:
        what = {"map": "its tower has attention pooling", "norm_avg": "its classifier sees the mean of the tokens"}.get(
            pool, "its classifier sees the class token"
        )
        raise refusal(
            PROGRAM, "pool", model.pool, f"{what}: choose --format timm, which transformers loads too, or onnx"
        )
    if form is _DINOV2 and shape.mlp_dim % shape.embed_dim:
        raise refusal(PROGRAM, "mlp_dim", shape.mlp_dim, f"its {kind} has a multiple of the width: choose timm")
    if form in (_DINOV2, _SIGLIP) and shape.img_size[0] != shape.img_size[1]:
        raise refusal(PROGRAM, "img_size", shape.img_size, f"its {kind} has square images: choose --format timm")
    if shape.stem_blocks:
        raise refusal(PROGRAM, "variant", model.variant, "its ViT has no convolutional stem: choose --format timm")


def _in_their_shapes(state: Mapping[str, Tensor], metadata: WeightsMetadata, kind: str) -> dict[str, Tensor]:
    """Our tensors, in the shapes of transformers: q and kv of attention pooling joined, positions as a table."""
    ours, width = dict(state), metadata.shape.embed_dim
    if "attn_pool.latent" in ours:
        for leaf in ("weight", "bias"):
            parts = [ours.pop(f"attn_pool.{part}.{leaf}") for part in ("q", "kv")]
            ours[f"attn_pool.qkv.{leaf}"] = torch.cat(parts)
    if FORMS[kind] is _SIGLIP:
        ours["pos_embed"] = ours["pos_embed"][0]
    if kind == "Dinov2WithRegistersModel":  # the class token has a row, which ours has added to it
        ours["pos_embed"] = torch.cat([torch.zeros(1, 1, width), ours["pos_embed"].float()], dim=1)
        ours["mask_token"] = torch.zeros(1, width)  # the class always has one
    return ours


def _theirs(ours: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors under transformers' names."""
    form, tower, found = FORMS[kind], TOWERS[kind], {}
    for name, tensor in ours.items():
        block, (layer, _, leaf) = _BLOCK.fullmatch(name), name.rpartition(".")
        if block is not None:
            prefix = tower.prefix + form.block.format(block[1])
            letters = ("attn.q", "attn.k", "attn.v") if block[2] == "attn.qkv" else (block[2],)
            for letter, part in zip(letters, tensor.chunk(len(letters)), strict=True):
                end = "" if block[3] == ".gamma" else block[3]
                found[f"{prefix}{form.of_block[letter]}{end}"] = part.clone()
        elif layer in tower.heads:
            found[f"{tower.heads[layer]}.{leaf}"] = tensor.clone()
        elif name in form.others:
            found[tower.prefix + form.others[name]] = tensor.clone()
        else:
            joint = form.others[layer]
            found[f"{tower.prefix}{joint}{leaf if joint.endswith('_') else '.' + leaf}"] = tensor.clone()
    return found


def _config(metadata: WeightsMetadata, kind: str) -> dict[str, Any]:
    model, shape = metadata.model, metadata.shape
    size: dict[str, Any] = {
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "hidden_act": _NAMES_OF_GELU[model.gelu],
        "layer_norm_eps": model.layer_norm_eps,
        "image_size": shape.img_size[0] if shape.img_size[0] == shape.img_size[1] else list(shape.img_size),
        "patch_size": shape.patch[0],
        "num_channels": 3,
    }
    if FORMS[kind] is _DINOV2:
        size |= {"mlp_ratio": shape.mlp_dim // shape.embed_dim, "layerscale_value": model.layer_scale}
        size |= {"num_register_tokens": model.num_registers} if model.num_registers else {"use_mask_token": False}
    else:
        size["intermediate_size"] = shape.mlp_dim
    if FORMS[kind] is _SIGLIP:
        size |= {"attention_dropout": 0.0, "vision_use_head": model.pool == "map"}
        size |= {"model_type": "siglip_vision_model"}
        config = {"model_type": "siglip", "vision_config": size} if metadata.num_classes else size
        return {"architectures": [kind], **config, **labels_of(metadata)}
    size |= {"qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if kind == "ViTModel":
        size |= {"pooler_output_size": representation_size(model), "pooler_act": "tanh"}
    return {"architectures": [kind], "model_type": TOWERS[kind].kind, **size, **labels_of(metadata)}


def labels_of(metadata: WeightsMetadata) -> dict[str, Any]:
    """The keys of config.json that describe the classes."""
    names = metadata.class_names or tuple(f"LABEL_{index}" for index in range(metadata.num_classes))
    labels: dict[str, Any] = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {key: index for index, key in enumerate(_keys(names, metadata.class_ids))},
    }
    labels |= to_config(metadata)
    return labels if metadata.class_ids is None else labels | {"class_ids": list(metadata.class_ids)}


def _keys(names: Sequence[str], ids: Sequence[str] | None) -> list[str]:
    """The class names, with the id (or index) appended to shared names so that a mapping keeps all classes."""
    marks = ids if ids is not None and len(set(ids)) == len(ids) else [str(index) for index in range(len(names))]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({mark})" for name, mark in zip(names, marks, strict=True)]
