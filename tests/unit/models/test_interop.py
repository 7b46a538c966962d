"""Weights files: what goes in comes out, and what is not one of ours is refused in words."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import CheckpointError
from pretrain.models.init import initial_state
from pretrain.models.interop import load_weights, read_tensors, save_weights
from pretrain.models.metadata import WeightsMetadata

CONFIG = ModelConfig(variant="mu/8", img_size=(16, 24), pool="norm_avg", gelu="tanh")
HALF = (0.5, 0.5, 0.5)
METADATA = WeightsMetadata.of(CONFIG, 3, HALF, HALF, class_names=("cat", "dog", "Ærø"))
STATE = initial_state(CONFIG, 3, seed=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(path, STATE, METADATA)
    return path


def header_of(path: Path) -> tuple[dict[str, object], bytes]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def rewrite(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Changes the metadata of a file and leaves its tensors."""
    header, body = header_of(path)
    texts = header["__metadata__"]
    assert isinstance(texts, dict)
    metadata = json.loads(texts["pretrain.weights"])
    change(metadata)
    texts["pretrain.weights"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_round_trip(path: Path) -> None:
    state, metadata = load_weights(path)
    assert metadata == METADATA
    assert (metadata.img_size, metadata.grid, metadata.patch, metadata.num_prefix_tokens) == (
        (16, 24),
        (2, 3),
        (8, 8),
        1,
    )
    assert (metadata.pool, metadata.gelu, metadata.layer_norm_eps, metadata.mean) == ("norm_avg", "tanh", 1e-6, HALF)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert [each.name for each in path.parent.iterdir()] == [path.name], "no temporary file stays"


def test_types_and_layouts_survive(tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in STATE.items()}
    state["head.weight"] = torch.randn(32, 3).bfloat16().T  # not contiguous
    state["head.bias"] = torch.randn(3)
    save_weights(tmp_path / "w", state, METADATA)
    loaded, _ = load_weights(tmp_path / "w")
    assert all(torch.equal(loaded[name], state[name]) and loaded[name].dtype == state[name].dtype for name in state)


def test_any_safetensors_reader_opens_it(path: Path) -> None:
    from safetensors.torch import load_file

    assert load_file(path).keys() == STATE.keys()


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    """The library writes the texts of the metadata in an order that varies from call to call."""
    written = set()
    for number in range(16):
        save_weights(tmp_path / f"{number}", STATE, METADATA)
        written.add((tmp_path / f"{number}").read_bytes())
    assert len(written) == 1
    header, body = header_of(tmp_path / "0")
    assert next(iter(header)) == "__metadata__" and list(header["__metadata__"]) == ["format", "pretrain.weights"]  # type: ignore[call-overload]
    save_file(STATE, tmp_path / "theirs", metadata=header["__metadata__"])  # type: ignore[arg-type]
    theirs, same = header_of(tmp_path / "theirs")
    assert theirs == header and same == body and (tmp_path / "theirs").stat().st_size == (tmp_path / "0").stat().st_size


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(source: object, target: object) -> None:
        raise OSError("no rename today")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="no rename"):
            save_weights(path, initial_state(CONFIG, 3, seed=2), METADATA)
    assert path.read_bytes() == before


def test_tensors_unlike_the_metadata_are_a_bug_of_ours(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"tensor norm\.bias is missing"):
        save_weights(tmp_path / "w", {n: t for n, t in STATE.items() if n != "norm.bias"}, METADATA)
    with pytest.raises(AssertionError, match="tensor extra is"):
        save_weights(tmp_path / "w", {**STATE, "extra": torch.zeros(1)}, METADATA)
    assert list(tmp_path.iterdir()) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def truncate_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def pickled(path: Path) -> None:
    torch.save(STATE, path)


def old_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state": 1}))


def plain_safetensors(path: Path) -> None:
    save_file(STATE, path, metadata={"format": "pt"})


def without_metadata_at_all(path: Path) -> None:
    save_file(STATE, path)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_begins_like_a_pickle_is_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for padding in range(length):
        save_file({"a": torch.ones(2)}, path, metadata={"note": "x" * padding})
        if struct.unpack("<Q", path.read_bytes()[:8])[0] == length:
            break
    assert path.read_bytes()[:2] == bytes((0x80, length >> 8))
    assert torch.equal(read_tensors(path)[0]["a"], torch.ones(2))


def remove(key: str) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda metadata: metadata.pop(key))


def put(key: str, value: object) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda metadata: metadata.update({key: value}))


def other_width(path: Path) -> None:
    def change(metadata: dict[str, object]) -> None:
        assert isinstance(metadata["model"], dict)
        metadata["model"]["embed_dim"] = 64

    rewrite(path, change)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, ["not a complete safetensors file", "truncated"]),
        (truncate_header, ["not a complete safetensors file"]),
        (lambda path: path.write_bytes(b""), ["not a complete safetensors file"]),
        (lambda path: path.write_text("just some text, longer than a header"), ["not a complete safetensors file"]),
        (pickled, ["pickled", "nothing is unpickled"]),
        (old_pickle, ["pickled"]),
        (plain_safetensors, ["pretrain.weights", "not guessed"]),
        (without_metadata_at_all, ["pretrain.weights", "not guessed"]),
        (put("version", 2), ["weights format 2", "version 1"]),
        (remove("version"), ["weights format None"]),
        (remove("grid"), ["grid: Field required"]),
        (put("grid", [3, 2]), ["grid (3, 2) is not the model's (2, 3)"]),
        (put("num_prefix_tokens", 2), ["num_prefix_tokens 2 is not the model's 1"]),
        (put("gelu", "erf"), ["gelu erf is not the model's tanh"]),
        (put("class_names", ["one"]), ["1 class names for 3 classes"]),
        (put("surprise", 1), ["surprise"]),
        (put("num_classes", 4), ["4 classes"]),
        (put("std", [0.5, 0.5, 0.0]), ["std"]),
        (other_width, ["tensor cls_token is (1, 1, 32)", "(1, 1, 64)"]),
        (lambda path: path.unlink(), ["does not exist"]),
        (lambda path: (path.unlink(), path.mkdir()), ["is a folder"]),
    ],
)
def test_what_is_not_a_weights_file_is_refused(path: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(path)
    with pytest.raises(CheckpointError) as error:
        load_weights(path)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w", metadata={"pretrain.weights": "{"})
    with pytest.raises(CheckpointError, match="not JSON"):
        load_weights(tmp_path / "w")


def test_metadata_checks_itself_when_made() -> None:
    with pytest.raises(ValidationError, match="class names for 3 classes"):
        WeightsMetadata.of(CONFIG, 3, HALF, HALF, class_names=("cat",))


@pytest.mark.parametrize(
    "transform",
    [
        EvalTransformConfig(),
        EvalTransformConfig(resize="squash", resize_filter="bicubic_aa"),
        EvalTransformConfig(crop_fraction=0.9, resize_filter="area"),
    ],
)
def test_how_images_are_resized_survives(transform: EvalTransformConfig, tmp_path: Path) -> None:
    metadata = METADATA.model_copy(update={"eval_transform": transform, "class_ids": ("a", "b", "c")})
    save_weights(tmp_path / "w", STATE, metadata)
    assert load_weights(tmp_path / "w")[1] == metadata


def test_weights_without_a_head(tmp_path: Path) -> None:
    metadata = WeightsMetadata.of(CONFIG, 0, HALF, HALF)
    body = {name: tensor for name, tensor in STATE.items() if not name.startswith("head.")}
    save_weights(tmp_path / "w", body, metadata)
    state, described = load_weights(tmp_path / "w")
    assert state.keys() == body.keys() and described.num_classes == 0
