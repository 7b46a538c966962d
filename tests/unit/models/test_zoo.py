"""Architectures by name."""

from __future__ import annotations

import pytest

from pretrain.errors import ConfigError
from pretrain.models.vit import VisionTransformer
from pretrain.models.zoo import MODELS, build_model
from tests.golden.twins import small_config


def test_vit_is_built_with_its_head() -> None:
    model = build_model(small_config(), 7)
    assert isinstance(model, VisionTransformer)
    assert model.head.out_features == model.num_classes == 7


def test_a_name_without_a_row_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(MODELS, "vit")
    monkeypatch.setitem(MODELS, "another", build_model)
    with pytest.raises(ConfigError, match="unknown architecture 'vit'; known are timm/NAME, another"):
        build_model(small_config(), 7)
