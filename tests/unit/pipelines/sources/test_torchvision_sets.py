from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, Flowers102

from pipelines.__main__ import main
from pipelines.sources.torchvision_sets import TorchvisionSource
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import ConfigError, SetupError
from tests.unit.pipelines.photos import encode
from tests.unit.pipelines.sources.listing import listed


def test_pets_are_packed_as_the_files_that_they_are(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    names = ["Abyssinian_1", "Abyssinian_2", "beagle_1"]
    for number, name in enumerate(names):
        (base / "images" / f"{name}.jpg").write_bytes(encode(number))
    (base / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n")
    (base / "annotations" / "test.txt").write_text("Abyssinian_2 1 1 1\n")
    source = TorchvisionSource("OxfordIIITPet", tmp_path)
    found = listed(source, tmp_path)
    assert {key: (item.labels, item.split) for key, (item, _, _) in found.items()} == {
        "train-0000000": ((0,), "train"),
        "train-0000001": ((1,), "train"),
        "test-0000000": ((0,), "test"),
    }
    assert [data for _, data, _ in found.values()] == [encode(0), encode(2), encode(1)]
    assert source.classes == [("0", "Abyssinian"), ("1", "Beagle")]


@pytest.mark.parametrize("test", ["yorkshire_terrier_2 37 2 25\n", "Abyssinian_2 1 1 1\nyorkshire_terrier_2 37 2 25\n"])
def test_a_part_of_the_pets_keeps_the_names_of_its_classes(tmp_path, test):
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    for name in ("Abyssinian_1", "Abyssinian_2", "american_bulldog_7", "yorkshire_terrier_2"):
        (base / "images" / f"{name}.jpg").write_bytes(encode(0))
    (base / "images" / "Abyssinian_1.mat").write_bytes(b"MATLAB 5.0")
    (base / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\namerican_bulldog_7 2 2 1\n")
    (base / "annotations" / "test.txt").write_text(test)
    source = TorchvisionSource("OxfordIIITPet", tmp_path)
    labels = [item.labels for item in source.items()]
    named = {number: source.classes[number] for number in (0, 1, 36)}
    assert named == {0: ("0", "Abyssinian"), 1: ("1", "American Bulldog"), 36: ("36", "Yorkshire Terrier")}
    assert labels == [(0,), (1,), *([(0,)] if "Abyssinian" in test else []), (36,)]


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar_is_packed_from_its_pickles(tmp_path, monkeypatch):
    """Files in CIFAR's own form; torchvision checks their md5, so its list gets those of these files."""
    base, generator = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    base.mkdir()
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    data = {name: generator.integers(0, 256, (4, 3072), dtype=np.uint8) for name in names}
    for number, name in enumerate(names):
        labels = [(number + index) % 10 for index in range(4)]
        (base / name).write_bytes(pickle.dumps({"data": data[name], "labels": labels}, protocol=2))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    for attribute, of_split in (("train_list", names[:5]), ("test_list", names[5:])):
        monkeypatch.setattr(CIFAR10, attribute, [[name, md5_of(base / name)] for name in of_split])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5_of(base / "batches.meta")})
    out = tmp_path / "out"
    assert main(["pack", "torchvision", "CIFAR10", str(tmp_path), "--out", str(out), "--workers", "1"]) == 0
    for split, of_split in (("train", names[:5]), ("test", names[5:])):
        reader = ShardReader(ShardTable.load(out / split))
        expected = np.concatenate([data[name] for name in of_split]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert reader.table.num_samples == len(expected) and load_classes(out / split)[3] == ("3", "d")
        for sample_id in range(len(expected)):
            row = int(reader.record(sample_id)[1].source.rpartition("-")[2])
            sample = reader.read(sample_id)
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample.data))), expected[row])
            assert sample.labels == ((row // 4 + row % 4) % 10 if split == "train" else (5 + row) % 10,)
    (base / "data_batch_2").write_bytes(b"damaged")
    assert main(["pack", "torchvision", "CIFAR10", str(tmp_path), "--out", str(tmp_path / "again")]) == 2


def test_flowers_are_packed_from_their_mat_files(tmp_path, monkeypatch):
    base = tmp_path / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    for number in range(1, 8):
        (base / "jpg" / f"image_{number:05d}.jpg").write_bytes(encode(number))
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2, 102, 1, 2, 3, 4]])})
    savemat(
        base / "setid.mat", {"trnid": np.array([[1, 3]]), "valid": np.array([[2, 7]]), "tstid": np.array([[4, 5, 6]])}
    )
    names = {"label": "imagelabels.mat", "setid": "setid.mat"}
    sums = {key: (name, md5_of(base / name)) for key, name in names.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", {**Flowers102._file_dict, **sums})
    found = listed(TorchvisionSource("Flowers102", tmp_path), tmp_path)
    assert [(item.split, item.labels, data) for item, data, _ in found.values()] == [
        ("train", (0,), encode(1)),
        ("train", (101,), encode(3)),
        ("val", (1,), encode(2)),
        ("val", (3,), encode(7)),
        ("test", (0,), encode(4)),
        ("test", (1,), encode(5)),
        ("test", (2,), encode(6)),
    ]


def test_arrays_become_png(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        images = struct.pack(">HBBIII", 0, 8, 3, 4, 28, 28) + pixels.tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 4) + bytes([3, 1, 4, 1]))
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(b""))
    found = listed(TorchvisionSource("MNIST", tmp_path), tmp_path)
    assert [item.labels for item, _, _ in found.values()] == [(3,), (1,), (4,), (1,)] * 2
    for index, (item, data, extension) in enumerate(found.values()):
        assert extension == "png"
        assert item.num_bytes == 28 * 28
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels[index % 4])


def test_what_torchvision_has_not_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean.*CIFAR10"):
        TorchvisionSource("CIFAR-10")
    with pytest.raises(ConfigError, match="cannot be packed"):
        TorchvisionSource("CocoDetection")


def test_missing_files_without_a_network_say_what_to_do(tmp_path, monkeypatch):
    import urllib.request

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(SetupError, match="python -m pipelines pack torchvision CIFAR10 ROOT"):
        list(TorchvisionSource("CIFAR10", tmp_path).items())
