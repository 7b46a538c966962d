"""Settings that a config leaves out come from the weights and packed sets that it names; stated ones are checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image

from pipelines import finetune
from pipelines.pack import cli as pack
from pretrain.check.derived import load_complete
from pretrain.config.loader import load_saved
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import ConfigError
from pretrain.models.init import initial_state
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata

MY_IMAGES = Path(__file__).resolve().parents[3] / "configs" / "finetune" / "my_images.yaml"
SMALL = """\
name: small
duration: 3 epochs
global_batch_size: 8
data: {shards: somewhere/train, num_samples: 50, num_classes: 5}
optim: {name: sgd, lr: 0.1}
"""
ODD = ModelConfig(
    variant="mu/8", img_size=32, depth=3, gelu="tanh", pool="norm_avg", num_registers=2, representation_size="width",
    drop_path=0.2, head_bias=-10.0,
)  # fmt: skip
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
# The kind of targets → columns of a manifest for image i of three classes.
COLUMNS: dict[str, Any] = {
    "several labels": lambda i: {"labels": [["cat", "dog", "owl"][k] for k in range(i % 3 + 1)]},
    "numbers": lambda i: {"target.width": float(i), "target.height": float(2 * i)},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    return "small.yaml"


@pytest.fixture
def weights(tmp_path: Path) -> str:
    about = WeightsMetadata.of(ODD, 7, MEAN, STD, eval_transform=EvalTransformConfig())
    save_weights(tmp_path / "w.safetensors", initial_state(ODD, 7, seed=0), about)
    return str(tmp_path / "w.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in two folders of classes."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(24):
        path = folder / ("cats", "dogs")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return folder


def test_a_config_without_a_model_takes_that_of_the_weights(config: str, weights: str) -> None:
    overrides = [f"init.from={weights}", "model.img_size=64", "model.drop_path=0.1"]
    resolved = load_complete(config, overrides=overrides, head="replace")
    model, data = resolved.experiment.model, resolved.experiment.data
    of_training = {"drop_path": 0.1, "head_bias": 0.0, "representation_size": None}
    assert model == ODD.model_copy(update={"img_size": 64, **of_training})
    assert (data.mean, data.std) == (MEAN, STD)
    assert resolved.where("model.depth") == weights
    kept = load_complete(config, overrides=[overrides[0], "init.head=keep"], head="replace").experiment.model
    assert kept.representation_size == "width"


def test_a_run_folder_and_its_resolved_config_say_it_too(config: str, weights: str, tmp_path: Path) -> None:
    first = load_complete(config, overrides=[f"init.from={weights}"], head="replace")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.resolved.yaml").write_text(first.to_yaml())
    again = load_complete(config, overrides=[f"init.from={tmp_path}/run"], head="replace")
    assert again.experiment.model == first.experiment.model and again.experiment.data == first.experiment.data
    assert load_saved(tmp_path / "run" / "config.resolved.yaml").digest == first.digest


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32}, {"name": "vit", "depth": 1, "img_size": 32}),
        ("resnet10t", {}, {"name": "timm/resnet10t"}),
    ],
)
def test_a_timm_folder_says_it(
    config: str, tmp_path: Path, architecture: str, arguments: dict[str, Any], expected: dict[str, Any]
) -> None:
    theirs: Any = timm.create_model(architecture, num_classes=0, **arguments)
    timm.models.save_for_hf(theirs, str(tmp_path / "timm"), model_args=arguments, safe_serialization=True)
    experiment = load_complete(config, overrides=[f"init.from={tmp_path}/timm"], head="replace").experiment
    assert {key: getattr(experiment.model, key) for key in expected} == expected
    assert experiment.data.mean == tuple(theirs.pretrained_cfg["mean"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["small.yaml: model: is missing", "--from"]),
        (["init.from=nowhere"], ["command line: init.from: nowhere does not exist"]),
        (["init.from=W", "model.depth=7"], ["command line: init.from: ", "depth 3", "mu/8 has 7"]),
        (["init.from=W", "model.qk_norm=true"], ["command line: ", "model.qk_norm: false", "the model has true"]),
        (["init.from=W", "model.name=timm/resnet10t"], ["model.name: timm/resnet10t", "model.name: vit"]),
        (["init.from=W", "evaluation.sets={val: {shards: beside:val}}"], ["somewhere/val", "num_samples"]),
    ],
)
def test_what_contradicts_or_is_missing_is_named(
    config: str, weights: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        load_complete(config, overrides=[text.replace("=W", f"={weights}") for text in overrides], head="replace")
    assert all(word in str(error.value) for word in words), error.value


def _packed(photos: Path, kind: str, folder: Path) -> Path:
    """The pictures packed with targets of a kind."""
    if kind not in COLUMNS:
        words = ["folder", str(photos)]
    else:
        paths = sorted(photos.rglob("*.png"))
        rows = [{"path": str(path), **COLUMNS[kind](index)} for index, path in enumerate(paths)]
        (photos / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
        words = ["manifest", str(photos / "list.jsonl")]
    assert pack.main([*words, "--holdout", "0.25", "--workers", "1", "--out", str(folder / "mine")]) == 0
    return folder / "mine"


@pytest.mark.parametrize(
    ("kind", "classes", "metric"), [("", 2, "top1"), ("several labels", 3, "mAP"), ("numbers", 2, "mae")]
)
def test_the_config_for_ones_own_images_works_for_every_kind(
    photos: Path, config: str, weights: str, tmp_path: Path, kind: str, classes: int, metric: str
) -> None:
    text, number = re.subn(rf"# (.*) # {kind}(?=\n)", r"\1", MY_IMAGES.read_text()) if kind else (
        MY_IMAGES.read_text(), 2)  # fmt: skip
    assert number == 2
    Path("my.yaml").write_text(text)
    train = _packed(photos, kind, tmp_path) / "train"
    words = ["--config", "my.yaml", "--from", weights, f"data.shards={train}"]
    assert finetune.main([*words, "--check", "--require-data"]) == 0
    experiment = load_complete("my.yaml", overrides=[f"init.from={weights}", words[-1]], head="replace").experiment
    val = experiment.evaluation.sets["val"]
    assert experiment.data.num_samples + val.num_samples == 24 and val.shards == str(train.parent / "val")
    assert experiment.data.num_classes == classes and val.chief_metric == metric


def test_the_config_for_adapters_on_ones_own_images(photos: Path, weights: str, tmp_path: Path) -> None:
    train = _packed(photos, "", tmp_path) / "train"
    recipe = str(MY_IMAGES.with_name("my_images_lora.yaml"))
    assert finetune.main(["--config", recipe, "--from", weights, f"data.shards={train}", "--check"]) == 0
    overrides = [f"init.from={weights}", f"data.shards={train}"]
    optim = load_complete(recipe, overrides=overrides, head="replace").experiment.optim
    assert optim.lora is not None and (optim.lora.rank, optim.lr, optim.layer_decay) == (16, 1e-3, None)
