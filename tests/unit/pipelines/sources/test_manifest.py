from __future__ import annotations

import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from pipelines.sources.manifest import ManifestSource
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


def test_json_lines_with_several_labels_and_another_root(tmp_path, photos):
    rows = [{"image": "x/000.jpg", "labels": [3, 1]}, {"image": "x/001.jpg", "labels": [0]}]
    source = ManifestSource(lines(tmp_path / "m.jsonl", *rows), root=photos)
    assert [item.labels for item, _, _ in listed(source, tmp_path).values()] == [(3, 1), (0,)]
    assert len(source.classes) == 4
    assert source.multi_label
    table = lines(photos / "m.tsv", "path\tlabels", "x/000.jpg\ta|b", "x/002.jpg\tb")
    assert [item.labels for item, _, _ in listed(ManifestSource(table), tmp_path).values()] == [(0, 1), (1,)]


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
        (["file,label", "a,b"], ConfigError, "the columns file, label hold no path/url/image"),
        (["path,label", "gone.jpg,b"], DataError, "m.csv:2: .*gone.jpg cannot be found"),
        (["path,label", "x/000.jpg,"], DataError, "m.csv:2: no label"),
        (["path,label", ",b"], DataError, "m.csv:2: no path"),
    ],
)
def test_wrong_lines_are_named(tmp_path, photos, rows, error, message):
    with pytest.raises(error, match=message):
        list(ManifestSource(lines(photos / "m.csv", *rows)).items())
