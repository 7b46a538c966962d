"""Hugging Face folders: what transformers loads from ours, and what we read from theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Model,
    Dinov2WithRegistersModel,
    SiglipForImageClassification,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.huggingface import CONFIG, PREPROCESSOR, WEIGHTS, read_huggingface, write_huggingface
from pretrain.models.families.hf_backbone import pooled
from pretrain.models.families.registry import build_model
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

transformers.utils.logging.disable_progress_bar()

MODELS: dict[str, tuple[dict[str, Any], type]] = {
    "plain": ({}, ViTForImageClassification),
    "tanh gelu, another epsilon": ({"gelu": "tanh", "layer_norm_eps": 1e-3}, ViTForImageClassification),
    "square": ({"img_size": 32}, ViTForImageClassification),
    "distilled": ({"distilled": True}, DeiTForImageClassificationWithTeacher),
    "one register": ({"num_registers": 1}, DeiTForImageClassification),
}
THEIRS: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


def test_two_classes_of_one_name_stay_two(tmp_path: Path) -> None:
    model = model_of()
    names = ("crane", *NAMES[1:-1], "crane")
    metadata = metadata_of(model).model_copy(update={"class_names": names})
    write_huggingface(tmp_path, model.state_dict(), metadata)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config["id2label"][str(index)] for index in range(len(names))] == list(names)
    assert sorted(config["label2id"].values()) == list(range(len(names)))
    assert (config["label2id"][f"crane ({IDS[0]})"], config["label2id"][f"crane ({IDS[-1]})"]) == (0, len(names) - 1)
    assert read_huggingface(tmp_path)[1].class_names == names


@pytest.mark.parametrize(("changes", "kind"), MODELS.values(), ids=MODELS)
def test_transformers_loads_the_folder_and_agrees(changes: dict[str, Any], kind: Any, tmp_path: Path) -> None:
    model = model_of(**changes)
    metadata, state = metadata_of(model), model.state_dict()
    write_huggingface(tmp_path, state, metadata)
    twin, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    images = images_of(model)
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(images).logits, logits_of(model, images), **LOGITS)
    assert [twin.config.id2label[index] for index in range(len(NAMES))] == list(NAMES)
    assert twin.config.label2id[NAMES[3]] == 3 and twin.config.layer_norm_eps == metadata.layer_norm_eps
    assert list(twin.config.class_ids) == list(IDS)
    again, described = read_huggingface(tmp_path)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    assert described.model_dump(exclude={"model"}) == metadata.model_dump(exclude={"model"})
    rebuilt = build_model(described.model, described.num_classes).eval()
    rebuilt.load_state_dict(again)
    torch.testing.assert_close(logits_of(rebuilt, images), logits_of(model, images), rtol=0, atol=0)


SIGLIP = {"class_token": False, "img_size": 32, "gelu": "tanh"}
TOWERS: dict[str, tuple[dict[str, Any], int, type]] = {
    "pooler": ({"representation_size": 20}, 0, ViTModel),
    "DINOv2": ({"layer_scale": 0.5, "mlp_dim": 48, "img_size": 32}, 0, Dinov2Model),
    "DINOv2, registers": (
        {"layer_scale": 0.5, "mlp_dim": 48, "img_size": 32, "num_registers": 3, "pos_embed_prefix": False},
        0,
        Dinov2WithRegistersModel,
    ),
    "SigLIP": ({**SIGLIP, "pool": "map"}, 0, SiglipVisionModel),
    "SigLIP, classifier": ({**SIGLIP, "pool": "norm_avg"}, len(NAMES), SiglipForImageClassification),
}


@pytest.mark.parametrize(("changes", "classes", "kind"), TOWERS.values(), ids=TOWERS)
def test_towers_of_transformers_are_written(changes: dict[str, Any], classes: int, kind: Any, tmp_path: Path) -> None:
    model = model_of(**{"embed_dim": 24, "num_heads": 3, **changes})
    state = {name: tensor for name, tensor in model.state_dict().items() if classes or not name.startswith("head.")}
    names = {} if classes else {"class_names": None, "class_ids": None}
    metadata = metadata_of(model, **names).model_copy(update={"num_classes": classes})
    write_huggingface(tmp_path, state, metadata)
    twin, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    images = images_of(model)
    with torch.no_grad():
        expected = model(images) if classes else model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(pooled(twin.eval()(images)), expected, **LOGITS)
    again, described = read_huggingface(tmp_path)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    assert described.model_dump(exclude={"model"}) == metadata.model_dump(exclude={"model"})


@pytest.mark.parametrize(
    ("changes", "classes", "words"),
    [
        ({"layer_scale": 0.5}, 11, r"model.layer_scale: 0.5 .*--drop-head for its Dinov2Model"),
        ({"layer_scale": 0.5, "num_registers": 2}, 0, "model.pos_embed_prefix: True .*positions of patches only"),
        ({"layer_scale": 0.5, "mlp_dim": 40, "img_size": 32}, 0, "model.mlp_dim: 40 .*a multiple of the width"),
        ({**SIGLIP, "pool": "map"}, 11, "model.pool: map .*its classifier sees the mean of the tokens"),
        ({**SIGLIP, "pool": "norm_avg"}, 0, "model.pool: norm_avg .*its tower has attention pooling"),
        ({**SIGLIP, "pool": "map", "img_size": (16, 32)}, 0, "model.img_size: .*square images"),
    ],
)
def test_what_no_class_has_is_refused_with_a_remedy(
    changes: dict[str, Any], classes: int, words: str, tmp_path: Path
) -> None:
    model = model_of(**{"embed_dim": 24, "num_heads": 3, **changes})
    names = {} if classes else {"class_names": None, "class_ids": None}
    metadata = metadata_of(model, **names).model_copy(update={"num_classes": classes})
    with pytest.raises(CheckpointError, match=words):
        write_huggingface(tmp_path, model.state_dict(), metadata)


@pytest.mark.parametrize(
    ("kind", "config", "settings", "expected"),
    [
        (ViTForImageClassification, ViTConfig, {}, {"layer_norm_eps": 1e-12, "gelu": "erf"}),
        (ViTForImageClassification, ViTConfig, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6}, {"gelu": "tanh"}),
        (ViTForImageClassification, ViTConfig, {"image_size": [16, 32]}, {"img_size": (16, 32)}),
        (ViTForImageClassification, ViTConfig, {"hidden_act": "relu"}, {"name": "hf/ViTForImageClassification"}),
        (ViTForImageClassification, ViTConfig, {"num_channels": 1}, "num_channels: 1 is not read"),
        (DeiTForImageClassification, DeiTConfig, {}, {"num_registers": 1, "distilled": False}),
        (DeiTForImageClassificationWithTeacher, DeiTConfig, {}, {"num_registers": 0, "distilled": True}),
    ],
)
def test_their_folders_are_read(
    kind: Any, config: Any, settings: dict[str, Any], expected: dict[str, Any] | str, tmp_path: Path
) -> None:
    theirs = filled(kind(config(**(THEIRS | settings))))
    theirs.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    if isinstance(expected, str):
        with pytest.raises(CheckpointError, match=expected):
            read_huggingface(tmp_path)
        return
    state, metadata = read_huggingface(tmp_path)
    assert {name: getattr(metadata.model, name) for name in expected} == expected
    assert (metadata.mean, metadata.num_classes, metadata.class_names) == ((0.1, 0.2, 0.3), 5, None)
    ours = build_model(metadata.model, 5).eval()
    ours.load_state_dict(state)
    images = torch.randn(3, 3, *metadata.img_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours, images), theirs(images).logits, **LOGITS)


def test_the_pooler_of_a_model_without_head_is_the_tanh_layer(tmp_path: Path) -> None:
    theirs = filled(ViTModel(ViTConfig(**THEIRS)))
    theirs.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    state, metadata = read_huggingface(tmp_path)
    assert (metadata.num_classes, metadata.model.representation_size) == (0, 24)
    ours: Any = build_model(metadata.model, 1).eval()
    ours.load_state_dict(state, strict=False)
    images = images_of(ours)
    with torch.no_grad():
        features = ours.forward_head(ours.forward_features(images), pre_logits=True)
        torch.testing.assert_close(features, theirs(images).pooler_output, **LOGITS)


def test_without_a_head(tmp_path: Path) -> None:
    model: Any = model_of()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    metadata = metadata_of(model, class_names=None, class_ids=None).model_copy(update={"num_classes": 0})
    write_huggingface(tmp_path, state, metadata)
    twin = ViTForImageClassification.from_pretrained(tmp_path).eval()
    images = images_of(model)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(twin(images).logits, features, **LOGITS)
    again, described = read_huggingface(tmp_path)
    assert again.keys() == state.keys() and described == metadata.model_copy(update={"model": described.model})


@pytest.mark.parametrize(
    ("changes", "transform", "words"),
    [
        ({"representation_size": 16}, SQUASH, "model.representation_size: 16 .*--drop-head"),
        ({"pool": "norm_avg"}, SQUASH, "model.pool: norm_avg .*class token"),
        ({"pool": "avg_norm", "class_token": False}, SQUASH, "model.pool: avg_norm"),
        ({"qk_norm": True}, SQUASH, "model.qk_norm: True"),
        ({"num_registers": 2}, SQUASH, "model.num_registers: 2"),
        ({"variant": "R50+nano/16"}, SQUASH, "model.variant: R50"),
        ({"pos_embed": "sincos2d_timm"}, SQUASH, "model.pos_embed: sincos2d_timm"),
        ({}, SHORT_SIDE, "short_side of 32×48 pixels"),
        ({}, EvalTransformConfig(resize_filter="bilinear"), "resize_filter: bilinear has no counterpart"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    changes: dict[str, Any], transform: Any, words: str, tmp_path: Path
) -> None:
    model = model_of(**changes)
    with pytest.raises(CheckpointError, match=words):
        write_huggingface(tmp_path, model.state_dict(), metadata_of(model, transform))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("transform", [SQUASH, SHORT_SIDE], ids=["squash", "short side"])
@pytest.mark.parametrize(
    ("size", "kind"), [((320, 256), "png"), ((300, 256), "png"), ((400, 400), "jpg"), ((259, 256), "png")]
)
def test_an_image_file_becomes_the_same_input(
    size: tuple[int, int], kind: str, transform: EvalTransformConfig, tmp_path: Path
) -> None:
    """Their processor resizes as PyTorch does, with the filters that we take: one level at most."""
    model = model_of(variant="nano/16", img_size=112)
    metadata = metadata_of(model, transform)
    write_huggingface(tmp_path, model.state_dict(), metadata)
    twin = ViTForImageClassification.from_pretrained(tmp_path).eval()
    path = image_file(tmp_path, *size, kind)
    processor = ViTImageProcessor.from_pretrained(tmp_path)
    with Image.open(path) as image:
        theirs = processor(image, return_tensors="pt")["pixel_values"]
    levels = (our_input(path, metadata) - theirs).abs() * torch.tensor(metadata.std).view(3, 1, 1) * 255
    assert levels.max() <= 1.01
    with torch.no_grad():
        others = twin(theirs).logits
    ours = logits_of(model, our_input(path, metadata))
    torch.testing.assert_close(ours, others, rtol=0, atol=0.02 * float(ours.std()))
    assert ours.argmax() == others.argmax()


def test_real_size(tmp_path: Path) -> None:
    model = real_model("B/16")
    metadata = metadata_of(model, SHORT_SIDE)
    write_huggingface(tmp_path, model.state_dict(), metadata)
    twin = ViTForImageClassification.from_pretrained(tmp_path).eval()
    assert twin.num_parameters() == 86_567_656
    path = image_file(tmp_path, 320, 256, "jpg")
    with Image.open(path) as image:
        theirs = ViTImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    ours = our_input(path, metadata)
    assert ((ours - theirs).abs() * 255 * torch.tensor(metadata.std).view(3, 1, 1)).max() <= 1.01
    with torch.no_grad():
        torch.testing.assert_close(twin(ours).logits, logits_of(model, ours), **LOGITS)
    assert read_huggingface(tmp_path)[1].model.variant == "B/16"


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "number"), [("L/16", 304_326_632), ("H/14", 632_045_800)])
def test_large_sizes(variant: str, number: int, tmp_path: Path) -> None:
    model = real_model(variant)
    write_huggingface(tmp_path, model.state_dict(), metadata_of(model))
    twin = ViTForImageClassification.from_pretrained(tmp_path).eval()
    assert twin.num_parameters() == number
    images = images_of(model, 1)
    with torch.no_grad():
        torch.testing.assert_close(twin(images).logits, logits_of(model, images), **LOGITS)


def test_damage_is_named(tmp_path: Path) -> None:
    model = model_of()
    write_huggingface(tmp_path, model.state_dict(), metadata_of(model))
    weights, config = (tmp_path / WEIGHTS).read_bytes(), json.loads((tmp_path / CONFIG).read_text())
    for change, words in (
        ({"architectures": ["BertModel"]}, "hf/BertModel takes input_ids, not images"),
        ({"architectures": ["NoSuchModel"]}, "transformers has no class 'NoSuchModel'"),
        ({"architectures": None}, "has no architectures, so the class is unknown"),
        ({"architectures": ["BeitForImageClassification"]}, "of the BeitForImageClassification that config.json desc"),
        ({"num_hidden_layers": 4}, r"tensor blocks\.3\.norm1\.weight is missing"),
        ({"num_hidden_layers": 2}, r"tensor blocks\.2\.\S+ has no place"),
        ({"hidden_size": None}, "hidden_size: None is not a number"),
        ({"intermediate_size": 81}, r"blocks\.0\.mlp\.fc1\.weight is \(80, 48\)"),
    ):
        (tmp_path / CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=words):
            read_huggingface(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_huggingface(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled, and nothing is unpickled here"):
        read_huggingface(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(weights)
    (tmp_path / PREPROCESSOR).unlink()
    assert read_huggingface(tmp_path)[1].mean is None, "weights without it can still start a run"
