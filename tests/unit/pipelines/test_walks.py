"""dedup and predict see every image of a folder that pack sees, and say what became of the others."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.__main__ import main
from tests.unit.pipelines.export.test_export import weights
from tests.unit.pipelines.photos import encode, jpeg, tiles
from tests.unit.pipelines.sources.test_tars import add


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 images: 6 in a class folder, 6 in one that is a link, 1 that is a link; and what is not an image."""
    root = tmp_path_factory.mktemp("walks")
    photos = tiles()
    for place in ("photos/a", "elsewhere/b"):
        (root / place).mkdir(parents=True)
    for number in range(12):
        place = "photos/a" if number < 6 else "elsewhere/b"
        (root / place / f"{number:02d}.jpg").write_bytes(jpeg(photos[number]))
    os.symlink("../elsewhere/b", root / "photos" / "b")
    os.symlink("00.jpg", root / "photos" / "a" / "link.jpg")
    os.symlink("..", root / "photos" / "a" / "up")
    os.symlink("/nowhere", root / "photos" / "a" / "gone.jpg")
    (root / "photos" / "a" / ".hidden.jpg").write_bytes(encode(1))
    (root / "photos" / "a" / "notes.txt").write_text("")
    (root / "photos" / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "photos" / "a" / "white.png").write_bytes(_white())
    return root


def _white() -> bytes:
    import cv2

    return cv2.imencode(".png", np.full((90, 90, 3), 255, np.uint8))[1].tobytes()


ENTRIES = {"found": 21, "used": {"folders": 2, "images": 15}}
LOST = {"link to a folder above it": 1, "dangling link": 1, "hidden": 1, "not a known image (.txt)": 1}


def entries(ledger: dict) -> tuple[dict, dict]:
    account = ledger["directory entries"]
    lost = {reason: entry["count"] for reason, entry in account["lost"].items()}
    return {"found": account["found"], "used": account["used"]}, lost


def test_dedup_finds_leaks_behind_links_and_a_second_run_says_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test"
    (test / "real").mkdir(parents=True)
    leaks = [folder / "photos" / place for place in ("a/03.jpg", *(f"b/{number:02d}.jpg" for number in range(6, 12)))]
    for path in leaks:
        (test / "real" / path.name).write_bytes(path.read_bytes())
    os.symlink(test / "real", tmp_path / "linked")
    (tmp_path / "against").mkdir()
    os.symlink(test / "real", tmp_path / "against" / "class")
    arguments = ["dedup", str(folder / "photos"), "--against", str(tmp_path / "against"), "--workers", "1", "--json"]
    summaries = []
    for _ in range(2):
        capsys.readouterr()
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
        summaries.append(json.loads(capsys.readouterr().out))
    dropped = [json.loads(line)["file"] for line in (tmp_path / "out" / "drop.jsonl").read_text().splitlines()]
    assert [folder / "photos" / name for name in dropped] == leaks
    assert summaries[0] | {"seconds": 0} == summaries[1] | {"seconds": 0}
    ledger = summaries[0]["ledger"]
    (own,) = (account for kind, account in ledger.items() if kind.endswith("/photos"))
    assert own["found"] == 15 and own["used"] == {"compared": 13}
    assert own["lost"] == {
        "cannot be read": {"count": 1, "examples": ["a/broken.jpg"]},
        "too flat: exact copies only": {"count": 1, "examples": ["a/white.png"]},
    }
    used, lost = entries(ledger)
    assert (used["found"], lost) == (ENTRIES["found"] + 8, LOST)  # and the 7 of the test set, and their folder


def test_an_overwritten_file_is_looked_at_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tiles()
    for name in ("up/a.jpg", "test/b.jpg"):
        (tmp_path / name).parent.mkdir()
    size = max(len(jpeg(photos[0])), len(jpeg(photos[1])))
    (tmp_path / "up" / "a.jpg").write_bytes(jpeg(photos[0]).ljust(size, b"\0"))
    (tmp_path / "test" / "b.jpg").write_bytes(jpeg(photos[1]))
    arguments = ["dedup", str(tmp_path / "up"), "--against", str(tmp_path / "test"), "--out", str(tmp_path / "out")]
    found = []
    for picture in (photos[0], photos[1]):
        (tmp_path / "up" / "a.jpg").write_bytes(jpeg(picture).ljust(size, b"\0"))  # of one size
        capsys.readouterr()
        assert main([*arguments, "--workers", "1", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["num_dropped"])
    assert found == [0, 1]


def test_predict_answers_every_image_that_pack_would_take(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = weights(tmp_path)
    capsys.readouterr()
    code = main(["predict", str(folder / "photos"), "--from", str(model), "--top", "1"])
    shown = capsys.readouterr()
    assert code == 0 and len(shown.out.splitlines()) == 14
    assert "21 directory entries = 2 folders + 15 images + 4 left out:" in shown.err
    assert "15 images = 14 answered + 1 left out:" in shown.err
    assert f"         1  decode: {folder}/photos/a/broken.jpg" in shown.err
    assert main(["pack", "folder", str(folder / "photos"), "--out", str(tmp_path / "p"), "--max-bad-rate", "1"]) == 0
    assert "15 images = 14 in train + 1 left out:" in capsys.readouterr().out


def test_a_drop_list_of_keys_with_dots_is_honoured(tmp_path: Path) -> None:
    """The key ends at the first dot of the file's name; dots in folders belong to it."""
    photos = tiles()
    (tmp_path / "set").mkdir()
    (tmp_path / "test").mkdir()
    with tarfile.open(tmp_path / "set" / "v1.0.tar", "w") as tar:
        for number in range(4):
            add(tar, f"v1.0/img_{number}.photo.jpg", jpeg(photos[number]))
            add(tar, f"v1.0/img_{number}.cls", b"0")
    (tmp_path / "test" / "x.y.jpg").write_bytes(jpeg(photos[2]))
    assert main(["verify", str(tmp_path / "set")]) == 0
    out = tmp_path / "dedup"
    assert main(["dedup", str(tmp_path / "set"), "--against", str(tmp_path / "test"), "--out", str(out)]) == 0
    drop = out / "drop.jsonl"
    (line,) = [json.loads(line) for line in drop.read_text().splitlines()]
    assert (line["shard"], line["key"]) == ("v1.0.tar", "v1.0/img_2")
    pack = ["pack", "webdataset", str(tmp_path / "set"), "--drop-list", str(drop), "--out", str(tmp_path / "out")]
    assert main(pack) == 0
    from pretrain.data.storage.records import Records

    records = Records.open(tmp_path / "out" / "train" / "shard-000000.records.safetensors")
    sources = {records[index].source for index in range(len(records))}
    assert sources == {f"v1.0/v1.0/img_{number}.photo.jpg" for number in (0, 1, 3)}
