"""Hugging Face's ``preprocessor_config.json``: how images become inputs, read completely or refused by the key's name.

A file may leave out what its class has as a default (``preprocessor_classes``). Pixels are
rescaled and normalised in one affine step: with factor f, mean m and deviation s an input is (x·f − m) / s of the pixel
x in 0 … 255, which is the same as normalising x / 255 by the mean m / (255 f) and the deviation s / (255 f).

Source: transformers 5.24, ``image_processing_backends.py`` and the classes' own files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.huggingface_folder import PREPROCESSOR, read_json
from pretrain.models.exchange.preprocessor_classes import CLASS_OF_TYPE, CLASSES, WITHOUT_EFFECT, Triple
from pretrain.models.exchange.translation import FILTERS, known_transform
from pretrain.models.metadata import WeightsMetadata

Size = tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """How images become inputs, as far as it can be done here.

    Attributes:
        mean, std: of pixels in [0, 1], per channel; None: unknown.
        transform: None: ``problem`` tells why.
        problem: names the key and the remedy.
    """

    mean: Triple | None
    std: Triple | None
    transform: EvalTransformConfig | None
    problem: str | None = None


class _RefusedError(Exception):
    """A key that has no counterpart here."""


def read_preprocessor(folder: Path, img_size: Size, model_type: str | None) -> Preprocessing:
    """Reads the file of a Hugging Face folder.

    Args:
        folder: the file may be missing.
        img_size: (height, width) of the model's input.
        model_type: of ``config.json``; its class counts where the file names none.

    Raises:
        CheckpointError: the file is damaged, or its numbers are impossible.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return Preprocessing(None, None, None, f"{path} does not exist: copy the complete folder")
    given = read_json(path)
    try:
        settings = _complete(given, model_type)
        mean, std = _statistics(settings, path)
    except _RefusedError as refused:
        return Preprocessing(None, None, None, f"{path}: {refused}")
    try:
        _refuse_unknown(given)
        return Preprocessing(mean, std, _transform(settings, img_size))
    except _RefusedError as refused:
        return Preprocessing(mean, std, None, f"{path}: {refused}")


def _complete(given: Mapping[str, Any], model_type: str | None) -> dict[str, Any]:
    """The settings with the defaults of their class; files from before 2022 name a feature extractor."""
    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    name = name or CLASS_OF_TYPE.get(str(model_type))
    if name is None:
        raise _RefusedError(f"image_processor_type is missing, and none is known for model_type {model_type}")
    plain = str(name).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if plain not in CLASSES:
        raise _RefusedError(f"image_processor_type: {name} is not read; known are {', '.join(CLASSES)}")
    if given.get("crop_pct") is not None and "crop_pct" not in CLASSES[plain]:
        raise _RefusedError(f"crop_pct: {given['crop_pct']} is read for ConvNextImageProcessor only, not for {name}")
    return CLASSES[plain] | {key: value for key, value in given.items() if value is not None}


def _statistics(settings: Mapping[str, Any], path: Path) -> tuple[Triple, Triple]:
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise CheckpointError(f"{path}: rescale_factor: {factor!r} is not a positive number; copy the file again")
    scale = 255 * factor
    if not settings["do_normalize"]:
        return (0.0, 0.0, 0.0), (1 / scale, 1 / scale, 1 / scale)
    mean, std = (_triple(settings[key], key, path) for key in ("image_mean", "image_std"))
    if abs(scale - 1) < 1e-9:  # 1/255 as it was rounded in the file
        return mean, std
    return (mean[0] / scale, mean[1] / scale, mean[2] / scale), (std[0] / scale, std[1] / scale, std[2] / scale)


def _triple(value: Any, key: str, path: Path) -> Triple:
    values = [value] * 3 if isinstance(value, int | float) else value
    fits = isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(one, int | float) for one in values)
    if not fits or (key == "image_std" and min(values) <= 0):
        raise CheckpointError(f"{path}: {key}: {value!r} is not three numbers, one per channel; copy the file again")
    return float(values[0]), float(values[1]), float(values[2])


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        known = key in WITHOUT_EFFECT or key in CLASSES["ViTImageProcessor"]
        if not known and value not in (None, False) and not (key == "data_format" and value == "channels_first"):
            raise _RefusedError(f"{key}: {value!r} is not read")


def _transform(settings: Mapping[str, Any], img_size: Size) -> EvalTransformConfig:
    """Our evaluation transform for complete settings."""
    if not settings["do_resize"]:
        raise _RefusedError("do_resize: false leaves images at their own size, the model has one size")
    chosen = {number: ours for ours, (_, number) in FILTERS.items()}.get(settings["resample"])
    if chosen is None:
        known = " or ".join(str(number) for _, number in FILTERS.values())
        raise _RefusedError(f"resample: {settings['resample']} is not read, only {known} (bilinear, bicubic)")
    size = _size_of(settings["size"], "size", square=settings["default_to_square"])
    if "crop_pct" in settings:
        return _convnext(size, settings["crop_pct"], img_size, chosen)
    crop = _crop_of(settings) if settings["do_center_crop"] else None
    if crop is not None and crop != img_size:
        raise _RefusedError(f"crop_size: {_words(crop)} is not the model's {_words(img_size)}")
    if set(size) == {"height", "width"}:
        return _squashed((size["height"], size["width"]), crop, img_size, chosen)
    if set(size) == {"shortest_edge"}:
        return _short_side(size["shortest_edge"], crop, img_size, chosen)
    raise _RefusedError(f"size: {dict(size)} is not read, only a number, height and width, or shortest_edge")


def _size_of(size: Any, key: str, *, square: bool) -> Mapping[str, int]:
    if isinstance(size, int) and not isinstance(size, bool):
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, list | tuple) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    if not isinstance(size, Mapping) or not all(value is None or isinstance(value, int) for value in size.values()):
        raise _RefusedError(f"{key}: {size!r} is not read, only a number, height and width, or shortest_edge")
    return {name: value for name, value in size.items() if value is not None}


def _crop_of(settings: Mapping[str, Any]) -> Size:
    crop = _size_of(settings["crop_size"], "crop_size", square=True)
    if set(crop) != {"height", "width"}:
        raise _RefusedError(f"crop_size: {dict(crop)} is not read, only a number, or height and width")
    return crop["height"], crop["width"]


def _squashed(size: Size, crop: Size | None, img_size: Size, chosen: str) -> EvalTransformConfig:
    if size == img_size:
        return EvalTransformConfig(resize="squash", resize_filter=chosen)  # type: ignore[arg-type]
    if crop is None:
        raise _RefusedError(f"size: {_words(size)} is not the model's {_words(img_size)}")
    return _with_crop("squash_crop", size, img_size, chosen)


def _short_side(edge: int, crop: Size | None, img_size: Size, chosen: str) -> EvalTransformConfig:
    if crop is None:
        raise _RefusedError(f"size: shortest_edge {edge} with do_center_crop: false gives inputs of several sizes")
    if img_size[0] != img_size[1]:
        raise _RefusedError(f"size: shortest_edge {edge} with a crop of {_words(img_size)} is not read, only a square")
    return _with_crop("short_side", (edge, edge), img_size, chosen)


def _convnext(size: Mapping[str, int], crop_pct: Any, img_size: Size, chosen: str) -> EvalTransformConfig:
    """ConvNeXt's own: from 384 pixels on a squash, below that a short side of the size / crop_pct, and its centre."""
    if set(size) != {"shortest_edge"}:
        raise _RefusedError(f"size: {dict(size)} is not read for ConvNextImageProcessor, only shortest_edge")
    edge = size["shortest_edge"]
    if (edge, edge) != img_size:
        raise _RefusedError(f"size: shortest_edge {edge} is not the model's {_words(img_size)}")
    if edge >= 384:
        return EvalTransformConfig(resize="squash", resize_filter=chosen)  # type: ignore[arg-type]
    if isinstance(crop_pct, bool) or not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        raise _RefusedError(f"crop_pct: {crop_pct!r} is not a number above 0 and up to 1")
    side = int(edge / crop_pct)
    return _with_crop("short_side", (side, side), img_size, chosen)


def _with_crop(resize: str, size: Size, img_size: Size, chosen: str) -> EvalTransformConfig:
    """A resize to ``size`` and the centre; its crop fraction is one for which rounding down gives ``size``."""
    near = [side / (resized + 0.25) for side, resized in zip(img_size, size, strict=True) if resized > 0]
    shares = [img_size[0] / size[0] if size[0] else 0.0, *near]
    for share in shares:
        if 0 < share <= 1 and tuple(math.floor(side / share) for side in img_size) == size:
            fields = {"resize": resize, "crop_fraction": share, "resize_filter": chosen}
            return EvalTransformConfig.model_validate(fields)
    raise _RefusedError(f"size: {_words(size)} with a crop of {_words(img_size)} is not one fraction of both sides")


def _words(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def preprocessor_of(metadata: WeightsMetadata) -> dict[str, Any]:
    """The content of ``preprocessor_config.json`` for weights, with every key.

    The class is one that also crops in transformers 4, where ViTImageProcessor does not.

    Raises:
        CheckpointError: Hugging Face's processors cannot express it, or it is unknown.
    """
    transform, (height, width) = known_transform(metadata, "Hugging Face"), metadata.img_size
    mean, std = metadata.normalisation
    settings: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": FILTERS[transform.resize_filter][1],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if transform.resize == "squash":
        return settings | {"size": {"height": height, "width": width}, "do_center_crop": False}
    crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    if transform.resize == "squash_crop":
        larger = {"height": transform.before_crop(height), "width": transform.before_crop(width)}
        return settings | {"image_processor_type": "DeiTImageProcessor", "size": larger} | crop
    if height != width:
        raise CheckpointError(
            f"data.eval_transform.resize: short_side of {height}×{width} pixels cannot be expressed for Hugging Face, "
            "whose shortest_edge knows square crops only; give --resize squash, or another --format"
        )
    edge = {"shortest_edge": transform.before_crop(height)}
    return settings | {"image_processor_type": "BitImageProcessor", "size": edge} | crop
