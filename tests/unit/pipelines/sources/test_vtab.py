"""A VTAB-1k task in its folder form: real images (scikit-learn's digits) packed by one command, and wrong lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.sources.array_sets import DigitsSource
from pipelines.sources.vtab import why_not
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable, read_labels, read_sources
from pretrain.files import file_digest


def write_task(folder: Path, sizes: dict[str, int], *, copies: bool = False) -> Path:
    """Digits as SVHN's folder would be; ``copies``: train800val200 has its own files, as some folders do."""
    source = DigitsSource()
    items = source.items()
    (folder / "images").mkdir(parents=True)
    lines, first = {}, 0
    for split in ("train800", "val200", "test"):
        lines[split] = [f"images/{item.key}.png {item.labels[0]}" for item in items[first : first + sizes[split]]]
        first += sizes[split]
    for item in items[:first]:
        (folder / "images" / f"{item.key}.png").write_bytes(source.read(item)[0])
    both = lines["train800"] + lines["val200"]
    if copies:
        (folder / "again").mkdir()
        for number, line in enumerate(both):
            path, label = line.split()
            (folder / "again" / f"{number}.png").write_bytes((folder / path).read_bytes())
            both[number] = f"again/{number}.png {label}"
    lines["train800val200"] = both
    for split, rows in lines.items():
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


def packed(task: Path, out: Path) -> int:
    return main(["pack", "vtab", str(task), "--out", str(out), "--workers", "1"])


RIGHT = {"train800": 800, "val200": 200, "test": 300}


def test_one_command_makes_all_four_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, out = write_task(tmp_path / "svhn", RIGHT), tmp_path / "out"
    assert packed(task, out) == 0 and "not labelled VTAB-1k" not in capsys.readouterr().out
    cards = {split: Card.load(out / split) for split in (*RIGHT, "train800val200")}
    assert {split: card.num_samples for split, card in cards.items()} == {**RIGHT, "train800val200": 1_000}
    for card in cards.values():
        assert (card.name, card.num_classes) == ("svhn", 10)
        assert {split: entry.digest for split, entry in card.lists.items()} == {
            split: file_digest(task / f"{split}.txt") for split in cards
        }
    table = ShardTable.load(out / "val200")
    labels = dict(zip(read_sources(table), read_labels(table)[:, 0].tolist(), strict=True))
    wanted = [line.split() for line in (task / "val200.txt").read_text().splitlines()]
    assert labels == {f"val200/{path}": int(label) for path, label in wanted}
    assert packed(task, out) == 0 and "nothing to do" in capsys.readouterr().out


def test_a_folder_with_copies_of_the_images_and_other_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write_task(tmp_path / "svhn", {"train800": 30, "val200": 10, "test": 5}, copies=True)
    assert packed(task, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "train800.txt names 30 images, VTAB-1k has 800: results on this set are not labelled VTAB-1k" in out


def test_tasks_of_an_array_keep_the_lists(tmp_path: Path) -> None:
    task, out = write_task(tmp_path / "svhn", {"train800": 30, "val200": 10, "test": 5}), tmp_path / "out"
    for number in (1, 2):
        assert main(["pack", "vtab", str(task), "--out", str(out), "--task", f"{number}/2", "--workers", "1"]) == 0
    assert main(["pack", "merge", str(out)]) == 0
    assert Card.load(out / "test").lists["val200"].num_samples == 10


BAD = {
    "no list": ({"val200.txt": None}, "val200.txt: cannot be read"),
    "empty": ({"test.txt": ""}, "test.txt: names no image"),
    "no label": (
        {"test.txt": "images/digit-0001.png\n"},
        "test.txt:1: 'images/digit-0001.png' is not a path and the number",
    ),
    "twice": ({"test.txt": "images/digit-0001.png 1\nimages/digit-0001.png 1\n"}, "digit-0001.png is on two lines"),
    "no image": ({"test.txt": "images/none.png 1\n"}, "test.txt: images/none.png cannot be found"),
    "another union": ({"train800val200.txt": "images/digit-0001.png 1\n"}, "its 1 images are not the 40 of train800"),
    "class": ({"test.txt": "images/digit-0041.png 10\n"}, "class 10 in its lists, but svhn has 10 classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_lists_that_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    changes, message = BAD[case]
    task = write_task(tmp_path / "svhn", {"train800": 30, "val200": 10, "test": 5})
    for name, text in changes.items():
        (task / name).unlink() if text is None else (task / name).write_text(text)
    assert packed(task, tmp_path / "out") == 2 and message in capsys.readouterr().err


def test_what_is_no_result_of_vtab_1k() -> None:
    lists = {
        split: {"num_samples": number, "digest": "x"} for split, number in {**RIGHT, "train800val200": 1_000}.items()
    }
    train = {"name": "svhn", "split": "train800val200", "num_samples": 1_000, "lists": lists}
    test = {"name": "svhn", "split": "test", "num_samples": 26_032, "lists": lists}
    assert list(why_not("svhn", {"train": train, "test": test}, "test/top1")) == []
    for change, message in (
        ({"train": {**train, "split": "train800", "num_samples": 800}}, "trained on 800 images of train800"),
        ({"train": {**train, "num_samples": 999}}, "trained on 999 images"),
        ({"test": {**test, "num_samples": 300}}, "300 test images, not 26,032"),
        ({"test": {**test, "lists": {}}}, "not of the test split of the same pack"),
        ({"test": {**test, "split": "val200"}}, "not of the test split of the same pack"),
        ({"train": {**train, "lists": {**lists, "val200": {"num_samples": 100}}}}, "val200.txt names 100 images"),
    ):
        found = "; ".join(why_not("svhn", {"train": train, "test": test, **change}, "test/top1"))
        assert message in found, json.dumps(change)
