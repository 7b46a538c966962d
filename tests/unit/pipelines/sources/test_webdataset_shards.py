from __future__ import annotations

import pytest

from pipelines.__main__ import main
from pipelines.sources.webdataset_shards import WebDatasetSource
from pretrain.errors import DataError
from tests.unit.pipelines.photos import encode, write_photos
from tests.unit.pipelines.sources.listing import listed
from tests.unit.pipelines.sources.test_imagenet21k import tar_of

CAT, DOG = encode(1), encode(2)


def write(path, files: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(files))
    return str(path)


def labels_of(source, folder) -> dict[str, tuple[str, ...]]:
    found = listed(source, folder)
    return {key: tuple(source.classes[label][0] for label in item.labels) for key, (item, _, _) in found.items()}


def test_numbers_names_and_json(tmp_path):
    files = {"a.jpg": CAT, "a.cls": b"2", "b.png": DOG, "b.txt": b"owl", "c.jpg": CAT, "c.json": b'{"labels": [0, 1]}'}
    source = WebDatasetSource([write(tmp_path / "x-000.tar", files)])
    expected = {"x-000/a.jpg": ("2",), "x-000/b.png": ("owl",), "x-000/c.jpg": ("0", "1")}
    assert labels_of(source, tmp_path) == expected
    assert source.multi_label
    assert [identifier for identifier, _ in source.classes] == ["0", "1", "2", "owl"]


def test_braces_folders_and_splits(tmp_path):
    for split in ("train", "val"):
        for number in range(3):
            write(tmp_path / split / f"s-{number:03d}.tar", {f"{number}.jpg": CAT, f"{number}.cls": b"0"})
    some = listed(WebDatasetSource([f"{tmp_path}/train/s-{{000..001}}.tar"]), tmp_path)
    assert list(some) == ["s-000/0.jpg", "s-001/1.jpg"]
    found = listed(WebDatasetSource([str(tmp_path)]), tmp_path)
    assert list(found)[:2] == ["train/s-000/0.jpg", "train/s-001/1.jpg"]
    assert {key.split("/")[0]: item.split for key, (item, _, _) in found.items()} == {"train": "train", "val": "val"}


def test_packed_sets_are_merged_by_class_id(tmp_path):
    for name, classes in (("one", {"cat": 3, "dog": 2}), ("two", {"ant": 2, "dog": 4})):
        photos = write_photos(tmp_path / f"photos_{name}", classes)
        assert main(["pack", "folder", str(photos), "--out", str(tmp_path / name)]) == 0
    source = WebDatasetSource([str(tmp_path / "one" / "train"), str(tmp_path / "two" / "train")])
    counts: dict[str, int] = {}
    for (name,) in labels_of(source, tmp_path).values():
        counts[name] = counts.get(name, 0) + 1
    assert counts == {"cat": 3, "dog": 6, "ant": 2}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": CAT}, "'a' has no label"),
        ({"a.cls": b"0"}, "'a' has 0 images"),
        ({"a.jpg": CAT, "b.jpg": DOG, "a.cls": b"0"}, "no label|do not lie together"),
        ({"a.jpg": CAT, "a.cls": b"0", "b.jpg": DOG, "b.cls": b"0", "a.txt": b""}, "do not lie together"),
        ({"a.jpg": CAT, "a.cls": b"-1"}, "label -1 is no class"),
    ],
)
def test_broken_samples_are_named(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        listed(WebDatasetSource([write(tmp_path / "x.tar", files)]), tmp_path)
