"""``preprocessor_config.json``: from an image file to the input, as transformers' own processor makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from pipelines.__main__ import main
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.huggingface import read_huggingface, write_huggingface
from pretrain.models.exchange.huggingface_folder import PREPROCESSOR
from pretrain.models.exchange.preprocessor import preprocessor_of, read_preprocessor
from pretrain.models.exchange.preprocessor_classes import CLASSES
from pretrain.models.metadata import WeightsMetadata
from tests.golden.exchange import SHORT_SIDE, SQUASH, image_file, metadata_of, model_of, our_input

SIDE = 32
# Remainders of their crop are even here: theirs rounds the place of an odd one down, ours to the even pixel.
SIZES = [(64, 48), (501, 333)]
STATISTICS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.4]}
SHORT = {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}}
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "height and width": ("ViT", {"size": {"height": SIDE, "width": SIDE}}),
    "a number is a square": ("ViT", {"size": SIDE, **STATISTICS}),
    "bicubic": ("ViT", {"size": SIDE, "resample": 3}),
    "no rescaling": ("ViT", {"size": SIDE, "do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3}),
    "another factor": ("ViT", {"size": SIDE, "rescale_factor": 1 / 127.5, **STATISTICS}),
    "no normalisation": ("ViT", {"size": SIDE, "do_normalize": False}),
    "neither": ("ViT", {"size": SIDE, "do_normalize": False, "do_rescale": False}),
    "squash and crop": ("DeiT", {"size": {"height": 40, "width": 40}, "crop_size": {"height": SIDE, "width": SIDE}}),
    "shortest edge": ("CLIP", SHORT),
    "a number is the shortest edge": ("CLIP", {"size": 36, "crop_size": SIDE}),
    "Dinov2's": ("Bit", SHORT),
    "SigLIP's": ("Siglip", {"size": {"height": SIDE, "width": SIDE}}),
    "ConvNeXt's": ("ConvNext", {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875}),
    "DINOv3's": ("DINOv3ViT", {"size": {"height": SIDE, "width": SIDE}}),
}


def described(folder: Path, side: int = SIDE, model_type: str | None = None) -> WeightsMetadata:
    how = read_preprocessor(folder, (side, side), model_type)
    assert how.problem is None, how.problem
    config = ModelConfig(variant="mu/8", img_size=side)
    return WeightsMetadata.of(config, 0, how.mean, how.std, eval_transform=how.transform)


def levels_apart(folder: Path, photo: Path, metadata: WeightsMetadata, processor: Any) -> float:
    with Image.open(photo) as image:
        theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = our_input(photo, metadata)
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs() * torch.tensor(metadata.normalisation[1]).view(3, 1, 1) * 255).max())


@pytest.mark.parametrize("case", READ)
def test_an_image_file_becomes_their_input(case: str, tmp_path: Path) -> None:
    name, settings = READ[case]
    processor = getattr(transformers, f"{name}ImageProcessor")(**settings)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / PREPROCESSOR).read_text())
    sparse = {"image_processor_type": f"{name}ImageProcessor", **settings}  # defaults left out, short forms
    for content in (written, sparse):
        (tmp_path / PREPROCESSOR).write_text(json.dumps(content))
        for size in SIZES:
            photo = image_file(tmp_path, *size)
            assert levels_apart(tmp_path, photo, described(tmp_path), processor) <= 1.01, (content, size)


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_the_class(name: str, tmp_path: Path) -> None:
    theirs = getattr(transformers, name)()
    found = {key: value for key, value in theirs.to_dict().items() if value is not None}
    assert CLASSES[name]["default_to_square"] == theirs.default_to_square
    for key, value in found.items():
        if key in CLASSES[name]:
            ours, value = ((list(v) if isinstance(v, tuple) else v) for v in (CLASSES[name][key], value))
            assert ours == value, key
    assert bool(found.get("do_center_crop")) == CLASSES[name]["do_center_crop"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do_resize": False}, "do_resize: false"),
        ({"resample": 0}, "resample: 0 is not read"),
        ({"size": {"shortest_edge": SIDE}}, "do_center_crop: false gives inputs of several sizes"),
        ({"size": {"longest_edge": SIDE}}, r"size: \{'longest_edge': 32\} is not read"),
        (
            {"size": {"shortest_edge": 36, "longest_edge": 80}, "do_center_crop": True, "crop_size": SIDE},
            "longest_edge",
        ),
        ({"size": {"height": 48, "width": 48}}, "size: 48×48 is not the model's 32×32"),
        ({"do_center_crop": True, "crop_size": 24}, "crop_size: 24×24 is not the model's 32×32"),
        ({"size": 28, "do_center_crop": True, "crop_size": SIDE}, "size: 28×28 with a crop of 32×32"),
        ({"do_pad": True}, "do_pad: True is not read"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order: True is not read"),
        ({"crop_pct": 0.9}, "crop_pct: 0.9 is read for ConvNextImageProcessor only"),
        ({"image_processor_type": "LevitImageProcessor"}, "image_processor_type: LevitImageProcessor is not read"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    content = {"image_processor_type": "ViTImageProcessor", "size": SIDE, **changes}
    model = model_of(img_size=SIDE)
    write_huggingface(tmp_path, model.state_dict(), metadata_of(model))
    (tmp_path / PREPROCESSOR).write_text(json.dumps(content))
    metadata = read_huggingface(tmp_path)[1]
    assert metadata.eval_transform is None
    with pytest.raises(CheckpointError, match=words):
        from pipelines.weights.heads import load_classifier

        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_std": [0.5, 0.5]}, r"image_std: \[0.5, 0.5\] is not three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"rescale_factor": 0}, "rescale_factor: 0 is not a positive number"),
    ],
)
def test_damage_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / PREPROCESSOR).write_text(json.dumps({"size": SIDE, **changes}))
    with pytest.raises(CheckpointError, match=words):
        read_preprocessor(tmp_path, (SIDE, SIDE), "vit")


@pytest.mark.parametrize("transform", [SQUASH, SHORT_SIDE, SQUASH.model_copy(update={"resize": "squash_crop"})])
def test_what_is_written_names_a_class_that_does_it(transform: Any, tmp_path: Path) -> None:
    """In transformers 4 ViTImageProcessor does not crop; the classes written do, and read it back the same."""
    model = model_of(img_size=SIDE)
    metadata = metadata_of(model, transform)
    (tmp_path / PREPROCESSOR).write_text(json.dumps(preprocessor_of(metadata)))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    crops = CLASSES[type(processor).__name__]["do_center_crop"]
    assert crops == (transform.resize != "squash")
    photo = image_file(tmp_path, 501, 333)
    assert levels_apart(tmp_path, photo, metadata, processor) <= 1.01
    assert described(tmp_path).eval_transform is not None


def test_a_missing_file_is_stated_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, photo, folder = model_of(img_size=SIDE), image_file(tmp_path, 57, 43), tmp_path / "folder"
    folder.mkdir()
    write_huggingface(folder, model.state_dict(), metadata_of(model, SQUASH))
    command = ["predict", str(photo), "--from", str(folder), "--format", "jsonl"]
    assert main(command) == 0
    wanted = capsys.readouterr().out
    (folder / PREPROCESSOR).unlink()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "preprocessor_config.json does not exist" in said and "--mean, --std, --resize, --resize-filter" in said
    mean, std = (list(map(str, values)) for values in metadata_of(model).normalisation)
    stated = ["--mean", *mean, "--std", *std, "--resize", "squash", "--resize-filter", "bicubic_aa"]
    assert main([*command, *stated]) == 0
    assert capsys.readouterr().out == wanted
    out = tmp_path / "out"
    assert main(["export", str(folder), "--format", "hf", "--out", str(out), *stated]) == 0
    again = read_huggingface(out)[1]
    assert (again.mean, again.std, again.eval_transform) == (*metadata_of(model).normalisation, SQUASH)
