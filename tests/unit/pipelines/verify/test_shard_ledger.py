"""Shards as tools and people leave them: pack and verify read what is there, and account for every member."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from tests.unit.pipelines.photos import encode
from tests.unit.pipelines.sources.test_tars import add, gnu_tar


def sample(tar: tarfile.TarFile, key: str, number: int, extension: str = "jpg") -> None:
    add(tar, f"{key}.{extension}", encode(number))
    add(tar, f"{key}.cls", str(number % 3).encode())


def fill(path: Path, count: int = 12, prefix: str = "", extension: str = "jpg") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            sample(tar, f"{prefix}{number:06d}", number, extension)


def packed(capsys: pytest.CaptureFixture[str], folder: Path, out: Path, *options: str) -> dict:
    capsys.readouterr()
    assert main(["pack", "webdataset", str(folder), "--out", str(out), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def verdict(capsys: pytest.CaptureFixture[str], folder: Path, code: int = 0) -> dict:
    capsys.readouterr()
    assert main(["verify", str(folder), "--workers", "1", "--json"]) == code
    (found,) = json.loads(capsys.readouterr().out)
    return found


def lost(ledger: dict, kind: str) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in ledger.get(kind, {"lost": {}})["lost"].items()}


def dunder(tar: tarfile.TarFile) -> None:
    add(tar, "__meta__", b"{}")
    add(tar, "__about__/x.jpg", encode(90))
    sample(tar, "__bob", 100)
    sample(tar, "__amy__x", 101)


def mac(tar: tarfile.TarFile) -> None:
    add(tar, "._.", b"x")
    add(tar, "./._000000.jpg", b"\0\5\x16\7")
    add(tar, ".DS_Store", b"x")
    add(tar, "README.md", b"about")


def no_image(tar: tarfile.TarFile) -> None:
    add(tar, "a10.cls", b"1")
    sample(tar, "a11", 11)


def two_images(tar: tarfile.TarFile) -> None:
    add(tar, "b.left.jpg", encode(50))
    add(tar, "b.right.jpg", encode(51))
    add(tar, "b.cls", b"1")


def others(tar: tarfile.TarFile) -> None:
    sample(tar, "c", 60)
    add(tar, "c.txt", b"a caption")
    add(tar, "LICENCE", b"")


# (what else is in the tar, samples beside the 12, lost samples, lost members)
CASES: list[tuple[Callable[[tarfile.TarFile], None], int, dict[str, int], dict[str, int]]] = [
    (dunder, 2, {}, {"about the tar (__NAME__)": 1, "no extension": 1}),
    (mac, 0, {}, {"macOS resource fork": 2, "hidden": 1, "of no sample": 1}),
    (no_image, 1, {"no image": 1}, {"of a sample that is left out": 1}),
    (
        two_images,
        0,
        {"several images (a key ends at the first dot of the file's name)": 1},
        {"of a sample that is left out": 3},
    ),
    (others, 1, {}, {"neither image nor label (.txt)": 1, "no extension": 1}),
]


@pytest.mark.parametrize(("more", "num_more", "samples", "members"), CASES)
def test_members_and_samples_are_used_or_lost_for_their_reason(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: Callable[[tarfile.TarFile], None],
    num_more: int,
    samples: dict[str, int],
    members: dict[str, int],
) -> None:
    path = tmp_path / "set" / "00000.tar"
    fill(path)
    with tarfile.open(path, "a") as tar:
        more(tar)
    with tarfile.open(path) as tar:
        num_members = len(tar.getmembers())
    result = packed(capsys, path.parent, tmp_path / "out", "--max-bad-rate", "0.2")
    found = verdict(capsys, path.parent)
    for ledger in (result["ledger"], found["ledger"]):
        assert ledger["tar members"]["found"] == num_members
        assert lost(ledger, "tar members") == members
        assert ledger["samples"]["used"] == {"with an image": 12 + num_more}
        assert lost(ledger, "samples") == samples
    assert result["splits"]["train"]["num_samples"] == found["num_samples"] == 12 + num_more
    assert bool(samples) == any("samples are left out" in line for line in found["warnings"])
    assert Card.load(path.parent).ledger["samples"].num_lost == sum(samples.values())
    assert verdict(capsys, path.parent)["num_samples"] == 12 + num_more  # the index that was just made


def test_too_many_broken_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "set" / "0.tar")
    with tarfile.open(tmp_path / "set" / "0.tar", "a") as tar:
        no_image(tar)
    assert main(["pack", "webdataset", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "1 of 14 samples cannot be used (no image × 1, such as a10 (cls)), more than --max-bad-rate" in error


def test_joined_tars_and_links_are_packed_and_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stock readers stop at the first end, and leave links out: that is told."""
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(4):
        (loose / f"{number}.jpg").write_bytes(encode(number))
        (loose / f"{number}.cls").write_text(str(number % 3))
    for extension in ("jpg", "cls"):
        os.link(loose / f"0.{extension}", loose / f"8.{extension}")
    (tmp_path / "set").mkdir()
    fill(tmp_path / "second.tar", 3, "x")
    data = gnu_tar(loose).read_bytes() + (tmp_path / "second.tar").read_bytes()
    (tmp_path / "set" / "all.tar").write_bytes(data)
    assert packed(capsys, tmp_path / "set", tmp_path / "out")["splits"]["train"]["num_samples"] == 8
    found = verdict(capsys, tmp_path / "set")
    assert found["num_samples"] == 8 and not found["errors"]
    assert any("samples that stock webdataset does not read: 4, such as ./8" in line for line in found["warnings"])
    reader = ShardReader(ShardTable.load(tmp_path / "set"))
    images = [reader.read(index).data for index in range(8)]
    assert images == [encode(number) for number in (0, 1, 2, 3, 0)] + [encode(number) for number in range(3)]


def test_sparse_members_are_never_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(3):
        (loose / f"{number}.jpg").write_bytes(encode(number))
        (loose / f"{number}.cls").write_text("0")
    with open(loose / "9.bmp", "wb") as file:
        file.truncate(1 << 20)
    (loose / "9.cls").write_text("1")
    (tmp_path / "set").mkdir()
    gnu_tar(loose, "--sparse").rename(tmp_path / "set" / "0.tar")
    found = verdict(capsys, tmp_path / "set")
    assert found["num_samples"] == 3
    assert lost(found["ledger"], "tar members") == {
        "sparse file (write the tar without --sparse)": 1,
        "of a sample that is left out": 1,
    }


def test_what_is_beside_the_shards_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    fill(folder / "00000.tar", 4)
    fill(folder / "00001.TAR", 4, "u")
    fill(folder / "00002.tar", 4, "z")
    subprocess.run(["gzip", folder / "00002.tar"], check=True)
    with tarfile.open(folder / "00003.tar", "w"):
        pass
    (folder / "index.json.bak").write_text("")
    (folder / ".hidden.tar").write_bytes(b"")
    os.symlink("/nowhere.tar", folder / "gone.tar")
    fill(folder / "deep" / "00004.tar", 4, "d")
    result = packed(capsys, folder, tmp_path / "out")
    assert result["splits"]["train"]["num_samples"] == 12
    account = result["ledger"]["directory entries"]
    assert account["found"] == 9 and account["used"] == {"folders": 1, "shards": 4}
    assert lost(result["ledger"], "directory entries") == {
        "compressed tar (unpack it first)": 1,
        "not a .tar file (.bak)": 1,
        "hidden": 1,
        "dangling link": 1,
    }
    assert any("compressed tars are not read: 1, such as 00002.tar.gz" in note for note in result["notes"])
    assert any("00003.tar holds no sample" in note for note in result["notes"])
    found = verdict(capsys, folder)
    assert found["num_samples"] == 8 and found["num_shards"] == 3
    assert "shards without a sample: 1, such as 00003.tar" in found["warnings"]
    assert lost(found["ledger"], "directory entries") == {
        "compressed tar (unpack it first)": 1,
        "not a .tar file (.bak)": 1,
        "hidden": 1,
        "dangling link": 1,
        ".tar file in a folder below": 1,
    }


def test_shards_behind_a_link_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "elsewhere" / "a.tar", 4)
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "linked")
    assert packed(capsys, tmp_path / "set", tmp_path / "out")["splits"]["train"]["num_samples"] == 4


def test_failed_rows_of_img2dataset_are_reconciled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    fill(folder / "00000.tar", 4)
    stats = {"count": 10, "successes": 5, "failed_to_download": 3, "failed_to_resize": 2, "duration": 1.0}
    (folder / "00000_stats.json").write_text(json.dumps(stats))
    ledger = packed(capsys, folder, tmp_path / "out")["ledger"]
    assert ledger["rows of img2dataset"]["found"] == 10
    assert ledger["rows of img2dataset"]["used"] == {"in tars": 4}
    assert lost(ledger, "rows of img2dataset") == {
        "failed to download": 3,
        "failed to resize": 2,
        "not in the tar, though img2dataset calls them successes": 1,
    }


def test_a_tar_whose_name_an_index_could_not_take_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    fill(folder / os.fsdecode(b"caf\xe9.tar"), 2)
    assert main(["verify", str(folder)]) == 2
    assert "is not safe to use as a file name" in capsys.readouterr().err
    assert sorted(path.suffix for path in folder.iterdir()) == [".tar"]
