"""load: outputs, features and preprocessing against timm, for every form in which an image may come."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.api import Model, load
from pretrain.errors import CheckpointError, DataError

NAMES = ["cat", "dog", "eel"]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A network of timm with random weights, and the folder that timm's users save it in."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    network: Any = timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments).eval()
    folder = tmp_path_factory.mktemp("timm")
    pretrained = {
        "input_size": [3, 32, 32],
        "mean": [0.4] * 3,
        "std": [0.3] * 3,
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    pretrained |= {"interpolation": "bilinear", "num_classes": 3, "label_names": NAMES}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps({**config, "num_classes": 3, "num_features": 48}))
    save_file(network.state_dict(), folder / "model.safetensors")
    return network, folder


@pytest.fixture(scope="module")
def model(twin: tuple[Any, Path]) -> Model:
    return load(twin[1], device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40 + number, 52, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def test_outputs_and_features_are_timms(model: Model, twin: tuple[Any, Path], pictures: list[Path]) -> None:
    inputs = torch.stack([model.transform(path) for path in pictures])
    assert model.data_config["input_size"] == (3, 32, 32) == tuple(inputs.shape[1:])
    with torch.inference_mode():
        tokens = twin[0].forward_features(inputs)
        features, logits = twin[0].forward_head(tokens, pre_logits=True), twin[0](inputs)
    found = model.features(pictures, batch_size=2)
    np.testing.assert_allclose(found.values, features.numpy(), rtol=1e-4, atol=1e-5)
    assert found.names == [str(path) for path in pictures] and found.not_read == []
    expected = logits.softmax(1)
    for row, predicted in zip(expected, model.predict(pictures, top_k=2, batch_size=2), strict=True):
        values, indices = row.topk(2)
        assert [one.index for one in predicted] == indices.tolist()
        assert [one.score for one in predicted] == pytest.approx(values.tolist(), abs=1e-5)
    assert model.class_names == tuple(NAMES) and predicted[0].name == NAMES[predicted[0].index]


def test_the_input_is_what_pillow_and_torchvision_make(model: Model, pictures: list[Path]) -> None:
    from torchvision.transforms import v2

    image = Image.open(pictures[0])
    reference = v2.functional.resize(v2.functional.pil_to_tensor(image), [32, 32], antialias=True)
    expected = (reference.float() / 255 - 0.4) / 0.3
    assert (model.transform(pictures[0]) - expected).abs().max() <= 2.5 / 255 / 0.3


def test_every_form_of_an_image_gives_the_same_input(model: Model, pictures: list[Path]) -> None:
    expected, image = model.transform(pictures[0]), Image.open(pictures[0])
    for given in (str(pictures[0]), pictures[0].read_bytes(), image, np.asarray(image)):
        assert torch.equal(model.transform(given), expected)
    grey = np.asarray(image.convert("L"))
    assert torch.equal(model.transform(grey), model.transform(Image.fromarray(grey)))
    for wrong in (np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8), np.uint8)):
        with pytest.raises(DataError, match=r"is not an image; give uint8"):
            model.transform(wrong)  # pyright: ignore[reportArgumentType]


def test_an_image_in_memory_is_upright_and_over_white(model: Model, tmp_path: Path) -> None:
    image = Image.new("RGBA", (30, 20), (200, 0, 0, 128))
    image.putpixel((0, 0), (0, 255, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(model.transform(Image.open(tmp_path / "turned.png")), model.transform(tmp_path / "turned.png"))


def test_features_of_a_folder_count_what_is_not_read(model: Model, pictures: list[Path], tmp_path: Path) -> None:
    for path in pictures:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "1.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"1\.png.*skip_unreadable=True"):
        model.features(tmp_path)
    found = model.features(str(tmp_path), skip_unreadable=True)
    kept = model.features([pictures[0], pictures[2].read_bytes()])
    np.testing.assert_allclose(found.values, kept.values, rtol=1e-5, atol=1e-6)
    assert [Path(name).name for name, _ in found.not_read] == ["1.png"] and kept.names[1] == "1"
    assert "3 images = 2 features + 1 left out:" in found.notes


def test_weights_without_a_head_have_features_only(
    twin: tuple[Any, Path], tmp_path: Path, pictures: list[Path]
) -> None:
    config = json.loads((twin[1] / "config.json").read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {name: value for name, value in twin[0].state_dict().items() if not name.startswith("head.")}
    save_file(state, tmp_path / "model.safetensors")
    headless = load(tmp_path, device="cpu")
    assert headless.features(pictures).values.shape == (3, 48) and headless.class_names == ()
    with pytest.raises(CheckpointError, match="have no head"):
        headless.predict(io.BytesIO(b"").getvalue())
