from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.pack.labels import DEBIAN_FILE, LabelMap, WordNet
from pipelines.pack.options import PackOptions, PlanInputs
from pipelines.pack.plan import make_plan
from pipelines.pack.selection import find_duplicates
from pipelines.pack.split_lists import SplitLists
from pipelines.sources.protocol import Item
from pipelines.sources.table import ItemTable, relabel
from pretrain.errors import ConfigError, DataError, SetupError

CLASSES = [("a", "ant"), ("b", "bee"), ("c", "cat")]
# Lines as in WordNet 3.0's data.noun, shortened: dog has two parents, which meet again.
NOUNS = """  1 licence text in front
00001740 03 n 01 entity 0 000 | that which is
00002684 03 n 02 object 0 physical_object 0 001 @ 00001740 n 0000 | a thing
00015388 03 n 01 animal 0 001 @ 00002684 n 0000 | a living organism
01317541 03 n 02 domestic_animal 0 house_pet 0 001 @ 00015388 n 0000 | tame
02083346 05 n 01 canine 1 001 @ 00015388 n 0000 | fissiped
02084071 05 n 03 dog 0 pooch 0 Canis_familiaris 0 003 @ 02083346 n 0000 @ 01317541 n 0000 ~ 02085620 n 0000 | bark
09011151 15 n 01 Rex 0 001 @i 02084071 n 0000 | one dog
"""


@pytest.fixture
def nouns(tmp_path):
    path = tmp_path / "data.noun"
    path.write_text(NOUNS)
    return path


def table(*rows: tuple[str, tuple[int, ...]], splits=None) -> ItemTable:
    return ItemTable.of(
        Item(key, labels, 9, (splits or ["train"] * len(rows))[index]) for index, (key, labels) in enumerate(rows)
    )


def labels_of(made: ItemTable) -> dict[str, tuple[int, ...]]:
    return {made[row].key: made[row].labels for row in range(len(made))}


def label_map(tmp_path, *lines) -> LabelMap:
    path = tmp_path / "map.csv"
    path.write_text("\n".join(lines))
    return LabelMap.load(path)


def test_a_map_merges_splits_and_drops_classes(tmp_path):
    change = label_map(tmp_path, "from,to,name", "b,insect,Insects", "a,insect", "a,small", "c,").relabelling(CLASSES)
    assert change.classes == (("insect", "Insects"), ("small", "small"))
    rows = table(("1", (0,)), ("2", (1,)), ("3", (2,)), ("4", (0, 1)))
    assert labels_of(relabel(rows, change)) == {"1": (0, 1), "2": (0,), "3": (), "4": (0, 1)}


def test_a_map_of_a_spreadsheet_has_a_mark_in_front(tmp_path):
    (tmp_path / "map.csv").write_bytes("\ufefffrom,to\r\na,x\r\n*,*\r\n".encode())
    change = LabelMap.load(tmp_path / "map.csv").relabelling(CLASSES)
    assert [identifier for identifier, _ in change.classes] == ["x", "b", "c"]
    (tmp_path / "map.csv").write_bytes("from,to\na,\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"map\.csv:2: not UTF-8 text"):
        LabelMap.load(tmp_path / "map.csv")


@pytest.mark.parametrize(("rest", "classes"), [("*,*", ["x", "b", "c"]), ("*,", ["x"])])
def test_the_rest_is_kept_or_dropped(tmp_path, rest, classes):
    change = label_map(tmp_path, "from,to", "a,x", rest).relabelling(CLASSES)
    assert [identifier for identifier, _ in change.classes] == classes


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (["a,b"], ConfigError, "first line must be from,to"),
        (["from,to", "a"], ConfigError, "map.csv:2: 'a' is not from,to"),
        (["from,to", "*,x"], ConfigError, r"\* can become"),
        (["from,to", "z,x", "*,*"], DataError, "has no class 'z'"),
        (["from,to,name", "a,x,one", "b,x,two"], ConfigError, "the class 'x' is called 'one' and 'two'"),
        (["from,to", "ant,x", "*,*"], DataError, "has no class 'ant'; the class of this name has the id 'a'"),
        (["from,to", "a,x"], DataError, "2 classes of the source are on no line, such as 'b'"),
    ],
)
def test_wrong_maps_are_named(tmp_path, lines, error, message):
    with pytest.raises(error, match=message):
        label_map(tmp_path, *lines).relabelling(CLASSES)


def test_a_synset_becomes_itself_and_its_ancestors(nouns):
    wordnet = WordNet(nouns)
    line = wordnet.ancestors("n02084071")
    assert set(line) == {"n00001740", "n00002684", "n00015388", "n01317541", "n02083346", "n02084071"}
    assert line[0] == "n00001740"
    assert line[-1] == "n02084071"
    assert line.index("n00015388") < min(line.index("n01317541"), line.index("n02083346"))
    assert wordnet.ancestors("n09011151")[-2:] == ("n02084071", "n09011151")
    change = wordnet.relabelling([("n02084071", "dog"), ("n00015388", "animal")])
    assert dict(change.classes)["n01317541"] == "domestic animal, house pet"
    made = relabel(table(("rex", (0,)), ("ant", (1,))), change)
    ids = [identifier for identifier, _ in change.classes]
    assert [ids[label] for label in made[0].labels] == list(line)
    assert [ids[label] for label in made[1].labels] == list(line[:3])


def test_wordnet_that_is_missing_or_does_not_fit_is_named(tmp_path, nouns):
    with pytest.raises(SetupError, match="apt-get install wordnet-base"):
        WordNet(tmp_path / "gone")
    with pytest.raises(DataError, match=r"not nouns of WordNet 3\.0, such as 'cat'"):
        WordNet(nouns).relabelling([("cat", "cat")])
    nouns.write_text("no wordnet")
    with pytest.raises(DataError, match=r"data\.noun:1"):
        WordNet(nouns)


@pytest.mark.skipif(not DEBIAN_FILE.is_file(), reason="wordnet-base is not installed")
def test_every_class_of_imagenet_is_a_noun():
    import timm

    wordnet, folder = WordNet(), Path(timm.__file__).parent / "data" / "_info"
    synsets = (folder / "imagenet22k_synsets.txt").read_text().split()
    assert len(synsets) == 21841
    assert all(wordnet.ancestors(synset)[0] == "n00001740" for synset in synsets)


def content(*letters: str) -> np.ndarray:
    return np.array([[ord(letter), 7] for letter in letters], dtype=np.uint64)


def test_copies_go_and_their_labels_can_stay():
    rows = table(("1", (0,)), ("2", (1,)), ("3", (2,)), ("4", (0,)))
    hashes = np.array([4, 1, 2, 3], dtype=np.uint64)
    for merge, expected in ((False, (1,)), (True, (1, 0))):
        found = find_duplicates(rows, np.arange(4), hashes, content("x", "x", "y", "x"), merge=merge)
        assert [rows.key(row) for row in found.kept] == ["2", "3"]  # of the copies the one with the least hash
        assert found.table[1].labels == expected
        assert [(entry["source"], entry["of"]) for entry in found.entries()] == [("4", "2"), ("1", "2")]


def test_an_image_of_the_test_split_leaves_training():
    rows = table(("1", (0,)), ("2", (1,)), ("3", (1,)), ("4", (2,)), splits=["train", "test", "val", "test"])
    hashes = np.arange(4, dtype=np.uint64)
    found = find_duplicates(rows, np.arange(4), hashes, content("x", "x", "x", "x"), merge=True)
    assert [rows.key(row) for row in found.kept] == ["2", "3"]
    assert labels_of(found.table) == {"1": (0,), "2": (1, 2), "3": (1,), "4": (2,)}


def test_split_lists_decide(tmp_path):
    rows = [Item(f"folder/{index}.jpg", (0,), 9) for index in range(10)]
    (tmp_path / "val.txt").write_text("folder/3.jpg\n5\n\n")
    (tmp_path / "test.txt").write_text("7.jpg\n")
    lists = SplitLists.load([f"val={tmp_path}/val.txt", f"test={tmp_path}/test.txt"])
    made = make_plan(rows, [("a", "a")], PackOptions("x"), PlanInputs(split_lists=lists))
    found = {split.name: sorted(item.key for item in split.items) for split in made.splits}
    assert found["val"] == ["folder/3.jpg", "folder/5.jpg"]
    assert found["test"] == ["folder/7.jpg"]
    assert len(found["train"]) == 7
    (tmp_path / "train.txt").write_text("1\n2\n")
    lists = SplitLists.load([f"val={tmp_path}/val.txt", f"train={tmp_path}/train.txt"])
    made = make_plan(rows, [("a", "a")], PackOptions("x"), PlanInputs(split_lists=lists))
    assert made.num_items == 4
    assert made.dropped == {"on no split list": 6}
    (tmp_path / "val.txt").write_text("99\n")
    lists = SplitLists.load([f"val={tmp_path}/val.txt"])
    with pytest.raises(DataError, match="1 of its 1 images are not in the source, such as '99'"):
        make_plan(rows, [("a", "a")], PackOptions("x"), PlanInputs(split_lists=lists))
    with pytest.raises(ConfigError, match="write NAME=FILE"):
        SplitLists.load(["val.txt"])
