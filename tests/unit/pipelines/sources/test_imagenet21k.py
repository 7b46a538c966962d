from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest
from PIL import Image

from pipelines.__main__ import main
from pipelines.sources.imagenet21k import ImageNet21kSource
from pretrain.data.images.opening import decode_strictly
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import DataError
from tests.unit.pipelines.photos import encode
from tests.unit.pipelines.sources.listing import listed

SYNSETS = {"n02084071": 3, "n02121808": 2, "n99999999": 1}


def images(synset: str, count: int) -> dict[str, bytes]:
    return {f"{synset}_{index}.JPEG": encode(int(synset[1:]) + index) for index in range(count)}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "fall11_whole.tar"
    path.write_bytes(tar_of({f"{synset}.tar": tar_of(images(synset, count)) for synset, count in SYNSETS.items()}))
    return path


def test_a_tar_of_tars_is_read_where_it_lies(tmp_path, whole):
    source = ImageNet21kSource(whole)
    found = listed(source, tmp_path)
    assert [identifier for identifier, _ in source.classes] == list(SYNSETS)
    assert dict(source.classes)["n02084071"].startswith("dog")
    expected = {
        f"{synset}/{name}": (data, number)
        for number, (synset, count) in enumerate(SYNSETS.items())
        for name, data in images(synset, count).items()
    }
    assert {key: (data, item.labels[0]) for key, (item, data, _) in found.items()} == expected
    assert {extension for _, _, extension in found.values()} == {"jpeg"}


def test_a_folder_of_synset_tars_lists_the_same(tmp_path, whole):
    with tarfile.open(whole) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    found, expected = (
        listed(ImageNet21kSource(tmp_path / "folder"), tmp_path),
        listed(ImageNet21kSource(whole), tmp_path),
    )
    assert {key: row[1:] for key, row in found.items()} == {key: row[1:] for key, row in expected.items()}


def odd(image_format: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encode(5))).convert(mode).save(buffer, format=image_format)
    return buffer.getvalue()


@pytest.fixture(params=["tar of tars", "folder"])
def with_odd_files(request, tmp_path):
    """Forty good images, four odd ones that can be packed, a text, half a JPEG, and a tar that breaks off."""
    good = {f"n01_{number}.JPEG": encode(number) for number in range(40)}
    fine = {
        "n02_cmyk.JPEG": odd("JPEG", "CMYK"), "n02_png.JPEG": odd("PNG", "RGBA"),
        "n02_grey.JPEG": odd("JPEG", "L"), "n02_gif.JPEG": odd("GIF", "P"),
    }  # fmt: skip
    bad = {"n02_readme.txt": b"Images of things", "n02_half.JPEG": encode(6)[:-400]}
    broken = tar_of({f"n03_{number}.JPEG": encode(number) for number in range(50, 53)})
    tars = {"n01.tar": tar_of(good), "n02.tar": tar_of(fine | bad), "n03.tar": broken[: broken.index(encode(52)) + 100]}
    tars["n04.tar"] = b"no tar at all"
    if request.param == "folder":
        folder = tmp_path / "tars"
        folder.mkdir()
        for name, data in tars.items():
            (folder / name).write_bytes(data)
        return folder
    (tmp_path / "whole.tar").write_bytes(tar_of(tars))
    return tmp_path / "whole.tar"


def test_odd_files_are_converted_or_quarantined_and_stop_nothing(with_odd_files, tmp_path, capsys):
    arguments = ["pack", "imagenet21k", str(with_odd_files), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*arguments, "--max-bad-rate", "0.1"]) == 0
    assert "note: n03.tar cannot be read to its end; the images before that are packed" in capsys.readouterr().out
    folder = tmp_path / "out" / "train"
    reader = ShardReader(ShardTable.load(folder))
    found = {}
    for sample_id in range(reader.table.num_samples):
        record = reader.record(sample_id)[1]
        found[record.source] = (record.member.partition(".")[2], decode_strictly(reader.read(sample_id).data).mode)
    names = {"n02/n02_cmyk.JPEG": "jpg", "n02/n02_grey.JPEG": "jpg", "n02/n02_png.JPEG": "png"}
    names |= {"n02/n02_gif.JPEG": "png", "n03/n03_50.JPEG": "jpeg", "n03/n03_51.JPEG": "jpeg"}
    assert {key: found[key] for key in names} == {key: (extension, "RGB") for key, extension in names.items()}
    assert len(found) == 40 + len(names)
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["source"]: f"{line['kind']}: {line['detail']}" for line in lines}
    assert set(reasons) == {"n02/n02_readme.txt", "n02/n02_half.JPEG", "n03/rest of n03.tar", "n04/rest of n04.tar"}
    assert "n03.tar is truncated: its member n03_52.JPEG" in reasons["n03/rest of n03.tar"]
    assert "n04.tar is not a complete tar" in reasons["n04/rest of n04.tar"]
    assert main([*arguments[:3], "--out", str(tmp_path / "strict"), "--workers", "1"]) == 2
    assert "of 50 images cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "compressed.*gunzip"),
        (lambda path: path.write_bytes(path.read_bytes()[:6000]), "truncated"),
        (lambda path: path.write_bytes(tar_of({"readme": b"x"})), "holds no per-synset tars"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_what_is_no_tar_of_tars_is_refused(tmp_path, whole, damage, message):
    damage(whole)
    with pytest.raises(DataError, match=message):
        list(ImageNet21kSource(whole).items())


@pytest.mark.parametrize("as_folder", [False, True])
def test_every_member_is_accounted_for_and_empty_synsets_are_told(tmp_path, as_folder):
    inner = {f"{name}.tar": tar_of(images(name, count)) for name, count in (("n01", 2), ("n03", 3))}
    inner |= {"n02.tar": tar_of({}), "n04.tar": tar_of({"._n04_1.JPEG": b"x", ".DS_Store": b""})}
    if as_folder:
        for name, data in inner.items():
            (tmp_path / name).write_bytes(data)
        (tmp_path / "n05.tar.gz").write_bytes(b"\x1f\x8b")
        path = tmp_path
    else:
        path = tmp_path / "whole.tar"
        path.write_bytes(tar_of(inner | {"README": b""}))
    source = ImageNet21kSource(path)
    assert len(list(source.items())) == 5 and [identifier for identifier, _ in source.classes] == ["n01", "n03"]
    assert "tars without an image, which make no class: 2 (n02, n04)" in source.notes
    source.ledger.check(path)
    account = source.ledger.accounts["tar members"]
    lost = {reason: entry.count for reason, entry in account.lost.items()}
    assert account.used["images"] == 5
    assert lost == {"macOS resource fork": 1, "hidden": 1} | ({} if as_folder else {"not a tar of a synset": 1})
    assert account.found == 7 + (0 if as_folder else 5)
    if as_folder:
        assert source.ledger.accounts["directory entries"].lost["compressed tar (unpack it first)"].examples == [
            "n05.tar.gz"
        ]
        assert any("compressed tars are not read: 1, such as n05.tar.gz" in note for note in source.notes)
