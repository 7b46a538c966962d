"""Hugging Face folders: ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

Read are the classes of ``huggingface_towers``. The pooler of ViTModel is the paper's tanh layer; DeiT's token without a
head of its own is what we call a register. Written is what ``huggingface_writer`` chooses.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.facts import from_config
from pretrain.models.exchange.huggingface_folder import CONFIG, PREPROCESSOR, WEIGHTS, read_folder_tensors, read_json
from pretrain.models.exchange.huggingface_module import read_module, write_module
from pretrain.models.exchange.huggingface_names import as_convolution, joined, our_name
from pretrain.models.exchange.huggingface_towers import TOWERS, Tower, UnlikeOursError, settings_of, tower_config
from pretrain.models.exchange.huggingface_writer import PROGRAM, labels_of
from pretrain.models.exchange.mae import decoder_name, unlike_ours, without_tables
from pretrain.models.exchange.preprocessor import preprocessor_of, read_preprocessor
from pretrain.models.exchange.translation import (
    refuse_leftovers,
    require,
)
from pretrain.models.families.registry import family_of
from pretrain.models.interop import check_tensors, expected_shapes
from pretrain.models.metadata import WeightsMetadata

Weights = tuple[dict[str, Tensor], WeightsMetadata]


def write_huggingface(folder: str | Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
    """Writes a folder that a class of transformers and ``ViTImageProcessor`` load by ``from_pretrained``.

    Args:
        folder: exists.
        state: unsharded tensors under our names.
        metadata: metadata of the weights; its ``eval_transform`` must be known.

    Raises:
        CheckpointError: transformers cannot express the model or its preprocessing.
    """
    family_of(metadata.model).write_huggingface(Path(folder), state, metadata)


def write_own(folder: Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
    """As ``write_huggingface``, for a network that is transformers' own module."""
    settings = preprocessor_of(metadata)
    write_module(folder, state, metadata.model, metadata.num_classes)
    content = read_json(folder / CONFIG) | labels_of(metadata)
    for name, text in {CONFIG: content, PREPROCESSOR: settings}.items():
        (folder / name).write_text(json.dumps(text, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_huggingface(
    folder: str | Path, say: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a Hugging Face folder: as our Vision Transformer where that computes the same, else as ``hf/NAME``.

    Args:
        folder: with config.json.
        say: called with a line about tensors that the image tower does not use: a text tower, a decoder.

    Raises:
        CheckpointError: a file is missing, pickled or damaged, or the model is not supported.
    """
    folder = Path(folder)
    content = read_json(folder / CONFIG)
    kind = next(iter(content.get("architectures") or ()), None)
    if not isinstance(kind, str):
        raise CheckpointError(
            f"{folder / CONFIG}: has no architectures, so the class is unknown; add it as released folders have it, "
            'such as "architectures": ["ViTForImageClassification"]'
        )
    if kind in TOWERS:
        with contextlib.suppress(UnlikeOursError):
            return _read_tower(folder, content, kind, say)
    state, model, num_classes = read_module(folder, content, kind, say)
    metadata = _described(content, model, num_classes, folder)
    check_tensors(state, metadata, folder / WEIGHTS)
    return state, metadata


def _read_tower(folder: Path, content: Mapping[str, Any], kind: str, say: Callable[[str], None]) -> Weights:
    """The weights of a class that is one of our Vision Transformers."""
    tower, theirs = TOWERS[kind], read_folder_tensors(folder)
    settings = settings_of(tower, content, folder / CONFIG)
    if tower.has_decoder and (problem := unlike_ours(theirs, settings)) is not None:
        say(f"{folder}: {problem}, so only the encoder is read")
        tower = replace(tower, has_decoder=False, unused=("decoder.",))
    found, left, unused = _found(tower, theirs)
    model = tower_config(tower, settings, found, folder / CONFIG)
    refuse_leftovers(left, folder / WEIGHTS, PROGRAM)
    if unused:
        say(
            f"{len(unused)} tensors of {folder / WEIGHTS} are not part of the image tower of {kind} and are left out: "
            f"{unused[0]}, …"
        )
    state = _fitted(found, model, settings)
    if tower.has_decoder:
        state = without_tables(state)
    head = state.get("head.bias")
    metadata = _described(content, model, 0 if head is None else head.shape[0], folder)
    expected = expected_shapes(metadata)
    for name in expected:
        require(state, name, folder / WEIGHTS, PROGRAM)
    refuse_leftovers(set(state) - set(expected), folder / WEIGHTS, PROGRAM)
    check_tensors(state, metadata, folder / WEIGHTS)
    return state, metadata


def _found(tower: Tower, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The tensors of tower and head under our names; names without a place; names of other towers."""
    heads = {f"{other}.{leaf}": f"{ours}.{leaf}" for ours, other in tower.heads.items() for leaf in ("weight", "bias")}
    unused = [name for name in theirs if name.startswith(tower.unused or "\0")]
    found, left = {}, []
    for name in sorted(set(theirs) - set(unused)):
        ours = heads.get(name) or our_name(name.removeprefix(tower.prefix))
        if tower.has_decoder and name.startswith("decoder."):
            ours = decoder_name(name)
        if ours == "dist_token" and not tower.options.get("distilled"):
            ours = "reg_token"
        if ours == "mask_token" and not theirs[name].any():  # of a class that always has one, used or not
            continue
        if ours is None or ours in found:
            left.append(name)
        else:
            found[ours] = theirs[name]
    return joined(found), left, unused


def _fitted(found: dict[str, Tensor], model: ModelConfig, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with our shapes; the class token of a model with registers takes its own position."""
    state = dict(found)
    table, token, kernel = state.get("pos_embed"), state.get("cls_token"), state.get("patch_embed.proj.weight")
    if table is not None and table.ndim == 2:  # an embedding layer's
        table = state["pos_embed"] = table[None]
    if table is not None and token is not None and not model.pos_embed_prefix:
        state["cls_token"], state["pos_embed"] = token.float() + table[:, :1].float(), table[:, 1:]
    if kernel is not None and kernel.ndim == 2:
        state["patch_embed.proj.weight"] = as_convolution(kernel, settings["patch_size"])
    if "mask_token" in state:
        state["mask_token"] = state["mask_token"].reshape(1, 1, -1)
    return state


def _described(content: Mapping[str, Any], model: ModelConfig, num_classes: int, folder: Path) -> WeightsMetadata:
    how = read_preprocessor(folder, model.size, content.get("model_type"))
    labels = {int(number): str(name) for number, name in content.get("id2label", {}).items()}
    names = tuple(labels[index] for index in sorted(labels)) if sorted(labels) == list(range(num_classes)) else None
    if not names or all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        names = None
    ids = content.get("class_ids")
    try:
        metadata = WeightsMetadata.of(
            model,
            num_classes,
            how.mean,
            how.std,
            class_names=names,
            class_ids=tuple(ids) if isinstance(ids, list) and len(ids) == num_classes else None,
            eval_transform=how.transform,
            transform_problem=how.problem,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{folder}: {where}: {first['msg']}; export it again") from error
    return from_config(content, folder / CONFIG).added_to(metadata, folder / CONFIG)
