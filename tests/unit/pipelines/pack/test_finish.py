"""The ledger of a pack against what was planted in the source, on the screen, in JSON and on the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain.data.storage.card import Card
from pretrain.data.storage.records import Records
from tests.unit.pipelines.photos import encode, write_photos


def packed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    assert main(["pack", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_ledger_of_a_folder_says_where_each_image_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_photos(tmp_path / "photos", {"cat": 9, "dog": 8, "owl": 7, "cow": 2})
    shutil.copy(root / "cat" / "000.jpg", root / "cat" / "copy.jpg")
    (root / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (root / "dog" / "notes.txt").write_text("")
    options = ["--classes", "cat,dog,owl", "--duplicates", "drop", "--per-class", "5", "--max-bad-rate", "0.2"]
    result = packed(capsys, "folder", root, "--out", tmp_path / "out", *options)
    ledger = result["ledger"]
    assert ledger["directory entries"]["used"] == {"folders": 4, "images": 28}
    assert ledger["directory entries"]["found"] == sum(1 for _ in root.rglob("*")) == 33
    images = ledger["images"]
    num_packed = result["splits"]["train"]["num_samples"]
    bad = sum(result["splits"]["train"]["quarantined"].values())
    assert images["found"] == len(list(root.rglob("*.jpg"))) == 28
    assert images["used"] == {"in train": num_packed} and num_packed + bad == 15
    lost = {reason: entry["count"] for reason, entry in images["lost"].items()}
    assert lost.pop("decode", 0) == bad
    assert lost == {"no label chosen": 2, "exact duplicate": 1, "more than --per-class": 10}
    assert images["lost"]["no label chosen"]["examples"] == ["cow/000.jpg", "cow/001.jpg"]
    assert ledger["labels"]["found"] == 28 and ledger["labels"]["used"] == {"in train": num_packed}
    assert Card.load(tmp_path / "out" / "train").model_dump()["ledger"] == ledger
    assert main(["pack", "folder", str(root), "--out", str(tmp_path / "out"), *options]) == 0
    shown = capsys.readouterr().out
    assert "33 directory entries = 4 folders + 28 images + 1 left out:" in shown
    assert "         1  not a known image (.txt): dog/notes.txt" in shown


def test_labels_are_reconciled_through_maps_copies_and_bad_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_photos(tmp_path / "photos", {"a/x": 3, "a/y": 2, "b/z": 2})
    (root / "b" / "z" / "copy.jpg").write_bytes((root / "a" / "x" / "000.jpg").read_bytes())
    (root / "a" / "y" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    lines = ["from,to", "a,A", "a/x,X", "a/x,A", "a/y,", "b,B", "b/z,Z"]
    (tmp_path / "map.csv").write_text("\n".join(lines) + "\n")
    options = ["--nested-labels", "--label-map", tmp_path / "map.csv", "--duplicates", "merge", "--max-bad-rate", "0.5"]
    ledger = packed(capsys, "folder", root, "--out", tmp_path / "out", *options)["ledger"]["labels"]
    records = Records.open(tmp_path / "out" / "train" / "shard-000000.records.safetensors")
    # 9 images of two labels; a/x gives one more to each of 3; its copy brings B and Z to the one that stays
    assert ledger["found"] == 2 * 9 + 3 + 2
    labels = [records[index].labels for index in range(len(records))]
    assert ledger["used"] == {"in train": sum(map(len, labels))}
    lost = {reason: entry["count"] for reason, entry in ledger["lost"].items()}
    # a/y on 3 images; A twice on 3; the copy's own two, and the broken image's A
    assert lost == {"of a class that is not wanted": 3, "repeated in one image": 3, "of an image that is left out": 3}
    assert sorted(map(len, labels)) == [1, 1, 2, 2, 2, 2, 4]


def test_tasks_give_the_ledger_of_a_pack_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_photos(tmp_path / "photos", {"cat": 5, "dog": 4})
    (root / "cat" / ".hidden.jpg").write_bytes(encode(1))
    alone = packed(capsys, "folder", root, "--out", tmp_path / "alone", "--shard-samples", 3)
    for task in ("1/2", "2/2"):
        packed(capsys, "folder", root, "--out", tmp_path / "out", "--shard-samples", 3, "--task", task)
    assert packed(capsys, "merge", tmp_path / "out")["ledger"] == alone["ledger"] != {}


def test_a_shard_that_lost_samples_behind_the_plan_is_not_marked_as_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a fault of the writer would: the ledger counts what the record files hold."""
    from pipelines.pack import shards

    written = shards.encode_records
    monkeypatch.setattr(shards, "encode_records", lambda records, info: written(records[:-1], info))
    root = write_photos(tmp_path / "photos", {"cat": 5})
    assert main(["pack", "folder", str(root), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert "the ledger does not add up: 5 images were found, but 4 used and 0 left out" in error
    assert not (tmp_path / "out" / "train" / "index.json").exists()


def test_classes_without_images_and_repeated_labels_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(encode(index))
    rows = [{"path": f"{index}.jpg", "labels": [0, 3]} for index in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = packed(capsys, "manifest", tmp_path / "list.jsonl", "--out", tmp_path / "out")["notes"]
    assert any("2 of 4 classes have no image: 1, 2" in note for note in notes)


def test_rows_of_a_manifest_are_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(4):
        (tmp_path / f"{index}.jpg").write_bytes(encode(index) if index else b"\xff\xd8\xff")
    lines = ["path,label", *(f"{index}.jpg,{'ab'[index % 2]}" for index in range(4))]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    options = ["--out", tmp_path / "out", "--max-bad-rate", "0.3"]
    ledger = packed(capsys, "manifest", tmp_path / "list.csv", *options)["ledger"]
    assert ledger["rows"] == {"found": 4, "used": {"images": 4}, "lost": {}}
    assert ledger["images"]["lost"] == {"decode": {"count": 1, "examples": ["0.jpg"]}}
    assert ledger["labels"]["lost"] == {"of an image that is left out": {"count": 1, "examples": []}}
