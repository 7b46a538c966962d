"""The dense head: one linear layer on every patch token, bilinear to the pixels; at other sizes; kept or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.families.registry import adapt_state_dict, build_model
from pretrain.models.interop import load_weights, save_weights
from pretrain.models.vit import build_vit
from tests.golden.exchange import filled, images_of, metadata_of, model_of
from tests.golden.twins import small_config

K = 11


@pytest.mark.parametrize("changes", [{}, {"pool": "avg_norm", "class_token": False, "num_registers": 2}])
def test_logits_are_a_linear_layer_of_the_normed_patch_tokens(changes: dict) -> None:
    model = model_of(head="dense", **changes)
    plain = build_vit(model.config, K)
    plain.load_state_dict(model.state_dict())
    images = images_of(model)
    with torch.no_grad():
        tokens = plain.fc_norm(plain.forward_features(images))
        grid = plain.patch_map(tokens)
        weight, bias = model.head.weight, model.head.bias
        logits = torch.einsum("bdhw,kd->bkhw", grid, weight) + bias[None, :, None, None]
        found = model(images)
        torch.testing.assert_close(model.patch_logits(plain.forward_features(images)), logits)
    assert found.shape == (len(images), K, *images.shape[2:])
    wanted = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, wanted)


def test_it_moves_to_another_resolution_and_keeps_its_head(tmp_path: Path) -> None:
    model = model_of(head="dense")
    save_weights(tmp_path / "w.safetensors", model.state_dict(), metadata_of(model))
    state, about = load_weights(tmp_path / "w.safetensors")
    assert about.task == "segmentation"
    height, width = about.img_size
    larger = build_model(small_config(head="dense", img_size=(2 * height, 2 * width)), K)
    adapted, report = adapt_state_dict(state, about, larger, head="keep", filter="bicubic", seed=0)
    larger.load_state_dict(adapted)
    assert list(report.resized) == ["pos_embed"]
    assert larger(torch.zeros(1, 3, 2 * height, 2 * width)).shape == (1, K, 2 * height, 2 * width)


def test_a_head_for_images_is_not_taken_for_one_for_pixels() -> None:
    pooled = model_of()
    dense = filled(build_model(small_config(head="dense"), K))
    with pytest.raises(CheckpointError, match=r"have model.head: pooled, the model dense; set init.head: replace"):
        adapt_state_dict(pooled.state_dict(), metadata_of(pooled), dense, head="keep", filter="bicubic", seed=0)
    _, report = adapt_state_dict(
        pooled.state_dict(), metadata_of(pooled), dense, head="replace", filter="bicubic", seed=0
    )
    assert report.new == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    "changes", [{"pool": "map"}, {"representation_size": 9}, {"distilled": True}, {"mask_token": True}]
)
def test_what_would_be_ignored_is_refused(changes: dict) -> None:
    with pytest.raises(ValidationError, match=r"head: dense is on each patch token; .* would be ignored"):
        ModelConfig(variant="S/16", head="dense", **changes)


def test_timm_has_none() -> None:
    with pytest.raises(ValidationError, match="head belongs to name: vit"):
        ModelConfig(name="timm/resnet18", head="dense")
