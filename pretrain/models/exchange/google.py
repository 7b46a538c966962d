"""Google's .npz checkpoints: google-research/vision_transformer and big_vision, in both layouts of names.

The arrays' names are in google_names.py. Names may have a prefix (opt/target/, params/, params/img/), blocks may be
stacked into one array (big_vision's scan), and each program has changed its names over time. Both programs normalise
pixels to [−1, 1], compute GELU in its tanh form (flax's default) and LayerNorm with epsilon 1e-6; neither writes that,
nor the grid, into the file. A file of ours comes with a JSON file that does.
"""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.google_names import (
    NAMES,
    VIT_JAX_POSITIONS,
    Entry,
    Layout,
    Names,
    block_array,
    entries,
    names_of,
)
from pretrain.models.exchange.translation import (
    named_config,
    refusal,
    refuse_inexpressible,
    refuse_leftovers,
    square_grid,
)
from pretrain.models.interop import check_tensors, expected_shapes
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.variants import STEM_BLOCKS, Size

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]

PROGRAM = "Google's vision_transformer and big_vision"
PREFIXES = ("", "opt/target/", "params/", "params/img/")
EPSILON = 1e-6
UNSTATED_SIDE = 224  # pixels, where positions are computed and the file states no grid
HALF = (0.5, 0.5, 0.5)
_STACKED = "Transformer/encoderblock/"


def read_npz(path: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a checkpoint of either program, fp32.

    Raises:
        CheckpointError: pickled, truncated, of another architecture, or with a grid that the file does not record.
    """
    path = Path(path)
    arrays = _load(path)
    prefix = next((prefix for prefix in reversed(PREFIXES) if f"{prefix}embedding/kernel" in arrays), None)
    if prefix is None:
        raise CheckpointError(
            f"{path}: array embedding/kernel is missing, so these are not the weights of a Vision Transformer of "
            f"{PROGRAM}; name other weights, or the format that they have"
        )
    arrays = _unstacked({key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)})
    if not prefix:
        arrays = {key: array for key, array in arrays.items() if not key.startswith("opt/")}
    names = names_of(arrays)
    metadata = described_beside(path) or _described_by_arrays(arrays, names, path)
    state, used = {}, set()
    wanted = expected_shapes(metadata)
    for entry in entries(names, metadata.shape):
        if entry.ours in wanted:
            parts = [_take(arrays, name, path) for name in entry.theirs]
            state[entry.ours] = _apply(entry, parts, path)
            used |= set(entry.theirs)
    refuse_leftovers(set(arrays) - used, path, PROGRAM)
    check_tensors(state, metadata, path)
    return state, metadata


def _apply(entry: Entry, parts: list[Tensor], path: Path) -> Tensor:
    try:
        return entry.read(parts).contiguous()
    except (RuntimeError, IndexError) as error:
        shapes = [tuple(part.shape) for part in parts]
        raise CheckpointError(f"{path}: array {entry.theirs[0]} has the shape {shapes[0]}: {error}") from error


def _load(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder' if path.is_dir() else 'does not exist'}; name an .npz file")
    name = ""
    try:
        with zipfile.ZipFile(path):  # np.load would treat anything else as a pickle
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {}
            for name in file.files:
                arrays[name] = file[name]
            return arrays
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a complete .npz file ({error}); it was truncated or is of another format: copy it again, or "
            "name the format that it has"
        ) from error
    except ValueError as error:
        what = f"array {name} is pickled" if "pickle" in str(error) else f"array {name} cannot be read ({error})"
        raise CheckpointError(
            f"{path}: {what}; nothing is unpickled here: write the file again with np.savez of plain float arrays"
        ) from error


def _unstacked(arrays: Arrays) -> dict[str, Array]:
    """big_vision's scanned blocks (depth first in every array) as one array per block."""
    plain = {name: array for name, array in arrays.items() if not name.startswith(_STACKED)}
    for name in set(arrays) - set(plain):
        for index, array in enumerate(arrays[name]):
            plain[f"Transformer/encoderblock_{index}/{name.removeprefix(_STACKED)}"] = array
    return plain


def _take(arrays: Arrays, name: str, path: Path) -> Tensor:
    if name not in arrays:
        raise CheckpointError(
            f"{path}: array {name} is missing; the weights are of another architecture, or only a part of them"
        )
    array = arrays[name]
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16, which numpy does not support
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
    if array.dtype.kind != "f":
        raise CheckpointError(f"{path}: array {name} is of type {array.dtype}; weights are floating-point numbers")
    return torch.from_numpy(array.astype(np.float32))


def _described_by_arrays(arrays: Arrays, names: Names, path: Path) -> WeightsMetadata:
    """Metadata from the shapes of the arrays and the fixed conventions of both programs."""
    query = _shape(arrays, block_array(names, "attention/query/kernel"), path)
    hidden = _shape(arrays, block_array(names, "mlp/Dense_0/kernel"), path)
    patch, has_class = _shape(arrays, "embedding/kernel", path), "cls" in arrays
    if len(query) != 3 or len(hidden) != 2 or len(patch) != 4 or patch[0] != patch[1]:
        raise CheckpointError(f"{path}: the arrays do not have the shapes of a Vision Transformer of {PROGRAM}")
    grid, options = _positions(arrays, names, path, patch[0], has_class)
    depth = sum(name.endswith("LayerNorm_0/scale") and "encoderblock_" in name for name in arrays)
    if "pre_logits/kernel" in arrays:
        options["representation_size"] = arrays["pre_logits/kernel"].shape[1]
    config = named_config(
        path,
        Size(query[0], depth, hidden[1], query[1]),
        patch=patch[0],
        img_size=(grid[0] * patch[0], grid[1] * patch[0]),
        class_token=has_class,
        pool="map" if f"{names.pooling}probe" in arrays else "token" if has_class else "norm_avg",
        gelu="tanh",
        layer_norm_eps=EPSILON,
        **options,
    )
    if "conv_root/kernel" in arrays:
        config = _hybrid(config, arrays, grid, path)
    num_classes = arrays["head/bias"].shape[0] if "head/bias" in arrays else 0
    return WeightsMetadata.of(config, num_classes, HALF, HALF)


def _positions(
    arrays: Arrays, names: Names, path: Path, patch: int, has_class: bool
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid, and our options for positions: a table with or without a row for the class token, or none.

    vision_transformer always has a row for the class token; big_vision had one before 2022, which its number of rows
    shows. A file without a table is of big_vision's ``posemb="sincos2d"``, which fits any grid.
    """
    if not names.positions:
        side = UNSTATED_SIDE // patch
        warnings.warn(
            f"{path}: no array pos_embedding, so its positions are sines and cosines, which fit any grid; "
            f"{side * patch} × {side * patch} pixels are assumed. A run that starts from it "
            f"takes its own model.img_size; for anything "
            f"else {beside(path).name} beside the file can state it",
            stacklevel=4,
        )
        return (side, side), {"pos_embed": "sincos2d_big_vision"}
    shape = _shape(arrays, names.positions, path)
    if len(shape) != 3:
        raise CheckpointError(f"{path}: array {names.positions} has the shape {shape}; (1, rows, width) is expected")
    has_row = has_class and (names.positions == VIT_JAX_POSITIONS or math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1)
    return square_grid(shape[1] - has_row, path, names.positions), {
        "pos_embed_prefix": False
    } if has_class and not has_row else {}


def _hybrid(config: ModelConfig, arrays: Arrays, grid: tuple[int, int], path: Path) -> ModelConfig:
    """Adds to the config the ResNet in the arrays, after which the patch kernel is 1 × 1."""
    stages = {name.split("/")[0] for name in arrays if name.startswith("block")}
    units = [len({n.split("/")[1] for n in arrays if n.startswith(f"{stage}/")}) for stage in sorted(stages)]
    stride = {blocks: stride for stride, blocks in STEM_BLOCKS.items()}.get(tuple(units))
    if stride is None or config.variant.split("/")[1] != "1":
        raise CheckpointError(f"{path}: a ResNet of {units} blocks is not read; known are {list(STEM_BLOCKS.values())}")
    size, _ = config.variant.split("/")
    fields = config.model_dump(exclude_unset=True) | {"variant": f"R50+{size}/{stride}", "img_size": grid[0] * stride}
    return ModelConfig(**fields)


def _shape(arrays: Arrays, name: str, path: Path) -> tuple[int, ...]:
    if name not in arrays:
        raise CheckpointError(f"{path}: array {name} is missing, so this is not a Vision Transformer of {PROGRAM}")
    return arrays[name].shape


def beside(path: Path) -> Path:
    """The JSON file with the metadata of an .npz file, for which Google's format has no place."""
    return path.with_name(path.name + ".json")


def described_beside(path: Path) -> WeightsMetadata | None:
    """The metadata in the JSON file beside an .npz file of ours; None: there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    text = beside(path)
    if not text.is_file():
        return None
    try:
        return WeightsMetadata.model_validate_json(text.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{text}: {where}: {first['msg']}; export it again, or move it away") from error


def write_npz(
    path: str | Path,
    state: Mapping[str, Tensor],
    metadata: WeightsMetadata,
    layout: Layout | None = None,
    *,
    accept_erf_gelu: bool = False,
) -> None:
    """Writes fp32 weights that both programs and timm read, and the metadata beside them.

    Args:
        path: ends in .npz.
        state: unsharded tensors under our names.
        metadata: metadata of the weights.
        layout: layout of the names; by default one that can express the model.
        accept_erf_gelu: write weights that were trained with the erf form of GELU, which Google's programs do not
            compute (timm does, by default).

    Raises:
        CheckpointError: the layout cannot express the model.
    """
    model, path = metadata.model, Path(path)
    layout = layout or ("big_vision" if model.pool == "map" or not model.pos_embed_prefix else "vision_transformer")
    _refuse(metadata, layout, accept_erf_gelu)
    wanted, arrays = expected_shapes(metadata), {}
    for entry in entries(NAMES[layout], metadata.shape):
        if entry.ours in wanted:
            parts = entry.write(state[entry.ours].detach().cpu().float(), metadata.shape.num_heads)
            arrays |= {name: part.contiguous().numpy() for name, part in zip(entry.theirs, parts, strict=True)}
    beside(path).write_text(json.dumps(metadata.model_dump(mode="json"), indent=1) + "\n")
    with path.open("wb") as file:  # np.savez would append .npz to another name
        np.savez(file, **arrays)


def _refuse(metadata: WeightsMetadata, layout: Layout, accept_erf_gelu: bool) -> None:
    model = metadata.model
    carried = {"class_token", "pool", "representation_size", "pos_embed_prefix", "gelu", "layer_norm_eps"}
    refuse_inexpressible(model, PROGRAM, "npz", carried)
    if model.pool == "avg_norm":
        raise refusal(PROGRAM, "pool", model.pool, "they norm before the mean: train with norm_avg, or choose timm")
    if model.pool == "norm_avg" and model.class_token:
        raise refusal(PROGRAM, "class_token", True, "their mean includes every token: choose --format timm")
    if model.pool == "map" and (layout != "big_vision" or model.class_token):
        raise refusal(PROGRAM, "pool", "map", "only big_vision's layout has it, without a class token")
    if model.class_token and model.pos_embed_prefix != (layout == "vision_transformer"):
        raise refusal(f"the layout {layout}", "pos_embed_prefix", model.pos_embed_prefix, "choose the other layout")
    if model.layer_norm_eps != EPSILON:
        raise refusal(PROGRAM, "layer_norm_eps", model.layer_norm_eps, f"they compute with {EPSILON:g}")
    if model.gelu != "tanh" and not accept_erf_gelu:
        raise refusal(
            PROGRAM,
            "gelu",
            model.gelu,
            "they compute the tanh form; --accept-erf-gelu writes it for timm, which computes erf",
        )
