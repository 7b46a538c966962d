"""``pack manifest`` of URLs: none that can be had is lost, and the others are counted by their reason."""

from __future__ import annotations

import json
from collections import Counter
from urllib.parse import unquote, urlsplit

import pytest

from pipelines.__main__ import main
from pretrain.data.storage import transport
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from tests.unit.data.storage.test_http_client import Handler, serving
from tests.unit.pipelines.photos import encode
from tests.unit.pipelines.verify.test_verify import foreign

NAMES = [
    "plain/0.jpg",
    "cut/1.jpg",
    "busy/2.jpg",
    "plain/a b.jpg",
    "plain/고양이.jpg",
    "plain/c%20d.jpg",
    "plain/50%.jpg",
]
LOST = {"gone/7.jpg": "http_404", "closed/8.jpg": "unreachable", "plain/x#y.jpg": "bad_url", "secret/9.jpg": "http_403"}


def image(name: str) -> bytes:
    """Each name has an image of its own."""
    return encode(sum(unquote(name).encode()) % 251)


def handle(handler: Handler) -> None:
    name = unquote(urlsplit(handler.path).path).lstrip("/")
    mode, first = name.partition("/")[0], handler.number == 0
    if mode == "busy" and first:
        handler.give(429, b"later", Retry_After="0")
    elif mode == "cut" and first:
        handler.give(200, image(name)[:300], Content_Length=str(len(image(name))))
        handler.close_connection = True
    elif mode in ("gone", "secret"):
        handler.give(404 if mode == "gone" else 403, b"no")
    elif mode == "closed":
        handler.close_connection = True
    else:
        handler.give(200, image(name))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transport, "LONGEST_PAUSE_S", 0.01)


def test_urls_are_packed_and_lost_ones_are_counted_by_reason(tmp_path, capsys):
    with serving(handle) as (url, seen):
        lines = [f"{url}/{name},{number % 3}" for number, name in enumerate([*NAMES, *LOST])]
        (tmp_path / "m.csv").write_text("\n".join(["url,label", *lines]))
        options = ["--out", str(tmp_path / "out"), "--images", "keep", "--max-bad-rate", "0.9", "--workers", "1"]
        assert main(["pack", "manifest", str(tmp_path / "m.csv"), *options]) == 0
    reader = ShardReader(ShardTable.load(tmp_path / "out" / "train"))
    packed = {reader.record(number)[1].source: reader.read(number).data for number in range(reader.table.num_samples)}
    assert packed == {f"{url}/{name}": image(name) for name in NAMES}
    lost = [json.loads(line) for line in (tmp_path / "out/train/quarantine.jsonl").read_text().splitlines()]
    assert {entry["source"].removeprefix(f"{url}/"): entry["kind"] for entry in lost} == LOST
    assert json.loads((tmp_path / "out/train/card.json").read_text())["quarantined"] == Counter(LOST.values())
    assert seen["/gone/7.jpg"] == 1 and seen["/closed/8.jpg"] == 4  # as the page says: up to four times


def test_credentials_in_a_list_of_urls_are_used_and_never_kept(tmp_path, capsys):
    def guarded(handler: Handler) -> None:
        known = handler.headers["Authorization"] == "Basic dXNlcjp0b3BzZWNyZXQ="
        known &= handler.path.endswith(".jpg?sig=topsecret")
        handler.give(200 if known and handler.path.startswith("/a") else 404, image("a"))

    with serving(guarded) as (url, _):
        url = url.replace("://", "://user:topsecret@")
        (tmp_path / "m.csv").write_text(f"url,label\n{url}/a.jpg?sig=topsecret,0\n{url}/b.jpg?sig=topsecret,0\n")
        options = ["--out", str(tmp_path / "out"), "--max-bad-rate", "0.9"]
        assert main(["pack", "manifest", str(tmp_path / "m.csv"), *options]) == 0
    assert ShardTable.load(tmp_path / "out" / "train").num_samples == 1
    said = capsys.readouterr()
    kept = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"topsecret" in path.read_bytes()]
    assert (kept, "topsecret" in said.out + said.err) == ([], False)


def test_a_web_page_in_the_place_of_a_tar_is_named(tmp_path, capsys):
    with serving(lambda handler: handler.give(200, b"\n<html>please log in</html>")) as (url, _):
        assert main(["pack", "webdataset", f"{url}/train-0.tar", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{url}/train-0.tar: the server sent a web page and not a tar; does it want a login?" in said


def test_a_tar_whose_name_is_encoded_is_fetched_by_that_name(tmp_path):
    """Encoded once or not at all in the command, and always once in the request."""
    tar = foreign(tmp_path / "set") / "x-000.tar"
    asked: list[str] = []

    def handle(handler: Handler) -> None:
        asked.append(handler.path)
        found = unquote(handler.path) == "/my set/train 00+x.tar?sig=a/b="
        handler.give(200 if found else 404, tar.read_bytes())

    with serving(handle) as (url, _):
        for number, name in enumerate(["my%20set/train%2000%2Bx.tar", "my set/train 00+x.tar"]):
            out = str(tmp_path / str(number))
            assert main(["pack", "webdataset", f"{url}/{name}?sig=a%2Fb%3D", "--out", out, "--workers", "1"]) == 0
    tars = {path for path in asked if ".tar" in path}
    assert all(path.startswith("/my%20set/train%2000%2Bx.tar?sig=a%2Fb%3D") for path in tars)
