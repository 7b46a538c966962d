from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipelines.sources.torchvision_sets import TorchvisionSource
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
