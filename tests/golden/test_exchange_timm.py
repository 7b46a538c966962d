"""timm's folders: what timm builds and loads from ours, and what we read from timm's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from pretrain.config.schema.data import EvalTransformConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.formats import with_learned_table
from pretrain.models.exchange.timm import CONFIG, WEIGHTS, read_timm, write_timm
from pretrain.models.families.registry import build_model
from pretrain.models.interop import load_weights
from tests.golden.exchange import (
    IDS,
    LOGITS,
    NAMES,
    SHORT_SIDE,
    SQUASH,
    image_file,
    images_of,
    logits_of,
    metadata_of,
    model_of,
    our_input,
    real_model,
)

MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "norm, then mean": {"pool": "norm_avg"},
    "mean, then norm": {"pool": "avg_norm", "class_token": False},
    "MAP": {"pool": "map", "class_token": False},
    "tanh gelu": {"gelu": "tanh"},
    "registers": {"num_registers": 3},
    "positions of patches only": {"pos_embed_prefix": False, "num_registers": 1},
    "no positions": {"pos_embed": "none"},
    "LayerScale, QK-norm": {"layer_scale": 0.3, "qk_norm": True},
    "distilled": {"distilled": True},
    "hybrid": {"variant": "R50+nano/16"},
    "an MLP of no round ratio": {"mlp_dim": 79},
}


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return model_of(**request.param)


def test_timm_loads_the_folder_and_agrees(model: Any, tmp_path: Path) -> None:
    metadata = metadata_of(model)
    write_timm(tmp_path, model.state_dict(), metadata)
    twin: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = images_of(model)
    torch.testing.assert_close(logits_of(twin, images), logits_of(model, images), **LOGITS)
    data = resolve_data_config({}, model=twin)
    assert tuple(data["input_size"]) == (3, *metadata.img_size)
    assert (tuple(data["mean"]), tuple(data["std"])) == (metadata.mean, metadata.std)
    assert (data["interpolation"], data["crop_mode"], data["crop_pct"]) == ("bicubic", "squash", 1.0)
    assert twin.num_classes == metadata.num_classes
    assert tuple(twin.pretrained_cfg["label_names"]) == IDS
    assert tuple(twin.pretrained_cfg["label_descriptions"][each] for each in IDS) == NAMES


@pytest.mark.parametrize("kind", ["sincos2d_big_vision", "sincos2d_timm", "learned_2d"])
@pytest.mark.parametrize("class_token", [True, False])
def test_positions_that_timm_has_not_are_written_as_a_table(kind: str, class_token: bool, tmp_path: Path) -> None:
    pool = {"class_token": class_token, "pool": "token" if class_token else "avg_norm"}
    model = model_of(pos_embed=kind, num_registers=2 * class_token, **pool)
    state, metadata = with_learned_table(model.state_dict(), metadata_of(model))
    assert metadata.model.pos_embed == "learned_1d"
    write_timm(tmp_path, state, metadata)
    twin: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = images_of(model)
    torch.testing.assert_close(logits_of(twin, images), logits_of(model, images), **LOGITS)
    assert with_learned_table(state, metadata)[1] == metadata, "a learned table stays as it is"


def test_a_folder_reads_back_the_same(model: Any, tmp_path: Path) -> None:
    metadata, state = metadata_of(model), model.state_dict()
    write_timm(tmp_path, state, metadata)
    again, described = read_timm(tmp_path)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    ours, theirs = metadata.model_dump(exclude={"model"}), described.model_dump(exclude={"model"})
    assert theirs == ours
    rebuilt = build_model(described.model, described.num_classes).eval()
    rebuilt.load_state_dict(again)
    images = images_of(model)
    torch.testing.assert_close(logits_of(rebuilt, images), logits_of(model, images), rtol=0, atol=0)
    assert load_weights(tmp_path / WEIGHTS)[1] == metadata, "the weights are also a weights file of ours"


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        ("vit_tiny_patch16_224", {}, {"variant": "Ti/16", "pool": "token"}),
        ("vit_small_patch32_224", {"img_size": 64}, {"variant": "S/32", "img_size": 64}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, {"pool": "avg_norm", "class_token": True}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}, {"pool": "norm_avg"}),
        ("vit_tiny_patch16_224", {"act_layer": "quick_gelu"}, "QuickGELU.* is not GELU"),
        ("vit_tiny_patch16_224", {"global_pool": "max"}, "global_pool 'max'"),
        ("vit_tiny_patch16_224", {"pre_norm": True}, "patch_embed.proj.bias is missing"),
        ("deit_tiny_distilled_patch16_224", {}, {"distilled": True, "num_registers": 0}),
        ("deit3_small_patch16_224", {"depth": 2}, {"pos_embed_prefix": False, "depth": 2, "layer_scale": 1e-6}),
        ("vit_tiny_patch16_224", {"num_classes": 0}, {"variant": "Ti/16"}),
    ],
)
def test_timms_own_folders_are_read(
    architecture: str, arguments: dict[str, Any], expected: dict[str, Any] | str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"num_classes": 7} | arguments
    theirs: Any = timm.create_model(architecture, **options).eval()
    timm.models.save_for_hf(theirs, str(tmp_path), model_args=arguments, safe_serialization=True)
    if isinstance(expected, str):
        with pytest.raises(CheckpointError, match=expected):
            read_timm(tmp_path)
        return
    state, metadata = read_timm(tmp_path)
    assert {name: getattr(metadata.model, name) for name in expected} == expected
    assert metadata.num_classes == theirs.num_classes
    if metadata.num_classes:
        ours = build_model(metadata.model, metadata.num_classes).eval()
        ours.load_state_dict(state)
        images = images_of(ours, 1)
        torch.testing.assert_close(ours(images), theirs(images), **LOGITS)


def test_a_backbone_of_timms_own_goes_there_and_back(tmp_path: Path) -> None:
    from pretrain.config.schema.model import ModelConfig
    from pretrain.models.metadata import WeightsMetadata

    config = ModelConfig(name="timm/pvt_v2_b0", img_size=64, kwargs={"depths": [1, 1, 1, 1]})
    ours = build_model(config, 5).eval()
    metadata = WeightsMetadata.of(config, 5, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), eval_transform=SQUASH)
    write_timm(tmp_path, ours.state_dict(), metadata)
    state, described = read_timm(tmp_path)
    assert described.model.name == config.name and described.img_size == (64, 64)
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())
    twin: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(twin(images), ours(images), **LOGITS)


@pytest.mark.parametrize(
    ("changes", "transform", "words"),
    [
        ({"representation_size": 16}, SQUASH, "model.representation_size: 16 .*--drop-head"),
        ({"layer_norm_eps": 1e-5}, SQUASH, "model.layer_norm_eps: 1e-05"),
        ({"pos_embed": "rope_2d"}, SQUASH, "model.pos_embed: rope_2d .*onnx"),
        ({"pos_embed": "learned_1d", "pos_embed_placement": "every_layer"}, SQUASH, "model.pos_embed_placement"),
        ({}, EvalTransformConfig(resize_filter="area"), "resize_filter: area has no counterpart in timm"),
        ({}, EvalTransformConfig(resize="resmall"), "resize: resmall has no counterpart in timm"),
        ({}, None, "do not say how images are resized"),
    ],
)
def test_what_timm_cannot_express_is_refused(
    changes: dict[str, Any], transform: Any, words: str, tmp_path: Path
) -> None:
    model = model_of(**changes)
    with pytest.raises(CheckpointError, match=words):
        write_timm(tmp_path, model.state_dict(), metadata_of(model, transform))
    assert not list(tmp_path.iterdir())


# Pillow's filters and PyTorch's differ by at most two of 256 levels at a few pixels.
PICTURES = [((320, 256), "png"), ((256, 300), "png"), ((400, 400), "jpg"), ((224, 448), "jpg"), ((303, 256), "png")]


def timms_input(twin: Any, path: Path) -> torch.Tensor:
    transform: Any = create_transform(**resolve_data_config({}, model=twin))
    with Image.open(path) as image:
        return transform(image.convert("RGB"))[None]


@pytest.mark.parametrize("transform", [SQUASH, SHORT_SIDE], ids=["squash", "short side"])
@pytest.mark.parametrize(("size", "kind"), PICTURES)
def test_an_image_file_becomes_the_same_input(
    size: tuple[int, int], kind: str, transform: EvalTransformConfig, tmp_path: Path
) -> None:
    model = model_of(variant="nano/16", img_size=112)
    metadata = metadata_of(model, transform)
    write_timm(tmp_path, model.state_dict(), metadata)
    twin: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    path = image_file(tmp_path, *size, kind)
    theirs = timms_input(twin, path)
    levels = (our_input(path, metadata) - theirs).abs() * torch.tensor(metadata.std).view(3, 1, 1) * 255
    assert levels.max() <= 2.01, "more than two levels"
    assert levels.mean() <= 0.5
    ours, others = logits_of(model, our_input(path, metadata)), logits_of(twin, theirs)
    torch.testing.assert_close(ours, others, rtol=0, atol=0.02 * float(ours.std()))
    assert ours.argmax() == others.argmax()


@pytest.mark.parametrize(("img_size", "fraction"), [(384, 0.9), (224, 0.875), (224, 0.95), (512, 1.0), (32, 0.9)])
def test_a_crops_share_comes_back_as_it_was(img_size: int, fraction: float, tmp_path: Path) -> None:
    """timm rounds size / crop_pct down, as we do."""
    model = model_of(variant="nano/16", img_size=img_size)
    transform = EvalTransformConfig(crop_fraction=fraction, resize_filter="bicubic_aa")
    write_timm(tmp_path, model.state_dict(), metadata_of(model, transform))
    assert json.loads((tmp_path / CONFIG).read_text())["pretrained_cfg"]["crop_pct"] == fraction
    assert read_timm(tmp_path)[1].eval_transform == transform


SIZES = [
    "B/16",
    pytest.param("L/16", marks=pytest.mark.slow),
    pytest.param("H/14", marks=pytest.mark.slow),
]
COUNTS = {"B/16": 86_567_656, "L/16": 304_326_632, "H/14": 632_045_800}


@pytest.mark.parametrize("variant", SIZES)
def test_real_sizes(variant: str, tmp_path: Path) -> None:
    model = real_model(variant)
    metadata = metadata_of(model, SHORT_SIDE)
    write_timm(tmp_path, model.state_dict(), metadata)
    twin: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert sum(parameter.numel() for parameter in twin.parameters()) == COUNTS[variant]
    path = image_file(tmp_path, 320, 256, "jpg")
    theirs = timms_input(twin, path)
    ours = our_input(path, metadata)
    assert ((ours - theirs).abs() * 255 * torch.tensor(metadata.std).view(3, 1, 1)).max() <= 2.01
    torch.testing.assert_close(logits_of(twin, ours), logits_of(model, ours), **LOGITS)
    state, described = read_timm(tmp_path)
    assert described.model.variant == variant and state.keys() == model.state_dict().keys()


def test_damage_is_named(tmp_path: Path) -> None:
    model = model_of()
    write_timm(tmp_path, model.state_dict(), metadata_of(model))
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-50])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_timm(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    for change, words in (
        ({"architecture": "vit_of_nowhere"}, "timm cannot build .*vit_of_nowhere"),
        ({"model_args": {"depth": "many"}}, "timm cannot build"),
        ({"model_args": config["model_args"] | {"depth": 4}}, "tensor blocks.3.norm1.weight is missing"),
    ):
        (tmp_path / WEIGHTS).write_bytes(whole)
        (tmp_path / CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=words):
            read_timm(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_timm(tmp_path)
