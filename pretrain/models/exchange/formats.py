"""Weights in any format that is read (ours, Google's, timm's, Hugging Face's, torchvision's), and positions for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.models.exchange.google import read_npz
from pretrain.models.exchange.huggingface import CONFIG, read_huggingface, read_json
from pretrain.models.exchange.timm import read_timm
from pretrain.models.exchange.torchvision import MARK, read_torchvision
from pretrain.models.interop import expected_shapes, is_weights_header, load_weights
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.variants import placement
from pretrain.models.vit import build_vit

ADDED = ("sincos2d_big_vision", "sincos2d_timm", "learned_2d")  # position embeddings that few programs support

Weights = tuple[dict[str, Tensor], WeightsMetadata]

READERS: dict[str, Callable[[str | Path], Weights]] = {
    "weights": load_weights,
    "npz": read_npz,
    "timm": read_timm,
    "hf": read_huggingface,
    "torchvision": read_torchvision,
}


def is_model_folder(path: str | Path) -> bool:
    """Whether ``path`` is a folder of timm's or Hugging Face's, and not a run or a checkpoint."""
    return (Path(path) / CONFIG).is_file()


def load_any(path: str | Path, format: str | None = None) -> Weights:
    """Reads weights, whatever their format: tensors on the CPU under our names, and their metadata.

    Args:
        path: a .npz or .safetensors file, or a folder with config.json.
        format: a key of READERS; detected by default.

    Raises:
        CheckpointError: the format is not supported, the file is damaged or pickled, or the architecture is not ours.
    """
    path = Path(path)
    found = detect_format(path)
    if format is not None and format != found:
        raise CheckpointError(f"{path}: of the format {found}, not {format}; say {found}, or name another file")
    return READERS[found](path)


def detect_format(path: Path) -> str:
    """A key of READERS.

    Raises:
        CheckpointError: the path does not exist, or its format is not supported.
    """
    if path.is_dir():
        return _folder_format(path)
    if path.suffix == ".npz":
        return "npz"
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path}: an ONNX graph is written here but not read; name the weights it was made from")
    return _file_format(path)


def _folder_format(path: Path) -> str:
    config = path / CONFIG
    if not config.is_file():
        raise CheckpointError(f"{path}: a folder without {CONFIG}, so neither timm's nor Hugging Face's; name the file")
    content = read_json(config)
    if "model_type" in content or "architectures" in content:
        return "hf"
    if "architecture" in content:
        return "timm"
    raise CheckpointError(f"{config}: has neither architecture (timm) nor model_type (Hugging Face); name others")


def _file_format(path: Path) -> str:
    """Our format unless header and names are torchvision's, so that errors refer to ours."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            has_ours = is_weights_header(file.metadata() or {})
            return "torchvision" if not has_ours and MARK in file.keys() else "weights"  # noqa: SIM118
    except (SafetensorError, OSError):
        return "weights"


@torch.no_grad()
def with_learned_table(
    state: Mapping[str, Tensor], metadata: WeightsMetadata
) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Replaces sine-cosine or per-axis position embeddings by a learned table; other weights are unchanged.

    Few programs know those, but at one resolution the numbers that are added to the tokens are a table (1, F + N, D),
    in which the F prefix tokens have rows of zeros. Every program has a place for it.
    """
    model = metadata.model
    if model.pos_embed not in ADDED or placement(model) != "stem":
        return dict(state), metadata
    network = build_vit(model, max(1, metadata.num_classes)).eval()
    network.load_state_dict(dict(state), strict=False)  # a head may be missing
    shape = metadata.shape
    num_patches = shape.grid[0] * shape.grid[1]
    tokens = network.add_prefix_and_positions(torch.zeros(1, num_patches, shape.embed_dim))
    changed = model.model_copy(update={"pos_embed": "learned_1d", "pos_embed_placement": None})
    metadata = metadata.model_copy(update={"model": changed})
    shapes = expected_shapes(metadata)
    table = torch.zeros(shapes["pos_embed"])
    table[:, -num_patches:] = tokens[:, -num_patches:]
    return {name: table if name == "pos_embed" else state[name] for name in shapes}, metadata
