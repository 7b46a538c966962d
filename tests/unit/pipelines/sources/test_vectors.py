"""Vectors instead of labels: from a manifest, a parquet file and shards; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.sources.manifest import ManifestSource
from pipelines.sources.options import SourceOptions
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.webdataset_shards import WebDatasetSource
from pretrain.errors import ConfigError, DataError
from tests.unit.data.sets import NUM_CLASSES, vector_of, write_set
from tests.unit.pipelines.photos import encode, write_photos
from tests.unit.pipelines.sources.listing import listed


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", {"x": 2})


MANIFESTS = {
    "list.jsonl": (
        '{"path": "x/000.jpg", "target": [1.5, -2]}\n{"path": "x/001.jpg", "target": [0.1, 3]}\n',
        ["0", "1"],
    ),
    "parts.csv": ("path,target\nx/000.jpg,1.5|-2\nx/001.jpg,0.1|3\n", ["0", "1"]),
    "columns.tsv": (
        "path\ttarget.age\ttarget.km\tsplit\nx/000.jpg\t1.5\t-2\ttrain\nx/001.jpg\t0.1\t3\ttrain\n",
        ["age", "km"],
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(photos: Path, name: str) -> None:
    text, names = MANIFESTS[name]
    (photos / name).write_text(text)
    source = ManifestSource(photos / name)
    assert [item.vector for item, _, _ in listed(source, photos / "work").values()] == [(1.5, -2.0), (0.1, 3.0)]
    assert (source.target, source.classes, source.notes) == ("vector", [(name, name) for name in names], [])


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": encode(seed), "path": None} for seed in range(2)]
    table = pa.table({"image": images, "label": [0, 1], "age": [20.5, 31], "box": [[1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(table, tmp_path / "a.parquet")
    for column, vectors, names in (("age", [(20.5,), (31.0,)], ["age"]), ("box", [(1.0, 2.0), (3.0, 4.0)], ["0", "1"])):
        source = ParquetSource([str(tmp_path / "a.parquet")], target_column=column)
        assert [item.vector for item, _, _ in listed(source, tmp_path / column).values()] == vectors
        assert source.target == "vector" and [name for name, _ in source.classes] == names
    with pytest.raises(ConfigError, match="two answers for one image"):
        ParquetSource([str(tmp_path / "a.parquet")], SourceOptions(label_column="label"), target_column="age")


def test_shards_are_packed_again_with_their_numbers_and_names(tmp_path: Path) -> None:
    source = WebDatasetSource([str(write_set(tmp_path / "set", [3, 2], target="vector"))])
    assert [item.vector for item, _, _ in listed(source, tmp_path).values()] == [vector_of(k) for k in range(5)]
    assert source.target == "vector" and source.classes[1] == ("c1", "class 1") and len(source.classes) == NUM_CLASSES


BAD = {
    "text": ({"target": ["a"]}, DataError, r"m.jsonl:2: the target \['a'\] is not a list of finite numbers"),
    "nan": ({"target": [float("nan"), 1]}, DataError, "not a list of finite numbers"),
    "empty": ({"target": []}, DataError, "at least one"),
    "length": ({"target": [1.0]}, DataError, "m.jsonl:2: a target of 1 numbers, those before it have 2"),
    "missing": ({}, DataError, "the target None is not a list"),
}


@pytest.mark.parametrize("case", BAD)
def test_targets_that_cannot_be_used(photos: Path, case: str) -> None:
    row, error, message = BAD[case]
    lines = [{"path": "x/000.jpg", "target": [1, 2]}, {"path": "x/001.jpg", **row}]
    (photos / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(error, match=message):
        list(ManifestSource(photos / "m.jsonl").items())


def test_labels_beside_targets_are_refused(photos: Path) -> None:
    (photos / "m.csv").write_text("path,label,target\nx/000.jpg,a,1\n")
    with pytest.raises(ConfigError, match="the columns label and target are two answers for one image"):
        ManifestSource(photos / "m.csv")
