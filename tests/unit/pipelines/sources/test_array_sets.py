from __future__ import annotations

import gzip
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipelines.sources import array_sets
from pipelines.sources.array_sets import DigitsSource, FashionMnistSource
from pretrain.data.images.decode import open_image
from pretrain.errors import DataError, SetupError

RNG = np.random.default_rng(0)


def test_digits_are_those_of_scikit_learn_without_loss():
    source = DigitsSource()
    items = source.items()
    bunch: Any = load_digits()
    assert len(items) == 1797
    assert [item.labels for item in items] == [(label,) for label in bunch.target.tolist()]
    for index in (0, 7, 1796):
        data, extension = source.read(items[index])
        pixels = open_image(data).decode()
        assert extension == "png"
        assert pixels.shape == (8, 8, 3)
        assert np.array_equal(np.rint(pixels[..., 0] / (255 / 16)), bunch.images[index])
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_a_process_gets_the_source_without_its_images():
    source = DigitsSource()
    items = source.items()
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert pickle.loads(sent).read(items[3]) == source.read(items[3])


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def published(tmp_path):
    """The four files in the published format: train compressed, test unpacked."""
    arrays = {}
    for prefix, count in (("train", 30), ("t10k", 10)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        arrays[prefix] = (images, labels)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            if prefix == "train":
                (tmp_path / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (tmp_path / f"{prefix}-{name}-ubyte").write_bytes(idx(array))
    return tmp_path, arrays


def test_both_splits_are_read(published):
    root, arrays = published
    source = FashionMnistSource(root)
    items = source.items()
    assert [item.split for item in items] == ["train"] * 30 + ["test"] * 10
    assert source.classes[9] == ("9", "ankle boot")
    for item, index, prefix in ((items[3], 3, "train"), (items[35], 5, "t10k")):
        assert item.labels == (index % 10,)
        data, extension = source.read(item)
        assert extension == "png"
        assert np.array_equal(open_image(data).decode()[..., 1], arrays[prefix][0][index])


def _shorten(root):
    path = root / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def _swap_labels(root):
    (root / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(11, dtype=np.uint8)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "train-labels-idx1-ubyte.gz").unlink(),
            "does not exist.*apt-get install dataset-fashion",
        ),
        (_shorten, "not a complete IDX file"),
        (lambda root: (root / "train-images-idx3-ubyte.gz").write_bytes(b"x"), "cannot be read"),
        (lambda root: (root / "t10k-labels-idx1-ubyte").write_bytes(b"\0"), "cannot be read"),
        (_swap_labels, "do not fit each other"),
    ],
)
def test_damaged_files_are_refused(published, damage, message):
    root, _ = published
    damage(root)
    with pytest.raises(DataError, match=message):
        FashionMnistSource(root).items()


def test_without_files_and_network_the_error_says_how_to_install_them(tmp_path, monkeypatch):
    monkeypatch.setattr(array_sets, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", [f"file://{tmp_path}/nowhere/"])
    with pytest.raises(SetupError, match="sudo apt-get install dataset-fashion-mnist"):
        FashionMnistSource().items()


@pytest.mark.skipif(not array_sets.DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debians_files_are_found():
    items = FashionMnistSource().items()
    assert [sum(item.split == split for item in items) for split in ("train", "test")] == [60_000, 10_000]
