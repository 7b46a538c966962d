"""Files, tar members and class folders whose names are not UTF-8, or would be obeyed by a terminal, in every stage."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.__main__ import main
from pretrain.data.sources import load_drop_list
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.records import Records
from pretrain.data.storage.tally import Fault, FaultLog
from pretrain.data.workers.reader import ShardReader
from tests.unit.pipelines.export.test_export import weights
from tests.unit.pipelines.photos import encode

LATIN1 = [b"caf\xe9%02d" % number for number in range(6)]
RED = b"\x1b[31mred"


def tar_with(members: dict[bytes, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(os.fsdecode(name))
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A tar that somebody else wrote, indexed in place."""
    folder, members = tmp_path / "set", {}
    folder.mkdir()
    for number, key in enumerate(LATIN1):
        members |= {key + b".jpg": encode(number), key + b".cls": b"%d" % (number % 3)}
    (folder / "0.tar").write_bytes(tar_with(members))
    assert main(["verify", str(folder)]) == 0
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders in EUC-KR, and one with a terminal's escape sequence."""
    root = tmp_path / "photos"
    for count, name in enumerate(("고양이".encode("euc-kr"), "개".encode("euc-kr"), RED), start=2):
        folder = Path(os.fsdecode(bytes(root) + b"/" + name))
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / os.fsdecode(b"\xb0\xa1%d.jpg" % number)).write_bytes(encode(10 * count + number))
    return root


def test_an_index_gives_the_names_of_the_tar(shards: Path) -> None:
    records = Records.open(shards / "0.records.safetensors")
    with tarfile.open(shards / "0.tar", encoding="utf-8") as tar:
        wanted = [name for name in tar.getnames() if name.endswith(".jpg")]
    assert [records[number].member for number in range(6)] == wanted == [os.fsdecode(key) + ".jpg" for key in LATIN1]
    reader = ShardReader(ShardTable.load(shards))
    assert [reader.read(number).data for number in range(6)] == [encode(number) for number in range(6)]


def test_dedup_names_what_the_stream_and_the_packer_drop(shards: Path, tmp_path: Path) -> None:
    test = tmp_path / "test"
    test.mkdir()
    (test / os.fsdecode(b"\xff.jpg")).write_bytes(encode(4))
    out = tmp_path / "dedup"
    assert main(["dedup", str(shards), "--against", str(test), "--out", str(out), "--workers", "1"]) == 0
    (line,) = [json.loads(line) for line in (out / "drop.jsonl").read_text().splitlines()]
    assert (line["shard"], line["key"]) == ("0.tar", "caf\\xe904") and line["because"].endswith("test: \\xff.jpg")
    assert "caf\\xe904" in (out / "report.html").read_text()
    table = ShardTable.load(shards)
    records = Records.open(shards / "0.records.safetensors")
    assert load_drop_list(out / "drop.jsonl", table, lambda _: records).tolist() == [4]
    again = [
        "pack",
        "webdataset",
        str(shards),
        "--drop-list",
        str(out / "drop.jsonl"),
        "--out",
        str(tmp_path / "again"),
    ]
    assert main(again) == 0
    assert Card.load(tmp_path / "again" / "train").num_samples == 5


def test_a_drop_list_with_surrogates_in_its_json_is_read_too(shards: Path, tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    path = tmp_path / "drop.jsonl"
    path.write_text(json.dumps({"shard": "0.tar", "key": os.fsdecode(LATIN1[2])}) + "\n")
    records = Records.open(shards / "0.records.safetensors")
    assert load_drop_list(path, ShardTable.load(shards), lambda _: records).tolist() == [2]


def test_class_folders_become_readable_classes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "collage.jpg").mkdir()  # a class that is named like a file
    (photos / "collage.jpg" / os.fsdecode(b"\xb0\xa1.jpg")).write_bytes(b"not an image")
    out = tmp_path / "out"
    assert main(["pack", "folder", str(photos), "--out", str(out), "--max-bad-rate", "0.2"]) == 0
    names = ["\\x1b[31mred", "collage.jpg", "\\xb0\\xb3", "\\xb0\\xed\\xbe\\xe7\\xc0\\xcc"]
    assert [name for _, name in load_classes(out / "train")] == names
    assert Card.load(out / "train").class_counts == [4, 0, 3, 2]
    (bad,) = [json.loads(line) for line in (out / "train" / "quarantine.jsonl").read_text().splitlines()]
    assert bad["source"] == "collage.jpg/\\xb0\\xa1.jpg"
    again = ["pack", "webdataset", str(out / "train"), "--out", str(tmp_path / "again")]
    assert main(again) == 0  # a readable name is not escaped a second time
    assert [name for _, name in load_classes(tmp_path / "again" / "train")] == names
    assert "\x1b" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_predictions_name_every_image(photos: Path, tmp_path: Path, form: str) -> None:
    model, _ = weights(tmp_path)
    out = tmp_path / "out.txt"
    arguments = [str(photos), "--from", str(model), "--top", "1", "--format", form, "--out", str(out)]
    assert main(["predict", *arguments]) == 0
    text = out.read_bytes().decode()
    assert "\x1b" not in text and len(text.splitlines()) == 9 + (form == "csv")
    folder = f"{photos}/\\xb0\\xb3"
    if form == "jsonl":
        assert f"{folder}/\\xb0\\xa10.jpg" in [json.loads(line)["image"] for line in text.splitlines()]
    elif form == "csv":
        assert f"{folder}/\\xb0\\xa10.jpg" in [row["image"] for row in csv.DictReader(io.StringIO(text))]
    else:
        assert f"{folder}/\\xb0\\xa10.jpg  " in text


def test_evaluation_reads_the_set(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = weights(tmp_path, num_classes=3)
    capsys.readouterr()
    arguments = [str(shards), "--from", str(model), "--match", "numbers", "--num-workers", "0", "--json"]
    assert main(["evaluate", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 6


def test_a_fault_is_written_and_told_readably(tmp_path: Path) -> None:
    log = FaultLog(100, 0.5, tmp_path / "faults.jsonl")
    log.add([Fault(3, 4, os.fsdecode(b"\xe9.tar"), os.fsdecode(b"caf\xe9.jpg"), "read", "\x1b[2J")])
    (line,) = (tmp_path / "faults.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["shard"], found["member"], found["detail"]) == ("\\xe9.tar", "caf\\xe9.jpg", "\\x1b[2J")
    assert log.summary() == "\\xe9.tar read × 1"


def test_an_error_does_not_reach_the_terminal_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(os.fsdecode(bytes(tmp_path) + b"/" + RED + b"\xff"))
    assert main(["verify", str(place)]) == 2
    error = capsys.readouterr().err
    assert "\\x1b[31mred\\xff is not a folder" in error and "\x1b" not in error


def test_classes_of_a_foreign_file_are_readable(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("index,id,name\n0,n01,\x1b[31mred\n")
    assert load_classes(tmp_path) == [("n01", "\\x1b[31mred")]
    assert np.array(load_classes(tmp_path)).shape == (1, 2)
