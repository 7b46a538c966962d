"""No phrase of tests/language.py in comments, docstrings and texts for users, and each is found where it is made up."""

from __future__ import annotations

from collections import Counter

import pytest

from tests import language

# Folder → hits that are not reworded yet. Lower a number when you have reworded some; never raise one.
# `encoded anew` in pipelines/pack is a value that cards record, so it cannot be reworded.
ALLOWED = {"pipelines": 1}


def test_the_texts_are_plain_english() -> None:
    hits = [hit for path in language.files([]) for hit in language.hits_in(path, (language.ROOT / path).read_text())]
    counts = Counter(language.area(hit.path) for hit in hits)
    excess = {area: count for area, count in counts.items() if count > ALLOWED.get(area, 0)}
    assert not excess, f"{excess}: reword what `python -m tests.language FOLDER` lists"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ('raise ValueError("4 is no multiple of 8")', "is no "),
        ('"""The set is of no\\nevaluation."""', "is of no"),
        ("# The column stands in front.", "stands"),
        ('"""Where the file lies."""', "lies"),
        ('"""The run\\ngoes on."""', "goes on"),
        ("# Mend the file.", "Mend"),
        ("# The rest is what it says.", "it says"),
        ('f"the set has {n}, data.num_classes says {m}"', "data.num_classes says"),
        ("# The log says which.", "says which"),
        ("# The skip is said.", "is said"),
        ("# It starts by itself.", "by itself"),
        ("# Add one more of them.", "one more of"),
        ("# Every file is whole", "is whole"),
        ("# Needs whole tensors", "whole tensors"),
        ("# This is not a whole file", "not a whole"),
        ("# Weights, whole on every rank", "whole"),
        ("# A person must look.", "A person"),
        ("# No GPU was at hand.", "at hand"),
        ("# Measured in turns.", "in turns"),
        ("# A job on paper", "on paper"),
        ("# A head in the place of another", "in the place of"),
        ("# Print it anew.", "anew"),
        ("# The check decides alone.", "decides alone"),
        ('help="YAML of the machines"', "of the machines"),
        ("# It appears when the data does.", "It appears when"),
        ("# That needs nothing.", "needs nothing"),
        ("# Once more is the same command.", "Once more is the same command."),
        ('"""What it holds."""', "What it holds."),
    ],
)
def test_a_phrase_is_found(text: str, phrase: str) -> None:
    text = text.replace("\\n", "\n")
    found = list(language.hits_in("pretrain/x.py", text))
    assert phrase in [hit.phrase for hit in found]


@pytest.mark.parametrize(
    "text",
    [
        "# There is no other way; it is no longer used, and no larger than before.",
        "# ZeRO stands for Zero Redundancy Optimizer.",
        "# The value lies between 0 and 1, or lies outside.",
        "# A whole number of epochs; the whole file; as a whole.",
        "# The function goes on the device.",
        "# A copy of itself.",
        "# Call ``lies`` or `stands`.",
        'lies = stands = {"lie_in": 1}',
        '"""What does it hold?"""',
    ],
)
def test_correct_english_passes(text: str) -> None:
    assert list(language.hits_in("pretrain/x.py", text)) == []


def test_the_line_is_that_of_the_phrase() -> None:
    text = '"""Title.\n\nIt is here, and\nlies there."""\nx = 1\n# one\n# goes on\n'
    assert [(hit.line, hit.phrase) for hit in language.hits_in("pretrain/x.py", text)] == [(7, "goes on"), (4, "lies")]


def test_strings_of_tests_are_data() -> None:
    text = 'def test():\n    """The file lies."""\n    x = "it lies"\n'
    assert [hit.line for hit in language.hits_in("tests/x.py", text)] == [2]
    assert [hit.line for hit in language.hits_in("pretrain/x.py", text)] == [2, 3]


def test_scripts_and_pages_are_read() -> None:
    assert [hit.line for hit in language.hits_in("slurm/x.sh", "x=1\n# it\n# goes on\necho 'it lies'\n")] == [3, 4]
    assert [hit.line for hit in language.hits_in("CONTRIBUTING.md", "The rest\ngoes\non.\n")] == [2]
    assert [hit.line for hit in language.hits_in("configs/x.yaml", "a: 1 # it stands\n")] == [1]
