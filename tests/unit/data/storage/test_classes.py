from __future__ import annotations

import pytest

from pretrain.data.storage.classes import ClassLookup, differing_class, require_same_classes, told_apart
from pretrain.errors import DataError

CLASSES = [("n1", "crane"), ("n2", "tench"), ("n3", "crane"), ("n4", "n2")]
NUMBERS = [("2", "two"), ("10", "ten"), ("x", "x")]


@pytest.mark.parametrize(
    ("classes", "text", "number"),
    [
        (CLASSES, "n1", 0),
        (CLASSES, "tench", 1),
        (CLASSES, "n2", 1),
        (CLASSES, "3", 3),
        (NUMBERS, "10", 1),
        (NUMBERS, "2", 0),
        (NUMBERS, "ten", 1),
    ],
)
def test_id_before_name_before_number(classes, text, number):
    assert ClassLookup(classes, "here").find(text) == number


@pytest.mark.parametrize(
    ("classes", "text", "message"),
    [
        (CLASSES, "crane", r"here: 2 classes have the name 'crane': the numbers 0 \(id n1\), 2 \(id n3\); name one"),
        (CLASSES, "4", "here: '4' is not a class; there are 4 classes: .*, or numbers below 4"),
        (CLASSES, "٣", "is not a class"),  # a digit, but not of ASCII
        (NUMBERS, "1", "here: '1' is not a class; there are 3 classes: '2', '10', 'x'$"),
        ([("a", "a"), ("a", "b")], "a", "2 classes have the id 'a'"),
    ],
)
def test_what_is_none_or_several_is_refused(classes, text, message):
    with pytest.raises(DataError, match=message):
        ClassLookup(classes, "here").find(text)


def test_names_are_told_apart():
    assert told_apart(CLASSES) == ["crane (n1)", "tench", "crane (n3)", "n2"]
    assert told_apart([("a", "x"), ("a", "x")]) == ["x (0)", "x (1)"]


NAMED = [("0", "cat"), ("1", "dog")]
FOLDERS = [("cat", "cat"), ("dog", "dog")]
BARE = [("0", "0"), ("1", "1")]
SYNSETS = [("n1", "cat"), ("n2", "dog")]


@pytest.mark.parametrize(
    ("first", "second", "number"),
    [
        (NAMED, NAMED, None),
        (NAMED, NAMED[::-1], 0),
        (NAMED, [("0", "dog"), ("1", "cat")], 0),
        (NAMED, FOLDERS, None),
        (FOLDERS, FOLDERS[::-1], 0),
        (SYNSETS, [("n1", "felis"), ("n2", "canis")], None),
        (SYNSETS, [("n1", "cat"), ("n3", "dog")], 1),
        (SYNSETS, NAMED, None),
        (BARE, SYNSETS, None),
        (BARE, BARE[::-1], 0),
        ([*BARE, ("2", "2")], [*BARE, ("10", "10")], 2),
        (NAMED, [*NAMED, ("2", "owl")], 2),
    ],
)
def test_numbers_that_mean_other_classes_are_found(first, second, number):
    assert differing_class(first, second) == differing_class(second, first) == number
    if number is not None:
        with pytest.raises(DataError, match=f"there has|there and|has {len(second)} classes, here {len(first)}"):
            require_same_classes(first, second, ("here", "there"))
