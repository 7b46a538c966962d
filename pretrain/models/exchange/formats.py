"""Weights in any format that is read (ours, Google's, timm's, Hugging Face's, torchvision's), and positions for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.models.exchange.facts import facts_beside, from_config
from pretrain.models.exchange.google import described_beside, read_npz
from pretrain.models.exchange.huggingface import read_huggingface
from pretrain.models.exchange.huggingface_folder import CONFIG, WEIGHTS, read_json
from pretrain.models.exchange.mae import MARK as MAE_MARK
from pretrain.models.exchange.mae import read_mae
from pretrain.models.exchange.timm import read_timm, read_training
from pretrain.models.exchange.timm_training import is_training
from pretrain.models.exchange.torch_files import SUFFIXES, load_pickled, unwrapped
from pretrain.models.exchange.torchvision import MARK, from_tensors, read_torchvision
from pretrain.models.interop import expected_shapes, is_weights_header, load_weights, read_metadata
from pretrain.models.metadata import Task, WeightsMetadata
from pretrain.models.variants import placement
from pretrain.models.vit import build_vit

ADDED = (
    "sincos2d_big_vision",
    "sincos2d_timm",
    "sincos2d_mae",
    "learned_2d",
)  # position embeddings that few programs support

Weights = tuple[dict[str, Tensor], WeightsMetadata]

Say = Callable[[str], None]


def read_torch(path: Path, say: Say) -> Weights:
    """Reads a file of ``torch.save`` that tells its architecture: torchvision's and MAE's by names, timm's in words.

    Raises:
        CheckpointError: damaged, objects other than tensors and plain values, or an unknown architecture.
    """
    content = load_pickled(path)
    if is_training(content):
        return read_training(path, content, say)
    state = unwrapped(content, path, say)
    if MARK in state:
        return from_tensors(state, {}, path)
    if MAE_MARK in state:
        return read_mae(state, path)
    raise CheckpointError(
        f"{path}: its {len(state)} tensors ({', '.join(sorted(state)[:3])}, …) do not say of which architecture they "
        f'are; put the file into a folder with a {CONFIG} such as {{"architecture": "vit_small_patch14_dinov2", '
        '"num_classes": 0} (a name of timm.list_models(); 0: without a head), and name the folder'
    )


READERS: dict[str, Callable[[Path, Say], Weights]] = {
    "weights": lambda path, say: load_weights(path),
    "npz": lambda path, say: read_npz(path),
    "timm": read_timm,
    "hf": read_huggingface,
    "torchvision": lambda path, say: read_torchvision(path),
    "torch": read_torch,
}


def is_model_folder(path: str | Path) -> bool:
    """Whether ``path`` is a folder of timm's or Hugging Face's, and not a run or a checkpoint."""
    return (Path(path) / CONFIG).is_file()


def load_any(path: str | Path, format: str | None = None, say: Say = lambda line: None) -> Weights:
    """Reads weights, whatever their format: tensors on the CPU under our names, and their metadata.

    Args:
        path: a .npz, .safetensors or .pth file, or a folder with config.json.
        format: a key of READERS; detected by default.
        say: called with each line for the user: wrappers that were taken off, tensors that were left out.

    Raises:
        CheckpointError: the format is not supported, the file is damaged or holds pickled objects, or the architecture
            is unknown.
    """
    path = Path(path)
    found = detect_format(path)
    if format is not None and format != found:
        raise CheckpointError(f"{path}: of the format {found}, not {format}; say {found}, or name another file")
    return READERS[found](path, say)


def task_of_weights(path: Path) -> Task:
    """The task that weights were trained for, without reading their tensors; errors as ``load_any``."""
    format = detect_format(path)
    if format == "hf":
        return from_config(read_json(path / CONFIG), path / CONFIG).task
    if format == "timm":
        return facts_beside(path, WEIGHTS).task
    if format == "torch":
        return "classification"
    metadata = described_beside(path) if format == "npz" else read_metadata(path)
    return "classification" if metadata is None else metadata.task


def detect_format(path: Path) -> str:
    """A key of READERS.

    Raises:
        CheckpointError: the path does not exist, or its format is not supported.
    """
    if path.is_dir():
        return _folder_format(path)
    if path.suffix == ".npz":
        return "npz"
    if path.suffix in SUFFIXES:
        return "torch"
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
