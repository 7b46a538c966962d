"""``verify`` and ``pack webdataset`` read from every store that the stream reads from: real servers on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pipelines.__main__ import main
from pretrain.data.storage import transport
from pretrain.data.storage.classes import encode_classes, load_classes
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from tests.faulty_server import Server, folder_server, running
from tests.s3_server import CREDENTIALS, REGION, put_folder, s3_server
from tests.unit.pipelines.photos import tree
from tests.unit.pipelines.verify.test_verify import foreign, verdicts

STORES = ("http", "s3", "pipe")


class Stores(NamedTuple):
    """The same shards in three places."""

    folder: Path
    http: Server
    s3: str

    def place(self, kind: str) -> tuple[str, list[str]]:
        """The prefix of a file's name, and the options that it needs."""
        return {
            "http": (f"{self.http.url}/set/", []),
            "s3": ("s3://foreign/sets/", ["--s3-endpoint", self.s3]),
            "pipe": (f"pipe:cat {self.folder}/", ["--allow-pipe"]),
        }[kind]


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Iterator[Stores]:
    folder = foreign(tmp_path_factory.mktemp("www") / "set")
    with running(folder_server(folder.parent)) as http, s3_server() as endpoint:
        put_folder(endpoint, folder, "foreign", "sets")
        yield Stores(folder, http, endpoint)


@pytest.fixture(autouse=True)
def around(monkeypatch):
    for name, value in {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(transport, "LONGEST_PAUSE_S", 0.01)


@pytest.mark.parametrize("kind", STORES)
def test_one_command_makes_the_index_of_remote_shards(stores, kind, tmp_path, capsys):
    base, options = stores.place(kind)
    index, local = tmp_path / "index", foreign(tmp_path / "set")
    (verdict,) = verdicts(capsys, f"{base}x-{{000..001}}.tar", "--out", index, *options)
    assert (verdict["num_samples"], verdict["errors"]) == (6, [])
    verdicts(capsys, local)
    made = tree(index)
    assert made.keys() == tree(local).keys() - {"x-000.tar", "x-001.tar"}
    assert ShardTable.load(index).digest == ShardTable.load(local).digest
    assert made["x-001.records.safetensors"] == tree(local)["x-001.records.safetensors"]


@pytest.mark.parametrize("kind", STORES)
def test_a_packed_set_is_verified_where_it_lies(stores, kind, tmp_path, capsys):
    """Shards, index and card are in the store; one byte of an image is then wrong there."""
    folder = foreign(tmp_path / kind)
    verdicts(capsys, folder)
    _, options = stores.place(kind)
    damaged = bytearray((folder / "x-001.tar").read_bytes())
    damaged[512 + 200] ^= 0xFF
    for number, files in enumerate([{}, {"x-001.tar": bytes(damaged)}]):
        for name, data in files.items():
            (folder / name).write_bytes(data)
        place = {"http": f"{stores.http.url}/{kind}{number}", "s3": f"s3://{kind}{number}/train"}.get(kind)
        if kind == "http":
            (stores.folder.parent / f"http{number}").symlink_to(folder)
        if kind == "s3":
            put_folder(stores.s3, folder, f"s3{number}", "train")
        (verdict,) = verdicts(capsys, place or f"pipe:cat {folder}/{{name}}", *options, code=number)
        assert (verdict["num_samples"], verdict["made"]) == (6, [])
    assert any("x-001.tar: 0003.jpg: wrong checksum" in line for line in verdict["errors"])


@pytest.mark.parametrize("kind", STORES)
def test_remote_shards_are_packed_like_local_ones(stores, kind, tmp_path):
    base, options = stores.place(kind)
    local = ["pack", "webdataset", str(stores.folder), "--out", str(tmp_path / "local")]
    assert main(local) == 0
    remote = ["pack", "webdataset", f"{base}x-{{000..001}}.tar", "--out", str(tmp_path / kind), *options]
    assert main(remote) == 0
    ours, theirs = tree(tmp_path / kind / "train"), tree(tmp_path / "local" / "train")
    tars = {name for name in theirs if name.endswith((".tar", ".safetensors"))}
    assert tars and {name: ours[name] for name in tars} == {name: theirs[name] for name in tars}
    assert json.loads(ours["card.json"])["num_samples"] == 6
    assert ShardReader(ShardTable.load(tmp_path / kind / "train")).read(0).labels


@pytest.mark.parametrize("kind", ["truncate", "reset", "error"])
def test_what_the_network_does_is_tried_again(stores, kind, tmp_path, capsys):
    seen: list[str] = []

    def fault(path: str, number: int) -> str | None:
        seen.append(path)
        return kind if len(seen) < 3 else None

    stores.http.fault = fault
    (verdict,) = verdicts(capsys, f"{stores.http.url}/set/x-{{000..001}}.tar", "--out", tmp_path)
    stores.http.fault = lambda path, number: None
    assert (verdict["num_samples"], verdict["errors"]) == (6, []) and len(seen) == 4


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("set/x-{000..002}.tar", "x-002.tar: not there (HTTP 404)"),
        ("set", "index.json: not there (HTTP 404). Shards without index and card get them by naming the tars"),
    ],
)
def test_what_is_not_there_is_named(stores, place, message, tmp_path, capsys):
    code = main(["verify", f"{stores.http.url}/{place}", "--out", str(tmp_path), "--workers", "1"])
    said = capsys.readouterr()
    assert code in (1, 2) and message in said.out + said.err


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_the_classes_beside_remote_shards_are_read(stores, kind, tmp_path, capsys):
    base, options = stores.place(kind)
    (stores.folder / "classes.csv").write_bytes(encode_classes([("n1", "ant"), ("n2", "bee"), ("n3", "crane")]))
    put_folder(stores.s3, stores.folder, "foreign", "sets")
    try:
        assert main(["pack", "webdataset", f"{base}x-{{000..001}}.tar", "--out", str(tmp_path / "out"), *options]) == 0
    finally:
        (stores.folder / "classes.csv").unlink()
    assert load_classes(tmp_path / "out" / "train") == [("n1", "ant"), ("n2", "bee"), ("n3", "crane")]
