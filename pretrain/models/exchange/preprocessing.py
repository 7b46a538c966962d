"""Translates our preprocessing to timm's and Hugging Face's settings, and back.

Both resize with Pillow's antialiased filters (or PyTorch's, which follow them to one or two of 256 levels), so of our
filters bilinear_aa and bicubic_aa have a counterpart there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pretrain.config.schema.data import EvalTransformConfig
from pretrain.errors import CheckpointError
from pretrain.models.metadata import WeightsMetadata

# Our filter → (timm's name, Pillow's number, which Hugging Face writes).
FILTERS: dict[str, tuple[str, int]] = {"bilinear_aa": ("bilinear", 2), "bicubic_aa": ("bicubic", 3)}


def known_transform(metadata: WeightsMetadata, program: str) -> EvalTransformConfig:
    """The evaluation transform of these weights, if ``program`` supports it.

    Raises:
        CheckpointError: it is unknown, or the filter has no counterpart.
    """
    transform = metadata.eval_transform
    if transform is None:
        raise CheckpointError(
            "the weights do not say how images are resized for them (eval_transform); say it with --resize, "
            "--crop-fraction and --resize-filter"
        )
    if transform.resize == "resmall":
        raise CheckpointError(
            f"data.eval_transform.resize: resmall has no counterpart in {program}, which rounds the long side down; "
            "give --resize short_side if the weights may be used with that instead"
        )
    if transform.resize_filter not in FILTERS:
        raise CheckpointError(
            f"data.eval_transform.resize_filter: {transform.resize_filter} has no counterpart in {program}; give "
            f"--resize-filter {' or '.join(FILTERS)} if the weights may be used with that instead"
        )
    return transform


def timm_settings(metadata: WeightsMetadata) -> dict[str, Any]:
    """``interpolation``, ``crop_mode`` and ``crop_pct`` of timm's ``pretrained_cfg``.

    Raises:
        CheckpointError: timm cannot express it, or it is unknown.
    """
    transform = known_transform(metadata, "timm")
    settings: dict[str, Any] = {"interpolation": FILTERS[transform.resize_filter][0]}
    if transform.resize == "squash":
        return settings | {"crop_mode": "squash", "crop_pct": 1.0}
    mode = "squash" if transform.resize == "squash_crop" else "center"
    return settings | {"crop_mode": mode, "crop_pct": transform.crop_fraction}


def _share(wanted: list[int], img_size: tuple[int, int], first: float) -> float | None:
    """The crop fraction, ``first`` if possible, for which each side divided by it and rounded down is as required."""
    near = [side / (resized + 0.25) for side, resized in zip(img_size, wanted, strict=True)]
    return next((share for share in (first, *near) if [math.floor(side / share) for side in img_size] == wanted), None)


def from_timm(settings: Mapping[str, Any], img_size: tuple[int, int]) -> EvalTransformConfig | None:
    """Our transform for timm's ``resolve_data_config``; None if there is no equivalent."""
    names = {name: ours for ours, (name, _) in FILTERS.items()}
    chosen, mode, share = names.get(settings["interpolation"]), settings["crop_mode"], settings["crop_pct"]
    if chosen is None or mode not in ("squash", "center"):
        return None
    if mode == "squash" and share == 1.0:
        return _transform(resize="squash", resize_filter=chosen)
    resize = "squash_crop" if mode == "squash" else "short_side"
    return _transform(resize=resize, crop_fraction=share, resize_filter=chosen)


def _transform(**fields: Any) -> EvalTransformConfig | None:
    try:
        return EvalTransformConfig(**fields)
    except ValidationError:
        return None


def huggingface_settings(metadata: WeightsMetadata) -> dict[str, Any]:
    """``preprocessor_config.json`` of a ViTImageProcessor.

    Raises:
        CheckpointError: the processor cannot express it, or it is unknown.
    """
    transform, (height, width) = known_transform(metadata, "Hugging Face"), metadata.img_size
    settings: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": FILTERS[transform.resize_filter][1],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(metadata.mean),
        "image_std": list(metadata.std),
    }
    if transform.resize == "squash":
        return settings | {"size": {"height": height, "width": width}, "do_center_crop": False}
    if transform.resize == "squash_crop":
        larger = {"height": transform.before_crop(height), "width": transform.before_crop(width)}
        return settings | {"size": larger, "do_center_crop": True, "crop_size": {"height": height, "width": width}}
    if height != width:
        raise CheckpointError(
            f"data.eval_transform.resize: short_side of {height}×{width} pixels cannot be expressed for Hugging Face, "
            "whose shortest_edge knows square crops only; give --resize squash, or another --format"
        )
    return settings | {
        "size": {"shortest_edge": transform.before_crop(height)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }


def from_huggingface(settings: Mapping[str, Any], img_size: tuple[int, int]) -> EvalTransformConfig | None:
    """Our transform for a ``preprocessor_config.json``; None if there is no equivalent."""
    numbers = {number: ours for ours, (_, number) in FILTERS.items()}
    chosen, size = numbers.get(settings.get("resample", 2)), settings.get("size", {"height": 224, "width": 224})
    if chosen is None or not settings.get("do_resize", True):
        return None
    size = {"height": size, "width": size} if isinstance(size, int) else size
    has_crop = settings.get("do_center_crop", False)
    if set(size) == {"height", "width"}:
        sides = [size["height"], size["width"]]
        if tuple(sides) == img_size:
            return _transform(resize="squash", resize_filter=chosen)
        share = _share(sides, img_size, img_size[0] / sides[0]) if has_crop else None
        return None if share is None else _transform(resize="squash_crop", crop_fraction=share, resize_filter=chosen)
    if set(size) == {"shortest_edge"} and has_crop and img_size[0] == img_size[1] <= size["shortest_edge"]:
        share = _share([size["shortest_edge"]] * 2, img_size, img_size[0] / size["shortest_edge"])
        return None if share is None else _transform(resize="short_side", crop_fraction=share, resize_filter=chosen)
    return None
