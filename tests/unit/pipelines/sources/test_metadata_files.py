from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from pipelines.__main__ import main
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from tests.unit.pipelines.photos import write_photos


def packed(out) -> dict[str, dict[str, str]]:
    """Split → path of each packed image → name of its class."""
    found: dict[str, dict[str, str]] = {}
    for folder in (path.parent for path in out.glob("*/index.json")):
        reader, names = ShardReader(ShardTable.load(folder)), [name for _, name in load_classes(folder)]
        rows = [
            (reader.record(index)[1].source, reader.read(index).labels) for index in range(reader.table.num_samples)
        ]
        found[folder.name] = {source: "+".join(names[label] for label in labels) for source, labels in rows}
    return found


def pack(root, out, *more: str, code: int = 0) -> None:
    assert main(["pack", "folder", str(root), "--out", str(out), "--workers", "1", *more]) == code


def test_one_table_in_the_root(tmp_path, capsys):
    root = write_photos(tmp_path / "set", {"": 2, "more": 1})
    (root / "000.txt").write_text("a caption")
    table = "\ufefffile_name,text,label\n000.jpg,one,owl\n./more/000.jpg,two,cat\n"
    (root / "metadata.csv").write_text(table, encoding="utf-8")
    pack(root, tmp_path / "out")
    assert packed(tmp_path / "out") == {"train": {"000.jpg": "owl", "more/000.jpg": "cat"}}
    lines = capsys.readouterr().out
    assert "1  an image that no metadata file names: 001.jpg" in lines
    assert "labels are those of metadata.csv, not the folders" in lines
    assert Card.load(tmp_path / "out" / "train").ledger["directory entries"].found == 6


def test_a_table_in_each_split_and_one_numbering(tmp_path):
    root = write_photos(tmp_path / "set", {"train": 2, "validation": 1})
    for split, labels in (("train", ["owl", "cat"]), ("validation", ["owl"])):
        lines = [json.dumps({"file_name": f"{row:03d}.jpg", "label": label}) for row, label in enumerate(labels)]
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    pack(root, tmp_path / "out")
    assert packed(tmp_path / "out") == {
        "train": {"train/000.jpg": "owl", "train/001.jpg": "cat"},
        "val": {"validation/000.jpg": "owl"},
    }
    assert load_classes(tmp_path / "out" / "train") == load_classes(tmp_path / "out" / "val")


def test_captions_leave_the_folders_as_classes(tmp_path, capsys):
    root = write_photos(tmp_path / "set", {"cat": 1, "owl": 1})
    (root / "metadata.csv").write_text("file_name,text\ncat/000.jpg,furry\nowl/000.jpg,feathery\n")
    pack(root, tmp_path / "out")
    assert packed(tmp_path / "out") == {"train": {"cat/000.jpg": "cat", "owl/000.jpg": "owl"}}
    assert "has no column of labels (--label-column): the folders are the classes" in capsys.readouterr().out
    pack(root, tmp_path / "other", "--label-column", "text")
    assert packed(tmp_path / "other") == {"train": {"cat/000.jpg": "furry", "owl/000.jpg": "feathery"}}


def test_masks_that_a_table_names_are_accounted_for(tmp_path, capsys):
    root = write_photos(tmp_path / "set", {"train": 2})
    for number in range(2):
        pixels = np.zeros((20, 16), np.uint8)
        pixels[: 4 + number] = 1
        Image.fromarray(pixels).save(root / "train" / f"{number}_mask.png")
    (root / "train" / "metadata.csv").write_text("file_name,mask\n000.jpg,0_mask.png\n001.jpg,1_mask.png\n")
    (tmp_path / "names.txt").write_text("sky\nground\n")
    pack(root, tmp_path / "out", "--class-names", str(tmp_path / "names.txt"))
    assert "6 directory entries = 1 folder + 2 images + 2 masks + 1 table" in capsys.readouterr().out
    assert Card.load(tmp_path / "out" / "train").class_counts == [2, 2]


def test_a_changed_label_is_seen(tmp_path, capsys):
    root = write_photos(tmp_path / "set", {"": 2})
    (root / "metadata.csv").write_text("file_name,label\n000.jpg,owl\n001.jpg,cat\n")
    pack(root, tmp_path / "out")
    (root / "metadata.csv").write_text("file_name,label\n000.jpg,cat\n001.jpg,owl\n")
    pack(root, tmp_path / "out", code=2)
    assert "the source has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "more", "message"),
    [
        ("file_name,label\n000.jpg,a\n777.jpg,b\n", (), "metadata.csv:3: .*777.jpg cannot be found"),
        ("file_name,label\n../000.jpg,a\n", (), "metadata.csv:2: ../000.jpg is not below"),
        ("file_name,label\n,a\n", (), "metadata.csv:2: no file_name"),
        ("name,label\n000.jpg,a\n", (), "metadata.csv:2: no file_name; it has name, label"),
        ("file_name,label\n000.jpg,a\n./000.jpg,a\n", (), "'000.jpg' twice"),
        ("file_name,label\n000.jpg,a\n", ("--nested-labels",), "--nested-labels would be ignored"),
        ("file_name,text\n000.jpg,a\n", ("--labels-are", "names"), "metadata.csv has no labels: it would be ignored"),
        ("file_name,label\n", (), "metadata.csv names no image"),
        ("file_name,label\n000.jpg,\xe9\n", (), "metadata.csv.*not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, table, more, message, capsys):
    root = write_photos(tmp_path / "set", {"": 1})
    (root / "metadata.csv").write_text(table, encoding="latin-1")
    pack(root, tmp_path / "out", *more, code=2)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error), error
