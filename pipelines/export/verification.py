"""Reads an export back and verifies that it is the same model: tensors, metadata and a forward pass.

Legend: B images · C H W · K classes · R width of the head's input.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.weights.network import built
from pretrain.errors import CheckpointError
from pretrain.models.exchange.formats import load_any
from pretrain.models.exchange.onnx import INPUT, Features
from pretrain.models.exchange.timm_folder import WEIGHTS
from pretrain.models.families.registry import family_of
from pretrain.models.metadata import WeightsMetadata

NUM_IMAGES = 2
TOLERANCE = 1e-4  # of the largest output; fp32 kernels of other programs sum in another order
_COMPARED = (
    *("num_classes", "img_size", "patch", "grid", "num_prefix_tokens", "pool", "gelu", "layer_norm_eps"),
    *("mean", "std", "class_names", "class_ids", "objective", "activation", "target_mean", "target_std"),
    *("precision", "tf32"),
)


def verify(
    path: Path, format: str, state: Mapping[str, Tensor], metadata: WeightsMetadata, model: nn.Module
) -> list[str]:
    """Compares the export at ``path`` with what was exported; returns a line for each check.

    Raises:
        CheckpointError: it is not the same model; nothing is published.
    """
    images, expected = _sample(model, metadata)
    done = []
    if format != "onnx":
        done.append(_reread(path, format, state, metadata, images, expected))
    peer = {"timm": _by_timm, "hf": _by_transformers, "npz": _by_timms_npz_reader, "onnx": _by_onnxruntime}[format]
    outcome = peer(path, metadata, images)
    if isinstance(outcome, str):
        return [*done, outcome]
    who, found = outcome
    return [*done, f"forward pass by {who}: {_agreement(path, who, found, expected)}"]


@torch.no_grad()
def _sample(model: nn.Module, metadata: WeightsMetadata) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W), always the same, and the model's outputs: (B, K), or (B, R) without a head."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_IMAGES, 3, *metadata.img_size, generator=generator)
    return images, (model if metadata.num_classes else Features(model))(images)


def _agreement(path: Path, who: str, found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape or not torch.isfinite(found).all():
        raise CheckpointError(f"{path.name}: {who} gives {tuple(found.shape)}, or numbers that are not finite")
    difference, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    if difference > TOLERANCE * max(scale, 1.0):
        raise CheckpointError(
            f"{path.name}: {who} computes something else: outputs differ by {difference:.3g} of {scale:.3g}; "
            "nothing was published, please report it with the model's config"
        )
    return f"outputs differ by at most {difference:.2g} of {scale:.2g}"


def _reread(
    path: Path,
    format: str,
    state: Mapping[str, Tensor],
    metadata: WeightsMetadata,
    images: Tensor,
    expected: Tensor,
) -> str:
    again, described = load_any(path, format)
    different = [name for name in {*state, *again} if name not in again or not _same(state.get(name), again[name])]
    if different:
        raise CheckpointError(f"{path.name}: tensor {sorted(different)[0]} is not what was written; check the disk")
    for name in _COMPARED:
        found, wanted = getattr(described, name), getattr(metadata, name)
        if found != wanted:
            raise CheckpointError(f"{path.name}: {name} reads back as {found}, {wanted} was meant")
    _agreement(path, "the model read back", _sample(built(again, described), described)[1], expected)
    number = sum(tensor.numel() for tensor in again.values())
    return f"{len(again)} tensors with {number:,} parameters read back, the same bit for bit"


def _same(written: Tensor | None, read: Tensor) -> bool:
    return written is not None and torch.equal(written, read)


@torch.no_grad()
def _by_timm(path: Path, metadata: WeightsMetadata, images: Tensor) -> tuple[str, Tensor]:
    who, twin = loaded_by_timm(path)
    return who, twin(images)


def loaded_by_timm(folder: Path) -> tuple[str, nn.Module]:
    """The model that timm makes of a folder, in evaluation mode, and in words how it was loaded."""
    import timm

    try:
        with _without_network():
            return "timm", timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except OSError as error:  # some hybrids first download the weights of their backbone, which they then replace
        who = f"timm (with checkpoint_path; pretrained=True downloads other weights first: {type(error).__name__})"
        return who, timm.create_model(f"local-dir:{folder}", checkpoint_path=str(folder / WEIGHTS)).eval()


@contextlib.contextmanager
def _without_network() -> Iterator[None]:
    """Makes downloads from the hub fail immediately; without a network its client would retry for minutes."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@torch.no_grad()
def _by_timms_npz_reader(path: Path, metadata: WeightsMetadata, images: Tensor) -> tuple[str, Tensor] | str:
    if metadata.model.representation_size is not None:
        return "timm has no tanh layer, so its reader of .npz was not asked"
    import timm

    described = family_of(metadata.model).timm_twin(metadata.model)
    twin: Any = timm.create_model(described.architecture, num_classes=metadata.num_classes, **described.arguments)
    twin.load_pretrained(str(path))
    return "timm's reader of .npz", twin.eval()(images)


@torch.no_grad()
def _by_transformers(path: Path, metadata: WeightsMetadata, images: Tensor) -> tuple[str, Tensor] | str:
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed, so it was not asked; pip install transformers to have it checked"
    import transformers

    from pretrain.models.exchange.huggingface_folder import CONFIG, read_json
    from pretrain.models.exchange.huggingface_module import quietly
    from pretrain.models.families.hf_backbone import pooled

    with quietly():
        twin: Any = getattr(transformers, read_json(path / CONFIG)["architectures"][0]).from_pretrained(path)
    return "transformers", pooled(twin.eval()(images))


def _by_onnxruntime(path: Path, metadata: WeightsMetadata, images: Tensor) -> tuple[str, Tensor]:
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {INPUT: part.numpy()})[0] for part in images.split(1)]  # another batch than when traced
    return "onnxruntime", torch.cat([torch.from_numpy(part) for part in parts])
