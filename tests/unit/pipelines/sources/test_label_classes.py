"""Meaning of a source's labels: every row has the class ids and, per image, its ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pipelines.sources.class_names import ClassList, class_list, of_names
from pipelines.sources.label_classes import LabelCollector, LabelOptions, in_order
from pipelines.sources.label_values import LARGEST_NUMBER
from pretrain.errors import DataError

NAN = float("nan")


def collected(
    values: Sequence[Any], *, typed: bool = True, options: LabelOptions | None = None, names: ClassList | None = None
) -> tuple[list[str], list[list[str]], LabelCollector]:
    """Class ids, the ids of each image, and what was noted."""
    labels = LabelCollector(options)
    labels.begin(names)
    codes = [labels.add(value, f"row {row}", typed=typed) for row, value in enumerate(values)]
    change = labels.resolve()
    ids = [identifier for identifier, _ in change.classes]
    return ids, [[ids[new] for code in row for new in change.targets[code]] for row in codes], labels


def said(labels: LabelCollector) -> str:
    return "; ".join([*labels.notes, *labels.gaps])


@pytest.mark.parametrize(
    ("values", "typed", "classes", "images", "note"),
    [
        ([2, 0, 1], True, "0 1 2", [["2"], ["0"], ["1"]], ""),
        ([3, 5], True, "0 1 2 3 4 5", [["3"], ["5"]], "0-5, of which 4 have no image: 0-2, 4"),
        (["2", "0", "01"], False, "0 1 2", [["2"], ["0"], ["1"]], ""),
        (["1.0", "0.0"], False, "0 1", [["1"], ["0"]], ""),
        ([1.0, 0.0], True, "0 1", [["1"], ["0"]], ""),
        (["10", "2", "0"], True, "0 2 10", [["10"], ["2"], ["0"]], "texts that are whole numbers: 3 classes"),
        (["cat", "3", "dog", "5"], False, "3 5 cat dog", [["cat"], ["3"], ["dog"], ["5"]], "2 of them look like num"),
        ([True, False, True], True, "false true", [["true"], ["false"], ["true"]], "class 0 is false"),
        ([True, True], True, "false true", [["true"], ["true"]], "class 0 is false"),
        (
            ["b", None, "", NAN, "a"],
            True,
            "a b",
            [["b"], [], [], [], ["a"]],
            "3 of 5 images have no label, such as row 1",
        ),
        ([0, -1, 1], True, "0 1", [["0"], [], ["1"]], "1 labels are -1, which is read as no label, such as row 1"),
        (["a", "A "], False, "A a", [["a"], ["A"]], "'A' and 'a' differ only in case"),
        ([[1, 0, 1], [0, 0, 0], [1, 1, 0]], True, "0 1 2", [["0", "2"], [], ["0", "1"]], "labels are multi-hot"),
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], True, "0 1 2", [["0"], ["2"]], "multi-hot: lists of 3"),
        ([[True, False], [False, True]], True, "0 1", [["0"], ["1"]], "multi-hot"),
        ([[3, 1], [0], [3, 3]], True, "0 1 2 3", [["3", "1"], ["0"], ["3"]], "1 images name a class twice"),
        (["[unknown]", "cat (old)"], True, "[unknown] cat (old)", [["[unknown]"], ["cat (old)"]], ""),
        ([["b", "a"], ["b"]], True, "a b", [["b", "a"], ["b"]], ""),
    ],
)
def test_labels_mean(values, typed, classes, images, note):
    ids, found, labels = collected(values, typed=typed)
    assert (" ".join(ids), found) == (classes, images)
    assert note in said(labels)
    assert note or not said(labels), "what can be read in one way needs no remark"


@pytest.mark.parametrize(
    ("values", "typed", "message"),
    [
        ([{"id": 1}], True, r"row 0: the label \{'id': 1\} is a mapping; a label is"),
        ([0, [[1]]], True, "row 1: the label .* is a list inside a list"),
        ([[None]], True, "row 0: a list of labels holds None"),
        ([0.5], True, "row 0: the label 0.5 is neither a class number nor a name; .*targets"),
        (["0.5", "1.5"], False, "row 0: the label '0.5' is a number, but not a class number"),
        (["a", "--5"], False, "row 1: the label '--5' looks like a damaged number"),
        (["[0, 3]", "[1]"], False, r"row 0: the label '\[0, 3\]' looks like a list written as text; .*column labels"),
        (["a", "{'b': 1}"], True, "row 1: the label .* looks like a list written as text"),
        (["0 1 0", "1,0,0"], False, "row 0: the label '0 1 0' looks like a list written as text"),
        (["a", "nan"], False, "row 1: the label 'nan' is what programs write for no label"),
        (["a", "None"], False, "row 1: the label 'None' is what programs write for no label"),
        ([2**31], True, "row 0: the label 2147483648 is too large"),
        (["9" * 400], False, "row 0: a label of 400 characters"),
        (["a\nb"], True, "row 0: a label of several lines"),
        ([b"\x80\x04K\x03."], True, "row 0: a pickled Python object, which is never read"),
        (["péta".encode("latin-1")], True, "row 0:1: not UTF-8 text .byte 0xe9.; .*--encoding"),
        ([1, "cat"], True, "labels of two kinds: 'cat' at row 1, 1 at row 0; --labels-are names"),
        ([True, 1], True, "labels of two kinds"),
        ([-1, 1], True, r"the labels are -1 \(row 0\) and 1 \(row 1\): two classes, or"),
        ([-2, 1], True, "row 0: the label -2 is not a class number"),
        (["7", "007"], False, r"'7' \(row 0\) and '007' \(row 1\) are one class as numbers"),
        (
            [0, 9_999_999],
            True,
            "row 1: the label 9999999 would make 10,000,000 classes, of which 2 .*--num-classes 100",
        ),
        ([[1, 0], [0, 1]], True, "row 0: a list of one 0 and one 1 means the classes 0 and 1, or one of two classes"),
        ([[1, 0, 1], [1, 0]], True, "row 0 is one number 0 or 1 for each of 3 classes, but that at row 1 need not"),
        ([[1, 0, 1], [1, 0, 0, 1]], True, "row 1: a list of 4 numbers 0 and 1 in place of 3, as at row 0"),
        ([None, None], True, "none of the 2 images has a label, such as row 0"),
        ([f"a photo of {row}" for row in range(6)], True, "6 of 6 images have a text that no other image has"),
        ([f"img{row}" for row in range(20)], False, "20 of 20 images have a text .*--label-column"),
    ],
)
def test_what_would_be_a_guess_is_refused(values, typed, message):
    with pytest.raises(DataError, match=message):
        collected(values, typed=typed)


def test_rare_tags_and_many_spellings_are_no_reason_to_refuse():
    tags = [[f"tag{row}", f"rare{row}", "common"] for row in range(30)]
    ids, _, _ = collected(tags)
    assert len(ids) == 61
    names = [text for number in range(6) for text in (f"Class {number}", f"class {number}")] * 2
    _, _, labels = collected(names)
    assert [note for note in labels.notes if "differ only" in note][3:] == [
        "and 3 more classes that differ only in case or blanks"
    ]


@pytest.mark.parametrize(
    ("values", "options", "classes", "images"),
    [
        ([3, 5], LabelOptions("names"), "3 5", [["3"], ["5"]]),
        ([-1, 1], LabelOptions("names"), "-1 1", [["-1"], ["1"]]),
        (["7", "007"], LabelOptions("names"), "007 7", [["7"], ["007"]]),
        (["nan", "--5"], LabelOptions("names"), "--5 nan", [["nan"], ["--5"]]),
        ([1, "cat", True], LabelOptions("names"), "1 cat true", [["1"], ["cat"], ["true"]]),
        (["2", "0"], LabelOptions("numbers"), "0 1 2", [["2"], ["0"]]),
        ([0, 1], LabelOptions("", 3), "0 1 2", [["0"], ["1"]]),
        ([[1, 0], [0, 1]], LabelOptions("numbers"), "0 1", [["1", "0"], ["0", "1"]]),
        ([[1, 0], [0, 1]], LabelOptions("multi-hot"), "0 1", [["0"], ["1"]]),
        ([[1], [0]], LabelOptions("multi-hot", 1), "0", [["0"], []]),
    ],
)
def test_options_settle_it(values, options, classes, images):
    ids, found, _ = collected(values, options=options)
    assert (sorted(ids), found) == (sorted(classes.split()), images)


def test_ten_million_classes_are_possible_where_they_are_asked_for():
    ids, images, _ = collected([0, 9_999_999], options=LabelOptions("", 10_000_000))
    assert (len(ids), images) == (10_000_000, [["0"], ["9999999"]])
    with pytest.raises(DataError, match="is outside --num-classes 5"):
        collected([5], options=LabelOptions("", 5))
    with pytest.raises(DataError, match="too large"):
        collected([LARGEST_NUMBER + 1], options=LabelOptions("", LARGEST_NUMBER))


TWO_CRANES = of_names(["tench", "crane", "crane"], "names.txt")


def test_two_classes_of_one_name_stay_two():
    assert TWO_CRANES.classes == (("0", "tench"), ("1", "crane"), ("2", "crane"))
    ids, images, _ = collected([0, 1, 2], names=TWO_CRANES)
    assert (ids, images) == (["0", "1", "2"], [["0"], ["1"], ["2"]])
    with pytest.raises(DataError, match=r"2 classes have the name 'crane': the numbers 1 .id 1., 2 .id 2."):
        collected(["crane"], names=TWO_CRANES)
    with pytest.raises(DataError, match=r"the label 3 is outside the 3 classes of names.txt, whose numbers are 0-2"):
        collected([3], names=TWO_CRANES)


def test_lists_that_differ_are_joined_by_what_classes_are_called():
    labels = LabelCollector()
    codes = []
    for where, names, value in (("a", ["cat", "dog"], 0), ("b", ["dog", "bird"], 0), ("b", ["dog", "bird"], 1)):
        labels.begin(class_list([(str(i), name) for i, name in enumerate(names)], where))
        codes += labels.add(value, where, typed=True)
    change = labels.resolve()
    assert [name for _, name in change.classes] == ["cat", "dog", "bird"]
    assert [change.classes[change.targets[code][0]][1] for code in codes] == ["cat", "dog", "bird"]
    assert "lists of classes that differ (a 2, b 2) were joined by id or name: 3 classes" in said(labels)
    labels.begin(class_list([("0", "crane"), ("1", "crane")], "c"))
    with pytest.raises(DataError, match="c: several classes are called 'crane', so the lists cannot be joined"):
        labels.resolve()


def test_numbers_of_a_list_are_never_multi_hot():
    numbers = class_list([("0", "cat"), ("1", "dog")], "card")
    ids, images, _ = collected([[1, 0], [0, 1]], names=numbers)
    assert (ids, images) == (["0", "1"], [["1", "0"], ["0", "1"]])
    _, images, _ = collected([[1, 0, 1], [0, 0, 1]], names=of_names(["a", "b", "c"], "names.txt"))
    assert images == [["a", "c"], ["c"]]
    with pytest.raises(DataError, match="a list of 3 numbers 0 and 1 in place of 2, as there are classes"):
        collected([[1, 0, 1]], names=of_names(["a", "b"], "names.txt"))


def test_names_are_in_the_order_of_their_text_or_of_their_numbers():
    assert in_order({"11", "2", "0", "10"}) == ["0", "2", "10", "11"]
    assert in_order({"b", "10", "2", "a"}) == ["10", "2", "a", "b"]
