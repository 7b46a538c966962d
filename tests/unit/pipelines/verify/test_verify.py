from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.__main__ import main
from pipelines.verify.verdict import label_correlation
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import DataError
from tests.unit.pipelines.photos import encode, write_photos
from tests.unit.pipelines.sources.test_imagenet21k import tar_of


@pytest.fixture
def packed(tmp_path):
    photos = write_photos(tmp_path / "photos", {"cat": 9, "dog": 8})
    arguments = ["--out", str(tmp_path / "out"), "--shard-samples", "5", "--holdout", "0.2"]
    assert main(["pack", "folder", str(photos), *arguments]) == 0
    return tmp_path / "out"


def verdicts(capsys, *arguments, code=0) -> list[dict]:
    capsys.readouterr()
    assert main(["verify", *map(str, arguments), "--workers", "1", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_packed_set_passes(packed, capsys):
    train, val = verdicts(capsys, packed)
    assert train["num_samples"] + val["num_samples"] == 17
    assert not train["errors"] + train["warnings"] + train["made"] + val["errors"]
    assert main(["verify", str(packed)]) == 0
    assert "shards: ok" in capsys.readouterr().out


def test_an_index_that_is_lost_is_made_again(packed, capsys):
    folder = packed / "train"
    before = ShardTable.load(folder)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="Make it with: python -m pipelines verify"):
        ShardTable.load(folder)
    (verdict,) = verdicts(capsys, folder, code=1)  # the card speaks of the index that was lost
    assert verdict["made"] == ["index.json"]
    assert any("come from two packs" in line for line in verdict["errors"])
    again = ShardTable.load(folder)
    assert (again.num_samples, again.sizes.tolist()) == (before.num_samples, before.sizes.tolist())


def test_a_pack_that_is_not_finished_gets_no_index(packed, capsys):
    """It would make the pack look finished, without the shards that are missing."""
    for name in ("index.json", "card.json"):
        (packed / "train" / name).unlink()
    assert main(["verify", str(packed / "train")]) == 2
    assert "is not completely packed yet; run the same python -m pipelines pack" in capsys.readouterr().err
    assert not (packed / "train" / "index.json").exists()


def foreign(folder, count=6, label=lambda number: number % 3, per_shard=3):
    folder.mkdir(parents=True)
    for first in range(0, count, per_shard):
        files = {}
        for number in range(first, min(first + per_shard, count)):
            files |= {f"{number:04d}.jpg": encode(number), f"{number:04d}.cls": str(label(number)).encode()}
        (folder / f"x-{first // per_shard:03d}.tar").write_bytes(tar_of(files))
    return folder


def test_foreign_shards_get_an_index_a_card_and_are_read(tmp_path, capsys):
    folder = foreign(tmp_path / "set")
    (tmp_path / "names.txt").write_text("n01,cat\nn02,dog\nn03,owl\n")
    (verdict,) = verdicts(capsys, folder, "--class-names", tmp_path / "names.txt", "--licence", "CC0")
    assert verdict["made"] == ["index.json", "card.json", "classes.csv"]
    reader = ShardReader(ShardTable.load(folder))
    assert [reader.read(index).labels for index in range(6)] == [(0,), (1,), (2,)] * 2
    assert reader.read(4).data == encode(4)
    card = Card.load(folder)
    assert (card.num_classes, card.class_counts, card.licence) == (3, [2, 2, 2], "CC0")
    (again,) = verdicts(capsys, folder)
    assert not again["made"] + again["errors"]


def test_the_split_of_foreign_shards_is_what_they_say(tmp_path, capsys):
    folder = foreign(tmp_path / "set")
    for number, path in enumerate(sorted(folder.glob("*.tar"))):
        path.rename(folder / f"imagenet1k-validation-{number}.tar")
    verdicts(capsys, folder)
    card = Card.load(folder)
    assert (card.split, card.split_rule) == ("val", "from the names of files (--split-from auto)")
    assert main(["verify", str(folder), "--split", "test"]) == 2
    assert "--split would be ignored" in capsys.readouterr().err


def test_the_name_of_the_given_folder_is_not_the_split_of_its_shards_but_that_of_one_below_it_is(tmp_path, capsys):
    foreign(tmp_path / "set" / "val")
    (alone,) = verdicts(capsys, tmp_path / "set" / "val")
    assert Card.load(tmp_path / "set" / "val").split == "train"
    assert any("though they are below a folder called 'val'" in warning for warning in alone["warnings"])
    for name in ("index.json", "card.json", "card.md", "classes.csv"):
        (tmp_path / "set" / "val" / name).unlink()
    verdicts(capsys, tmp_path / "set")
    assert Card.load(tmp_path / "set" / "val").split == "val"


def test_a_cls_member_that_contradicts_json_is_a_warning(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    files = {"a.jpg": encode(0), "a.cls": b"1", "a.json": b'{"label": 0}', "b.jpg": encode(1), "b.cls": b"0"}
    (tmp_path / "set" / "x-000.tar").write_bytes(tar_of(files))
    (verdict,) = verdicts(capsys, tmp_path / "set")
    assert any("samples also have json:label" in warning for warning in verdict["warnings"])


def test_shards_of_several_splits_get_no_index_together(tmp_path, capsys):
    folder = foreign(tmp_path / "set")
    (folder / "x-001.tar").rename(folder / "x-val-001.tar")
    assert main(["verify", str(folder)]) == 2
    assert "shards are of several splits (1 of train, 1 of val)" in capsys.readouterr().err
    assert not (folder / "index.json").exists()
    verdicts(capsys, folder, "--split", "Validation")
    assert Card.load(folder).split == "val"
    (tmp_path / "b").mkdir()
    (folder / "x-000.tar").rename(tmp_path / "b" / "train-val-0.tar")
    assert main(["verify", str(tmp_path / "b")]) == 2
    assert "matches train and val; say which split they are with --split" in capsys.readouterr().err


def _flip(folder):
    """One byte inside an image."""
    path = folder / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[512 + 200] ^= 0xFF
    path.write_bytes(data)


def _relabel(folder):
    path = folder / "shard-000000.tar"
    data = path.read_bytes()
    start = data.index(b".cls") // 512 * 512 + 512
    path.write_bytes(data[:start] + (b"1" if data[start : start + 1] == b"0" else b"0") + data[start + 1 :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "wrong checksum"),
        (_relabel, "in the tar, ["),
        (lambda folder: (folder / "shard-000000.tar").unlink(), "in index.json, but not there"),
        (
            lambda folder: (folder / "shard-000000.tar").write_bytes(b""),
            "has 0 bytes, but",
        ),
        (lambda folder: (folder / "shard-000000.records.safetensors").write_bytes(b"x" * 99), "stale or damaged"),
        (
            lambda folder: (folder / "card.json").write_text(
                (folder / "card.json").read_text().replace('"num_samples": ', '"num_samples": 9')
            ),
            "card.json was changed or damaged: one of num_samples",
        ),
    ],
    ids=["checksum", "label", "missing", "empty", "records", "card"],
)
def test_what_is_wrong_is_found(packed, damage, message, capsys):
    damage(packed / "train")
    (verdict,) = verdicts(capsys, packed / "train", code=1)
    assert any(message in line for line in verdict["errors"]), verdict["errors"]


def _cut_between_members(data: bytes) -> bytes:
    return data[: data.index(b"0002.jpg")]


def _spoil_a_header(data: bytes) -> bytes:
    place = data.index(b"0001.jpg")
    return data[:place] + b"x" + data[place + 1 :]


@pytest.mark.parametrize("damage", [_cut_between_members, _spoil_a_header])
def test_a_foreign_shard_that_ends_too_early_is_no_shorter_shard(tmp_path, damage, capsys):
    """Readers of tars take both for the end."""
    folder = foreign(tmp_path / "set")
    path = folder / "x-000.tar"
    path.write_bytes(damage(path.read_bytes()))
    (verdict,) = verdicts(capsys, folder, code=1)
    assert any("is cut short or damaged" in line and "x-000.tar" in line for line in verdict["errors"]), verdict
    assert not (folder / "index.json").exists()


def test_shards_in_the_order_of_classes_raise_a_warning(tmp_path, capsys):
    (ordered,) = verdicts(capsys, foreign(tmp_path / "ordered", 80, lambda number: number // 20, 10))
    assert "not mixed along the shards" in ordered["warnings"][0]
    (mixed,) = verdicts(capsys, foreign(tmp_path / "mixed", 80, lambda number: number * 7 % 11 % 4, 10))
    assert not mixed["warnings"]


@pytest.mark.parametrize("num_classes", [2, 50, 1000])
@pytest.mark.parametrize(("arrangement", "is_ordered"), [("shuffled", False), ("classes", True), ("few a shard", True)])
def test_correlation_tells_order_from_chance(num_classes, arrangement, is_ordered):
    generator = np.random.default_rng(num_classes)
    labels = np.sort((num_classes * generator.random(20_000) ** 2).astype(np.int32))  # some classes are larger
    if arrangement == "shuffled":
        labels = generator.permutation(labels)
    shards = np.array_split(labels, 40)
    if arrangement == "few a shard":  # mixed inside, but each shard has its own classes
        shards = [generator.permutation(shard) for shard in shards]
    found = label_correlation(shards)
    assert found is not None
    assert found.is_ordered == is_ordered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere is not a folder"),
        (("http://host/x-{0..1}.tar",), "--out DIR is missing"),
        (("pipe:cat /x/a.tar", "--out", "index"), "runs a shell command; if you trust it, add --allow-pipe"),
        (("pipe:cat everything", "--out", "index"), "write {name} in the command"),
        (("set/x.tar",), "give the folder"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    assert main(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err
