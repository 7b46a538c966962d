"""torchvision's Vision Transformers, read from safetensors, against torchvision's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import VisionTransformer, vit_b_16

from pretrain.errors import CheckpointError
from pretrain.models.exchange.torchvision import read_torchvision
from pretrain.models.families.registry import build_model
from tests.golden.exchange import LOGITS, filled, images_of, logits_of

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 48,
    "mlp_dim": 80,
    "num_classes": 7,
}


def saved(theirs: Any, path: Path, **header: str) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, path, metadata=header)
    return path


@pytest.mark.parametrize("changes", [{}, {"representation_size": 20}, {"num_heads": 2}])
def test_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = filled(VisionTransformer(**(SMALL | changes)))
    path = saved(theirs, tmp_path / "vit.safetensors", num_heads=str((SMALL | changes)["num_heads"]))
    state, metadata = read_torchvision(path)
    ours = build_model(metadata.model, metadata.num_classes).eval()
    ours.load_state_dict(state)
    images = images_of(ours)
    torch.testing.assert_close(logits_of(ours, images), logits_of(theirs, images), **LOGITS)
    assert (metadata.mean, metadata.eval_transform) == ((0.485, 0.456, 0.406), None)


def test_real_size(tmp_path: Path) -> None:
    theirs = filled(vit_b_16())
    state, metadata = read_torchvision(saved(theirs, tmp_path / "vit.safetensors"))
    assert metadata.model.variant == "B/16"
    ours = build_model(metadata.model, 1000).eval()
    ours.load_state_dict(state)
    images = images_of(ours, 1)
    torch.testing.assert_close(logits_of(ours, images), logits_of(theirs, images), **LOGITS)


def test_older_names_of_the_mlp(tmp_path: Path) -> None:
    theirs = filled(VisionTransformer(**SMALL))
    renamed = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    save_file(renamed, tmp_path / "old.safetensors", metadata={"num_heads": "4"})
    saved(theirs, tmp_path / "new.safetensors", num_heads="4")
    old, new = (read_torchvision(tmp_path / f"{age}.safetensors")[0] for age in ("old", "new"))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in new)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    theirs = filled(VisionTransformer(**SMALL))
    with pytest.raises(CheckpointError, match="number of attention heads of a width of 48 cannot be read"):
        read_torchvision(saved(theirs, tmp_path / "w.safetensors"))
    tensors = theirs.state_dict()
    del tensors["encoder.layers.encoder_layer_1.ln_2.bias"]
    save_file(tensors, tmp_path / "w.safetensors", metadata={"num_heads": "4"})
    with pytest.raises(CheckpointError, match=r"tensor encoder\.layers\.encoder_layer_1\.ln_2\.bias is missing"):
        read_torchvision(tmp_path / "w.safetensors")
    save_file({**theirs.state_dict(), "more": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"num_heads": "4"})
    with pytest.raises(CheckpointError, match="tensor more has no place"):
        read_torchvision(tmp_path / "w.safetensors")
