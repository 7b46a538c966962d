"""The expected splits are those that the datasets library (5.2.0) gave to folders with these files."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources.splits import SPLIT_FROM, Place, splits_of_files, to_split_name
from pretrain.errors import DataError

BY_DATASETS = [
    {"imagenet1k-train-0000.tar": "train", "imagenet1k-validation-00.tar": "val"},
    {"cifar10-train.parquet": "train", "cifar10-test.parquet": "test"},
    {"partial-train/0000.parquet": "train", "partial-test/0001.parquet": "test"},
    {"training/x-0000.parquet": "train", "testing/y-0000.parquet": "test"},
    {"train/0000.parquet": "train", "test/0000.parquet": "test"},
    {"default/train/0000.parquet": "train", "default/validation/0000.parquet": "val"},
    {"train/CITY/a.png": "train", "val/CITY/x.png": "val"},
    {"training/test_tube.jpg": "train", "validation/train.jpg": "val"},
    {"my_train_file.csv": "train", "my_validation_file.csv": "val", "my_test_file.csv": "test"},
    {"train1.csv": "train", "validation1.csv": "val", "test1.csv": "test"},
    {"data/train.csv": "train", "data/dev.csv": "val", "data/eval.csv": "test"},
    {"x.training.tar": "train", "x.valid.tar": "val", "x.evaluation.tar": "test"},
    {"a b train c.tar": "train", "a b val c.tar": "val"},
    {"2014train-01.tar": "train", "2014val-01.tar": "val"},
    {"train2017/1.tar": "train", "val2017/1.tar": "val", "test2017/1.tar": "test"},
    {"en.train/0.tar": "train", "en.dev/0.tar": "val", "en.test/0.tar": "test"},
    {"trainer-0.tar": "train", "validated-0.tar": "train", "tests-0.tar": "train", "contest-0.tar": "train"},
    {"000.tar": "train", "001.tar": "train"},
    {
        "data/train-00000-of-00002.parquet": "train",
        "data/holdout-00000-of-00001.parquet": "holdout",
        "data/test_unlabelled-00000-of-00001.parquet": "test_unlabelled",
    },
    {"set/data/extra_train-00000-of-00001.parquet": "train"},
]


@pytest.mark.parametrize("expected", BY_DATASETS, ids=lambda expected: next(iter(expected)))
def test_files_are_in_the_split_that_datasets_gives_them(expected):
    found = splits_of_files([Place(path, "set") for path in expected])
    assert dict(zip(expected, found.names, strict=True)) == expected


@pytest.mark.parametrize(
    ("place", "split"),
    [
        (Place("0001.tar", "val"), "train"),  # the given folder itself does not count
        (Place("train-0.tar", "test"), "train"),  # a scratch folder called test
        (Place("0.tar", "test_data"), "train"),  # as likely data to test with
        (Place("0.tar", "val2017"), "train"),
        (Place("VAL/0.tar"), "val"),
        (Place("Test.tar"), "test"),
        (Place("old-test/train/0.tar"), "train"),  # a folder that is the word goes before one that holds it
        (Place("val/test-0.tar"), "val"),
    ],
)
def test_the_order_in_which_names_decide(place, split):
    assert splits_of_files([place]).names == (split,)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("auto", ("val", "train", "train")),
        ("folders", ("val", "train", "train")),
        ("names", ("test", "train", "train")),
        ("none", ("train", "train", "train")),
    ],
)
def test_the_rule_can_be_overridden_and_says_what_it_did(how, expected):
    found = splits_of_files([Place("val/test-0.tar"), Place("train-0.tar"), Place("x.tar")], how)
    assert found.names == expected
    assert f"--split-from {how}" in found.rule
    notes = " ".join(found.notes)
    assert ("1 of 3 files say no split, such as x.tar" in notes) == (how in ("auto", "names"))
    assert ("'val'" in notes) == (how in ("names", "none"))
    assert ("test-0.tar" in notes) == (how != "names")


def test_a_split_above_the_given_folder_is_remarked_upon_and_does_not_count():
    found = splits_of_files([Place("0.tar", "shards", "/data/val/shards")])
    assert found.names == ("train",)
    assert "below a folder called 'val'" in found.notes[0]
    (note,) = splits_of_files([Place("0.tar", "val", "/data/set")]).notes
    assert "though they are below a folder called 'val': if they are that split, give the folder above it" in note
    assert not splits_of_files([Place("train-0.tar", "shards", "/data/val/shards")]).notes
    assert not splits_of_files([Place("0.tar", "shards", "/data/train/shards")]).notes


@pytest.mark.parametrize("name", ["testSet0.tar", "cifarTest.tar", "TestSet/0.tar", "imgs_valSet.tar", "tests-0.tar"])
def test_a_split_word_that_is_not_set_apart_does_not_count_and_is_remarked_upon(name):
    found = splits_of_files([Place("trainSet0.tar"), Place(name)])
    assert found.names == ("train", "train")
    assert f"1 name holds a split word that is not delimited, such as {name}, and is in train" in " ".join(found.notes)
    more = splits_of_files([Place("trainSet0.tar"), Place(name), Place(f"a/{name}")])
    assert f"2 names hold a split word that is not delimited, such as {name}, and are in train" in " ".join(more.notes)
    assert not splits_of_files([Place("trainSet0.tar"), Place(name)], "none").notes


@pytest.mark.parametrize(
    "name", ["contest-0.tar", "latest.tar", "Attested/0.tar", "evaluated.tar", "trainSet1.tar", "TESTING2.tar"]
)
def test_words_that_only_contain_a_split_word_are_not_remarked_upon(name):
    assert "not delimited" not in " ".join(splits_of_files([Place(name), Place("0.tar")]).notes)


def test_names_of_images_count_only_where_all_say_a_split():
    pictures = [Place("a/test_tube.jpg"), Place("a/cup.jpg")]
    found = splits_of_files(pictures, images=True)
    assert found.names == ("train", "train")
    assert "test_tube.jpg" in found.notes[0]
    assert splits_of_files([Place("ADE_val_01.jpg"), Place("ADE_train_01.jpg")], images=True).names == ("val", "train")


@pytest.mark.parametrize("name", ["train-val-0.tar", "test-dev/0.tar", "valid_test.parquet"])
def test_a_name_with_two_splits_is_refused(name):
    with pytest.raises(DataError, match=r"matches .* and .*--split-from"):
        splits_of_files([Place(name)])
    assert splits_of_files([Place(name)], "none").names == ("train",)


@pytest.mark.parametrize(
    ("text", "name"), [("Train", "train"), (" VALID ", "val"), ("evaluation", "test"), ("minival", "minival")]
)
def test_a_split_has_one_spelling(text, name):
    assert to_split_name(text, "x") == name


@pytest.mark.parametrize(
    "text", ["", " ", ".", "..", "../../x", "/x", "a/b", "a\\b", ".plan", "-x", "x.", "a b", "\x1b[2J", "é", "x" * 65]
)
def test_a_split_that_would_be_no_plain_folder_is_refused(text):
    with pytest.raises(DataError, match="cannot be the name of a split"):
        to_split_name(text, "set.csv:3")


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(max_size=80) | st.text("./\\-_ a\0T", max_size=8) | st.sampled_from(["..", "...", ".pack.lock", "a/.."]))
def test_no_text_names_a_split_outside_of_the_folder(tmp_path_factory, text):
    out = tmp_path_factory.getbasetemp() / "out"
    try:
        name = to_split_name(text, "x")
    except DataError:
        return
    assert os.path.realpath(out / name) == os.path.join(os.path.realpath(out), name)
    assert name == to_split_name(name, "x") and not name.startswith(".")


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["train", "VAL", "test-1", "x", "a.b", "-", "9", "dev_train", "é"]), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(SPLIT_FROM),
    st.booleans(),
)
def test_any_paths_have_a_split_each_or_are_refused(parts, how, images):
    paths = ["/".join(part) for part in parts]
    try:
        found = splits_of_files([Place(path, "root") for path in paths], how, images=images)
    except DataError as error:
        assert "--split-from" in str(error)
        return
    assert len(found.names) == len(paths)
    assert set(found.names) <= {"train", "val", "test"}
    assert found.rule


def test_one_name_with_an_unused_split_word_is_in_the_singular():
    (note,) = splits_of_files([Place("val/test-0.tar")]).notes
    assert note.startswith("1 name holds a split word that was not used: 'test-0.tar'")
