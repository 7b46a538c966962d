"""timm's folders: ``config.json`` and ``model.safetensors``, as ``timm.create_model("local-dir:PATH")`` loads them.

timm builds the model that the folder describes on the meta device. A plain Vision Transformer that ours computes
exactly is read as ours, any other model as ``timm/NAME``. With ``num_classes: 0`` the model has no head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from timm.models._input import _get_global_pool, get_model_input_config
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.exchange.facts import facts_beside, problem_of
from pretrain.models.exchange.timm_eva import our_tensors
from pretrain.models.exchange.timm_folder import (
    CONFIG,
    WEIGHTS,
    Described,
    Say,
    build_twin,
    describe,
    fitted,
    read_state,
)
from pretrain.models.exchange.timm_naflex import plain_tensors
from pretrain.models.exchange.timm_training import described_in_training
from pretrain.models.exchange.timm_vit import vit_config
from pretrain.models.exchange.translation import from_timm, timm_settings
from pretrain.models.families.protocol import TimmTwin
from pretrain.models.families.registry import build_frozen, family_of
from pretrain.models.families.timm_shapes import shapes_only
from pretrain.models.families.timm_surgery import hidden_numbers
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata


def write_timm(folder: str | Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
    """Writes a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

    Args:
        folder: exists.
        state: unsharded tensors under our names, which but few are timm's.
        metadata: metadata of the weights; its ``eval_transform`` must be known.

    Raises:
        CheckpointError: timm cannot express the model or its preprocessing.
    """
    twin = family_of(metadata.model).timm_twin(metadata.model)
    config = json.dumps(_config(metadata, twin), indent=2, ensure_ascii=False)
    save_weights(Path(folder) / WEIGHTS, state, metadata, twin.names)
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
            "mean": list(metadata.normalisation[0]),
            "std": list(metadata.normalisation[1]),
            "num_classes": metadata.num_classes,
            **twin.layers,
        },
        **labels,
        **problem_of(metadata),
    }


def read_timm(folder: str | Path, say: Say = lambda line: None) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a timm folder.

    Args:
        folder: with ``config.json`` and weights.
        say: called with each line for the user.

    Raises:
        CheckpointError: a file is missing or damaged, or timm cannot build or load the model.
    """
    folder, where = Path(folder), Path(folder) / CONFIG
    described = describe(folder, say)
    twin = build_twin(where, described)
    metadata = _metadata(twin, _config_of(twin, described, where, say), where)
    state = _our_tensors(read_state(folder, described, twin, say), metadata)
    return state, facts_beside(folder, WEIGHTS).added_to(metadata, folder)


def read_training(path: Path, content: Mapping[str, Any], say: Say) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a checkpoint of timm's training script, which holds the model's name and arguments.

    Args:
        path: for errors.
        content: of the file, for which ``timm_training.is_training`` holds.
        say: called with each line for the user.

    Raises:
        CheckpointError: timm cannot build or load the model.
    """
    described = described_in_training(content)
    say(f"{path}: a checkpoint of timm's training script, of {described.architecture}")
    twin = build_twin(path, described)
    metadata = _metadata(twin, _config_of(twin, described, path, say), path)
    return _our_tensors(fitted(content, path, described, twin, say), metadata), metadata


def _our_tensors(state: dict[str, Tensor], metadata: WeightsMetadata) -> dict[str, Tensor]:
    """The tensors under our names: those of timm's rotary models and of its NaFlexVit differ."""
    if not metadata.model.family.takes_sequences:
        return state
    return our_tensors(state) if metadata.model.rope is not None else plain_tensors(state)


def _config_of(twin: Any, described: Described, where: Path, say: Say) -> ModelConfig:
    try:
        return vit_config(twin, where)
    except CheckpointError as error:
        config = _timm_config(twin, described, where, say)
        say(f"read as {config.name}, not as a vit of ours: {error}")
        return config


def _metadata(twin: Any, config: ModelConfig, where: Path) -> WeightsMetadata:
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(twin)
    settings: dict[str, Any] = twin.pretrained_cfg
    labels, described = settings.get("label_names") or (), settings.get("label_descriptions") or {}
    fits = len(labels) == twin.num_classes > 0
    has_ids = fits and all(label in described for label in labels)
    transform, problem = from_timm(data, config.size), None
    if transform is None:
        unread = ", ".join(f"{name}: {data.get(name)}" for name in ("interpolation", "crop_mode", "crop_pct"))
        problem = f"{where}: pretrained_cfg: {unread} is not read"
    try:
        return WeightsMetadata.of(
            config,
            twin.num_classes,
            data["mean"],
            data["std"],
            class_names=tuple(described.get(label, label) for label in labels) if fits else None,
            class_ids=tuple(labels) if has_ids else None,
            eval_transform=transform,
            transform_problem=problem,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{where}: {field}: {first['msg']}; export it again") from error


# ── any other model of timm ──

# Arguments that other fields hold, or that restate what is so anyway.
_ELSEWHERE = frozenset({"img_size", "num_classes", "in_chans"})
_TRAINING_ONLY = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}


def _timm_config(twin: Any, described: Described, where: Path, say: Say) -> ModelConfig:
    """timm's name, resolution and arguments.

    Raises:
        CheckpointError: they would not build the same network again.
    """
    arguments = dict(described.arguments)
    if (pool := described.settings.get("global_pool")) is not None:
        arguments.setdefault("global_pool", pool)
    for key, setting in _TRAINING_ONLY.items():
        if arguments.pop(key, 0):
            say(f"{where}: {key} is for training only and is not taken from the weights; set model.{setting}")
    height, width = get_model_input_config(twin)["input_size"][1:]
    try:
        config = ModelConfig(
            name=f"timm/{described.architecture}",
            img_size=height if height == width else (height, width),
            kwargs={key: value for key, value in arguments.items() if key not in _ELSEWHERE},
        )
    except ValidationError as error:
        raise CheckpointError(f"{where}: model_args: {error.errors()[0]['msg']}; name other weights") from error
    _require_same_network(twin, config, where)
    return config


def _require_same_network(twin: Any, config: ModelConfig, where: Path) -> None:
    """Checks that nothing beside the arguments changes the network."""
    try:
        with shapes_only():
            again = build_frozen(config, twin.num_classes)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
    for what, of in (("tensors", _shapes), ("numbers", hidden_numbers), ("pooling", _get_global_pool)):
        if of(again) != of(twin):
            raise CheckpointError(
                f"{where}: {config.name} with the arguments {config.kwargs} has other {what} than the model that the "
                "folder describes; save it again with timm.models.save_for_hf, which writes every argument"
            )


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
