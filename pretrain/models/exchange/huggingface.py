"""Hugging Face folders: ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

Read are ViTForImageClassification, ViTModel (whose pooler is the paper's tanh layer) and both DeiT classifiers: with a
head for the distillation token, or without one, which makes that token what we call a register. Written is the
classifier that has the model's tokens. Their LayerNorm defaults to epsilon 1e-12, so ``layer_norm_eps`` is always
written.

Legend: D width · A heads.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.architecture import (
    named_config,
    refusal,
    refuse_inexpressible,
    refuse_leftovers,
    require,
)
from pretrain.models.exchange.preprocessing import from_huggingface, huggingface_settings
from pretrain.models.interop import check_tensors, expected_shapes, read_tensors
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.variants import Size, ViTShape

PROGRAM = "Hugging Face"
CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
_NAMES_OF_GELU = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
# architectures[0] → prefix of the body's tensors, our head → theirs
_CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "ViTForImageClassification": ("vit.", {"head": "classifier"}),
    "ViTModel": ("", {"pre_logits.fc": "pooler.dense"}),
    "DeiTForImageClassification": ("deit.", {"head": "classifier"}),
    "DeiTForImageClassificationWithTeacher": (
        "deit.",
        {"head": "cls_classifier", "head_dist": "distillation_classifier"},
    ),
}
_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def _body_names(shape: ViTShape, prefix: str) -> dict[str, tuple[str, ...]]:
    """Our tensor → theirs, of the body; q, k and v are one tensor of ours."""
    embeddings = f"{prefix}embeddings."
    names = {
        "cls_token": (f"{embeddings}cls_token",),
        "dist_token": (f"{embeddings}distillation_token",),
        "reg_token": (f"{embeddings}distillation_token",),
        "pos_embed": (f"{embeddings}position_embeddings",),
    }
    names |= _pairs("patch_embed.proj", f"{embeddings}patch_embeddings.projection")
    names |= _pairs("norm", f"{prefix}layernorm")
    for index in range(shape.depth):
        ours, theirs = f"blocks.{index}", f"{prefix}encoder.layer.{index}"
        for leaf in ("weight", "bias"):
            attention = f"{theirs}.attention.attention"
            names[f"{ours}.attn.qkv.{leaf}"] = tuple(f"{attention}.{n}.{leaf}" for n in ("query", "key", "value"))
        for mine, other in _BLOCK.items():
            names |= _pairs(f"{ours}.{mine}", f"{theirs}.{other}")
    return names


def _pairs(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.{leaf}": (f"{theirs}.{leaf}",) for leaf in ("weight", "bias")}


def write_huggingface(folder: str | Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
    """Writes a folder that ``ViTForImageClassification`` and ``ViTImageProcessor`` load by ``from_pretrained``.

    Args:
        folder: exists.
        state: unsharded tensors under our names.
        metadata: metadata of the weights; its ``eval_transform`` must be known.

    Raises:
        CheckpointError: Hugging Face's ViT cannot express the model or its preprocessing.
    """
    _refuse(metadata)
    folder = Path(folder)
    kind = class_for(metadata.model)
    prefix, heads = _CLASSES[kind]
    names = _body_names(metadata.shape, prefix)
    for ours, theirs in heads.items():
        names |= _pairs(ours, theirs)
    tensors: dict[str, Tensor] = {}
    for name in expected_shapes(metadata):
        if name != "mask_token":
            parts = state[name].detach().cpu().chunk(len(names[name]))
            tensors |= {theirs: part.clone() for theirs, part in zip(names[name], parts, strict=True)}
    texts = {CONFIG: _config(metadata, kind), PREPROCESSOR: huggingface_settings(metadata)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def class_for(model: ModelConfig) -> str:
    """The Hugging Face class that has this model's tokens."""
    if model.distilled:
        return "DeiTForImageClassificationWithTeacher"
    return "DeiTForImageClassification" if model.num_registers else "ViTForImageClassification"


def _refuse(metadata: WeightsMetadata) -> None:
    model = metadata.model
    carried = {"distilled", "num_registers", "gelu", "layer_norm_eps", "pool"}
    refuse_inexpressible(model, PROGRAM, "hf", carried)
    if model.num_registers + model.distilled > 1:
        raise refusal(PROGRAM, "num_registers", model.num_registers, "its DeiT has one more token: choose timm")
    if model.pool != "token":
        raise refusal(PROGRAM, "pool", model.pool, "its classifier sees the class token: choose --format timm or onnx")
    if metadata.shape.stem_blocks:
        raise refusal(PROGRAM, "variant", model.variant, "its ViT has no convolutional stem: choose --format timm")


def _config(metadata: WeightsMetadata, kind: str) -> dict[str, Any]:
    model, shape = metadata.model, metadata.shape
    names = metadata.class_names or tuple(f"LABEL_{index}" for index in range(metadata.num_classes))
    config: dict[str, Any] = {
        "architectures": [kind],
        "model_type": "deit" if kind.startswith("DeiT") else "vit",
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.mlp_dim,
        "hidden_act": _NAMES_OF_GELU[model.gelu],
        "layer_norm_eps": model.layer_norm_eps,
        "image_size": _side(shape.img_size),
        "patch_size": shape.patch[0],
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {key: index for index, key in enumerate(_keys(names, metadata.class_ids))},
    }
    return config if metadata.class_ids is None else config | {"class_ids": list(metadata.class_ids)}


def _keys(names: Sequence[str], ids: Sequence[str] | None) -> list[str]:
    """The class names, with the id (or index) appended to shared names so that a mapping keeps all classes."""
    marks = ids if ids is not None and len(set(ids)) == len(ids) else [str(index) for index in range(len(names))]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({mark})" for name, mark in zip(names, marks, strict=True)]


def _side(img_size: tuple[int, int]) -> int | list[int]:
    return img_size[0] if img_size[0] == img_size[1] else list(img_size)


def read_huggingface(folder: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a Hugging Face folder.

    Raises:
        CheckpointError: a file is missing, pickled or damaged, or the model is not supported.
    """
    folder = Path(folder)
    config = _DEFAULTS | read_json(folder / CONFIG)
    kind = next(iter(config.get("architectures") or ()), None)
    if kind not in _CLASSES:
        raise CheckpointError(
            f"{folder / CONFIG}: architectures: {kind!r} is not read; known are {', '.join(_CLASSES)}"
        )
    theirs, prefix, heads = _tensors(folder), *_CLASSES[kind]
    heads = {ours: other for ours, other in heads.items() if f"{other}.weight" in theirs}
    metadata = _described(config, kind, heads, theirs, folder)
    names = _body_names(metadata.shape, prefix)
    for ours, other in heads.items():
        names |= _pairs(ours, other)
    state, used = {}, set()
    for name in expected_shapes(metadata):
        if name not in names:  # a head of DeiT that the class does not have
            raise CheckpointError(f"{folder / WEIGHTS}: tensor {name} has no counterpart in {kind}")
        parts = [require(theirs, each, folder / WEIGHTS, PROGRAM) for each in names[name]]
        state[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        used |= set(names[name])
    refuse_leftovers(set(theirs) - used, folder / WEIGHTS, PROGRAM)
    check_tensors(state, metadata, folder / WEIGHTS)
    return state, metadata


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file does not exist or has other content.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; copy the complete folder") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy or export the folder again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {type(content).__name__}")
    return content


def _tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():  # split into several files
        parts = sorted(set(read_json(index).get("weight_map", {}).values()))
        return {name: tensor for part in parts for name, tensor in read_tensors(folder / Path(part).name)[0].items()}
    pickled = folder / "pytorch_model.bin"
    if not (folder / WEIGHTS).exists() and pickled.exists():
        raise CheckpointError(
            f"{pickled}: pickled, and nothing is unpickled here: make {WEIGHTS} of it with transformers' "
            "save_pretrained, where you trust it"
        )
    return read_tensors(folder / WEIGHTS)[0]


def _described(
    config: Mapping[str, Any], kind: str, heads: Mapping[str, str], theirs: Mapping[str, Tensor], folder: Path
) -> WeightsMetadata:
    settings = read_json(folder / PREPROCESSOR)
    model = _model_config(config, kind, heads, theirs, folder)
    num_classes = theirs[f"{heads['head']}.bias"].shape[0] if "head" in heads else 0
    labels = {int(number): str(name) for number, name in config.get("id2label", {}).items()}
    names = tuple(labels[index] for index in sorted(labels)) if sorted(labels) == list(range(num_classes)) else None
    if not names or all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        names = None
    ids = config.get("class_ids")
    try:
        metadata = WeightsMetadata.of(
            model,
            num_classes,
            tuple(settings.get("image_mean", (0.5, 0.5, 0.5))),
            tuple(settings.get("image_std", (0.5, 0.5, 0.5))),
            class_names=names,
            class_ids=tuple(ids) if isinstance(ids, list) and len(ids) == num_classes else None,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{folder}: {where}: {first['msg']}; export it again") from error
    return metadata.model_copy(update={"eval_transform": from_huggingface(settings, metadata.img_size)})


def _model_config(
    config: Mapping[str, Any], kind: str, heads: Mapping[str, str], theirs: Mapping[str, Tensor], folder: Path
) -> ModelConfig:
    where = folder / CONFIG
    needed = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    for name in needed:
        if not isinstance(config.get(name), int):
            raise CheckpointError(f"{where}: {name}: {config.get(name)!r} is not a number; copy or export it again")
    for name, only in (("qkv_bias", True), ("num_channels", 3)):
        if config[name] != only:
            raise CheckpointError(f"{where}: {name}: {config[name]!r} is not read, only {only}; name other weights")
    if config["hidden_act"] not in _GELU:
        raise CheckpointError(f"{where}: hidden_act: {config['hidden_act']!r} is not read, only {', '.join(_GELU)}")
    patch, size = _pair(config["patch_size"]), _pair(config["image_size"])
    if patch[0] != patch[1]:
        raise CheckpointError(f"{where}: patch_size: {patch} is not read; patches must be square")
    hidden = theirs["pooler.dense.weight"].shape[0] if "pre_logits.fc" in heads else None
    if hidden is not None and config.get("pooler_act", "tanh") != "tanh":
        raise CheckpointError(f"{where}: pooler_act: {config['pooler_act']!r} is not read, only tanh")
    return named_config(
        where,
        Size(*(config[name] for name in needed)),
        patch=patch[0],
        img_size=size,
        gelu=_GELU[config["hidden_act"]],
        layer_norm_eps=config["layer_norm_eps"],
        representation_size=hidden,
        distilled=kind == "DeiTForImageClassificationWithTeacher",
        num_registers=int(kind == "DeiTForImageClassification"),
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
