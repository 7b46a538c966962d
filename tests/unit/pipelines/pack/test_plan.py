from __future__ import annotations

from collections import Counter

import pytest

from pipelines.pack.labels import parse_classes
from pipelines.pack.options import PackOptions
from pipelines.pack.plan import Plan, make_plan
from pipelines.sources.protocol import Item
from pretrain.errors import ConfigError, DataError

CLASSES = [("n01", "cat"), ("n02", "dog"), ("n03", "cow"), ("n04", "hen")]


def items(count: int = 400, num_bytes: int = 1000) -> list[Item]:
    return [Item(f"image-{index}", (index % 4,), num_bytes) for index in range(count)]


def plan(rows: list[Item] | None = None, **options) -> Plan:
    return make_plan(items() if rows is None else rows, CLASSES, PackOptions("test", **options))


def keys(made: Plan, split: str) -> list[str]:
    return [item.key for part in made.splits if part.name == split for item in part.items]


def test_every_image_is_packed_once_in_a_seeded_order_that_ignores_the_listing():
    assert sorted(keys(plan(), "train")) == sorted(item.key for item in items())
    assert keys(plan(), "train") == keys(plan(items()[::-1]), "train")
    assert keys(plan(seed=1), "train") != keys(plan(), "train")


def test_the_shuffle_is_global():
    positions = [int(key.rpartition("-")[2]) for key in keys(plan(), "train")]
    moved = sum(abs(position - index) for index, position in enumerate(positions)) / len(positions)
    assert abs(moved - 400 / 3) < 20  # the mean distance of two random places is a third of the length


@pytest.mark.parametrize(
    ("options", "num_shards", "largest"),
    [
        ({}, 1, 400),
        ({"shard_samples": 150}, 3, 150),
        ({"shard_bytes": 25_600}, 40, 10),  # 512 header + 1024 image + 1024 label
        ({"shard_bytes": 1}, 400, 1),
    ],
)
def test_shards_are_cut_by_samples_and_bytes(options, num_shards, largest):
    (split,) = plan(**options).splits
    assert len(split.shards) == num_shards
    assert max(len(shard.items) for shard in split.shards) == largest
    assert [shard.first for shard in split.shards] == [
        sum(len(shard.items) for shard in split.shards[:index]) for index in range(num_shards)
    ]
    assert split.shards[-1].name == f"shard-{num_shards - 1:06d}.tar"


def test_the_hold_out_is_a_function_of_the_key_alone():
    first = plan(holdout=0.25)
    held = set(keys(first, "val"))
    assert 70 < len(held) < 130
    assert not held & set(keys(first, "train"))
    assert set(keys(plan(holdout=0.25, seed=9), "val")) == held
    assert set(keys(plan(items()[:200], holdout=0.25), "val")) == {k for k in held if int(k.split("-")[1]) < 200}
    assert held < set(keys(plan(holdout=0.5), "val"))
    assert first.held_out


def test_a_published_test_split_stays_as_it_is():
    rows = [item._replace(split="test" if index % 10 == 0 else "train") for index, item in enumerate(items())]
    made = plan(rows, holdout=0.25)
    assert [split.name for split in made.splits] == ["train", "val", "test"]
    assert len(keys(made, "test")) == 40


def test_the_hold_out_takes_from_train_alone_and_says_where_it_joins_another_val():
    rows = [item._replace(split=("train", "val", "test")[index % 3]) for index, item in enumerate(items(300))]
    made = plan(rows, holdout=0.2)
    own = {split: {row.key for row in rows if row.split == split} for split in ("train", "val", "test")}
    assert set(keys(made, "test")) == own["test"]
    assert set(keys(made, "train")) < own["train"]
    assert set(keys(made, "val")) == own["val"] | (own["train"] - set(keys(made, "train")))
    held = len(own["train"]) - len(keys(made, "train"))
    assert made.notes[0].startswith(f"val has 100 images of the source's own val and {held} held out of train")
    assert plan(rows).notes == plan(holdout=0.2).notes == ()


@pytest.mark.parametrize("split", ["../../x", "/x", "", ".plan", "a b", "valid", "Train"])
def test_a_split_that_is_not_a_plain_name_is_refused_whatever_source_gave_it(split):
    with pytest.raises(DataError, match="split"):
        plan([item._replace(split=split) for item in items()])


def test_splits_that_differ_in_case_alone_are_refused():
    with pytest.raises(DataError, match="'extra' and 'Extra' differ"):
        plan([item._replace(split=("extra", "Extra")[index % 2]) for index, item in enumerate(items())])


def test_few_images_per_class_are_nested_and_leave_the_hold_out_alone():
    few, more = plan(per_class=3, holdout=0.2), plan(per_class=5, holdout=0.2)
    for made, count in ((few, 3), (more, 5)):
        (train, val) = made.splits
        assert Counter(item.labels[0] for item in train.items) == dict.fromkeys(range(4), count)
        assert keys(made, "val") == keys(plan(holdout=0.2), "val")
        assert val.items
    assert set(keys(few, "train")) < set(keys(more, "train"))
    assert set(keys(plan(per_class=3, seed=1), "train")) != set(keys(plan(per_class=3), "train"))


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("", [0, 1, 2, 3]),
        ("1-2", [1, 2]),
        ("n03,n01", [0, 2]),
        ("dog", [1]),
        ("0-0, hen", [0, 3]),
    ],
)
def test_classes_are_chosen_by_id_name_or_range(text, indices):
    assert parse_classes(text, CLASSES) == indices


NUMBERED = [(str(number), str(number)) for number in (0, 1, 2, 3, 4, 7, 10, 11)]  # 5, 6, 8 and 9 are missing
CRANES = [("n1", "crane"), ("n2", "crane"), ("n3", "crane, bird"), ("n4", "tench")]


@pytest.mark.parametrize(
    ("classes", "text", "ids"),
    [
        (NUMBERED, "0-4,7", "0 1 2 3 4 7"),
        (NUMBERED, "10-11,2", "2 10 11"),
        ([("00", "x"), ("01", "y"), ("02", "z")], "01-02", "01 02"),
        (CRANES, "n1,tench", "n1 n4"),
        (CRANES, "crane, bird,tench", "n3 n4"),
        (CRANES, '"crane, bird",n1', "n1 n3"),
        (CRANES, "0-1", "n1 n2"),
    ],
)
def test_numbers_are_ids_where_ids_are_numbers_and_names_keep_their_commas(classes, text, ids):
    assert [classes[index][0] for index in parse_classes(text, classes)] == ids.split()


@pytest.mark.parametrize(
    ("classes", "text", "message"),
    [
        (NUMBERED, "4-7", "'5' is not a class; there are 8 classes: '0', '1', '2', '3', '4', …"),
        (NUMBERED, "5", "'5' is not a class"),
        (NUMBERED, "0-999999999", "'0-999999999' is not a range of classes"),
        (CRANES, "crane", "2 classes have the name 'crane': the numbers 0 .id n1., 1 .id n2.; name one by its id"),
        (CRANES, "n1,n1", "a class is named twice"),
        ([("a", "a"), ("b", "b"), ("a, b", "a, b")], "a, b", "'a, b' is one class or several"),
    ],
)
def test_what_names_no_class_or_several_is_refused(classes, text, message):
    with pytest.raises(ConfigError, match=message):
        parse_classes(text, classes)


def test_chosen_classes_are_numbered_anew():
    made = plan(classes="n02,n04")
    assert made.classes == (("n02", "dog"), ("n04", "hen"))
    expected = {f"image-{index}": (0,) if index % 4 == 1 else (1,) for index in range(400) if index % 2}
    assert {item.key: item.labels for item in made.splits[0].items} == expected


def test_a_multi_label_image_keeps_the_labels_that_are_chosen():
    rows = [Item("a", (0, 2), 1), Item("b", (1,), 1), Item("c", (1, 3), 1)]
    made = plan(rows, classes="n01,n04")
    assert {item.key: item.labels for item in made.splits[0].items} == {"a": (0,), "c": (1,)}


def test_the_listing_digest_sees_every_change_of_the_source():
    base = plan().listing
    assert plan(items()[::-1]).listing == base
    assert plan(seed=3).listing == base
    others = [
        items()[:-1],
        [*items()[:-1], items()[-1]._replace(num_bytes=999)],
        [*items()[:-1], items()[-1]._replace(labels=(0,))],
        [*items()[:-1], items()[-1]._replace(key="renamed")],
    ]
    digests = {plan(rows).listing for rows in others}
    assert len(digests) == 4
    assert base not in digests


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (None, {"classes": "n09"}, ConfigError, "'n09' is not a class; there are 4 classes"),
        (None, {"classes": "2-4"}, ConfigError, "'4' is not a class; .*or numbers below 4"),
        (None, {"classes": "n01,0-1"}, ConfigError, "named twice"),
        (None, {"per_class": 101}, DataError, r"too few training images in n01 \(100\)"),
        (None, {"holdout": 0.0001}, ConfigError, "holds out none of 400 images"),
        ([Item("a", (0,), 1)] * 2, {}, DataError, "lists 'a' twice"),
        ([], {}, ConfigError, "no training image is left"),
    ],
)
def test_what_cannot_be_packed_is_refused(rows, options, error, message):
    with pytest.raises(error, match=message):
        plan(rows, **options)
