"""Checkpoints and images as the pictures need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipelines.sources.entries import IMAGE_EXTENSIONS, Walk
from pipelines.sources.folder import images_of
from pipelines.weights.load import load_source
from pipelines.weights.network import built
from pretrain.config.schema.data import EvalTransformConfig
from pretrain.data.images.augment import EvalTransform
from pretrain.errors import BadSample, CheckpointError, ConfigError, DataError
from pretrain.models.families.registry import adapt_state_dict
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.vit import VisionTransformer, build_vit


class Source(NamedTuple):
    """A model to draw."""

    label: str
    path: str
    model: VisionTransformer
    metadata: WeightsMetadata


def load(path: Path, label: str, img_size: tuple[int, int] | None, say: Callable[[str], None]) -> Source:
    """Reads weights of any format; with ``img_size`` position embeddings are resized as fine-tuning does.

    Raises:
        CheckpointError: cannot be read, or a model without global attention.
    """
    state, metadata = load_source(path, "raw", say)
    if not metadata.model.family.has_global_attention:
        raise CheckpointError(
            f"{path}: {metadata.model.name} has no patch tokens that all attend to each other, so there is nothing to "
            "draw; the figures are of Vision Transformers (model.name: vit, or weights of timm's, Hugging Face's, "
            "torchvision's or Google's ViTs)"
        )
    if img_size is None or img_size == metadata.img_size:
        model = built(state, metadata)
    else:
        config = metadata.model.model_copy(update={"img_size": img_size})
        model = build_vit(config, max(1, metadata.num_classes))
        head = "keep" if metadata.num_classes else "replace"
        adapted, report = adapt_state_dict(state, metadata, model, head=head, filter="bilinear_corners", seed=0)
        for line in report.lines():
            say(f"{label}: {line}")
        model.load_state_dict(adapted)
        metadata = WeightsMetadata.of(config, metadata.num_classes, metadata.mean, metadata.std).model_copy(
            update={"eval_transform": metadata.eval_transform}
        )
    assert isinstance(model, VisionTransformer)
    return Source(label, str(path), model.float().eval(), metadata)


def find_images(paths: Sequence[Path], limit: int) -> list[Path]:
    """Files as given, and those below given folders in the order of their names; at most ``limit``.

    Raises:
        DataError: a path does not exist, or there are no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += [path / name for name, _ in images_of(Walk(path))]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"--images {path}: does not exist; name image files or folders of them")
    if not found:
        raise DataError(f"--images {', '.join(map(str, paths))}: no images ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    return found[:limit]


def pixels_of(files: Sequence[Path], source: Source) -> list[np.ndarray]:
    """Each image as the model sees it before it is normalised: uint8 (H, W, 3).

    Raises:
        DataError: a file cannot be read or decoded.
    """
    transform = EvalTransform(source.metadata.eval_transform or EvalTransformConfig(), *source.metadata.img_size)
    pixels = []
    for file in files:
        try:
            pixels.append(transform(file.read_bytes()))
        except (BadSample, OSError) as error:
            raise DataError(f"--images {file}: cannot be decoded: {error}") from error
    return pixels


def normalised(pixels: Sequence[np.ndarray], source: Source, batch_size: int) -> Iterator[Tensor]:
    """Batches (B, 3, H, W) as the model takes them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (source.metadata.mean, source.metadata.std))
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(np.stack(pixels[start : start + batch_size])).permute(0, 3, 1, 2).float() / 255
        yield (batch - mean) / std


def labels_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each checkpoint: its file name, with its folder where two are the same.

    Raises:
        ConfigError: the same checkpoint is given twice.
    """
    if len(set(map(str, paths))) < len(paths):
        raise ConfigError("the same checkpoint is named twice; name each once")
    names = [_short(path) for path in paths]
    return [
        name if names.count(name) == 1 else "/".join(path.parts[-3:]) for name, path in zip(names, paths, strict=True)
    ]


def _short(path: Path) -> str:
    if path.parent.name.startswith("step-") and path.suffix == ".safetensors":
        return f"{_short(path.parent)} ema" if path.stem.endswith("_ema") else _short(path.parent)
    if path.name.startswith("step-") and path.parent.name == "checkpoints":
        return f"{path.parent.parent.name} {path.name}"
    return path.stem if path.suffix else path.name
