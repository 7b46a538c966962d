"""One door for every format: what is found out, and what is refused, with the tensor or field and a remedy."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pretrain.errors import CheckpointError
from pretrain.models.exchange.formats import detect_format, is_model_folder, load_any
from pretrain.models.exchange.google import beside, write_npz
from pretrain.models.exchange.huggingface import write_huggingface
from pretrain.models.exchange.timm import write_timm
from pretrain.models.interop import save_weights
from tests.golden.exchange import metadata_of, model_of

MODEL: Any = model_of(gelu="tanh", img_size=32)
STATE = MODEL.state_dict()
METADATA = metadata_of(MODEL)


def write_weights(path: Path) -> Path:
    save_weights(path / "w.safetensors", STATE, METADATA)
    return path / "w.safetensors"


def write_google(path: Path) -> Path:
    write_npz(path / "w.npz", STATE, METADATA)
    return path / "w.npz"


def write_folder(writer: Callable[..., None]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        writer(path, STATE, METADATA)
        return path

    return write


def write_torchvision(path: Path) -> Path:
    from torchvision.models import VisionTransformer

    small: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 1,
        "num_heads": 4,
        "hidden_dim": 48,
        "mlp_dim": 80,
    }
    save_file(VisionTransformer(**small).state_dict(), path / "w.safetensors", metadata={"num_heads": "4"})
    return path / "w.safetensors"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "weights": write_weights,
    "npz": write_google,
    "timm": write_folder(write_timm),
    "hf": write_folder(write_huggingface),
    "torchvision": write_torchvision,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_each_format_is_found_out(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path)
    assert detect_format(path) == kind
    assert is_model_folder(path) == (kind in ("timm", "hf"))
    state, metadata = load_any(path)
    assert load_any(path, kind)[1] == metadata
    if kind != "torchvision":
        assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())
        assert metadata.model_dump(exclude={"model"}) == METADATA.model_dump(exclude={"model"})


@pytest.mark.parametrize("kind", WRITERS)
def test_another_format_than_said_is_refused(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path)
    for other in set(WRITERS) - {kind}:
        with pytest.raises(CheckpointError, match=f"of the format {kind}, not {other}; say {kind}"):
            load_any(path, other)


def truncated(path: Path) -> Path:
    file = write_google(path)
    file.write_bytes(file.read_bytes()[:-200])
    return file


def pickled_array(path: Path) -> Path:
    with np.load(write_google(path)) as file:
        arrays = dict(file)
    arrays["Transformer/encoder_norm/scale"] = np.array([{"no": "array"}], dtype=object)
    np.savez(path / "p.npz", **arrays)
    return path / "p.npz"


def bare_pickle(path: Path) -> Path:
    (path / "p.npz").write_bytes(pickle.dumps({"embedding/kernel": [1.0]}))
    return path / "p.npz"


def changed_npz(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        with np.load(write_google(path)) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path / "c.npz", **arrays)
        return path / "c.npz"

    return write


def resnet(path: Path) -> Path:
    arrays: dict[str, Any] = {"resnet/root_block/conv2d/kernel": np.zeros((7, 7, 3, 4), np.float32)}
    np.savez(path / "r.npz", **arrays)
    return path / "r.npz"


def other_text_beside(path: Path) -> Path:
    file = write_google(path)
    content = json.loads(beside(file).read_text())
    beside(file).write_text(json.dumps(content | {"num_classes": "many"}))
    return file


def folder_with(content: object) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        (path / "config.json").write_text(json.dumps(content))
        return path

    return write


def put(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays.update({name: value})


BLOCK = "Transformer/encoderblock_1"
BAD: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "truncated npz": (truncated, ["not a complete .npz file", "copy it again"]),
    "an array that is pickled": (pickled_array, ["Transformer/encoder_norm/scale is pickled", "nothing is unpickled"]),
    "a pickle with the name of an npz": (bare_pickle, ["not a complete .npz file", "name the format"]),
    "weights of a ResNet": (resnet, ["array embedding/kernel is missing", "no", "name other weights"]),
    "an array less": (
        changed_npz(lambda arrays: arrays.pop(f"{BLOCK}/LayerNorm_2/bias")),
        [f"array {BLOCK}/LayerNorm_2/bias is missing", "another architecture"],
    ),
    "an array more": (changed_npz(put("Transformer/extra", np.ones(3))), ["tensor Transformer/extra has no place"]),
    "integers": (changed_npz(put("head/bias", np.ones(11, np.int32))), ["array head/bias is of type int32"]),
    "another shape": (
        changed_npz(put(f"{BLOCK}/MlpBlock_3/Dense_0/kernel", np.ones((48, 81)))),
        ["tensor blocks.1.mlp.fc1.weight is (81, 48)", "(80, 48)"],
    ),
    "another rank": (
        changed_npz(put(f"{BLOCK}/MultiHeadDotProductAttention_1/out/kernel", np.ones(48))),
        [f"array {BLOCK}/MultiHeadDotProductAttention_1/out/kernel has the shape (48,)"],
    ),
    "other metadata beside": (other_text_beside, ["w.npz.json: num_classes", "export it again"]),
    "no file": (lambda path: path / "none.npz", ["does not exist"]),
    "no safetensors": (lambda path: path / "none.safetensors", ["does not exist"]),
    "an empty folder": (lambda path: path, ["a folder without config.json"]),
    "a config of nobody": (folder_with({"depth": 3}), ["has neither architecture (timm)"]),
    "a config that is a list": (folder_with([1]), ["a JSON object is expected, not list"]),
    "an ONNX graph": (lambda path: path / "m.onnx", ["written here but not read", "name the weights"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    write, words = BAD[kind]
    path = write(tmp_path)
    with pytest.raises(CheckpointError) as error:
        load_any(path)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_torchs_file_of_unknown_tensors_says_what_to_put_beside_it(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r'do not say of which architecture.*config.json .*"architecture"'):
        load_any(tmp_path / "model.pth")
