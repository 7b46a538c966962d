from __future__ import annotations

import os

import pytest

from pipelines.sources.folder import FolderSource
from pipelines.sources.protocol import Item
from pretrain.errors import DataError
from tests.unit.pipelines.photos import encode, write_photos


def test_one_folder_per_class(tmp_path):
    root = write_photos(tmp_path / "photos", {"dog": 2, "cat/kitten": 1, "cat": 1, "empty": 0})
    source = FolderSource(root)
    items = source.items()
    assert source.classes == [("cat", "cat"), ("dog", "dog")]
    assert [(item.key, item.labels, item.split) for item in items] == [
        ("cat/000.jpg", (0,), "train"),
        ("cat/kitten/000.jpg", (0,), "train"),
        ("dog/000.jpg", (1,), "train"),
        ("dog/001.jpg", (1,), "train"),
    ]
    assert all(item.num_bytes == (root / item.key).stat().st_size for item in items)
    assert source.read(Item("dog/001.jpg", (), 0)) == ((root / "dog/001.jpg").read_bytes(), "jpg")


def test_nested_folders_are_labels_from_general_to_special(tmp_path):
    root = write_photos(tmp_path / "photos", {"animal/cat": 1, "animal": 1, "plant/tree/oak": 1})
    source = FolderSource(root, nested_labels=True)
    items = source.items()
    assert source.classes == [
        ("animal", "animal"),
        ("animal/cat", "cat"),
        ("plant", "plant"),
        ("plant/tree", "tree"),
        ("plant/tree/oak", "oak"),
    ]
    assert [(item.key, item.labels) for item in items] == [
        ("animal/000.jpg", (0,)),
        ("animal/cat/000.jpg", (0, 1)),
        ("plant/tree/oak/000.jpg", (2, 3, 4)),
    ]


def test_other_files_are_counted_and_hidden_ones_are_not_seen(tmp_path):
    root = write_photos(tmp_path / "photos", {"a": 1})
    (root / "a" / "readme.txt").write_text("")
    (root / "a" / "LICENCE").write_text("")
    (root / "a" / ".DS_Store").write_text("")
    (root / "a" / "B.JPEG").write_bytes(encode(5))
    source = FolderSource(root)
    assert [item.key for item in source.items()] == ["a/000.jpg", "a/B.JPEG"]
    assert source.read(Item("a/B.JPEG", (), 0))[1] == "jpeg"
    assert source.notes == ["1 files ignored (.txt)", "1 files ignored (no extension)"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = write_photos(tmp_path / "photos", {"a": 1})
    os.symlink(root, root / "a" / "up")
    os.symlink(write_photos(tmp_path / "elsewhere", {"x": 1}) / "x", root / "b")
    assert [item.key for item in FolderSource(root).items()] == ["a/000.jpg", "b/000.jpg"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), r"holds no images \(no files\)"),
        (lambda root: (write_photos(root, {"a": 1}) / "loose.jpg").write_bytes(b""), "lie in no class folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, prepare, message):
    prepare(tmp_path / "photos")
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path / "photos").items()
