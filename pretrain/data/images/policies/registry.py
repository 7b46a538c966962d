"""Policies by the key that enables them, in order of application. A new policy is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from pretrain.config.schema.augmentation import parse_timm_policy
from pretrain.config.schema.data import TrainTransformConfig
from pretrain.data.images.policies.big_vision import BigVisionRandAugment
from pretrain.data.images.policies.color import ColorJitter, ThreeAugment
from pretrain.data.images.policies.protocol import Policy
from pretrain.data.images.policies.timm import TimmRandAugment

Mean = tuple[float, float, float]


def _big_vision(config: TrainTransformConfig, mean: Mean) -> Policy | None:
    chosen = config.randaugment
    return BigVisionRandAugment(chosen.num_layers, chosen.magnitude) if chosen else None


def _timm(config: TrainTransformConfig, mean: Mean) -> Policy | None:
    if config.auto_augment is None:
        return None
    cubic = config.resize_filter == "bicubic_aa"  # timm also uses the filter of the crop for geometry
    filter = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    return TimmRandAugment(parse_timm_policy(config.auto_augment), mean, filter)


def _jitter(config: TrainTransformConfig, mean: Mean) -> Policy | None:
    if not config.color_jitter and not config.color_jitter_hue:
        return None
    return ColorJitter(config.color_jitter, config.color_jitter_hue)


POLICIES: dict[str, Callable[[TrainTransformConfig, Mean], Policy | None]] = {
    "randaugment": _big_vision,
    "auto_augment": _timm,
    "three_augment": lambda config, mean: ThreeAugment() if config.three_augment else None,
    "color_jitter": _jitter,
}


def build_policies(config: TrainTransformConfig, mean: Mean) -> dict[str, Policy]:
    """The enabled policies, in order.

    Args:
        config: the training transform.
        mean: of the normalisation.
    """
    built = {name: build(config, mean) for name, build in POLICIES.items()}
    return {name: policy for name, policy in built.items() if policy is not None}
