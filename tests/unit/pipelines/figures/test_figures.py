"""``python -m pipelines figures``: the numbers against direct references, the files, and what it refuses."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipelines.__main__ import main
from pipelines.figures import cli as figures
from pipelines.figures import measures
from pipelines.figures.photos import lit
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.models.families.registry import build_model, init_weights
from pretrain.models.init import initial_state
from pretrain.models.interop import save_weights
from pretrain.models.layers.attention import Attention
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.vit import VisionTransformer, build_vit
from tests.unit.pipelines.photos import write_photos

HALF = (0.5, 0.5, 0.5)


def vit(**changes: Any) -> VisionTransformer:
    """A small model on a grid of 2 × 3 patches whose attention is far from even."""
    settings = {"variant": "mu/8", "img_size": (16, 24), "depth": 3, "num_heads": 2, "num_registers": 1, **changes}
    torch.manual_seed(0)
    model = build_vit(ModelConfig(**settings), 5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def weights_by_hand(module: Attention, x: Tensor) -> Tensor:
    """Softmax of scaled products, one number after the other: (B, A, T, T)."""
    images, tokens, width = x.shape
    heads, size = module.num_heads, width // module.num_heads
    out = torch.zeros(images, heads, tokens, tokens)
    for image in range(images):
        projected = x[image] @ module.qkv.weight.T + module.qkv.bias
        for head in range(heads):
            q = projected[:, head * size : (head + 1) * size]
            k = projected[:, width + head * size : width + (head + 1) * size]
            for i in range(tokens):
                exps = [math.exp(float(q[i] @ k[j]) / math.sqrt(size)) for j in range(tokens)]
                out[image, head, i] = torch.tensor(exps) / sum(exps)
    return out


@torch.no_grad()
def layers_by_hand(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Attention weights of every block, from the tokens that the model itself gives out before it."""
    before = [model._embed(images), *model.forward_intermediates(images)[:-1]]
    blocks: list[Any] = list(model.blocks)
    return [weights_by_hand(block.attn, block.norm1(x)) for block, x in zip(blocks, before, strict=True)]


def test_attention_weights_are_those_of_the_forward_pass() -> None:
    model, images = vit(), torch.randn(2, 3, 16, 24)
    for found, expected in zip(measures.attention_weights(model, images), layers_by_hand(model, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True},
        {"pos_embed": "none", "rope": "axial"},
        {"pos_embed": "relative_bias"},
        {"pos_embed": "relative_1d"},
    ],
)
@torch.no_grad()
def test_weights_explain_what_attention_gives(changes: dict[str, Any]) -> None:
    """The layer's own output is these weights times the values, with every kind of position."""
    model, images = vit(**{"embed_dim": 32, **changes}), torch.randn(2, 3, 16, 24)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def look(module: Attention, args: Any, kwargs: Any, output: Tensor) -> None:
        seen.append((module.weights(*args, **kwargs), module.qkv(args[0]).chunk(3, dim=-1)[2], output))

    attention: Any = cast(Any, model.blocks[1]).attn
    hook = attention.register_forward_hook(look, with_kwargs=True)
    model(images)
    hook.remove()
    weights, values, output = seen[0]
    mixed = weights @ values.unflatten(-1, (2, -1)).transpose(1, 2)
    expected = attention.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_attention_distance() -> None:
    """By loops over images, queries and keys, with the pixels between the patches' centres."""
    model, images = vit(), torch.randn(3, 3, 16, 24)
    batches = lambda: iter([images[:2], images[2:]])  # noqa: E731
    found = measures.measure_attention(model, batches, 1)["attention_distance"]
    places = [(row * 8, column * 8) for row in range(2) for column in range(3)]
    for layer, weights in enumerate(layers_by_hand(model, images)):
        for head in range(2):
            total = 0.0
            for image in range(3):
                for query in range(6):
                    row = weights[image, head, 2 + query, 2:]
                    total += sum(
                        float(row[key] / row.sum()) * math.dist(places[query], places[key]) for key in range(6)
                    )
            assert float(found[layer, head]) == pytest.approx(total / 18, rel=1e-4)


@pytest.mark.parametrize("class_token", [True, False])
def test_rollout(class_token: bool) -> None:
    """Half the mean attention and half the identity, multiplied from the first block to the last."""
    changes = {} if class_token else {"class_token": False, "pool": "norm_avg"}
    model, images = vit(**changes), torch.randn(2, 3, 16, 24)
    prefix = model.shape.num_prefix_tokens
    found = measures.measure_attention(model, lambda: iter([images]), 2)
    for image in range(2):
        product = np.eye(prefix + 6)
        for weights in layers_by_hand(model, images):
            step = weights[image].mean(dim=0).double().numpy() + np.eye(prefix + 6)
            product = (step / step.sum(axis=1, keepdims=True)) @ product
        expected = product[0, prefix:] if class_token else product[prefix:, prefix:].mean(axis=0)
        np.testing.assert_allclose(found["attention_rollout"][image].numpy().ravel(), expected, rtol=1e-4)
    last = layers_by_hand(model, images)[-1]
    rows = last[:, :, 0, prefix:] if class_token else last[:, :, prefix:, prefix:].mean(dim=2)
    torch.testing.assert_close(found["attention_heads"], rows.unflatten(-1, (2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pos_embed_prefix": False}, {"pos_embed": "learned_2d"}, {"pos_embed": "sincos2d_timm"}],
)
@torch.no_grad()
def test_position_similarity(changes: dict[str, Any]) -> None:
    """Of what is really added to the patches: the difference that positions make to the first block's input."""
    model = vit(embed_dim=32, **changes)
    patches = torch.zeros(1, 6, 32)
    added = model.add_prefix_and_positions(patches)[0, model.shape.num_prefix_tokens :]
    found = measures.position_similarity(model)
    assert found is not None and found.shape == (2, 3, 2, 3)
    for first in range(6):
        for second in range(6):
            cosine = torch.nn.functional.cosine_similarity(added[first], added[second], dim=0)
            assert float(found.view(6, 6)[first, second]) == pytest.approx(float(cosine), abs=1e-5)


@pytest.mark.parametrize("kind", ["none", "relative_bias"])
def test_no_table_no_similarity(kind: str) -> None:
    assert measures.position_similarity(vit(embed_dim=32, pos_embed=kind)) is None


def test_filters_are_principal_components() -> None:
    """Against scikit-learn's, up to the sign, each scaled to [0, 1]."""
    from sklearn.decomposition import PCA

    model = vit(embed_dim=64)
    weight = model.patch_embed.proj.weight.detach().flatten(1).numpy()
    expected = np.asarray(PCA(n_components=28).fit(weight).components_).reshape(28, 3, 8, 8).transpose(0, 2, 3, 1)
    found = measures.patch_filters(model)
    assert found is not None and found.shape == (28, 8, 8, 3)
    for mine, theirs in zip(found.numpy(), expected, strict=True):
        scaled = (theirs - theirs.min()) / (theirs.max() - theirs.min())
        assert min(np.abs(mine - scaled).max(), np.abs(mine - (1 - scaled)).max()) < 1e-3
    assert measures.patch_filters(vit(variant="R50+Ti/32", img_size=(64, 96), num_heads=3, depth=1)) is None


def saved(path: Path, num_classes: int = 3, class_names: tuple[str, ...] | None = None, **changes: Any) -> Path:
    model = ModelConfig(**{"variant": "mu/8", "img_size": 32, **changes})
    about = WeightsMetadata.of(
        model, num_classes, HALF, HALF, eval_transform=EvalTransformConfig(), class_names=class_names
    )
    state = initial_state(model, num_classes, seed=0)
    state["head.weight"] = torch.randn(state["head.weight"].shape, generator=torch.Generator().manual_seed(0))
    save_weights(path, state, about)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_two_checkpoints_side_by_side(tmp_path: Path, photos: Path) -> None:
    first, second = saved(tmp_path / "a.safetensors"), saved(tmp_path / "b.safetensors", depth=3, img_size=(32, 48))
    out = tmp_path / "out"
    assert figures.main([str(first), str(second), "--images", str(photos), "--num-maps", "2", "--out", str(out)]) == 0
    names = {"filters", "position_similarity", "attention_distance", "attention_rollout"}
    names |= {"attention_heads_1", "attention_heads_2"}
    assert {path.stem for path in out.glob("*.svg")} == {path.stem for path in out.glob("*.png")} == names
    for path in out.glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 5, f"{path} is blank"
    for path in out.glob("*.svg"):
        ElementTree.parse(path)
    numbers = np.load(out / figures.NUMBERS)
    assert numbers["position_similarity/0"].shape == (4, 4, 4, 4)
    assert numbers["position_similarity/1"].shape == (4, 6, 4, 6)
    assert numbers["attention_rollout/1"].shape == (2, 4, 6) and numbers["attention_distance/1"].shape[0] == 3
    about = json.loads((out / figures.SUMMARY).read_text())
    assert [entry["label"] for entry in about["checkpoints"]] == ["a", "b"]
    assert set(about["arrays"]) == set(numbers.files)


def test_photos_keep_their_resolution_and_the_shape_of_what_is_seen(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    weights = saved(tmp_path / "a.safetensors")
    arguments = [str(weights), "--images", str(photos), "--num-maps", "2", "--only", "attention_rollout"]
    assert figures.main([*arguments, "--out", str(out)]) == 0
    assert {path.name for path in (out / figures.PHOTOS).iterdir()} == {
        "attention_rollout_1.jpg",
        "attention_rollout_2.jpg",
    }
    # 40 × 60 pixels: the short side becomes 36, of which the model sees 32 × 32 in the middle.
    assert size_of(out / figures.PHOTOS / "attention_rollout_1.jpg") == (36, 36)
    assert size_of(out / "attention_rollout.png")[0] == pytest.approx(6.75 * 300, abs=2)
    assert figures.main([*arguments, "--width", "3.25", "--out", str(out)]) == 0
    assert size_of(out / "attention_rollout.png")[0] == pytest.approx(3.25 * 300, abs=2)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file."""
    with Image.open(path) as image:
        return image.size


def test_attention_lights_a_photo_as_in_the_paper() -> None:
    """Against the code of the paper's Figure 6, with OpenCV."""
    import cv2

    random = np.random.default_rng(0)
    photo, attention = random.integers(0, 256, (90, 70, 3), dtype=np.uint8), random.random((7, 5), dtype=np.float32)
    mask = cv2.resize(attention / attention.max(), (70, 90))[..., None]
    expected = (mask * photo).round().clip(0, 255)
    assert np.abs(lit(photo, attention).astype(int) - expected).max() <= 1


def test_a_packed_split_gives_classes_and_predictions(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"cat": 3, "dog": 4})
    assert main(["pack", "folder", str(photos), "--out", str(tmp_path / "packed")]) == 0
    packed, out = tmp_path / "packed/train", tmp_path / "out"
    weights = saved(tmp_path / "a.safetensors", 2, class_names=("cat", "dog"))
    arguments = [str(weights), "--images", str(packed), "--num-images", "5", "--num-maps", "3"]
    assert figures.main([*arguments, "--out", str(out)]) == 0
    drawn = json.loads((out / figures.SUMMARY).read_text())["photos"]["a"]
    images = [str(packed)]
    found = capture(["predict", *images, "--from", str(weights), "--top", "1", "--format", "jsonl"], tmp_path)
    assert len(drawn) == 3
    for entry, line in zip(drawn, found, strict=False):
        best = line["predictions"][0]
        assert entry["image"] == line["image"] and entry["predicted"] == f"{best['name']} ({best['score']:.0%})"
        assert Path(entry["image"]).parent.name == entry["class"]


def capture(arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """The lines of JSON that a stage writes."""
    assert main([*arguments, "--out", str(folder / "lines.jsonl")]) == 0
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_resized_positions_of_any_shape(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(saved(tmp_path / "a.safetensors")), "--img-size", "32", "64", "--out", str(out)]
    assert figures.main([*arguments, "--only", "position_similarity"]) == 0
    assert np.load(out / figures.NUMBERS)["position_similarity/0"].shape == (4, 8, 4, 8)


def test_a_checkpoint_without_attention(tmp_path: Path) -> None:
    config = ModelConfig(name="timm/resnetv2_50x1_bit", img_size=32)
    model = build_model(config, 3)
    init_weights(model, 0)
    save_weights(tmp_path / "bit.safetensors", model.state_dict(), WeightsMetadata.of(config, 3, HALF, HALF))
    with pytest.raises(CheckpointError, match="resnetv2_50x1_bit has no patch tokens that all attend to each other"):
        figures.main([str(tmp_path / "bit.safetensors"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--only", "attention_rollout"], ConfigError, "needs --images"),
        (["--only", "filters", "--images", "x.png"], ConfigError, "--images would be ignored"),
        (["--images", "nowhere"], DataError, "nowhere does not exist"),
        (["--width", "0"], ConfigError, "--width 0: must be 1"),
        (["--num-maps", "0"], ConfigError, "--num-maps"),
        (["--img-size", "30"], ConfigError, "30"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], error: type[Exception], message: str) -> None:
    weights = saved(tmp_path / "a.safetensors")
    with pytest.raises(error, match=message):
        figures.main([str(weights), *arguments, "--out", str(tmp_path / "out")])


def test_no_image_in_a_folder_and_a_damaged_one(tmp_path: Path) -> None:
    weights, folder = saved(tmp_path / "a.safetensors"), tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(DataError, match="no image in it"):
        figures.main([str(weights), "--images", str(folder), "--out", str(tmp_path / "out")])
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded"):
        figures.main([str(weights), "--images", str(folder), "--out", str(tmp_path / "out")])
