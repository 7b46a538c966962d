"""Images with none of the classes are negatives of every class, from the source to the targets of the loss."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.__main__ import main
from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.errors import ConfigError
from pretrain.objectives.classification import dense_targets

NAMES = ["cat", "dog", "owl"]
CONFIG = """\
name: x
duration: 1 steps
global_batch_size: 8
model: {variant: mu/8, img_size: 16}
data: {shards: OUT/train, num_samples: 15, num_classes: 3}
optim: {lr: 0.1}
"""


def _wanted(i: int) -> list[str] | None:
    """The labels of image i: every subset of the classes twice, and for the last image none that is known."""
    return None if i == 15 else [NAMES[k] for k in range(3) if (i >> k) & 1]


def _png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 16 * i, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def _manifest(folder: Path, *, csv: bool) -> list[str]:
    for i in range(16):
        (folder / f"{i}.png").write_bytes(_png(i))
    if csv:  # has no null
        rows = ["path,labels", *(f"{i}.png,{'|'.join(_wanted(i) or [])}" for i in range(15))]
    else:
        rows = [json.dumps({"path": f"{i}.png", "labels": _wanted(i)}) for i in range(16)]
    path = folder / ("list.csv" if csv else "list.jsonl")
    path.write_text("\n".join(rows))
    return ["manifest", str(path)]


def _shards(folder: Path, *, hot: bool, count: int = 16) -> list[str]:
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "a.tar", "w") as tar:
        for i in range(count):
            labels = _wanted(i)
            written = [int(name in labels) for name in NAMES] if hot and labels is not None else labels
            for kind, data in (("png", _png(i)), ("json", json.dumps({"labels": written}).encode())):
                info = tarfile.TarInfo(f"{i}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return ["webdataset", str(folder / "tars")]


@pytest.mark.parametrize("source", ["csv", "jsonl", "shards", "multi-hot"])
def test_images_without_a_class_are_negatives(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_tars = source in ("shards", "multi-hot")
    words = _shards(tmp_path, hot=source == "multi-hot") if of_tars else _manifest(tmp_path, csv=source == "csv")
    out = tmp_path / "out"
    assert main(["pack", *words, "--out", str(out), "--duplicates", "keep", "--workers", "1"]) == 0
    assert "have none of the classes" in capsys.readouterr().out
    table, card = ShardTable.load(out / "train"), Card.load(out / "train")
    assert (card.num_samples, card.negatives, card.labels) == (15, 2, "multi")
    assert card.dropped == ({} if source == "csv" else {"no label": 1})
    records = table.open_records(0)
    found = [tuple(sorted(records[index].labels)) for index in range(len(records))]
    assert sorted(found) == sorted(tuple(k for k in range(3) if (i >> k) & 1) for i in range(15))
    targets = dense_targets(torch.from_numpy(records.labels(np.arange(15), table.max_labels)), 3)
    assert int((targets.sum(1) == 0).sum()) == 2 and targets.sum(0).tolist() == list(map(float, card.class_counts))
    assert main(["verify", str(out / "train")]) == 0


@pytest.mark.parametrize("hot", [False, True])
def test_the_card_of_shards_that_are_indexed_in_place_counts_negatives(tmp_path: Path, *, hot: bool) -> None:
    _shards(tmp_path, hot=hot, count=15)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert main(["verify", str(tmp_path / "tars"), "--class-names", str(tmp_path / "names.txt"), "--workers", "1"]) == 0
    card = Card.load(tmp_path / "tars")
    assert (card.num_samples, card.negatives, card.labels) == (15, 2, "multi")


def test_softmax_refuses_a_set_with_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although no image of it has two labels, for an image without one has no class to learn."""
    rows = [{"path": f"{i}.png", "labels": NAMES[i % 4 : i % 4 + 1]} for i in range(15)]
    _manifest(tmp_path, csv=True)
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    words = ["pack", "manifest", str(tmp_path / "list.jsonl"), "--out", str(out), "--duplicates", "keep"]
    assert main([*words, "--workers", "1"]) == 0
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG.replace("OUT", str(out)))
    with pytest.raises(ConfigError, match="none or several; use sigmoid"):
        check(load_experiment("x.yaml"))
    assert check(load_experiment("x.yaml", overrides=["objective.name=sigmoid"]))
