from __future__ import annotations

import json

import pytest

from pipelines.sources.options import SourceOptions
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


def test_files_of_one_name_in_two_split_folders(tmp_path):
    for number, split in enumerate(("train", "test")):
        (tmp_path / "default" / split).mkdir(parents=True)
        write(tmp_path / "default" / split / "0000.parquet", [encode(number), encode(number + 2)], [0, 1])
    found = listed(ParquetSource([str(tmp_path)]), tmp_path / "work")
    assert {key: (item.split, data) for key, (item, data, _) in found.items()} == {
        "train/0000/00000000": ("train", encode(0)),
        "train/0000/00000001": ("train", encode(2)),
        "test/0000/00000000": ("test", encode(1)),
        "test/0000/00000001": ("test", encode(3)),
    }


def meanings(source: ParquetSource, folder) -> list[str]:
    """The name of each image's class, in the order of the rows."""
    found = listed(source, folder)
    return ["|".join(source.classes[label][1] for label in item.labels) for item, _, _ in found.values()]


@pytest.mark.parametrize(
    ("first", "second"),
    [(["cat", "dog"], ["dog", "cat"]), (["cat", "dog"], ["bird", "cat", "dog"]), (["b", "a", "c"], ["c"])],
)
def test_every_file_has_its_own_names(tmp_path, first, second):
    write(tmp_path / "train-0.parquet", [encode(i) for i in range(len(first))], list(range(len(first))), first)
    write(tmp_path / "test-0.parquet", [encode(9 + i) for i in range(len(second))], list(range(len(second))), second)
    source = ParquetSource([f"{tmp_path}/train-0.parquet", f"{tmp_path}/test-0.parquet"])
    assert meanings(source, tmp_path / "work") == [*first, *second]
    assert sorted(name for _, name in source.classes) == sorted({*first, *second})
    assert "lists of classes that differ" in "; ".join(source.notes)


def test_two_classes_of_one_name_stay_two(tmp_path):
    names = ["tench", "crane", "crane"]
    path = write(tmp_path / "a.parquet", [encode(i) for i in range(3)], [0, 1, 2], names)
    source = ParquetSource([str(path)])
    assert [item.labels for item, _, _ in listed(source, tmp_path / "work").values()] == [(0,), (1,), (2,)]
    write(tmp_path / "b.parquet", [encode(5)], [0], ["crane"])
    source = ParquetSource([str(tmp_path)])
    with pytest.raises(DataError, match="several classes are called 'crane'"):
        listed(source, tmp_path / "work2")


def test_columns_are_found_by_name_in_every_file(tmp_path):
    write(tmp_path / "a.parquet", [encode(0), encode(1)], [0, 1], ["x", "y"])
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.select(["label", "image"]), tmp_path / "b.parquet")
    assert meanings(ParquetSource([str(tmp_path)]), tmp_path / "work") == ["x", "y", "x", "y"]
    pq.write_table(table.rename_columns(["image", "kind"]), tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match=r"c\.parquet has no column 'label'; it has image, kind"):
        ParquetSource([str(tmp_path)])


def test_names_can_be_given(tmp_path):
    path = write(tmp_path / "a.parquet", [encode(0), encode(1)], [1, 0])
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert meanings(ParquetSource([str(path)], SourceOptions(class_names=tmp_path / "names.txt")), tmp_path / "w") == [
        "dog",
        "cat",
    ]
    named = write(tmp_path / "b.parquet", [encode(0)], [0], ["owl"])
    both = ParquetSource([str(path), str(named)], SourceOptions(class_names=tmp_path / "names.txt"))
    assert meanings(both, tmp_path / "w") == ["dog", "cat", "owl"], "only the file without names takes them"
    with pytest.raises(ConfigError, match=r"would be ignored: .*b\.parquet names its classes itself"):
        ParquetSource([str(named)], SourceOptions(class_names=tmp_path / "names.txt"))


def test_failed_downloads_are_counted_by_their_status(tmp_path):
    data = [encode(i) if i % 4 else None for i in range(12)]
    status = ["success" if one else "failed_to_download" for one in data]
    table = pa.table({"jpg": data, "status": status, "label": [i % 3 for i in range(12)]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = ParquetSource([str(tmp_path)])
    found = listed(source, tmp_path / "work")
    assert [data for _, data, _ in found.values()] == [one for one in data if one]
    account = source.ledger.accounts["parquet rows"]
    assert (account.found, account.used, account.adds_up) == (12, {"images": 9}, True)
    assert account.lost["not downloaded (failed_to_download)"].count == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [{"bytes": None, "path": "0.jpg"}], "label": [0]},
            "row 0: no bytes of an image, only the path '0.jpg'",
        ),
        ({"image": [[{"bytes": b"x"}]], "label": [0]}, "the column 'image' is of the type list.*one image per row"),
        ({"image": [b"x"], "label": [{"id": 1}]}, "row 0, column label: the label {'id': 1} is a mapping"),
        ({"image": [b"x"], "label": [0.5]}, "row 0, column label: the label 0.5 is neither"),
        ({"image": [b"x"], "label": [b"\xff\xfe\xfd"]}, "row 0, column label:1: not UTF-16-LE text"),
        ({"image": [b"x"], "label": [2**40]}, "row 0, column label: the label 1099511627776 is too large"),
    ],
    ids=["paths", "lists", "mappings", "fractions", "bytes", "too large"],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, columns, message):
    schema = None
    if isinstance(columns["image"][0], dict):
        schema = pa.schema(
            [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
        )
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "a.parquet")
    with pytest.raises((DataError, ConfigError), match=message):
        listed(ParquetSource([str(tmp_path)], image_column="image"), tmp_path / "work")


def test_a_file_that_was_cut_short_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", [encode(i) for i in range(6)], [0] * 6)
    data = path.read_bytes()
    for kept in (b"", data[:20], data[:-9], b"\0" * len(data)):
        path.write_bytes(kept)
        with pytest.raises(DataError, match=r"a\.parquet: cut short, damaged, or not parquet"):
            ParquetSource([str(path)])
    path.write_bytes(data[:40] + b"\xff" * 1000 + data[1040:])
    source = ParquetSource([str(path)])
    with pytest.raises(DataError, match=r"a\.parquet: cut short, damaged, or not parquet"):
        listed(source, tmp_path / "work")


def test_what_cannot_be_known_is_asked_for(tmp_path):
    path = write(tmp_path / "a.parquet", [encode(0)], [0], column="kind")
    with pytest.raises(ConfigError, match="--label-column: image, kind"):
        ParquetSource([str(path)])
    with pytest.raises(ConfigError, match="no column 'picture'"):
        ParquetSource([str(path)], SourceOptions(label_column="kind"), image_column="picture")
    assert ParquetSource([str(path)], SourceOptions(label_column="kind")).image_column == "image"
    with pytest.raises(DataError, match="does not exist"):
        ParquetSource([str(tmp_path / "b.parquet")])
