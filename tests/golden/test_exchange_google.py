"""Google's .npz, written and read by us, against timm's reader of the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.models.vision_transformer as timm_vit
import torch

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.google import beside, read_npz, write_npz
from pretrain.models.families.registry import build_model, family_of
from pretrain.models.metadata import WeightsMetadata
from tests.golden.exchange import LOGITS, images_of, logits_of, metadata_of, model_of, real_model

# name → (changes of the small model, layout)
MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "class token": ({}, "vision_transformer"),
    "mean": ({"pool": "norm_avg", "class_token": False}, "vision_transformer"),
    "big_vision, mean": ({"pool": "norm_avg", "class_token": False}, "big_vision"),
    "big_vision, class token": ({"pos_embed_prefix": False}, "big_vision"),
    "big_vision, MAP": ({"pool": "map", "class_token": False}, "big_vision"),
    "hybrid": ({"variant": "R50+nano/16"}, "vision_transformer"),
}
WITH_TANH = {**MODELS, "tanh layer": ({"representation_size": 20}, "vision_transformer")}


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path, Any]:
    changes, layout = request.param
    model = model_of(gelu="tanh", img_size=32, **changes)
    path = tmp_path / "weights.npz"
    write_npz(path, model.state_dict(), metadata_of(model), layout)
    return model, path, layout


def timm_model(metadata: WeightsMetadata) -> Any:
    described = family_of(metadata.model).timm_twin(metadata.model)
    return timm.create_model(described.architecture, num_classes=metadata.num_classes, **described.arguments).eval()


def test_timms_reader_gives_our_logits(case: tuple[Any, Path, Any]) -> None:
    model, path, _ = case
    twin = timm_model(metadata_of(model))
    timm_vit._load_weights(twin, str(path))
    images = images_of(model)
    torch.testing.assert_close(logits_of(twin, images), logits_of(model, images), **LOGITS)


@pytest.mark.parametrize(("changes", "layout"), WITH_TANH.values(), ids=WITH_TANH)
def test_what_is_written_reads_back_the_same(changes: dict[str, Any], layout: Any, tmp_path: Path) -> None:
    model = model_of(gelu="tanh", img_size=32, **changes)
    state, metadata = model.state_dict(), metadata_of(model)
    write_npz(tmp_path / "w.npz", state, metadata, layout)
    again, described = read_npz(tmp_path / "w.npz")
    assert described == metadata
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize(("changes", "layout"), WITH_TANH.values(), ids=WITH_TANH)
def test_a_file_of_googles_says_enough(changes: dict[str, Any], layout: Any, tmp_path: Path) -> None:
    """Without the JSON file beside it, as Google publishes: everything from the shapes, half as mean and std."""
    model = model_of(gelu="tanh", img_size=32, **changes)
    write_npz(tmp_path / "w.npz", model.state_dict(), metadata_of(model), layout)
    beside(tmp_path / "w.npz").unlink()
    again, described = read_npz(tmp_path / "w.npz")
    assert (described.mean, described.std, described.eval_transform) == ((0.5,) * 3, (0.5,) * 3, None)
    rebuilt = model_of(**described.model.model_dump(exclude_unset=True))
    rebuilt.load_state_dict(again)
    images = images_of(model)
    torch.testing.assert_close(logits_of(rebuilt, images), logits_of(model, images), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["opt/target/", "params/", "params/img/"])
@pytest.mark.parametrize("kind", ["big_vision, mean", "big_vision, MAP"])
def test_prefixes_and_stacked_blocks_are_read_as_timm_reads_them(prefix: str, kind: str, tmp_path: Path) -> None:
    changes, layout = MODELS[kind]
    model = model_of(gelu="tanh", img_size=32, **changes)
    write_npz(tmp_path / "plain.npz", model.state_dict(), metadata_of(model), layout)
    with np.load(tmp_path / "plain.npz") as file:
        arrays = dict(file)
    blocks = "Transformer/encoderblock_"
    stacked = {name: array for name, array in arrays.items() if not name.startswith(blocks)}
    for name in [name for name in arrays if name.startswith(f"{blocks}0/")]:
        rest = name.removeprefix(f"{blocks}0/")
        depth = model.shape.depth
        stacked[f"Transformer/encoderblock/{rest}"] = np.stack([arrays[f"{blocks}{i}/{rest}"] for i in range(depth)])
    path = tmp_path / "stacked.npz"
    prefixed: dict[str, Any] = {f"{prefix}{name}": array for name, array in stacked.items()}
    np.savez(path, **prefixed, **{"opt/count": prefixed[f"{prefix}embedding/bias"]})
    again, _ = read_npz(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    twin = timm_model(metadata_of(model))
    timm_vit._load_weights(twin, str(path))
    images = images_of(model)
    torch.testing.assert_close(logits_of(twin, images), logits_of(model, images), **LOGITS)


def test_bfloat16_arrays_are_read(tmp_path: Path) -> None:
    import ml_dtypes

    model = model_of(gelu="tanh", img_size=32)
    write_npz(tmp_path / "w.npz", model.state_dict(), metadata_of(model))
    with np.load(tmp_path / "w.npz") as file:
        np.savez(tmp_path / "b.npz", **{name: array.astype(ml_dtypes.bfloat16) for name, array in file.items()})
    again, _ = read_npz(tmp_path / "b.npz")
    assert all(torch.equal(again[name], t.bfloat16().float()) for name, t in model.state_dict().items())


def test_not_a_square_grid_needs_the_file_beside(tmp_path: Path) -> None:
    model = model_of(gelu="tanh", img_size=(32, 48))
    write_npz(tmp_path / "w.npz", model.state_dict(), metadata_of(model))
    assert read_npz(tmp_path / "w.npz")[1].grid == (4, 6)
    beside(tmp_path / "w.npz").unlink()
    with pytest.raises(CheckpointError, match=r"pos_embedding has rows for 24 patches, which is not a square grid"):
        read_npz(tmp_path / "w.npz")


def test_without_a_head(tmp_path: Path) -> None:
    model = model_of(gelu="tanh", img_size=32)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    metadata = metadata_of(model, class_names=None, class_ids=None).model_copy(update={"num_classes": 0})
    write_npz(tmp_path / "w.npz", state, metadata)
    beside(tmp_path / "w.npz").unlink()
    again, described = read_npz(tmp_path / "w.npz")
    assert described.num_classes == 0 and again.keys() == state.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "model.gelu: erf .*--accept-erf-gelu"),
        ({"gelu": "tanh", "pool": "avg_norm"}, "model.pool: avg_norm .* norm before the mean"),
        ({"gelu": "tanh", "pool": "norm_avg"}, "model.class_token: True"),
        ({"gelu": "tanh", "pool": "map"}, "model.pool: map .*without a class token"),
        ({"gelu": "tanh", "layer_norm_eps": 1e-5}, "model.layer_norm_eps: 1e-05"),
        ({"gelu": "tanh", "qk_norm": True}, "model.qk_norm: True .*onnx"),
        ({"gelu": "tanh", "num_registers": 2}, "model.num_registers: 2"),
        ({"gelu": "tanh", "layer_scale": 0.1}, "model.layer_scale: 0.1"),
        ({"gelu": "tanh", "rope": "axial"}, "model.rope: axial"),
        ({"gelu": "tanh", "distilled": True}, "model.distilled: True"),
    ],
)
def test_what_googles_programs_cannot_compute_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = model_of(img_size=32, **changes)
    with pytest.raises(CheckpointError, match=words):
        write_npz(tmp_path / "w.npz", model.state_dict(), metadata_of(model))


def test_real_size(tmp_path: Path) -> None:
    model = real_model("B/16", gelu="tanh")
    write_npz(tmp_path / "w.npz", model.state_dict(), metadata_of(model))
    beside(tmp_path / "w.npz").unlink()
    again, described = read_npz(tmp_path / "w.npz")
    assert described.model.variant == "B/16" and sum(t.numel() for t in again.values()) == 86_567_656
    twin = timm_model(metadata_of(model))
    timm_vit._load_weights(twin, str(tmp_path / "w.npz"))
    images = images_of(model, 1)
    torch.testing.assert_close(logits_of(twin, images), logits_of(model, images), **LOGITS)


TRACES = Path(__file__).parent / "traces"
RECORDED = ("vit_jax_token", "vit_jax_mean_tanh", "big_vision_sincos", "big_vision_sincos_map", "big_vision_token")


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.filterwarnings("ignore:.*positions are sines and cosines")
def test_a_file_of_todays_programs_gives_their_logits(name: str) -> None:
    """Recorded from the programs themselves by ``make/google_weights.py``."""
    with np.load(TRACES / f"google_{name}_logits.npz") as file:
        wanted, side = torch.from_numpy(file["logits"]), int(file["side"])
    state, metadata = read_npz(TRACES / f"google_{name}.npz")
    fields = metadata.model.model_dump(exclude_unset=True) | {"img_size": side}
    model = build_model(ModelConfig.model_validate(fields), metadata.num_classes).eval()
    model.load_state_dict(state)
    images = np.random.RandomState(0).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    torch.testing.assert_close(logits_of(model, torch.from_numpy(images).permute(0, 3, 1, 2)), wanted, **LOGITS)


def test_a_file_that_states_no_grid_is_read_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"fit any grid; 224 × 224 pixels are assumed"):
        _, metadata = read_npz(TRACES / "google_big_vision_sincos.npz")
    assert metadata.model.pos_embed == "sincos2d_big_vision" and metadata.model.img_size == 224


@pytest.mark.parametrize("program", ["vit_jax_token", "big_vision_token"])
def test_older_names_are_the_same_weights(program: str, tmp_path: Path) -> None:
    """Names before flax's linen, and big_vision's tables with a row for the class token (before 2022)."""
    with np.load(TRACES / f"google_{program}.npz") as file:
        arrays = dict(file)
    renamed = {}
    for name, array in arrays.items():
        for new, old in (("MlpBlock_0", "MlpBlock_3"), ("LayerNorm_1", "LayerNorm_2")):
            name = name.replace(f"/{new}/", f"/{old}/")
        renamed[name.replace("DotProductAttention_0", "DotProductAttention_1")] = array
    if program == "big_vision_token":
        table = renamed.pop("pos_embedding")
        renamed["Transformer/pos_embedding"] = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    np.savez(tmp_path / "old.npz", **renamed)
    again, metadata = read_npz(tmp_path / "old.npz")
    state, _ = read_npz(TRACES / f"google_{program}.npz")
    assert metadata.model.pos_embed_prefix
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items() if key != "pos_embed")
    rows = again["pos_embed"][:, -state["pos_embed"].shape[1] :]
    assert torch.equal(rows, state["pos_embed"])


def test_a_map_head_that_was_inlined(tmp_path: Path) -> None:
    with np.load(TRACES / "google_big_vision_sincos_map.npz") as file:
        np.savez(tmp_path / "old.npz", **{name.removeprefix("MAPHead_0/"): array for name, array in file.items()})
    with pytest.warns(UserWarning, match="positions are sines"):
        (again, _), (state, _) = (read_npz(tmp_path / "old.npz"), read_npz(TRACES / "google_big_vision_sincos_map.npz"))
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
