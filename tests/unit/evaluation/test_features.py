"""Features are what the head sees, of every kind of model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import DataError
from pretrain.evaluation.features import single_labels
from pretrain.models.families.registry import build_model, init_weights
from pretrain.models.head_input import HeadInput

SMALL = {"variant": "mu/4", "img_size": 16, "depth": 2, "head_init": "normal"}
MODELS = {
    "tanh layer": {**SMALL, "representation_size": "width"},
    "mean": {**SMALL, "pool": "avg_norm", "class_token": False},
    "distilled": {**SMALL, "distilled": True},
    "timm": {"name": "timm/convnext_atto", "img_size": 32},
    "a head of 1×1 convolution": {"name": "timm/resnetv2_18", "img_size": 32},
}


@pytest.mark.parametrize("name", MODELS)
def test_head_input(name: str) -> None:
    config = ModelConfig(**MODELS[name])  # type: ignore[arg-type]
    model = build_model(config, 7).eval()
    init_weights(model, 0)
    images = torch.randn(3, 3, config.img_size, config.img_size)  # type: ignore[arg-type]
    with torch.no_grad(), HeadInput(model) as head_input:
        model(images)
        first = head_input.take()
        model(images.flip(0))
        second = head_input.take()
        expected = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    assert first.shape[0] == 3 and first.ndim == 2 and first.dtype == torch.float32
    torch.testing.assert_close(first, expected.flatten(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second.flip(0), first, rtol=1e-5, atol=1e-6)


def test_the_listener_leaves_nothing_behind() -> None:
    model = build_model(ModelConfig(**SMALL), 7)  # type: ignore[arg-type]
    with HeadInput(model):
        assert model.head._forward_pre_hooks  # type: ignore[union-attr]
    assert not model.head._forward_pre_hooks  # type: ignore[union-attr]


@pytest.mark.parametrize("labels", [[[1, 2], [3, -1]], [[1], [-1]]])
def test_images_need_one_label(labels: list[list[int]]) -> None:
    with pytest.raises(DataError, match="do not have exactly one label"):
        single_labels(np.array(labels), "data/set")
    assert single_labels(np.array([[-1, 4], [2, -1]]), "data/set").tolist() == [4, 2]
