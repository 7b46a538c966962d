from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from pipelines.sources.imagenet21k import ImageNet21kSource
from pretrain.errors import DataError
from tests.unit.pipelines.photos import encode
from tests.unit.pipelines.sources.listing import listed

SYNSETS = {"n02084071": 3, "n02121808": 2, "n99999999": 1}


def images(synset: str, count: int) -> dict[str, bytes]:
    return {f"{synset}_{index}.JPEG": encode(int(synset[1:]) + index) for index in range(count)}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "fall11_whole.tar"
    path.write_bytes(tar_of({f"{synset}.tar": tar_of(images(synset, count)) for synset, count in SYNSETS.items()}))
    return path


def test_a_tar_of_tars_is_read_where_it_lies(tmp_path, whole):
    source = ImageNet21kSource(whole)
    found = listed(source, tmp_path)
    assert [identifier for identifier, _ in source.classes] == list(SYNSETS)
    assert dict(source.classes)["n02084071"].startswith("dog")
    expected = {
        f"{synset}/{name}": (data, number)
        for number, (synset, count) in enumerate(SYNSETS.items())
        for name, data in images(synset, count).items()
    }
    assert {key: (data, item.labels[0]) for key, (item, data, _) in found.items()} == expected
    assert {extension for _, _, extension in found.values()} == {"jpeg"}


def test_a_folder_of_synset_tars_lists_the_same(tmp_path, whole):
    with tarfile.open(whole) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    found, expected = (
        listed(ImageNet21kSource(tmp_path / "folder"), tmp_path),
        listed(ImageNet21kSource(whole), tmp_path),
    )
    assert {key: row[1:] for key, row in found.items()} == {key: row[1:] for key, row in expected.items()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "compressed.*gunzip"),
        (lambda path: path.write_bytes(path.read_bytes()[:6000]), "truncated"),
        (lambda path: path.write_bytes(tar_of({"readme": b"x"})), "holds no per-synset tars"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_what_is_no_tar_of_tars_is_refused(tmp_path, whole, damage, message):
    damage(whole)
    with pytest.raises(DataError, match=message):
        list(ImageNet21kSource(whole).items())
