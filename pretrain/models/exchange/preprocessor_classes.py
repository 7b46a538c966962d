"""Hugging Face's image processors that are read: the defaults of each, and keys that change nothing here.

Source: transformers 5.24, the files ``image_processing_*.py`` of the classes, with which
tests/golden/test_preprocessor.py compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Triple = tuple[float, float, float]

_HALF, _IMAGENET = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def _defaults(
    resample: int,
    statistics: tuple[Triple, Triple],
    size: Mapping[str, int],
    *,
    crop: bool = False,
    square: bool = True,
) -> dict[str, Any]:
    """Defaults of a class. ``square``: what its ``size: 224`` means, 224 × 224 or a shortest edge of 224."""
    return {
        "do_resize": True,
        "size": size,
        "resample": resample,
        "default_to_square": square,
        "do_center_crop": crop,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": statistics[0],
        "image_std": statistics[1],
    }


_SQUARE, _SHORTEST = {"height": 224, "width": 224}, {"shortest_edge": 224}
CLASSES: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": _defaults(2, _HALF, _SQUARE),
    "DeiTImageProcessor": _defaults(3, _HALF, {"height": 256, "width": 256}, crop=True),
    "BeitImageProcessor": _defaults(3, _HALF, _SQUARE),
    "PvtImageProcessor": _defaults(3, _IMAGENET, _SQUARE),
    "CLIPImageProcessor": _defaults(3, _CLIP, _SHORTEST, crop=True, square=False),
    "BitImageProcessor": _defaults(3, _CLIP, _SHORTEST, crop=True, square=False),
    "SiglipImageProcessor": _defaults(3, _HALF, _SQUARE, square=False),
    "DINOv3ViTImageProcessor": _defaults(2, _IMAGENET, _SQUARE),
    "ConvNextImageProcessor": _defaults(3, _HALF, {"shortest_edge": 384}, square=False) | {"crop_pct": 224 / 256},
}
CLASS_OF_TYPE = {
    "beit": "BeitImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    **dict.fromkeys(("swin", "swinv2", "vit", "vit_mae", "vit_msn"), "ViTImageProcessor"),
}
WITHOUT_EFFECT = frozenset(  # on RGB images, or read with another key
    {"image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys"}
    | {"do_convert_rgb", "do_reduce_labels", "reduce_labels", "default_to_square", "input_data_format", "num_channels"}
    | {"device", "disable_grouping", "return_tensors", "image_seq_length", "crop_pct"}
)
