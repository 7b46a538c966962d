"""Families of models: what each declares is true of its networks, and a new one is a row and a module."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from pretrain.config.families import FAMILIES, FamilyTraits, family_name
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.families.registry import build_frozen, build_model, family_of, require_same, tensor_shapes
from pretrain.models.vit import VisionTransformer
from tests.golden.twins import small_config

CLIP = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 8}
ONE_OF_EACH = {
    "vit": small_config(),
    "timm": ModelConfig(name="timm/pvt_v2_b0", img_size=32),
    "hf": ModelConfig(name="hf/CLIPVisionModel", img_size=32, kwargs=CLIP),
}


def test_vit_is_built_with_its_head() -> None:
    model = build_model(small_config(), 7)
    assert isinstance(model, VisionTransformer)
    assert model.head.out_features == model.num_classes == 7


@pytest.mark.parametrize(
    ("name", "family"),
    [("vit", "vit"), ("timm/resnet18", "timm"), ("timm/", None), ("timm", None), ("vit/B", None), ("", None)],
)
def test_a_name_belongs_to_one_family_or_none(name: str, family: str | None) -> None:
    assert family_name(name) == family


def test_every_key_is_read_by_a_family() -> None:
    """A key that no row lists would be refused with every model."""
    read = frozenset().union(*(row.keys for row in FAMILIES.values()))
    assert read == set(ModelConfig.model_fields) - {"name"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_declares_is_true_of_its_networks(family: str) -> None:
    model = ONE_OF_EACH[family]
    traits, net = model.family, build_model(model, 5)
    assert traits is FAMILIES[family]
    for policy in ("none", "selective", "every_2", "full"):
        try:
            net.set_grad_checkpointing(policy)  # type: ignore[operator]
            taken = True
        except ConfigError:
            taken = False
        assert taken == traits.takes_policy(policy), policy
    assert tensor_shapes(model, 5) == {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert family_of(model).num_parameters(model, 5) == sum(p.numel() for p in net.parameters())
    assert family_of(model).geometry(model).img_size == model.size


def test_weights_of_another_family_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"weights are of model\.name: timm/pvt_v2_b0, the model is vit"):
        require_same(ONE_OF_EACH["timm"], ONE_OF_EACH["vit"])


def test_a_third_family_is_a_row_and_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(nn.Module):
        def __init__(self, model: ModelConfig, num_classes: int) -> None:
            super().__init__()
            self.config = model
            self.head = nn.Linear(3 * model.size[0] * model.size[1], num_classes)

    class FlatFamily:
        def build_frozen(self, model: ModelConfig, num_classes: int) -> nn.Module:
            return Flat(model, num_classes)

    row = FamilyTraits(form="flat", keys=frozenset({"img_size"}), policies=("none", "full"))
    monkeypatch.setitem(FAMILIES, "flat", row)
    module: Any = SimpleNamespace(FAMILY=FlatFamily())
    monkeypatch.setitem(sys.modules, "pretrain.models.families.flat", module)
    model = ModelConfig(name="flat", img_size=(4, 8))
    assert model.family is row and model.label == "flat"
    assert isinstance(build_frozen(model, 2), Flat)
    with pytest.raises(ValidationError, match="dropout belongs to name: vit or timm/NAME or hf/NAME; with flat"):
        ModelConfig(name="flat", dropout=0.1)
    with pytest.raises(
        ValidationError, match=r"known are vit and timm/NAME \(timm's models\) and hf/NAME \(.*\) and flat"
    ):
        ModelConfig(name="flat/other")
