"""The probe stage: scikit-learn's and timm's figures, the same on two ranks, from features that are computed once."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from pipelines.__main__ import main
from pipelines.probe import cli as stage
from pipelines.probe.cache import FeatureCache
from pipelines.weights.heads import load_classifier
from pipelines.weights.network import load_frozen, stack
from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.images.augment import EvalTransform
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.packed_set import open_packed
from pretrain.data.workers.reader import ShardReader
from pretrain.distributed.rank import detect
from pretrain.models.interop import load_weights, save_weights
from tests.golden.exchange import SQUASH, metadata_of, model_of
from tests.pool import Pool
from tests.unit.pipelines.photos import write_photos

CLASSES = {"cat": 12, "dog": 14, "emu": 11, "fox": 12}
FIGURES = ("test", "chosen", "data", "weights")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train and val of one set, and a set of other classes."""
    folder = tmp_path_factory.mktemp("probe")
    photos = write_photos(folder / "photos", CLASSES)
    options = ["--holdout", "0.3", "--shard-samples", "10", "--name", "photos"]
    assert main(["pack", "folder", str(photos), "--out", str(folder / "packed"), *options]) == 0
    other = write_photos(folder / "other", {"cat": 3, "yak": 3, "zoo": 3})
    assert main(["pack", "folder", str(other), "--out", str(folder / "other_packed")]) == 0
    return folder


def weights(path: Path, state: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    model = model_of(img_size=32, **changes)
    save_weights(path, state or model.state_dict(), metadata_of(model, SQUASH))
    return path


def words(sets: Path, source: Path, *more: str | Path) -> list[str]:
    train, test = sets / "packed" / "train", sets / "packed" / "val"
    fixed = ["--train", train, "--test", test, "--num-workers", "0", "--micro-batch-size", "8"]
    return [str(word) for word in ("--from", source, *fixed, *more)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["probe", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def own_features(source: Path, shards: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a set as timm-like ``forward_head(pre_logits=True)`` gives them."""
    classifier, table = load_classifier(source), ShardTable.load(shards)
    samples = [ShardReader(table).read(index) for index in range(table.num_samples)]
    pixels = stack(classifier.transform(sample.data) for sample in samples) / 255.0
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (classifier.metadata.mean, classifier.metadata.std))
    model: Any = classifier.model
    with torch.no_grad():
        found = model.forward_head(model.forward_features((pixels - mean) / std), pre_logits=True)
    return found.numpy(), np.array([sample.labels[0] for sample in samples])


def test_figures_are_those_of_scikit_learn(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = weights(tmp_path / "w.safetensors")
    dev = ("--dev", sets / "packed" / "val", "--l2", "0.5,50")
    code, out, _ = run(capsys, *words(sets, source, "--kind", "logistic,knn", "--k", "3", *dev, "--json"))
    assert code == 0
    result = json.loads(out)
    (x, y), (test, truth) = (own_features(source, sets / "packed" / split) for split in ("train", "val"))
    peer = KNeighborsClassifier(3, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))  # type: ignore[arg-type]
    assert result["test"]["knn_top1"]["mean"] == pytest.approx(peer.fit(x, y).score(test, truth))
    mean, std = x.mean(0), x.std(0) + 1e-5
    scores = {
        l2: LogisticRegression(C=1 / l2, max_iter=1000).fit((x - mean) / std, y).score((test - mean) / std, truth)
        for l2 in (0.5, 50.0)
    }
    assert {float(key): value for key, value in result["chosen"]["l2_dev_top1"].items()} == pytest.approx(scores)
    assert result["test"]["logistic_top1"]["mean"] == pytest.approx(max(scores.values()))
    images = len(y), len(truth)
    assert (result["data"]["train"]["num_samples"], result["data"]["test"]["num_samples"]) == images
    written = json.loads((tmp_path / "w.safetensors_transfer" / "photos" / "probe.json").read_text())
    assert {key: written[key] for key in FIGURES} == {key: result[key] for key in FIGURES}


def test_features_are_computed_once_and_never_of_other_weights(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = weights(tmp_path / "w.safetensors")
    arguments = words(sets, source, "--kind", "knn,few_shot", "--shots", "1,2", "--json")
    _, first, error = run(capsys, *arguments)
    assert error.count("computed, kept in") == 4 and ": as kept in" not in error, "the two kinds see other transforms"
    _, second, error = run(capsys, *arguments)
    assert error.count(": as kept in") == 4 and ": computed" not in error
    assert json.loads(second)["test"] == json.loads(first)["test"]
    for change in (("--img-size", "48"), ("--transform", "{resize: squash_crop}")):
        _, _, error = run(capsys, *arguments, *change)
        assert "computed, kept in" in error, change
    for entry in (tmp_path / "w.safetensors_transfer" / "features").iterdir():
        whole = bytearray((entry / "values.npy").read_bytes())
        whole[-1] ^= 1
        (entry / "values.npy").write_bytes(whole)
    _, third, error = run(capsys, *arguments)
    assert error.count("are damaged; they are computed again") == 4
    assert json.loads(third)["test"] == json.loads(first)["test"]
    other = {name: tensor + 1 for name, tensor in load_weights(source)[0].items()}
    for state, changes in ((None, {"gelu": "tanh"}), (other, {})):  # under the same name
        weights(source, state, **changes)
        _, _, error = run(capsys, *arguments)
        assert error.count("computed, kept in") == 4 and "as kept in" not in error


def test_some_features_have_their_own_labels(sets: Path, tmp_path: Path) -> None:
    frozen = load_frozen(weights(tmp_path / "w.safetensors"))
    cache = FeatureCache(tmp_path / "cache", frozen, detect(), 4, 0, lambda line: None)
    packed = open_packed(str(sets / "packed" / "train"), AutoClusterConfig())
    features = cache.features(packed, frozen.transform.config)
    all_of_them, chosen = features.whole(), np.array([7, 1, 4])
    some = features.only(chosen).whole()
    assert some.sample_ids.tolist() == sorted(chosen)
    assert torch.equal(some.labels, all_of_them.labels[np.sort(chosen)])
    assert len(set(some.labels[:, 0].tolist())) > 1
    torch.testing.assert_close(some.values, all_of_them.values[np.sort(chosen)])


def figures_in_a_rank(arguments: list[str]) -> dict[str, Any]:
    result = stage.probe(stage.parser().parse_args(arguments), detect())
    return {key: result[key] for key in FIGURES}


def test_two_ranks_give_the_figures_of_one(sets: Path, tmp_path: Path, pool1: Pool, pool2: Pool) -> None:
    source = weights(tmp_path / "w.safetensors")
    found = []
    for ranks, pool in enumerate((pool1, pool2)):
        arguments = words(sets, source, "--shots", "1,3", "--cache", tmp_path / f"cache{ranks}", "--l2", "1,10,100")
        found += pool.run(figures_in_a_rank, arguments, timeout_s=120)
    assert found[1] == found[2], "to the bit"
    for kind in ("test", "chosen"):
        assert str(found[0][kind]) == str(found[1][kind])


def test_weights_of_timm_without_a_head(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: dict[str, Any] = {"num_classes": 0, "img_size": 32, "depth": 2}
    model: Any = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    folder = tmp_path / "timm"
    timm.models.save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    more = (
        "--kind",
        "knn",
        "--transform",
        "{resize: squash}",
        "--cache",
        tmp_path / "cache",
        "--out",
        tmp_path / "out",
    )
    code, _, error = run(capsys, *words(sets, folder, *more))
    assert code == 0, error
    (about,) = [
        path for path in (tmp_path / "cache").glob("*/about.json") if "val" in json.loads(path.read_text())["shards"]
    ]
    table, transform = (
        ShardTable.load(sets / "packed" / "val"),
        EvalTransform(EvalTransformConfig(resize="squash"), 32, 32),
    )
    pixels = stack(transform(ShardReader(table).read(index).data) for index in range(table.num_samples)) / 255.0
    mean, std = (torch.tensor(model.default_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model((pixels - mean) / std)  # without a head, timm's models answer with their features
    np.testing.assert_allclose(np.load(about.parent / "values.npy"), expected.numpy(), rtol=1e-4, atol=1e-5)


BAD = {
    "classes": (["--test", "{other}"], "has 3 classes"),
    "shots": (["--kind", "few_shot", "--shots", "25"], "25 images per class, but"),
    "ignored": (["--kind", "knn", "--shots", "5"], "--shots belongs to --kind few_shot; with --kind knn it would be"),
    "k": (["--kind", "knn", "--k", "500"], "k: 500 neighbours, but num_train_samples is"),
    "transform": (["--transform", "{resize: sqash}"], "transform.resize"),
    "resolution": (["--img-size", "33"], "img_size"),
    "no weights": (["--from", "{missing}"], "does not exist"),
    "no set": (["--train", "{missing}"], "index"),
    "cache": (["--cache", "/proc/features"], "name another: --cache DIR"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    more, message = BAD[case]
    places = {"{other}": str(sets / "other_packed" / "train"), "{missing}": str(tmp_path / "missing")}
    arguments = [places.get(word, word) for word in more]
    code, _, error = run(capsys, *words(sets, weights(tmp_path / "w.safetensors"), *arguments))
    assert code == 2 and message in error and not (tmp_path / "w.safetensors_transfer" / "photos").exists()


def test_images_of_the_test_set_that_are_learned_from_are_told(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = sets / "packed" / "train"
    more = ("--test", train, "--kind", "knn", "--k", "1", "--out", tmp_path / "out" / "pets")
    code, text, error = run(capsys, *words(sets, weights(tmp_path / "w.safetensors"), *more))
    size = ShardTable.load(train).num_samples
    assert code == 0 and f"warning: {size} of the {size} images of {train} are also in {train}" in error
    assert "knn_top1       100.00 %" in text, "its nearest neighbour is the image itself"
    assert main(["collect", str(tmp_path / "out"), "--out", str(tmp_path / "t.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["metric"], row["mean"], row["seeds"], row["published"]) for row in rows] == [
        ("knn_top1", "100.00", "1", ""),
        ("knn_top5", "100.00", "1", ""),
    ]
