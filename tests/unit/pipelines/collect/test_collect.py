"""The collect stage: results of sweeps as one table in three formats."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.collect.cli import HEAD
from pipelines.sources.vtab import FORM, TASKS


def write_sweep(folder: Path, dataset: str, values: list[float], source: str | None = "runs/l16") -> None:
    mean = sum(values) / len(values)
    content = {
        "from": source, "best": "dev_lr0.01", "ranks": 8, "command": f"python -m pipelines sweep --config {dataset}|x",
        "trials": [{"seconds": 1800.0}, {"seconds": 1800.0}], "runs": [{"seconds": 3600.0}],
        "test": {"test/top1": {"mean": mean, "std": 0.0125, "values": values}},
    }  # fmt: skip
    (folder / dataset).mkdir(parents=True)
    (folder / dataset / "sweep.json").write_text(json.dumps(content))


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append(data)


def test_one_table_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path / "a", "pets", [0.91, 0.93])
    write_sweep(tmp_path / "a", "cifar10", [0.99, 0.992, 0.994])
    write_sweep(tmp_path / "b", "digits", [0.5], source=None)
    outs = [tmp_path / "out" / f"t{suffix}" for suffix in (".md", ".csv", ".html")]
    options = [word for out in outs for word in ("--out", str(out))]
    assert main(["collect", str(tmp_path / "a"), str(tmp_path / "b"), *options]) == 0
    assert capsys.readouterr().out.rstrip("\n") == outs[0].read_text().rstrip("\n")
    rows = list(csv.DictReader(outs[1].read_text().splitlines()))
    assert [row["data set"] for row in rows] == ["cifar10", "digits", "pets"]
    first = rows[0]
    assert (first["mean"], first["std"], first["seeds"], first["best trial"]) == ("99.20", "1.25", "3", "lr0.01")
    assert first["published"] == "H/14 JFT-300M 99.50; L/16 JFT-300M 99.42; L/16 ImageNet-21k 99.15"
    assert first["device-hours"] == "16.00", "two half hours and one hour on 8 devices"
    assert rows[1]["from"] == "scratch" and rows[1]["published"] == ""
    lines = outs[0].read_text().splitlines()
    assert len(lines) == 5 and all(line.replace("\\|", "").count("|") == len(HEAD) + 1 for line in lines)
    parser = Cells()
    parser.feed(outs[2].read_text())
    assert set(HEAD) <= set(parser.found) and rows[2]["command"] in parser.found


def test_one_seed_has_no_interval_and_a_set_its_cards_name(tmp_path: Path) -> None:
    write_vtab(tmp_path, "svhn", [0.5], TASKS["svhn"].num_test)
    (tmp_path / "svhn").rename(tmp_path / "my_config")
    assert {key: table_of(tmp_path, tmp_path / "t.csv")["svhn"][key] for key in ("mean", "std", "seeds")} == {
        "mean": "50.00",
        "std": "",
        "seeds": "1",
    }


def write_vtab(folder: Path, task: str, seeds: list[float], num_test: int) -> None:
    """A finished sweep of a task, as ``sweep`` leaves it."""
    write_sweep(folder, task, seeds)
    lists = {split: {"num_samples": number, "digest": task} for split, number in FORM.items()}
    sets = {"train": ("train800val200", 1_000), "test": ("test", num_test)}
    data = {
        name: {"name": task, "split": split, "num_samples": size, "lists": lists}
        for name, (split, size) in sets.items()
    }
    path = folder / task / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": data}))


def table_of(folder: Path, out: Path) -> dict[str, dict[str, str]]:
    assert main(["collect", str(folder), "--out", str(out)]) == 0
    return {row["data set"]: row for row in csv.DictReader(out.read_text().splitlines())}


def test_the_mean_of_vtab_is_that_of_all_19_tasks_in_their_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    for number, (task, about) in enumerate(TASKS.items()):
        value = 0.01 * number
        write_vtab(folder, task, [0.5 + value, 0.52 + value, 0.54 + value], about.num_test)
    rows = table_of(folder, tmp_path / "a.csv")
    whole = rows["VTAB-1k (19)"]
    assert (whole["mean"], whole["std"], whole["seeds"]) == ("61.00", "2.00", "3"), "mean of 0 … 18 is 9, of seeds 52"
    assert whole["published"] == "H/14 JFT-300M 77.63; L/16 JFT-300M 76.28; L/16 ImageNet-21k 72.72"
    assert rows["VTAB-1k natural (7)"]["mean"] == "55.00" and rows["VTAB-1k structured (8)"]["mean"] == "66.50"
    assert rows["VTAB-1k specialized (4)"]["published"].startswith("H/14 JFT-300M 87.00")
    assert rows["svhn"]["published"].startswith("H/14 JFT-300M 88.90") and "note" not in capsys.readouterr().err
    (folder / "kitti" / "sweep.json").unlink()
    assert "VTAB-1k (19)" not in table_of(folder, tmp_path / "b.csv")
    assert "no mean over VTAB-1k: no result on kitti" in capsys.readouterr().err
    (folder / "kitti").rmdir()
    write_vtab(folder, "kitti", [0.5], 700)
    assert "VTAB-1k (19)" not in table_of(folder, tmp_path / "c.csv")
    assert "no mean over VTAB-1k: kitti: 700 test images, not 711" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        (None, "t.md", "no sweep.json or probe.json in or below it"),
        ("{}", "t.md", "not the result of a sweep"),
        ("nonsense", "t.md", "not the result of a sweep"),
        ("{}", "t.pdf", "must end in .md, .csv, .html"),
    ],
)
def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, out: str, message: str
) -> None:
    (tmp_path / "x").mkdir()
    if content is not None:
        (tmp_path / "x" / "sweep.json").write_text(content)
    assert main(["collect", str(tmp_path / "x"), "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / out).exists()
