"""Models, metadata and a real image file for tests that send weights to another program and back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.models.families.registry import build_model
from pretrain.models.metadata import WeightsMetadata
from tests.golden.twins import small_config

NUM_CLASSES = 11
NAMES = (*(f"class {index}" for index in range(NUM_CLASSES - 1)), "Ærø, the island")
IDS = tuple(f"n{index:08d}" for index in range(NUM_CLASSES))
SQUASH = EvalTransformConfig(resize="squash", resize_filter="bicubic_aa")
SHORT_SIDE = EvalTransformConfig(resize="short_side", crop_fraction=0.875, resize_filter="bilinear_aa")
LOGITS: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def model_of(num_classes: int = NUM_CLASSES, **changes: Any) -> Any:
    """A small model with random numbers in every tensor, in evaluation mode."""
    return filled(build_model(small_config(**changes), num_classes))


def real_model(variant: str, num_classes: int = 1000, **changes: Any) -> Any:
    """A model of a published size, likewise."""
    return filled(build_model(ModelConfig(variant=variant, **changes), num_classes))


def filled(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(float(is_scale), 0.1 if parameter.ndim < 2 else 0.05, generator=generator)
    return model.eval()


def metadata_of(model: Any, transform: EvalTransformConfig | None = SQUASH, **changes: Any) -> WeightsMetadata:
    """The metadata of the weights; mean and std differ by channel, so that a swap would show."""
    named = model.num_classes == NUM_CLASSES
    given: dict[str, Any] = {
        "class_names": NAMES if named else None,
        "class_ids": IDS if named else None,
        "eval_transform": transform,
    }
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return WeightsMetadata.of(model.config, model.num_classes, mean, std, **(given | changes))


def images_of(model: Any, num_images: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_images, 3, *model.shape.img_size, generator=generator)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(images)
    assert logits.std() > 0.05, "logits that are all alike would prove nothing"
    return logits


def photo(width: int, height: int) -> Image.Image:
    """A picture with edges, gradients and some noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(columns / 9.0 + rows / 23.0), np.cos(rows / 7.0), ((rows // 16 + columns // 16) % 2) * 2.0 - 1.0]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    pixels = np.stack(waves, axis=-1) * 90 + 128 + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def image_file(folder: Path, width: int, height: int, kind: str = "png") -> Path:
    path = folder / f"photo.{kind}"
    buffer = io.BytesIO()
    photo(width, height).save(buffer, format="JPEG" if kind == "jpg" else "PNG")
    path.write_bytes(buffer.getvalue())
    return path


def our_input(path: Path, metadata: WeightsMetadata) -> Tensor:
    """An image file as our evaluation sees it: (1, C, H, W), normalised."""
    from pretrain.data.batch import to_model_input
    from pretrain.data.images.augment import EvalTransform

    assert metadata.eval_transform is not None and metadata.mean is not None and metadata.std is not None
    pixels = EvalTransform(metadata.eval_transform, *metadata.img_size)(path.read_bytes())
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    return to_model_input(planes, metadata.mean, metadata.std)
