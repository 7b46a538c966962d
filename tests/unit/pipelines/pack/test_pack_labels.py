"""The options about labels on the command line, and what reaches the packed set."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.index import ShardTable, read_labels, read_sources
from tests.unit.pipelines.photos import encode
from tests.unit.pipelines.sources.test_imagenet21k import tar_of


def shards(folder: Path, labels: list[str], member: str = "cls") -> Path:
    files = {}
    for number, label in enumerate(labels):
        files |= {f"{number:03d}.jpg": encode(number), f"{number:03d}.{member}": label.encode()}
    folder.mkdir(parents=True)
    (folder / "x-000.tar").write_bytes(tar_of(files))
    return folder


def meanings(out: Path) -> dict[str, list[str]]:
    """Key of each image → ids of its classes, read from what was packed."""
    ids = [identifier for identifier, _ in load_classes(out)]
    table = ShardTable.load(out)
    rows = [[ids[label] for label in row if label >= 0] for row in read_labels(table).tolist()]
    return dict(zip(read_sources(table), rows, strict=True))


@pytest.mark.parametrize(
    ("labels", "member", "options", "ids", "expected"),
    [
        (["3", "5", "3"], "cls", [], "0 1 2 3 4 5", "3 5 3"),
        (["3", "5", "3"], "cls", ["--labels-are", "names"], "3 5", "3 5 3"),
        (["3", "5", "3"], "cls", ["--num-classes", "8"], "0 1 2 3 4 5 6 7", "3 5 3"),
        (['{"labels": [1, 0]}', '{"labels": [0, 1]}'], "json", ["--labels-are", "multi-hot"], "0 1", "0 1"),
        (['{"labels": [1, 0]}', '{"labels": [0, 1]}'], "json", ["--labels-are", "numbers"], "0 1", "1,0 0,1"),
        (['{"kind": 1, "label": 0}', '{"kind": 0}'], "json", ["--label-column", "kind"], "0 1", "1 0"),
    ],
)
def test_options_reach_the_packed_set(tmp_path, capsys, labels, member, options, ids, expected):
    source, out = shards(tmp_path / "in", labels, member), tmp_path / "out"
    assert main(["pack", "webdataset", str(source), "--out", str(out), *options]) == 0
    assert [identifier for identifier, _ in load_classes(out / "train")] == ids.split()
    found = meanings(out / "train")
    assert [",".join(found[key]) for key in sorted(found)] == expected.split()


def test_two_cranes_and_an_image_without_a_label(tmp_path, capsys):
    source, out = shards(tmp_path / "in", ["0", "1", "2", "", "2"]), tmp_path / "out"
    names = tmp_path / "names.txt"
    names.write_bytes("\ufefftench\r\ncrane\r\ncrane\r\n".encode())
    assert main(["pack", "webdataset", str(source), "--out", str(out), "--class-names", str(names)]) == 0
    card = Card.load(out / "train")
    assert load_classes(out / "train") == [("0", "tench"), ("1", "crane"), ("2", "crane")]
    assert (card.class_counts, card.dropped) == ([1, 1, 2], {"no label": 1})
    assert "1 of 5 images have no label" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels-are", "names", "--num-classes", "3"], "with --labels-are names it would be ignored"),
        (["--num-classes", "2"], "is outside --num-classes 2, whose numbers are 0-1"),
        (["--num-classes", "-1"], "--num-classes -1 is out of range"),
        (["--encoding", "klingon"], "--encoding 'klingon' is not a known text encoding"),
        (["--encoding", "base64"], "--encoding 'base64' is not a known text encoding"),
        (["--label-column", "txt"], "no sample has the label txt, which --label-column names"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, options, message):
    source = shards(tmp_path / "in", ["0", "2"])
    assert main(["pack", "webdataset", str(source), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path).glob("out/*/index.json"))


def test_verify_reads_labels_as_pack_does(tmp_path, capsys):
    source = shards(tmp_path / "hot", [json.dumps([1, 0, 1]), json.dumps([0, 1, 0])], "json")
    assert main(["verify", str(source)]) == 0
    assert read_labels(ShardTable.load(source)).tolist() == [[0, 2], [1, -1]]
    assert "warning: labels are multi-hot: lists of 3 numbers" in capsys.readouterr().out
    source = shards(tmp_path / "gaps", ["3", "5"])
    assert main(["verify", str(source)]) == 0
    assert "labels are class numbers 0-5, of which 4 have no image: 0-2, 4" in capsys.readouterr().out
    source = shards(tmp_path / "names", ["owl", "cat"])
    assert main(["verify", str(source)]) == 1
    assert "the labels are names, such as 'cat'; an index has class numbers: give" in capsys.readouterr().out
    (tmp_path / "names.csv").write_text("index,id,name\n1,owl,owl\n0,cat,cat\n")
    assert main(["verify", str(source), "--class-names", str(tmp_path / "names.csv")]) == 0
    assert read_labels(ShardTable.load(source)).tolist() == [[1], [0]]
    rows = list(csv.reader((source / "classes.csv").read_text().splitlines()))
    assert rows == [["index", "id", "name"], ["0", "cat", "cat"], ["1", "owl", "owl"]]
