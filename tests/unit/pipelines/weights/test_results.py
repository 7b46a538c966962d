"""Folders of ``evaluate``, read back: intervals against scipy, the baseline, mistakes in their order, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from pipelines.weights.results import PREDICTION_COLUMNS, Result, wilson
from pretrain.errors import DataError


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (181, 187), (500, 1000), (9999, 10000)])
def test_the_interval_is_wilsons(right: int, total: int) -> None:
    interval = wilson("val/top1", right / total, total)
    expected = binomtest(right, total).proportion_ci(method="wilson")
    assert interval is not None
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-7)
    assert str(interval) == f"{100 * expected.low:.2f} … {100 * expected.high:.2f} %"


@pytest.mark.parametrize(("name", "count"), [("val/mAP", 10), ("loss", 10), ("top1", None), ("top1", 0), ("top1", "x")])
def test_other_figures_have_no_interval(name: str, count: object) -> None:
    assert wilson(name, 0.5, count) is None


def write_result(folder: Path, source: Path | str = "runs/run", shards: Path | str = "data/val") -> Path:
    """A result of four images of three classes, one of which has no image; two predictions are wrong."""
    folder.mkdir(parents=True)
    figures = {"from": str(source), "shards": str(shards), "top1": 0.5, "num_samples": 4}
    (folder / "result.json").write_text(json.dumps(figures))
    tables = {
        "per_class.csv": [
            ("index", "id", "name", "num_samples", "recall", "precision"),
            (0, "n1", "cat", 3, 2 / 3, 1.0),
            (1, "n2", "dog", 1, 0.0, 0.0),
            (2, "n3", "cat", 0, "", ""),
        ],
        "confusion.csv": [("class", "said", "count"), ("cat (n1)", "dog", 1), ("dog", "cat (n3)", 1)],
        "predictions.csv": [
            PREDICTION_COLUMNS,
            (0, "a.jpg", "cat (n1)", "cat (n1)", 0.9, 1),
            (1, "b.jpg", "cat (n1)", "dog", 0.6, 0),
            (2, "c.jpg", "dog", "cat (n3)", 0.8, 0),
            (3, "d.jpg", "cat (n1)", "cat (n1)", 0.7, 1),
        ],
    }
    for name, rows in tables.items():
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def test_a_result(tmp_path: Path) -> None:
    result = Result.read(write_result(tmp_path / "r"))
    assert result.headline == ("top1", 0.5) and result.constant == 0.75
    assert [row.name for row in result.classes] == ["cat (n1)", "dog", "cat (n3)"]
    assert result.classes[2].recall is None and result.confusions[0] == ("cat (n1)", "dog", 1)
    assert [one.image for one in result.mistakes] == ["c.jpg", "b.jpg"], "the most confident first"


def test_a_result_of_an_older_version(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r")
    (folder / "predictions.csv").unlink()
    result = Result.read(folder)
    assert result.predictions == [] and result.constant == 0.75


def test_a_result_of_masks(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    figures = {"from": "runs/run", "shards": "data/val", "task": "segmentation", "mIoU": 0.4, "num_samples": 4}
    (folder / "result.json").write_text(json.dumps(figures))
    (folder / "per_class.csv").write_text("class,iou,recall,precision,pixels\nsky,0.4,0.5,0.6,70\n")
    result = Result.read(folder)
    assert result.headline == ("mIoU", 0.4) and result.constant is None and result.classes == []


@pytest.mark.parametrize("damage", ["no folder", "not JSON", "no source", "a number"])
def test_a_damaged_folder(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "r"
    if damage != "no folder":
        write_result(folder)
    if damage == "not JSON":
        (folder / "result.json").write_text("{")
    if damage == "no source":
        (folder / "result.json").write_text("{}")
    if damage == "a number":
        (folder / "confusion.csv").write_text("class,said,count\na,b,many\n")
    with pytest.raises(DataError, match=r"not a folder of results.*python -m pipelines evaluate"):
        Result.read(folder)
