"""Image towers of transformers, saved by it, are read as our Vision Transformers and compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from pretrain.errors import CheckpointError
from pretrain.models.exchange.huggingface import read_huggingface
from pretrain.models.exchange.huggingface_folder import CONFIG, INDEX
from pretrain.models.exchange.huggingface_towers import DEFAULTS, TOWERS
from pretrain.models.exchange.onnx import Features
from pretrain.models.families.registry import build_frozen
from tests.golden.exchange import LOGITS
from tests.sweeps.huggingface import CASES, outputs_of, save

transformers.utils.logging.disable_progress_bar()

FAST = (
    "ViT, mask token",
    "ViT-MAE, pretraining",
    "DINOv2",
    "DINOv2, registers",
    "SigLIP",
    "SigLIP 2",
    "DeiT, headless",
)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_saved_network_computes_the_same_here(name: str, tmp_path: Path) -> None:
    net = save(name, tmp_path)
    state, metadata = read_huggingface(tmp_path)
    assert metadata.model.name.startswith(CASES[name].family)
    ours = build_frozen(metadata.model, max(1, metadata.num_classes))
    missing = ours.load_state_dict(state, strict=False).missing_keys
    assert metadata.num_classes or {key.partition(".")[0] for key in missing} == {"head"}, missing
    images = torch.randn(3, 3, *metadata.img_size, generator=torch.Generator().manual_seed(1))
    expected = outputs_of(name, net, images)
    assert expected.std() > 0.05, "outputs that are all alike would prove nothing"
    found = (ours if metadata.num_classes else Features(ours))(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", ["SigLIP, with text", "CLIP, with text"])
def test_a_text_tower_is_left_out_and_counted(name: str, tmp_path: Path) -> None:
    net, said = save(name, tmp_path), []
    number = len(net.state_dict()) - len(net.vision_model.state_dict())
    _, metadata = read_huggingface(tmp_path, said.append)
    assert metadata.num_classes == 0 and len(said) == 1
    assert said[0].startswith(f"{number} tensors of ") and "are left out" in said[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_split_files_of_half_precision_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    import copy

    net = copy.deepcopy(save("DINOv2, registers", tmp_path)).to(dtype)
    (tmp_path / "model.safetensors").unlink()
    net.save_pretrained(tmp_path, max_shard_size="8KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 2
    state, metadata = read_huggingface(tmp_path)
    ours = build_frozen(metadata.model, 1)
    ours.load_state_dict(state, strict=False)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Features(ours)(images), outputs_of("DINOv2", net.float(), images), **LOGITS)
    with safe_open(parts[0], framework="pt") as file:
        lost = next(iter(file.keys()))
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"][lost] = parts[1].name
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"tensor {lost} should be in {parts[1].name}, which lacks it"):
        read_huggingface(tmp_path)


def test_names_of_transformers_5_are_read(tmp_path: Path) -> None:
    net = save("ViT, pooler", tmp_path)
    net.save_pretrained(tmp_path, save_original_format=False)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert "layers.0.attention.q_proj.weight" in file.keys()  # noqa: SIM118
    state, _ = read_huggingface(tmp_path)
    assert torch.equal(state["blocks.1.attn.qkv.weight"][:24], net.layers[1].attention.q_proj.weight)


@pytest.mark.parametrize("name", sorted({(tower.kind, kind) for kind, tower in TOWERS.items()}))
def test_what_config_json_leaves_out_is_transformers_default(name: tuple[str, str]) -> None:
    kind = getattr(transformers, name[1]).config_class
    theirs = kind().to_dict()
    theirs = theirs.get("vision_config") or theirs
    assert theirs["model_type"] == name[0]
    known = {key: value for key, value in DEFAULTS[name[0]].items() if key in theirs}
    assert {key: theirs[key] for key in known} == known and len(known) >= 7


def test_settings_that_are_left_out_take_the_defaults(tmp_path: Path) -> None:
    """Released SigLIP folders have only what differs from the defaults."""
    save("SigLIP", tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    for name in ("hidden_act", "layer_norm_eps", "num_channels"):
        del content[name]
    (tmp_path / CONFIG).write_text(json.dumps(content))
    model = read_huggingface(tmp_path)[1].model
    assert (model.gelu, model.layer_norm_eps) == ("tanh", 1e-6)
