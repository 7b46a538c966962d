"""Stages compute in the precision of the training, which the weights record."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from pipelines.weights.network import load_frozen
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.models.families.registry import build_model, init_weights
from pretrain.models.interop import load_weights, save_weights
from pretrain.models.metadata import WeightsMetadata

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("precision", [None, "fp32", "autocast", "bf16"])
def test_outputs_are_those_of_the_training(tmp_path: Path, precision: str | None) -> None:
    config = ModelConfig.model_validate({"variant": "mu/4", "img_size": 16, "head_init": "normal"})
    model = build_model(config, 5)
    init_weights(model, 3)
    about = WeightsMetadata.of(
        config, 5, HALF, HALF, eval_transform=EvalTransformConfig(), precision=precision, tf32=precision is not None
    )
    path = tmp_path / "weights.safetensors"
    save_weights(path, model.state_dict(), about)
    assert load_weights(path)[1] == about
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = (images.float() / 255 - 0.5) / 0.5
    plain = copy.deepcopy(model).eval()
    with torch.inference_mode():
        exact = plain(inputs)
        if precision == "bf16":
            expected = plain.bfloat16()(inputs.bfloat16()).float()
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
                expected = plain(inputs).float()
    found = load_frozen(path, device="cpu").outputs(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    is_exact = torch.allclose(exact, expected, rtol=1e-5, atol=1e-6)
    assert is_exact == (precision in (None, "fp32")), "the precisions must differ, or this test shows nothing"
