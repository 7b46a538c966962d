"""Preprocessing that a user states, for weights that were trained on images at their own aspect ratio."""

from __future__ import annotations

import pytest

from pipelines.weights.preprocessing import with_stated
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import CheckpointError
from pretrain.models.metadata import WeightsMetadata

NATIVE = EvalTransformConfig(resize="native", max_tokens=20, resize_filter="bicubic_aa")
HALF = (0.5, 0.5, 0.5)
METADATA = WeightsMetadata.of(ModelConfig(variant="mu/4", img_size=8), 3, HALF, HALF, eval_transform=NATIVE)


def test_they_are_used_on_images_of_one_size_only_if_that_is_stated() -> None:
    with pytest.raises(CheckpointError, match=r"at their own aspect ratio .* on images of 8×8 pixels, state --resize"):
        with_stated(METADATA, {})
    squashed = with_stated(METADATA, {"resize": "squash"}).eval_transform
    assert squashed == EvalTransformConfig(resize="squash", resize_filter="bicubic_aa")
    with pytest.raises(CheckpointError, match="state it with --crop-fraction"):
        with_stated(
            METADATA.model_copy(update={"eval_transform": None}), {"resize": "short_side", "resize_filter": "area"}
        )
    cropped = with_stated(METADATA, {"resize": "short_side", "crop_fraction": 0.9}).eval_transform
    assert cropped == EvalTransformConfig(resize="short_side", crop_fraction=0.9, resize_filter="bicubic_aa")


def test_the_length_is_in_the_file() -> None:
    again = WeightsMetadata.model_validate_json(METADATA.model_dump_json())
    assert again == METADATA
    other = METADATA.model_copy(update={"eval_transform": EvalTransformConfig()})
    assert "max_tokens" not in other.model_dump()["eval_transform"], "files of other weights are as before"
