from __future__ import annotations

import pytest

from pipelines.sources.folder import FolderSource
from pipelines.sources.options import SourceOptions
from pretrain.errors import DataError
from tests.unit.pipelines.photos import write_photos


def listed(root, **options) -> tuple[list[str], dict[str, list[tuple[str, str]]], FolderSource]:
    """Class ids, split → (path, class id) of its images, and the source."""
    source = FolderSource(root, SourceOptions(**options))
    found: dict[str, list[tuple[str, str]]] = {}
    for item in source.items():
        found.setdefault(item.split, []).append((item.key, source.classes[item.labels[0]][0]))
    return [identifier for identifier, _ in source.classes], found, source


def photos(tmp_path, *folders: str):
    return write_photos(tmp_path / "set", dict.fromkeys(folders, 1))


@pytest.mark.parametrize(
    "splits", [("train", "val"), ("training", "Validation"), ("seg_train", "seg_test"), ("train2017", "val2017")]
)
def test_split_folders_above_class_folders(tmp_path, splits):
    first, second = splits
    root = photos(tmp_path, f"{first}/ant", f"{first}/bee", f"{first}/cow", f"{second}/bee", f"{second}/cow")
    (root / second / "ant").mkdir()
    classes, found, source = listed(root)
    assert classes == ["ant", "bee", "cow"]
    other = "test" if second == "seg_test" else "val"
    assert found["train"] == [(f"{first}/{name}/000.jpg", name) for name in ("ant", "bee", "cow")]
    assert found[other] == [(f"{second}/{name}/000.jpg", name) for name in ("bee", "cow")]
    assert source.split_rule == "from the names of folders (--split-from auto)"


@pytest.mark.parametrize(
    ("folders", "classes", "num_of_split"),
    [
        (("set/train/a", "set/train/b", "set/val/a"), ["a", "b"], {"train": 2, "val": 1}),  # in one more folder
        (("a/train", "a/test", "b/train", "b/test"), ["a", "b"], {"train": 2, "test": 2}),  # below the classes
        (("train/n1/images", "train/n2/images", "val/n1/images"), ["n1", "n2"], {"train": 2, "val": 1}),
        (("seg_train/seg_train/a", "seg_test/seg_test/a"), ["a"], {"train": 1, "test": 1}),  # unpacked into its name
        (("train/train", "train/bus", "val/train", "val/bus"), ["bus", "train"], {"train": 2, "val": 2}),
        (("train", "bus", "cat"), ["bus", "cat", "train"], {"train": 3}),  # a class of COCO
        (("bullet_train", "test_tube"), ["bullet_train", "test_tube"], {"train": 2}),
        (("test_tube", "cup"), ["cup", "test_tube"], {"train": 2}),
        (("test_tube/images", "cup/images"), ["cup", "test_tube"], {"train": 2}),
        (("10", "9", "0", "1"), ["0", "1", "9", "10"], {"train": 4}),  # numbers in their order
    ],
)
def test_what_is_a_split_and_what_a_class(tmp_path, folders, classes, num_of_split):
    found_classes, found, _ = listed(photos(tmp_path, *folders))
    assert found_classes == classes
    assert {split: len(rows) for split, rows in found.items()} == num_of_split


def test_folders_with_numbers_that_are_not_their_indices_are_remarked_upon(tmp_path):
    classes, _, source = listed(photos(tmp_path, "0", "3", "12"))
    assert classes == ["0", "3", "12"]
    assert source.notes == ["class indices are not the numbers of the folders: 3 is class 1; the card has both"]


def test_a_class_named_like_a_split_is_remarked_upon(tmp_path):
    _, _, source = listed(photos(tmp_path, "test_tube", "cup"))
    assert "'test_tube'" in source.notes[0]
    assert "--split-from" in source.notes[0]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train/a", "val/a", "extra/a"), r"named like splits \(train, val\), others do not, such as 'extra'"),
        (("seg_train/a", "seg_test/a", "seg_pred"), r"named like splits \(seg_test, seg_train\), others do not"),
        (("train/a", "extra/a"), r"named like splits \(train\)"),
        (("a/train", "a/test", "b"), r"named like splits \(test, train\), other images are outside"),
        (("train", "test"), "'test' are in no class folder.*metadata.csv"),
        (("train/n1", "val/images"), "val and train have no class in common"),
    ],
)
def test_a_guess_is_refused_with_the_options_that_settle_it(tmp_path, folders, message):
    root = photos(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        listed(root)
    classes, found, _ = listed(root, split_from="none")
    assert list(found) == ["train"]
    assert classes == sorted({folder.split("/")[0] for folder in folders})


def test_images_without_a_split_folder_are_training_images_where_asked_for(tmp_path):
    classes, found, _ = listed(photos(tmp_path, "train/a", "val/a", "extra/a"), split_from="folders")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "val": 1}
    assert classes == ["a", "extra"]


def test_the_given_folders_own_name_is_not_a_split_and_classes_are_numbered_as_beside_it(tmp_path):
    root = photos(tmp_path, "train/a", "train/b", "val/b")
    classes, found, source = listed(root / "val")
    assert (classes, found) == (["a", "b"], {"train": [("b/000.jpg", "b")]})
    assert any("though they are below a folder called 'val'" in note for note in source.notes)
    assert source.notes[-1] == "classes are numbered as in all splits beside each other: train, val"
    assert list(listed(root / "val", split_from="none")[1]) == ["train"]
    (root / "val" / "a").mkdir()  # empty, but a class
    (root / "val" / "c").mkdir()
    assert listed(root / "val")[0] == listed(root)[0] == ["a", "b"]
    assert "of which no class comes: 1 (c)" in " ".join(listed(root / "val")[2].notes)
