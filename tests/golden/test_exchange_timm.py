"""timm's folders: what timm builds and loads from ours, and what we read from timm's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from pretrain.config.schema.transforms import EvalTransformConfig
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
    filled,
    image_file,
    images_of,
    logits_of,
    metadata_of,
    model_of,
    our_input,
    real_model,
)

NARROW: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2}
FLEXIBLE = {**NARROW, "pos_embed_grid_size": [3, 3], "init_values": 0.1}
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
    "RMSNorm, no biases of q, k, v": {"norm": "rms_norm", "qk_norm": True, "qkv_bias": False},
    "SwiGLU": {"mlp": "swiglu", "mlp_dim": 79},
    "SwiGLU, LayerScale": {"mlp": "swiglu", "layer_scale": 0.3, "pool": "avg_norm"},
    "parallel": {"block": "parallel", "layer_scale": 0.3, "qk_norm": True, "norm": "rms_norm"},
    "axial rotary": {"rope": "axial", "rope_temperature": 100.0, "num_registers": 2, "mlp": "swiglu"},
    "axial rotary of another grid": {"rope": "axial", "pos_embed": "none", "rope_grid": (7, 7), "qkv_bias": False},
    "mixed rotary": {"rope": "mixed", "pos_embed_prefix": False, "qk_norm": True, "pool": "norm_avg"},
    "rotary, LayerScale": {"rope": "axial", "layer_scale": 0.3, "pool": "avg_norm", "class_token": False},
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
    if metadata.model.rope is None or metadata.model.layer_scale is None:  # then timm has other names
        assert load_weights(tmp_path / WEIGHTS)[1] == metadata, "the weights are also a weights file of ours"


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        ("vit_tiny_patch16_224", {}, {"variant": "Ti/16", "pool": "token"}),
        ("vit_small_patch32_224", {"img_size": 64}, {"variant": "S/32", "img_size": 64}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, {"pool": "avg_norm", "class_token": True}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}, {"pool": "norm_avg"}),
        ("deit_tiny_distilled_patch16_224", {}, {"distilled": True, "num_registers": 0}),
        ("deit3_small_patch16_224", {"depth": 2}, {"pos_embed_prefix": False, "depth": 2, "layer_scale": 1e-6}),
        ("vit_tiny_patch16_224", {"num_classes": 0}, {"variant": "Ti/16"}),
        ("vit_tiny_patch16_224", {"depth": 1, "norm_layer": "rmsnorm"}, {"norm": "rms_norm"}),
        ("vit_so150m2_patch16_reg1_gap_256", {"depth": 1}, {"qkv_bias": False, "layer_scale": 1e-5}),
        ("vit_giant_patch14_dinov2", {**NARROW, "img_size": 56}, {"mlp": "swiglu", "mlp_dim": 85}),
        ("vit_medium_patch16_rope_reg1_gap_256", NARROW, {"rope": "axial", "layer_scale": 1e-5, "qkv_bias": True}),
        ("vit_small_patch16_rope_mixed_ape_224", NARROW, {"rope": "mixed", "pos_embed_prefix": False}),
        ("naflexvit_base_patch16_gap", FLEXIBLE, {"pool": "avg_norm", "pos_embed_prefix": False, "img_size": 48}),
        ("naflexvit_base_patch16_map", FLEXIBLE, {"pool": "map", "class_token": False}),
        ("eva02_tiny_patch14_224", {**NARROW, "img_size": 56}, {"mlp": "swiglu", "rope_grid": (16, 16)}),
    ],
)
def test_timms_own_folders_are_read(
    architecture: str, arguments: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"num_classes": 7} | arguments
    theirs: Any = timm.create_model(architecture, **options).eval()
    timm.models.save_for_hf(theirs, str(tmp_path), model_args=arguments, safe_serialization=True)
    state, metadata = read_timm(tmp_path)
    assert {name: getattr(metadata.model, name) for name in expected} == expected
    assert metadata.num_classes == theirs.num_classes
    if metadata.num_classes:
        ours = build_model(metadata.model, metadata.num_classes).eval()
        ours.load_state_dict(state)
        images = images_of(ours, 1)
        torch.testing.assert_close(ours(images), theirs(images), **LOGITS)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"act_layer": "quick_gelu"}, "QuickGELU.* is not GELU"),
        ({"global_pool": "max"}, "global_pool 'max'"),
        ({"global_pool": "avgmax"}, "global_pool 'avgmax'"),
        ({"global_pool": "prr", "class_token": False}, "global_pool 'prr'"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix True"),
        ({"pre_norm": True}, "tensor norm_pre.bias is .*, None in ours"),
        ({"final_norm": False}, "no norm after the blocks"),
        ({"scale_attn_norm": True}, "tensor blocks.0.attn.norm.bias"),
        ({"norm_layer": "simplenorm"}, "norms .*SimpleNorm"),
        ({"attn_layer": "diff"}, "a DiffAttention instead of a plain Attention"),
        ({"global_pool": "map", "pool_include_prefix": True}, "pool_include_prefix True"),
        ({"patch_size": [16, 8]}, "patches of .16, 8. pixels"),
    ],
)
def test_what_our_vit_does_not_compute_is_read_as_timms_module(
    arguments: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32} | arguments
    theirs = filled(timm.create_model("vit_tiny_patch16_224", num_classes=7, **small))
    timm.models.save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    lines: list[str] = []
    state, metadata = read_timm(tmp_path, lines.append)
    assert metadata.model.name == "timm/vit_tiny_patch16_224" and metadata.img_size == (32, 32)
    assert len(lines) == 1 and re.search(reason, lines[0])
    ours = build_model(metadata.model, 7).eval()
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits_of(ours, images), logits_of(theirs, images), **LOGITS)


def test_arguments_that_this_program_decides_are_named(tmp_path: Path) -> None:
    theirs: Any = timm.create_model("xcit_nano_12_p16_224", num_classes=3, depth=1)
    given = {"in_chans": 3, "drop_path_rate": 0.2}  # one restates what is so, the other is for training
    timm.models.save_for_hf(theirs, str(tmp_path), model_args=given, safe_serialization=True)
    lines: list[str] = []
    assert not read_timm(tmp_path, lines.append)[1].model.drop_path
    assert any("drop_path_rate is for training only" in line and "model.drop_path" in line for line in lines)
    timm.models.save_for_hf(timm.create_model("xcit_nano_12_p16_224", depth=1, in_chans=1), str(tmp_path))
    with pytest.raises(CheckpointError, match="in_chans is 1: the model takes images of 1 channels"):
        read_timm(tmp_path)


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
        ({"rope": "axial", "norm": "rms_norm"}, SQUASH, "model.norm: rms_norm .*onnx"),
        ({"rope": "mixed", "rope_grid": (7, 7)}, SQUASH, "model.rope_grid: .*onnx"),
        ({"mlp": "swiglu", "pool": "map"}, SQUASH, "model.mlp: swiglu .*no pool: map"),
        ({"block": "parallel"}, SQUASH, "model.block: parallel .*LayerScale"),
        ({"gated_attention": True}, SQUASH, "model.gated_attention"),
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
        ({"model_args": config["model_args"] | {"depth": 4}}, "timm cannot load these weights .*blocks.3.norm1.weight"),
    ):
        (tmp_path / WEIGHTS).write_bytes(whole)
        (tmp_path / CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=words):
            read_timm(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_timm(tmp_path)


def short_folder(tmp_path: Path, content: dict[str, Any], weights: Any) -> Path:
    (tmp_path / CONFIG).write_text(json.dumps(content))
    torch.save(weights, tmp_path / "release.pth")
    return tmp_path


def test_a_release_of_the_authors_is_read_by_timms_own_loader(tmp_path: Path) -> None:
    """DINOv2's files have a mask token and other names of registers, which timm's filter knows."""
    arguments: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    name = "vit_small_patch14_reg4_dinov2"
    theirs = filled(timm.create_model(name, **arguments))
    release = dict(theirs.state_dict())
    release["register_tokens"] = release.pop("reg_token")
    release["cls_token"], table = release["cls_token"].clone(), release["pos_embed"]
    release["pos_embed"] = torch.cat([torch.zeros(1, 1, 32), table], dim=1)  # its table has a row for the class token
    release["mask_token"] = torch.zeros(1, 32)
    content = {"architecture": name, "num_classes": 0, "model_args": arguments | {"img_size": 56}}
    folder = short_folder(tmp_path, content, {"teacher": {f"backbone.{key}": value for key, value in release.items()}})
    lines: list[str] = []
    state, metadata = read_timm(folder, lines.append)
    said = " ".join(lines)
    assert all(words in said for words in ("lvd142m", "'teacher'", "'backbone.'", "timm's own loader")), said
    overlay = {"state_dict": dict(release), "hf_hub_id": None, "url": None}
    expected: Any = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=56, **arguments
    )
    assert metadata.img_size == (56, 56) and metadata.num_classes == 0 and metadata.model.num_registers == 4
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.state_dict().items())
    assert state.keys() == expected.state_dict().keys()
    assert (metadata.mean, metadata.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_weights_of_another_model_are_refused_even_where_timm_is_not_strict(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments).state_dict()
    short = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": arguments}
    wrong: list[tuple[dict[str, Any], Any, str]] = [
        (short, {key: value for key, value in state.items() if "norm1" not in key}, "Missing key.*norm1"),
        (short | {"num_classes": 4}, state, "timm cannot load these weights"),
        # classes of the model that are not those of the file: timm would leave the head at random
        (short | {"model_args": arguments | {"num_classes": 4}}, state, "Missing keys .head"),
        (short | {"architecture": "vit_tiny_patch16_224.nothing"}, state, "Invalid pretrained tag"),
    ]
    for content, weights, words in wrong:
        with pytest.raises(CheckpointError, match=words):
            read_timm(short_folder(tmp_path, content, weights))
    (short_folder(tmp_path, short, state) / "other.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"it has several \(other.pth, release.pth\)"):
        read_timm(tmp_path)
