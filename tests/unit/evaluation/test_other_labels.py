"""A head scored on a set of other classes, and labels from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.__main__ import main
from pretrain.data.storage.index import ShardTable, read_labels, read_sources
from pretrain.errors import DataError
from pretrain.evaluation.other_labels import ClassMap, load_targets
from tests.unit.data.sets import write_set
from tests.unit.pipelines.photos import write_photos

SET = [("n3", "cat"), ("n1", "dog"), ("n9", "teddy")]
HEAD = [("n0", "thing"), ("n1", "dog"), ("n2", "pug"), ("n3", "cat")]
INF = float("-inf")


def scores(class_map: ClassMap) -> list[float]:
    return class_map(torch.tensor([[9.0, 1.0, 2.0, 3.0]]))[0].tolist()


def test_classes_of_equal_id_belong_together() -> None:
    class_map = ClassMap.load(None, SET, HEAD)
    assert scores(class_map) == [3.0, 1.0, INF]
    assert class_map.summary() == "2 of 3 classes have an output of the head; images of the others count as wrong: n9"


def test_a_file_may_name_ids_or_numbers_and_several_outputs(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("class,output\nn3,3\n1,n1\nn1,n2\nn9,0\n")
    class_map = ClassMap.load(str(path), SET, HEAD)
    assert scores(class_map) == [3.0, 2.0, 9.0], "a dog is a dog or a pug, whichever is higher"
    assert class_map.summary() == "3 of 3 classes have an output of the head"


def test_ids_that_are_numbers_of_outputs() -> None:
    folders = [("0", "0"), ("10", "10"), ("2", "2")]  # in the order in which a folder of them is packed
    class_map = ClassMap.load("numbers", folders, HEAD)
    assert class_map.missing == ["10"] and scores(class_map)[2] == scores(ClassMap.load(None, [HEAD[2]], HEAD))[0]
    with pytest.raises(DataError, match="class_map: numbers: no class of the set has an output"):
        ClassMap.load("numbers", [("cat", "cat")], HEAD)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n3,3\n", ["map.csv:1", "class,output"]),
        ("class,output\nn3\n", ["map.csv:2", "1 values"]),
        ("class,output\nn7,3\n", ["map.csv:2", "class: 'n7' is not a class; there are 3 classes", "numbers below 3"]),
        ("class,output\nn3,4\n", ["map.csv:2", "output: '4' is not a class"]),
        ("class,output\nn3,3\nn1,3\n", ["output n3 stands for two classes, n3 and n1"]),
        ("class,output\n", ["no class of the set has an output"]),
    ],
)
def test_bad_maps(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "map.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        ClassMap.load(str(path), SET, HEAD)
    assert all(word in str(caught.value) for word in words), caught.value


CRANES = [("n1", "tench"), ("n2", "crane"), ("n3", "crane")]


def by_name(classes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, name) for _, name in classes]


def test_two_classes_of_one_name_are_never_taken_for_one_another(tmp_path: Path) -> None:
    same = ClassMap.load(None, by_name(CRANES), by_name(CRANES))
    assert same(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist() == [1.0, 2.0, 3.0], "the same list: by place"
    with pytest.raises(DataError, match=r"several outputs of the head are called 'crane', the numbers 1, 2; name the"):
        ClassMap.load(None, by_name(CRANES[:2]), by_name(CRANES))
    with pytest.raises(DataError, match="several classes of the set are called 'crane', the numbers 1, 2"):
        ClassMap.load(None, by_name(CRANES), by_name(CRANES[:2]))
    assert ClassMap.load(None, by_name(CRANES[:1]), by_name(CRANES)).missing == [], "a name that only one has"
    path = tmp_path / "map.csv"
    path.write_text("class,output\ncrane,1\n")
    with pytest.raises(DataError, match=r"map\.csv:2: class: 2 classes have the name 'crane': the numbers 1 .id n2."):
        ClassMap.load(str(path), CRANES, HEAD)


def test_a_map_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_bytes("\ufeffclass,output\r\nn3,3\r\n\r\ndog,dog\r\n".encode())
    assert scores(ClassMap.load(str(path), SET, HEAD)) == [3.0, 1.0, INF]


def test_a_number_is_an_id_where_ids_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("class,output\n2,0\n")
    folders = [("0", "0"), ("10", "10"), ("2", "2")]
    assert ClassMap.load(str(path), folders, HEAD).missing == ["0", "10"]
    path.write_text("class,output\n1,0\n")
    with pytest.raises(DataError, match="class: '1' is not a class"):
        ClassMap.load(str(path), folders, HEAD)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ShardTable:
    return ShardTable.load(write_set(tmp_path_factory.mktemp("coded") / "val", [3, 2]))


def test_targets_as_a_list_in_the_order_of_names_and_by_name(table: ShardTable, tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    rows = [[0], [], [3, 1], [2], [6]]
    expected = [[0, -1], [-1, -1], [3, 1], [2, -1], [6, -1]]
    path.write_text(json.dumps(rows))
    assert load_targets(path, table).tolist() == expected
    path.write_text(json.dumps({f"image-{index:06d}": row for index, row in reversed(list(enumerate(rows)))}))
    assert load_targets(path, table).tolist() == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[[1]]", ["labels of 1 images", "has 5"]),
        ('{"image-000000": [1]}', ["no labels of image-000001 and 3 more"]),
        ("[[0],[1],[2],[3],[7]]", ["image-000004: 7 is not a class", "0 to 6"]),
        ("3", ["a JSON list"]),
        ("[", ["cannot be read"]),
    ],
)
def test_bad_targets(table: ShardTable, tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "real.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load_targets(path, table)
    assert all(word in str(caught.value) for word in words), caught.value
    assert np.asarray(table.sizes).tolist() == [3, 2]


def test_reals_own_labels_come_with_timm_and_another_order_is_seen(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    table = ShardTable.load(write_set(tmp_path_factory.mktemp("many") / "val", [1200]))
    own = read_labels(table)[:, 0].tolist()
    names = read_sources(table)
    in_order = [[own[names.index(name)], 6] for name in sorted(names)]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(in_order))
    assert (load_targets(path, table)[:, 0] == own).all()
    path.write_text(json.dumps([[(label + 1) % 6] for label, _ in in_order]))
    with pytest.raises(DataError, match="lists hold the image's own label"):
        load_targets(path, table)
    with pytest.raises(DataError, match=r"imagenet_real_labels\.json: labels of 50,000 images, but .* has 1,200"):
        load_targets("imagenet_real", table)


def test_a_list_counts_by_the_names_of_a_set_that_was_shuffled(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"a": 12})
    assert main(["pack", "folder", str(photos), "--out", str(tmp_path / "set")]) == 0
    table = ShardTable.load(tmp_path / "set" / "train")
    names = [Path(source).name for source in read_sources(table)]
    assert names != sorted(names)
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[0] if number % 2 else [] for number in range(12)]))
    expected = [[0 if int(Path(name).stem) % 2 else -1] for name in names]
    assert load_targets(path, table).tolist() == expected
