"""Tars as tools make them: every member has the bytes that GNU tar extracts, or is counted with its reason."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from pipelines.sources.tars import Section, members_in, members_of
from pretrain.data.ledger import Ledger
from pretrain.errors import DataError

BLOB = bytes(range(256)) * 5


def walked(path: Path) -> tuple[dict[str, bytes], Ledger]:
    ledger, data = Ledger(), path.read_bytes()
    found = {one.name: data[one.offset : one.offset + one.size] for one in members_of(path, ledger)}
    ledger.used("tar members", "files", len(found))
    ledger.check(path)
    return found, ledger


def lost(ledger: Ledger) -> dict[str, list[str]]:
    return {reason: entry.examples for reason, entry in ledger.accounts["tar members"].lost.items()}


def gnu_tar(folder: Path, *options: str) -> Path:
    path = folder.with_suffix(".tar")
    subprocess.run(["tar", "--sort=name", *options, "-cf", path, "-C", folder, "."], check=True)
    return path


def extracted(path: Path, into: Path, *options: str) -> dict[str, bytes]:
    into.mkdir()
    subprocess.run(["tar", *options, "-xf", path, "-C", into], check=True)
    files = (Path(root) / name for root, _, names in os.walk(into) for name in names)
    return {f"./{file.relative_to(into)}": file.read_bytes() for file in files}


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for field, value in fields.items():
        setattr(header, field, value)
    tar.addfile(header, io.BytesIO(data))


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax", "v7"])
def test_links_give_the_bytes_that_tar_extracts(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(BLOB[number:])
    os.link(folder / "0.jpg", folder / "8.jpg")
    os.link(folder / "0.jpg", folder / "deep" / "9.jpg")
    os.symlink("../1.jpg", folder / "deep" / "a.jpg")
    os.symlink("deep/a.jpg", folder / "b.jpg")  # to a link; sorted, it comes before what it leads to
    os.symlink("/nowhere/blob", folder / "annexed.jpg")
    os.symlink("loop.jpg", folder / "loop.jpg")
    path = gnu_tar(folder, f"--format={form}")
    (folder / "annexed.jpg").unlink()
    (folder / "loop.jpg").unlink()
    found, ledger = walked(path)
    assert found == {f"./{one.relative_to(folder)}": one.read_bytes() for one in folder.rglob("*.jpg")}
    assert lost(ledger) == {"dangling link": ["./annexed.jpg", "./loop.jpg"]}
    assert ledger.accounts["tar members"].used["folders"] == 2
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, check=True).stdout
    assert ledger.accounts["tar members"].found == len(listed.splitlines())


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_names_and_other_alphabets(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "set"
    names = [f"{'d' * 120}/{'k' * 110}.jpg", f"고양이/{'é' * 90}.jpg", os.fsdecode(b"caf\xe9.jpg"), "v1.0/img.02.jpg"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(BLOB[number:])
    path = gnu_tar(folder, f"--format={form}")
    assert walked(path)[0] == extracted(path, tmp_path / "x") != {}


@pytest.mark.parametrize("form", ["--format=gnu", "--format=pax", "--sparse-version=0.0", "--sparse-version=1.0"])
def test_sparse_files_are_counted_and_never_read_wrongly(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(2):
        with open(folder / f"{number}.bmp", "wb") as file:
            file.write(BLOB)
            file.truncate(1 << 20)
            file.seek(1 << 19)
            file.write(BLOB)
    (folder / "plain.jpg").write_bytes(BLOB)
    form = f"--format=pax {form}" if "version" in form else form
    path = gnu_tar(folder, "--sparse", *form.split())
    found, ledger = walked(path)
    assert found == {"./plain.jpg": BLOB}
    ((reason, names),) = lost(ledger).items()
    assert reason.startswith("sparse file") and names == ["./0.bmp", "./1.bmp"]


def test_tars_that_cat_put_together_are_read_to_the_last(tmp_path: Path) -> None:
    parts = []
    for number in range(3):
        (tmp_path / f"p{number}").mkdir()
        for name in "abc":
            (tmp_path / f"p{number}" / f"{number}{name}.jpg").write_bytes(BLOB[number:])
        parts.append(gnu_tar(tmp_path / f"p{number}").read_bytes())
    path = tmp_path / "all.tar"
    path.write_bytes(b"".join(parts) + bytes(512 * 7))
    found, ledger = walked(path)
    assert found == extracted(path, tmp_path / "x", "--ignore-zeros") and len(found) == 9
    assert lost(ledger) == {}


def test_what_is_no_member_behind_the_end_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.jpg", BLOB)
    path.write_bytes(path.read_bytes() + b"rubbish" * 200)
    found, ledger = walked(path)
    assert list(found) == ["a.jpg"]
    assert lost(ledger) == {"no member, behind the end of the tar": [f"{path}, 1,400 bytes"]}


def test_what_a_mac_and_others_add_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("./._a.jpg", "./a.jpg", "._.", "__MACOSX/a.jpg", ".DS_Store", ".dots/b.jpg"):
            add(tar, name, BLOB)
        add(tar, "./folder", type=tarfile.DIRTYPE)
        add(tar, "pipe.jpg", type=tarfile.FIFOTYPE)
    found, ledger = walked(path)
    assert list(found) == ["./a.jpg", ".dots/b.jpg"]
    assert lost(ledger) == {
        "macOS resource fork": ["./._a.jpg", "._.", "__MACOSX/a.jpg"],
        "hidden": [".DS_Store"],
        "neither a file nor a folder": ["pipe.jpg"],
    }


def test_a_link_in_a_tar_inside_a_tar(tmp_path: Path) -> None:
    folder = tmp_path / "n01"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(BLOB)
    os.link(folder / "0.jpg", folder / "1.jpg")
    inner = gnu_tar(folder).read_bytes()
    outer = tmp_path / "outer.tar"
    outer.write_bytes(b"x" * 700 + inner)
    with open(outer, "rb") as file:
        section = Section(file, 700, len(inner))
        found = list(members_in(section, "outer.tar:n01.tar"))  # pyright: ignore[reportArgumentType]
    assert [(one.name, inner[one.offset : one.offset + one.size]) for one in found] == [
        ("./0.jpg", BLOB),
        ("./1.jpg", BLOB),
    ]


@pytest.mark.parametrize("tool", ["gzip", "bzip2", "xz"])
def test_a_compressed_tar_is_refused_with_a_command_that_works(tmp_path: Path, tool: str) -> None:
    """Also where its name does not say that it is compressed, as gunzip alone would refuse it then."""
    plain = tmp_path / "plain.tar"
    with tarfile.open(plain, "w") as tar:
        add(tar, "a.jpg", BLOB)
    path = tmp_path / "named.tar"
    path.write_bytes(subprocess.run([tool, "-c", plain], capture_output=True, check=True).stdout)
    with pytest.raises(DataError, match="is compressed") as raised:
        list(members_of(path))
    command = str(raised.value).rpartition("with: ")[2].replace("NEW.tar", str(tmp_path / "new.tar"))
    subprocess.run(command, shell=True, check=True)
    assert list(members_of(tmp_path / "new.tar")) == list(members_of(plain)) != []
