"""timm's folders: ``config.json`` and ``model.safetensors``, as ``timm.create_model("local-dir:PATH")`` loads them.

timm builds the model that the folder describes on the meta device, and its modules are inspected. Therefore a
folder of any of its plain Vision Transformers can be read as ours, any other classifier as ``timm/NAME``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.preprocessing import from_timm, timm_settings
from pretrain.models.exchange.timm_names import is_plain_vit, vit_config
from pretrain.models.families.protocol import TimmTwin
from pretrain.models.families.registry import family_of
from pretrain.models.interop import check_tensors, read_tensors, save_weights
from pretrain.models.metadata import WeightsMetadata

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_timm(folder: str | Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
    """Writes a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

    Args:
        folder: exists.
        state: unsharded tensors under our names, which are timm's.
        metadata: metadata of the weights; its ``eval_transform`` must be known.

    Raises:
        CheckpointError: timm cannot express the model or its preprocessing.
    """
    twin = family_of(metadata.model).timm_twin(metadata.model)
    config = json.dumps(_config(metadata, twin), indent=2, ensure_ascii=False)
    save_weights(Path(folder) / WEIGHTS, state, metadata)
    (Path(folder) / CONFIG).write_text(config + "\n", encoding="utf-8")


def _config(metadata: WeightsMetadata, twin: TimmTwin) -> dict[str, Any]:
    names, ids = metadata.class_names, metadata.class_ids
    labels: dict[str, Any] = {} if names is None else {"label_names": list(ids or names)}
    if names is not None and ids is not None and len(set(ids)) == len(ids):
        labels["label_descriptions"] = dict(zip(ids, names, strict=True))
    return {
        "architecture": twin.architecture,
        "num_classes": metadata.num_classes,
        "model_args": twin.arguments,
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [3, *metadata.img_size],
            "fixed_input_size": "img_size" in twin.arguments,
            **timm_settings(metadata),
            "mean": list(metadata.mean),
            "std": list(metadata.std),
            "num_classes": metadata.num_classes,
            **twin.layers,
        },
        **labels,
    }


def read_timm(folder: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a timm folder.

    Raises:
        CheckpointError: a file is missing or damaged, or timm cannot build the model.
    """
    folder = Path(folder)
    twin = build_twin(folder)
    metadata = _described(twin, folder)
    state, _ = read_tensors(folder / WEIGHTS)
    if not metadata.num_classes:  # timm drops the file's head if the config has none
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "head_dist."))}
    check_tensors(state, metadata, folder / WEIGHTS)
    return state, metadata


def build_twin(folder: Path) -> nn.Module:
    """The model that a folder describes, built by timm on the meta device."""
    import timm

    try:
        json.loads((folder / CONFIG).read_bytes())
        with torch.device("meta"):
            return timm.create_model(f"local-dir:{folder}", pretrained=False)
    except OSError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error.strerror}; name a folder with {CONFIG}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{folder / CONFIG}: not JSON ({error}); copy or export the folder again") from error
    except (RuntimeError, TypeError, KeyError, ValueError, AssertionError) as error:
        raise CheckpointError(
            f"{folder / CONFIG}: timm cannot build the model that it describes ({type(error).__name__}: {error}); "
            "install a timm that knows it, or export it again"
        ) from error


def _described(twin: Any, folder: Path) -> WeightsMetadata:
    from timm.data import resolve_model_data_config

    config, data = _model_config(twin, folder / CONFIG), resolve_model_data_config(twin)
    settings: dict[str, Any] = twin.pretrained_cfg
    labels, described = settings.get("label_names") or (), settings.get("label_descriptions") or {}
    fits = len(labels) == twin.num_classes > 0
    has_ids = fits and all(label in described for label in labels)
    try:
        return WeightsMetadata.of(
            config,
            twin.num_classes,
            data["mean"],
            data["std"],
            class_names=tuple(described.get(label, label) for label in labels) if fits else None,
            class_ids=tuple(labels) if has_ids else None,
            eval_transform=from_timm(data, config.size),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{folder / CONFIG}: {where}: {first['msg']}; export it again") from error


def _model_config(twin: Any, where: Path) -> ModelConfig:
    if is_plain_vit(twin):
        return vit_config(twin, where)
    return _other_config(twin, where)


def _other_config(twin: Any, where: Path) -> ModelConfig:
    """The config of a model that is not one of our Vision Transformers: timm's name and arguments."""
    from timm.data import resolve_model_data_config

    content = json.loads(where.read_bytes())
    arguments = {key: value for key, value in content.get("model_args", {}).items() if key != "img_size"}
    height, width = resolve_model_data_config(twin)["input_size"][1:]
    try:
        return ModelConfig(
            name=f"timm/{content['architecture']}",
            img_size=height if height == width else (height, width),
            kwargs=arguments,
        )
    except ValidationError as error:
        raise CheckpointError(f"{where}: model_args: {error.errors()[0]['msg']}; name other weights") from error
