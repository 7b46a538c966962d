from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipelines.sources.folder import FolderSource
from pipelines.sources.options import SourceOptions
from pipelines.sources.protocol import Item
from pretrain.data import ledger
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


def test_a_class_folder_that_is_a_link_to_another_is_told(tmp_path):
    root = write_photos(tmp_path / "photos", {"cat": 1, "dog": 1})
    (root / "kitten").symlink_to("cat")
    source = FolderSource(root)
    assert len(source.items()) == 3
    assert source.notes == [
        "the class folders cat and kitten are one folder, since one is a link: its images are in both classes; remove "
        "the link if that is wrong"
    ]
    source = FolderSource(root, nested_labels=True)
    assert len(source.items()) == 3
    assert source.notes == [], "a folder may be in two categories"
    (root / "kitten").unlink()
    (root / "kitten").symlink_to(write_photos(tmp_path / "elsewhere", {"x": 1}) / "x")
    source = FolderSource(root)
    assert len(source.items()) == 3
    assert source.notes == [], "a link to a folder elsewhere is a class"


def test_a_split_that_is_a_link_to_another_is_read(tmp_path):
    root = write_photos(tmp_path / "photos", {"train/cat": 1, "train/dog": 1})
    (root / "val").symlink_to("train")
    source = FolderSource(root)
    assert [item.split for item in source.items()] == ["train", "train", "val", "val"]
    assert source.notes == []


def test_other_files_are_counted_and_hidden_ones_are_not_read(tmp_path):
    root = write_photos(tmp_path / "photos", {"a": 1})
    (root / "a" / "readme.txt").write_text("")
    (root / "a" / "LICENCE").write_text("")
    (root / "a" / ".DS_Store").write_text("")
    (root / "a" / "B.JPEG").write_bytes(encode(5))
    source = FolderSource(root)
    assert [item.key for item in source.items()] == ["a/000.jpg", "a/B.JPEG"]
    assert source.read(Item("a/B.JPEG", (), 0))[1] == "jpeg"
    account = source.ledger.accounts["directory entries"]
    assert (account.found, account.used) == (6, {"folders": 1, "images": 2})
    assert {reason: lost.examples for reason, lost in account.lost.items()} == {
        "hidden": ["a/.DS_Store"],
        "not a known image (.txt)": ["a/readme.txt"],
        "no extension": ["a/LICENCE"],
    }


def odd_entries(root: Path) -> dict[str, set[str]]:
    """Makes what people have in their folders; returns reason → entries that cannot be used."""
    for name in ("a/café.JPG", "a/new\nline.jpg", "a/-rf.jpeg", "__init__/0.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(1))
    lost = {
        "hidden": {"a/.x.jpg", ".git/", ".git/objects/", ".git/objects/0.jpg"},
        "macOS resource fork": {"__MACOSX/", "a/._0.jpg"},
        "system file": {"a/Thumbs.db", "a/Desktop.ini"},
        "an image by its bytes, but not by its name": {"a/noext", "a/y.jpg?1234"},
        "not a known image (.heic)": {"a/z.heic"},
        "not a known image": {"a/z.this is long"},
        "no extension": {"a/README"},
    }
    for name in set().union(*lost.values()):
        if name.endswith("/"):
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encode(2) if "noext" in name or "?" in name else b"x")
    lost["hidden"].add("__MACOSX/a/")
    lost["hidden"].add("__MACOSX/a/0.jpg")
    lost["macOS resource fork"] |= {"__MACOSX/", "a/._0.jpg"}
    (root / "__MACOSX" / "a").mkdir()
    (root / "__MACOSX" / "a" / "0.jpg").write_bytes(b"")
    for name, target in (("a/link.jpg", "-rf.jpeg"), ("linked", root / "a")):
        os.symlink(target, root / name)
    lost["dangling link"] = {"a/annexed.jpg", "a/annexed-folder", "a/self.jpg"}
    for name, target in (("annexed.jpg", "/nowhere/blob"), ("annexed-folder", "/nowhere/"), ("self.jpg", "self.jpg")):
        os.symlink(target, root / "a" / name)
    os.symlink("..", root / "a" / "loop")
    os.mkfifo(root / "a" / "pipe.jpg")
    lost["link to a folder above it"] = {"a/loop"}
    lost["neither a file nor a folder"] = {"a/pipe.jpg"}
    return lost


def test_every_entry_is_used_or_lost_for_its_reason(tmp_path, monkeypatch):
    root = tmp_path / "photos"
    lost = odd_entries(root)
    again = {
        reason: {name.replace("a/", "linked/", 1) for name in names if name.startswith("a/")}
        for reason, names in lost.items()
    }
    wanted = {reason: names | again[reason] for reason, names in lost.items()}
    monkeypatch.setattr(ledger, "MOST_EXAMPLES", 100)
    source = FolderSource(root)
    images = {item.key for item in source.items()}
    below_a = {"café.JPG", "new\nline.jpg", "-rf.jpeg", "link.jpg"}
    assert images == {f"{top}/{name}" for top in ("a", "linked") for name in below_a} | {"__init__/0.jpg"}
    account = source.ledger.accounts["directory entries"]
    assert {reason: set(entry.examples) for reason, entry in account.lost.items()} == wanted
    assert {reason: entry.count for reason, entry in account.lost.items()} == {k: len(v) for k, v in wanted.items()}
    assert account.used == {"folders": 3, "images": 9}
    find = ["find", "-L", root, "-mindepth", "1", "-print0"]
    walked = subprocess.run(find, capture_output=True, check=False, env={"LC_ALL": "C"})
    num_loops = len(walked.stderr.splitlines())  # find lists no links in circles, but complains of each
    assert account.found == walked.stdout.count(b"\0") + num_loops
    source.ledger.check(root)


def test_folders_without_a_usable_image_are_told(tmp_path):
    root = write_photos(tmp_path / "photos", {"a": 1, "b": 1, "empty": 0, "heic": 0, "deep/er": 0})
    (root / "heic" / "0.heic").write_bytes(b"")
    source = FolderSource(root)
    source.items()
    assert source.classes == [("a", "a"), ("b", "b")]
    assert source.notes == [
        "folders without a usable image, which make no class: 3 (deep, empty, heic)",
    ]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = write_photos(tmp_path / "photos", {"a": 1})
    os.symlink(root, root / "a" / "up")
    os.symlink(write_photos(tmp_path / "elsewhere", {"x": 1}) / "x", root / "b")
    assert [item.key for item in FolderSource(root).items()] == ["a/000.jpg", "b/000.jpg"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "holds no images; known: .* It holds: no files"),
        (lambda root: (write_photos(root, {"a": 1}) / "loose.jpg").write_bytes(b""), "are in no class folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, prepare, message):
    prepare(tmp_path / "photos")
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path / "photos").items()


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


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (("images/cat", "images/dog"), "folder images; if the folders below it are the classes (cat, dog), give that"),
        (("train/images/n2/a", "val/images/n1/b"), "if the folders below it are the classes (n1, n2), give that"),
        (("images/train", "images/val"), "all images are in one class, that of the folder images"),
        (("cat/images",), "all images are in one class, that of the folder cat"),
        (("cat", "dog/images"), ""),
    ],
)
def test_a_set_of_one_class_is_remarked_upon(tmp_path, folders, note):
    _, _, source = listed(photos(tmp_path, *folders))
    assert (note in " ".join(source.notes)) if note else source.notes == []
    assert " ".join(source.notes).count("give that folder") == ("give that" in note)


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
    assert "which make no class: 1 (c)" in " ".join(listed(root / "val")[2].notes)
