from __future__ import annotations

import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from pipelines.sources.manifest import ManifestSource
from pipelines.sources.options import SourceOptions
from pipelines.sources.table import ItemTable
from pretrain.errors import ConfigError, DataError
from tests.unit.pipelines.photos import encode, write_photos
from tests.unit.pipelines.sources.listing import listed


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", {"x": 3})


def lines(path: Path, *rows) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_csv_with_one_label(tmp_path, photos):
    path = lines(photos / "m.csv", "path,label,split,camera", "x/000.jpg,owl,train,A", "x/001.jpg,cat,val,B")
    source = ManifestSource(path)
    found = listed(source, tmp_path)
    assert source.classes == [("cat", "cat"), ("owl", "owl")]
    assert [(key, item.labels, item.split) for key, (item, _, _) in found.items()] == [
        ("x/000.jpg", (1,), "train"),
        ("x/001.jpg", (0,), "val"),
    ]
    assert found["x/000.jpg"][1:] == ((photos / "x/000.jpg").read_bytes(), "jpg")
    assert source.notes == ["column camera ignored"]


def test_the_split_column_has_one_spelling(tmp_path, photos):
    path = lines(photos / "m.csv", "path,label,split", "x/000.jpg,a,Training", "x/001.jpg,a, valid", "x/002.jpg,a,EVAL")
    source = ManifestSource(path)
    assert [item.split for item in source.items()] == ["train", "val", "test"]
    assert source.split_rule == "from the column split"


def test_without_a_column_the_paths_say_the_split(tmp_path):
    root = write_photos(tmp_path / "set", {"train/a": 1, "val2017/a": 1})
    path = lines(root / "m.csv", "path,label", "train/a/000.jpg,a", "val2017/a/000.jpg,a")
    assert [item.split for item in ManifestSource(path).items()] == ["train", "val"]
    assert [item.split for item in ManifestSource(path, SourceOptions(split_from="none")).items()] == ["train", "train"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x/000.jpg,a,train", "x/001.jpg,a,../../x"], r"m.csv:3: '../../x' cannot be the name of a split"),
        (["x/000.jpg,a,train", "x/001.jpg,a,/x"], r"m.csv:3: '/x' cannot be"),
        (["x/000.jpg,a,train", "x/001.jpg,a,"], "m.csv:3: no split, but other rows have one"),
    ],
)
def test_a_split_that_cannot_be_is_refused_with_its_line(tmp_path, photos, rows, message):
    with pytest.raises(DataError, match=message):
        list(ManifestSource(lines(photos / "m.csv", "path,label,split", *rows)).items())
    with pytest.raises(DataError, match=r"m.jsonl:1: the split 1 is not a text"):
        list(ManifestSource(lines(photos / "m.jsonl", {"path": "x/000.jpg", "label": "a", "split": 1})).items())
    path = lines(photos / "m.csv", "path,label,split", "x/000.jpg,a,train")
    with pytest.raises(ConfigError, match="--split-from none would be ignored"):
        list(ManifestSource(path, SourceOptions(split_from="none")).items())


def test_one_image_under_two_spellings_is_refused(tmp_path, photos):
    path = lines(photos / "m.csv", "path,label", "x/000.jpg,a", "./x//001.jpg,b", "x/../x/000.jpg,b")
    table = ManifestSource(path).items()
    assert isinstance(table, ItemTable)
    assert [table.key(row) for row in range(3)] == ["x/000.jpg", "x/001.jpg", "x/000.jpg"]
    with pytest.raises(DataError, match=r"'x/000.jpg' twice"):
        table.check_unique(table.key_hashes())


@pytest.mark.parametrize("place", ["x", "x/000.jpg\x00"])
def test_a_place_that_cannot_be_a_file_is_refused_with_its_line(tmp_path, photos, place):
    with pytest.raises(DataError, match=r"m.jsonl:1: .*(is not a file|cannot be found)"):
        list(ManifestSource(lines(photos / "m.jsonl", {"path": place, "label": "a"})).items())


def test_json_lines_with_several_labels_and_another_root(tmp_path, photos):
    rows = [{"image": "x/000.jpg", "labels": [3, 1]}, {"image": "x/001.jpg", "labels": [0]}]
    source = ManifestSource(lines(tmp_path / "m.jsonl", *rows), root=photos)
    assert [item.labels for item, _, _ in listed(source, tmp_path).values()] == [(3, 1), (0,)]
    assert len(source.classes) == 4
    assert source.multi_label
    table = lines(photos / "m.tsv", "path\tlabels", "x/000.jpg\ta|b", "x/002.jpg\tb")
    assert [item.labels for item, _, _ in listed(ManifestSource(table), tmp_path).values()] == [(0, 1), (1,)]


@pytest.mark.parametrize("place", ["x/001.jpg", "./x//001.jpg", "{root}/x/001.jpg", "{root}/../photos/x/001.jpg"])
def test_an_image_has_one_key_however_its_path_is_written(photos, monkeypatch, place):
    monkeypatch.chdir(photos.parent)
    source = ManifestSource(lines(photos / "m.jsonl", {"path": place.format(root=photos), "label": "a"}))
    again = ManifestSource(Path("photos/m.jsonl"))
    assert [item.key for item in source.items()] == [item.key for item in again.items()] == ["x/001.jpg"]


def meanings(source: ManifestSource, folder: Path) -> list[str]:
    """The ids of each image's classes, in the order of the rows."""
    found = listed(source, folder)
    return ["|".join(source.classes[label][0] for label in item.labels) for item, _, _ in found.values()]


@pytest.mark.parametrize(
    ("labels", "encoding", "classes", "expected"),
    [
        (["owl", "", "cat"], "utf-8", "cat owl", ["owl", "", "cat"]),
        (["001", "003", "002"], "utf-8", "0 1 2 3", ["1", "3", "2"]),
        (["0.0", "2.0", "1.0"], "utf-8", "0 1 2", ["0", "2", "1"]),
        ([" b ", "a", "b"], "utf-8", "a b", ["b", "a", "b"]),
        (['"crane, bird"', '"crane, machine"', "tench"], "utf-8", None, ["crane, bird", "crane, machine", "tench"]),
        (["강아지", "고양이", "강아지"], "utf-8-sig", "강아지 고양이", ["강아지", "고양이", "강아지"]),
        (["강아지", "고양이", "강아지"], "utf-16", "강아지 고양이", ["강아지", "고양이", "강아지"]),
        (["강아지", "고양이", "강아지"], "cp949", "강아지 고양이", ["강아지", "고양이", "강아지"]),
    ],
)
def test_labels_in_a_table(tmp_path, photos, labels, encoding, classes, expected):
    path = photos / "m.CSV"
    text = "path,label\r\n" + "".join(f"x/{row:03d}.jpg,{label}\r\n" for row, label in enumerate(labels))
    path.write_bytes(text.encode(encoding))
    if encoding == "cp949":
        with pytest.raises(DataError, match=r"m\.CSV:2: not UTF-8 text .*--encoding"):
            ManifestSource(path).items()
    source = ManifestSource(path, SourceOptions(encoding="cp949" if encoding == "cp949" else "utf-8"))
    assert meanings(source, tmp_path / "work") == expected
    assert classes is None or [identifier for identifier, _ in source.classes] == classes.split()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False, True], ["true", "false", "true"]),
        ([0.0, 2.0, 1.0], ["0", "2", "1"]),
        (["10", "2", "10"], ["10", "2", "10"]),
        ([[1, 0, 1], [1, 0, 0], [0, 1, 1]], ["0|2", "0", "1|2"]),
        ([0, None, 1], ["0", "", "1"]),
    ],
)
def test_labels_in_json_lines(tmp_path, photos, values, expected):
    rows = [{"path": f"x/{row:03d}.jpg", "label": value} for row, value in enumerate(values)]
    assert meanings(ManifestSource(lines(photos / "m.jsonl", *rows)), tmp_path / "work") == expected


def test_another_column_and_given_names(tmp_path, photos):
    path = lines(photos / "m.csv", "path,label,kind", "x/000.jpg,owl,1", "x/001.jpg,cat,0")
    assert meanings(ManifestSource(path, SourceOptions(label_column="kind")), tmp_path / "work") == ["1", "0"]
    names = tmp_path / "names.txt"
    names.write_text("bird\nmammal\n")
    source = ManifestSource(path, SourceOptions(label_column="kind", class_names=names))
    assert meanings(source, tmp_path / "work") == ["mammal", "bird"]
    with pytest.raises(ConfigError, match=r"hold no path/url/image/file_name.* or no sort"):
        ManifestSource(path, SourceOptions(label_column="sort"))


def test_a_long_field_beside_the_label_is_no_obstacle(tmp_path, photos):
    path = lines(photos / "m.csv", "path,label,text", f"x/000.jpg,owl,{'x' * 200_000}", "x/001.jpg,cat,y")
    assert meanings(ManifestSource(path), tmp_path / "work") == ["owl", "cat"]
    path = lines(photos / "m.csv", "path,label", f"x/000.jpg,{'x' * 200_000}", "x/001.jpg,cat")
    with pytest.raises(DataError, match=r"m\.csv:2: a label of 200,000 characters"):
        ManifestSource(path).items()
    path = lines(photos / "m.csv", "path,label", f"x/000.jpg,{'x' * (1 << 24)}x")
    with pytest.raises(DataError, match=r"m\.csv:2: field larger than field limit"):
        ManifestSource(path)


class Unsteady(BaseHTTPRequestHandler):
    """Fails the first time, then answers."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        if "missing" in self.path:
            self.send_error(404)
        elif self.asked.count(self.path) == 1:
            self.send_error(503)
        else:
            data = encode(4)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format, *args):
        pass


def test_addresses_are_asked_again(tmp_path):
    with HTTPServer(("127.0.0.1", 0), Unsteady) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        source = ManifestSource(lines(tmp_path / "m.csv", "url,label", f"{base}/a.jpg?size=9,1"))
        ((item, data, extension),) = listed(source, tmp_path).values()
        with pytest.raises(OSError, match="HTTP 404"):
            source.read(item._replace(key=f"{base}/missing.jpg"))
        server.shutdown()
        thread.join()
    assert (data, extension) == (encode(4), "jpg")


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (["path,label"], DataError, "names no image"),
        (["file,label", "a,b"], ConfigError, "the columns file, label hold no path/url/image/file_name"),
        (["filename,category", "x/000.jpg,b"], ConfigError, "rename the column filename to path.*--label-column names"),
        (["path,category", "x/000.jpg,b"], ConfigError, "--label-column names the column .*, such as category"),
        (["url,label", "s3://bucket/a.jpg,b"], DataError, "m.csv:2: 's3://bucket/a.jpg' begins with s3://"),
        (["url,label", "ftp://host/a.jpg,b"], DataError, "m.csv:2: .* begins with ftp://"),
        (["url,label", "file:///a.jpg,b"], DataError, "m.csv:2: .* begins with file://, .* give their paths"),
        (["path,label", "gone.jpg,b"], DataError, "m.csv:2: .*gone.jpg cannot be found"),
        (["path,label", "x/000.jpg,"], DataError, "none of the 1 images has a label, such as .*m.csv:2"),
        (
            ["path,label", "x/000.jpg,crane, bird"],
            DataError,
            'm.csv:2: the header has 2 columns, this line 3; .*"crane, bird"',
        ),
        (["path,label", "x/000.jpg"], DataError, "m.csv:2: the header has 2 columns, this line 1"),
        (["path,label", 'x/000.jpg,"crane', "x/001.jpg,b"], DataError, "m.csv:3: unexpected end of data"),
        (["path;label", "x/000.jpg;b"], ConfigError, "separated by something else than commas"),
        (["x/000.jpg,b", "x/001.jpg,b"], ConfigError, "the first line must name the columns"),
        (["path,label,label", "x/000.jpg,b,c"], ConfigError, "two columns are called 'label'"),
        (["path,label,labels", "x/000.jpg,b,c"], ConfigError, "label and labels are two answers"),
        (["path,label", "x/000.jpg,--5"], DataError, "m.csv:2: the label '--5' looks like a damaged number"),
        (["path,label", "x/000.jpg,0.5"], DataError, "m.csv:2: the label '0.5' is a number, but not a class number"),
        (["path,label", "x/000.jpg,3000000000"], DataError, "m.csv:2: the label 3000000000 is too large"),
        (["path,label", ",b"], DataError, "m.csv:2: no path"),
    ],
)
def test_wrong_lines_are_named(tmp_path, photos, rows, error, message):
    with pytest.raises(error, match=message):
        list(ManifestSource(lines(photos / "m.csv", *rows)).items())


def test_a_blank_beside_a_url_does_not_matter(photos):
    path = lines(photos / "m.csv", "url,label", " http://127.0.0.1:9/a.jpg,a", "https://127.0.0.1:9/b.jpg ,b")
    keys = [item.key for item in ManifestSource(path).items()]
    assert keys == ["http://127.0.0.1:9/a.jpg", "https://127.0.0.1:9/b.jpg"]


def test_a_manifest_called_like_a_split_is_of_that_split(photos):
    for name, split in (("val.csv", "val"), ("my_val.csv", "train")):
        source = ManifestSource(lines(photos / name, "path,label", "x/000.jpg,a", "x/001.jpg,b"))
        assert [item.split for item in source.items()] == [split, split]
