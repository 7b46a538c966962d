"""ONNX graphs of ours, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
import onnxruntime

from pretrain.models.exchange.onnx import write_onnx
from pretrain.models.metadata import HEADER_KEY, WeightsMetadata
from tests.golden.exchange import images_of, logits_of, metadata_of, model_of, real_model

# Warnings of torch's exporter about its own dependencies are silenced where it is called.


def run(path: Path, images: torch.Tensor, output: str) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == [output]
    return np.asarray(session.run([output], {"images": images.numpy()})[0])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"representation_size": 20, "gelu": "tanh", "pool": "norm_avg"},
        {"pool": "map", "class_token": False, "qk_norm": True, "layer_scale": 0.2, "num_registers": 2},
        {"rope": "mixed", "norm": "rms_norm", "mlp": "swiglu", "gated_attention": True},
        {"rope": "axial", "block": "parallel"},
        {"distilled": True},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
def test_logits_for_any_number_of_images(changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(**changes)
    metadata = metadata_of(model)
    write_onnx(tmp_path / "m.onnx", model, metadata)
    for number in (1, 5):
        images = images_of(model, number)
        np.testing.assert_allclose(
            run(tmp_path / "m.onnx", images, "logits"), logits_of(model, images).numpy(), rtol=1e-4, atol=1e-5
        )
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert WeightsMetadata.model_validate_json(properties[HEADER_KEY]) == metadata
    assert "x / 255 - mean" in properties["input"] and "squash" in properties["eval_transform"]


def test_without_a_head_the_features_come_out(tmp_path: Path) -> None:
    model: Any = model_of()
    metadata = metadata_of(model, class_names=None, class_ids=None).model_copy(update={"num_classes": 0})
    write_onnx(tmp_path / "m.onnx", model, metadata)
    images = images_of(model)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", images, "features"), features.numpy(), rtol=1e-4, atol=1e-5)


def test_weights_beside_a_large_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.models.exchange.onnx._EXTERNAL_ABOVE_BYTES", 0)
    model = model_of()
    write_onnx(tmp_path / "m.onnx", model, metadata_of(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    images = images_of(model)
    found = run(tmp_path / "m.onnx", images, "logits")
    np.testing.assert_allclose(found, logits_of(model, images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_real_size(tmp_path: Path) -> None:
    model = real_model("B/16")
    write_onnx(tmp_path / "m.onnx", model, metadata_of(model))
    images = images_of(model, 1)
    found = run(tmp_path / "m.onnx", images, "logits")
    np.testing.assert_allclose(found, logits_of(model, images).numpy(), rtol=1e-4, atol=1e-4)
