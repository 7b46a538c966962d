"""Odd labels, lists of classes and tables, thousands of them by a fixed seed: read, or refused in words."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.sources.class_names import read_class_names
from pipelines.sources.label_classes import FORMS, LabelCollector, LabelOptions
from pipelines.sources.label_values import to_vector
from pipelines.sources.manifest import ManifestSource
from pretrain.errors import UserError

ATOMS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, -2, 3, 2**31 - 1, 2**31, -(2**31), 10**30, 0.0, -0.0, 1.5, 3.0, 1e308),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "0",
        "1",
        "-1",
        "007",
        "7",
        "7.0",
        "--5",
        "- 5",
        "1e3",
        "0x1F",
    ),
    *("nan", "None", "null", "true", "cat", "Cat", "crane, bird", "고양이", "\u0661", "²", "1_000", "\x00", "a\nb"),
    *("\ud800", "\x1b[31m", "9" * 250, "9" * 5000, b"", b"3", b"\xff", b"\x80\x04K\x03.", b"\xef\xbb\xbf2"),
)
COMPOUNDS: tuple[Any, ...] = (
    [],
    [[]],
    [None],
    {},
    {"id": 1},
    [0, 1],
    [1, 0],
    [1, 1],
    [0, 0, 1],
    [0.0, 1.0],
    [True],
    ["1", "0"],
)
LIMIT_S = 5.0


def values(chance: random.Random) -> list[Any]:
    """A set's labels: most of one kind, with an odd one here and there."""
    usual = chance.choice([*ATOMS, *COMPOUNDS])
    number = chance.randrange(1, 6)
    return [usual if chance.random() < 0.5 else chance.choice([*ATOMS, *COMPOUNDS]) for _ in range(number)]


def tried(read: Callable[[], Any]) -> bool:
    """Whether something is read; anything but an error in words fails the test."""
    started = time.monotonic()
    try:
        read()
    except UserError as error:
        assert str(error) and len(str(error)) < 2_000, "an error of a size that can be read"
        return False
    finally:
        assert time.monotonic() - started < LIMIT_S
    return True


def test_labels() -> None:
    chance, num_read = random.Random(0), 0
    for _ in range(4_000):
        form = chance.choice(("", "", *FORMS))
        options = LabelOptions(form, chance.choice((0, 0, 0, 5)) if form != "names" else 0)
        rows, typed = values(chance), chance.random() < 0.5

        def read(rows: list[Any] = rows, typed: bool = typed, options: LabelOptions = options) -> None:
            labels = LabelCollector(options)
            codes = [labels.add(row, f"row {number}", typed=typed) for number, row in enumerate(rows)]
            change = labels.resolve()
            assert len({identifier for identifier, _ in change.classes}) == len(change.classes), "ids are distinct"
            for row in codes:
                assert all(0 <= new < len(change.classes) for code in row for new in change.targets[code])
            assert len(labels.notes) <= 4 + len(rows)

        num_read += tried(read)
    assert 400 < num_read < 3_600, "some are read, some are refused"


def spoilt(text: bytes, chance: random.Random) -> bytes:
    """A file after a few accidents."""
    data = bytearray(text)
    for _ in range(chance.randrange(4)):
        place = chance.randrange(len(data) + 1)
        data[place:place] = chance.choice(
            (b"\xff", b"\n", b"\n\n", b'"', b",", b"\x00", b"\r", b"\xef\xbb\xbf", b"\t", b" ")
        )
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
    return bytes(data)


LISTS = (
    ("names.txt", b"tench\ncrane, bird\ncrane, machine\nshark\n"),
    ("names.txt", b"n01,tench, Tinca\nn02,crane\n"),
    ("names.txt", b"0: tench\n1: crane\n2: shark\n"),
    ("names.csv", b"index,id,name\n0,n01,tench\n1,n02,crane\n"),
    ("names.json", b'{"0": ["n01", "tench"], "1": ["n02", "crane"]}'),
    ("names.json", b'["tench", "crane"]'),
)


def test_lists_of_classes(tmp_path: Path) -> None:
    chance, num_read = random.Random(1), 0
    for _ in range(1_500):
        name, text = chance.choice(LISTS)
        path = tmp_path / name
        path.write_bytes(spoilt(text, chance))
        num_read += tried(lambda path=path: read_class_names(path, chance.choice(("utf-8", "cp949", "utf-16"))))
    assert 100 < num_read < 1_400


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    chance, num_read, path = random.Random(2), 0, tmp_path / f"m{suffix}"
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").write_bytes(b"x")
    for _ in range(500):
        rows = [(place, value) for place, value in zip(("a.jpg", "b.jpg"), values(chance) * 2, strict=False)]
        if suffix == ".jsonl":
            shown = [value if not isinstance(value, bytes) else value.decode("latin-1") for _, value in rows]
            lines = [json.dumps({"path": place, "label": value}) for (place, _), value in zip(rows, shown, strict=True)]
        else:
            mark = "," if suffix == ".csv" else "\t"
            lines = [f"path{mark}label", *(f"{place}{mark}{value}" for place, value in rows)]
        text = "\n".join(lines).encode(errors="surrogatepass")
        path.write_bytes(spoilt(text, chance) if chance.random() < 0.5 else text)
        num_read += tried(lambda: list(ManifestSource(path).items()))
    assert 20 < num_read < 480


def test_targets() -> None:
    for value in (*ATOMS, *COMPOUNDS, [1, 10**400], [1.5, "x"]):
        tried(lambda value=value: to_vector(value, "row 0"))
