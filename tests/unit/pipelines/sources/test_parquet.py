from __future__ import annotations

import json

import pytest

from pipelines.sources.parquet import ParquetSource
from pretrain.errors import ConfigError, DataError
from tests.unit.pipelines.photos import encode
from tests.unit.pipelines.sources.listing import listed

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


def write(path, images: list[bytes], labels: list, names: list[str] | None = None, column: str = "label"):
    """A file as Hugging Face's ``datasets`` writes it."""
    table = pa.table({"image": [{"bytes": data, "path": None} for data in images], column: labels})
    if names:
        features = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_splits_names_and_bytes(tmp_path):
    images = [encode(seed, "PNG" if seed % 2 else "JPEG") for seed in range(7)]
    write(tmp_path / "train-00000-of-00002.parquet", images[:3], [0, 1, 0], ["cat", "dog"])
    write(tmp_path / "train-00001-of-00002.parquet", images[3:5], [1, 1], ["cat", "dog"])
    write(tmp_path / "validation-00000-of-00001.parquet", images[5:], [0, -1], ["cat", "dog"])
    source = ParquetSource([str(tmp_path)])
    found = listed(source, tmp_path / "work")
    assert source.classes == [("0", "cat"), ("1", "dog")]
    assert [data for _, data, _ in found.values()] == images
    assert [item.labels for item, _, _ in found.values()] == [(0,), (1,), (0,), (1,), (1,), (0,), ()]
    assert [item.split for item, _, _ in found.values()] == ["train"] * 5 + ["val"] * 2
    assert [extension for _, _, extension in found.values()] == ["jpg", "png"] * 3 + ["jpg"]


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        (["owl", "cat"], [("cat", "cat"), ("owl", "owl")], [(1,), (0,)]),
        ([2, 0], [("0", "0"), ("1", "1"), ("2", "2")], [(2,), (0,)]),
        ([["a", "b"], ["b"]], [("a", "a"), ("b", "b")], [(0, 1), (1,)]),
    ],
    ids=["texts", "numbers", "lists"],
)
def test_labels_without_names(tmp_path, labels, classes, indices):
    path = write(tmp_path / "a.parquet", [encode(0), encode(1)], labels)
    source = ParquetSource([str(path)])
    assert [item.labels for item, _, _ in listed(source, tmp_path / "work").values()] == indices
    assert source.classes == classes
    assert source.multi_label == isinstance(labels[0], list)


def test_what_cannot_be_known_is_asked_for(tmp_path):
    path = write(tmp_path / "a.parquet", [encode(0)], [0], column="kind")
    with pytest.raises(ConfigError, match="--label-column: image, kind"):
        ParquetSource([str(path)])
    with pytest.raises(ConfigError, match="no column 'picture'"):
        ParquetSource([str(path)], image_column="picture", label_column="kind")
    assert ParquetSource([str(path)], label_column="kind").image_column == "image"
    with pytest.raises(DataError, match="does not exist"):
        ParquetSource([str(tmp_path / "b.parquet")])
