"""A source that changed since it was packed is noticed, whatever its times and sizes say."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from tests.unit.pipelines.pack.test_pack import fails, pack, remove, result_of, without_times
from tests.unit.pipelines.photos import encode, tree


def rewrite(path, data: bytes) -> None:
    """Other bytes of the same length, with the old time of change, as ``rsync --times`` or ``cp -p`` leave them."""
    status = path.stat()
    assert len(data) == status.st_size
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def negative(path) -> bytes:
    """The same uncompressed picture with other pixels and as many bytes."""
    data = bytearray(path.read_bytes())
    data[-300:] = bytes(255 - value for value in data[-300:])
    return bytes(data)


@pytest.fixture
def bitmaps(tmp_path):
    for number in range(6):
        path = tmp_path / "bitmaps" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number, "BMP"))
    return tmp_path / "bitmaps"


def tar_of(pictures: list[bytes], labels: list[int]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (data, label) in enumerate(zip(pictures, labels, strict=True)):
            for extension, content in (("bmp", data), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _folder_pixels(files):
    return ("folder", files[0].parent.parent), lambda: rewrite(files[3], negative(files[3]))


def _tar(files, labels, pictures):
    path = files[0].parent.parent / "t.tar"
    path.write_bytes(tar_of([file.read_bytes() for file in files], [0, 1, 2, 0, 1, 2]))
    return ("webdataset", path), lambda: rewrite(path, tar_of([one() for one in pictures], labels))


def _tar_labels(files):
    return _tar(files, [2, 1, 0, 0, 1, 2], [file.read_bytes for file in files])


def _tar_pixels(files):
    other = [*(file.read_bytes for file in files[:5]), lambda: negative(files[5])]
    return _tar(files, [0, 1, 2, 0, 1, 2], other)


def _manifest(files):
    path = files[0].parent.parent / "m.csv"
    path.write_text("path,label\n" + "".join(f"{file.parent.name}/{file.name},x\n" for file in files))
    return path


def _manifest_labels(files):
    path = _manifest(files)
    return ("manifest", path), lambda: rewrite(path, path.read_bytes().replace(b"0.bmp,x", b"0.bmp,y"))


def _manifest_pixels(files):
    return ("manifest", _manifest(files)), lambda: rewrite(files[0], negative(files[0]))


def _class_names(files):
    (_, path), _ = _tar_labels(files)
    names = files[0].parent.parent / "names.txt"
    names.write_text("cat\ndog\nowl\n")
    arguments = ("webdataset", path, "--class-names", names)
    return arguments, lambda: rewrite(names, b"dog\ncat\nowl\n")


CHANGES = (_folder_pixels, _tar_labels, _tar_pixels, _manifest_labels, _manifest_pixels, _class_names)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_source_that_changed_in_place_is_refused(tmp_path, bitmaps, change, capsys):
    arguments, apply = change(sorted(bitmaps.rglob("*.bmp")))
    out = tmp_path / "out"
    assert pack(*arguments, "--out", out) == 0
    before = tree(out)
    assert pack(*arguments, "--out", out) == 0
    apply()
    capsys.readouterr()
    assert "the source has changed" in fails(capsys, *arguments, "--out", out)
    assert tree(out) == before


def test_files_that_were_only_touched_are_compared_and_found_the_same(tmp_path, bitmaps, capsys):
    arguments = ("folder", bitmaps, "--out", tmp_path / "out", "--shard-samples", 2)
    assert result_of(capsys, *arguments)["status"] == "packed"
    packed = without_times(tmp_path / "out")
    for path in bitmaps.rglob("*.bmp"):
        path.write_bytes(path.read_bytes())
    assert result_of(capsys, *arguments)["status"] == "unchanged"
    assert without_times(tmp_path / "out") == packed


def test_what_a_kill_left_is_not_completed_from_other_pixels(tmp_path, bitmaps, capsys):
    arguments = ("folder", bitmaps, "--out", tmp_path / "out", "--shard-samples", 2)
    assert pack(*arguments) == 0
    remove("train/index.json", "train/shard-000002.records.safetensors")(tmp_path / "out")
    files = sorted(bitmaps.rglob("*.bmp"))
    for path in files:
        rewrite(path, negative(path))
    capsys.readouterr()
    assert "2 of 2 shards hold an image with other bytes now" in fails(capsys, *arguments)


def test_a_pack_without_digests_of_its_source_says_that_it_does_not_know(tmp_path, bitmaps, capsys):
    arguments = ("folder", bitmaps, "--out", tmp_path / "out")
    assert pack(*arguments) == 0
    (tmp_path / "out" / "contents.json").unlink()
    next(bitmaps.rglob("*.bmp")).touch()
    assert pack(*arguments) == 0
    assert "whether pixels have changed is unknown" in capsys.readouterr().out
