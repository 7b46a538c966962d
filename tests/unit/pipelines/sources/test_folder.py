from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipelines.sources.folder import FolderSource
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
    root = write_photos(tmp_path / "photos", {"a": 1, "empty": 0, "heic": 0, "deep/er": 0})
    (root / "heic" / "0.heic").write_bytes(b"")
    source = FolderSource(root)
    source.items()
    assert source.classes == [("a", "a")]
    assert source.notes == [
        "folders without an image that can be used, of which no class comes: 3 (deep, empty, heic)",
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
